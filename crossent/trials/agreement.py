"""Agreement: whether two results of one subject are the same, as nearly as its contract promises.

No exact answer enters. Each result may be off by its own bound, so two that should be the same differ by no more than
the sum of both. Where one has no bound, nothing is judged; what is NaN by contract must be NaN in both.
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
# A result as numbers, by what they are of: for radius they have how far each may be off.
PartBalls = dict[str, Ball]


def further_call(trial: Trial, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
    """What the subject gives for other inputs than the case's; by another act as in :meth:`Trial.evaluate`.

    Raises:
        RefusedError: it raised.
        NotRunError: it says of itself that they do not apply to it.
        MisshapenError: its loss is of the wrong shape or dtype.
    """
    if reason := trial.subject.not_applicable(inputs):
        raise NotRunError(reason)
    # A copy: what is made of them for all subjects must not be what one has seen.
    got = trial.evaluate(inputs.copy(), act, *arguments)
    shape, dtype = inputs.upstream.shape, trial.subject.dtype or dtype_of(inputs)
    if (got.loss.shape, got.loss.dtype) != (shape, dtype):
        raise MisshapenError(f"got {got.loss.dtype} {tuple(got.loss.shape)}; expected {dtype} {tuple(shape)}")
    return got


def exact_for(trial: Trial, name: str, inputs: Inputs) -> Exact:
    """What the bounds for other inputs are made of; its answers are those of the case, and stand for nothing.

    Made once for all subjects: inputs of one name, made of one question, are the same ones.
    """
    known = _BESIDE.setdefault(trial.question, {})
    if name not in known:
        terms, dtype = terms_of(inputs), name_of(inputs.logits)
        known[name] = replace(trial.question.exact, terms=terms, logits_dtype=dtype, _bounds={})
    return known[name]


_BESIDE: WeakKeyDictionary[Question, dict[str, Exact]] = WeakKeyDictionary()


def with_radius(trial: Trial, got: Result, of: Exact | None = None) -> PartBalls:
    """The numbers of a result, with the bounds that are made of `of`, or of the case itself."""
    found = {}
    for name, bound in trial.bounds(got, of or trial.question.exact).items():
        tensor = getattr(got, name)
        numbers = tensor.reshape(-1, 1).double().cpu().numpy() if name == "loss" else rows_of(tensor)
        found[name] = Ball(numbers, np.zeros_like(numbers), np.where(np.isnan(bound), np.inf, bound))
    return found


def compare_results(
    trial: Trial, other: PartBalls, got: Result | None = None, of: Exact | None = None, *, way: str = ""
) -> list[Difference]:
    """How far a result is from another that should be the same.

    The first is the case's own, unless another one, `got`, is given, with what its bounds are made of. In the
    differences it is what came, and the other stands where the exact answer stands elsewhere. `way` says how the other
    was made, where a check makes several.
    """
    right = trial.question.exact
    answers: dict[str, Any] = {}
    for name, ball in other.items():
        exact = getattr(right, name)  # no bound is an excuse where NaN is right
        answers[name] = replace(ball, radius=np.where(np.isnan(exact.hi), exact.radius, ball.radius))
    compared = trial.compare(got or trial.got, replace(of or right, **answers))
    return [_named(difference, way) for difference in compared]


def _named(difference: Difference, way: str) -> Difference:
    reasons = {"there is no exact answer": "the other result has no bound"}
    not_judged = {reasons.get(reason, reason): count for reason, count in difference.not_judged.items()}
    return replace(difference, of=f"{difference.of} {way}".rstrip(), not_judged=not_judged)


def times(factor: Fraction, ball: Ball) -> Ball:
    """`factor · ball`. The factor is rounded, and the product: by less than 3 u of it, or by an underflow."""
    if factor == 1:
        return ball
    with np.errstate(all="ignore"):
        hi = ball.hi * float(factor)
        lost = 3 * UNIT_ROUNDOFF * np.abs(hi) + 2.0**-1074
        return _made(hi, np.zeros_like(hi), safe(ball.radius * abs(float(factor)) + lost), ball)


def plus(a: Ball, b: Ball) -> Ball:
    """`a + b`, which is not rounded."""
    with np.errstate(all="ignore"):
        return _made(*two_sum(a.hi, b.hi), safe(a.radius + b.radius), a, b)


def stacked(a: Ball, b: Ball) -> Ball:
    """The rows of one, then those of the other."""
    return Ball(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in ("hi", "lo", "radius")))


def _made(hi: Array, lo: Array, radius: Array, *of: Ball) -> Ball:
    """A ball made of others. What is infinite is exact where one of them is, and all are exact."""
    exact = np.logical_and.reduce([np.isfinite(ball.radius) for ball in of])
    infinite = np.logical_or.reduce([~np.isfinite(ball.hi) for ball in of])  # elsewhere float64 overflowed
    of_special = np.where(exact & infinite, 0.0, np.inf)
    special = ~np.isfinite(hi)
    return Ball(hi, np.where(special, 0.0, lo), np.where(special, of_special, radius))
