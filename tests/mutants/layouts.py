"""Mutants: kernels that read or write at wrong addresses in memory."""

import torch
from right import mutant, with_upstream, with_value

from crossent import formula


def _read_at(tensor, start, strides):
    """Return the numbers that a kernel reads if it assumes another start or other strides; 0 beyond the memory.

    The gradient is right.
    """
    memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage())
    index = torch.full(tensor.shape, start)
    for axis, (size, stride) in enumerate(zip(tensor.shape, strides, strict=True)):
        index += (torch.arange(size) * stride).reshape(-1, *[1] * (tensor.dim() - axis - 1))
    found = torch.where(index < len(memory), memory[index.clamp(max=len(memory) - 1)], 0) if len(memory) else tensor
    return with_value(tensor, found) if tensor.requires_grad else found


def _as_if_contiguous(tensor):
    return _read_at(tensor, tensor.storage_offset(), torch.empty(tensor.shape, device="meta").stride())


def _clamped_to_classes(target, input):
    """Return class indices clamped to the classes of the input, since an index out of range would raise an error."""
    return target if target.is_floating_point() else target.clamp(max=input.shape[min(1, input.dim() - 1)] - 1)


@mutant(
    "layout loss gradient",
    "float32-3x5x4-negative_offset-hard-mean-transposed-target_class_last",
    "pytorch#67167",
    "unsloth#10713",
)
def target_read_as_contiguous(input, target, **options):
    return formula(input, _clamped_to_classes(_as_if_contiguous(target), input), **options)


@mutant(
    "layout loss gradient", "float32-2x5x3x2-near_ties-int64-mean-ignored-class_last", "unsloth#10713", "FlagGems#5723"
)
def logits_read_as_contiguous(input, target, **options):
    return formula(_as_if_contiguous(input), target, **options)


@mutant(
    "gradient layout", "float32-17x3-confident-int64-none-weight_negative-ignored_first-stride0-window", "FlagGems#5723"
)
def upstream_read_as_contiguous(input, target, **options):
    return with_upstream(formula(input, target, **options), _as_if_contiguous)


def _first_for_all(upstream):
    return upstream.flatten()[:1].expand(upstream.numel()).view(upstream.shape)


@mutant(
    "gradient",
    "upstream/float32-3x5x4-normal-int64-none-rows_expanded",
    own="The sum of the losses has an upstream gradient with the stride 0, but so has the sum along one dimension.",
)
def upstream_with_a_stride_of_zero_is_one_number(input, target, **options):
    def change(upstream):
        return _first_for_all(upstream) if upstream.numel() and 0 in upstream.stride() else upstream

    return with_upstream(formula(input, target, **options), change)


@mutant(
    "call",
    "upstream/float32-3x5x4-normal-int64-none-rows_expanded",
    own="The upstream gradient is viewed as a vector, which works if it is contiguous or expanded in all dimensions.",
)
def upstream_is_viewed_as_a_vector(input, target, **options):
    return with_upstream(formula(input, target, **options), lambda g: g.view(-1).view(g.shape))


# Code that reads the upstream gradient by hand rarely has these features, whose checks also find the two mutants above.
_BY_HAND = dict.fromkeys(("vmap", "double_backward", "batched_gradient", "compile"), "has a gradient by hand")
upstream_with_a_stride_of_zero_is_one_number.lacks = upstream_is_viewed_as_a_vector.lacks = _BY_HAND


@mutant("loss gradient", "float32-7x385-normal-int64-none-rows-offset", "oneDNN#3501")
def read_from_the_aligned_address_below(input, target, **options):
    below = _read_at(input, input.storage_offset() // 4 * 4, input.stride())
    return formula(below, target, **options)


@mutant("loss gradient", "float32-3x5x4-normal-int64-mean", "H6")
def class_axis_last(input, target, reduction="mean", **options):
    if input.dim() < 3 or target.is_floating_point():
        return formula(input, target, reduction=reduction, **options)
    losses = formula(input.reshape(-1, input.shape[1]), target.reshape(-1), reduction=reduction, **options)
    return losses.reshape(target.shape) if reduction == "none" else losses


@mutant(
    "rows_permuted loss",
    "float32-3x5x4-confident-int64-none-weight_zeros-ignored_huge-rows-class_last-target_transposed",
    own="The losses are returned in the order in which the kernel computes the rows, and then reshaped.",
)
def losses_come_in_another_order(input, target, reduction="mean", **options):
    losses = formula(input, target, reduction=reduction, **options)
    return losses.mT.reshape(losses.shape) if losses.dim() == 2 else losses


@mutant(
    "layout",
    "float32-7x5-decades-int64-sum-ignored_16th-scalar-transposed",
    own="A wrong condition selects the kernel for contiguous memory; only the slow kernel was tested.",
)
def contiguous_rows_are_read_one_further(input, target, **options):
    if input.is_contiguous() and input.dim() == 2 and len(input) > 1:
        return formula(torch.cat([input[1:], input[:1]]), target, **options)
    return formula(input, target, **options)


@mutant(
    "arguments", "float32-7x5-normal-int64-none-rows", own="The losses are written over the logits, to save memory."
)
def losses_lie_in_the_logits(input, target, reduction="mean", **options):
    loss = formula(input, target, reduction=reduction, **options)
    if reduction != "none" or not loss.numel() or loss.dtype != input.dtype or not input.is_contiguous():
        return loss
    place = input.detach().view(-1)[: loss.numel()].view(loss.shape)
    return _InPlace.apply(loss, place)


class _InPlace(torch.autograd.Function):
    """An autograd function that writes the losses into the memory of another tensor."""

    @staticmethod
    def forward(ctx, loss, place):
        return place.copy_(loss)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


@mutant(
    "loss gradient",
    "axes/float32-2x3x1x2x1x2x1x2-normal-int64-none-weighted-rows",
    own="A kernel has room for six strides. With more axes, it uses the stride 0 for the last axis.",
)
def axes_beyond_the_sixth(input, target, **options):
    return formula(input[..., :1].expand(input.shape) if input.dim() > 6 else input, target, **options)


@mutant(
    "loss gradient",
    "decimals/float32-7x5-decimals-int64-none-rows",
    own="Every number whose sign bit is set is taken for negative, -0.0 too.",
)
def minus_zero_is_below_zero(input, target, **options):
    below = (input == 0) & torch.signbit(input)
    return formula(torch.where(below, input - 1, input), target, **options)
