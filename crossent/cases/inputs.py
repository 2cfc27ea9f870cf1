"""Inputs: the tensors and options of one call, and the memory layouts of tensors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.cases.operation import CROSS_ENTROPY, GRADIENTS, LINEAR_CROSS_ENTROPY, Operation
from crossent.machine import lacks_float64

DENSE = "a dense tensor of class torch.Tensor"  # the loss that a call must return, in words for a message


@dataclass(frozen=True)
class Inputs:
    """The tensors and options of one call, on one device.

    Attributes:
        input: the logits, (C), (N, C) or (N, C, d1, …); for `F.linear_cross_entropy` the hidden states, (N, H).
        target: class indices or class probabilities.
        options: the other arguments by name, such as `weight`.
        upstream: the upstream gradient, with the shape of the loss.
    """

    input: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor

    @property
    def operation(self) -> Operation:
        """The operation that takes these arguments."""
        return LINEAR_CROSS_ENTROPY if "linear_weight" in self.options else CROSS_ENTROPY

    @property
    def classes(self) -> int:
        """The number of classes."""
        if self.operation is LINEAR_CROSS_ENTROPY:
            return int(self.options["linear_weight"].shape[0])
        return self.input.shape[min(1, self.input.dim() - 1)]

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient, by the names of the gradients (keys of `GRADIENTS`)."""
        tensors = {"input": self.input, "target": self.target, **self.options}
        named = {name: tensors.get(GRADIENTS[name]) for name in self.operation.gradients}
        return {name: one for name, one in named.items() if isinstance(one, Tensor) and one.is_floating_point()}

    def requiring(self, gradients: Collection[str]) -> tuple[Inputs, dict[str, Tensor]]:
        """Return the inputs with a leaf for each of `gradients`, and the leaves by the names of the gradients.

        A leaf requires a gradient, and shares the memory of the tensor that the leaf replaces.
        """
        leaves = {name: one.detach().requires_grad_() for name, one in self.leaves.items() if name in gradients}
        plain = Inputs(self.input.detach(), self.target.detach(), self.options, self.upstream)
        return plain.with_leaves(leaves), leaves

    def with_leaves(self, leaves: Mapping[str, Tensor]) -> Inputs:
        """Return the inputs with tensors replaced by `leaves`, a mapping from names of gradients to tensors."""
        given = {GRADIENTS[name]: one for name, one in leaves.items()}
        options = {name: given.get(name, value) for name, value in self.options.items()}
        return Inputs(given.get("input", self.input), given.get("target", self.target), options, self.upstream)

    def copy(self) -> Inputs:
        """Return a copy in new memory, with the same strides. Tensors with a shared storage share its copy."""
        copies: dict[tuple[int, torch.dtype], Tensor] = {}

        def copy(value: Any) -> Any:
            return _copy(value, copies) if isinstance(value, Tensor) else value

        options = {name: copy(value) for name, value in self.options.items()}
        return Inputs(copy(self.input), copy(self.target), options, copy(self.upstream))

    @property
    def digest(self) -> str:
        """A 32-bit checksum of the options, and of each tensor's bits, dtype, shape and strides, in hexadecimal."""
        plain = [(name, value) for name, value in self.options.items() if not isinstance(value, Tensor)]
        tensors = [value for value in self.options.values() if isinstance(value, Tensor)]
        checksum = zlib.crc32(repr(plain).encode())
        for tensor in (self.input, self.target, *tensors, self.upstream):
            checksum = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode(), checksum)
            checksum = zlib.crc32(bits(tensor).tobytes(), checksum)
        return f"{checksum:08x}"


def why_not_on_device(build: Callable[[], Inputs], device: str) -> str:
    """Return the reason why the device does not support a dtype of the inputs that `build` makes, or ""."""
    if reason := lacks_float64(device):
        made = build()
        tensors = [made.input, made.target, made.upstream, *made.options.values()]
        return reason if any(getattr(one, "dtype", None) == torch.float64 for one in tensors) else ""
    return ""


def _copy(tensor: Tensor, copies: dict[tuple[int, torch.dtype], Tensor]) -> Tensor:
    """Return a copy of a tensor in a copy of its storage. `copies` has the storages copied so far."""
    storage = tensor.untyped_storage()
    key = storage.data_ptr(), tensor.dtype
    if key not in copies or not storage.data_ptr():  # storages without memory all have the address 0
        copies[key] = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage).clone()
    return copies[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def bits(tensor: Tensor) -> Any:
    """Return the bits of the tensor as a numpy array of unsigned integers."""
    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    array = tensor.detach().resolve_neg().cpu().contiguous().view(wide).numpy()
    return array.view(f"u{tensor.element_size()}")


UPSTREAM_LAYOUTS = {"rows_strided": "strided", "rows_expanded": "last_expanded"}  # the layouts that are not contiguous


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor in a memory layout of `LAYOUTS`, or in the layout "last_expanded".

    "expanded" repeats the first entry of the batch, and "last_expanded" the first entry of the last dimension.
    """
    axes = list(range(tensor.dim()))
    orders = {"transposed": axes[::-1], "class_last": [*axes[:1], *axes[2:], *axes[1:2]]}
    if layout in orders:
        order = orders[layout]
        back = [order.index(axis) for axis in axes]
        return tensor.permute(order).contiguous().permute(back)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape) if axes else tensor
    if layout == "last_expanded":
        return tensor[..., :1].expand(tensor.shape)
    # The memory around the elements. 251 is no class of a target with at most 251 classes.
    poison = float("nan") if tensor.is_floating_point() else 251
    if layout in ("window", "cropped"):  # along the class axis, or along the last axis
        axis = min(1, tensor.dim() - 1) if layout == "window" else tensor.dim() - 1
        around = [tensor.new_full([*tensor.shape[:axis], n, *tensor.shape[axis + 1 :]], poison) for n in (1, 2)]
        return torch.cat([around[0], tensor, around[1]], axis).narrow(axis, 1, tensor.shape[axis])
    if layout == "strided":
        wide = tensor.new_full([*tensor.shape, 2], poison)
        wide[..., 0] = tensor
        return wide[..., 0]
    if layout == "offset":
        flat = tensor.new_full([tensor.numel() + 1], poison)
        flat[1:] = tensor.reshape(-1)
        return flat[1:].view(tensor.shape)
    if layout == "contiguous":
        return tensor
    raise ValueError(f"layout: got {layout!r}, which no code builds; add {layout!r} to laid_out")


def class_and_layout(value: object) -> str:
    """Return the class of a value in words, such as "Tensor with layout torch.sparse_coo"."""
    layout = f" with layout {value.layout}" if isinstance(value, Tensor) and value.layout != torch.strided else ""
    return f"{type(value).__name__}{layout}"
