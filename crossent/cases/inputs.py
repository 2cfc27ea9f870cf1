"""Inputs: the tensors and options of one call, and the memory layouts of tensors."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The tensors and options of one call, on one device.

    Attributes:
        logits: (C), (N, C) or (N, C, d1, …).
        target: class indices or class probabilities.
        options: the other arguments of `F.cross_entropy` by name.
        upstream: the upstream gradient, with the shape of the loss.
    """

    logits: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor

    def copy(self) -> Inputs:
        """Return a copy in new memory, with the same layouts. The memory between strided elements is copied too."""
        options = {name: _copy(value) if isinstance(value, Tensor) else value for name, value in self.options.items()}
        return Inputs(_copy(self.logits), _copy(self.target), options, _copy(self.upstream))

    @property
    def digest(self) -> str:
        """A 32-bit checksum, in hexadecimal: of the options, and of each tensor's bits, dtype, shape and strides."""
        checksum = zlib.crc32(repr([(k, v) for k, v in self.options.items() if k != "weight"]).encode())
        for tensor in (self.logits, self.target, self.options.get("weight"), self.upstream):
            if tensor is not None:
                checksum = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode(), checksum)
                checksum = zlib.crc32(bits(tensor).tobytes(), checksum)
        return f"{checksum:08x}"


def _copy(tensor: Tensor) -> Tensor:
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    return whole.clone().as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def bits(tensor: Tensor) -> Any:
    """Return the bits of the tensor as a numpy array of unsigned integers, in the tensor's shape."""
    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    array = tensor.detach().cpu().contiguous().view(wide).numpy()
    return array.view(f"u{tensor.element_size()}")


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the tensor in a memory layout of `crossent.cases.axes.LAYOUTS`.

    The layout "expanded" repeats the first entry of the batch. The other layouts keep all elements. The memory between
    and around the elements holds NaN, or 251 for integers. With up to 251 classes, 251 is not a class.
    """
    axes = list(range(tensor.dim()))
    orders = {"transposed": axes[::-1], "class_last": [*axes[:1], *axes[2:], *axes[1:2]]}
    if layout in orders:
        order = orders[layout]
        back = [order.index(axis) for axis in axes]
        return tensor.permute(order).contiguous().permute(back)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape) if axes else tensor
    poison = float("nan") if tensor.is_floating_point() else 251
    if layout == "window":  # along the class axis
        axis = min(1, tensor.dim() - 1)
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
