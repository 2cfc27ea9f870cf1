"""The comparison of two results of one subject that should be equal up to rounding.

Two results may differ by the sum of their error bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from crossent.cases.inputs import Inputs
from crossent.cases.operation import GRADIENTS
from crossent.numerics.bounds.rounding import safe
from crossent.numerics.formats import Array
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Ball, two_sum
from crossent.trials.call import Result, dtype_and_shape, evaluate
from crossent.trials.difference import Difference
from crossent.trials.exact import Exact, loss_dtype, rows_of
from crossent.trials.trial import MisshapenError, NotRunError, Question, Trial

RESULT_PARTS = ("loss", *GRADIENTS)
# The loss and the gradients of a result by name, as float64 numbers. The radius of each number is its error bound.
PartBalls = dict[str, Ball]


def further_call(trial: Trial, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
    """Call the subject again, with other inputs or another act than in the first call, and return the result.

    The subject gets a copy of the inputs. `act(loss, inputs, gradients, *arguments)` makes the call.

    Raises:
        RefusedError: the subject raised an exception.
        EndedError: the subject crashed or blocked its process.
        NotRunError: the inputs are not applicable to the subject, or the act cannot run on this machine.
        MisshapenError: the loss has the wrong shape or dtype.
    """
    if reason := trial.subject.not_applicable(inputs):
        raise NotRunError(reason)
    return call_anyway(trial, inputs, act, *arguments)


def call_anyway(trial: Trial, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
    """Call the subject again, even if the inputs are not applicable to the subject, and return the result.

    Here, NotRunError means only that the act cannot run on this machine. :func:`further_call` lists the other errors.
    """
    # Pass a copy: `bounds_for` reads the inputs later, so the subject must not change them.
    got = trial.evaluate(inputs.copy(), act, *arguments)
    shape, dtype = inputs.upstream.shape, trial.subject.result_dtype(loss_dtype(inputs))
    if (got.loss.shape, got.loss.dtype) != (shape, dtype):
        made = dtype_and_shape(got.loss.dtype, got.loss.shape)
        raise MisshapenError(f"loss of another call: got {made}; expected {dtype_and_shape(dtype, shape)}")
    return got


def bounds_for(trial: Trial, name: str, inputs: Inputs) -> Exact:
    """Return an object that computes error bounds for other inputs than the inputs of the case.

    Do not read the exact values of this object: they belong to the inputs of the case. All subjects share one object
    for each case and `name`. So give different inputs different names.
    """
    by_name = _FOR_CHANGED_INPUTS.setdefault(trial.question, {})
    if name not in by_name:
        by_name[name] = trial.question.exact.at(inputs)
    return by_name[name]


_FOR_CHANGED_INPUTS: WeakKeyDictionary[Question, dict[str, Exact]] = WeakKeyDictionary()


def with_radius(trial: Trial, got: Result, exact: Exact | None = None) -> PartBalls:
    """Return the loss and the gradients of a result, with error bounds as radii.

    A number without a bound has the radius inf. `exact` computes the bounds, by default for the inputs of the case. For
    other inputs, pass the result of :func:`bounds_for`.
    """
    found = {}
    for name, bound in trial.bounds(got, exact or trial.question.exact).items():
        tensor = getattr(got, name)
        values = tensor.reshape(-1, 1).cpu().double().numpy() if name == "loss" else rows_of(tensor)
        found[name] = Ball(values, np.zeros_like(values), np.where(np.isnan(bound), np.inf, bound))
    return found


def compare_results(
    trial: Trial, other: PartBalls, got: Result | None = None, exact: Exact | None = None, *, way: str = ""
) -> list[Difference]:
    """Return the differences of one result from another result of the same subject.

    `other` has error bounds as radii. `got` is by default the result of the first call. `exact` computes the bounds of
    `got`, by default for the inputs of the case. `way` says how `other` was computed, such as "reversed along
    dimension 1". The names of the differences end with `way`.
    """
    of_case = trial.question.exact
    parts: dict[str, Any] = {}
    for name, numbers in other.items():
        value = getattr(of_case, name)  # where `value` and `numbers` are NaN, `got` must be NaN, with any bound
        parts[name] = replace(numbers, radius=np.where(np.isnan(value.hi), value.radius, numbers.radius))
    compared = trial.compare(got or trial.got, replace(exact or of_case, **parts))
    return [_rename(difference, way) for difference in compared]


def _rename(difference: Difference, way: str) -> Difference:
    """Append `way` to the name of a difference, and say in `not_judged` that the other result has no error bound."""
    reasons = {"the exact value is not known": "the other result has no error bound"}
    not_judged = {reasons.get(reason, reason): count for reason, count in difference.not_judged.items()}
    return replace(difference, of=f"{difference.of} {way}".rstrip(), not_judged=not_judged)


def times(factor: Fraction, numbers: Ball) -> Ball:
    """Return the numbers and their radii multiplied by a factor.

    `numbers.lo` must be 0, unless the factor is 1. The new radius also covers the float64 roundings of factor and
    product. These roundings cause an error below `3 u` times the computed product, where `u` is the unit roundoff of
    float64. An underflow can add an error of 2^-1074.
    """
    if factor == 1:
        return numbers
    with np.errstate(all="ignore"):
        hi = numbers.hi * float(factor)
        lost = 3 * UNIT_ROUNDOFF * np.abs(hi) + 2.0**-1074
        return _with_special_radius(hi, np.zeros_like(hi), safe(numbers.radius * abs(float(factor)) + lost), numbers)


def plus(a: Ball, b: Ball) -> Ball:
    """Return `a + b` without a rounding error: each sum is a pair of float64 numbers, `hi + lo`.

    `a.lo` and `b.lo` must be 0. The radius is the sum of both radii.
    """
    with np.errstate(all="ignore"):
        return _with_special_radius(*two_sum(a.hi, b.hi), safe(a.radius + b.radius), a, b)


def _with_special_radius(hi: Array, lo: Array, radius: Array, *operands: Ball) -> Ball:
    """Return the numbers `hi + lo` with the given radius where `hi` is finite.

    Elsewhere, the radius is 0 if an operand is not finite and all operands have finite radii; otherwise inf.
    """
    bounded = np.logical_and.reduce([np.isfinite(operand.radius) for operand in operands])
    infinite = np.logical_or.reduce([~np.isfinite(operand.hi) for operand in operands])
    # inf if float64 overflowed or an operand has no bound
    of_special = np.where(bounded & infinite, 0.0, np.inf)
    special = ~np.isfinite(hi)
    return Ball(hi, np.where(special, 0.0, lo), np.where(special, of_special, radius))
