"""Subjects: the implementations under test, and what does not apply to one of them and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from crossent import forms
from crossent.blocks import blocked
from crossent.cases import Inputs
from crossent.contracts import Grade, Promise
from crossent.features import FEATURES


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
        source: what :func:`crossent.loading.load` finds it by in another process; "" of a plain callable.
        lacks: the features that it does without, each with the reason.
    """

    name: str
    loss: Callable[..., Tensor]
    differentiable: bool = True
    not_applicable: Callable[[Inputs], str | None] = lambda inputs: None
    dtype: torch.dtype | None = None
    promise: Promise = "kernel"
    plain: str = ""
    grades: Mapping[str, Grade] = field(default_factory=dict)
    source: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)

    def lacking(self, reasons: Mapping[str, str]) -> Subject:
        """The same without these features, each of which has a reason."""
        lacks = {**reasons, **self.lacks}
        return replace(
            self,
            lacks=lacks,
            differentiable=self.differentiable and "gradient" not in lacks,
            not_applicable=partial(_not_applicable, self.not_applicable, reasons),
        )

    def not_asked(self, check: str, inputs: Inputs) -> str:
        """Why a check is not asked of it on these inputs, for want of a feature, or ""."""
        for name, reason in self.lacks.items():
            needs = FEATURES[name].checks.get(check)
            if needs is not None and needs(inputs):
                return reason
        return ""

    def grade(self, dtype: str) -> Grade:
        """The grade that it must reach."""
        return self.grades.get(dtype, "A")

    @property
    def dtype_name(self) -> str | None:
        """`dtype` in a word."""
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")


def _not_applicable(own: Callable[[Inputs], str | None], lacks: Mapping[str, str], inputs: Inputs) -> str | None:
    reasons = (reason for name, reason in lacks.items() if FEATURES[name].needs(inputs))
    return next(reasons, None) or own(inputs)


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
        Subject("formula", forms.formula, promise="eager", source="formula"),
        Subject("log_softmax_nll", forms.log_softmax_nll, promise="eager", source="log_softmax_nll"),
        Subject("one_hot", forms.one_hot, promise="eager", source="one_hot"),
        Subject("blocked", blocked, promise="blocked", source="blocked"),
        Subject(
            "scalar",
            _scalar_on_tensors,
            differentiable=False,
            not_applicable=_why_not_scalar,
            dtype=torch.float64,
            promise="eager",
            plain="is made of Python's numbers",
            source="scalar",
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
TORCH = Subject("torch", _torch, promise="torch", grades=_IN_HALVES, source="torch")
TORCH_NLL = Subject(
    "torch_nll",
    _torch_nll,
    not_applicable=_why_not_nll,
    promise="torch",
    plain="is here for its layouts alone",
    grades=_IN_HALVES,
    source="torch_nll",
)

# What a name stands for: torch is both of them.
NAMED = {**{name: (form,) for name, form in FORMS.items()}, "torch": (TORCH, TORCH_NLL)}
BY_NAME = {subject.name: subject for group in NAMED.values() for subject in group}
