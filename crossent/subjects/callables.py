"""Adapting: whatever can be called as `F.cross_entropy`, or made as `nn.CrossEntropyLoss`, as a subject."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.subjects.features import KEYWORDS, require_features
from crossent.subjects.subject import Subject

_ALLOWED = (
    "a callable with the signature of F.cross_entropy, and a class with the constructor of nn.CrossEntropyLoss"
    " or what makes its instances"
)
Parameter = inspect.Parameter


def as_subject(given: object, name: str = "", source: str = "") -> Subject:
    """A subject that is called with the options that its signature has.

    Input and target are given by position, whatever they are called. An option that is no keyword of the signature is
    not given: where it is at its default that is the same call, elsewhere the subject lacks what it is about. A
    signature that cannot be read, as of what is written in C++, is taken to have all of them.

    An attribute `lacks` says what else it does without: a dict of reasons by features.

    A class is called with the options, and what it makes with input and target; and so is a function that takes options
    only. An instance of `nn.Module` is none: its options are fixed.

    Raises:
        TypeError: it is neither, in one line.
    """
    what = name or _name(given)
    if isinstance(given, torch.nn.Module):
        raise TypeError(f"an instance of {type(given).__name__}, whose options are fixed; allowed is the class itself")
    if isinstance(given, type) and not any("__call__" in vars(one) for one in given.__mro__):
        raise TypeError(f"the class {given.__name__}, whose instances cannot be called; allowed are {_ALLOWED}")
    if not callable(given):
        raise TypeError(f"{type(given).__name__}; allowed are {_ALLOWED}")
    try:
        parameters = inspect.signature(given).parameters
    except (TypeError, ValueError):
        parameters = _anything.parameters
    makes = isinstance(given, type) or _takes_options_only(parameters)
    if reason := _unfit(parameters, 0 if makes else 2):
        raise TypeError(f"{what}, which {reason}; allowed are {_ALLOWED}")
    loss = partial(_made, given) if makes else given
    missing = [keyword for keyword in KEYWORDS if not _has(parameters, keyword)]
    if missing:
        loss = partial(_called_without, loss, tuple(missing))
    lacks = {feature: f"has no {keyword}" for keyword in missing for feature in KEYWORDS[keyword]}
    return Subject(what, loss, source=source).lacking({**_interpreted(), **lacks, **_declared(given)})


def _declared(given: object) -> dict[str, str]:
    """What it says of itself that it lacks, in its attribute `lacks`: reasons by features.

    Raises:
        TypeError: a feature that is none, or a reason that is no text, in one line.
    """
    says = getattr(given, "lacks", {})
    if not isinstance(says, Mapping) or not all(isinstance(one, str) for one in says.values()):
        raise TypeError("what has an attribute `lacks` that is no dict of reasons by features")
    try:
        return {name: says[name] for name in require_features(says)}
    except ValueError as error:
        raise TypeError(f"what lacks something that is no feature: {error}") from None


def _interpreted() -> dict[str, str]:
    """What a subject lacks where Triton's kernels run in Python, as TRITON_INTERPRET=1 has them.

    Seen in Triton 3.9: 2.311 becomes 2.297 in bfloat16, and not 2.3125.
    """
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton.runtime.interpreter" in sys.modules:
        return {"bfloat16": "is loaded beside Triton's interpreter, which cuts off what a GPU rounds to bfloat16"}
    return {}


def _name(given: object) -> str:
    inner = given.func if isinstance(given, partial) else given
    name = getattr(inner, "__name__", None)
    return name if isinstance(name, str) else type(inner).__name__


def _made(make: Callable[..., Any], input: Tensor, target: Tensor, **options: Any) -> Any:
    return make(**options)(input, target)


def _called_without(
    loss: Callable[..., Any], missing: tuple[str, ...], input: Tensor, target: Tensor, **options: Any
) -> Any:
    return loss(input, target, **{name: value for name, value in options.items() if name not in missing})


_anything = inspect.signature(lambda *arguments, **options: None)
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _has(parameters: Mapping[str, Parameter], keyword: str) -> bool:
    if any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values()):
        return True
    return keyword in parameters and parameters[keyword].kind in (
        Parameter.POSITIONAL_OR_KEYWORD,
        Parameter.KEYWORD_ONLY,
    )


def _takes_options_only(parameters: Mapping[str, Parameter]) -> bool:
    """Whether it makes a loss: no place for input and target, or an option in the first."""
    if any(one.kind is Parameter.VAR_POSITIONAL for one in parameters.values()):
        return False
    places = [one.name for one in parameters.values() if one.kind in _BY_POSITION]
    return any(_has(parameters, keyword) for keyword in KEYWORDS) and (len(places) < 2 or places[0] in KEYWORDS)


def _unfit(parameters: Mapping[str, Parameter], places: int) -> str:
    """Why it cannot be called with that many arguments by position and any options, or ""."""
    by_position = [one for one in parameters.values() if one.kind in _BY_POSITION]
    if len(by_position) < places and not any(one.kind is Parameter.VAR_POSITIONAL for one in parameters.values()):
        return "takes no input and target"
    others = [*by_position[places:], *(one for one in parameters.values() if one.kind is Parameter.KEYWORD_ONLY)]
    needed = [one.name for one in others if one.default is Parameter.empty and one.name not in KEYWORDS]
    return f"needs {needed[0]!r} as well" if needed else ""
