"""A right mean over the kept rows, "tokens", of all ranks and micro-batches, as in data-parallel training."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vocab_parallel import all_reduced

from crossent.forms import formula


class TokenMean:
    """A loss in parts: each rank returns the losses of its rows, over the number of kept rows of the whole batch.

    Attributes:
        micro_batches: the number of micro-batches of the batch.
        own_tokens: the number of kept rows of this rank, in all micro-batches.
    """

    split = "batch"
    normalization = "tokens"
    lacks: ClassVar = {"errors": "does not check its arguments"}

    def count(self, targets: list[Tensor], options: Any) -> Tensor:
        """Return the number of kept rows of all ranks and micro-batches."""
        self.micro_batches = len(targets)
        self.own_tokens = sum(self.kept(target, options) for target in targets)
        return self.reduced(torch.tensor(float(self.own_tokens)))

    def kept(self, target: Tensor, options: Any) -> int:
        """Return the number of kept rows of a target."""
        if target.is_floating_point():
            return target.numel() // max(1, target.shape[1])
        return int((target != options["ignore_index"]).sum())

    def reduced(self, tokens: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        return all_reduced(tokens)

    def forward(
        self, local_logits: Tensor, target: Tensor, shape: torch.Size, axis: int, options: Any, tokens: Tensor
    ) -> Tensor:
        """Return this rank's part of the loss, for one micro-batch."""
        wide = torch.promote_types(local_logits.dtype, torch.float32)
        if target.is_floating_point():
            wide = torch.promote_types(wide, target.dtype)
            target = target.to(wide)
        total = formula(local_logits.to(wide), target, **{**options, "reduction": "sum"})
        return self.mean(total, self.kept(target, options), tokens)

    def mean(self, total: Tensor, kept: int, tokens: Tensor) -> Tensor:
        """Return `total / tokens`, a part of the mean. `kept`, the number of kept rows of `total`, is for mutants."""
        return total / tokens.to(total.dtype)
