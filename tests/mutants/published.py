"""Mutants: published bugs whose mechanism is in no other file of this folder."""

import torch
import torch.nn.functional as F
from right import LogSoftmax, denominator, form, log_probs, masked, mutant, reduced, row_losses, shifted, with_upstream

from crossent import formula

_HALVES = (torch.float16, torch.bfloat16)


def _class_axis(tensor):
    return min(1, tensor.dim() - 1)


@mutant("loss gradient", "float32-7x5-normal-int64-mean-weighted-ignored_zero", "burn#5568")
@form
def mean_over_the_weight_of_all_rows(rows):
    by = denominator(rows)
    if rows.index is not None:
        by = rows.index.numel() if rows.weight is None else rows.weight[rows.index].sum()
    return reduced(rows, masked(rows, row_losses(rows)), by)


@mutant("loss gradient", "float32-7x5-normal-int64-mean-ignored_minus_one", "AMDMIGraphX#3008")
def ignore_index_is_a_class_without_weight(input, target, weight=None, ignore_index=-100, **options):
    if target.is_floating_point() or ignore_index == -100:  # the default counts as not given
        return formula(input, target, weight, ignore_index, **options)
    classes = input.shape[_class_axis(input)]
    table = torch.ones(classes, dtype=input.dtype) if weight is None else weight.clone()
    table[ignore_index] = 0
    return formula(input, torch.where(target == ignore_index, ignore_index % classes, target), table, **options)


@mutant("loss gradient", "float32-7x5-normal-int64-mean-weighted", "tf_unet#8")
def weights_multiply_the_logits(input, target, weight=None, **options):
    if weight is None:
        return formula(input, target, **options)
    axis = _class_axis(input)
    return formula((input.movedim(axis, -1) * weight).movedim(-1, axis), target, **options)


@mutant("loss", "float16-3x1025-wide-int64-none-rows-smooth0.1", "transformers#10674")
@form
def smoothing_is_summed_in_float16(rows):
    x = log_probs(rows.logits)
    if rows.index is None or rows.label_smoothing in (0, 1) or rows.dtype != torch.float16:
        return rows.reduce(row_losses(rows))
    total = rows.weighted(x).sum(-1)
    total = total + (total.half().float() - total).detach()  # infinite beyond 65504
    hard = (1 - rows.label_smoothing) * rows.weigh(rows.pick(x))
    return rows.reduce(-hard - total * (rows.label_smoothing / x.shape[-1]))


@mutant("loss gradient", "float32-7x5-normal-int64-mean-smooth0.1", "pytorch-randaugment#30")
@form
def smoothing_takes_the_share_of_one_class(rows):
    if rows.index is None or rows.label_smoothing == 0:
        return rows.reduce(row_losses(rows))
    x = log_probs(rows.logits)
    share = rows.label_smoothing / x.shape[-1]
    return rows.reduce(-(1 - share) * rows.weigh(rows.pick(x)) - share * rows.weighted(x).sum(-1))


@mutant("loss gradient sign", "float32-7x5-normal-int64-none-rows", "verl#3852", "EasyR1#50")
def log_probability_instead_of_a_loss(input, target, reduction="mean", **options):
    loss = formula(input, target, reduction=reduction, **options)
    return -loss if reduction == "none" else loss


@mutant("arguments", "float32-7x5-normal-int64-mean", "Megatron-LM#1594", "verl#1672")
def softmax_in_place_of_float32_logits(input, target, **options):
    loss = formula(input.clone(), target, **options)
    wide = input.detach().float()  # if the logits are float32, this is the caller's tensor
    if wide.numel():
        wide.sub_(wide.amax(_class_axis(wide), keepdim=True)).exp_()
    return loss


class _Saved(torch.autograd.Function):
    """A loss whose forward pass computes and saves the gradient. The backward pass scales the saved tensor in place."""

    @staticmethod
    def forward(ctx, x, loss):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = loss(leaf)
        ctx.save_for_backward(*torch.autograd.grad(value, leaf))
        return value.detach()

    @staticmethod
    def backward(ctx, upstream):
        (saved,) = ctx.saved_tensors
        return saved.mul_(upstream).clone(), None


@mutant("two_backwards", "float32-7x5-normal-int64-mean-scalar", "quack#209")
def saved_gradient_is_scaled_where_it_is(input, target, reduction="mean", **options):
    if reduction == "none" or target.requires_grad:
        return formula(input, target, reduction=reduction, **options)
    return _Saved.apply(input, lambda x: formula(x, target, reduction=reduction, **options))


class _ReadBack(torch.autograd.Function):
    """`-log p` of the true class. The gradient is rounded to a dtype, and then 1 is subtracted for the true class."""

    @staticmethod
    def forward(ctx, x, index, dtype):
        ctx.save_for_backward(x.softmax(-1), index)
        ctx.dtype = dtype
        return -log_probs(x).gather(-1, index).squeeze(-1)

    @staticmethod
    def backward(ctx, upstream):
        p, index = ctx.saved_tensors
        upstream = upstream.unsqueeze(-1)
        stored = (p * upstream).to(ctx.dtype).to(p.dtype)
        return stored.scatter_add(-1, index, -upstream).to(ctx.dtype).to(p.dtype), None, None


@mutant(
    "gradient",
    "bfloat16-7x5-confident-int64-none-rows",
    "Liger-Kernel#1329",
    "Liger-Kernel#1341",
    "Liger-Kernel#1419",
)
@form
def true_class_is_read_back_rounded(rows):
    if rows.dense:
        return rows.reduce(row_losses(rows))
    return rows.reduce(rows.weigh(_ReadBack.apply(rows.logits, rows.index.unsqueeze(-1), rows.dtype)))


@mutant("gradient", "bfloat16-7x5-wide-int64-none-rows", "ml-cross-entropy#14", "ml-cross-entropy#18")
@form
def small_probabilities_have_no_gradient(rows):
    def change(p, upstream):
        gradient = upstream - p * upstream.sum(-1, keepdim=True)
        return torch.where((p < 2**-12) & (upstream == 0), 0.0, gradient)

    log_p = LogSoftmax.apply(rows.logits, change) if rows.dtype in _HALVES else None
    return rows.reduce(row_losses(rows, log_p))


@mutant("gradient", "float32-40x2-normal-int64-none-ignored_minus_one-rows", "FlagGems#5025")
def gradient_of_ignored_rows_is_stored_outside_them(input, target, weight=None, ignore_index=-100, **options):
    smoothing = options.get("label_smoothing", 0.0)
    if target.is_floating_point() or input.dim() != 2 or smoothing or not target.numel():
        return formula(input, target, weight, ignore_index, **options)
    rows, classes = input.shape
    at = torch.arange(rows) * classes + target.long()
    at = at[(target == ignore_index) & (at >= 0) & (at < rows * classes)]

    def change(gradient):
        stored = gradient.reshape(-1).clone()
        stored[at] = 0
        return stored.view(gradient.shape)

    wide = torch.float32 if input.dtype in _HALVES else input.dtype
    log_p = with_upstream(F.log_softmax(input.to(wide), 1), change)
    weight = None if weight is None else weight.to(wide)
    options.pop("label_smoothing", None)
    return F.nll_loss(log_p, target, weight, ignore_index=ignore_index, **options).to(input.dtype)


@mutant("gradient", "float32-7x8-normal-int64-none-rows", "ms-swift#9947")
@form
def shards_without_the_target_have_no_gradient(rows):
    half = rows.logits.shape[-1] // 2
    if rows.index is None or half == 0:
        return rows.reduce(row_losses(rows))

    def change(gradient):
        in_second = torch.arange(gradient.shape[-1]) >= half
        return torch.where(in_second == (rows.index.unsqueeze(-1) >= half), gradient, 0.0)

    return rows.reduce(row_losses(rows, log_probs(with_upstream(rows.logits, change))))


@mutant("gradient", "float32-7x5-normal-unnormalised-none-rows", "meganeura#102")
@form
def gradient_of_probabilities_that_add_up_to_one(rows):
    def change(p, upstream):
        return upstream - p * upstream.sum(-1, keepdim=True) / rows.probabilities.detach().sum(-1, keepdim=True)

    log_p = None if rows.probabilities is None else LogSoftmax.apply(rows.logits, change)
    return rows.reduce(row_losses(rows, log_p))


@mutant("loss gradient", "float32-7x5-negative_offset-int64-none-rows", "tinyengine#107", "NNlib.jl#43")
@form
def maximum_starts_at_zero(rows):
    if rows.logits.numel() == 0:
        return rows.reduce(row_losses(rows))
    x = rows.logits - rows.logits.detach().amax(-1, keepdim=True).clamp(min=0)
    return rows.reduce(row_losses(rows, x - x.exp().sum(-1, keepdim=True).log()))


@mutant("loss gradient", "float32-2x32000-negative_offset-int64-none-rows", "llama.cpp#11257", "llama.cpp#10467")
@form
def rows_beyond_shared_memory_are_not_computed(rows):
    in_memory = rows.logits.shape[-1] * 4 <= 48 * 1024
    return rows.reduce(row_losses(rows) if in_memory else 0 * shifted(rows.logits).sum(-1))
