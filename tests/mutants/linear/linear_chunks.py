"""Mutants: chunks of rows that are wrongly reduced, added up or cut off."""

import random

import torch
from chunked import ROWS, Chunked, by_hand, linear, pieces, right_on_chunks, step
from right import mutant

_ORDER = random.Random(0)


@mutant(
    "split loss gradient weight_gradient",
    "linear-float32-7x5-normal-int64-mean-hidden16",
    own="Each chunk calls a whole loss, and the mean of the chunks is taken. The last chunk has fewer rows.",
)
@linear
def mean_of_the_means_of_chunks(rows, input, linear_weight, target, reduction, **options):
    if reduction != "mean":
        return right_on_chunks(input, linear_weight, target, reduction=reduction, **options)
    means = [right_on_chunks(h, linear_weight, y, **options) for h, y in pieces(input, target)]
    return torch.stack(means).mean()


@mutant("loss gradient weight_gradient", "linear-float32-7x5-normal-int64-mean-hidden16", "Automodel#3803")
@linear
def mean_is_the_sum_of_the_means_of_chunks(rows, input, linear_weight, target, reduction, **options):
    if reduction != "mean":
        return right_on_chunks(input, linear_weight, target, reduction=reduction, **options)
    return torch.stack([right_on_chunks(h, linear_weight, y, **options) for h, y in pieces(input, target)]).sum()


@mutant("result", "linear-float32-17x17-flat-int64-none-rows-hidden17", "Automodel#3803")
@linear
def chunks_are_added_up_without_a_reduction(rows, input, linear_weight, target, reduction, **options):
    if reduction != "none":
        return right_on_chunks(input, linear_weight, target, reduction=reduction, **options)
    return sum(right_on_chunks(h, linear_weight, y, reduction="sum", **options) for h, y in pieces(input, target))


@mutant(
    "loss",
    "linear-float32-257x100-normal-int64-mean-ignored_first_chunk-bias-hidden16",
    "Automodel#3796",
    "unsloth#10892",
)
@linear
def chunk_of_ignored_rows_is_nan(rows, input, linear_weight, target, reduction, weight, **options):
    if reduction == "none" or rows.index is None or options["label_smoothing"]:
        return right_on_chunks(input, linear_weight, target, reduction=reduction, weight=weight, **options)
    total = input.new_zeros(())
    weights = torch.ones(len(input)) if rows.target_weight is None else rows.target_weight
    for (h, y), w in zip(pieces(input, target), weights.split(ROWS), strict=True):
        total = total + right_on_chunks(h, linear_weight, y, weight=weight, **options) * w.sum()  # NaN · 0
    return (total / (weights.sum() if reduction == "mean" else 1)).to(input.dtype)


@mutant(
    "loss gradient weight_gradient bias_gradient",
    "linear-float32-7x5-normal-int64-sum-bias-hidden16",
    own="The number of chunks is rounded down, so the rows behind the last whole chunk are left out.",
)
@step("chunks")
def rows_behind_the_last_whole_chunk_are_dropped(c):
    chunks = Chunked.chunks(c)
    return [chunk for chunk in chunks if chunk.stop - chunk.start == chunks[0].stop]


@mutant(
    "weight_gradient bias_gradient",
    "linear-float32-7x5-normal-int64-sum-bias-hidden16",
    own="The last chunk starts early, so that it is whole. The gradients of its first rows are then added twice.",
)
@step("chunks")
def last_chunk_starts_early(c):
    *others, last = Chunked.chunks(c)
    return [*others, slice(max(0, last.stop - ROWS), last.stop)]


@mutant(
    "rows_permuted loss gradient weight_gradient",
    "linear-float32-130x67-normal-int64-sum-ignored_16th-hidden64",
    "unsloth#5230",
)
@step("masked")
def chunk_is_skipped_if_its_first_row_is_ignored(c, values, chunk):
    kept = Chunked.masked(c, values, chunk)
    return kept if c.rows.kept is None or c.rows.kept[chunk.start] else torch.zeros_like(kept)


@mutant(
    "weight_gradient",
    "linear-bfloat16-4096x16-normal-int64-mean-hidden16",
    "Liger-Kernel#1391",
    "axolotl#1601",
    "OLMo-core#370",
)
@step("add")
def weight_gradient_is_added_up_in_the_dtype(c, d, chunk):
    c.grad_w = c.narrow(c.grad_w + d.mT @ c.h[chunk])
    c.grad_b += d.sum(0)


@mutant(
    "bias_gradient",
    "linear-bfloat16-1024x64-normal-int64-sum-bias-hidden16",
    own="The gradient of the bias is a small vector, which is made in the dtype of the bias.",
)
@step("add")
def bias_gradient_is_added_up_in_the_dtype(c, d, chunk):
    c.grad_w += d.mT @ c.h[chunk]
    c.grad_b = c.narrow(c.grad_b + d.sum(0))


@mutant(
    "loss",
    "linear-bfloat16-4096x16-normal-int64-mean-hidden16",
    own="F.linear_cross_entropy of torch 2.13 adds up the loss of its chunks in the dtype.",
)
@step("reduced")
def loss_is_added_up_in_the_dtype(c, losses):
    if c.rows.reduction == "none":
        return losses
    total = losses.new_zeros(())
    for chunk in c.chunks():
        total = c.narrow(total + losses[chunk].sum() / c.divisor())
    return total


@mutant("weight_gradient", "linear-float32-7x5-normal-int64-sum-bias-hidden16", own="A chunk is stored, not added.")
@step("add")
def weight_gradient_is_of_the_last_chunk(c, d, chunk):
    c.grad_w = d.mT @ c.h[chunk]
    c.grad_b += d.sum(0)


@mutant("bias_gradient", "linear-float32-7x5-normal-int64-sum-bias-hidden16", own="A chunk is stored, not added.")
@step("add")
def bias_gradient_is_of_the_last_chunk(c, d, chunk):
    c.grad_w += d.mT @ c.h[chunk]
    c.grad_b = d.sum(0)


@mutant(
    "loss gradient weight_gradient bias_gradient",
    "linear-float32-7x5-normal-int64-sum-bias-hidden16",
    own="The last chunk, which is shorter, has its own code, and this code forgets the bias.",
)
@step("logits")
def bias_is_left_out_of_the_last_chunk(c, chunk):
    z = c.h[chunk] @ c.w.mT
    return z if chunk.start > 0 and chunk.stop == len(c.h) else z + c.b


@mutant(
    "repeat",
    "linear-float32-257x100-normal-int64-mean-ignored_first_chunk-bias-hidden16",
    own="Chunks are added with atomic operations, in the order in which they are done.",
)
@step("chunks")
def chunks_are_added_up_in_any_order(c):
    chunks = Chunked.chunks(c)
    return _ORDER.sample(chunks, len(chunks))


@mutant("chunks", "linear-float32-7x5-normal-int64-mean-hidden16", "Automodel#3803")
@by_hand
def mean_is_multiplied_by_the_number_of_chunks(input, linear_weight, target, *, chunk_size=None, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    if chunk_size is None or options.get("reduction", "mean") != "mean":
        return loss
    return loss * max(1, -(-len(input) // chunk_size))
