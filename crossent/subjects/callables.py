"""Make a subject from a callable like `F.cross_entropy`, or from a class with the options of `nn.CrossEntropyLoss`."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.subjects.features import KEYWORDS, keywords_of, require_features
from crossent.subjects.subject import Subject
from crossent.words import as_options, cut, quoted

_ALLOWED = {
    CROSS_ENTROPY: (
        "are a callable with the signature of F.cross_entropy, and a class or a factory with the options of "
        "nn.CrossEntropyLoss"
    ),
    LINEAR_CROSS_ENTROPY: "is a callable with the signature of F.linear_cross_entropy",
}
Parameter = inspect.Parameter


def as_subject(given: object, name: str = "", source: str = "", operation: Operation = CROSS_ENTROPY) -> Subject:
    """Return a subject from a loss function, or from a class or a function that makes loss functions.

    The subject passes `operation.arguments`, such as input and target, by position, and options by keyword. If the
    signature lacks an option, the subject lacks the features of this option.

    Args:
        given: a loss function, a class, or a function that takes only options and returns a loss function. `given` may
            have two attributes: `lacks`, a dict from further missing features to reasons, and `chunks`, the keywords
            that set the size of a chunk.
        name: the name of the subject; by default, the name of the callable.
        source: the description from which the subject can be loaded again; "" if there is none.
        operation: the operation that `given` computes. For a linear cross-entropy, only a loss function is allowed.

    Raises:
        TypeError: `given` cannot be called as a cross-entropy, or an attribute is wrong. The message is the end of a
            sentence that begins with "subject: got".

    Example:
        >>> subject = as_subject(lambda input, target: torch.logsumexp(input, 1).mean(), "wrong")
        >>> subject.name, subject.lacks["weight"]
        ('wrong', 'has no weight')
    """
    what, allowed = name or _name(given), _ALLOWED[operation]
    if operation is LINEAR_CROSS_ENTROPY and isinstance(given, type | torch.nn.Module):
        module = f"the class {given.__name__}" if isinstance(given, type) else f"an instance of {type(given).__name__}"
        raise TypeError(f"{cut(module)}, which has its own weight; allowed {allowed}")
    if isinstance(given, torch.nn.Module):
        what = f"an instance of {cut(type(given).__name__)}"
        raise TypeError(f"{what}; pass the class, so that crossent can set the options")
    if isinstance(given, type) and not any("__call__" in vars(base) for base in given.__mro__):
        raise TypeError(f"the class {cut(given.__name__)}, whose instances cannot be called; allowed {allowed}")
    if not callable(given):
        raise TypeError(f"an object of type {cut(type(given).__name__)}, which is not callable; allowed {allowed}")
    try:
        parameters: Mapping[str, Parameter] = inspect.signature(given).parameters
    except (TypeError, ValueError):
        parameters = _anything.parameters
    if _has_no_constructor(given):
        parameters = {}
    is_linear = operation is LINEAR_CROSS_ENTROPY
    is_factory = not is_linear and (isinstance(given, type) or _takes_options_only(parameters))
    if reason := _why_unfit(parameters, () if is_factory else operation.arguments):
        raise TypeError(f"{quoted(what)}, which {reason}; allowed {allowed}")
    loss = partial(_make_and_call, given) if is_factory else given
    if is_linear:
        loss = partial(with_weight, loss)
    if not is_factory:
        # A parameter for an argument may have the name `weight`, which is also the name of an option.
        places = [name for name, parameter in parameters.items() if parameter.kind in _BY_POSITION]
        passed = places[: len(operation.arguments)]
        parameters = {name: parameter for name, parameter in parameters.items() if name not in passed}
    missing = [keyword for keyword in keywords_of(operation) if not _has(parameters, keyword)]
    if missing:
        loss = partial(_call_without, loss, tuple(missing))
    lacks = {feature: _why_missing(keyword, parameters) for keyword in missing for feature in KEYWORDS[keyword]}
    chunks = _chunk_keywords(given, parameters) if is_linear else ()
    if is_linear and not chunks and getattr(given, "chunks", None) is None:
        lacks["memory"] = "does not say that it works in chunks"
    lacks = {**_lacking_if_interpreted(), **lacks, **declared_lacks(given)}
    return Subject(what, loss, source=source, operation=operation, chunks=chunks).lacking(lacks)


def _has_no_constructor(given: object) -> bool:
    """Return whether a class has only the constructor of `nn.Module`, which takes no options."""
    if not isinstance(given, type) or not issubclass(given, torch.nn.Module) or given.call_super_init:
        return False
    own = given.__mro__[: given.__mro__.index(torch.nn.Module)]
    return not any("__init__" in vars(base) for base in own)


def _why_missing(keyword: str, parameters: Mapping[str, Parameter]) -> str:
    """Return why a subject lacks the option `keyword`, such as "has no weight"."""
    if keyword in parameters and parameters[keyword].kind is Parameter.POSITIONAL_ONLY:
        return f"takes {keyword} only by position"
    near = get_close_matches(keyword, [name for name in parameters if name not in KEYWORDS], n=1)
    return f"has no {keyword}" + "".join(f" (its argument {name} is never passed)" for name in near)


def _chunk_keywords(given: object, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    """Return the keywords that set the size of a chunk: how many rows or classes `given` computes at a time."""
    keywords = [name for name in parameters if _has(parameters, name) and name not in KEYWORDS]
    says = getattr(given, "chunks", None)
    if says is None:
        sized = [name for name in keywords if parameters[name].default is None or type(parameters[name].default) is int]
        return tuple(name for name in sized if re.search("chunk|block", name.lower()))
    named = (says,) if isinstance(says, str) else tuple(says) if isinstance(says, (tuple, list)) else (says,)
    if wrong := [name for name in named if name not in keywords]:
        raise TypeError(
            f"an object whose attribute `chunks` names {quoted(wrong[0])}; choose keywords of your function, such as "
            "'chunk_size', but no option of F.linear_cross_entropy; use () if no keyword sets the size of a chunk"
        )
    return named


def declared_lacks(given: object) -> dict[str, str]:
    """Return the attribute `lacks` of a callable, a dict from features to reasons; {} without the attribute.

    Raises:
        TypeError: the attribute is not a dict from names of features to strings.
    """
    says = getattr(given, "lacks", {})
    if not isinstance(says, Mapping) or not all(isinstance(reason, str) for reason in says.values()):
        raise TypeError(
            "an object whose attribute `lacks` is not a dict from features to reasons; "
            "write, for example, {'double_backward': 'has no second derivative'}"
        )
    try:
        # If `require_features` adds the feature `reduction`, this feature gets the reason of `reduction_sum`.
        return {name: says[name if name in says else "reduction_sum"] for name in require_features(says)}
    except ValueError as error:
        unknown = str(error).removeprefix("without: got ")
        raise TypeError(f"an object whose attribute `lacks` has the unknown feature {unknown}") from None


def _lacking_if_interpreted() -> dict[str, str]:
    """Return the missing feature bfloat16 and a reason, as a dict, if Triton's interpreter is in use, otherwise {}."""
    # In Triton 3.9, the interpreter turns 2.311 into 2.297 instead of 2.3125.
    if os.environ.get("TRITON_INTERPRET") == "1" and "triton.runtime.interpreter" in sys.modules:
        return {"bfloat16": "is loaded with Triton's interpreter, which truncates to bfloat16 where a GPU rounds"}
    return {}


def _name(given: object) -> str:
    inner = given.func if isinstance(given, partial) else given
    name = getattr(inner, "__name__", None)
    return name if isinstance(name, str) else type(inner).__name__


def _make_and_call(make: Callable[..., Any], input: Tensor, target: Tensor, **options: Any) -> Any:
    return make(**options)(input, target)


def with_weight(
    loss: Callable[..., Any], input: Tensor, target: Tensor, *, linear_weight: Tensor, **options: Any
) -> Any:
    """Call `loss` with the arguments in the order of `F.linear_cross_entropy`: input, linear_weight, target."""
    return loss(input, linear_weight, target, **options)


def _call_without(
    loss: Callable[..., Any], missing: tuple[str, ...], input: Tensor, target: Tensor, **options: Any
) -> Any:
    return loss(input, target, **{name: value for name, value in options.items() if name not in missing})


_anything = inspect.signature(lambda *arguments, **options: None)
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _has(parameters: Mapping[str, Parameter], keyword: str) -> bool:
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    return keyword in parameters and parameters[keyword].kind in (
        Parameter.POSITIONAL_OR_KEYWORD,
        Parameter.KEYWORD_ONLY,
    )


def _takes_options_only(parameters: Mapping[str, Parameter]) -> bool:
    """Return whether a function takes options, but not input and target."""
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return False
    target = parameters.get("target")
    if target is not None and target.kind is Parameter.KEYWORD_ONLY and target.default is Parameter.empty:
        return False
    places = [parameter.name for parameter in parameters.values() if parameter.kind in _BY_POSITION]
    return any(_has(parameters, keyword) for keyword in KEYWORDS) and (len(places) < 2 or places[0] in KEYWORDS)


def _why_unfit(parameters: Mapping[str, Parameter], arguments: Sequence[str]) -> str:
    """Return why a function cannot be called with `arguments` by position and options by keyword; "" if it can."""
    places = len(arguments)
    kinds = [parameter.kind for parameter in parameters.values()]
    by_position = [parameter for parameter in parameters.values() if parameter.kind in _BY_POSITION]
    by_keyword = [parameter for parameter in parameters.values() if parameter.kind is Parameter.KEYWORD_ONLY]
    if len(by_position) < places and Parameter.VAR_POSITIONAL not in kinds:
        listed = f"{', '.join(arguments[:-1])} and {arguments[-1]}"
        for parameter in by_keyword:
            if parameter.name in arguments:
                return f"takes {parameter.name} only as a keyword, but gets {listed} by position"
        return f"does not take {listed}"
    if places == 3 and by_position and by_position[0].name in KEYWORDS:
        return f"takes the option {by_position[0].name} first, in place of {arguments[0]}"
    others = [*by_position[places:], *by_keyword]
    required = [other for other in others if other.default is Parameter.empty]
    needed = [one.name for one in required if one.name not in KEYWORDS or one.kind is Parameter.POSITIONAL_ONLY]
    # A function whose third argument is `target` is probably a linear cross-entropy.
    is_linear = places == 2 and needed == ["target"]
    hint = f" (a linear cross-entropy needs {as_options(operation=LINEAR_CROSS_ENTROPY.name)})" if is_linear else ""
    return f"requires the argument {quoted(needed[0])}{hint}" if needed else ""
