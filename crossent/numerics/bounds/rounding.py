"""Running rounding-error analysis: computed numbers, each with a bound on its error.

A :class:`Computed` stands for every computed number within `error` of the exact `value`. An operation returns a
:class:`Computed` that contains the result of every implementation that the rules allow. So a formula written with these
operations computes its own error bound. The rules assume no distribution of the errors, and drop no term of second
order.

Model: IEEE 754 arithmetic rounded to nearest, `fl(a ∘ b) = (a ∘ b)(1 + δ)` with `|δ| ≤ u`. A result that underflows
gradually has an absolute error of at most half the smallest subnormal number. (Source: Higham, Accuracy and Stability
of Numerical Algorithms, 2nd ed., sec. 2.2.) In a format that flushes, a subnormal operand or result may become 0, and
changes by less than the smallest normal number. A wider format or a fused multiply-add only leaves roundings out. A
number that may overflow its format has an infinite error.

In the formulas, two operands have the values `a` and `b` and the errors `e_a` and `e_b`. A single operand has the value
`v` and the error `e`. `u` is the unit roundoff of the format. A number is known if its error is 0. One ulp (unit in the
last place) is at most `2u` times the result. The errors are computed in float64, and :func:`safe` covers the roundings
of this computation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import FLOAT64, Array, Format, is_power_of_two, where_any


@dataclass(frozen=True)
class Order:
    """The orders in which an implementation may compute a sum: binary trees of additions.

    `Order(depth)` allows every tree in which no term goes through more than `depth` additions. `Order()` allows every
    tree.
    """

    depth: int | None = None


ANY_ORDER = Order()
_LOST = FLOAT64.largest_underflow_error  # bounds the error of a float64 product or quotient that underflows to 0


@dataclass(frozen=True)
class Computed:
    """Computed numbers: each is any number of `format` within `error` of the exact `value`.

    An infinite error allows any computed number. `format` is None if no format is known.
    """

    value: Array
    error: Array
    format: Format | None

    @staticmethod
    def exactly(value: Array | float, format: Format | None) -> Computed:
        """Return computed numbers that equal `value`. In a format that flushes, a subnormal number may also be 0."""
        value = np.asarray(value, dtype=np.float64)
        error = np.zeros_like(value)
        if format is not None and format.flushes:  # a subnormal number may become 0
            error = np.where(np.abs(value) < format.smallest_normal, np.abs(value), 0.0)
        return Computed(value, error, format)

    def __getitem__(self, rows: slice) -> Computed:
        return Computed(self.value[rows], self.error[rows], self.format)

    def __neg__(self) -> Computed:
        return Computed(-self.value, self.error, self.format)

    @cached_property
    def largest(self) -> Array:
        """The largest magnitude of each computed number, `|v| + e`."""
        return np.abs(self.value) + self.error

    def where(self, mask: NDArray[np.bool_]) -> Computed:
        """Return the numbers where the mask is True, and exact zeros elsewhere."""
        return Computed(np.where(mask, self.value, 0.0), np.where(mask, self.error, 0.0), self.format)

    @staticmethod
    def chosen(mask: NDArray[np.bool_], a: Computed, b: Computed) -> Computed:
        """Return `a` where the mask is True, and `b` elsewhere, in the format of `a`."""
        return Computed(np.where(mask, a.value, b.value), np.where(mask, a.error, b.error), a.format)

    def unless(self, mask: NDArray[np.bool_]) -> Computed:
        """Return the numbers, with an infinite error for finite values where `mask` is True."""
        return Computed(self.value, np.where(mask & np.isfinite(self.value), np.inf, self.error), self.format)

    def rounded(self, format: Format) -> Computed:
        """Return the numbers rounded to `format`. The error grows by at most :meth:`Format.rounding_error`."""
        if format.contains(self.format):
            return self
        with np.errstate(all="ignore"):
            once = format.rounding_error(self.largest, 2 * format.smallest_normal, self.error)
            known = (self.error == 0) & ((not format.flushes) | (np.abs(self.value) >= format.smallest_normal))
            if format.precision < 53 and known.any():
                lost = np.abs(format.nearest(self.value) - self.value)
                once = where_any(known & np.isfinite(lost), lost, once)
        return Computed(self.value, self.error + once, format)._bounded()

    def _bounded(self, *operands: Computed) -> Computed:
        """Return the numbers, with an infinite error where a finite value may overflow the format.

        An infinite value from finite `operands` has an infinite error, since float64 overflowed. Other infinite values
        have the error 0.
        """
        assert self.format is not None
        top = self.largest.max(initial=0.0)
        if np.isfinite(top) and not self.format.overflows(top):
            return self
        error = where_any(self.format.overflows(self.largest), np.inf, self.error)
        infinite = np.isinf(self.value)
        if not infinite.any():
            return Computed(self.value, error, self.format)
        # from finite operands, the float64 computation overflowed
        here = infinite & bool(operands)
        for operand in operands:
            here = here & np.isfinite(operand.value)
        value = np.where(here, np.copysign(FLOAT64.largest, self.value), self.value)
        return Computed(value, np.where(here, np.inf, np.where(infinite, 0.0, error)), self.format)

    def plus(self, other: Computed, format: Format) -> Computed:
        """Return the sum `a + b`, with the sum of both errors and one rounding to `format`."""
        with np.errstate(all="ignore"):
            value = self.value + other.value
            # The rounding error of this float64 addition, exactly (Knuth's two-sum).
            back = value - self.value
            lost = np.abs((self.value - (value - back)) + (other.value - back))
            lost = where_any(~np.isfinite(lost), 0.0, lost)
            error = self.error + other.error
            total = Computed(value, error, None)
            if format.precision == 53:
                once = where_any(error == 0, lost, format.unit_roundoff * total.largest)
                once = np.maximum(once, format.rounding_error(total.largest, error=error)) if format.flushes else once
                return Computed(value, error + once, format)._bounded(self, other)
            return Computed(value, total.rounded(format).error + lost, format)._bounded(self, other)

    def minus(self, other: Computed, format: Format) -> Computed:
        """Return the difference `a - b`, with the sum of both errors and one rounding to `format`."""
        return self.plus(-other, format)

    def times(self, other: Computed, format: Format, *, known: bool = True) -> Computed:
        """Return the product `a b`, with the error `|a| e_b + |b| e_a + e_a e_b` and one rounding to `format`.

        For two known factors, the rounding error is exact where possible. Pass `known=False` if an implementation may
        multiply several factors in another order: the rounding error is then `u |a b|`.
        """
        with np.errstate(all="ignore"):
            value = self.value * other.value
            error = np.abs(self.value) * other.error + np.abs(other.value) * self.error + self.error * other.error
            error = where_any((value == 0) & (self.largest > 0) & (other.largest > 0), error + _LOST, error)
            finite = bool(np.isfinite(value).all() and np.isfinite(error).all())
            if not finite:
                zero = ((self.value == 0) & (self.error == 0)) | ((other.value == 0) & (other.error == 0))
                error = where_any(zero, 0.0, error)
            once = _one_rounding(value, error, format, known)
            for one, two in ((self, other), (other, self)):
                if format.contains(two.format) and (exact := one.error == 0).any():
                    only = np.minimum(once, format.underflow_error(np.abs(value) - error))
                    once = where_any(exact & is_power_of_two(one.value), only, once)
            error = error + once
            if not finite:
                nan = np.isnan(value)
                error = where_any(zero | np.isinf(value), 0.0, error)
                # 0 times inf, or times an overflow, may be NaN
                error = where_any(np.isinf(self.error) | np.isinf(other.error) | nan, np.inf, error)
                value = where_any(nan, 0.0, value)
        return Computed(value, error, format)._bounded(self, other)

    def over(self, other: Computed, format: Format, ulps: float = 0.5, *, known: bool = True) -> Computed:
        """Return the quotient `a / b`, with the error `(e_a + |a/b| e_b) / (|b| - e_b)` and the error of the division.

        The division errs by at most `ulps` ulps, so by at most `2 · ulps` times the error of one rounding. With
        `ulps=0.5`, the division is correctly rounded. The rounding error of two known numbers is then exact where
        possible, unless `known` is False.
        """
        with np.errstate(all="ignore"):
            value = self.value / other.value
            room = np.abs(other.value) - other.error
            error = where_any(~(room > 0), np.inf, (self.error + np.abs(value) * other.error) / room)
            error = where_any((value == 0) & (self.largest > 0) & np.isfinite(other.value), error + _LOST, error)
            error = where_any((self.value == 0) & (self.error == 0) & (room > 0), 0.0, error)
            # The float64 division above is rounded too, so even an exact rounding error needs a margin of 2^-52.
            largest = np.abs(value) + error
            once = 2 * ulps * _one_rounding(value, error, format, known and ulps == 0.5)
            once = once + 2.0**-52 * largest
            if ulps == 0.5 and format.contains(self.format) and (exact := other.error == 0).any():
                only = np.minimum(once, format.underflow_error(np.abs(value) - error))
                once = where_any(exact & is_power_of_two(other.value), only, once)
            nan = np.isnan(value)
            error = where_any(nan, np.inf, error + once)
        return Computed(where_any(nan, 0.0, value), error, format)._bounded(self, other)

    def exp(self, format: Format, ulps: float, per_unit: float = 0.0) -> Computed:
        """Return `exp(x)`, for an implementation of exp with an error of at most `ulps` ulps.

        The error `e` of the argument contributes `|exp(x ± e) - exp(x)| ≤ exp(x + e)(1 - exp(-e))`. An implementation
        may scale the argument to base 2 first: `y = fl(x · fl(1/log 2))` is `x/log 2 · (1 + δ)`, `|δ| ≤ per_unit u`.
        Then `2^y = exp(x + δx)`, and the scaling adds `per_unit u |x|` to `e`.
        """
        with np.errstate(all="ignore"):
            u = format.unit_roundoff
            of_argument = self.error
            if per_unit:
                of_argument = of_argument + where_any(np.isinf(self.value), 0.0, per_unit * u * self.largest)
            value, top = np.exp(self.value), np.exp(self.value + of_argument)
            error = top * -np.expm1(-of_argument) + 2 * ulps * u * top
            # the result may be flushed to 0
            error = where_any(value < 8 * format.smallest_normal, error + format.smallest_normal, error)
            known = (self.error == 0) & ((self.value == 0) | np.isneginf(self.value))
        return Computed(value, where_any(known, 0.0, error), format)._bounded()

    def log(self, format: Format, ulps: float, value: Array, absolute: float = 0.0) -> Computed:
        """Return `log s` for `s ≥ 1`, for an implementation of log with an error of at most `ulps` ulps.

        Every computed `s` must be at least one, as for a sum that contains `exp(0)`. Pass the exact logarithm as
        `value`, because `log(s)` loses digits near one.

        A computed argument above `s` increases the logarithm by at most `log(1 + e/s)`. A computed argument below `s`
        decreases the logarithm by at most `-log(1 - e/s)`, and never by more than `log s`.

        A hardware logarithm has the absolute error `absolute` for arguments below two.
        """
        with np.errstate(all="ignore"):
            ratio = self.error / self.value
            down = where_any(~(ratio < 1), np.inf, -np.log1p(-np.minimum(ratio, 1 - 2.0**-52)))
            of_argument = np.maximum(np.log1p(ratio), np.minimum(down, value))
            once = 2 * ulps * format.unit_roundoff * (np.abs(value) + of_argument)
            if absolute:  # near one, no digit need be correct
                once = where_any(self.value - self.error <= 2, np.maximum(once, absolute), once)
            else:
                once = where_any((self.value == 1) & (self.error == 0), 0.0, once)
        return Computed(value, of_argument + once, format)

    def sum(self, format: Format, order: Order = ANY_ORDER, sizes: Array | None = None) -> Computed:
        """Return the sum over the last axis, with the error of the worst order that `order` allows.

        The error is `Σ e_i + u M/(1 - hu)`, or infinite if `hu ≥ 1/2`. Term i has the error `e_i` and a magnitude of at
        most `t_i`, and goes through `depth_i ≤ h` additions. For n nonzero terms, `h` is n - 1, or the depth of `order`
        if smaller. `M` is the smaller of `Ω` and `E/u`, defined below. If `order` has a depth, `M` is also at most
        `h Σ t`. In a format that flushes, each addition adds the smallest normal number to the error.

        Any order. Sort the magnitudes, `t_1 ≥ t_2 ≥ … ≥ t_n`. Every binary tree has `Σ t_i depth_i ≤ Ω`, with
        `Ω = Σ_{j ≥ 2} (t_1 + … + t_j)`. Adding one term at a time, the largest first (a caterpillar tree), attains `Ω`.
        Proof. Take any k leaves (terms), and let `c_v` of them be below the inner node (addition) v. The sum of their
        depths is `Σ_v c_v`. The k-1 nodes where these leaves meet contribute at most `k + (k-1) + … + 2`. The other n-k
        nodes contribute at most k each. The caterpillar attains both limits for every k, so no tree has a larger sum of
        its k largest depths. Abel summation against the decreasing t gives the claim. ∎

        Big and small terms. Let K terms be big, above `u Σ t`, and let the other, small terms sum to σ. `Ω_K` is `Ω`
        for the big terms. K-1 additions join two sums with big terms. Each result has at most σ of small terms, so
        these additions contribute at most `u (Ω_K + (K-1) σ)`. At most n-K additions join small terms only, and each
        contributes at most `u σ`. The other additions join a sum with big terms and a sum of small terms. The first sum
        is a number of the format, so rounding to nearest errs by at most the second. No term is in two such second
        sums, so these additions contribute at most σ. Together, the error is at most
        `E = u (Ω_K + (K-1) σ + (n-K) σ) + σ`.

        Exact sums. If all terms are known multiples of a power of two `2^m`, and `Σ t ≤ 2^m / u`, no order rounds.

        Overflow. A partial sum may be as large as `Σ t`. If `Σ t` may overflow, the error is infinite.

        Args:
            format: The format of the sum.
            order: The orders that the implementation may use.
            sizes: Numbers that replace smaller `t_i`, (..., n). Pass them if an implementation may sum parts of a term
                separately.
        """
        with np.errstate(all="ignore"):
            terms = self.largest if sizes is None else np.fmax(sizes, self.largest)
            count = (terms > 0).sum(-1)
            total, size = self.value.sum(-1), terms.sum(-1)
            here = np.isinf(total) & np.isfinite(self.value).all(-1)  # the float64 computation overflowed
            total = np.where(here, np.copysign(FLOAT64.largest, total), total)
            depth, passed = np.maximum(count - 1, 0), np.zeros_like(size)
            if terms.shape[-1] > 1:
                sort = np.sort(terms, axis=-1)[..., ::-1]
                running = np.cumsum(sort, -1)
                passed = np.where(sort[..., 1:] > 0, running[..., 1:], 0.0).sum(-1)
                big = np.maximum((sort > format.unit_roundoff * size[..., None]).sum(-1), 1)
                is_big = np.arange(terms.shape[-1]) < big[..., None]
                small = np.where(is_big, 0.0, sort).sum(-1)
                of_big = np.where(is_big[..., 1:], running[..., 1:], 0.0).sum(-1)
                split = of_big + (big - 1 + np.maximum(count - big, 0)) * small + small / format.unit_roundoff
                passed = np.minimum(passed, split)
            if order.depth is not None:
                depth = np.minimum(depth, order.depth)
                passed = np.minimum(passed, depth * size)
            grown = depth * format.unit_roundoff
            once = np.where(grown < 0.5, passed * format.unit_roundoff / (1 - grown), np.inf)
            once = np.where((count <= 1) | self._sums_exactly(format, size), 0.0, once)
            if format.flushes:
                once = once + np.maximum(count - 1, 0) * format.smallest_normal
            once = np.where(format.overflows(size), np.inf, once)
            error = np.where(np.isfinite(total), self.error.sum(-1) + once, 0.0)
            error = np.where(np.isnan(total), np.inf, error)
        return Computed(np.where(np.isnan(total), 0.0, total), error, format)._bounded()

    def _sums_exactly(self, format: Format, size: Array) -> NDArray[np.bool_]:
        """Return a mask of the sums that are exact in every order. `size` is the sum of the terms' magnitudes."""
        known = np.asarray((self.error == 0).all(-1) & np.isfinite(size))
        if known.any():
            values = self.value[known]
            mantissa, exponent = np.frexp(values)
            bits = np.abs(np.ldexp(mantissa, 53)).astype(np.int64)
            lowest = exponent - 53 + np.log2(np.maximum(bits & -bits, 1)).astype(np.int64)
            place = np.where(values == 0, 10**6, lowest).min(-1, initial=10**6)
            known[known] = size[known] <= np.ldexp(1.0, np.clip(place + format.precision, -1070, 1020))
        return known


def safe(error: Array) -> Array:
    """Return the error times 1 + 2^-30, which covers up to 2^20 float64 roundings in the error's computation."""
    return error * (1 + 2.0**-30)


def _one_rounding(value: Array, error: Array, format: Format, known: bool) -> Array:
    """Return the largest error that a rounding to `format` adds to numbers with the given values and errors.

    With `known`, return the exact rounding error of numbers without an error, where possible.
    """
    if format.precision == 53 or not known:
        return format.rounding_error(np.abs(value) + error, error=error)
    return where_any(np.isinf(error), 0.0, Computed(value, error, None).rounded(format).error - error)
