"""Checks of derivatives along a direction `u`. Double backward differentiates the gradient; forward mode, the loss.

The checks compare these derivatives with exact values. `torch.autograd.gradcheck` instead compares with finite
differences of the subject's own results. So `gradcheck` misses an error that loss and gradient share. `gradcheck` also
needs a tolerance and, in practice, float64.

The derivative along one direction is enough to find a wrong formula, so the checks do not compute the whole matrix of
second derivatives. `Case.direction` draws `u`. The numbers of `u` use all digits of their format, so the checks also
find a subject that rounds `u`. `crossent.checks` explains the letters of the formulas.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from torch import Tensor
from torch.autograd import forward_ad as dual_numbers

from crossent.cases.inputs import Inputs
from crossent.subjects.subject import Loss
from crossent.trials.along import compare_derivative, is_small, second_order
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference
from crossent.trials.trial import Problem, Trial


@check("gradient", "double_backward", cost=Cost.CALLS, applies=is_small)
def double_backward(trial: Trial) -> Iterator[Difference | Problem]:
    """The derivatives of `<gradient, u>`, with respect to logits and upstream gradient, equal their exact values.

    `<gradient, u>` is the inner product. The derivative with respect to the logit of class `c` is
    `g/D (Σ_k w_k q_k) p_c (u_c - Σ_k p_k u_k)`. In an ignored row, this derivative is 0, or NaN if the logits have no
    softmax. The derivative with respect to the upstream gradient is the derivative of the loss along `u`. A subject
    whose gradient has no graph fails, unless both exact derivatives are 0 within their error radii.
    """
    inputs, direction = trial.question.fresh(), trial.case.direction(trial.question.device)
    second, upstream = trial.perform(second_order, inputs, direction, False)
    exact = trial.question.exact_along
    yield from compare_derivative("second", second, exact, trial)
    yield from compare_derivative("upstream_gradient", upstream, exact, trial)


@check("gradient", "forward_ad", cost=Cost.CALLS, applies=is_small)
def forward_ad(trial: Trial) -> Iterator[Difference | Problem]:
    """The derivative of the loss along `u`, `Σ_c w_c q_c (Σ_k p_k u_k - u_c)` of each row, is exact in forward mode.

    With "mean" and "sum", the derivative is the sum over the rows, divided by `D`. If some but not all logits of a row
    are -inf, the derivative of the row is finite. This holds even if the loss of the row is infinite. A subject that
    computes `0·-inf` fails (optax#1762).
    """
    inputs, direction = trial.question.fresh(), trial.case.direction(trial.question.device)
    tangent = trial.perform(tangent_of, inputs, direction)
    yield from compare_derivative("tangent", tangent, trial.question.exact_along, trial)


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """Return a dual tensor of a primal and a tangent, with the memory layout of the primal.

    An expanded primal becomes contiguous first, since torch cannot make a dual tensor of an expanded tensor.
    """
    if any(stride == 0 and size > 1 for size, stride in zip(primal.shape, primal.stride(), strict=True)):
        primal = primal.contiguous()
    with warnings.catch_warnings():
        # The first dual tensor loads torch's decompositions. Some of them raise torch's own deprecation warnings.
        warnings.simplefilter("ignore")
        dual: Tensor = dual_numbers.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
        return dual


def tangent_of(loss: Loss, inputs: Inputs, direction: Tensor) -> Tensor | None:
    """Return the tangent of the loss along a direction, or None if the loss has no tangent.

    This is an act: a function that runs in the process of the subject.
    """
    with dual_numbers.dual_level():
        value = loss(_dual(inputs.input.detach(), direction), inputs.target, **inputs.options)
        tangent: Tensor | None = dual_numbers.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return tangent
