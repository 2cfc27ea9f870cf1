"""Mutants: gradients by hand that lack a term, have a wrong factor, or are missing if another leaf is frozen."""

import torch
import torch.nn.functional as F
from chunked import Chunked, linear, right_on_chunks, step, tiles
from right import mutant

_SMALL = "linear-float32-7x5-normal-int64-sum-bias-hidden16"
_HALVES = (torch.float16, torch.bfloat16)
_LARGE_VOCABULARY = "linear-bfloat16-2x32000-confident-int64-mean-hidden16"


@mutant(
    "alone",
    _SMALL,
    own="Liger's fused function computes no gradient if the hidden states need none, so a trained head gets none.",
)
@step("gradients")
def weight_has_no_gradient_if_the_input_is_frozen(c, upstream, wanted):
    return Chunked.gradients(c, upstream, wanted if wanted[0] else (False, False, False))


@mutant("alone", _SMALL, own="If the head is frozen, the layers before it are thought to be frozen too.")
@step("gradients")
def input_has_no_gradient_if_the_weight_is_frozen(c, upstream, wanted):
    return Chunked.gradients(c, upstream, wanted if wanted[1] else (False, False, False))


@mutant("alone", _SMALL, own="The gradient of the bias is computed in the branch of the weight's gradient.")
@step("gradients")
def bias_has_no_gradient_if_the_weight_is_frozen(c, upstream, wanted):
    return Chunked.gradients(c, upstream, (*wanted[:2], wanted[1] and wanted[2]))


@mutant("bias_gradient", _SMALL, "Liger-Kernel#144", "trl#7065")
@step("add")
def bias_gradient_is_zero(c, d, chunk):
    c.grad_w += d.mT @ c.h[chunk]


@mutant(
    "gradient weight_gradient bias_gradient",
    "linear-float32-7x5-normal-probabilities-mean-weighted-bias-hidden16",
    "Liger-Kernel#420",
)
@step("slope")
def class_weight_is_left_out_of_the_gradient(c, chunk):
    p, smoothing = c.log_probs(c.logits(chunk)).exp(), c.rows.label_smoothing
    q = (1 - smoothing) * c.hot(chunk) + smoothing / len(c.w)
    return c.scale(chunk) * (p * q.sum(1, keepdim=True) - q)


@mutant(
    "gradient weight_gradient bias_gradient",
    "linear-float32-7x5-confident-int64-none-weighted-ignored_first-rows-bias-smooth0.1-hidden16",
    "Liger-Kernel#198",
)
@step("slope")
def smoothing_is_left_out_of_the_gradient(c, chunk):
    p, v = c.log_probs(c.logits(chunk)).exp(), c.rows.weighted(c.hot(chunk))
    return c.scale(chunk) * (p * v.sum(1, keepdim=True) - v)


@mutant("gradient", _SMALL, own="A second kernel subtracts the target, for the gradient of the weight alone.")
@step("input_gradient")
def target_is_left_out_of_the_input_gradient(c, d, chunk):
    return (d + c.scale(chunk) * c.coefficients(chunk)) @ c.w


@mutant(
    "weight_gradient", _SMALL, own="As in an embedding, only rows of the weight that the batch uses get a gradient."
)
@step("add")
def weight_gradient_is_of_the_true_classes(c, d, chunk):
    Chunked.add(c, d, chunk)
    if c.rows.index is not None:
        c.grad_w[F.one_hot(c.rows.index, len(c.w)).sum(0) == 0] = 0


@mutant("classes_permuted gradient", "linear-float32-7x5-normal-int64-mean-hidden16", "ml-cross-entropy#42")
@step("input_gradient")
def input_gradient_is_of_one_shard_of_classes(c, d, chunk):
    half = (len(c.w) + 1) // 2
    return d[:, :half] @ c.w[:half]


@mutant("gradient weight_gradient", _LARGE_VOCABULARY, "ml-cross-entropy#14", "ml-cross-entropy#18")
@step("slope")
def small_gradients_are_filtered(c, chunk):
    d = Chunked.slope(c, chunk)
    small = (c.log_probs(c.logits(chunk)).exp() < 2**-12) & (c.hot(chunk) == 0)
    return torch.where(small, 0.0, d) if c.dtype in _HALVES else d


@mutant("weight_gradient", _LARGE_VOCABULARY, "ml-cross-entropy#14", "ml-cross-entropy#18")
@step("slope")
def tiles_of_small_gradients_are_filtered(c, chunk):
    d, p = Chunked.slope(c, chunk), c.log_probs(c.logits(chunk)).exp()
    small = (p < 2**-12) & (c.hot(chunk) == 0)
    for classes in tiles(len(c.w), 16):
        if c.dtype in _HALVES and small[:, classes].all():
            d[:, classes] = 0
    return d


@mutant(
    "call",
    _SMALL,
    own="Only the hidden states were trained in the first use of the function, with adapters below a frozen head.",
)
@linear
def weight_is_detached(rows, input, linear_weight, target, **options):
    return right_on_chunks(input, linear_weight.detach(), target, **options)


@mutant(
    "gradient weight_gradient bias_gradient",
    "linear-float32-7x5-normal-probabilities-mean-weighted-bias-hidden16",
    own="`p - q` is the gradient of a target that sums to one. With class weights, the target sums to another number.",
)
@step("slope")
def softmax_is_not_multiplied_by_the_sum_of_the_target(c, chunk):
    return c.scale(chunk) * (c.log_probs(c.logits(chunk)).exp() - c.coefficients(chunk))
