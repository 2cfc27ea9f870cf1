"""Subjects: the implementations under test, and what does not apply to one of them and why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.forms import textbook
from crossent.forms.blocks import blocked
from crossent.numerics.bounds.contracts import Grade
from crossent.subjects.subject import Subject


def _scalar_on_tensors(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    if isinstance(weight := options.get("weight"), Tensor):
        options["weight"] = weight.tolist()
    loss = textbook.scalar(input.tolist(), target.tolist(), **options)
    return torch.tensor(loss, dtype=torch.float64, device=input.device)


def _why_not_scalar(inputs: Inputs) -> str | None:
    return None if inputs.logits.dim() == 1 else "takes one row only"


def _torch(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    loss: Tensor = torch.nn.CrossEntropyLoss(**options)(input, target)
    return loss


FORMS = {
    subject.name: subject
    for subject in (
        Subject("formula", textbook.formula, promise="eager", source="formula"),
        Subject("log_softmax_nll", textbook.log_softmax_nll, promise="eager", source="log_softmax_nll"),
        Subject("one_hot", textbook.one_hot, promise="eager", source="one_hot"),
        Subject("blocked", blocked, promise="blocked", source="blocked"),
        Subject(
            "scalar",
            _scalar_on_tensors,
            differentiable=False,
            not_applicable=_why_not_scalar,
            dtype=torch.float64,
            promise="eager",
            not_transformed="is made of Python's numbers",
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
    not_transformed="is here for its layouts alone",
    grades=_IN_HALVES,
    source="torch_nll",
)

# What a name stands for: torch is both of them.
NAMED = {**{name: (form,) for name, form in FORMS.items()}, "torch": (TORCH, TORCH_NLL)}
BY_NAME = {subject.name: subject for group in NAMED.values() for subject in group}
