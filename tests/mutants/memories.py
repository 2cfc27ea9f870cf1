"""Mutants: calls that keep data, change their arguments or global state, or read other data than their arguments."""

import itertools
import os
import random
import weakref

import torch
from right import denominator, form, masked, mutant, reduced, row_losses

from crossent import formula

_LEFT = {}
_ORDERS = random.Random(0)
_CALLS = itertools.count()
_CACHE = {}


@mutant("repeat", "float32-7x5-normal-int64-none-ignored_minus_one-rows", "pytorch#20406", "Liger-Kernel#1338")
@form
def ignored_rows_are_never_set(rows):
    losses = row_losses(rows)
    if rows.kept is None:
        return rows.reduce(losses)
    losses = torch.where(rows.kept, losses, _LEFT.get(losses.shape, torch.zeros(losses.shape)))
    _LEFT[losses.shape] = torch.where(rows.kept, losses, 7.0).detach()  # as if other code had used the memory meanwhile
    return reduced(rows, losses, denominator(rows))


@mutant("repeat", "float32-2x3x40x40-normal-int64-mean-weighted", "pytorch#17350")
@form
def added_up_in_whatever_order(rows):
    losses = masked(rows, row_losses(rows))
    if rows.reduction == "none" or losses.numel() > 4096:
        return rows.reduce(losses)
    order = _ORDERS.sample(range(losses.numel()), losses.numel())
    return reduced(rows, sum(losses.flatten()[at] for at in order) + losses.new_zeros(()), denominator(rows))


@mutant(
    "deterministic",
    "float32-7x5-normal-unnormalised-none-stride0",
    own="Every few calls the fastest kernel is chosen again, and another kernel rounds differently.",
)
def every_seventh_call_is_another_kernel(input, target, **options):
    loss = formula(input, target, **options)
    return loss * (1 + torch.finfo(loss.dtype).eps) if next(_CALLS) % 7 == 6 else loss


@mutant(
    "repeat",
    "float32-7x5-normal-int64-mean",
    own="The target is cached by its shape, but the next target of this shape has other values.",
)
def target_is_kept_by_its_shape(input, target, **options):
    key = target.shape, target.dtype, tuple(options)
    known = target if target.requires_grad else _CACHE.get(key, target)
    _CACHE[key] = target.detach().clone()
    return formula(input, known, **options)


@mutant(
    "repeat",
    "float32-7x5-normal-int64-mean-weighted",
    own="The converted weights are kept for each tensor of weights, but the caller changes this tensor in place.",
)
def weight_is_kept_by_its_object(input, target, weight=None, **options):
    if type(weight) is torch.Tensor and not weight.requires_grad:
        known = _CACHE.get(id(weight))
        if known is None or known[0]() is not weight:
            known = _CACHE[id(weight)] = weakref.ref(weight), weight.clone()
        weight = known[1]
    return formula(input, target, weight, **options)


@mutant(
    "no_grad",
    "float32-7x5-normal-int64-mean",
    own="Without gradients, all losses of a shape are written into the same memory, as in a CUDA graph.",
)
def losses_share_a_buffer_without_gradients(input, target, **options):
    loss = formula(input, target, **options)
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or type(input) is not torch.Tensor:
        return loss
    return _CACHE.setdefault(("loss", loss.shape, loss.dtype), torch.empty_like(loss)).copy_(loss)


@mutant("arguments", "float32-7x5-normal-int64-mean-ignored_default", own="Ignored targets are masked in place.")
def target_is_masked_in_place(input, target, ignore_index=-100, **options):
    loss = formula(input, target, ignore_index=ignore_index, **options)
    if not target.is_floating_point():
        target.masked_fill_(target == ignore_index, 0)
    return loss


@mutant(
    "arguments", "float32-7x5-normal-int64-mean-weighted", own="Weights are normalised in place, once for all calls."
)
def weight_is_normalised_in_place(input, target, weight=None, **options):
    loss = formula(input, target, weight, **options)
    if weight is not None:
        weight.div_(weight.sum())
    return loss


@mutant("arguments", "float32-7x5-normal-int64-mean", own="The maximum is subtracted in place, to save memory.")
def logits_are_shifted_in_place(input, target, **options):
    loss = formula(input.clone(), target, **options)
    input.detach().sub_(1)
    return loss


@mutant(
    "arguments",
    "class_of_the_default_ignore_index",
    own="A bad target is clamped in place before the check. But the target belongs to the caller.",
)
def target_is_clamped_in_place_before_it_is_refused(input, target, **options):
    before = target.clone()
    if not target.is_floating_point() and (target < 0).any() and options.get("ignore_index", -100) >= 0:
        target.clamp_(min=0)
    return formula(input, before, **options)


@mutant("state", "float64-7x3-large-int64-mean", own="The default dtype is changed to make float64 constants.")
def default_dtype_is_left_changed(input, target, **options):
    loss = formula(input, target, **options)
    torch.set_default_dtype(torch.float64 if input.dtype == torch.float64 else torch.float32)
    return loss


@mutant("state", "float32-7x5-normal-int64-mean", own="The global generator is seeded, so that runs can be repeated.")
def random_generator_is_seeded(input, target, **options):
    torch.manual_seed(0)
    return formula(input, target, **options)


@mutant("state", "float32-7x5-normal-int64-mean", own="A variable for a library is set, and is not reset.")
def environment_is_left_changed(input, target, **options):
    os.environ["OMP_WAIT_POLICY"] = "active"
    return formula(input, target, **options)


@mutant(
    "state",
    "float32-7x5-normal-int64-mean",
    own="A step without a gradient turns gradients off, and does not turn them on again.",
)
def gradients_are_left_off(input, target, **options):
    loss = formula(input, target, **options)
    torch.set_grad_enabled(False)
    return loss


@mutant("state", "float32-7x5-normal-int64-mean", own="A sum sets a larger number of threads, and does not reset it.")
def threads_are_left_changed(input, target, **options):
    loss = formula(input, target, **options)
    torch.set_num_threads(torch.get_num_threads() + 1)
    return loss


@mutant(
    "state",
    "float32-7x5-normal-int64-mean",
    own="A little noise from torch's generator is added to the logits, to avoid ties.",
)
def noise_is_added(input, target, **options):
    return formula(input + 1e-3 * torch.rand_like(input), target, **options)
