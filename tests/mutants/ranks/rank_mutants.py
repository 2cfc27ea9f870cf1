"""Mutants: wrong losses on several ranks, each one step away from a right loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from batch_parallel import BatchParallel
from token_mean import TokenMean
from torch import Tensor
from vocab_parallel import PaddedVocabParallel, VocabParallel, all_reduced


@dataclass(frozen=True)
class RankMutant:
    """A wrong loss on several ranks.

    Attributes:
        loss: the class.
        checks: the checks that must find the mutant.
        case: the id of a case on which these checks find the mutant.
        why: the GitHub issue, or the reason why the mistake is likely.
    """

    loss: Any
    checks: tuple[str, ...]
    case: str
    why: str

    def __str__(self) -> str:
        return self.loss.__name__


RANK_MUTANTS: list[RankMutant] = []


def rank_mutant(checks: str, case: str, why: str) -> Callable[[type], type]:
    """Return a decorator that adds a class to `RANK_MUTANTS`."""

    def add(loss: type) -> type:
        RANK_MUTANTS.append(RankMutant(loss, tuple(checks.split()), case, why))
        return loss

    return add


@rank_mutant("loss gradient", "float32-7x5-normal-int64-none-rows", "The maximum over all ranks needs an all-reduce.")
class LocalMaximum(VocabParallel):
    def maximum(self, z: Tensor) -> Tensor:
        return z.amax(1) if z.shape[1] else z.new_zeros(len(z))


@rank_mutant("call", "float32-7x5-normal-int64-sum-smooth0.1", "Megatron-LM#737, Megatron-LM#7464")
class LocalSmoothing(VocabParallel):
    def smooth(self, z: Tensor, log_total: Tensor) -> Tensor:
        own = (z * self.own_weight).sum(1)
        return (log_total * self.own_weight.sum() - own) / max(1, z.shape[1])


@rank_mutant("loss gradient", "bfloat16-7x5-normal-int64-none-rows", "An all-reduce in the dtype moves half the bytes.")
class SumInTheDtype(VocabParallel):
    def total(self, exponentials: Tensor) -> Tensor:
        return all_reduced(exponentials.sum(1).to(self.dtype)).to(self.compute)


@rank_mutant(
    "gradient row_sums",
    "float32-7x5-normal-int64-none-rows",
    "A rank takes targets of other ranks for its first class.",
)
class TargetOnEveryRank(VocabParallel):
    def subtract_target(self, gradient: Tensor, sharp: Tensor) -> Tensor:
        if gradient.shape[1]:
            gradient[torch.arange(len(gradient)), self.at] -= sharp
        return gradient


@rank_mutant("loss", "float32-7x5-normal-int64-none-rows", "The mask of the gathered logits is forgotten.")
class UnmaskedTarget(VocabParallel):
    def target_logit(self, z: Tensor) -> Tensor:
        return all_reduced(z.gather(1, self.at[:, None])[:, 0] if z.shape[1] else z.new_zeros(len(z)))


@rank_mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored_default", "pytorch#185167")
class MeanOverLocalRows(BatchParallel):
    def mean(self, total: Tensor, own: Tensor, options: Any) -> Tensor:
        return super().mean(total / self.divisor(own, options) * dist.get_world_size(), own[:0], options)

    def divisor(self, own: Tensor, options: Any) -> Tensor:
        return super().divisor(own, options) if len(own) else torch.tensor(1)


@rank_mutant("gradient row_sums", "float32-7x5-normal-int64-sum-smooth0.1", "pytorch#190746")
class IdentityGradientOfLogSoftmax(VocabParallel):
    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        sharp, smooth = (1 - self.smoothing) * self.weight[self.y], self.smoothing / self.classes
        made = self.subtract_target(probs * sharp[:, None] - smooth * self.own_weight, sharp)
        return torch.where(self.kept[:, None], made * upstream[:, None], 0.0)


@rank_mutant("loss", "float32-7x5-normal-int64-none-rows", "Megatron-LM#7452")
class LogOfTheRanksTooMuch(VocabParallel):
    def losses(self, z: Tensor, log_total: Tensor) -> Tensor:
        return super().losses(z, log_total + math.log(dist.get_world_size()))


@rank_mutant("arguments", "float32-7x5-normal-int64-none-rows", "Megatron-LM#1594")
class FloatInPlace(VocabParallel):
    def wide(self, rows: Tensor) -> Tensor:
        super().wide(rows)
        return rows.to(self.compute)


@rank_mutant("gradient row_sums", "float32-7x5-normal-int64-none-rows", "ms-swift#9947")
class NoGradientWithoutTheTarget(VocabParallel):
    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        return torch.where(self.here[:, None], super().gradient(probs, upstream), 0.0)


@rank_mutant(
    "loss gradient row_sums",
    "float32-7x5-normal-int64-none-rows",
    "The offset is right if the number of ranks divides V.",
)
class OffsetRoundedDown(VocabParallel):
    def offset(self, classes: int) -> int:
        return dist.get_rank() * (classes // dist.get_world_size())


@rank_mutant("call", "float32-7x1-normal-int64-none-rows", "A rank without classes has no maximum.")
class NoEmptyShard(VocabParallel):
    def maximum(self, z: Tensor) -> Tensor:
        return all_reduced(z.amax(1), dist.ReduceOp.MAX)


@rank_mutant(
    "gradient row_sums", "float32-7x5-normal-int64-none-rows", "Only the first rank uses its upstream gradient."
)
class UpstreamOfTheFirstRank(VocabParallel):
    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        return super().gradient(probs, upstream if dist.get_rank() == 0 else torch.ones_like(upstream))


@rank_mutant("gradient", "float32-7x5-normal-int64-none-rows", "The upstream gradient is reduced over the ranks.")
class UpstreamOfEveryRank(VocabParallel):
    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        return super().gradient(probs, all_reduced(upstream))


# Mutants that a check of ranks finds, and mutants of losses with padding or with a mean over tokens.


@rank_mutant("world_sizes", "float32-7x5-normal-int64-none-rows", "The code was only tested on two or more ranks.")
class OneRankIsForgotten(VocabParallel):
    def target_logit(self, z: Tensor) -> Tensor:
        return super().target_logit(z) * (1 if dist.get_world_size() > 1 else 2)


@rank_mutant("one_shard", "float32-7x5-normal-int64-none-rows", "A rank without a target leaves the all-reduce out.")
class SkipsTheReductionWithoutATarget(VocabParallel):
    def target_logit(self, z: Tensor) -> Tensor:
        if not self.here.any():
            raise ValueError("this rank has no target")
        return super().target_logit(z)


@rank_mutant("ignored_shard", "float32-7x5-normal-int64-none-rows", "A rank whose rows are ignored computes nothing.")
class NoGradientIfItsRowsAreIgnored(VocabParallel):
    def gradient(self, probs: Tensor, upstream: Tensor) -> Tensor:
        alone = bool((~self.kept).any()) and not bool((self.here & self.kept).any())
        return super().gradient(probs, upstream) * (0 if alone else 1)


@rank_mutant("whole_smoothing", "float32-7x5-normal-int64-none-rows", "The class of a row gets no part of ε.")
class SmoothsAllButTheTarget(VocabParallel):
    def smooth(self, z: Tensor, log_total: Tensor) -> Tensor:
        smoothed = super().smooth(z, log_total) * self.classes - (log_total - self.target_logit(z))
        return smoothed / (self.classes - 1)


@rank_mutant("uneven_shards", "float32-7x12-normal-int64-sum", "V was a multiple of the number of ranks in all tests.")
class ShardsMustBeEqual(OffsetRoundedDown):
    pass


@rank_mutant("empty_shard", "float32-7x5-normal-int64-none-rows", "A rank without classes has no maximum.")
class EmptyShardRaises(NoEmptyShard):
    pass


@rank_mutant("padding_target", "float32-7x5-normal-int64-none-rows", "The range of the targets includes the padding.")
class TakesTargetsInThePadding(PaddedVocabParallel):
    def require_classes(self, target: Tensor, size: int) -> None:
        pass

    def prepare(self, target: Tensor, classes: int, shard: int, options: Any) -> None:
        is_class = (target == options["ignore_index"]) | (target < classes)
        super().prepare(target.where(is_class, classes - 1), classes, shard, options)


@rank_mutant("call", "float32-7x5-normal-int64-none-rows", "The padding takes part in the softmax.")
class PaddingTakesPart(PaddedVocabParallel):
    def own_classes(self, classes: int, size: int) -> int:
        return size


@rank_mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored", "pytorch#185167")
class MeanOverRanksOfMeans(TokenMean):
    def mean(self, total: Tensor, kept: int, tokens: Tensor) -> Tensor:
        return total / max(1, kept) / dist.get_world_size()


@rank_mutant("micro_batches", "float32-7x5-normal-int64-mean-ignored", "mlx-lm#1413, OpenNMT-py#2209")
class MeanOfMeansOfMicroBatches(TokenMean):
    def mean(self, total: Tensor, kept: int, tokens: Tensor) -> Tensor:
        of_all_ranks = self.reduced(torch.tensor(float(kept))).clamp(min=1)
        return super().mean(total / self.micro_batches, kept, of_all_ranks)


@rank_mutant("micro_batches", "float32-7x5-normal-int64-mean", "unsloth-zoo#1023")
class DividesByMicroBatches(TokenMean):
    def mean(self, total: Tensor, kept: int, tokens: Tensor) -> Tensor:
        return super().mean(total / self.micro_batches, kept, tokens)


@rank_mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored", "The divisor is the size of the batch.")
class CountsAllTokens(TokenMean):
    def kept(self, target: Tensor, options: Any) -> int:
        return target.numel()


@rank_mutant("loss gradient", "float32-7x5-normal-int64-mean", "num_items_in_batch is not summed over the ranks.")
class CountsLocalTokens(TokenMean):
    def reduced(self, tokens: Tensor) -> Tensor:
        return tokens.clamp(min=1)


@rank_mutant("micro_batches", "float32-7x5-normal-int64-mean", "num_items_in_batch is that of the last micro-batch.")
class CountsOneMicroBatch(TokenMean):
    def count(self, targets: list[Tensor], options: Any) -> Tensor:
        return super().count(targets[-1:], options)


@rank_mutant("idle_rank micro_batches", "float32-7x5-normal-int64-mean", "A rank without a kept row has the mean 0/0.")
class MeanOfNoRows(TokenMean):
    def mean(self, total: Tensor, kept: int, tokens: Tensor) -> Tensor:
        return super().mean(total / total.new_tensor(float(kept)) * kept, kept, tokens)


class _Switch:
    """The number of contexts that are on, for the whole process. torch's `loss_parallel` also has a global state."""

    on = 0


@rank_mutant("context", "float32-7x5-normal-int64-none-rows", "loss_parallel has no try and finally.")
class ContextStaysOn(VocabParallel):
    @contextmanager
    def context(self) -> Any:
        _Switch.on += 1
        yield
        _Switch.on -= 1

    def wide(self, rows: Tensor) -> Tensor:
        return super().wide(rows) * (1 if _Switch.on else 2)


@rank_mutant("nested_context", "float32-7x5-normal-int64-none-rows", "loss_parallel removes its handlers twice.")
class ContextIsNotNested(VocabParallel):
    @contextmanager
    def context(self) -> Any:
        handlers["log_softmax"] = self
        try:
            yield
        finally:
            handlers.pop("log_softmax")


handlers: dict[str, Any] = {}
