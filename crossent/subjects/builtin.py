"""The built-in subjects by name: the forms, and torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.forms import FORMS, scalar
from crossent.numerics.bounds.contracts import Promise
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.contracts import DEFAULT_CONTRACT, TORCH_CONTRACT, in_halves
from crossent.subjects.subject import Loss, Subject


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


# A form promises the arithmetic of torch's operations ("eager"), unless this table has another promise.
_PROMISES: dict[str, Promise] = {"blocked": "blocked"}


def _form(name: str, loss: Loss) -> Subject:
    promise = _PROMISES.get(name, "eager")
    return Subject(name, loss, promise=promise, source=name, contract=promise)


_SCALAR = Subject(
    "scalar",
    _scalar_on_tensors,
    differentiable=False,
    not_applicable=_why_not_scalar,
    dtype=torch.float64,
    promise="eager",
    not_transformed="computes with Python numbers, not with tensors",
    source="scalar",
    contract="eager",
)
FORM_SUBJECTS = {name: _SCALAR if form is scalar else _form(name, form) for name, form in FORMS.items()}


def _torch_nll(input: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any) -> Tensor:
    """Compute the loss with log_softmax over the last axis, and nll_loss.

    The function moves the class axis last for log_softmax, and back for nll_loss. So for logits (N, C, d1, …), nll_loss
    gets a view that is not contiguous. F.cross_entropy passes a contiguous tensor to nll_loss (pytorch#175084).
    """
    options.pop("label_smoothing", None)
    axis = min(1, input.dim() - 1)
    log_probs = torch.log_softmax(input.movedim(axis, -1), -1).movedim(-1, axis)
    return torch.nn.functional.nll_loss(log_probs, target, weight, **options)


def _why_not_nll(inputs: Inputs) -> str | None:
    if inputs.target.is_floating_point():
        return "takes no class probabilities"
    return "has no label_smoothing" if inputs.options["label_smoothing"] != 0 else None


# On a CPU torch stores the log-probabilities of float16 and bfloat16 in that dtype, so torch cannot reach grade A.
_AS_TORCH: dict[str, Any] = {"promise": "torch", "grades": in_halves("B"), "contract": TORCH_CONTRACT}
TORCH = Subject("torch", _torch, source="torch", **_AS_TORCH)
TORCH_NLL = Subject(
    "torch_nll",
    _torch_nll,
    not_applicable=_why_not_nll,
    not_transformed="serves only to test memory layouts",
    source="torch_nll",
    **_AS_TORCH,
)

# The subjects of each name that a user can give. The name "torch" stands for two subjects.
NAMED = {**{name: (form,) for name, form in FORM_SUBJECTS.items()}, "torch": (TORCH, TORCH_NLL)}
BY_NAME = {subject.name: subject for group in NAMED.values() for subject in group}


def own_subject(subject: Subject) -> Subject | None:
    """Return the built-in subject that `subject` is, or from which it was compiled; None for a foreign subject."""
    return BY_NAME.get(subject.source.removesuffix(COMPILE_SUFFIX))


def chosen_contract(subject: Subject) -> str:
    """Return the name of the contract that the user chose for a subject, or "" for the default contract."""
    own = own_subject(subject)
    return "" if subject.contract == (DEFAULT_CONTRACT if own is None else own.contract) else subject.contract
