"""Mutants: wrong label smoothing and class weights."""

import torch
from right import denominator, form, log_probs, masked, mutant, reduced, row_losses

from crossent import formula


@mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored_default-smooth0.2", "pytorch#73205", "tinygrad#3570")
@form
def ignored_rows_keep_their_smoothing(rows):
    if rows.index is None:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    uniform = rows.weighted(x).mean(-1) * rows.label_smoothing
    hard = (1 - rows.label_smoothing) * rows.weigh(rows.pick(x))
    return reduced(rows, -masked(rows, hard) - uniform, denominator(rows))


@mutant("loss gradient", "float32-7x5-normal-int64-none-ignored_default-rows-smooth0.1", "tinygrad#3570")
@form
def smoothing_of_ignored_rows_only(rows):
    if rows.index is None:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    uniform = torch.where(rows.kept, 0.0, rows.weighted(x).mean(-1)) * rows.label_smoothing
    hard = (1 - rows.label_smoothing) * rows.weigh(rows.pick(x))
    return reduced(rows, -masked(rows, hard) - uniform, denominator(rows))


@mutant("loss gradient", "float32-7x5-normal-int64-mean-weighted-smooth0.1", "mindspore#73")
@form
def smoothing_spares_the_true_class(rows):
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    hard = rows.weigh(rows.pick(x))
    others = (rows.weighted(x).sum(-1) - hard) / max(x.shape[-1] - 1, 1)
    return rows.reduce(-(1 - rows.label_smoothing) * hard - rows.label_smoothing * others)


@mutant("loss gradient", "float32-7x5-normal-int64-mean-smooth0.1", "aprender#2199")
@form
def others_share_what_is_not_smoothed(rows):
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(row_losses(rows))
    x, share = log_probs(rows.logits), 1 - rows.label_smoothing
    return rows.reduce(-share * rows.weigh(rows.pick(x)) - share * rows.weighted(x).mean(-1))


@mutant("options loss gradient", "float32-7x5-normal-int64-sum-smooth0.1", "Liger-Kernel#243", "ml-cross-entropy#48")
def smoothing_is_dropped(input, target, label_smoothing=0.0, **options):
    return formula(input, target, **options)


@mutant(
    "loss target_gradient",
    "float32-3x5x4-normal-probabilities-none-weighted-rows-smooth0.1",
    own="Probabilities are thought to be smooth already; torch smooths them too.",
)
def smoothing_is_for_indices_only(input, target, label_smoothing=0.0, **options):
    return formula(input, target, label_smoothing=0.0 if target.is_floating_point() else label_smoothing, **options)


@mutant("loss gradient", "float32-7x8-normal-int64-mean-smooth0.1", "Megatron-LM#737")
@form
def smoothing_over_half_the_classes(rows):
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    local = rows.weighted(x)[..., : max(1, x.shape[-1] // 2)].mean(-1)
    return rows.reduce(-(1 - rows.label_smoothing) * rows.weigh(rows.pick(x)) - rows.label_smoothing * local)


@mutant("gradient", "float32-7x8-large-int64-none-rows-smooth0.1", "Megatron-LM#737")
@form
def smoothing_of_logged_probabilities(rows):
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(row_losses(rows))
    uniform = rows.weighted(rows.logits.softmax(-1).log()).mean(-1)
    hard = rows.weigh(rows.pick(log_probs(rows.logits)))
    return rows.reduce(-(1 - rows.label_smoothing) * hard - rows.label_smoothing * uniform)


@mutant("errors", "label_smoothing_negative", "B8")
def whatever_smoothing(input, target, label_smoothing=0.0, **options):
    return formula(input, target, label_smoothing=max(0.0, min(label_smoothing, 1.0)), **options)


@mutant(
    "loss gradient options", "float32-7x5-normal-int64-mean-weighted-ignored_class-smooth0.1", "ml-cross-entropy#48"
)
def weight_is_dropped(input, target, weight=None, **options):
    return formula(input, target, **options)


@mutant(
    "loss gradient",
    "float32-7x5-normal-int64-mean-weighted-smooth0.1",
    own="The loss of a row times the weight of its true class is right without smoothing, which was added later.",
)
@form
def smoothing_has_the_weight_of_the_true_class(rows):
    if rows.index is None:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    smooth = (1 - rows.label_smoothing) * rows.pick(x) + rows.label_smoothing * x.mean(-1)
    return rows.reduce(-rows.weigh(smooth))


@mutant(
    "loss gradient",
    "float32-5-normal-int64-none-weighted",
    own="Weights are normalised to a sum or a mean of 1, as weights from class frequencies are.",
)
def weights_are_normalised(input, target, weight=None, **options):
    return formula(input, target, weight if weight is None else weight / weight.mean(), **options)


@mutant(
    "loss gradient",
    "float64-7x5-normal-int64-none-weight_negative-rows",
    own="A negative weight is thought impossible, and is clamped or replaced by its absolute value.",
)
def weights_are_not_negative(input, target, weight=None, **options):
    return formula(input, target, weight if weight is None else weight.abs(), **options)


@mutant(
    "loss gradient",
    "float32-7x5-integers-int64-none-weight_zeros-rows-expanded",
    own="A class with a weight of 0 is left out of the softmax, as if it were masked.",
)
@form
def weight_of_zero_masks_the_class(rows):
    if rows.weight is None or rows.dense or not (rows.weight != 0).any():
        return rows.reduce(row_losses(rows))
    kept = rows.logits.masked_fill(rows.weight == 0, -torch.inf)
    return rows.reduce(torch.where(rows.target_weight == 0, 0.0, row_losses(rows, log_probs(kept))))


@mutant("errors", "weight_of_another_dtype", "apex#837")
def weight_is_converted(input, target, weight=None, **options):
    return formula(input, target, weight if weight is None else weight.to(input.dtype), **options)


@mutant(
    "loss gradient",
    "smoothing/float32-7x5-normal-int64-mean-smooth0.05",
    own="The smoothing is stored in tenths, because papers use 0.1 or 0.2.",
)
def smoothing_in_tenths(input, target, label_smoothing=0.0, **options):
    tenths = round(label_smoothing * 10) / 10 if 0.01 < label_smoothing < 0.99 else label_smoothing
    return formula(input, target, label_smoothing=tenths, **options)


@mutant(
    "loss gradient",
    "weights/float32-7x5-normal-int64-none-weight_balanced-rows",
    own="Weights are normalised by their sum, and a sum of 0 is taken to mean that every weight is 0.",
)
def weights_that_sum_to_zero(input, target, weight=None, **options):
    if weight is not None and weight.sum() == 0:
        weight = torch.zeros_like(weight)
    return formula(input, target, weight, **options)


@mutant(
    "loss gradient",
    "weights/bfloat16-7x5-normal-int64-none-weight_huge-rows",
    own="Weights are limited, so that a rare class does not overflow half precision.",
)
def weights_are_limited(input, target, weight=None, **options):
    return formula(input, target, None if weight is None else weight.clamp(max=1e4), **options)
