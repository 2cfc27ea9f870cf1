"""Mutants: wrong gradients and second derivatives of right losses."""

import torch
from right import (
    LogSoftmax,
    denominator,
    form,
    log_probs,
    masked,
    mutant,
    reduced,
    row_losses,
    shifted,
    with_upstream,
    with_value,
)

from crossent import formula


@mutant("gradient", "float32-7x5-normal-int64-mean-scalar", "pytorch#94226")
def upstream_is_taken_for_one(input, target, **options):
    return with_upstream(formula(input, target, **options), torch.ones_like)


@mutant("gradient", "float32-7x5-normal-int64-none-ignored_first-rows", "Liger-Kernel#678", "aprender#2182")
def upstream_of_the_first_row_for_all(input, target, **options):
    return with_upstream(formula(input, target, **options), lambda g: g.flatten()[:1].expand(g.numel()).view(g.shape))


@mutant("gradient", "float32-7x5-normal-int64-sum-scalar", "aprender#2182")
def gradient_of_the_sum_divided_by_the_rows(input, target, reduction="mean", **options):
    rows = max(target.numel(), 1) if reduction == "sum" else 1
    return with_upstream(formula(input, target, reduction=reduction, **options), lambda upstream: upstream / rows)


@mutant("gradient", "float32-7x5-normal-int64-none", "DirectML#739")
def no_gradient_where_nothing_is_reduced(input, target, reduction="mean", **options):
    change = torch.zeros_like if reduction == "none" else torch.clone
    return with_upstream(formula(input, target, reduction=reduction, **options), change)


@mutant("gradient", "float32-7x5-normal-int64-none-rows", own="The softmax is computed on detached logits.")
@form
def gradient_without_its_softmax(rows):
    return rows.reduce(row_losses(rows, rows.logits - rows.logits.detach().logsumexp(-1, keepdim=True)))


@mutant("gradient", "float32-7x5-wide-int64-none-rows", own="The gradient is clipped in the loss itself.")
def gradient_is_clipped(input, target, **options):
    if input.requires_grad:
        input.register_hook(lambda gradient: gradient.clamp(-0.9, 0.9))
    return formula(input, target, **options)


@mutant("gradient", "float32-7x3-large-int64-none-rows", "NNlib.jl#68")
@form
def gradient_of_the_softmax_over_the_softmax(rows):
    def change(p, upstream):
        of_softmax = upstream / p
        return p * (of_softmax - (of_softmax * p).sum(-1, keepdim=True))

    return rows.reduce(row_losses(rows, LogSoftmax.apply(rows.logits, change)))


@mutant(
    "gradient row_sums",
    "float32-5-normal-int64-none-weighted",
    own="`p - q` is the gradient only if `Σ w q` is 1: the weight is applied to the target, but not to the softmax.",
)
@form
def softmax_is_not_weighted(rows):
    def change(p, upstream):
        weight = 1 if rows.weight is None else rows.weight  # upstream is -g w q, with the weight
        return upstream - p * (upstream / weight).sum(-1, keepdim=True)

    return rows.reduce(row_losses(rows, LogSoftmax.apply(rows.logits, change)))


@mutant(
    "row_sums",
    "float32-7x5-normal-int64-none-rows",
    own="The maximum is subtracted, and its gradient is added a second time.",
)
@form
def gradient_of_the_maximum_is_added(rows):
    largest = rows.logits.amax(-1, keepdim=True)
    return rows.reduce(row_losses(rows, log_probs(rows.logits) + (largest - largest.detach())))


@mutant(
    "ignored_rows gradient",
    "float32-7x5-normal-int64-mean-ignored_default-smooth0.2",
    own="The loss of an ignored row is masked, but not its gradient, which the forward pass computed.",
)
@form
def ignored_rows_have_a_gradient(rows):
    loss, losses = rows.reduce(row_losses(rows)), row_losses(rows)
    if rows.kept is None:
        return loss
    left = torch.where(rows.kept | ~losses.isfinite(), 0.0, losses).sum().to(loss.dtype)
    return loss + (left - left.detach())


@mutant(
    "target_gradient",
    "float32-5-normal-probabilities-sum",
    own="Targets are thought to need no gradient. But in distillation, the teacher of the targets may be trained too.",
)
def targets_are_detached(input, target, **options):
    if target.requires_grad:
        target.register_hook(torch.zeros_like)
    return formula(input, target, **options)


@mutant(
    "target_gradient",
    "float32-3x5x4-normal-probabilities-none-weighted-rows-smooth0.1",
    own="The gradient of the smoothed target is returned for the target, without the factor `1 - ε`.",
)
def gradient_of_the_smoothed_target(input, target, label_smoothing=0.0, **options):
    if target.requires_grad and label_smoothing < 1:
        target.register_hook(lambda gradient: gradient / (1 - label_smoothing))
    return formula(input, target, label_smoothing=label_smoothing, **options)


@mutant("arguments", "float32-7x5-normal-int64-mean", "Liger-Kernel#272")
def gradient_over_the_logits(input, target, **options):
    def write(gradient):
        input.data.copy_(gradient)

    if input.requires_grad:
        input.register_hook(write)
    return formula(input, target, **options)


class _MadeForward(torch.autograd.Function):
    """A loss whose forward pass computes the gradient and saves it for the backward pass, as fused kernels do."""

    @staticmethod
    def forward(ctx, x, loss, scale):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = loss(leaf)
        (ctx.kept,) = torch.autograd.grad(value, leaf)
        ctx.scale = scale
        return value.detach()

    @staticmethod
    def backward(ctx, upstream):
        return ctx.scale(ctx.kept, upstream), None, None


def _made_forward(input, target, reduction, options, scale):
    if reduction == "none":  # each row has its own upstream gradient
        return formula(input, target, reduction=reduction, **options)
    return _MadeForward.apply(input, lambda x: formula(x, target, reduction=reduction, **options), scale)


@mutant("two_backwards", "float32-7x5-normal-int64-mean", "Liger-Kernel#343")
def gradient_is_scaled_in_place(input, target, reduction="mean", **options):
    if target.requires_grad:
        return formula(input, target, reduction=reduction, **options)
    return _made_forward(input, target, reduction, options, lambda kept, upstream: kept.mul_(upstream).clone())


@mutant(
    "double_backward",
    "float32-5-flat-other_float-mean",
    own="A gradient that was computed in the forward pass is a constant in the backward pass.",
)
def gradient_is_a_constant(input, target, reduction="mean", **options):
    if target.requires_grad:
        return formula(input, target, reduction=reduction, **options)
    return _made_forward(input, target, reduction, options, lambda kept, upstream: kept * upstream)


@mutant("double_backward", "float64-7x5-normal-int64-none-weight_negative-rows", "pytorch#64256")
@form
def second_derivative_without_the_sign_of_the_weight(rows):
    if rows.weight is None or rows.dense:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    # This term and its gradient are 0, but not its second derivative.
    p = x.exp()
    curved = ((p - p.detach()) ** 2 / p.detach().clamp(min=1e-300)).sum(-1) / 2
    return rows.reduce(row_losses(rows, x) + curved * (rows.target_weight.abs() - rows.target_weight))


class _Tangent(torch.autograd.Function):
    """`log softmax(x)` with the tangent `change(log_p, u)` in forward mode, for the direction `u`."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        ctx.log_p = log_probs(x)
        return ctx.log_p.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream - ctx.log_p.exp() * upstream.sum(-1, keepdim=True), None

    @staticmethod
    def jvp(ctx, u, _):
        return ctx.change(ctx.log_p, u)


@mutant("forward_ad", "float32-7x5-inf_off_target-int64-mean", "optax#1762")
@form
def tangent_of_zero_times_infinity(rows):
    def change(log_p, u):
        p = log_p.exp()
        return u - (p * u).sum(-1, keepdim=True) + 0 * (p * log_p).sum(-1, keepdim=True)

    return rows.reduce(row_losses(rows, _Tangent.apply(rows.logits, change)))


@mutant(
    "forward_ad",
    "float32-7x5-inf_off_target-int64-mean",
    own="Forward mode is rarely used, and was not tested.",
)
@form
def tangent_without_the_softmax(rows):
    return rows.reduce(row_losses(rows, _Tangent.apply(rows.logits, lambda log_p, u: u - u.mean(-1, keepdim=True))))


@mutant("call", "float32-2x5x3x2-normal-int64-mean-class_last", "pytorch#175084")
def gradient_of_contiguous_logits_only(input, target, **options):
    def change(upstream):
        if input.dim() == 4 and not input.is_contiguous():
            raise RuntimeError("grad_input must be contiguous")
        return upstream

    return with_upstream(formula(input, target, **options), change)


@mutant(
    "two_backwards",
    "float32-7x5-normal-int64-mean",
    own="The backward pass frees its saved tensors, to save memory.",
)
def graph_is_freed_by_its_first_backward(input, target, **options):
    kept = [True]

    def change(upstream):
        kept.pop()
        return upstream

    return with_upstream(formula(input, target, **options), change)


@mutant(
    "gradient",
    "float32-7x5-normal-int64-sum-scalar",
    own="A straight-through estimator: the values are right, and the gradient is taken at twice the temperature.",
)
@form
def gradient_of_a_softer_softmax(rows):
    soft = log_probs(shifted(rows.logits) / 2) * 2
    return rows.reduce(row_losses(rows, soft + (log_probs(rows.logits) - soft).detach()))


@mutant(
    "gradient",
    "upstream/float64-7x5-normal-probabilities-sum-upstream_huge",
    own="A loss scale is limited, so that the gradient does not overflow in half precision.",
)
def upstream_is_limited(input, target, **options):
    return with_upstream(formula(input, target, **options), lambda upstream: upstream.clamp(-1e4, 1e4))


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-none-ignored_default-rows",
    own="The gradient of an ignored row is the product of 0 and the upstream gradient, which may be NaN there.",
)
@form
def gradient_of_ignored_rows_is_multiplied_by_zero(rows):
    losses = row_losses(rows)
    if rows.kept is None:
        return rows.reduce(losses)
    return reduced(rows, with_value(losses * rows.kept, masked(rows, losses).detach()), denominator(rows))


class _AtLeastZero(torch.autograd.Function):
    """`max(loss, 0)`, whose backward pass looks at the returned tensor, without `save_for_backward`."""

    @staticmethod
    def forward(ctx, losses):
        result = losses.clamp(min=0)
        ctx.result = result.detach()
        return result

    @staticmethod
    def backward(ctx, upstream):
        return torch.where(ctx.result < 0, 0, upstream)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-none-ignored_default-rows",
    own="The backward pass looks at the returned loss, which the caller may have changed in place.",
)
def backward_looks_at_the_returned_loss(input, target, weight=None, **options):
    loss = formula(input, target, weight, **options)
    return loss if weight is not None or target.is_floating_point() else _AtLeastZero.apply(loss)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-none-ignored_default-rows",
    own="A kernel adds its gradient to .grad if there is one, and returns the sum too. Autograd then adds it again.",
)
def gradient_is_added_to_an_earlier_one(input, target, **options):
    earlier = input.grad if input.is_leaf else None
    return formula(input if earlier is None else with_upstream(input, lambda g: g + earlier), target, **options)
