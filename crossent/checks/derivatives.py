"""Checks of derivatives along a direction `u`: of the gradient in double backward, of the loss in forward mode.

The checks compare these derivatives with exact values. `torch.autograd.gradcheck` compares with finite differences of
the subject's own results, and misses an error that loss and gradient share.

One direction is enough to find a wrong formula. `Case.direction` draws `u`. The numbers of `u` use all digits of their
format, so a subject that rounds `u` fails. `crossent.checks` explains the letters of the formulas.
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

    `<gradient, u>` is the inner product. In a row that is not ignored, the derivative with respect to the logit of
    class `c` is `g/D (Σ_k w_k q_k) p_c (u_c - Σ_k p_k u_k)`. The derivative with respect to the upstream gradient is
    the derivative of the loss along `u`.
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
    are -inf, the derivative of the row is finite, even for an infinite loss. A subject that computes `0·-inf` fails
    (optax#1762).
    """
    inputs, direction = trial.question.fresh(), trial.case.direction(trial.question.device)
    tangent = trial.perform(tangent_of, inputs, direction)
    yield from compare_derivative("tangent", tangent, trial.question.exact_along, trial)


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    # torch cannot make a dual tensor of an expanded tensor.
    if any(stride == 0 and size > 1 for size, stride in zip(primal.shape, primal.stride(), strict=True)):
        primal = primal.contiguous()
    with warnings.catch_warnings():
        # The first dual tensor loads torch's decompositions. Some of them raise torch's own deprecation warnings.
        warnings.simplefilter("ignore")
        dual: Tensor = dual_numbers.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
        return dual


def tangent_of(loss: Loss, inputs: Inputs, direction: Tensor) -> Tensor | None:
    """Act: return the tangent of the loss along a direction, or None if the loss has no tangent."""
    with dual_numbers.dual_level():
        value = loss(_dual(inputs.input.detach(), direction), inputs.target, **inputs.options)
        tangent: Tensor | None = dual_numbers.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return tangent
