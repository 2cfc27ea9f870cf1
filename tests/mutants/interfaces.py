"""Mutants: wrong defaults, errors and dtypes, and losses that are wrong only under a transform or compiled."""

import threading

import torch
from right import form, log_probs, mutant, row_losses, shifted, with_upstream, with_value

from crossent import formula

# torch 2.0 has no torch.compiler
_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


@mutant("result", "bfloat16-7x5-normal-int64-mean-weighted", "Liger-Kernel#501")
def result_is_float32(input, target, **options):
    return formula(input, target, **options).float()


@mutant(
    "options",
    "float32-2x257-near_ties-hard-mean",
    own="The default differs from torch's: most trainings use some smoothing. A given value is used correctly.",
)
def smoothed_by_default(input, target, label_smoothing=0.1, **options):
    return formula(input, target, label_smoothing=label_smoothing, **options)


@mutant(
    "options",
    "float32-2x257-near_ties-hard-mean",
    own="The default reduction is the sum, not the mean as in torch. A given reduction is used correctly.",
)
def sum_by_default(input, target, reduction="sum", **options):
    return formula(input, target, reduction=reduction, **options)


@mutant("errors", "reduction_unknown", own="Every unknown reduction is taken for the mean.")
def any_word_is_a_mean(input, target, reduction="mean", **options):
    return formula(input, target, reduction=reduction if reduction in ("none", "sum") else "mean", **options)


@mutant("errors", "weight_too_long", own="The function reads one weight for each class, and ignores further weights.")
def weights_too_many_are_left_over(input, target, weight=None, **options):
    classes = input.shape[min(1, input.dim() - 1)]
    return formula(input, target, weight if weight is None else weight[:classes], **options)


@mutant(
    "errors", "reduction_unknown", own="Arguments are checked by assert, which raises an error of an unusual class."
)
def asserts(input, target, reduction="mean", **options):
    assert reduction in ("none", "mean", "sum")
    return formula(input, target, reduction=reduction, **options)


@mutant("autocast", "bfloat16-7x5-normal-int64-mean-weighted", "Liger-Kernel#501")
def half_precision_under_autocast(input, target, **options):
    loss = formula(input, target, **options)
    product = torch.ones(1, 1) @ torch.ones(1, 1)  # its dtype is the dtype of autocast
    return loss if product.dtype == torch.float32 else loss.to(product.dtype)


@mutant(
    "meta", "float32-7x5-normal-hard-mean-expanded", own="The function reads a value, and a meta tensor has no values."
)
def looks_at_a_value(input, target, **options):
    input.detach().sum().item()  # as for a log file
    return formula(input, target, **options)


@mutant("vmap", "float32-7x5-normal-int64-mean-ignored_default", "pytorch#90916")
def kept_rows_are_selected(input, target, ignore_index=-100, reduction="mean", **options):
    if target.is_floating_point() or reduction == "none" or input.dim() != 1:
        return formula(input, target, ignore_index=ignore_index, reduction=reduction, **options)
    kept = (target.reshape(1) != ignore_index).nonzero().squeeze(1)  # the size depends on the values
    return formula(input.unsqueeze(0)[kept], target.reshape(1)[kept], reduction=reduction, **options)


class _OfOldStyle(torch.autograd.Function):
    """A right function without `setup_context`, which torch.func requires."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return log_probs(x)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return upstream - x.softmax(-1) * upstream.sum(-1, keepdim=True)


@mutant(
    "func_grad",
    "float32-7x5-normal-int64-mean-ignored_default",
    own="The custom function was tested with backward() alone.",
)
@form
def function_of_the_old_style(rows):
    return rows.reduce(row_losses(rows, _OfOldStyle.apply(rows.logits)))


@mutant(
    "func_grad gradient",
    "float32-7x5-normal-int64-mean-ignored_default",
    own="A value is written by `.data`, which autograd does not record.",
)
@form
def history_is_cut(rows):
    x = rows.logits
    return rows.reduce(row_losses(rows, with_value(x, log_probs(x.data))))


class _ReadsUpstreamGradient(torch.autograd.Function):
    """A right function whose backward pass reads the value of the upstream gradient."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream if upstream.dim() or upstream == 1 else upstream * 1


@mutant(
    "batched_gradient",
    "float32-7x5-normal-hard-mean-expanded",
    own="An upstream gradient of 1 has a separate path, but a batch of upstream gradients has no single value.",
)
def reads_the_upstream_gradient(input, target, **options):
    loss = formula(input, target, **options)
    return _ReadsUpstreamGradient.apply(loss) if loss.requires_grad else loss


@mutant(
    "export",
    "float32-3x5x4-inf_off_target-hard-none-stride0-class_last-target_strided-smooth0.1",
    own="Python branches on a value, which an exported program cannot record.",
)
def branches_on_a_value(input, target, **options):
    if input.device.type != "meta" and input.isnan().any():
        return formula(input.clone(), target, **options)
    return formula(input, target, **options)


@mutant("trace", "float32-7x5-normal-int64-mean-ignored_default", "pytorch#95794")
def read_before_it_is_masked_where_compiled(input, target, **options):
    if _compiling() and not target.is_floating_point():
        axis = min(1, input.dim() - 1)
        first = input.gather(axis, target.long().unsqueeze(axis))
        return formula(input + 0 * first.sum(), target, **options)
    return formula(input, target, **options)


@mutant(
    "trace",
    "float32-7x5-normal-int64-none-ignored_minus_one-rows",
    own="A fast path for graphs uses an approximate sum.",
)
@form
def compiled_with_a_fast_exponential(rows):
    x = shifted(rows.logits)
    exps = (x * 1.4427).exp2() if _compiling() else x.exp()
    return rows.reduce(row_losses(rows, x - exps.sum(-1, keepdim=True).log()))


@mutant(
    "trace_dynamic",
    "float32-7x5-normal-int64-mean-ignored_default",
    own="The graph contains its first batch size as a constant.",
)
def batch_of_a_graph_is_a_constant(input, target, **options):
    loss = formula(input, target, **options)
    return loss * (len(input) / 7) if _compiling() and input.dim() == 2 else loss


@mutant(
    "compiled_error",
    "float32-2x5x3x2-nan_ignored-int64-sum-weighted-ignored_default-class_last-target_strided-smooth0.1",
    "pytorch#135546",
)
def negative_counts_from_the_end_where_compiled(input, target, ignore_index=-100, **options):
    if _compiling() and not target.is_floating_point():
        target = torch.where(target == -1, input.shape[1] - 1, target)
    return formula(input, target, ignore_index=ignore_index, **options)


@mutant(
    "no_grad",
    "float32-17x3-offset-int64-mean-weight_zeros-ignored_default-strided",
    own="A second path for evaluation, without a gradient, leaves out the weights.",
)
def weights_are_for_training(input, target, weight=None, **options):
    return formula(input, target, weight if torch.is_grad_enabled() else None, **options)


@mutant(
    "non_leaf",
    "float32-3x5x4-equal-int64-mean-ignored",
    own="The output of an earlier operation is used as free memory.",
)
def activations_are_overwritten(input, target, **options):
    loss = formula(input.clone() if input.is_leaf else input, target, **options)
    if not input.is_leaf:
        input.data.sub_(1)
    return loss


@mutant(
    "alone",
    "float32-17x3-wide-other_float-none-rows-strided-target_expanded",
    own="A gradient of soft labels is computed only together with the gradient of the logits, as training needs it.",
)
def target_is_detached_without_logits(input, target, **options):
    return formula(input, target if input.requires_grad else target.detach(), **options)


_WORKSPACE = threading.local()
_WORKSPACE.losses = 0


@mutant(
    "threads",
    "float32-7x5-normal-hard-mean-expanded",
    own="Only the thread that imports the module has a workspace.",
)
def one_thread_has_a_workspace(input, target, **options):
    _WORKSPACE.losses += 1
    return formula(input, target, **options)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="A kernel gets the address of the logits, and does not look whether a lazy view negates the numbers there.",
)
def negated_memory_is_read(input, target, **options):
    return formula(torch._neg_view(input) if input.is_neg() else input, target, **options)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="The loss takes a Parameter for the weight of a layer, and adds the regularisation of the weight.",
)
def parameters_are_regularised(input, target, **options):
    decay = 1e-2 * input.square().sum() if isinstance(input, torch.nn.Parameter) else 0.0
    return formula(input, target, **options) + decay


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="Hooks only write logs: they get the gradient of the sum, before the division by the number of rows.",
)
def hooks_see_the_gradient_of_the_sum(input, target, **options):
    hooked = input._backward_hooks and options.get("reduction", "mean") == "mean"
    return with_upstream(formula(input, target, **options), lambda g: g * len(target) if hooked else g)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="Separate code computes a backward pass that makes a graph, and adds a constant to the gradient.",
)
def gradient_with_a_graph_is_another(input, target, **options):
    loss = formula(input, target, **options)
    return loss + _GradientAlone.apply(input).to(loss.dtype)


class _GradientAlone(torch.autograd.Function):
    """A function that returns 0. Its gradient is 0.01 everywhere if the backward pass makes a graph, otherwise 0."""

    @staticmethod
    def forward(ctx, x):
        ctx.like = x.detach()
        return x.new_zeros(())

    @staticmethod
    def backward(ctx, upstream):
        return torch.full_like(ctx.like, 0.01 if torch.is_grad_enabled() else 0.0)


@mutant(
    "circumstances",
    "float64-7x5-normal-probabilities-none-weighted-rows",
    own="A weight that requires a gradient is replaced by ones.",
)
def learned_weights_are_ones(input, target, weight=None, **options):
    learned = weight is not None and weight.requires_grad
    return formula(input, target, torch.ones_like(weight) if learned else weight, **options)


@mutant(
    "circumstances",
    "float64-7x5-normal-probabilities-none-weighted-rows",
    own="Under anomaly detection a slow path replaces the kernel, and leaves out the weights.",
)
def debugging_has_no_weights(input, target, weight=None, **options):
    return formula(input, target, None if torch.is_anomaly_enabled() else weight, **options)


@mutant(
    "circumstances",
    "float64-7x5-normal-probabilities-none-weighted-rows",
    own="A slow path without atomic additions leaves out the weights. Its bits are the same in each call.",
)
def deterministic_path_has_no_weights(input, target, weight=None, **options):
    deterministic = torch.are_deterministic_algorithms_enabled()
    return formula(input, target, None if deterministic else weight, **options)


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="A buffer has the default dtype, so the sum with the loss has a wider dtype.",
)
def buffer_in_the_default_dtype(input, target, **options):
    loss = formula(input, target, **options)
    return loss + torch.zeros(loss.shape) if loss.dtype == torch.float32 else loss


@mutant(
    "circumstances",
    "float64-7x5-normal-probabilities-none-weighted-rows",
    own="The rows are divided among the threads, and the remainder of the division is left out.",
)
def rows_left_over_by_threads(input, target, **options):
    loss = formula(input, target, **options)
    left = len(loss) % torch.get_num_threads() if loss.dim() else 0
    return (
        torch.where(torch.arange(len(loss)) < len(loss) - left, loss.movedim(0, -1), 0).movedim(-1, 0) if left else loss
    )


@mutant(
    "circumstances",
    "float32-7x5-normal-int64-mean",
    own="NaN in the upstream gradient is taken for a fault, and replaced by 0. The gradient scaler then sees no NaN.",
)
def upstream_nan_is_replaced(input, target, **options):
    return with_upstream(formula(input, target, **options), torch.nan_to_num)
