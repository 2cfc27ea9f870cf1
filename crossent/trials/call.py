"""Results: what a cross-entropy gives for a call, its loss and its gradients, and what it leaves of the arguments."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs, bits
from crossent.subjects.subject import Loss
from crossent.trials.memory import marks, poison, shared

Gradients = tuple[str, ...]
BOTH_GRADIENTS: Gradients = ("gradient", "target_gradient")


@dataclass(frozen=True)
class Result:
    """What a cross-entropy gave for one case."""

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None

    def copy(self) -> Result:
        """The same numbers in memory of their own."""
        parts = (self.loss, self.gradient, self.target_gradient)
        return Result(*(None if part is None else part.clone() for part in parts))  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """A checksum of every bit of it, whatever NaN is made of."""
        bits = 0
        for tensor in self.parts.values():
            bits = checksum(tensor, bits)
        return f"{bits:08x}"

    @property
    def parts(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        named = {"loss": self.loss, "gradient": self.gradient, "target_gradient": self.target_gradient}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def checksum(tensor: Tensor, before: int = 0) -> int:
    """The CRC-32 of a tensor's dtype, shape and bits; every NaN counts as the same one."""
    of_kind = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), before)
    return zlib.crc32(bits(tensor.where(~tensor.isnan(), torch.nan)).tobytes(), of_kind)


def evaluate(loss: Loss, inputs: Inputs, gradients: Gradients = BOTH_GRADIENTS) -> Result:
    """The loss and the gradients of logits and target probabilities that are wanted, under the upstream gradient."""
    gradient = "gradient" in gradients
    # The same memory: :func:`make_call` sees a write.
    logits = inputs.logits.detach().requires_grad_(gradient)
    dense = gradient and "target_gradient" in gradients and inputs.target.is_floating_point()
    target = inputs.target.detach().requires_grad_(dense)
    value = as_loss(loss(logits, target, **inputs.options))
    if gradient and not value.requires_grad:
        raise TypeError("the loss is cut off from the logits: it has no gradient")
    if not gradient or value.shape != inputs.upstream.shape:  # a wrong shape is for :func:`misshapen` to say
        return Result(value.detach())
    wanted = [logits, target] if dense else [logits]
    made = torch.autograd.grad(value, wanted, inputs.upstream.to(value.dtype), allow_unused=True)
    for name, one in zip(("logits", "target probabilities"), made, strict=False):
        if one is None:
            raise TypeError(f"the loss is cut off from the {name}: it has no gradient")
    return Result(value.detach(), *made)


def as_loss(value: object) -> Tensor:
    """A loss, if it is one.

    Raises:
        TypeError: it is no dense tensor of real numbers, or of a class that may say of itself what it likes.
    """
    if type(value) is not Tensor or value.layout != torch.strided:
        raise TypeError(f"the loss is a {type(value).__name__}; wanted is a dense torch.Tensor")
    if value.is_complex():
        raise TypeError(f"the loss is {value.dtype}; wanted is a real number")
    return value


@dataclass(frozen=True)
class Call:
    """A call, and what became of what it was given.

    Attributes:
        result: what it gave.
        given: the inputs, as it left them.
        marked: what it changed of an argument besides its numbers, or "".
        shared: which result lies in the memory of which argument, or "".
    """

    result: Result
    given: Inputs
    marked: str
    shared: str


def make_call(loss: Loss, inputs: Inputs, gradients: Gradients) -> Call:
    """The act of a first call: a result, and what becomes of the arguments."""
    passed: dict[str, tuple[Tensor, bool]] = {}

    def watched(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        tensors = {"input": input, "target": target, **options}
        passed.update((name, (one, one.requires_grad)) for name, one in tensors.items() if isinstance(one, Tensor))
        return loss(input, target, **options)

    result = evaluate(watched, inputs, gradients)
    parts = {"loss": result.loss, "gradient": result.gradient, "gradient of the target": result.target_gradient}
    return Call(result, inputs, marks(passed), shared(parts, inputs))


def repeat_call(loss: Loss, inputs: Inputs, others: Inputs, gradients: Gradients) -> tuple[Result, Result, Result]:
    """The act of a second call: the result of a first, that after a call with other data, and that of the second.

    Before the second, memory is filled with NaN. What the call with other data raises is for another check to say.
    """
    first = evaluate(loss, inputs.copy(), gradients)
    kept = first.copy()
    with suppress(Exception):
        evaluate(loss, others, gradients)
    poison(inputs)
    return kept, first.copy(), evaluate(loss, inputs, gradients)
