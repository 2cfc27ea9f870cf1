"""Mutants: overflow, cancellation, infinite values, and sums in half precision."""

import torch
import torch.nn.functional as F
from right import denominator, form, log_probs, masked, mutant, reduced, row_losses, shifted

from crossent import formula

HALVES = (torch.float16, torch.bfloat16)


@form
def _without_maximum(rows):
    return rows.reduce(row_losses(rows, rows.logits - rows.logits.exp().sum(-1, keepdim=True).log()))


@mutant(
    "loss gradient",
    "float32-7x3-large-int64-none-rows",
    own="Textbooks write the formula without the subtraction of the maximum.",
)
def no_maximum(input, target, **options):
    return _without_maximum(input, target, **options)


@mutant("loss gradient", "bfloat16-7x64-large-int64-none-rows", "pytorch#62897")
def no_maximum_in_half_precision_vectors(input, target, **options):
    vectors = input.dtype in HALVES and input.shape[min(1, input.dim() - 1)] >= 16
    return (_without_maximum if vectors else formula)(input, target, **options)


@mutant("loss", "float32-7x5-large_offset-int64-none-rows", "pytorch#38839")
@form
def logsumexp_then_subtract(rows):
    return rows.reduce(row_losses(rows, rows.logits - rows.logits.logsumexp(-1, keepdim=True)))


@mutant(
    "shift",
    "float32-2x257-near_ties-hard-mean",
    own="Logits above 100 are thought impossible, and are clamped.",
)
def logits_are_clamped(input, target, **options):
    return formula(input.clamp(-100, 100), target, **options)


@mutant(
    "loss gradient", "float32-1x1-normal-int64-mean", own="A small number is added so that the logarithm is finite."
)
@form
def a_little_inside_the_logarithm(rows):
    x = shifted(rows.logits)
    return rows.reduce(row_losses(rows, x - (x.exp().sum(-1, keepdim=True) + 1e-4).log()))


@mutant("loss gradient", "float32-7x5-wrong-int64-none-rows", "tf-keras#242")
@form
def probabilities_clipped(rows):
    return rows.reduce(row_losses(rows, (rows.logits.softmax(-1) + 1e-7).log()))


@mutant("loss gradient", "float32-7x5-wide-int64-none-rows", "pytorch#95091", "pytorch#94043")
@form
def logarithm_of_the_softmax(rows):
    return rows.reduce(row_losses(rows, rows.logits.softmax(-1).log()))


@mutant("loss", "float32-7x5-inf_off_target-int64-none-rows", "optax#896", "MindAct#1633")
@form
def zero_times_infinity(rows):
    return rows.reduce(-rows.weighted(rows.smoothed_target() * log_probs(rows.logits)).sum(-1))


@mutant("loss gradient", "float32-7x64-inf_tiles-int64-none-rows", "flash-attention#1930")
@form
def tile_of_minus_infinity_is_nan(rows):
    largest = torch.full_like(rows.logits[..., :1], -torch.inf)
    total = torch.zeros_like(largest)
    for tile in rows.logits.split(max(32, rows.logits.shape[-1] // 16), -1):
        larger = torch.maximum(largest, tile.detach().amax(-1, keepdim=True))
        total = total * (largest - larger).exp() + (tile - larger).exp().sum(-1, keepdim=True)
        largest = larger
    return rows.reduce(row_losses(rows, rows.logits - largest - total.log()))


@mutant("loss", "float32-7x127-inf_rows-int64-none-rows", "mlx#1467")
@form
def impossible_short_rows_are_zero(rows):
    losses = row_losses(rows)
    if rows.logits.shape[-1] < 128:
        losses = torch.where(rows.logits.isneginf().all(-1), 0.0, losses)
    return rows.reduce(losses)


@mutant(
    "loss",
    "float32-2x3x2x2x3-inf_on_target-hard-mean",
    own="An infinite loss breaks a training, so it is replaced by a large number.",
)
@form
def no_loss_is_infinite(rows):
    return rows.reduce(row_losses(rows, log_probs(rows.logits).clamp(min=-1e30)))


@mutant("loss", "float32-2x257-inf_off_target-hard-mean", own="`nan_to_num` hides NaN of an earlier layer.")
@form
def nan_is_zero(rows):
    return rows.reduce(row_losses(rows).nan_to_num(0.0, torch.inf, -torch.inf))


@mutant("loss gradient", "float64-7x3-large-int64-mean", own="Every dtype is converted to float32, float64 too.")
def float64_in_float32(input, target, **options):
    wide = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    if input.dtype != torch.float64 or target.is_floating_point():
        return formula(input, target, **options)
    return formula(input.float(), target, **wide).double()


@mutant(
    "loss gradient",
    "bfloat16-7x5-normal-int64-none-rows",
    own="log_softmax returns half precision, and later steps use the rounded numbers.",
)
def log_probs_are_stored(input, target, **options):
    return formula(F.log_softmax(input.float(), min(1, input.dim() - 1)).to(input.dtype), target, **options)


@mutant("loss gradient", "pytorch-29429/float16-65520x2-normal-int64-mean", "pytorch#29429", "pytorch#85791")
@form
def rows_are_counted_in_float16(rows):
    count = torch.as_tensor(denominator(rows))
    half = rows.dtype == torch.float16
    return reduced(rows, masked(rows, row_losses(rows)), count.half().float() if half else count)


@mutant("loss", "bfloat16-4096x5-normal-int64-sum", "axolotl#1601")
def chunks_added_up_in_half_precision(input, target, reduction="mean", **options):
    if reduction != "sum" or target.dim() == 0:
        return formula(input, target, reduction=reduction, **options)
    total = input.new_zeros(())
    for losses in formula(input, target, reduction="none", **options).split(4):
        total = total + losses.sum()
    return total


def _added_up(dtype, exps):
    total = torch.zeros_like(exps[..., :1])
    for term in exps.split(1, -1):
        total = (total + term).to(dtype).to(exps.dtype)
    return total


@mutant("loss gradient", "float16-3x4096-flat-int64-none-rows", "executorch#20090")
@form
def exponentials_added_up_in_float16(rows):
    x = shifted(rows.logits)
    total = _added_up(torch.float16, x.exp()) if rows.dtype == torch.float16 else x.exp().sum(-1, keepdim=True)
    return rows.reduce(row_losses(rows, x - total.log()))


@mutant("loss gradient", "bfloat16-3x512-flat-int64-none-rows", "executorch#20090")
@form
def exponentials_added_up_in_bfloat16(rows):
    x = shifted(rows.logits)
    total = _added_up(torch.bfloat16, x.exp()) if rows.dtype == torch.bfloat16 else x.exp().sum(-1, keepdim=True)
    return rows.reduce(row_losses(rows, x - total.log()))


@mutant(
    "widened",
    "bfloat16-7x5-normal-int64-none-rows",
    own="The kernel for float32 counts the padding of its vectors; only the kernel for half precision was tested.",
)
@form
def float32_counts_its_padding(rows):
    x = shifted(rows.logits)
    padding = -x.shape[-1] % 8 if rows.dtype == torch.float32 else 0
    return rows.reduce(row_losses(rows, x - (x.exp().sum(-1, keepdim=True) + padding).log()))


@mutant("loss", "float32-7x5-normal-int64-mean", "Liger-Kernel#507")
def returns_zeros(input, target, **options):
    return formula(input, target, **options) * 0


@mutant("sign loss", "float32-7x5-confident-int64-none-rows", "ml-cross-entropy#52")
@form
def one_class_dropped_from_the_sum(rows):
    short = rows.logits[..., : max(1, rows.logits.shape[-1] - 1)]
    return rows.reduce(row_losses(rows, rows.logits - short.logsumexp(-1, keepdim=True)))
