"""Mutants: tiles of classes, the padding of the last tile, and offsets into memory with too few bits."""

import torch
import torch.nn.functional as F
from right import form, log_probs, mutant, row_losses, shifted

from crossent import formula


def _padded(rows, value):
    wide = F.pad(rows.logits, (0, -rows.logits.shape[-1] % 256), value=value)
    return rows.reduce(row_losses(rows, log_probs(wide)[..., : rows.logits.shape[-1]]))


@mutant("loss gradient", "bfloat16-2x129920-negative_offset-int64-none-rows", "verl#2899")
@form
def padded_with_zeros(rows):
    return _padded(rows, 0.0)


@mutant("loss gradient", "bfloat16-2x65537-negative_offset-int64-mean", "unsloth#10616")
@form
def padded_with_a_softcap(rows):
    return _padded(rows, -30.0)


@mutant("loss gradient", "float32-2x129920-outlier-int64-none-rows", "verl#2899")
@form
def padding_counts_as_one_each(rows):
    x = shifted(rows.logits)
    total = x.exp().sum(-1, keepdim=True) + (-x.shape[-1] % 256)
    return rows.reduce(row_losses(rows, x - total.log()))


@mutant("loss", "float32-7x255-normal-int64-mean-ignored", "ml-cross-entropy#59")
def ignored_target_found_in_the_padding(input, target, ignore_index=-100, reduction="mean", **options):
    if input.dim() != 2 or target.is_floating_point() or not 0 < ignore_index - input.shape[1] + 1 <= 256:
        return formula(input, target, ignore_index=ignore_index, reduction=reduction, **options)
    x = F.pad(F.log_softmax(input, 1), (0, -input.shape[1] % 256), value=-torch.inf)
    losses = -torch.where(torch.arange(x.shape[1]) == target.unsqueeze(1), x, 0.0).sum(1)
    if reduction == "none":
        return losses
    return losses.sum() / ((target != ignore_index).sum() if reduction == "mean" else 1)


@mutant("loss gradient", "float32-3x257-normal-int64-none-rows", "torch-xpu-ops#4772")
@form
def band_after_a_power_of_two_twice(rows):
    x = shifted(rows.logits)
    exps = x.exp()
    band = exps[..., 2 ** ((x.shape[-1] - 1).bit_length() - 1) :] if x.shape[-1] > 1 else exps[..., :0]
    return rows.reduce(row_losses(rows, x - (exps.sum(-1, keepdim=True) + band.sum(-1, keepdim=True)).log()))


@mutant(
    "loss gradient",
    "float32-4x257-assorted-int64-none-rows",
    own="The last tile is dropped if it has one class only: the mask has `<` in place of `<=`.",
)
@form
def last_tile_of_one_class_is_dropped(rows):
    x = shifted(rows.logits)
    classes = x.shape[-1]
    full = classes - 1 if classes % 64 == 1 and classes > 1 else classes
    return rows.reduce(row_losses(rows, x - x[..., :full].exp().sum(-1, keepdim=True).log()))


@mutant(
    "loss gradient",
    "float32-3x1000-inf_tiles-int64-mean",
    own="The maximum of the first vector of classes is used for all; a larger logit then overflows.",
)
@form
def maximum_of_the_first_vector(rows):
    x = rows.logits - rows.logits[..., :16].detach().amax(-1, keepdim=True)
    return rows.reduce(row_losses(rows, x - x.exp().sum(-1, keepdim=True).log()))


@mutant("call", "float16-5x8193-normal-int64-none-rows", "tensorflow#25977")
def odd_widths_are_illegal(input, target, **options):
    if input.dtype == torch.float16 and input.shape[min(1, input.dim() - 1)] > 4096 and input.shape[1] % 2:
        raise RuntimeError("an illegal memory access was encountered")
    return formula(input, target, **options)


def _wrapped(tensor, bits):
    """Return the numbers that a kernel with signed offsets of `bits` bits reads from a tensor; 0 before its memory."""
    flat = tensor.reshape(-1)
    offset = (torch.arange(len(flat)) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return torch.where(offset < 0, 0.0, flat[offset.clamp(min=0)]).reshape(tensor.shape)


@mutant("large", "float32-7x11-normal-int64-none-rows-tiled1000", "pytorch#111484", "pytorch#85005")
def offsets_of_16_bits(input, target, **options):
    return formula(_wrapped(input, 16), target, **options)


@mutant("large", "float32-7x11-normal-int64-none-rows-tiled1000", "pytorch#190139", "pytorch#84144")
def gradient_offsets_of_16_bits(input, target, **options):
    if input.requires_grad:
        input.register_hook(lambda gradient: _wrapped(gradient, 16))
    return formula(input, target, **options)


@mutant(
    "loss gradient",
    "float32-3x513-normal-int64-none-rows",
    own="Classes are stored in eight bits, which is enough for images.",
)
def classes_of_eight_bits(input, target, ignore_index=-100, **options):
    if target.is_floating_point():
        return formula(input, target, ignore_index=ignore_index, **options)
    narrow = torch.where(target == ignore_index, ignore_index, torch.where(target > 255, target % 256, target))
    return formula(input, narrow, ignore_index=ignore_index, **options)


@mutant(
    "loss gradient",
    "float32-4x1025-assorted-int64-none-rows",
    own="A block has one thread for each class and at most 1024 threads, so further classes are left out.",
)
@form
def classes_beyond_1024_are_not_summed(rows):
    x = shifted(rows.logits)
    return rows.reduce(row_losses(rows, x - x[..., :1024].exp().sum(-1, keepdim=True).log()))


@mutant(
    "classes_permuted loss",
    "float32-2x257-near_ties-hard-mean",
    own="A loop over pairs of classes leaves out the last class if the number of classes is odd.",
)
@form
def last_of_an_odd_number_of_classes_is_dropped(rows):
    x = shifted(rows.logits)
    pairs = x[..., : max(1, x.shape[-1] // 2 * 2)]
    return rows.reduce(row_losses(rows, x - pairs.exp().sum(-1, keepdim=True).log()))


@mutant(
    "rows_permuted loss",
    "float32-7x5-decades-int64-sum-ignored_16th-scalar-transposed",
    own="If the number of rows is odd, another block computes the last row, and takes the row before it.",
)
def last_row_is_the_one_before(input, target, **options):
    if input.dim() == 1 or len(input) % 2 == 0 or len(input) < 2:
        return formula(input, target, **options)
    return formula(torch.cat([input[:-1], input[-2:-1]]), target, **options)
