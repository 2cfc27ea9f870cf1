"""The errors of a result: its differences from the exact values, compared with the error bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossent.cases.operation import GRADIENTS
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.unbounded import unbounded
from crossent.numerics.formats import FORMATS, Array, where_any
from crossent.numerics.oracle.arithmetic import Ball
from crossent.trials.call import Result
from crossent.trials.exact import AnyContract, Exact, LinearResultBounds, name_of, rows_of

AnyBounds = Bounds | LinearResultBounds
# The results with one number for each row, or with a single number. All other results have rows of several numbers.
BY_ROW = ("loss", "tangent", "upstream_gradient")


@dataclass(frozen=True)
class Difference:
    """The error of the worst element of a result, and counts over all elements.

    The worst element is the element with the largest share of the bound, error ÷ bound.

    If a check compares two results, the numbers of one result take the place of the exact values.

    Attributes:
        of: the name of the result. The name of a call may follow: "gradient reversed along dimension 2".
        dtype: the name of the dtype of the result.
        index: the index of the worst element; () for a scalar.
        got: the worst element.
        exact: the exact value of the worst element, rounded to float64.
        radius: the error radius of the exact value.
        bound: the largest error that rounding can cause, plus the radius.
        error: the distance of `got` from the unrounded exact value.
        ratio: the share of the bound, error ÷ bound. A share above 1 fails.
        ulp: the error in units in the last place of the exact value, in the result's dtype.
        mismatched: the number of elements whose error exceeds their bound.
        not_judged: for each reason why a bound is not finite, the number of elements with such a bound.
        vacuous: whether passing is no evidence, because a wrong result, such as zeros, would pass too.
    """

    of: str
    dtype: str
    index: tuple[int, ...]
    got: float
    exact: float
    radius: float
    bound: float
    error: float
    ratio: float
    ulp: float
    elements: int
    mismatched: int
    not_judged: dict[str, int]
    vacuous: bool

    def __str__(self) -> str:
        relative = f"{self.error / abs(self.exact) if self.exact else math.inf if self.error else 0.0:.3g}"
        where = f" at index {self.index}" if self.index else ""
        counts = (
            f"Mismatched elements: {self.mismatched} / {self.elements} ({100 * self.mismatched / self.elements:.1f}%)"
        )
        if not math.isfinite(self.error):
            return f"{counts}\nExpected {self.exact:.6g}{where}, got {self.got:.6g}"
        error, bound = _apart(self.error, self.bound) if self.ratio > 1 else (f"{self.error:.6g}", f"{self.bound:.3g}")
        return (
            f"{counts}\n"
            f"Worst difference: {error}{where} (up to {bound} allowed)\n"
            f"Relative difference there: {relative}, {self.ulp:.3g} ulp"
        )


def _apart(error: float, bound: float) -> tuple[str, str]:
    """Return an error and the smaller bound as text, with enough digits to show which is smaller."""
    pairs = [(f"{error:.6g}", f"{bound:.{digits}g}") for digits in (3, 6)]
    return next((pair for pair in pairs if float(pair[0]) > float(pair[1])), (repr(error), repr(bound)))


def compare(contract: AnyContract, got: Result, exact: Exact, *, zero_mean: bool = False) -> list[Difference]:
    """Return the differences of a result from the exact values: one for the loss, and one for each gradient in `got`.

    The loss must have the right shape and dtype. With `zero_mean`, the mean over no kept rows must be 0 instead of NaN.
    """
    each = bounds_of(contract, got, exact)
    values = {part: getattr(exact, part) for part in each}
    if "gradient" in values and got.gradient is not None:
        values["gradient"] = allow_zero(values["gradient"], exact.terms.kept, rows_of(got.gradient))
    found = [worst(part, getattr(got, part), values[part], bounds) for part, bounds in each.items()]
    if zero_mean and exact.terms.reduction == "mean" and not exact.terms.kept.any():
        zero, loss = np.zeros((1, 1)), got.loss.resolve_neg().reshape(-1, 1).cpu().double().numpy()
        found[0] = replace(difference("loss", name_of(got.loss), loss, Ball(zero, zero, zero), zero), index=())
    return found


def bounds_of(contract: AnyContract, got: Result, exact: Exact) -> dict[str, AnyBounds]:
    """Return a dict from the name of each result in `got` to the object with the error bounds of this result."""
    found = {}
    for part in ("loss", *GRADIENTS):
        tensor, value = getattr(got, part), getattr(exact, part)
        if tensor is not None and value is not None:
            # one object for each dtype: a bound includes the rounding of the result to its dtype
            found[part] = exact.bounds(contract.storing(FORMATS[name_of(tensor)]))
    return found


def allow_zero(exact: Ball, kept: NDArray[np.bool_], got: Array) -> Ball:
    """Return the exact gradient, with 0 instead of NaN in the ignored rows in which `got` is 0.

    A row has no softmax if, for example, a logit is NaN. If such a row is ignored, torch returns NaN. But torch's
    documentation says that ignored rows do not contribute (pytorch#11551). So both 0 and NaN are right.
    """
    zero = np.reshape(~kept & np.isnan(exact.hi).all(axis=1) & (got == 0).all(axis=1), (-1, 1))
    return Ball(*(np.where(zero, 0.0, part) for part in (exact.hi, exact.lo, exact.radius))) if zero.any() else exact


def worst(name: str, tensor: Tensor, exact: Ball, bounds: AnyBounds) -> Difference:
    """Compare a result with the exact values, and return the difference at the worst element.

    `name` is the name of the result. The attribute of `bounds` with this name has the error bounds.

    Raises:
        ValueError: the result and the exact values have different numbers of elements.
    """
    by_row = name in BY_ROW
    got = tensor.resolve_neg().reshape(-1, 1).cpu().double().numpy() if by_row else rows_of(tensor)
    if got.size != exact.hi.size:  # an isolated process may send an empty tensor, which would have no wrong number
        raise ValueError(f"{name}: got {got.size} numbers; expected {exact.hi.size}")
    allowed, vacuous, without_bound = _find_bounds(name, exact, bounds)
    found = difference(name, name_of(tensor), got, exact, allowed)
    index = (
        (_unravel(found.index[0], tuple(tensor.shape)) if by_row else _index(tensor, *found.index)) if got.size else ()
    )
    return replace(found, index=index, vacuous=vacuous, not_judged=without_bound)


def _find_bounds(name: str, exact: Ball, bounds: AnyBounds) -> tuple[Array, bool, dict[str, int]]:
    """Return the error bounds of a result, and `vacuous` and `not_judged` of :class:`Difference`.

    Subjects with the same contract share the returned objects.
    """
    known = _SHARED.setdefault(bounds, {})
    if name not in known or known[name][0] is not exact:
        allowed, vacuous = largest_errors(name, exact, bounds)
        known[name] = exact, (allowed, vacuous, not_judged(name, allowed, exact, bounds))
    return known[name][1]


_SHARED: WeakKeyDictionary[AnyBounds, dict[str, tuple[Ball, tuple[Array, bool, dict[str, int]]]]] = WeakKeyDictionary()


def largest_errors(name: str, exact: Ball, bounds: AnyBounds) -> tuple[Array, bool]:
    """Return the error bound of each number of a result, and whether a wrong result would pass too (`vacuous`).

    Each bound includes the error radius of the exact value.
    """
    with np.errstate(all="ignore"):
        special = ~np.isfinite(exact.hi)
        bound = getattr(bounds, name).reshape(exact.hi.shape)
        allowed = where_any(special, 0.0, where_any(np.isnan(bound), np.inf, bound)) + exact.radius
        candidates = itertools.chain(_constants(exact, allowed, special), bounds.vacuous_results(name))
        return allowed, any((exact.distance(candidate) <= allowed).all() for candidate in candidates)


def _constants(exact: Ball, allowed: Array, special: NDArray[np.bool_]) -> Iterator[Array]:
    """Yield constant results that could pass: zeros, the median, and the middle of the range of constants that pass."""
    finite = exact.hi.size > 0 and not special.any()
    if finite:
        least, most = (exact.hi - allowed).max(), (exact.hi + allowed).min()
        if least - most > 2.0**-50 * (abs(least) + abs(most)):  # no constant passes; 2^-50 covers rounding
            return
    yield np.zeros_like(exact.hi)
    if exact.hi.size > 1 and not special.all():
        yield np.full_like(exact.hi, np.median(exact.hi[~special]))
        if finite:
            yield np.full_like(exact.hi, least / 2 + most / 2)


def difference(name: str, dtype: str, got: Array, exact: Ball, allowed: Array) -> Difference:
    """Return the difference at the worst element of `got`, with the index (row, column).

    `got`, `exact` and the error bounds `allowed` have the shape (R, K). The caller computes `not_judged` and `vacuous`.
    """
    if got.size == 0:
        return Difference(name, dtype, (), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, {}, vacuous=True)
    with np.errstate(all="ignore"):  # the ratio may overflow: 1e308 / 1e-16
        error = exact.distance(got)
        ratio = where_any(~(error > 0) | np.isinf(allowed), 0.0, error / allowed)
    at = row, column = tuple(map(int, np.unravel_index(int(ratio.argmax()), ratio.shape)))
    return Difference(
        name,
        dtype,
        index=(row, column),
        got=float(got[at]),
        exact=float(exact.hi[at]),
        radius=float(exact.radius[at]),
        bound=float(allowed[at]),
        error=float(error[at]),
        ratio=float(ratio[at]),
        ulp=float(error[at]) / FORMATS[dtype].last_place(float(exact.hi[at])),
        elements=got.size,
        mismatched=int((ratio > 1).sum()),
        not_judged={},
        vacuous=False,
    )


def not_judged(name: str, allowed: Array, exact: Ball, bounds: AnyBounds) -> dict[str, int]:
    """Return, for each reason why a bound is not finite, the number of elements with such a bound.

    `allowed` has the bounds that :func:`largest_errors` returns.
    """
    if not np.isinf(allowed).any():
        return {}
    unknown = np.isinf(exact.radius)
    counts = {"the exact value is not known": int(unknown.sum())}
    # No input should give a NaN bound. The random cases of `nox -s soak` have found no such input.
    counts["the bound is not a number"] = int(np.isnan(getattr(bounds, name)).sum())
    reasons = bounds.without_bound(name) if isinstance(bounds, LinearResultBounds) else unbounded(bounds, name)
    for reason, where in reasons.items():
        counts[reason] = int((where.reshape(allowed.shape) & np.isinf(allowed) & ~unknown).sum())
    return {reason: count for reason, count in counts.items() if count}


def _index(tensor: Tensor, row: int, column: int) -> tuple[int, ...]:
    """Return the index of the element that :func:`rows_of` puts into this row and column."""
    if tensor.dim() == 1:
        return (column,)
    first, *further = _unravel(row, (tensor.shape[0], *tensor.shape[2:]))
    return first, column, *further


def _unravel(row: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(row, shape)))
