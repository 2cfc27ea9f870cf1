"""Mutants: ignored rows that count, wrong denominators of a mean, and batches without a row that counts."""

import torch
from chunked import Chunked, linear, right_on_chunks, step
from right import mutant

_ALL_IGNORED = "linear-float32-7x5-normal-int64-mean-ignored_all-bias-hidden16"
_IGNORED = "linear-float32-17x3-normal-int64-sum-ignored_default-bias-hidden3"


@mutant(
    "loss gradient weight_gradient bias_gradient",
    "linear-float32-7x5-integers-int64-mean-ignored-bias-hidden16",
    "unsloth#8959",
)
@step("divisor")
def mean_over_all_rows(c):
    return len(c.h) if c.rows.reduction == "mean" else 1


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-7x5-positive-int64-mean-weight_decades-ignored_class-hidden16",
    own="The divisor was the number of kept rows before the function had class weights.",
)
@step("divisor")
def mean_over_kept_rows(c):
    if c.rows.kept is None or c.rows.reduction != "mean":
        return Chunked.divisor(c)
    return torch.where(c.rows.kept.any(), c.rows.kept.sum(), torch.nan)


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-7x5-positive-int64-mean-weight_decades-ignored_class-hidden16",
    own="The weights are summed before ignored rows are masked. Here, the target of an ignored row is a class.",
)
@step("divisor")
def mean_over_the_weight_of_all_rows(c):
    if c.rows.index is None or c.rows.weight is None or c.rows.reduction != "mean":
        return Chunked.divisor(c)
    return c.rows.weight[c.rows.index].sum()


@mutant(
    "weight_gradient",
    "linear-bfloat16-7x5-positive-int64-mean-weight_decades-ignored_class-hidden16",
    own="The class weights have the dtype of the input, and so has their sum.",
)
@step("divisor")
def total_weight_is_kept_in_the_dtype(c):
    divisor = Chunked.divisor(c)
    return c.narrow(divisor) if isinstance(divisor, torch.Tensor) else divisor


@mutant(
    "loss gradient weight_gradient",
    "linear-bfloat16-4096x16-normal-int64-mean-hidden16",
    own="Each row adds 1 to a counter in the dtype. In bfloat16, 256 + 1 is 256.",
)
@step("divisor")
def rows_are_counted_in_the_dtype(c):
    divisor = Chunked.divisor(c)
    if c.rows.weight is not None or c.rows.reduction != "mean":
        return divisor
    return torch.as_tensor(divisor).clamp(max=2 / torch.finfo(c.dtype).eps)  # in the dtype, this + 1 is this


@mutant(
    "gradient weight_gradient bias_gradient ignored_rows",
    _ALL_IGNORED,
    own="F.linear_cross_entropy of torch 2.13 divides 0 by 0 on chunks. Without chunks, the gradients are 0.",
)
@step("scale")
def gradients_are_nan_if_all_rows_are_ignored(c, chunk):
    return (c.masked(c.upstream[chunk], chunk) / c.divisor())[:, None]


@mutant("loss", _ALL_IGNORED, "Automodel#3796", "unsloth#7677")
@step("divisor")
def mean_of_zero_rows_is_zero(c):
    divisor = Chunked.divisor(c)
    return divisor.nan_to_num(1.0) if isinstance(divisor, torch.Tensor) else divisor


@mutant("call", _ALL_IGNORED, "trl#6859")
@linear
def no_graph_if_all_rows_are_ignored(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    return loss if rows.kept is None or rows.kept.any() else loss.detach()


@mutant("loss", _IGNORED, own="Rows are masked in the gradient alone: their loss is thought to be 0.")
@step("row_losses")
def ignored_rows_have_a_loss(c, chunk):
    return -(c.coefficients(chunk) * c.log_probs(c.logits(chunk))).sum(1)


@mutant(
    "gradient bias_gradient ignored_rows",
    _IGNORED,
    own="Only the loss is masked, since autograd would then mask the gradient. But the gradient is written by hand.",
)
@step("scale")
def ignored_rows_have_a_gradient(c, chunk):
    return (c.upstream[chunk] / c.divisor())[:, None]


def _of_every_row(c, chunk):
    """Return the gradient of the logits, also in ignored rows."""
    kept, c.rows.kept = c.rows.kept, None
    try:
        return c.slope(chunk)
    finally:
        c.rows.kept = kept


@mutant(
    "weight_gradient",
    _IGNORED,
    own="Ignored rows are masked in the gradient of the input, but not in that of the weight.",
)
@step("add")
def ignored_rows_add_to_the_weight_gradient(c, d, chunk):
    c.grad_w += _of_every_row(c, chunk).mT @ c.leaves[0].detach()[chunk].to(c.w.dtype)
    c.grad_b += d.sum(0)


@mutant("bias_gradient", _IGNORED, own="Ignored rows get a hidden state of 0, which masks all but the bias.")
@step("add")
def ignored_rows_add_to_the_bias_gradient(c, d, chunk):
    c.grad_w += d.mT @ c.h[chunk]
    c.grad_b += _of_every_row(c, chunk).sum(0)


@mutant(
    "call",
    "linear-float32-7x5-integers-int64-mean-ignored-bias-hidden16",
    own="Chunked losses of language models know the ignore_index -100 alone.",
)
@linear
def rows_of_another_ignore_index_count(rows, input, linear_weight, target, ignore_index, **options):
    return right_on_chunks(input, linear_weight, target, **options)
