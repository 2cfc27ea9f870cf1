"""Bugs that were shipped, each done to a right cross-entropy: what the corpus must catch on a CPU.

`SHOWN` says for each entry of the corpus which wrong cross-entropies stand for it, and which checks must find each of
them on the entry's own cases. Those of `test_wrong_forms.py` and of `defects.py` are used again.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from defects import DEFECTS, CrossEntropy, running
from test_wrong_forms import (
    _reduced,
    _row_losses,
    class_axis_last,
    form,
    ignored_rows_keep_their_smoothing,
    log_probs,
    logsumexp_then_subtract,
    mean_of_zero_rows_is_zero,
    mean_over_all_rows,
    mean_over_kept_rows,
    no_maximum,
    one_class_dropped_from_the_sum,
    probabilities_clipped,
    returns_zeros,
    smoothing_is_dropped,
    smoothing_spares_the_true_class,
    upstream_of_the_first_row_for_all,
    weight_is_dropped,
)

from crossent import formula

DEFECT = {defect.name: defect for defect in DEFECTS}


class _Backward(torch.autograd.Function):
    """The values; their gradient is made of the upstream one."""

    @staticmethod
    def forward(ctx, values, change):
        ctx.change = change
        return values.clone()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.change(upstream), None


# A. Denominator and reduction.


def mean_of_the_means_of_two_shards(input, target, **options):
    if options["reduction"] != "mean":
        return formula(input, target, **options)
    shards = zip(input.chunk(2), target.chunk(2), strict=True)
    return torch.stack([formula(*shard, **options) for shard in shards]).mean()


def chunks_are_reduced_on_their_own(input, target, **options):
    reduction = "mean" if options.pop("reduction") == "mean" else "sum"
    chunks = zip(input.split(32), target.split(32), strict=True)
    losses = torch.stack([formula(*chunk, reduction=reduction, **options) for chunk in chunks])
    return losses.sum() if reduction == "mean" else losses


def gradient_of_a_row_divided_by_the_rows(input, target, **options):
    return _Backward.apply(formula(input, target, **options), lambda upstream: upstream / max(target.numel(), 1))


@form
def mean_divides_in_python(rows):
    losses = _row_losses(rows)
    return _reduced(rows, losses, 1 / (1 / rows.target_weight.sum().item()))


@form
def smoothing_over_half_the_classes(rows):
    x = log_probs(rows.logits)
    local = rows.weighted(x)[..., : x.shape[-1] // 2].mean(-1)
    return rows.reduce(-(1 - rows.label_smoothing) * rows.weigh(rows.pick(x)) - rows.label_smoothing * local)


@form
def smoothing_of_logged_probabilities(rows):
    x = log_probs(rows.logits)
    uniform = rows.logits.softmax(-1).log().mean(-1)
    return rows.reduce(-(1 - rows.label_smoothing) * rows.weigh(rows.pick(x)) - rows.label_smoothing * uniform)


@form
def every_class_twice_in_the_sum(rows):
    log_sum = rows.logits.logsumexp(-1, keepdim=True)
    twice = log_sum / 2 + (log_sum / 2).detach() + math.log(2)  # its gradient is exp(x - twice)
    return rows.reduce(-rows.expect(rows.logits - twice))


@form
def z_loss_is_added(rows):
    return rows.reduce(_row_losses(rows) + 1e-4 * rows.logits.logsumexp(-1) ** 2)


# B. Label smoothing.


@form
def others_share_what_is_not_smoothed(rows):
    x, smoothing = log_probs(rows.logits), rows.label_smoothing
    share = (1 - smoothing) / x.shape[-1] if smoothing else 0.0
    return rows.reduce(-(1 - smoothing) * rows.weigh(rows.pick(x)) - share * rows.weighted(x).sum(-1))


@form
def smoothing_of_ignored_rows_only(rows):
    x = log_probs(rows.logits)
    uniform = torch.where(rows.kept, 0.0, rows.weighted(x).mean(-1)) * rows.label_smoothing
    losses = -(1 - rows.label_smoothing) * rows.weigh(rows.pick(x)) - uniform
    if rows.reduction == "none":
        return losses
    return losses.sum() / (rows.target_weight.sum() if rows.reduction == "mean" else 1)


@form
def zero_times_infinity(rows):
    return rows.reduce(-rows.weighted(rows.one_hot() * log_probs(rows.logits)).sum(-1))


def whatever_smoothing(input, target, **options):
    return formula(input, target, **{**options, "label_smoothing": max(0.0, min(options["label_smoothing"], 1.0))})


# C. Gradient.


def upstream_is_taken_for_one(input, target, **options):
    return _Backward.apply(formula(input, target, **options), torch.ones_like)


def gradient_of_the_sum_divided_by_the_rows(input, target, **options):
    rows = target.numel() if options["reduction"] == "sum" else 1
    return _Backward.apply(formula(input, target, **options), lambda upstream: upstream / rows)


def no_gradient_where_nothing_is_reduced(input, target, **options):
    change = torch.zeros_like if options["reduction"] == "none" else torch.clone
    return _Backward.apply(formula(input, target, **options), change)


def gradient_over_the_logits(input, target, **options):
    def write(gradient):
        input.data.copy_(gradient)

    if input.requires_grad:
        input.register_hook(write)
    return formula(input, target, **options)


def gradient_of_contiguous_logits_only(input, target, **options):
    def change(upstream):
        if input.dim() == 4 and not input.is_contiguous():
            raise RuntimeError("grad_input must be contiguous")
        return upstream

    return _Backward.apply(formula(input, target, **options), change)


def chunks_added_up_in_half_precision(input, target, **options):
    if options.pop("reduction") != "sum":
        raise NotImplementedError
    total = input.new_zeros(())
    for losses in formula(input, target, reduction="none", **options).split(4):
        total = total + losses.sum()
    return total


class _SoftmaxOverSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.softmax(-1))
        return log_probs(x)

    @staticmethod
    def backward(ctx, upstream):
        (p,) = ctx.saved_tensors
        of_softmax = upstream / p
        return p * (of_softmax - (of_softmax * p).sum(-1, keepdim=True))


@form
def gradient_of_the_softmax_over_the_softmax(rows):
    return rows.reduce(-rows.expect(_SoftmaxOverSoftmax.apply(rows.logits)))


# D. Rounding and overflow.


def no_maximum_in_half_precision_vectors(input, target, **options):
    vectors = input.dtype in (torch.float16, torch.bfloat16) and input.shape[1] >= 16
    return (no_maximum if vectors else formula)(input, target, **options)


FLOAT16_ACCUMULATOR = CrossEntropy(
    "float16_accumulator",
    "The exponentials are added up in float16.",
    step="total",
    wrong=lambda s, right: running(torch.float16, s.exps),
)


@form
def tile_of_minus_infinity_is_nan(rows):
    largest = torch.full_like(rows.logits[..., :1], -torch.inf)
    total = torch.zeros_like(largest)
    for tile in rows.logits.split(max(32, rows.logits.shape[-1] // 16), -1):
        larger = torch.maximum(largest, tile.detach().amax(-1, keepdim=True))
        total = total * (largest - larger).exp() + (tile - larger).exp().sum(-1, keepdim=True)
        largest = larger
    return rows.reduce(-rows.expect(rows.logits - largest - total.log()))


@form
def impossible_short_rows_are_zero(rows):
    losses = _row_losses(rows)
    if rows.logits.shape[-1] < 128:
        losses = torch.where(rows.logits.isneginf().all(-1), 0.0, losses)
    return rows.reduce(losses)


@form
def logarithm_of_the_softmax(rows):
    return rows.reduce(-rows.expect(rows.logits.softmax(-1).log()))


# E. Tiles, masks and widths.


def _padded(rows, value):
    wide = F.pad(rows.logits, (0, -rows.logits.shape[-1] % 256), value=value)
    return rows.reduce(-rows.expect(log_probs(wide)[..., : rows.logits.shape[-1]]))


@form
def padded_with_zeros(rows):
    return _padded(rows, 0.0)


@form
def padded_with_a_softcap(rows):
    return _padded(rows, -30.0)


@form
def padding_counts_as_one_each(rows):
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)
    total = x.exp().sum(-1, keepdim=True) + (-x.shape[-1] % 256)
    return rows.reduce(-rows.expect(x - total.log()))


def ignored_target_found_in_the_padding(input, target, ignore_index=-100, reduction="mean", **options):
    x = F.pad(F.log_softmax(input, 1), (0, -input.shape[1] % 256), value=-torch.inf)
    hot = torch.arange(x.shape[1]) == target.unsqueeze(1)
    losses = -torch.where(hot, x, 0.0).sum(1)
    return losses if reduction == "none" else losses.sum() / (target != ignore_index).sum()


@form
def band_after_a_power_of_two_twice(rows):
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True)
    exps = x.exp()
    band = exps[..., 2 ** ((x.shape[-1] - 1).bit_length() - 1) :]
    return rows.reduce(-rows.expect(x - (exps.sum(-1, keepdim=True) + band.sum(-1, keepdim=True)).log()))


def odd_widths_are_illegal(input, target, **options):
    if input.shape[1] % 2:
        raise RuntimeError("an illegal memory access was encountered")
    return formula(input, target, **options)


def read_at(tensor, start, strides):
    """What a kernel reads that takes a tensor to start elsewhere, or to have other strides; 0 beyond its memory.

    The gradient is right.
    """
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage())
    index = torch.full(tensor.shape, start)
    for axis, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True)):
        index += (torch.arange(size) * stride).reshape(-1, *[1] * (tensor.dim() - axis - 1))
    found = torch.where(index < len(memory), memory[index.clamp(max=len(memory) - 1)], 0)
    if not tensor.requires_grad:
        return found
    return torch.where(tensor.detach() == found, tensor, tensor + (found - tensor).detach())


def as_if_contiguous(tensor):
    return read_at(tensor, tensor.storage_offset(), torch.empty(tensor.shape, device="meta").stride())


def read_from_the_aligned_address_below(input, target, **options):
    below = [read_at(tensor, tensor.storage_offset() // 4 * 4, tensor.stride()) for tensor in (input, target)]
    return formula(below[0], torch.where(below[1] < input.shape[1], below[1], 0), **options)


# G. Targets and ignore_index.


def negative_ignore_index_is_none(input, target, ignore_index=-100, **options):
    if ignore_index < 0:
        return formula(input, target.clamp(min=0), ignore_index=2**40, **options)
    return formula(input, target, ignore_index=ignore_index, **options)


def no_class_has_a_loss_of_zero(input, target, ignore_index=-100, **options):
    outside = (target < 0) | (target >= input.shape[1])
    return formula(input, target.where(~outside, ignore_index), ignore_index=ignore_index, **options)


def read_before_it_is_masked(input, target, ignore_index=-100, reduction="mean", **options):
    F.log_softmax(input, 1).gather(1, target.unsqueeze(1))
    return formula(input, target, ignore_index=ignore_index, reduction=reduction, **options)


def never_set():
    """A cross-entropy that leaves in the losses of ignored rows what the call before has left there."""
    memory = {}

    @form
    def ignored_rows_are_never_set(rows):
        losses = _row_losses(rows)
        losses = torch.where(rows.kept, losses, memory.get(losses.shape, torch.zeros(losses.shape)))
        memory[losses.shape] = torch.where(rows.kept, losses, 7.0).detach()  # somebody else had it meanwhile
        if rows.reduction == "none":
            return losses
        return losses.sum() / (rows.target_weight.sum() if rows.reduction == "mean" else 1)

    return ignored_rows_are_never_set


def range_checked_before_it_is_ignored(input, target, **options):
    if options["reduction"] == "none" and (target >= input.shape[1]).any():
        raise IndexError("Target out of bounds")
    return formula(input, target, **options)


def range_always_checked_before_it_is_ignored(input, target, **options):
    if (target >= input.shape[1]).any():
        raise IndexError("Target out of bounds")
    return formula(input, target, **options)


def negative_is_ignored(input, target, ignore_index=-100, **options):
    return formula(input, target.where(target >= 0, ignore_index), ignore_index=ignore_index, **options)


def negative_counts_from_the_end(input, target, ignore_index=-100, **options):
    wrapped = target.where((target >= 0) | (target == ignore_index), target % input.shape[1])
    return formula(input, wrapped, ignore_index=ignore_index, **options)


def minus_100_in_uint8(input, target, ignore_index=-100, **options):
    if target.dtype == torch.uint8:
        ignore_index %= 256
    return formula(input, target.long(), ignore_index=ignore_index, **options)


def refuses_uint8(input, target, **options):
    if target.dtype == torch.uint8:
        raise RuntimeError("expected Long")
    return formula(input, target, **options)


def divides_by_the_batch(input, target, **options):
    1 / len(input)
    return formula(input, target, **options)


def empty_is_a_number(input, target, **options):
    if input.numel():
        return formula(input, target, **options)
    return input.sum() + (target.sum() if target.is_floating_point() else 0.0)


def refuses_one_row(input, target, **options):
    if input.dim() == 1:
        raise IndexError("Dimension out of range")
    return formula(input, target, **options)


def any_shape_of_the_target(input, target, **options):
    if target.is_floating_point() or input.dim() == 1:
        return formula(input, target, **options)
    rows = torch.Size((input.shape[0], *input.shape[2:]))
    return formula(input, target.reshape(-1)[: rows.numel()].reshape(rows), **options)


@form
def ignored_rows_times_zero(rows):
    losses = _row_losses(rows) * rows.kept
    if rows.reduction == "none":
        return losses
    return losses.sum() / (rows.target_weight.sum() if rows.reduction == "mean" else 1)


def indices_read_as_a_dense_row(input, target, **options):
    dense = target.numel() == input.shape[1]
    return formula(input, target.to(input.dtype).expand(input.shape) if dense else target, **options)


# H. Layout.


def target_read_as_contiguous(input, target, **options):
    return formula(input, as_if_contiguous(target).clamp(max=input.shape[1] - 1), **options)


def logits_read_as_contiguous(input, target, **options):
    return formula(as_if_contiguous(input), target, **options)


def upstream_read_as_contiguous(input, target, **options):
    return _Backward.apply(formula(input, target, **options), as_if_contiguous)


# I. Interface, options and determinism.


def none_is_reduced(input, target, **options):
    return formula(input, target, **options).mean()


def refuses_none(input, target, **options):
    if options["reduction"] == "none":
        raise ValueError("reduction: none")
    return formula(input, target, **options)


def result_is_float32(input, target, **options):
    return formula(input, target, **options).float()


def weight_is_converted(input, target, weight=None, **options):
    return formula(input, target, None if weight is None else weight.to(input.dtype), **options)


def in_whatever_order():
    """A cross-entropy that adds up its rows in another order each time."""
    orders = random.Random(0)

    @form
    def added_up_in_whatever_order(rows):
        losses = _row_losses(rows).flatten()
        at = torch.tensor(orders.sample(range(len(losses)), len(losses)))
        total = running(torch.float32, losses[at])[0]
        return total / rows.target_weight.sum() if rows.reduction == "mean" else total

    return added_up_in_whatever_order


SHOWN = {
    "A1": {ignored_rows_keep_their_smoothing: "loss gradient"},
    "A3": {mean_over_kept_rows: "loss gradient"},
    "A4": {mean_over_all_rows: "loss gradient"},
    "A5": {mean_of_the_means_of_two_shards: "loss gradient"},
    "A6": {chunks_are_reduced_on_their_own: "result loss gradient"},
    "A9": {mean_over_all_rows: "loss gradient", gradient_of_a_row_divided_by_the_rows: "gradient"},
    "A10": {mean_of_zero_rows_is_zero: "loss"},
    "A11": {mean_of_zero_rows_is_zero: "loss", mean_divides_in_python: "call"},
    "A13": {smoothing_over_half_the_classes: "loss gradient", smoothing_of_logged_probabilities: "gradient"},
    "A14": {every_class_twice_in_the_sum: "loss gradient"},
    "A15": {z_loss_is_added: "loss gradient"},
    "B1": {others_share_what_is_not_smoothed: "loss gradient"},
    "B3": {smoothing_spares_the_true_class: "loss gradient"},
    "B4": {smoothing_is_dropped: "loss gradient"},
    "B5": {ignored_rows_keep_their_smoothing: "loss gradient", smoothing_of_ignored_rows_only: "loss gradient"},
    "B7": {zero_times_infinity: "loss"},
    "B8": {whatever_smoothing: "errors"},
    "C1": {upstream_is_taken_for_one: "gradient"},
    "C2": {upstream_of_the_first_row_for_all: "gradient"},
    "C3": {gradient_of_the_sum_divided_by_the_rows: "gradient", upstream_of_the_first_row_for_all: "gradient"},
    "C6": {no_gradient_where_nothing_is_reduced: "gradient"},
    "C7": {gradient_over_the_logits: "arguments"},
    "C9": {gradient_of_contiguous_logits_only: "call"},
    "C12": {DEFECT["gradient_stored_before_it_is_scaled"]: "gradient"},
    "C13": {chunks_added_up_in_half_precision: "loss"},
    "C15": {gradient_of_the_softmax_over_the_softmax: "gradient"},
    "D1": {logsumexp_then_subtract: "loss", DEFECT["gradient_from_logsumexp"]: "gradient"},
    "D2": {no_maximum_in_half_precision_vectors: "loss gradient"},
    "D4": {probabilities_clipped: "loss gradient"},
    "D6": {DEFECT["count_of_float16"]: "loss gradient"},
    "D6b": {DEFECT["count_of_float16"]: "loss gradient"},
    "D7": {DEFECT["sum_stored"]: "loss gradient"},
    "D8": {DEFECT["bfloat16_accumulator"]: "loss gradient", FLOAT16_ACCUMULATOR: "loss gradient"},
    "D10": {tile_of_minus_infinity_is_nan: "loss gradient"},
    "D11": {zero_times_infinity: "loss"},
    "D12": {impossible_short_rows_are_zero: "loss"},
    "D14": {logarithm_of_the_softmax: "loss gradient"},
    "E1": {padded_with_zeros: "loss gradient", padding_counts_as_one_each: "loss gradient"},
    "E2": {padded_with_a_softcap: "loss gradient"},
    "E3": {ignored_target_found_in_the_padding: "loss"},
    "E4": {one_class_dropped_from_the_sum: "loss"},
    "E7": {band_after_a_power_of_two_twice: "loss gradient"},
    "E8": {DEFECT["remainder_of_tiles_dropped"]: "loss gradient", odd_widths_are_illegal: "call"},
    "E9": {read_from_the_aligned_address_below: "loss gradient"},
    "G1": {negative_ignore_index_is_none: "loss", no_class_has_a_loss_of_zero: "errors"},
    "G2": {read_before_it_is_masked: "call"},
    "G4": {never_set(): "repeat"},
    "G5": {never_set(): "repeat"},
    "G6": {range_checked_before_it_is_ignored: "call", negative_is_ignored: "errors"},
    "G7": {range_always_checked_before_it_is_ignored: "call", negative_ignore_index_is_none: "loss"},
    "G9": {negative_counts_from_the_end: "errors"},
    "G12": {refuses_uint8: "call", minus_100_in_uint8: "loss errors"},
    "G13": {divides_by_the_batch: "call", empty_is_a_number: "result", mean_of_zero_rows_is_zero: "loss"},
    "G14": {refuses_one_row: "call", any_shape_of_the_target: "errors"},
    "G15": {ignored_rows_times_zero: "loss"},
    "G16": {indices_read_as_a_dense_row: "loss", any_shape_of_the_target: "errors"},
    "G18": {any_shape_of_the_target: "errors"},
    "H1": {target_read_as_contiguous: "loss gradient"},
    "H3": {logits_read_as_contiguous: "loss gradient", target_read_as_contiguous: "loss gradient"},
    "H4": {logits_read_as_contiguous: "loss gradient", upstream_read_as_contiguous: "gradient"},
    "H6": {class_axis_last: "loss gradient"},
    "I1": {none_is_reduced: "result", refuses_none: "call"},
    "I2": {weight_is_dropped: "loss", smoothing_is_dropped: "loss"},
    "I3": {result_is_float32: "result", weight_is_converted: "errors"},
    "I4": {returns_zeros: "loss"},
    "I5": {in_whatever_order(): "repeat"},
}
