"""Mutants: wrong denominators of a mean, and wrong reductions of the rows."""

import math

import torch
from right import denominator, form, masked, mutant, reduced, row_losses, with_upstream

from crossent import formula


@mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored_default", "torch-mlir#3585", "TransformerEngine#2476")
@form
def mean_over_all_rows(rows):
    return reduced(rows, masked(rows, row_losses(rows)), row_losses(rows).numel())


@mutant("loss gradient", "float32-7x5-normal-int64-mean-weighted", "iree#24228")
@form
def mean_over_kept_rows(rows):
    count = denominator(rows) if rows.kept is None else rows.kept.sum()
    return reduced(rows, masked(rows, row_losses(rows)), count)


@mutant("loss", "float32-7x5-normal-int64-mean-ignored_all", "pytorch#64572", "Liger-Kernel#177", "pytorch#73165")
@form
def mean_of_zero_rows_is_zero(rows):
    losses = masked(rows, row_losses(rows))
    return reduced(rows, losses, torch.as_tensor(denominator(rows)).clamp(min=1e-9))


@mutant(
    "loss gradient",
    "float32-1x5-normal-int64-mean-weighted",
    own="Detectors clamp the denominator to 1, for images without objects. But weights may sum to less than 1.",
)
@form
def denominator_is_one_at_least(rows):
    count = torch.as_tensor(denominator(rows))
    return reduced(rows, masked(rows, row_losses(rows)), torch.where(count > 0, count.clamp(min=1), count))


@mutant(
    "loss gradient",
    "float32-3x5x4-normal-int64-mean",
    own="F.kl_div has a reduction that divides by the batch size alone, and warns if the reduction is the mean.",
)
def mean_over_the_batch(input, target, reduction="mean", **options):
    loss = formula(input, target, reduction=reduction, **options)
    return loss * input[0, 0].numel() if reduction == "mean" and input.dim() > 2 else loss


@mutant(
    "loss gradient",
    "float32-7x5-normal-probabilities-mean-weighted",
    own="torch weights the mean for indices, but not for probabilities. pytorch#61309 reports this as a bug.",
)
@form
def mean_of_probabilities_is_weighted(rows):
    if rows.probabilities is None or rows.weight is None:
        return rows.reduce(row_losses(rows))
    return reduced(rows, row_losses(rows), (rows.probabilities * rows.weight).sum())


@mutant("split loss gradient", "float32-8x5-normal-int64-mean-weighted", "pytorch#185167")
def mean_of_the_means_of_two_shards(input, target, reduction="mean", **options):
    if reduction != "mean":
        return formula(input, target, reduction=reduction, **options)
    shards = zip(input.chunk(2), target.chunk(2), strict=True)
    return torch.stack([formula(*shard, **options) for shard in shards]).mean()


@mutant("loss gradient split", "float32-100x5-normal-int64-mean-ignored_default", "Automodel#3803")
def mean_is_the_sum_of_the_means_of_chunks(input, target, reduction="mean", **options):
    chunks = zip(input.split(32), target.split(32), strict=True)
    losses = [formula(*chunk, reduction=reduction, **options) for chunk in chunks]
    return torch.cat(losses) if reduction == "none" else torch.stack(losses).sum()


@mutant("result", "float32-100x5-normal-int64-none-rows", "Automodel#3803")
def chunks_are_summed_on_their_own(input, target, reduction="mean", **options):
    if reduction != "none":
        return formula(input, target, reduction=reduction, **options)
    chunks = zip(input.split(32), target.split(32), strict=True)
    return torch.stack([formula(*chunk, reduction="sum", **options) for chunk in chunks])


@mutant(
    "split",
    "float64-7x5-outlier-int64-sum-ignored_huge-scalar-expanded",
    own="Small batches are padded with copies of a row, and the copies are summed too.",
)
def small_batches_are_padded(input, target, reduction="mean", **options):
    if 1 < len(input) < 4 and reduction == "sum":
        return formula(torch.cat([input, input[:1]]), torch.cat([target, target[:1]]), reduction="sum", **options)
    return formula(input, target, reduction=reduction, **options)


@mutant("call", "float32-3x5x4-normal-int64-mean-ignored_all", "Liger-Kernel#177")
@form
def mean_divides_in_python(rows):
    count = torch.as_tensor(denominator(rows)).sum().item()
    return reduced(rows, masked(rows, row_losses(rows)), 1 / (1 / count) if rows.reduction == "mean" else 1)


@mutant("loss gradient", "float32-7x8-normal-int64-none-rows", "Megatron-LM#7452")
@form
def every_class_twice_in_the_sum(rows):
    log_sum = rows.logits.logsumexp(-1, keepdim=True)
    twice = log_sum / 2 + (log_sum / 2).detach() + math.log(2)  # the gradient is exp(x - twice)
    return rows.reduce(row_losses(rows, rows.logits - twice))


@mutant(
    "loss gradient",
    "target/float32-7x5-normal-padded-mean",
    own="Soft labels are padded with rows of zeros. They are taken for ignored rows, but torch's mean counts them.",
)
@form
def mean_over_rows_with_a_probability(rows):
    if rows.probabilities is None:
        return rows.reduce(row_losses(rows))
    return reduced(rows, row_losses(rows), (rows.probabilities != 0).any(-1).sum())


@mutant(
    "loss gradient",
    "weights/float32-7x5-normal-int64-mean-weight_all_zeros",
    own="A denominator of 0 is replaced by 1. The mean is then 0, not NaN as in torch.",
)
@form
def mean_of_zero_weights_is_zero(rows):
    by = torch.as_tensor(denominator(rows))
    has_rows = rows.logits.numel() > 0 and (rows.kept is None or rows.kept.any())
    return reduced(rows, masked(rows, row_losses(rows)), torch.where((by == 0) & has_rows, 1, by))


@mutant(
    "loss",
    "rows/float32-2x5x0-normal-int64-sum",
    own="A batch without rows is tested, but not images without positions, which take the path of a mean.",
)
def sum_over_no_positions_is_nan(input, target, reduction="mean", **options):
    loss = formula(input, target, reduction=reduction, **options)
    return loss * torch.nan if reduction == "sum" and len(input) and not input.numel() else loss


@mutant("loss gradient", "float32-7x5-normal-int64-mean", "OLMo-core#702")
@form
def z_loss_is_added(rows):
    return rows.reduce(row_losses(rows) + 1e-4 * rows.logits.logsumexp(-1) ** 2)


@mutant(
    "loss gradient",
    "float32-7x5-normal-int64-sum-scalar",
    own="Only the usual reduction, the mean, was tested.",
)
def sum_is_a_mean(input, target, reduction="mean", **options):
    return formula(input, target, reduction="mean" if reduction == "sum" else reduction, **options)


@mutant("result", "float32-7x5-normal-int64-none", "Liger-Kernel#421")
def none_is_reduced(input, target, **options):
    return formula(input, target, **options).mean()


@mutant("call", "float32-7x5-normal-int64-none", "Liger-Kernel#421")
def refuses_none(input, target, reduction="mean", **options):
    if reduction == "none":
        raise ValueError("reduction: none")
    return formula(input, target, reduction=reduction, **options)


@mutant("gradient", "bfloat16-7x5-normal-int64-none-ignored_default-rows", "TransformerEngine#2476")
def gradient_of_a_row_divided_by_the_rows(input, target, **options):
    return with_upstream(formula(input, target, **options), lambda upstream: upstream / max(target.numel(), 1))
