"""The two arithmetics in which the oracle computes: float64 with compensated sums, and flint's balls.

Both offer the same few operations on arrays, so that a formula is written once and runs in either. Exact numbers come
out of both as a :class:`Ball`. Nothing here knows what is computed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import flint
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Elements = NDArray[Any]  # float64, or objects that are flint.arb

UNIT_ROUNDOFF = 2.0**-53
# Assumed of numpy's exp and log1p, for normal results. numpy's own tests allow 1; test_oracle.py measures it.
EXP_LOG_ULP = 2


@dataclass(frozen=True)
class Ball:
    """Real numbers, each within `radius` of `hi + lo`; or ±inf and NaN, exactly. Three arrays of one shape.

    A radius of inf claims nothing.

    Example:
        >>> exact = Ball(np.array([2.0, np.inf]), np.array([2.0**-60, 0.0]), np.zeros(2))
        >>> exact.distance([2.0, np.inf]).tolist() == [2.0**-60, 0.0], exact.distance([np.nan, 1.0]).tolist()
        (True, [inf, inf])
    """

    hi: Array
    lo: Array
    radius: Array

    def distance(self, got: ArrayLike) -> Array:
        """`|got - exact|`; 0 where both are the same infinity or both NaN, inf where one of them only is.

        `got - hi` is exact where the two are within a factor of two of each other (Sterbenz), so that no digits of a
        small difference are lost; elsewhere the result is off by `2 u` of itself.
        """
        got = np.asarray(got, np.float64)
        with np.errstate(all="ignore"):
            distance = np.abs((got - self.hi) - self.lo)
        same = (got == self.hi) | (np.isnan(got) & np.isnan(self.hi))
        return np.where(np.isnan(distance), np.where(same, 0.0, np.inf), distance)

    def replaced(self, where: Mask | np.bool_, value: Array | float, radius: float = 0.0) -> Ball:
        """With `value` where `where` holds."""
        if not where.any():
            return self
        news = ((value, self.hi), (0.0, self.lo), (radius, self.radius))
        return Ball(*(np.where(where, new, old) for new, old in news))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """`s + e = a + b` exactly, `s` being the rounded sum (Knuth; Higham, Accuracy and Stability, section 4.3).

    Example:
        >>> two_sum(1.0, 2.0**-60) == (1.0, 2.0**-60)
        True
    """
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def compensated_sum(terms: Array) -> Array:
    r"""The sum over the last axis, as good as rounded once: (..., n) to (...).

    Halves are added by :func:`two_sum`, level by level. The errors of all levels are summed plainly, and added at the
    end. For `n <= 2^30` terms the result is off by at most `u |Σ terms| + 2^-17 u Σ |terms|`.

    Proof. A level and its errors add up to the level before, exactly, so the root and all errors add up to Σ terms.
    Level l commits at most `u (1 + u)^l Σ|terms|` of errors, and there are at most 30 levels. Summing the errors, in
    whatever order, is off by at most `n u` of their absolute values (Higham, section 4.2): `2^30·30 u² (1 + u)^31
    Σ|terms|`, less than `2^-18 u Σ|terms|`. The last addition rounds once more. Additions that underflow are exact. ∎

    Example:
        >>> float(compensated_sum(np.array([1.0, 2.0**-70, -1.0]))) == 2.0**-70
        True
    """
    errors = np.zeros(terms.shape[:-1])
    while (n := terms.shape[-1]) > 1:
        middle, end = n // 2, n // 2 * 2
        sums, lost = two_sum(terms[..., :middle], terms[..., middle:end])
        errors += lost.sum(-1)
        terms = np.concatenate([sums, terms[..., end:]], -1) if end < n else sums
    return np.asarray(terms.sum(-1) + errors)


class Float64:
    """float64 rounds every operation; whoever uses it proves by how much the result is off.

    Assumed: `+ - × ÷` round correctly (IEEE 754); exp and log1p are within `EXP_LOG_ULP` ulp, so relatively within
    `2·EXP_LOG_ULP u`, or within 2^-1022 where the result may be flushed to zero.
    """

    def context(self) -> AbstractContextManager[Any]:
        """To compute under. inf and NaN that the caller will replace must not warn on their way."""
        return np.errstate(all="ignore")

    def numbers(self, values: NDArray[Any]) -> Elements:
        """The float32 or float64 numbers, exactly."""
        return np.asarray(values, np.float64)

    def number(self, value: flint.arb) -> float:
        """An exact number, off by 1 ulp."""
        return float(value)

    def shifted_exp(self, logits: Array, largest: Array) -> tuple[Elements, Elements]:
        """`a = logits - largest`, which is at most 0, and exp(a).

        `a` is off by `u |a|` at most. exp(a) is not: what the subtraction lost, `l`, is put back as `exp(a)·(1 + l)`.
        """
        shifted, lost = two_sum(logits, -largest)
        exps = np.exp(shifted)
        exps += exps * lost
        exps[np.isneginf(shifted)] = 0  # where `lost` is NaN
        return shifted, exps

    def total(self, terms: Elements) -> Elements:
        """The sum over the last axis."""
        return compensated_sum(terms)

    def ball(self, values: Elements, radius: Array) -> Ball:
        """The values with the radius that the caller has proven."""
        return Ball(values, np.broadcast_to(0.0, values.shape), radius)


class Balls:
    """flint's balls carry midpoint and radius through every operation and contain the exact result, by Arb's theorem.

    Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE Transactions
    on Computers 66(8), 2017. The operations are those of :class:`Float64`, on arrays of objects.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def context(self) -> AbstractContextManager[Any]:
        """To compute under. flint's precision is global, so this is not for threads."""
        return flint.ctx.workprec(self.bits)

    def numbers(self, values: NDArray[Any]) -> Elements:
        """The numbers, exactly, whatever the precision."""
        return np.asarray(_ARB(np.asarray(values, np.float64)), object)

    def number(self, value: flint.arb) -> flint.arb:
        """An exact number as it is."""
        return value

    def shifted_exp(self, logits: Array, largest: Array) -> tuple[Elements, Elements]:
        """`a = logits - largest`, and exp(a)."""
        shifted = logits - self.numbers(largest)  # a float64 and a ball: exact until it is rounded to `bits`, and fast
        return shifted, np.asarray(_EXP(shifted), object)

    def total(self, terms: Elements) -> Elements:
        """The sum over the last axis."""
        return np.asarray(np.add.reduce(terms, -1, initial=flint.arb(0)), object)

    def ball(self, values: Elements, radius: Array | None = None) -> Ball:
        """The values with their own radius, cut into hi and lo. What no float64 can hold has the radius inf.

        A float64 taken from a midpoint is off by at most 2^-52 of itself, or by 2^-1074: it is one of the two
        neighbours. `values - hi` is a ball again, so the error of hi is in it, and only that of lo is to be added.
        """
        hi = np.asarray(values.astype(np.float64))
        left = np.asarray(values - hi, object)
        lo = left.astype(np.float64)
        radius = np.asarray(_RADIUS(left), np.float64) + 2.0**-52 * np.abs(lo)
        radius = radius * (1 + 2.0**-50) + 2.0**-1072  # for the roundings of this line and the one before
        too_large = np.isinf(hi)
        return Ball(hi, np.where(too_large, 0.0, lo), np.where(too_large, np.inf, radius))


_ARB = np.frompyfunc(flint.arb, 1, 1)
_EXP = np.frompyfunc(flint.arb.exp, 1, 1)
_RADIUS = np.frompyfunc(flint.arb.rad, 1, 1)
