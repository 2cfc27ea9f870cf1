"""Mutants: the upstream gradient is ignored, read from wrong addresses, or multiplied too late or too often."""

import torch
import torch.nn.functional as F
from chunked import Chunked, step
from right import mutant

_ROWS = "linear-float32-7x5-confident-int64-none-weighted-ignored_first-rows-bias-smooth0.1-hidden16"
_SCALAR = "linear-float32-7x5-large-int64-mean-scalar-hidden16"


@mutant("gradient weight_gradient", _SCALAR, "Megatron-LM#1750", "TransformerEngine#2139")
@step("each_upstream")
def upstream_is_ignored(c, upstream):
    return Chunked.each_upstream(c, torch.ones_like(upstream))


@mutant("gradient weight_gradient bias_gradient", _ROWS, "Automodel#3853")
@step("each_upstream")
def upstream_is_that_of_the_first_row(c, upstream):
    return Chunked.each_upstream(c, upstream.flatten()[:1])


@mutant("weight_gradient bias_gradient", _ROWS, "Liger-Kernel#968", "Liger-Kernel#1298")
@step("add")
def weight_gradient_takes_the_upstream_of_the_first_row(c, d, chunk):
    given, c.upstream = c.upstream, c.upstream[:1].expand(len(c.h))
    Chunked.add(c, c.slope(chunk), chunk)
    c.upstream = given


@mutant(
    "gradient weight_gradient",
    "linear-float32-7x5-normal-int64-none-stride0-transposed-linear_transposed-hidden16",
    "TransformerEngine#2402",
    "rocm-TransformerEngine#623",
)
@step("each_upstream")
def upstream_is_read_as_if_contiguous(c, upstream):
    if upstream.dim() == 0:
        return Chunked.each_upstream(c, upstream)
    memory = torch.empty(0, dtype=upstream.dtype).set_(upstream.untyped_storage())[upstream.storage_offset() :]
    return Chunked.each_upstream(c, F.pad(memory, (0, len(c.h)))[: len(c.h)])


@mutant(
    "gradient weight_gradient",
    "linear-bfloat16-7x5-large-int64-mean-scalar-hidden16",
    own="The forward pass computes the gradients, rounds and stores them, and the backward pass multiplies them.",
)
@step("gradients")
def gradients_are_scaled_after_a_rounding(c, upstream, wanted):
    if c.rows.reduction == "none":
        return Chunked.gradients(c, upstream, wanted)
    stored = Chunked.gradients(c, torch.ones_like(upstream), wanted)
    return [one if one is None else one * upstream for one in stored]


@mutant("two_backwards", _SCALAR, "quack#209")
@step("differentiate")
def saved_gradients_are_scaled_where_they_are(c, upstream):
    if c.rows.reduction == "none":
        return Chunked.differentiate(c, upstream)
    c.saved = getattr(c, "saved", None) or Chunked.differentiate(c, torch.ones_like(upstream))
    return [one.mul_(upstream) for one in c.saved]


@mutant(
    "gradient weight_gradient bias_gradient",
    "linear-float32-7x5-normal-int64-mean-zero-bias-hidden16",
    own="The gradients are divided by the upstream gradient, which may be 0, and then multiplied by it.",
)
@step("differentiate")
def upstream_is_divided_out(c, upstream):
    found = Chunked.differentiate(c, upstream)
    return [one / upstream * upstream for one in found] if upstream.dim() == 0 else found


@mutant(
    "gradient weight_gradient", _SCALAR, own="Both the kernel and the code after it multiply by the upstream gradient."
)
@step("each_upstream")
def upstream_is_multiplied_twice(c, upstream):
    return Chunked.each_upstream(c, upstream * upstream)


@mutant("weight_gradient", _SCALAR, "Megatron-LM#1750")
@step("differentiate")
def upstream_multiplies_the_input_gradient_alone(c, upstream):
    grad_h = Chunked.differentiate(c, upstream)[0]
    return [grad_h, *Chunked.differentiate(c, torch.ones_like(upstream))[1:]]
