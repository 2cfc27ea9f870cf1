"""Memory: what lies in the storage of tensors, what a call has changed of it, and what is poisoned beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs

UPSTREAM = "the upstream gradient"  # is no argument, and what a loss goes back from: a view of it may come back


def tensors_of(inputs: Inputs) -> dict[str, Tensor]:
    """What a call is given, by what a message calls it."""
    weight = inputs.options.get("weight")
    tensors = {"input": inputs.logits, "target": inputs.target, UPSTREAM: inputs.upstream}
    return tensors if weight is None else {**tensors, "weight": weight}


def memory(tensor: Tensor) -> Tensor:
    """All bytes of the storage that it is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())


def written(given: Inputs, before: Inputs) -> str:
    """The first argument that is no longer what it was, or whose memory is not; "" where there is none."""
    for (name, tensor), old in zip(tensors_of(given).items(), tensors_of(before).values(), strict=True):
        if _view(tensor) != _view(old) or not memory(tensor).equal(memory(old)):
            return name
    return ""


def marks(passed: dict[str, tuple[Tensor, bool]]) -> str:
    """What a call has changed of its arguments besides their numbers, or "".

    Of each it is known whether it wanted a gradient. That is the caller's: a loss that goes backward by itself adds to
    it, behind the caller's back.
    """
    for name, (argument, wanted) in passed.items():
        if argument.is_leaf and argument.grad is not None:
            return f"it set the .grad of {name}"
        if argument.requires_grad != wanted:
            return f"it changed the requires_grad of {name}"
    return ""


def shared(results: dict[str, Tensor | None], given: Inputs) -> str:
    """Which result lies in the memory of which argument, or ""."""
    arguments = {name: argument for name, argument in tensors_of(given).items() if name != UPSTREAM}
    for of, part in results.items():
        for name, argument in arguments.items():
            if part is not None and part.numel() and _place(part) == _place(argument):
                return f"its {of} shares the memory of {name}"
    return ""


def poison(inputs: Inputs) -> None:
    """Fill with NaN, and give back, memory of the sizes that results will have: pytorch#20406, of what is never set.

    Several pieces of each, all held at a time, since what is given back is what is taken next.
    """
    dtype, device = inputs.logits.dtype, inputs.logits.device
    for shape in (inputs.logits.shape, inputs.upstream.shape, inputs.target.shape):
        held = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(8)]
        del held


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
