"""The subjects of this package by name: the forms, and torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.forms import FORMS, scalar
from crossent.numerics.bounds.contracts import Grade, Promise
from crossent.subjects.subject import Subject


def _scalar_on_tensors(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Call `scalar`, which takes one row of Python numbers, with the tensors of a case."""
    if isinstance(weight := options.get("weight"), Tensor):
        options["weight"] = weight.tolist()
    loss = scalar(input.tolist(), target.tolist(), **options)
    return torch.tensor(loss, dtype=torch.float64, device=input.device)


def _why_not_scalar(inputs: Inputs) -> str | None:
    return None if inputs.logits.dim() == 1 else "takes one row only"


def _torch(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    loss: Tensor = torch.nn.CrossEntropyLoss(**options)(input, target)
    return loss


# The forms promise the arithmetic of torch's operations, but for these.
_PROMISES: dict[str, Promise] = {"blocked": "blocked"}
_SCALAR = Subject(
    "scalar",
    _scalar_on_tensors,
    differentiable=False,
    not_applicable=_why_not_scalar,
    dtype=torch.float64,
    promise="eager",
    not_transformed="is made of Python's numbers",
    source="scalar",
)
FORM_SUBJECTS = {
    name: _SCALAR if form is scalar else Subject(name, form, promise=_PROMISES.get(name, "eager"), source=name)
    for name, form in FORMS.items()
}


def _torch_nll(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    """log_softmax and nll_loss, as networks with the class axis last call them.

    nll_loss then gets a view, where cross_entropy hands it a contiguous tensor (pytorch#175084).
    """
    options.pop("label_smoothing", None)
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)


def _why_not_nll(inputs: Inputs) -> str | None:
    if inputs.target.is_floating_point():
        return "takes no class probabilities"
    return "has no label_smoothing" if inputs.options["label_smoothing"] != 0 else None


# On a CPU torch stores the log-probabilities of float16 and bfloat16 in that dtype, so it cannot reach grade A there.
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

# The subjects that a name stands for: "torch" stands for both of torch's.
NAMED = {**{name: (form,) for name, form in FORM_SUBJECTS.items()}, "torch": (TORCH, TORCH_NLL)}
BY_NAME = {subject.name: subject for group in NAMED.values() for subject in group}
