"""Mutants: calls that keep data, change arguments or global state, or depend on the thread or the gradient mode."""

import itertools
import threading

import torch
from chunked import Chunked, linear, right_on_chunks, step
from right import mutant

from crossent.forms import linear_formula

_PLAIN = "linear-float32-7x5-normal-int64-mean-hidden16"
_LEFT = {}
_BUFFERS = {}
_CALLS = itertools.count()


@mutant("repeat", _PLAIN, own="The gradient of the weight is large, so its memory is allocated once for all calls.")
@step("gradients")
def weight_gradient_is_in_a_buffer_of_all_calls(c, upstream, wanted):
    grad_h, grad_w, grad_b = Chunked.gradients(c, upstream, wanted)
    if grad_w is not None:
        buffer = _BUFFERS.setdefault((grad_w.shape, grad_w.dtype), torch.empty_like(grad_w))
        grad_w = buffer.copy_(grad_w)
    return [grad_h, grad_w, grad_b]


@mutant(
    "repeat",
    "linear-float32-17x3-normal-int64-sum-ignored_default-bias-hidden3",
    "Liger-Kernel#1338",
)
@step("losses")
def losses_of_ignored_rows_are_never_set(c):
    losses = Chunked.losses(c)
    if c.rows.kept is None:
        return losses
    old = _LEFT.get(losses.shape, torch.zeros(losses.shape))
    losses = torch.where(c.rows.kept, losses, old.to(losses.dtype))
    _LEFT[losses.shape] = torch.where(c.rows.kept, losses, 7.0)  # as if other code had used the memory meanwhile
    return losses


@mutant(
    "repeat",
    "linear-float32-7x5-normal-int64-sum-bias-hidden16",
    own="The memory of the gradient is not set to 0 before the first chunk is added.",
)
@step("differentiate")
def weight_gradient_starts_where_the_last_call_ended(c, upstream):
    found = Chunked.differentiate(c, upstream)
    found[1] = found[1] + _LEFT.get("weight", torch.zeros(())).to(found[1].dtype)
    _LEFT["weight"] = found[1].flatten()[:1].sum()
    return found


@mutant("arguments", _PLAIN, own="The hidden states are scaled in place, to save memory.")
@linear
def input_is_scaled_in_place(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input.clone(), linear_weight, target, **options)
    input.detach().mul_(2)
    return loss


@mutant(
    "arguments",
    "linear-float32-17x3-normal-int64-sum-ignored_default-bias-hidden3",
    own="Ignored targets are replaced by a class in place, so that no kernel reads a negative one.",
)
@linear
def target_is_masked_in_place(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    if rows.kept is not None:
        target.masked_fill_(~rows.kept, 0)
    return loss


@mutant("arguments", _PLAIN, own="The gradient is added to .grad, as some kernels of language models do.")
@step("gradients")
def weight_gradient_is_added_to_grad(c, upstream, wanted):
    found = Chunked.gradients(c, upstream, wanted)
    if found[1] is not None:
        c.leaves[1].grad = found[1].clone()
    return found


@mutant("state", _PLAIN, own="A kernel for float64 sets the default dtype to make its constants.")
@linear
def default_dtype_is_left_changed(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32)
    return loss


@mutant("state", _PLAIN, own="The products are tuned with random inputs, and the generator is seeded for that.")
@linear
def random_generator_is_seeded(rows, input, linear_weight, target, **options):
    torch.manual_seed(0)
    return right_on_chunks(input, linear_weight, target, **options)


@mutant("state", _PLAIN, own="TF32 is turned on for the products, and not turned off again.")
@linear
def precision_of_products_is_left_changed(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    torch.set_float32_matmul_precision("high")
    return loss


@mutant(
    "deterministic",
    "linear-float32-7x5-normal-int64-mean-hidden16",
    own="Every few calls the fastest kernel is chosen again, and another kernel rounds differently.",
)
@linear
def every_seventh_call_is_another_kernel(rows, input, linear_weight, target, **options):
    loss = right_on_chunks(input, linear_weight, target, **options)
    return loss * (1 + torch.finfo(loss.dtype).eps) if next(_CALLS) % 7 == 6 else loss


@mutant(
    "no_grad",
    "linear-float32-7x5-confident-int64-none-weighted-ignored_first-rows-bias-smooth0.1-hidden16",
    own="Evaluation has its own code, without the options of training.",
)
@linear
def smoothing_is_for_training_alone(rows, input, linear_weight, target, label_smoothing, **options):
    recorded = torch.is_grad_enabled() and (input.requires_grad or linear_weight.requires_grad)
    smoothing = label_smoothing if recorded else 0.0
    return right_on_chunks(input, linear_weight, target, label_smoothing=smoothing, **options)


@mutant("threads", _PLAIN, own="A buffer of the logits belongs to the main thread, and is empty in other threads.")
@step("logits")
def buffer_belongs_to_the_main_thread(c, chunk):
    z = Chunked.logits(c, chunk)
    # A backward pass runs in the thread of its caller.
    return z if threading.current_thread() is threading.main_thread() else torch.zeros_like(z)


@mutant(
    "non_leaf",
    _PLAIN,
    own="The gradient is computed for leaves alone. But hidden states come from the layers before.",
)
@step("gradients")
def input_that_is_no_leaf_has_no_gradient(c, upstream, wanted):
    grad_h, *others = Chunked.gradients(c, upstream, wanted)
    return [torch.zeros_like(grad_h) if wanted[0] and not c.leaves[0].is_leaf else grad_h, *others]


@mutant("circumstances", _PLAIN, own="NaN is removed from the upstream gradient, so GradScaler does not skip the step.")
@step("each_upstream")
def upstream_of_nan_becomes_zero(c, upstream):
    return Chunked.each_upstream(c, upstream.nan_to_num())


@mutant("memory", _PLAIN, "Automodel#2397")
@linear
def all_logits_are_stored(rows, input, linear_weight, target, **options):
    return linear_formula(input, linear_weight, target, **options)


all_logits_are_stored.chunks = ()  # declares falsely that this loss works in chunks
