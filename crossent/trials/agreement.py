"""The comparison of two results of one subject that should be equal up to rounding.

The comparison does not use the exact values. Each result may have an error up to its own error bound, so two results
may differ by the sum of both bounds. If a number has no bound in one of the results, the number is not compared. If the
contract says that a number is NaN, the number must be NaN in both results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.rounding import safe
from crossent.numerics.formats import Array
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Ball, two_sum
from crossent.trials.call import Result, evaluate
from crossent.trials.difference import Difference
from crossent.trials.exact import Exact, dtype_of, name_of, rows_of, terms_of
from crossent.trials.trial import MisshapenError, NotRunError, Question, Trial

RESULT_PARTS = ("loss", "gradient", "target_gradient")
# The loss and the gradients by name, as float64 numbers. The radius of each number is its error bound.
PartBalls = dict[str, Ball]


def further_call(trial: Trial, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
    """Return the result of the subject for other inputs than the inputs of the case.

    Args:
        trial: the subject on the case.
        inputs: the other inputs.
        act: the act that makes the call, `act(loss, inputs, gradients, *arguments)`.
        arguments: further arguments of the act.

    Raises:
        RefusedError: the subject raised an exception.
        NotRunError: the inputs are not applicable to the subject.
        MisshapenError: the loss has the wrong shape or dtype.
    """
    if reason := trial.subject.not_applicable(inputs):
        raise NotRunError(reason)
    # Pass a copy: `exact_for` reads the inputs later, so the subject must not change them.
    got = trial.evaluate(inputs.copy(), act, *arguments)
    shape, dtype = inputs.upstream.shape, trial.subject.result_dtype(dtype_of(inputs))
    if (got.loss.shape, got.loss.dtype) != (shape, dtype):
        raise MisshapenError(f"got {got.loss.dtype} {tuple(got.loss.shape)}; expected {dtype} {tuple(shape)}")
    return got


def exact_for(trial: Trial, name: str, inputs: Inputs) -> Exact:
    """Return an object that computes error bounds for changed inputs.

    Do not read the exact values in the returned object: they belong to the unchanged case.

    All subjects share the object. So inputs that have the same name and belong to the same case must be equal.
    """
    known = _FOR_CHANGED_INPUTS.setdefault(trial.question, {})
    if name not in known:
        terms, dtype = terms_of(inputs), name_of(inputs.logits)
        known[name] = replace(trial.question.exact, terms=terms, logits_dtype=dtype, _bounds={})
    return known[name]


_FOR_CHANGED_INPUTS: WeakKeyDictionary[Question, dict[str, Exact]] = WeakKeyDictionary()


def with_radius(trial: Trial, got: Result, exact: Exact | None = None) -> PartBalls:
    """Return the numbers of a result, with their error bounds as radii.

    `exact` computes the bounds. The default is for the inputs of the case; :func:`exact_for` is for other inputs.
    """
    found = {}
    for name, bound in trial.bounds(got, exact or trial.question.exact).items():
        tensor = getattr(got, name)
        numbers = tensor.reshape(-1, 1).double().cpu().numpy() if name == "loss" else rows_of(tensor)
        found[name] = Ball(numbers, np.zeros_like(numbers), np.where(np.isnan(bound), np.inf, bound))
    return found


def compare_results(
    trial: Trial, other: PartBalls, got: Result | None = None, exact: Exact | None = None, *, way: str = ""
) -> list[Difference]:
    """Return the differences of one result from another result of the same subject.

    Args:
        trial: the subject on the case.
        other: the other result, with error bounds as radii. It takes the place of the exact values.
        got: the result to compare; by default, the result of the first call.
        exact: the object that computes the bounds of `got`, if the inputs of `got` are not the inputs of the case.
        way: how `other` was computed, in words, if a check computes several results.
    """
    of_case = trial.question.exact
    parts: dict[str, Any] = {}
    for name, ball in other.items():
        value = getattr(of_case, name)  # if the exact value is NaN, only NaN is right, even with an infinite bound
        parts[name] = replace(ball, radius=np.where(np.isnan(value.hi), value.radius, ball.radius))
    compared = trial.compare(got or trial.got, replace(exact or of_case, **parts))
    return [_named(difference, way) for difference in compared]


def _named(difference: Difference, way: str) -> Difference:
    """Append `way` to the name of a difference, and replace the reasons that speak of exact values."""
    reasons = {"there is no exact value": "the other result has no bound"}
    not_judged = {reasons.get(reason, reason): count for reason, count in difference.not_judged.items()}
    return replace(difference, of=f"{difference.of} {way}".rstrip(), not_judged=not_judged)


def times(factor: Fraction, ball: Ball) -> Ball:
    """Return `factor · ball`, with a radius that also covers the float64 roundings of the factor and the product.

    Their error is less than `3 u` times the product, or an underflow.
    """
    if factor == 1:
        return ball
    with np.errstate(all="ignore"):
        hi = ball.hi * float(factor)
        lost = 3 * UNIT_ROUNDOFF * np.abs(hi) + 2.0**-1074
        return _made(hi, np.zeros_like(hi), safe(ball.radius * abs(float(factor)) + lost), ball)


def plus(a: Ball, b: Ball) -> Ball:
    """Return `a + b` as the unevaluated sum of two float64 numbers, without a rounding error."""
    with np.errstate(all="ignore"):
        return _made(*two_sum(a.hi, b.hi), safe(a.radius + b.radius), a, b)


def _made(hi: Array, lo: Array, radius: Array, *operands: Ball) -> Ball:
    """Return the ball that was computed from other balls, with the right radius for infinite and NaN numbers.

    An infinite or NaN number is exact if an operand is infinite or NaN and all operands have a finite radius.
    Otherwise float64 overflowed, and the radius is infinite.
    """
    bounded = np.logical_and.reduce([np.isfinite(ball.radius) for ball in operands])
    infinite = np.logical_or.reduce([~np.isfinite(ball.hi) for ball in operands])
    of_special = np.where(bounded & infinite, 0.0, np.inf)
    special = ~np.isfinite(hi)
    return Ball(hi, np.where(special, 0.0, lo), np.where(special, of_special, radius))
