"""The two arithmetics of the oracle: float64 with compensated sums, and the ball arithmetic of flint.

:class:`Float64Arithmetic` and :class:`BallArithmetic` have the same methods, so that a formula is written once and runs
in either arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import flint
import numpy as np
from numpy.typing import ArrayLike, NDArray

from crossent.numerics.formats import Array

Mask = NDArray[np.bool_]
Elements = NDArray[Any]  # float64, or objects that are flint.arb

UNIT_ROUNDOFF = 2.0**-53
# The largest error of numpy's exp and log1p, in ulps, that the oracle assumes where the result is a normal number.
# numpy's own tests allow 1 ulp, and tests/numerics/test_oracle.py measures the error.
EXP_LOG_ULP = 2


@dataclass(frozen=True)
class Ball:
    """An array of balls: each exact value is within `radius` of `hi + lo`, the sum of two float64 numbers.

    Where `hi` is ±inf or NaN and the radius is 0, the exact value is `hi`. Where the radius is inf, the exact value is
    unknown.
    """

    hi: Array
    lo: Array
    radius: Array

    def distance(self, got: ArrayLike) -> Array:
        """Return the distance of each number of `got` from `hi + lo`: `|got - (hi + lo)|`.

        Equal infinities, or two NaN, have the distance 0. Any other infinity or NaN has the distance inf.

        If `got` and `hi` are within a factor of two of each other, `got - hi` is exact (Sterbenz's lemma). The distance
        then has a relative error of at most `u`, the unit roundoff; otherwise about `2 u`.
        """
        got = np.asarray(got, np.float64)
        with np.errstate(all="ignore"):
            distance = np.abs((got - self.hi) - self.lo)
        if not np.isnan(distance).any():
            return distance
        same = (got == self.hi) | (np.isnan(got) & np.isnan(self.hi))
        return np.where(np.isnan(distance), np.where(same, 0.0, np.inf), distance)

    def replaced(self, where: Mask | np.bool_, value: Array | float, radius: float = 0.0) -> Ball:
        """Return the balls with `hi = value`, `lo = 0` and the new `radius` where the mask `where` is True."""
        if not where.any():
            return self
        pairs = ((value, self.hi), (0.0, self.lo), (radius, self.radius))
        return Ball(*(np.where(where, new, old) for new, old in pairs))

    @staticmethod
    def joined(balls: Sequence[Ball], columns: tuple[int, ...] = ()) -> Ball:
        """Return the rows of all `balls` as one :class:`Ball`. `columns` is the shape of a row if `balls` is empty."""
        if not balls:
            return Ball(*np.empty((3, 0, *columns)))
        return Ball(*(np.concatenate([getattr(ball, name) for ball in balls]) for name in ("hi", "lo", "radius")))


def gamma(n: int) -> float:
    """Return `γ_n = n u/(1 - n u)` with `u = 2^-53`, a bound on the relative error of n roundings in float64."""
    return n * UNIT_ROUNDOFF / (1 - n * UNIT_ROUNDOFF)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum `s = fl(a + b)` and its error `e`, where `s + e = a + b` exactly.

    The numbers must be finite, and the sum must not overflow.

    Source: Knuth; Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.3.
    """
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def compensated_sum(terms: Array) -> Array:
    r"""Return the sum over the last axis, nearly as accurate as with a single rounding.

    At each level, :func:`two_sum` adds the first half of the terms to the second half, until a single term is left. The
    code adds the errors of all levels in plain float64, and then the single term. For `n <= 2^30` terms, the error is
    at most `u |Σ terms| + 2^-17 u Σ |terms|`, where `u` is the unit roundoff.

    Proof. The errors of a level and the terms of the next level have exactly the same sum as the terms of the level. So
    the single term and the errors of all levels add up to `Σ terms`. The absolute errors of level l sum to at most
    `u (1 + u)^l Σ|terms|`, and there are at most 30 levels. Summing the errors, in any order, has an error of at most
    `n u` times the sum of their absolute values (Higham, section 4.2). This is at most
    `2^30·30 u² (1 + u)^31 Σ|terms|`, less than `2^-18 u Σ|terms|`. The last addition adds one rounding. Additions that
    underflow are exact, unless the processor flushes the result to 0. ∎

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


class Float64Arithmetic:
    """float64 arithmetic. The caller proves the error radius of a result.

    The proofs in `formula` and `linear` assume that `+ - × ÷` round correctly (IEEE 754). exp and log1p may have an
    error of `EXP_LOG_ULP` ulp, so their relative error is at most `2·EXP_LOG_ULP u`, with the unit roundoff `u`. A
    result that the processor flushes to 0 may have an error of 2^-1022.
    """

    def context(self) -> AbstractContextManager[Any]:
        """Return a context manager that turns off numpy's warnings."""
        return np.errstate(all="ignore")

    def numbers(self, values: NDArray[Any]) -> Elements:
        """Convert float32 or float64 numbers to float64, exactly."""
        return np.asarray(values, np.float64)

    def number(self, value: flint.arb) -> float:
        """Round `value`, a ball of flint with the radius 0, to float64. The error is at most 1 ulp."""
        return float(value)

    def shifted_exp(self, logits: Array, largest: Array) -> tuple[Elements, Elements]:
        """Return `a = logits - largest` and exp(a), both (r, C). `largest`, (r, 1), has the largest logit of each row.

        The error of `a` is at most `u |a|`. The exponential corrects this error: the code computes `exp(a)·(1 + l)`,
        where `l` is the rounding error of the subtraction.
        """
        shifted, lost = two_sum(logits, -largest)
        exps = np.exp(shifted)
        exps += exps * lost
        exps[np.isneginf(shifted)] = 0  # for a logit of -inf, `lost` is NaN
        return shifted, exps

    def total(self, terms: Elements) -> Elements:
        """Return the sum over the last axis, by :func:`compensated_sum`."""
        return compensated_sum(terms)

    def ball(self, values: Elements, radius: Array) -> Ball:
        """Return the values as a :class:`Ball`, with a radius that the caller has proven."""
        return Ball(values, np.broadcast_to(0.0, values.shape), radius)


class BallArithmetic:
    """The ball arithmetic of flint, with the methods of :class:`Float64Arithmetic` for arrays of `flint.arb` objects.

    A ball is a midpoint of `bits` bits and a radius. Every operation returns a ball that contains the exact result.

    Source: F. Johansson, "Arb: efficient arbitrary-precision midpoint-radius interval arithmetic", IEEE Transactions
    on Computers 66(8), 2017.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def context(self) -> AbstractContextManager[Any]:
        """Return a context manager that sets flint's precision.

        The precision is global, so do not compute in several threads.
        """
        return flint.ctx.workprec(self.bits)

    def numbers(self, values: NDArray[Any]) -> Elements:
        """Convert float32 or float64 numbers to balls, exactly."""
        return np.asarray(_ARB(np.asarray(values, np.float64)), object)

    def number(self, value: flint.arb) -> flint.arb:
        """Return a number of flint unchanged."""
        return value

    def shifted_exp(self, logits: Array, largest: Array) -> tuple[Elements, Elements]:
        """Return `a = logits - largest` and exp(a) as balls, both (r, C). `largest` is (r, 1)."""
        # `logits` stay float64: flint is faster if it converts each number, exactly, in the subtraction.
        shifted = logits - self.numbers(largest)
        return shifted, np.asarray(_EXP(shifted), object)

    def total(self, terms: Elements) -> Elements:
        """Return the sum over the last axis."""
        return np.asarray(np.add.reduce(terms, -1, initial=flint.arb(0)), object)

    def ball(self, values: Elements, radius: Array | None = None) -> Ball:
        """Return the balls of flint as a :class:`Ball`. The argument `radius` has no effect: flint knows the radii.

        `hi` is the midpoint of `values`, and `lo` the midpoint of `values - hi`, both converted to float64. The error
        of a conversion is at most 2^-52 of the number, or 2^-1074. The returned radius is flint's radius of
        `values - hi`, plus the error of `lo`. Beyond the range of float64, the returned radius is inf.
        """
        hi = np.asarray(values.astype(np.float64))
        left = np.asarray(values - hi, object)
        lo = left.astype(np.float64)
        radius = np.asarray(_RADIUS(left), np.float64) + 2.0**-52 * np.abs(lo)
        radius = radius * (1 + 2.0**-50) + 2.0**-1072  # covers the roundings of this line and of the line before
        too_large = np.isinf(hi)
        return Ball(hi, np.where(too_large, 0.0, lo), np.where(too_large, np.inf, radius))


_ARB = np.frompyfunc(flint.arb, 1, 1)
_EXP = np.frompyfunc(flint.arb.exp, 1, 1)
_RADIUS = np.frompyfunc(flint.arb.rad, 1, 1)
