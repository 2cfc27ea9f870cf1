"""Checks of derivatives for a batch of upstream gradients or of directions, as torch computes Jacobians and Hessians.

Under `vmap`, each operation of the derivative takes the whole batch, whose elements lie along the first dimension. Code
that is correct for a single upstream gradient may fail for a batch. For example, the code may call `.item()`.

Each batch has two elements: the upstream gradient or the direction of the case, and -2 times this tensor. So a subject
that confuses the two elements fails, unless the tensor is 0. The oracle computes the exact values for each element.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.compiler import quiet
from crossent.subjects.subject import Loss
from crossent.trials.along import compare_derivative, is_small, second_order
from crossent.trials.call import Gradients, Result
from crossent.trials.check import Cost, Found, check
from crossent.trials.difference import Difference
from crossent.trials.exact import Exact, ExactAlong, solve, solve_along
from crossent.trials.trial import Trial, misshapen

_Function = Callable[..., Tensor]


@check("gradient", "batched_gradient", cost=Cost.STRUCTURE, transforms=True)
def batched_gradient(trial: Trial) -> Found:
    """torch.autograd.grad(is_grads_batched=True) gives the exact gradients for two upstream gradients at once.

    `torch.autograd.gradcheck(check_batched_grad=True)` and `torch.autograd.functional.jacobian(vectorize=True)` compute
    gradients in this way.
    """
    yield from _compare_gradients(trial, gradients_of_batch)


def gradients_of_batch(loss: Loss, inputs: Inputs, upstreams: Tensor, wanted: Gradients) -> tuple[Tensor, ...]:
    """Act: return the loss and its gradients for a batch of upstream gradients.

    If the loss has a wrong shape, return only the loss.
    """
    function, tensors = _bind_options(loss, inputs, wanted)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    if getattr(value, "shape", None) != inputs.upstream.shape:
        return (value,)
    return value.detach(), *torch.autograd.grad(value, leaves, upstreams.to(value.dtype), is_grads_batched=True)


@check("gradient", "batched_gradient", "vmap", cost=Cost.STRUCTURE, transforms=True)
def jacrev(trial: Trial) -> Found:
    """The function that torch.func.vjp returns, under vmap as in torch.func.jacrev, gives the exact gradients."""
    yield from _compare_gradients(trial, gradients_by_jacrev)


def gradients_by_jacrev(loss: Loss, inputs: Inputs, upstreams: Tensor, wanted: Gradients) -> tuple[Tensor, ...]:
    """Act: return the loss and its gradients for a batch of upstream gradients, computed as in torch.func.jacrev.

    If the loss has a wrong shape, return only the loss.
    """
    function, tensors = _bind_options(loss, inputs, wanted)
    value, pull = torch.func.vjp(function, *tensors)[:2]
    if getattr(value, "shape", None) != inputs.upstream.shape:
        return (value,)
    return value.detach(), *torch.func.vmap(pull)(upstreams.to(value.dtype))


@check("gradient", "forward_ad", "vmap", cost=Cost.STRUCTURE, applies=is_small, transforms=True)
def jacfwd(trial: Trial) -> Found:
    """torch.func.jvp, under vmap as in torch.func.jacfwd, gives the exact tangents of the loss."""
    inputs = trial.question.fresh()
    yield from _compare_both("tangent", trial.perform(tangents_by_jacfwd, inputs, _directions(trial)), trial)


def tangents_by_jacfwd(loss: Loss, inputs: Inputs, directions: Tensor) -> Tensor:
    """Act: return the tangents of the loss along a batch of directions, computed as in torch.func.jacfwd."""
    function, (logits,) = _bind_options(loss, inputs)
    return _push_forward(function, logits, directions)


@check("gradient", "double_backward", "batched_gradient", cost=Cost.STRUCTURE, applies=is_small, transforms=True)
def batched_second(trial: Trial) -> Found:
    """torch.autograd.grad(is_grads_batched=True) of the gradient gives the exact derivatives along two directions.

    `torch.autograd.functional.hessian(vectorize=True)` and `torch.autograd.gradgradcheck(check_batched_grad=True)`
    compute derivatives in this way.
    """
    second, upstream = trial.perform(second_order, trial.question.fresh(), _directions(trial), True)
    yield from _compare_both("second", second, trial)
    yield from _compare_both("upstream_gradient", upstream, trial)


@check("gradient", "double_backward", "forward_ad", "vmap", cost=Cost.STRUCTURE, applies=is_small, transforms=True)
def hessian(trial: Trial) -> Found:
    """torch.func.jvp of the gradient, under vmap as in torch.func.hessian, gives exact second derivatives."""
    inputs = trial.question.fresh()
    yield from _compare_both("second", trial.perform(second_by_hessian, inputs, _directions(trial)), trial)


def second_by_hessian(loss: Loss, inputs: Inputs, directions: Tensor) -> Tensor:
    """Act: return the derivatives of the gradient along a batch of directions, computed as in torch.func.hessian."""
    function, (logits,) = _bind_options(loss, inputs)

    def gradient(logits: Tensor) -> Tensor:
        value, pull = torch.func.vjp(function, logits)[:2]
        made: Tensor = pull(inputs.upstream.to(value.dtype))[0]
        return made

    return _push_forward(gradient, logits, directions)


def _compare_gradients(trial: Trial, act: Callable[..., tuple[Tensor, ...]]) -> Found:
    """Compare the gradients that `act` computes for two upstream gradients with their exact values."""
    question = trial.question
    inputs, exact = question.fresh(), question.exact
    upstreams = torch.stack([inputs.upstream, -2 * inputs.upstream])
    wanted = tuple(name for name in trial.gradients if name == "gradient" or exact.target_gradient is not None)
    loss, *gradients = trial.perform(act, inputs, upstreams, wanted)
    if problem := misshapen(trial, loss, exact):
        yield problem
        return
    for at, expected in enumerate((exact, _of_second_upstream(trial.case))):
        result = Result(loss, **{name: part[at] for name, part in zip(wanted, gradients, strict=True)})
        for found in trial.compare(result, expected):
            if found.of != "loss":
                yield replace(found, index=(at, *found.index))


def _compare_both(name: str, got: Tensor | None, trial: Trial) -> Found:
    """Compare `got`, the derivatives along both directions, with the exact values. Yield differences or a problem."""
    exact = trial.question.exact_along, _along_second(trial.case)
    for at, along in enumerate(exact):
        for found in compare_derivative(name, None if got is None else got[at], along, trial):
            if not isinstance(found, Difference):
                yield found
                return
            yield replace(found, index=(at, *found.index))


def _directions(trial: Trial) -> Tensor:
    direction = trial.case.direction(trial.question.device)
    return torch.stack([direction, -2 * direction])


@functools.lru_cache(maxsize=1)  # one entry is enough: all subjects run on a case before the next case starts
def _of_second_upstream(case: Case) -> Exact:
    inputs = case.build()
    return solve(replace(inputs, upstream=-2 * inputs.upstream))


@functools.lru_cache(maxsize=1)
def _along_second(case: Case) -> ExactAlong:
    return solve_along(case.build(), -2 * case.direction())


def _bind_options(loss: Loss, inputs: Inputs, wanted: Gradients = ()) -> tuple[_Function, tuple[Tensor, ...]]:
    """Return the loss as a function of logits and target alone, and a tuple of the logits.

    If `wanted` contains "target_gradient", the tuple also has the target.
    """

    def function(logits: Tensor, target: Tensor = inputs.target) -> Tensor:
        return loss(logits, target, **inputs.options)

    return function, (inputs.input, *([inputs.target] if "target_gradient" in wanted else []))


def _push_forward(function: _Function, logits: Tensor, directions: Tensor) -> Tensor:
    """Return the derivatives of a function along a batch of directions."""
    # torch cannot make a dual tensor of an expanded tensor.
    if any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride(), strict=True)):
        logits = logits.contiguous()

    def push(direction: Tensor) -> Any:
        return torch.func.jvp(function, (logits,), (direction,))[1]

    with quiet():  # the first dual tensor loads torch's decompositions, some of which raise deprecation warnings
        made: Tensor = torch.func.vmap(push)(directions)
    return made
