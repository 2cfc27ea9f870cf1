"""Subjects: the implementations under test, and what does not apply to one of them and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crossent import forms
from crossent.cases import Inputs
from crossent.contracts import Grade, Promise


@dataclass(frozen=True)
class Subject:
    """One cross-entropy under test.

    Attributes:
        name: what the report calls it.
        loss: a callable with the signature of `F.cross_entropy`.
        differentiable: whether its result has a gradient.
        not_applicable: why a case does not apply to it, or None where it does.
        dtype: of its results, where that is not the one that the logits call for.
        promise: about its arithmetic; somebody's kernel unless it says otherwise.
        plain: why it is not transformed (compiled, vmapped, …), or "" where it is.
        grades: the grade that it must reach for a dtype, where that is not A.
    """

    name: str
    loss: Callable[..., Tensor]
    differentiable: bool = True
    not_applicable: Callable[[Inputs], str | None] = lambda inputs: None
    dtype: torch.dtype | None = None
    promise: Promise = "kernel"
    plain: str = ""
    grades: Mapping[str, Grade] = field(default_factory=dict)

    def grade(self, dtype: str) -> Grade:
        """The grade that it must reach."""
        return self.grades.get(dtype, "A")

    @property
    def dtype_name(self) -> str | None:
        """`dtype` in a word."""
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")


def _scalar_on_tensors(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    if isinstance(weight := options.get("weight"), Tensor):
        options["weight"] = weight.tolist()
    loss = forms.scalar(input.tolist(), target.tolist(), **options)
    return torch.tensor(loss, dtype=torch.float64, device=input.device)


def _why_not_scalar(inputs: Inputs) -> str | None:
    return None if inputs.logits.dim() == 1 else "takes one row only"


def _torch(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    loss: Tensor = torch.nn.CrossEntropyLoss(**options)(input, target)
    return loss


FORMS = {
    subject.name: subject
    for subject in (
        Subject("formula", forms.formula, promise="eager"),
        Subject("log_softmax_nll", forms.log_softmax_nll, promise="eager"),
        Subject("one_hot", forms.one_hot, promise="eager"),
        Subject(
            "scalar",
            _scalar_on_tensors,
            differentiable=False,
            not_applicable=_why_not_scalar,
            dtype=torch.float64,
            promise="eager",
            plain="is made of Python's numbers",
        ),
    )
}


def _torch_in_float64(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    # uint8 is widened too: torch takes it in some calls and refuses it in others.
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    return _torch(input.double(), target.double() if target.is_floating_point() else target.long(), **wide)


# What the forms are said to equal: nn.CrossEntropyLoss on the same values, without the rounding of their dtype.
REFERENCE = Subject("torch in float64", _torch_in_float64, dtype=torch.float64, promise="eager")


def _torch_nll(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    # As networks use it that have the class axis last: nll_loss sees a view, and not the contiguous tensor that
    # cross_entropy hands to it (pytorch#175084).
    options.pop("label_smoothing", None)
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)


def _why_not_nll(inputs: Inputs) -> str | None:
    if inputs.target.is_floating_point():
        return "takes no class probabilities"
    return "has no label_smoothing" if inputs.options["label_smoothing"] != 0 else None


# nn.CrossEntropyLoss itself, and the pair of functions that it is made of. On a CPU they store the log-probabilities of
# half precision in half precision.
_IN_HALVES: dict[str, Grade] = {"float16": "B", "bfloat16": "B"}
TORCH = Subject("torch", _torch, promise="torch", grades=_IN_HALVES)
TORCH_NLL = Subject(
    "torch_nll",
    _torch_nll,
    not_applicable=_why_not_nll,
    promise="torch",
    plain="is here for its layouts alone",
    grades=_IN_HALVES,
)

# What a name stands for: torch is both of them.
NAMED = {**{name: (form,) for name, form in FORMS.items()}, "torch": (TORCH, TORCH_NLL)}
BY_NAME = {subject.name: subject for group in NAMED.values() for subject in group}


def load(subject: str | Callable[..., Tensor]) -> tuple[Subject, ...]:
    """A form by its name, `torch`, or any callable with the signature of `F.cross_entropy`.

    Raises:
        ValueError: a name that is neither.
        TypeError: neither a name nor a callable.
    """
    if isinstance(subject, str):
        if subject not in NAMED:
            raise ValueError(f"subject: got {subject!r}; allowed are {', '.join(NAMED)}")
        return NAMED[subject]
    if not callable(subject):
        raise TypeError(f"subject: got {type(subject).__name__}; allowed are a form's name and a callable")
    name = getattr(subject, "__name__", None)
    return (Subject(name if isinstance(name, str) else type(subject).__name__, subject),)
