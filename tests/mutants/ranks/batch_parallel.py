"""A right cross-entropy on several ranks, each with a part of the batch, as a sequence of steps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from vocab_parallel import all_reduced

from crossent.forms import formula


class BatchParallel:
    """A right loss of a batch, cut along its first axis. Each rank computes its own rows, by `crossent.formula`."""

    split = "batch"
    lacks: ClassVar = {"errors": "does not check its arguments"}

    def forward(self, local_logits: Tensor, target: Tensor, shape: torch.Size, axis: int, options: Any) -> Tensor:
        """Return the loss, with the rows of all ranks in one tensor for reduction="none"."""
        sizes = [len(part) for part in torch.empty(shape[0]).chunk(dist.get_world_size())]
        sizes += [0] * (dist.get_world_size() - len(sizes))
        first = sum(sizes[: dist.get_rank()])
        own = target[first : first + len(local_logits)]
        if options["reduction"] == "none":
            losses = formula(local_logits, own, **options)
            rows = losses.new_zeros(shape[0], *losses.shape[1:]).index_add(
                0, torch.arange(first, first + len(local_logits)), losses
            )
            return _AllReduced.apply(rows)
        dtype = torch.promote_types(local_logits.dtype, own.dtype) if own.is_floating_point() else local_logits.dtype
        wide = torch.promote_types(dtype, torch.float32)
        weight = None if options["weight"] is None else options["weight"].to(wide)
        sums = {**options, "weight": weight, "reduction": "sum"}
        total = formula(local_logits.to(wide), own.to(wide) if own.is_floating_point() else own, **sums)
        if options["reduction"] == "mean":
            return self.mean(total, own, {**options, "weight": weight}).to(dtype)
        return _AllReduced.apply(total).to(dtype)

    def mean(self, total: Tensor, own: Tensor, options: Any) -> Tensor:
        """Return the mean over the rows of all ranks. `total` is the sum of the losses of this rank."""
        return _AllReduced.apply(total) / all_reduced(self.divisor(own, options).to(total.dtype))

    def divisor(self, own: Tensor, options: Any) -> Tensor:
        """Return the share of this rank in the divisor of a mean."""
        if own.is_floating_point():
            return torch.tensor(own.numel() // max(1, own.shape[1]))
        kept = own[own != options["ignore_index"]].long()
        return torch.tensor(kept.numel()) if options["weight"] is None else options["weight"][kept].sum()


class _AllReduced(torch.autograd.Function):
    """The sum over all ranks. The gradient of each summand is the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduced(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return upstream
