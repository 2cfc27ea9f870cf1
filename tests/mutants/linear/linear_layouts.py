"""Mutants: tensors are read as if they were contiguous, and arguments of a wrong shape are accepted."""

import torch
from chunked import Chunked, by_hand, linear, right_on_chunks, step
from right import mutant

_STRIDED = "linear-float32-7x5-normal-int64-mean-scalar-strided-target_strided-linear_strided-hidden16"
_TRANSPOSED = "linear-float32-7x5-normal-int64-none-stride0-transposed-linear_transposed-hidden16"


def _as_contiguous(tensor):
    """Return the numbers that code reads if it knows the start and the sizes of a tensor, but ignores its strides."""
    strides = [tensor.shape[at + 1 :].numel() for at in range(tensor.dim())]
    return tensor.as_strided(tensor.shape, strides) if tensor.numel() else tensor


@mutant("loss gradient weight_gradient", _TRANSPOSED, "Automodel#3854")
@step("operand")
def input_is_read_as_if_contiguous(c, factor):
    is_input = factor.shape == c.leaves[0].shape
    return (_as_contiguous(factor) if is_input else factor).to(c.rows.compute)


@mutant(
    "layout loss gradient weight_gradient",
    _TRANSPOSED,
    own="The weight of a linear layer is thought to be always contiguous.",
)
@step("operand")
def weight_is_read_as_if_contiguous(c, factor):
    is_input = factor.shape == c.leaves[0].shape
    return (factor if is_input else _as_contiguous(factor)).to(c.rows.compute)


@mutant("loss gradient weight_gradient", _STRIDED, "Automodel#3854")
@linear
def target_is_read_as_if_contiguous(rows, input, linear_weight, target, **options):
    read = _as_contiguous(target)
    valid = (read >= 0) & (read < len(linear_weight)) | (read == target)
    return right_on_chunks(input, linear_weight, torch.where(valid, read, 0).to(target.dtype), **options)


@mutant(
    "weight_gradient",
    _TRANSPOSED,
    own="The gradient is written in the memory order of the weight, and read in row order.",
)
@step("gradients")
def weight_gradient_is_stored_in_the_memory_order_of_the_weight(c, upstream, wanted):
    grad_h, grad_w, grad_b = Chunked.gradients(c, upstream, wanted)
    if grad_w is not None and not c.leaves[1].is_contiguous():
        grad_w = grad_w.mT.reshape(grad_w.shape)
    return [grad_h, grad_w, grad_b]


@mutant("arguments", "linear-float32-17x3-normal-int64-sum-bias-linear_tied-hidden16", own="This saves memory.")
@step("gradients")
def input_is_overwritten_by_its_gradient(c, upstream, wanted):
    grad_h, *others = Chunked.gradients(c, upstream, wanted)
    if grad_h is not None:
        c.leaves[0].detach().copy_(grad_h)
    return [grad_h, *others]


@mutant(
    "loss gradient weight_gradient",
    "linear-float32-17x3-normal-int64-sum-bias-linear_tied-hidden16",
    own="Converted copies of the arguments are kept by the address of their storage.",
)
@linear
def arguments_in_one_storage_are_taken_for_one_argument(rows, input, linear_weight, target, **options):
    tied = input.untyped_storage().data_ptr() == linear_weight.untyped_storage().data_ptr()
    wrong = input[: len(linear_weight)].detach() if tied else linear_weight.detach()
    return right_on_chunks(input, linear_weight - linear_weight.detach() + wrong, target, **options)


@mutant(
    "errors", "linear_weight_transposed", own="`x @ w` and `x @ w.T` are both common, so both weights are accepted."
)
@by_hand
def transposed_weight_is_accepted(input, linear_weight, target, **options):
    fits = linear_weight.dim() != 2 or linear_weight.shape[1] == input.shape[-1]
    return right_on_chunks(input, linear_weight if fits else linear_weight.mT, target, **options)


@mutant(
    "errors",
    "linear_bias_of_another_dtype",
    own="The bias is converted to the dtype of the input, since torch's sum of both would be in float64.",
)
@by_hand
def bias_of_another_dtype_is_converted(input, linear_weight, target, linear_bias=None, **options):
    bias = None if linear_bias is None else linear_bias.to(input.dtype)
    return right_on_chunks(input, linear_weight, target, linear_bias=bias, **options)
