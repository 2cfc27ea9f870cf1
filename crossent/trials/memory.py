"""Detect writes into arguments, changed attributes of arguments, and results that share memory with an argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs, bits

UPSTREAM = "the upstream gradient"  # not an argument of the loss, so a result may share its memory


def tensors_of(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors of a call by the names that messages use."""
    options = {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    return {"input": inputs.input, "target": inputs.target, UPSTREAM: inputs.upstream, **options}


def memory(tensor: Tensor) -> Tensor:
    """Return the whole storage of a tensor, even of a view, as a tensor of bytes without a copy."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())


def written(given: Inputs, before: Inputs) -> str:
    """Return the name of the first tensor that the call changed, or "".

    `before` is a copy of the inputs from before the call. A tensor with changed elements precedes tensors that
    only share the changed memory.
    """
    pairs = zip(tensors_of(given).items(), tensors_of(before).values(), strict=True)
    changed = {name: (new, old) for (name, new), old in pairs if _has_changed(new, old)}
    # a write changes every tensor in the same storage, so tensors with changed elements come first
    return next((name for name, pair in changed.items() if _has_other_elements(*pair)), next(iter(changed), ""))


def describe_change(given: Inputs, before: Inputs) -> str:
    """Return a phrase about the first tensor that the call changed, such as "wrote into input", or ""."""
    name = written(given, before)
    if name and _view(tensors_of(given)[name]) != _view(tensors_of(before)[name]):
        return _view_change(name)
    return name and f"wrote into {name}"


class Received(NamedTuple):
    """A tensor argument, with its `requires_grad` and its view (shape, strides and offset) before the call."""

    tensor: Tensor
    requires_grad: bool
    view: tuple[object, ...]


def record_arguments(arguments: Mapping[str, object]) -> dict[str, Received]:
    """Return the tensors among the arguments of a call, with their present attributes, by name."""
    tensors = {name: one for name, one in arguments.items() if isinstance(one, Tensor)}
    return {name: Received(one, one.requires_grad, _view(one)) for name, one in tensors.items()}


def describe_attribute_change(tensors: Mapping[str, Received]) -> str:
    """Return a sentence about the first argument whose attributes the call changed, or "".

    `tensors` is the result of :func:`record_arguments` before the call. At that time, each .grad must be None.
    """
    for name, (argument, required, view) in tensors.items():
        if argument.is_leaf and argument.grad is not None:
            return f"the call set the .grad of {name}"
        if argument.requires_grad != required:
            return f"the call changed the requires_grad of {name}"
        if _view(argument) != view:
            return f"the call {_view_change(name)}"
    return ""


def shared(results: dict[str, Tensor], given: Inputs) -> str:
    """Return a sentence about the first result that shares memory with an argument, or ""."""
    arguments = {name: argument for name, argument in tensors_of(given).items() if name != UPSTREAM}
    for part, tensor in results.items():
        for name, argument in arguments.items():
            if tensor.numel() and _storage_address(tensor) == _storage_address(argument):
                return f"the {part} shares memory with {name}"
    return ""


def overwrite(given: Inputs, source: Inputs) -> bool:
    """Copy the memory of `source` into the tensors of `given` in place, and return whether the memory is alike."""
    pairs = list(zip(tensors_of(given).values(), tensors_of(source).values(), strict=True))
    if any(_layout(new) != _layout(old) for new, old in pairs):
        return False
    with torch.no_grad():
        for new, old in pairs:
            _flat(new).copy_(_flat(old))
    return True


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, _view(tensor), tensor.untyped_storage().nbytes()


def _flat(tensor: Tensor) -> Tensor:
    """Return the whole storage of a tensor as a view. A write into it counts as a change of `tensor`, as in torch."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((size,), (1,), 0)


def poison(inputs: Inputs) -> None:
    """Fill freed memory with NaN, in blocks with the shapes of the arguments and results of a call.

    An allocator reuses recently freed memory first. If the next call does not write some elements of a result, these
    elements are probably NaN (pytorch#20406).
    """
    dtype, device = inputs.input.dtype, inputs.input.device
    results = [leaf.shape for leaf in inputs.leaves.values()]
    for shape in dict.fromkeys((inputs.input.shape, inputs.upstream.shape, inputs.target.shape, *results)):
        # eight blocks at once cover different memory
        blocks = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(8)]
        del blocks


def _has_changed(new: Tensor, old: Tensor) -> bool:
    return _view(new) != _view(old) or not memory(new).equal(memory(old))


def _has_other_elements(new: Tensor, old: Tensor) -> bool:
    if _view(new) != _view(old) or memory(new).numel() != memory(old).numel():
        return True
    return bool((bits(new) != bits(old)).any())


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _view_change(name: str) -> str:
    return f"changed the shape, strides or offset of {name}"


def _storage_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
