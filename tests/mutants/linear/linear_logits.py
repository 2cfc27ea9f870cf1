"""Mutants: wrong logits, and a wrong softmax of the logits."""

import torch
import torch.nn.functional as F
from chunked import Chunked, step
from right import mutant

_BIAS = "linear-float32-7x5-normal-int64-sum-bias-hidden16"
_PLAIN = "linear-float32-7x5-normal-int64-mean-hidden16"


@mutant("options loss gradient weight_gradient bias_gradient", _BIAS, "Liger-Kernel#144", "trl#7065", "unsloth-zoo#930")
@step("logits")
def bias_is_left_out(c, chunk):
    return c.h[chunk] @ c.w.mT


@mutant(
    "gradient weight_gradient bias_gradient",
    _BIAS,
    own="The backward pass computes the logits again. The bias was added later, and to the forward pass alone.",
)
@step("slope")
def bias_is_left_out_of_the_logits_of_the_gradient(c, chunk):
    given, c.b = c.b, 0.0
    d = Chunked.slope(c, chunk)
    c.b = given
    return d


@mutant("loss gradient weight_gradient", "linear-float32-7x5-large-int64-mean-scalar-hidden16", "trl#6629")
@step("logits")
def softcap_is_left_on(c, chunk):
    return 30 * torch.tanh(Chunked.logits(c, chunk) / 30)


@mutant("loss gradient weight_gradient", _PLAIN, "trl#5575", "trl#6629", "unsloth-zoo#930")
@step("logits")
def logit_scale_is_left_on(c, chunk):
    return Chunked.logits(c, chunk) / c.h.shape[1] ** 0.5


@mutant("loss gradient weight_gradient", _PLAIN, "flash-linear-attention#1231", "verl#2899")
@step("log_probs")
def padded_vocabulary_counts(c, z):
    return Chunked.log_probs(c, F.pad(z, (0, -z.shape[1] % 64)))[:, : z.shape[1]]


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-7x5-large-int64-mean-scalar-hidden16",
    own="The logits of a trained model are small, so their exponentials do not overflow.",
)
@step("log_probs")
def maximum_is_not_subtracted(c, z):
    return z - z.exp().sum(1, keepdim=True).log()


@mutant("loss gradient weight_gradient", _PLAIN, own="Both factors are rounded, as under autocast.")
@step("operand")
def factors_are_rounded_to_bfloat16(c, factor):
    return factor.bfloat16().to(c.rows.compute)


@mutant("sign loss", "linear-bfloat16-33x129-confident-int64-none-rows-hidden129", "verl#2656")
@step("row_losses")
def logit_of_the_true_class_is_wider_than_the_others(c, chunk):
    z = Chunked.logits(c, chunk)
    losses = c.narrow(z).logsumexp(1, keepdim=True) - z
    return c.masked((c.coefficients(chunk) * losses).sum(1), chunk)
