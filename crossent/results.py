"""Results: what a cross-entropy gives for a call, its loss and its gradients."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.cases import Inputs, bits

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Result:
    """What a cross-entropy gave for one case."""

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None

    @property
    def digest(self) -> str:
        """A checksum of every bit of it, whatever NaN is made of."""
        checksum = 0
        for tensor in (self.loss, self.gradient, self.target_gradient):
            if tensor is not None:
                checksum = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), checksum)
                checksum = zlib.crc32(bits(tensor.where(~tensor.isnan(), torch.nan)).tobytes(), checksum)
        return f"{checksum:08x}"


def evaluate(loss: Loss, inputs: Inputs, *, gradient: bool = True, target_gradient: bool = True) -> Result:
    """The loss and, where wanted, the gradients of logits and target probabilities under the upstream gradient."""
    # The same memory: :func:`changed` sees a write.
    logits = inputs.logits.detach().requires_grad_(gradient)
    dense = gradient and target_gradient and inputs.target.is_floating_point()
    target = inputs.target.detach().requires_grad_(dense)
    value = loss(logits, target, **inputs.options)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise TypeError(f"the loss is a {type(value).__name__}; wanted is a dense torch.Tensor")
    if value.is_complex():
        raise TypeError(f"the loss is {value.dtype}; wanted is a real number")
    if gradient and not value.requires_grad:
        raise TypeError("the loss is cut off from the logits: it has no gradient")
    if not gradient or value.shape != inputs.upstream.shape:  # a wrong shape is for :func:`misshapen` to say
        return Result(value.detach())
    wanted = [logits, target] if dense else [logits]
    gradients = torch.autograd.grad(value, wanted, inputs.upstream.to(value.dtype), allow_unused=True)
    for name, one in zip(("logits", "target probabilities"), gradients, strict=False):
        if one is None:
            raise TypeError(f"the loss is cut off from the {name}: it has no gradient")
    return Result(value.detach(), *gradients)
