"""A right cross-entropy on several ranks, each with a shard of the classes, as a sequence of steps.

The class follows the protocol of `crossent.subjects.ranks.protocol`. The gradient is written by hand, as in the losses
of libraries for large models. Each method is a step, which a mutant can replace. To check a mutant:

    crossent check tests/mutants/ranks/rank_mutants.py:NAME --ranks 2
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduced(values: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """Return the sum, or another reduction, of the values of all ranks, in new memory."""
    made = values.clone()
    dist.all_reduce(made, op)
    return made


class VocabParallel:
    """A right loss of rows of logits, (R, c) on each rank, and class indices, (R,). `V` is the number of all classes.

    Attributes:
        dtype: the dtype of the logits.
        classes, first: the number of all classes, and the first class of this rank.
        kept, y: whether a row is not ignored, and its class, 0 in ignored rows, (R,).
        here, at: whether the class of a row is on this rank, and its index in the shard, 0 if not, (R,).
        weight, own_weight: the weights of all classes, (V,), and of this rank, (c,); 1 if there are none.
        smoothing: the label smoothing.
    """

    lacks: ClassVar = {
        "probability_target": "takes class indices",
        "errors": "does not check its arguments",
    }

    def forward(self, local_logits: Tensor, target: Tensor, shape: torch.Size, axis: int, options: Any) -> Tensor:
        """Return the loss. The rows are the positions of all axes but the class axis."""
        rows = local_logits.movedim(axis, -1).reshape(target.numel(), local_logits.shape[axis])
        losses, divisor = _Loss.apply(rows, target.reshape(-1).long(), shape[axis], type(self)(), options)
        if options["reduction"] == "none":
            return losses.reshape(target.shape).to(local_logits.dtype)
        total = losses.sum()
        return (total / divisor if options["reduction"] == "mean" else total).to(local_logits.dtype)

    def prepare(self, target: Tensor, classes: int, shard: int, options: Any) -> None:
        """Set the attributes. `shard` is the number of classes of this rank."""
        self.classes, self.first = classes, min(classes, self.offset(classes))
        self.kept = target != options["ignore_index"]
        self.y = torch.where(self.kept, target, 0)
        self.here = (self.y >= self.first) & (self.y < self.first + shard)
        self.at = torch.where(self.here, self.y - self.first, 0)
        weight = options["weight"]
        self.weight = torch.ones(classes, dtype=self.compute) if weight is None else weight.to(self.compute)
        self.own_weight = self.weight[self.first : self.first + shard]
        self.smoothing = options["label_smoothing"]

    def offset(self, classes: int) -> int:
        """Return the first class of this rank: `torch.chunk` gives each rank V/N classes, rounded up."""
        return dist.get_rank() * -(-classes // dist.get_world_size())

    def wide(self, rows: Tensor) -> Tensor:
        """Return the logits in the dtype of the computation, in new memory."""
        self.dtype, self.compute = rows.dtype, torch.promote_types(rows.dtype, torch.float32)
        return rows.to(self.compute, copy=True)

    def maximum(self, z: Tensor) -> Tensor:
        """Return the maximum of each row over all classes, (R,)."""
        own = z.amax(1) if z.shape[1] else z.new_full((len(z),), -torch.inf)
        return all_reduced(own, dist.ReduceOp.MAX)

    def total(self, exponentials: Tensor) -> Tensor:
        """Return the sum of each row over all classes, (R,)."""
        return all_reduced(exponentials.sum(1))

    def target_logit(self, z: Tensor) -> Tensor:
        """Return the logit of the class of each row, (R,): the sum over the ranks, of which one has the class."""
        own = z.gather(1, self.at[:, None])[:, 0] if z.shape[1] else z.new_zeros(len(z))
        return all_reduced(torch.where(self.here, own, 0.0))

    def smooth(self, z: Tensor, log_total: Tensor) -> Tensor:
        """Return `Σ_c w_c (log_total - z_c) / V`, the uniform part of a smoothed loss, (R,)."""
        own = (z * self.own_weight).sum(1)
        return (log_total * self.weight.sum() - all_reduced(own)) / self.classes

    def losses(self, z: Tensor, log_total: Tensor) -> Tensor:
        """Return the loss of each row, (R,)."""
        losses = (log_total - self.target_logit(z)) * self.weight[self.y]
        if self.smoothing:
            sharp = 0.0 if self.smoothing == 1 else (1 - self.smoothing) * losses
            losses = sharp + self.smoothing * self.smooth(z, log_total)
        return torch.where(self.kept, losses, 0.0)

    def divisor(self) -> Tensor:
        """Return the divisor of the mean: the weight of all kept rows."""
        return torch.where(self.kept, self.weight[self.y], 0.0).sum()

    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        """Return the gradient of the shard, (R, c): `g (p Σ_c w_c q_c - w q)`."""
        sharp, smooth = (1 - self.smoothing) * self.weight[self.y], self.smoothing / self.classes
        made = probs * (sharp + smooth * self.weight.sum())[:, None]
        if self.smoothing:
            made -= smooth * self.own_weight
        made = self.subtract_target(made, sharp)
        return torch.where(self.kept[:, None], made * upstream[:, None], 0.0)

    def subtract_target(self, gradient: Tensor, sharp: Tensor) -> Tensor:
        """Subtract, from the gradient, the weight of the class of each row whose class is on this rank."""
        if gradient.shape[1]:
            gradient[torch.arange(len(gradient)), self.at] -= torch.where(self.here, sharp, 0.0)
        return gradient


class PaddedVocabParallel(VocabParallel):
    """The same loss with padding: each rank has V/N logits, rounded up. Logits behind the last class are padding."""

    split = "padded"
    lacks: ClassVar = {
        "probability_target": "takes class indices",
        "index_dtype_errors": "converts the target",
        "dtype_errors": "checks the range of the target alone",
        "size_errors": "checks the range of the target alone",
        "option_errors": "checks the range of the target alone",
    }

    def forward(self, local_logits: Tensor, target: Tensor, shape: torch.Size, axis: int, options: Any) -> Tensor:
        """Return the loss of the logits without the padding."""
        self.require_classes(target[target != options["ignore_index"]], shape[axis])
        size = local_logits.shape[axis]
        own = self.own_classes(min(size, max(0, shape[axis] - dist.get_rank() * size)), size)
        return super().forward(local_logits.narrow(axis, 0, own), target, shape, axis, options)

    def require_classes(self, target: Tensor, size: int) -> None:
        """Raise IndexError on every rank if a target is not a class."""
        if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < size):
            raise IndexError(f"a target is out of range; there are {size} classes")

    def own_classes(self, classes: int, size: int) -> int:
        """Return how many logits of this rank are classes: `classes` of `size`."""
        return classes


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, target: Tensor, classes: int, steps: VocabParallel, options: Any
    ) -> tuple[Tensor, Tensor]:
        z = steps.wide(rows)
        steps.prepare(target, classes, rows.shape[1], options)
        z -= steps.maximum(z)[:, None]
        exponentials = z.exp()
        total = steps.total(exponentials)
        losses, divisor = steps.losses(z, total.log()), steps.divisor()
        ctx.steps, ctx.probs = steps, exponentials / total[:, None]
        ctx.mark_non_differentiable(divisor)
        return losses, divisor

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> Any:
        return ctx.steps.gradient(ctx.probs, upstream).to(ctx.steps.dtype), None, None, None, None
