"""Mutants: gradients by hand that lack a term, have a wrong factor, or are missing if another leaf is frozen."""

import torch
import torch.nn.functional as F
from chunked import Chunked, linear, right_on_chunks, step, tiles
from right import mutant, with_upstream

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


@mutant(
    "circumstances",
    "linear-float32-7x5-normal-int64-mean-hidden16",
    own="A kernel adds its gradient to .grad if there is one, and returns the sum too. Autograd then adds it again.",
)
def weight_gradient_is_added_to_an_earlier_one(input, linear_weight, target, **options):
    earlier = linear_weight.grad if linear_weight.is_leaf else None
    weight = linear_weight if earlier is None else with_upstream(linear_weight, lambda g: g + earlier)
    return right_on_chunks(input, weight, target, **options)


@mutant(
    "gradient loss weight_gradient bias_gradient",
    "linear-float32-4099x3-normal-int64-none-rows-bias-hidden2",
    own="A buffer has room for the hidden states of 4,096 rows, and further rows are zeros.",
)
def rows_beyond_4096_are_zeros(input, linear_weight, target, **options):
    rows = torch.arange(len(input), device=input.device)[:, None]
    return right_on_chunks(torch.where(rows < 4096, input, 0), linear_weight, target, **options)


@mutant(
    "weight_gradient",
    "linear-float32-1x65539-normal-int64-none-rows-bias-hidden2",
    own="The number of a block of classes has 16 bits, and the gradients of further classes are never written.",
)
def classes_beyond_65536_have_no_gradient(input, linear_weight, target, **options):
    weight = torch.cat([linear_weight[:65536], linear_weight[65536:].detach()])
    return right_on_chunks(input, weight, target, **options)
