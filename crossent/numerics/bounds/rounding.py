"""A running-error algebra: numbers that an implementation holds, each with the error it may have.

A :class:`Held` stands for any computed number within `error` of the exact `value`. Each operation returns what every
implementation of it may hold that the stated rules allow, so that a formula, written once with these operations, is
its own error bound: composition is the triangle inequality. Nothing is assumed about how errors are distributed, and
no term of second order is dropped.

Model: IEEE 754 arithmetic rounded to nearest, `fl(a ∘ b) = (a ∘ b)(1 + δ)`, `|δ| ≤ u`, with gradual underflow an
absolute error of half the smallest subnormal number instead (Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., sec. 2.2). A wider format or a fused multiply-add only leaves roundings out. Where a number may overflow its
format its error is infinite: nothing is promised of it.

The errors are themselves computed in float64. :func:`safe` widens the last one by more than that can have lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import FLOAT64, Array, Format


@dataclass(frozen=True)
class Order:
    """In which orders a sum may be taken: any binary tree in which no term passes through more than `depth` additions.

    `depth=None` is every tree: any order, any association, any number of accumulators.
    """

    depth: int | None = None


ANY_ORDER = Order()


@dataclass(frozen=True)
class Held:
    """Any number of `format` within `error` of `value`; `format` is None where it is not known to be of any."""

    value: Array
    error: Array
    format: Format | None

    @staticmethod
    def exactly(value: Array | float, format: Format | None) -> Held:
        """A known number."""
        value = np.asarray(value, dtype=np.float64)
        return Held(value, np.zeros_like(value), format)

    def __neg__(self) -> Held:
        return Held(-self.value, self.error, self.format)

    @property
    def largest(self) -> Array:
        """The largest magnitude that may be held."""
        return np.abs(self.value) + self.error

    def where(self, mask: NDArray[np.bool_]) -> Held:
        """The number where the mask holds, an exact zero elsewhere."""
        return Held(np.where(mask, self.value, 0.0), np.where(mask, self.error, 0.0), self.format)

    def unless(self, mask: NDArray[np.bool_]) -> Held:
        """The number, of which nothing is promised where the mask holds; what is infinite stays so."""
        return Held(self.value, np.where(mask & np.isfinite(self.value), np.inf, self.error), self.format)

    def rounded(self, format: Format) -> Held:
        """Rounded to `format`: `e + max(u(|v| + e), η/2)`, the second below twice the smallest normal number.

        A number that is known is rounded to the nearest, so that its error is known too: 0 where it fits.
        """
        if format.contains(self.format):
            return self
        with np.errstate(all="ignore"):
            largest = self.largest
            under = np.where(largest < 2 * format.smallest_normal, format.smallest_subnormal / 2, 0.0)
            once = np.where(largest == 0, 0.0, np.maximum(format.unit_roundoff * largest, under))
            if format.precision < 53:
                known = np.abs(format.nearest(self.value) - self.value)
                once = np.where((self.error == 0) & np.isfinite(known), known, once)
        return Held(self.value, self.error + once, format)._bounded()

    def _bounded(self, *operands: Held) -> Held:
        """An infinite error where the format may overflow; none where the value itself is infinite.

        A value that is infinite though its operands are not is none: float64, which computes it here, overflowed.
        """
        assert self.format is not None
        error = np.where(self.format.overflows(self.largest), np.inf, self.error)
        infinite = np.isinf(self.value)
        if not infinite.any():
            return Held(self.value, error, self.format)
        here = infinite & bool(operands)
        for operand in operands:
            here = here & np.isfinite(operand.value)
        value = np.where(here, np.copysign(FLOAT64.largest, self.value), self.value)
        return Held(value, np.where(here, np.inf, np.where(infinite, 0.0, error)), self.format)

    def plus(self, other: Held, format: Format) -> Held:
        """`a + b`: the errors add up, and the sum is rounded once. Exact where two known numbers have no rounding."""
        with np.errstate(all="ignore"):
            value = self.value + other.value
            # What float64 itself lost of the sum of two known numbers (Knuth's two-sum: exact).
            back = value - self.value
            lost = np.abs((self.value - (value - back)) + (other.value - back))
            lost = np.where(np.isfinite(lost), lost, 0.0)
            error = self.error + other.error
            total = Held(value, error, None)
            if format.precision == 53:
                once = np.where(error == 0, lost, format.unit_roundoff * total.largest)
                return Held(value, error + once, format)._bounded(self, other)
            rounded = total.rounded(format)
            return Held(value, rounded.error + lost, format)._bounded(self, other)

    def minus(self, other: Held, format: Format) -> Held:
        """`a - b`."""
        return self.plus(-other, format)

    def times(self, other: Held, format: Format, *, known: bool = True) -> Held:
        """`a b`: `|a| e_b + |b| e_a + e_a e_b`, rounded once; a known power of two does not round.

        The rounding of two known numbers is known, unless `known` is False: among more factors, which come in any
        order, it may be two others that meet first.

        Zero times what may have overflowed, or times an infinity, is NaN in one implementation and zero in another:
        nothing is promised.
        """
        with np.errstate(all="ignore"):
            value = self.value * other.value
            error = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
            zero = ((self.value == 0) & (self.error == 0)) | ((other.value == 0) & (other.error == 0))
            open_ = np.isinf(self.error) | np.isinf(other.error) | np.isnan(value)
            error = np.where(zero, 0.0, error)
            once = _one_rounding(value, error, format) if known else _most(np.abs(value) + error, format)
            for one, two in ((self, other), (other, self)):
                free = (one.error == 0) & _power_of_two(one.value) & format.contains(two.format)
                once = np.where(free & (np.abs(value) + error > 4 * format.smallest_normal), 0.0, once)
            error = np.where(zero, 0.0, error + once)
            error = np.where(np.isinf(value), 0.0, error)
        held = Held(np.where(np.isnan(value), 0.0, value), np.where(open_, np.inf, error), format)
        return held._bounded(self, other)

    def over(self, other: Held, format: Format, ulps: float = 0.5, *, known: bool = True) -> Held:
        """`a / b`: `(e_a + |a/b| e_b) / (|b| - e_b)`, within `ulps`; nothing is promised where `b` may be zero.

        Half an ulp is correctly rounded: the error of a known quotient is known, unless `known` is False, as in
        :meth:`times`. Other divisions may err by `2 ulps` roundings wherever the quotient is not 0.
        """
        with np.errstate(all="ignore"):
            value = self.value / other.value
            room = np.abs(other.value) - other.error
            error = np.where(room > 0, (self.error + np.abs(value) * other.error) / room, np.inf)
            error = np.where((self.value == 0) & (self.error == 0) & (room > 0), 0.0, error)
            # float64 rounds the quotient of two known numbers, so that its error is not known to the last bit.
            largest = np.abs(value) + error
            once = _one_rounding(value, error, format)
            if ulps > 0.5 or not known:
                once = 2 * ulps * _most(largest, format)
            once = once + 2.0**-52 * largest
            free = (ulps == 0.5) & (other.error == 0) & _power_of_two(other.value) & format.contains(self.format)
            once = np.where(free & (np.abs(value) + error > 4 * format.smallest_normal), 0.0, once)
            error = np.where(np.isnan(value), np.inf, error + once)
        return Held(np.where(np.isnan(value), 0.0, value), error, format)._bounded(self, other)

    def exp(self, format: Format, ulps: float, per_unit: float = 0.0) -> Held:
        """`e^x` within `ulps`, where x may have been scaled to another base by a product that is off by `per_unit` u.

        `|exp(x ± e) - exp(x)| ≤ exp(x + e)(1 - exp(-e))`. A scaled argument, `y = fl(x · fl(log2 e))`, is
        `x log2 e (1 + δ)` with `|δ| ≤ per_unit u`, so that `2^y = exp(x + δx)`: `per_unit u |x|` more of e.

        `exp(0) = 1` and `exp(-inf) = 0` are exact. Near underflow the result may be flushed to zero.
        """
        with np.errstate(all="ignore"):
            u = format.unit_roundoff
            moved = self.error
            if per_unit:
                moved = moved + np.where(np.isinf(self.value), 0.0, per_unit * u * self.largest)
            value, top = np.exp(self.value), np.exp(self.value + moved)
            error = top * -np.expm1(-moved) + np.where(top == 0, 0.0, 2 * ulps * u * top)
            error = error + np.where(value < 8 * format.smallest_normal, format.smallest_normal, 0.0)
            known = (self.error == 0) & ((self.value == 0) | np.isneginf(self.value))
        return Held(value, np.where(known, 0.0, error), format)._bounded()

    def log(self, format: Format, ulps: float, value: Array, absolute: float = 0.0) -> Held:
        """`log s` within `ulps` of a number known to be at least one, as a sum of exponentials is that has `exp(0)`.

        `value` is the exact logarithm, which the caller has with more digits than `log(s)` gives near one. Upwards the
        error is `log(1 + e/s)`, downwards `-log(1 - e/s)` and never more than `log s`. `log 1 = 0` is exact.

        A hardware logarithm is off by `absolute` where its argument is below two, in ulps only above: near one its
        result has no digit right, and `log 1` need not be 0. What is held may be on either side of two where
        `s - e ≤ 2`, and the larger of the two errors counts.
        """
        with np.errstate(all="ignore"):
            ratio = self.error / self.value
            down = np.where(ratio < 1, -np.log1p(-np.minimum(ratio, 1 - 2.0**-52)), np.inf)
            moved = np.maximum(np.log1p(ratio), np.minimum(down, value))
            once = 2 * ulps * format.unit_roundoff * (np.abs(value) + moved)
            if absolute:
                once = np.where(self.value - self.error <= 2, np.maximum(once, absolute), once)
            else:
                once = np.where((self.value == 1) & (self.error == 0), 0.0, once)
        return Held(value, moved + once, format)

    def sum(self, format: Format, order: Order = ANY_ORDER, sizes: Array | None = None) -> Held:
        """The sum over the last axis, in every order that is allowed: `Σ e_i + u/(1 - hu) · max Σ_i t_i depth_i`.

        A term passes through as many roundings as it has additions above it. With magnitudes `t_1 ≥ t_2 ≥ …` every
        binary tree has `Σ t_i depth_i ≤ Ω = Σ_{j ≥ 2} (t_1 + … + t_j)`, which the caterpillar attains that has the
        largest terms deepest: for k leaves and `c_v` of them below node v, the sum of their depths is `Σ_v c_v`; the
        k-1 nodes where they meet count at most `k + (k-1) + … + 2`, the other n-k at most k each; the caterpillar
        attains both for all k at once, and Abel summation against the falling t gives the claim. An order of bounded
        depth has `depth · Σ t` too.

        Two refinements. Big and small: where K terms are above `u Σ t`, and σ is what the others sum to, a node that
        joins both kinds errs by no more than its smaller side, which is a sum of small terms, and these sides are
        disjoint: `u (Ω_K + (K-1) σ + (n-K) σ) + σ`. Exact sums: where all terms are known multiples of a power of two
        and `Σ t` needs no more bits than the format has, no order rounds at all.

        A partial sum of terms of both signs may be as large as `Σ t`, and overflow though the sum does not.

        `sizes`: what stands for `t` where a term is itself a sum whose parts may be summed apart; at least `|t|`.
        """
        with np.errstate(all="ignore"):
            terms = self.largest if sizes is None else np.fmax(sizes, self.largest)
            count = (terms > 0).sum(-1)
            total, size = self.value.sum(-1), terms.sum(-1)
            here = np.isinf(total) & np.isfinite(self.value).all(-1)  # float64 overflowed, and not the sum
            total = np.where(here, np.copysign(FLOAT64.largest, total), total)
            depth = np.maximum(count - 1, 0)
            if terms.shape[-1] > 1:
                sort = -np.sort(-terms, axis=-1)
                running = np.cumsum(sort, -1)
                passed = np.where(sort[..., 1:] > 0, running[..., 1:], 0.0).sum(-1)
                big = np.maximum((sort > format.unit_roundoff * size[..., None]).sum(-1), 1)
                is_big = np.arange(terms.shape[-1]) < big[..., None]
                small = np.where(is_big, 0.0, sort).sum(-1)
                of_big = np.where(is_big[..., 1:], running[..., 1:], 0.0).sum(-1)
                split = of_big + (big - 1 + np.maximum(count - big, 0)) * small + small / format.unit_roundoff
                passed = np.minimum(passed, split)
            else:
                passed = np.zeros_like(size)
            if order.depth is not None:
                depth = np.minimum(depth, order.depth)
                passed = np.minimum(passed, depth * size)
            grown = depth * format.unit_roundoff
            once = np.where(grown < 0.5, passed * format.unit_roundoff / (1 - grown), np.inf)
            once = np.where((count <= 1) | self._sums_exactly(format, size), 0.0, once)
            once = np.where(format.overflows(size), np.inf, once)
            error = np.where(np.isfinite(total), self.error.sum(-1) + once, 0.0)
            error = np.where(np.isnan(total), np.inf, error)
        return Held(np.where(np.isnan(total), 0.0, total), error, format)._bounded()

    def _sums_exactly(self, format: Format, size: Array) -> NDArray[np.bool_]:
        mantissa, exponent = np.frexp(self.value)
        bits = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
        lowest = exponent - 53 + np.log2(np.maximum(bits & -bits, 1)).astype(np.int64)
        place = np.where(self.value == 0, 10**6, lowest).min(-1, initial=10**6)
        fits = size <= np.ldexp(1.0, np.clip(place + format.precision, -1070, 1020))
        return np.asarray((self.error == 0).all(-1) & np.isfinite(size) & fits)


def safe(error: Array) -> Array:
    """Widened by 2^-30, more than float64 can have lost in computing it: at most 2^20 roundings of 2^-53 each."""
    return error * (1 + 2.0**-30)


def _one_rounding(value: Array, error: Array, format: Format) -> Array:
    if format.precision == 53:
        largest = np.abs(value) + error
        return np.where(largest == 0, 0.0, np.maximum(format.unit_roundoff * largest, format.smallest_subnormal))
    rounded = Held(value, error, None).rounded(format).error
    return np.where(np.isinf(error), 0.0, rounded - error)


def _most(largest: Array, format: Format) -> Array:
    """The most that rounding a number of this size may cost."""
    once = np.maximum(format.unit_roundoff * largest, format.smallest_subnormal / 2)
    return np.where(largest == 0, 0.0, once)


def _power_of_two(values: Array) -> NDArray[np.bool_]:
    return np.asarray(np.abs(np.frexp(values)[0]) == 0.5)
