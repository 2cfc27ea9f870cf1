"""One call of a subject: its loss and gradients, and the changes that the call made to its arguments."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs, bits
from crossent.cases.operation import GRADIENTS
from crossent.subjects.subject import Loss
from crossent.trials.memory import marks, poison, shared, written

Gradients = tuple[str, ...]
# The names that messages use for the parts of a result.
_PARTS = {
    "loss": "loss",
    "gradient": "gradient",
    "target_gradient": "gradient of the target",
    "weight_gradient": "gradient of linear_weight",
    "bias_gradient": "gradient of linear_bias",
}


@dataclass(frozen=True)
class Result:
    """The loss and the gradients that a call returned.

    Attributes:
        loss: the loss, detached from the graph.
        gradient: the gradient of the input, which are the logits of a cross-entropy, or None if it was not computed.
        target_gradient: the gradient of the class probabilities, or None if it was not computed.
        weight_gradient: the gradient of `linear_weight`, or None if it was not computed.
        bias_gradient: the gradient of `linear_bias`, or None if it was not computed.
    """

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None
    weight_gradient: Tensor | None = None
    bias_gradient: Tensor | None = None

    def copy(self) -> Result:
        """Return a copy of the result, in new memory."""
        return Result(**{name: part.clone() for name, part in self.parts.items()})

    @property
    def digest(self) -> str:
        """A checksum of every bit of the result. All NaN count as equal, whatever their payload bits."""
        bits = 0
        for tensor in self.parts.values():
            bits = checksum(tensor, bits)
        return f"{bits:08x}"

    @property
    def parts(self) -> dict[str, Tensor]:
        """The loss and the computed gradients, by name."""
        named = {name: getattr(self, name) for name in ("loss", *GRADIENTS)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def digest_of(got: Result) -> str:
    """Return the checksum of a result, or "" if the result has no data, such as a tensor on the meta device."""
    try:
        return got.digest
    except RuntimeError:
        return ""


def checksum(tensor: Tensor, before: int = 0) -> int:
    """Return the CRC-32 of the dtype, shape and bits of a tensor. All NaN count as equal.

    Pass the checksum of previous tensors as `before` to get the checksum of all tensors together.
    """
    so_far = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), before)
    nan = tensor.isnan()
    return zlib.crc32(bits(tensor.where(~nan, torch.nan) if nan.any() else tensor).tobytes(), so_far)


def evaluate(loss: Loss, inputs: Inputs, gradients: Gradients = tuple(GRADIENTS)) -> Result:
    """Call the loss, run the backward pass with the upstream gradient, and return the loss and the gradients.

    Args:
        loss: the subject.
        inputs: the arguments of the call, and the upstream gradient.
        gradients: the names of the gradients to compute. Names of gradients that the operation does not have are
            ignored, and a target of class indices has no gradient. Without "gradient", there is no backward pass.

    Raises:
        TypeError: the loss is not a dense tensor of real numbers, or does not depend on a tensor whose gradient is
            requested.
    """
    # The leaves share the memory of the inputs, so `make_call` can detect a write into them.
    given, leaves = inputs.requiring(gradients if "gradient" in gradients else ())
    value = as_loss(loss(given.input, given.target, **given.options))
    word = inputs.operation.word
    if leaves and not value.requires_grad:
        raise TypeError(f"the loss is detached from the {word('input')}, so there is no gradient")
    if not leaves or value.shape != inputs.upstream.shape:  # `misshapen` reports a wrong shape
        return Result(value.detach())
    made = torch.autograd.grad(value, list(leaves.values()), inputs.upstream.to(value.dtype), allow_unused=True)
    computed = dict(zip(leaves, made, strict=True))
    for name, gradient in computed.items():
        if gradient is None:
            raise TypeError(f"the loss is detached from the {word(GRADIENTS[name])}, so there is no gradient")
    return Result(value.detach(), **computed)


def as_loss(value: object) -> Tensor:
    """Check that a value is a dense tensor of real numbers, and return the value.

    Raises:
        TypeError: the value is not such a tensor. A subclass of Tensor is not allowed: its methods could return
            anything.
    """
    if type(value) is not Tensor or value.layout != torch.strided:
        raise TypeError(f"the loss is a {type(value).__name__}; expected a dense torch.Tensor")
    if value.is_complex():
        raise TypeError(f"the loss is {value.dtype}; expected a real dtype")
    return value


@dataclass(frozen=True)
class Call:
    """A call: its results, and its effects on its arguments.

    Attributes:
        result: the loss and the gradients.
        given: the inputs after the call.
        written_forward: the name of the argument into which the forward pass wrote; "" if there is none.
        marked: a sentence about an argument whose .grad or requires_grad the call changed; "" if there is none.
        shared: a sentence about a result that shares memory with an argument; "" if there is none.
    """

    result: Result
    given: Inputs
    written_forward: str
    marked: str
    shared: str


def make_call(loss: Loss, inputs: Inputs, gradients: Gradients) -> Call:
    """Make the first call of a case, and return its results and its effects on its arguments.

    This function is an act: a host calls it where the subject runs (see `crossent.trials.act`).
    """
    passed: dict[str, tuple[Tensor, bool]] = {}
    before, written_forward = inputs.copy(), ""

    def watched(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        nonlocal written_forward
        tensors = {"input": input, "target": target, **options}
        passed.update((name, (each, each.requires_grad)) for name, each in tensors.items() if isinstance(each, Tensor))
        value = loss(input, target, **options)
        written_forward = written(inputs, before)  # here, `evaluate` has not yet run the backward pass
        return value

    result = evaluate(watched, inputs, gradients)
    parts = {_PARTS[name]: part for name, part in result.parts.items()}
    return Call(result, inputs, written_forward, marks(passed), shared(parts, inputs))


def repeat_call(loss: Loss, inputs: Inputs, others: Inputs, gradients: Gradients) -> tuple[Result, Result, Result]:
    """Call the loss twice with the same inputs, and once in between with other inputs.

    This function is an act: a host calls it where the subject runs (see `crossent.trials.act`).

    Before the second call with the same inputs, freed memory is filled with NaN. An exception in the call with other
    inputs is ignored, because other checks report such an exception.

    Returns:
        The first result, copied at once; the first result, copied after the call with other inputs; and the result of
        the second call with the same inputs. All three should be equal.
    """
    first = evaluate(loss, inputs.copy(), gradients)
    kept = first.copy()
    with suppress(Exception):
        evaluate(loss, others, gradients)
    poison(inputs)
    return kept, first.copy(), evaluate(loss, inputs, gradients)
