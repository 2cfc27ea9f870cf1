"""Mutants: an intermediate result is rounded to the dtype, or to fewer bits, where float32 is promised."""

import torch
from chunked import Chunked, step, tiles
from right import mutant

_NONE = "linear-bfloat16-7x5-confident-int64-none-weighted-ignored_first-rows-bias-smooth0.1-hidden16"
_PLAIN = "linear-bfloat16-7x5-normal-int64-mean-hidden16"


@mutant("gradient weight_gradient", _PLAIN, own="F.linear returns logits in the dtype of the hidden states.")
@step("logits")
def logits_are_kept_in_the_dtype(c, chunk):
    return c.narrow(Chunked.logits(c, chunk))


@mutant("loss shift", "linear-bfloat16-7x5-common_offset-int64-none-rows_large-bias-hidden16", "marin#8217")
@step("row_losses")
def logits_of_the_loss_are_kept_in_the_dtype(c, chunk):
    z = c.narrow(Chunked.logits(c, chunk))
    return c.masked(-(c.coefficients(chunk) * c.log_probs(z)).sum(1), chunk)


@mutant("gradient weight_gradient", _PLAIN, "marin#8217")
@step("log_probs")
def logsumexp_is_kept_in_the_dtype(c, z):
    return z - c.narrow(z.logsumexp(1, keepdim=True))


@mutant("gradient weight_gradient", _PLAIN, "pytorch#187053")
@step("log_probs")
def exponentials_are_added_up_in_the_dtype(c, z):
    x = z - z.amax(1, keepdim=True)
    return x - c.narrow(c.narrow(x.exp()).sum(1, keepdim=True)).log()


@mutant(
    "widened gradient weight_gradient",
    _PLAIN,
    own="The gradient is written over the logits, in their dtype.",
)
@step("slope")
def logits_gradient_is_kept_in_the_dtype(c, chunk):
    return c.narrow(Chunked.slope(c, chunk))


@mutant(
    "gradient weight_gradient bias_gradient",
    _NONE,
    "Liger-Kernel#1329",
    "Liger-Kernel#1419",
    "flash-linear-attention#1231",
)
@step("slope")
def probability_is_rounded_before_the_target_is_subtracted(c, chunk):
    p, v = c.log_probs(c.logits(chunk)).exp(), c.coefficients(chunk)
    return c.scale(chunk) * (c.narrow(p * v.sum(1, keepdim=True)) - v)


@mutant("gradient", "linear-bfloat16-2x32000-confident-int64-mean-hidden16", "ml-cross-entropy#18", "Megatron-LM#2739")
@step("input_gradient")
def input_gradient_is_added_up_over_tiles_in_the_dtype(c, d, chunk):
    total = torch.zeros_like(c.h[chunk])
    for classes in tiles(len(c.w), 8):
        total = c.narrow(total + d[:, classes] @ c.w[classes])
    return total


@mutant("loss gradient weight_gradient", "linear-float32-7x5-normal-int64-mean-hidden16", "marin#8368")
@step("operand")
def products_are_in_tf32(c, factor):
    if factor.dtype != torch.float32:
        return factor.to(c.rows.compute)
    bits = factor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)  # 10 bits of the fraction


@mutant("gradient", "linear-float32-7x5-normal-int64-mean-hidden16", "marin#8368")
@step("input_gradient")
def input_gradient_is_in_bfloat16(c, d, chunk):
    return (d @ c.w).bfloat16().to(d.dtype)


@mutant(
    "loss gradient weight_gradient",
    "linear-float64-7x5-normal-int64-sum-bias-hidden16",
    own="torchtune's chunked loss calls `.float()` on the logits, whatever their dtype is.",
)
@step("logits")
def logits_of_float64_are_in_float32(c, chunk):
    return Chunked.logits(c, chunk).float().to(c.rows.compute)


@mutant(
    "loss",
    "linear-bfloat16-33x129-confident-int64-none-rows-hidden129",
    own="The softmax is stored in the dtype for the backward pass, and the loss is its logarithm.",
)
@step("row_losses")
def loss_is_the_logarithm_of_a_rounded_probability(c, chunk):
    p, v = c.narrow(c.log_probs(c.logits(chunk)).exp()), c.coefficients(chunk)
    return c.masked(-torch.special.xlogy(v, p).sum(1), chunk)


@mutant(
    "weight_gradient",
    "linear-bfloat16-7x5-large-int64-mean-scalar-hidden16",
    own="In place of the gradient of the logits, the hidden states are divided by the number of rows, in their dtype.",
)
@step("add")
def hidden_states_are_scaled_in_the_dtype(c, d, chunk):
    count = len(c.h)
    c.grad_w += (d * count).mT @ c.narrow(c.h[chunk] / count)
    c.grad_b += d.sum(0)
