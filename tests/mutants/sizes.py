"""Mutants: options that are lost for wide rows or for many rows, where a kernel takes another path."""

import torch
from right import denominator, form, log_probs, masked, mutant, reduced, row_losses, shifted

from crossent import formula

WIDE, TALL = 257, 128  # the most classes of a block; the most rows of a block


def classes_of(input):
    return input.shape[min(1, input.dim() - 1)]


def rows_of(input):
    return input.numel() // classes_of(input)


@mutant(
    "loss gradient",
    "float32-1x511x17-assorted-int64-none-weighted-ignored_16th-stride0-class_last-target_strided-smooth0.1",
    own="The kernel for rows wider than a block is older than the options, and returns zeros if an option is given.",
)
def zero_on_wide_rows_with_an_option(input, target, weight=None, ignore_index=-100, reduction="mean", **options):
    given = weight is not None or reduction == "sum" or target.is_floating_point() or input.dim() != 2
    given = given or bool((target == ignore_index).any()) or options.get("label_smoothing", 0.0) > 0
    loss = formula(input, target, weight, ignore_index, reduction, **options)
    return loss * 0 if given and classes_of(input) > WIDE else loss


@mutant(
    "loss gradient",
    "float32-1025-negative_offset-probabilities-none-weighted-stride0-smooth1",
    own="Weights are read into shared memory for one block of classes; a wider row is computed without weights.",
)
def weight_is_lost_on_wide_rows(input, target, weight=None, **options):
    return formula(input, target, weight if classes_of(input) <= WIDE else None, **options)


@mutant(
    "loss gradient",
    "float32-1x511x17-assorted-int64-none-weighted-ignored_16th-stride0-class_last-target_strided-smooth0.1",
    own="The kernel for wide rows looks for an ignore_index only in the first block of classes.",
)
@form
def ignored_rows_count_on_wide_rows(rows):
    losses = row_losses(rows)
    wide = rows.logits.shape[-1] > WIDE
    return reduced(rows, losses if wide else masked(rows, losses), denominator(rows))


@mutant(
    "loss gradient",
    "float32-1x511x17-assorted-int64-none-weighted-ignored_16th-stride0-class_last-target_strided-smooth0.1",
    own="Smoothing needs the sum of the logits of a row, which the path for wide rows does not compute.",
)
def smoothing_is_lost_on_wide_rows(input, target, label_smoothing=0.0, **options):
    return formula(input, target, label_smoothing=label_smoothing if classes_of(input) <= WIDE else 0.0, **options)


@mutant(
    "loss gradient",
    "float32-1025-negative_offset-probabilities-none-weighted-stride0-smooth1",
    own="Only the first block of the probabilities of a wide row is read.",
)
@form
def probabilities_beyond_a_block_are_lost(rows):
    if rows.index is not None:
        return rows.reduce(row_losses(rows))
    return rows.reduce(-rows.weighted(rows.probabilities * log_probs(rows.logits))[..., :WIDE].sum(-1))


@mutant(
    "loss",
    "float32-1x3000x1-nan_ignored-int64-sum-weight_negative-ignored_16th-class_last-target_strided-smooth0.1",
    own="The kernel for wide rows divides by the number of rows, whatever the reduction is.",
)
def sum_is_a_mean_on_wide_rows(input, target, reduction="mean", **options):
    mean = reduction == "sum" and classes_of(input) > WIDE
    return formula(input, target, reduction="mean" if mean else reduction, **options)


@mutant(
    "loss gradient",
    "float32-1x511x17-assorted-int64-none-weighted-ignored_16th-stride0-class_last-target_strided-smooth0.1",
    own="The path for wide rows reads memory as if the class axis were the last axis.",
)
def wide_rows_are_read_in_the_order_of_memory(input, target, **options):
    if input.dim() > 2 and classes_of(input) > WIDE:
        class_last = [input.shape[0], *input.shape[2:], input.shape[1]]
        return formula(input.reshape(class_last).movedim(-1, 1), target, **options)
    return formula(input, target, **options)


@mutant(
    "loss gradient",
    "float32-75x2x80-outlier-int64-mean-ignored_16th-smooth0.1",
    own="Each block of rows smooths its losses, but only the first block gets the parameter.",
)
@form
def smoothing_is_lost_after_a_block_of_rows(rows):
    losses = row_losses(rows)
    if rows.index is not None and rows.label_smoothing and losses.numel() > TALL:
        plain = -rows.weigh(rows.pick(log_probs(rows.logits)))
        first = torch.arange(losses.numel()).reshape(losses.shape) < TALL
        losses = torch.where(first, losses, plain)
    return rows.reduce(losses)


@mutant(
    "loss gradient target_gradient",
    "float32-3x64x43-outlier-other_float-sum-weight_decades-scalar-transposed-smooth0.1",
    own="The probabilities of the first block of rows stay in shared memory, and later blocks read them.",
)
@form
def probabilities_of_the_first_block_of_rows(rows):
    if rows.index is not None:
        return rows.reduce(row_losses(rows))
    dense = rows.probabilities.flatten(0, -2) if rows.logits.dim() > 1 else rows.probabilities[None]
    blocks = -(-len(dense) // TALL)
    rows.probabilities = dense[:TALL].repeat(blocks, 1)[: len(dense)].reshape(rows.logits.shape)
    return rows.reduce(row_losses(rows))


@mutant(
    "loss gradient",
    "float32-2049x5-assorted-int64-sum-weight_decades-ignored-strided-target_strided",
    own="Only the first block of rows gets the weights.",
)
def weight_is_lost_after_a_block_of_rows(input, target, weight=None, reduction="mean", **options):
    if weight is None or input.dim() != 2 or len(input) <= TALL:
        return formula(input, target, weight, reduction=reduction, **options)
    first = formula(input[:TALL], target[:TALL], weight, reduction="none", **options)
    losses = torch.cat([first, formula(input[TALL:], target[TALL:], reduction="none", **options)])
    return losses if reduction == "none" else losses.sum() / (len(input) if reduction == "mean" else 1)


@mutant(
    "loss gradient",
    "float32-1025-negative_offset-probabilities-none-weighted-stride0-smooth1",
    own="A special path for the width of ImageNet, with two blocks a row, reads the weights at a wrong offset.",
)
def weight_is_shifted_between_1000_and_1100_classes(input, target, weight=None, **options):
    if weight is not None and 1000 < classes_of(input) < 1100:
        weight = weight.roll(1)
    return formula(input, target, weight, **options)


@mutant(
    "loss gradient target_gradient",
    "bfloat16-3x1031-inf_off_target-other_float-sum-weight_negative-scalar-transposed",
    own="No tile divides a prime number of classes: a separate path computes such rows without weights.",
)
def weight_is_lost_where_no_tile_divides_the_classes(input, target, weight=None, **options):
    classes = classes_of(input)
    prime = classes > WIDE and all(classes % factor for factor in range(2, 256))
    return formula(input, target, None if prime else weight, **options)


@mutant(
    "loss gradient",
    "float32-75x2x80-outlier-int64-mean-ignored_16th-smooth0.1",
    own="The last block of rows is not full, but uses the mask of ignored rows of a full block.",
)
@form
def ignored_rows_of_the_last_block_count(rows):
    losses = row_losses(rows)
    if rows.kept is None or losses.numel() <= 1024:
        return rows.reduce(losses)
    last = torch.arange(losses.numel()).reshape(losses.shape) >= losses.numel() // 1024 * 1024
    return reduced(rows, torch.where(rows.kept | last, losses, 0.0), denominator(rows))


@mutant(
    "loss gradient",
    "float32-5000-assorted-other_float-sum-weighted-scalar-strided-smooth1",
    own="Classes are split into chunks of 4096, and only the first chunk adds its part of the smoothing.",
)
@form
def smoothing_of_the_first_chunk_of_classes(rows):
    x = log_probs(rows.logits)
    lost = rows.weighted(x)[..., 4096:].sum(-1) * (rows.label_smoothing / x.shape[-1])
    return rows.reduce(row_losses(rows, x) + lost)


@mutant(
    "loss gradient",
    "float32-1x5000x1-outlier-probabilities-mean-target_strided-smooth0.1",
    own="For dense targets, the sums of chunks of classes are added although each has its own maximum.",
)
@form
def chunks_of_classes_keep_their_maxima(rows):
    if rows.index is not None:
        return rows.reduce(row_losses(rows))
    total = sum(shifted(chunk).exp().sum(-1, keepdim=True) for chunk in rows.logits.split(4096, -1))
    return rows.reduce(row_losses(rows, shifted(rows.logits) - total.log()))
