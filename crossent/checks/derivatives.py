"""Derivatives: the gradient's own, backward a second time, and the loss's in forward mode, each along a direction.

Both are judged by their exact values, not by differences of the subject's own results as `torch.autograd.gradcheck`
does it, which sees no error that loss and gradient share and needs float64 and a tolerance. One direction `u`
takes the place of a whole matrix of second derivatives: it tells `p_c (u_c - Σ_k p_k u_k)` from anything else but by
accident, and, as its numbers fill their format, from that of a `u` that was rounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad as dual_numbers

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.subject import Loss
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference, worst
from crossent.trials.exact import name_of
from crossent.trials.trial import Problem, Trial

# Logits of a case that is asked for its derivatives. Long sums are asked of loss and gradient, whose bounds grow with
# them in the same way; what is asked here is the formula, which a few thousand logits show as well as a million.
MOST_LOGITS = 4096


def _is_small(case: Case) -> bool:
    return case.rows * case.classes <= MOST_LOGITS


@check("gradient", "double_backward", cost=Cost.CALLS, applies=_is_small)
def double_backward(trial: Trial) -> Iterator[Difference | Problem]:
    """The gradient of `<gradient, u>`, with respect to the logits, and to the upstream gradient.

    The former is `g/D Σ_k w_k q_k · p_c (u_c - Σ_k p_k u_k)`, and 0 on ignored rows; the latter is the loss's own
    derivative along `u`. A gradient that does not depend on the logits any more, though it should, is a finding.
    """
    inputs, direction = trial.question.fresh(), trial.case.direction(trial.question.device)
    second, upstream = trial.perform(second_order, inputs, direction)
    exact = trial.question.exact_along
    yield from _measured("second", second, exact.second, trial)
    yield from _measured("upstream_gradient", upstream, exact.tangent, trial)


@check("gradient", "forward_ad", cost=Cost.CALLS, applies=_is_small)
def forward_ad(trial: Trial) -> Iterator[Difference | Problem]:
    """The loss's derivative along `u`, `Σ_c w_c q_c (Σ_k p_k u_k - u_c)` of each row, by dual numbers.

    It is finite where a logit of -inf has its class left out, or has made the loss infinite: a tangent of `0·-inf` is a
    finding (optax#1762).
    """
    inputs, direction = trial.question.fresh(), trial.case.direction(trial.question.device)
    tangent = trial.perform(tangent_of, inputs, direction)
    yield from _measured("tangent", tangent, trial.question.exact_along.tangent, trial)


def second_order(loss: Loss, inputs: Inputs, direction: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of `<gradient, direction>`, for the logits and for upstream; None where it depends on neither."""
    logits, upstream = (tensor.detach().requires_grad_() for tensor in (inputs.logits, inputs.upstream))
    value = loss(logits, inputs.target, **inputs.options)
    (gradient,) = torch.autograd.grad(value, logits, upstream.to(value.dtype), create_graph=True)
    if not gradient.requires_grad:
        return None, None
    return torch.autograd.grad(gradient, (logits, upstream), direction, allow_unused=True)


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """A dual number, in the primal's layout; one that repeats an entry is written out, as torch makes no dual of it."""
    if any(stride == 0 and size > 1 for size, stride in zip(primal.shape, primal.stride(), strict=True)):
        primal = primal.contiguous()
    with warnings.catch_warnings():
        # The first one loads torch's decompositions, some of which warn of torch's own deprecations.
        warnings.simplefilter("ignore")
        dual: Tensor = dual_numbers.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
        return dual


def tangent_of(loss: Loss, inputs: Inputs, direction: Tensor) -> Tensor | None:
    """The tangent of the loss along a direction; None where it has none."""
    with dual_numbers.dual_level():
        value = loss(_dual(inputs.logits.detach(), direction), inputs.target, **inputs.options)
        tangent: Tensor | None = dual_numbers.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return tangent


def _measured(of: str, got: Tensor | None, exact: Ball, trial: Trial) -> Iterator[Difference | Problem]:
    """How far one derivative is off, under the contract of the subject; none at all is right where it should be 0."""
    inputs = trial.question.inputs
    wanted = inputs.logits.shape if of == "second" else inputs.upstream.shape
    if got is None:
        if (exact.distance(np.zeros_like(exact.hi)) > exact.radius).any():
            yield Problem("wrong", f"{_WORDS[of]} is cut off", of)
        return
    if got.shape != wanted:
        yield Problem("wrong", f"{_WORDS[of]} is {tuple(got.shape)}; expected {tuple(wanted)}", of)
        return
    promised = trial.contract(trial.case.dtype, trial.case.rows)
    bounds = trial.question.exact_along.bounds(replace(promised, storage=FORMATS[name_of(got)]))
    yield worst(of, got.detach(), exact, bounds)


_WORDS = {
    "second": "the gradient's dependence on the logits",
    "upstream_gradient": "the gradient's dependence on the upstream gradient",
    "tangent": "the loss's tangent",
}
