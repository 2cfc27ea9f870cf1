"""The binary floating-point formats float16, bfloat16, float32 and float64: their precision, range and rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, described by its precision and its range.

    Attributes:
        name: The name of the dtype, such as "float32".
        precision: The number of bits of the significand, with the implicit bit.
        smallest_exponent: The exponent `k` of the smallest normal number, `2^k`.
        largest: The largest finite number.
        flushes: Whether an operation may treat a subnormal operand as 0, and may return 0 for a subnormal result.
    """

    name: str
    precision: int
    smallest_exponent: int
    largest: float
    flushes: bool = False

    @property
    def unit_roundoff(self) -> float:
        """The unit roundoff `u`: rounding a normal number `v` to nearest has an error of at most `u|v|`."""
        return 2.0**-self.precision

    @property
    def smallest_normal(self) -> float:
        """The smallest positive normal number. Below this limit, neighbouring numbers have a constant distance."""
        return 2.0**self.smallest_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive subnormal number. Neighbouring subnormal numbers have this distance."""
        return 2.0 ** (self.smallest_exponent - self.precision + 1)

    @property
    def largest_underflow_error(self) -> float:
        """The largest error of rounding a number in the subnormal range: half the smallest subnormal number.

        For float64, this property is the smallest subnormal number itself, because float64 cannot represent half of
        this number. In a format that flushes, the property is the smallest normal number.
        """
        if self.flushes:
            return self.smallest_normal
        return self.smallest_subnormal / 2 or self.smallest_subnormal

    def last_place(self, value: float) -> float:
        """Return the spacing of the numbers of this format near `value`: one unit in the last place (ulp).

        If `value` is 0, infinite or NaN, return :attr:`smallest_subnormal`.
        """
        exponent = math.frexp(value)[1] if value and math.isfinite(value) else self.smallest_exponent
        return 2.0 ** (max(exponent, self.smallest_exponent + 1) - self.precision)

    def contains(self, other: Format | None) -> bool:
        """Return whether this format represents every number of the format `other`.

        Return False if `other` is None: the other format is not known. Also return False if this format flushes and the
        other format does not.
        """
        return (
            other is not None
            and (other.flushes or not self.flushes)
            and self.precision >= other.precision
            and self.smallest_exponent - self.precision <= other.smallest_exponent - other.precision
            and self.largest >= other.largest
        )

    def overflows(self, sizes: Array) -> NDArray[np.bool_]:
        """Return a mask of the magnitudes in `sizes` that may be too large for this format.

        The caller computed the magnitudes in float64. A relative margin of 2^-20 covers the rounding errors.
        """
        return np.asarray(sizes > self.largest * (1 - 2.0**-20))

    def rounding_error(self, largest: Array, under: float = np.inf, error: Array | float = 0.0) -> Array:
        """Return, for each element, the largest error that rounding a number to this format adds.

        Args:
            largest: The largest magnitude that each number can have: `|v| + e` for a number `v` with the error `e`.
            under: Where `largest` is above 0 and below this limit, the returned error is at least
                :attr:`largest_underflow_error`. By default, the limit is infinite. In a format that flushes, the limit
                is at most twice the smallest normal number.
            error: The error `e` that each number has before the rounding. If `|v| - e` is below the smallest normal
                number, a format that flushes may replace the number by 0. The returned error is then at least
                `|v| - e`, so that the error after the rounding is at least `|v|`.
        """
        once = self.unit_roundoff * largest
        if self.flushes:
            under = min(under, 2 * self.smallest_normal)
            least = largest - 2 * error
            once = where_any(least < (1 + 2.0**-20) * self.smallest_normal, np.maximum(once, least), once)
        small = (largest < under) & (largest > 0)
        return where_any(small, np.maximum(once, self.largest_underflow_error), once)

    def underflow_error(self, smallest: Array) -> Array:
        """Return, for each element, the largest error of multiplying by a power of two: only underflow causes an error.

        `smallest` has the smallest magnitude that each product can have. Where `smallest` is above four times the
        smallest normal number, the error is 0. Elsewhere, the error is :attr:`largest_underflow_error`.
        """
        return np.where(smallest > 4 * self.smallest_normal, 0.0, self.largest_underflow_error)

    def nearest(self, values: Array) -> Array:
        """Return `values` rounded to this format: ties to even, gradual underflow, overflow to infinity.

        The result has the dtype float64, which represents every number of the format. Subnormal numbers are not flushed
        to 0, even if the format flushes.
        """
        if self.precision == 53:
            return values
        if self == FLOAT32:
            with np.errstate(all="ignore"):
                return values.astype(np.float32).astype(np.float64)
        # Round the bits of the float64 numbers as integers. First add slightly less than half a unit in the last kept
        # place: the addition carries into this place exactly if the number rounds up. Where the last kept bit is 1, add
        # 1 more, so that ties go to even. Then set the dropped bits to 0.
        values = np.asarray(values, dtype=np.float64)
        bits, dropped = values.view(np.int64), 53 - self.precision
        rounded = bits >> dropped
        rounded &= 1
        rounded += 2 ** (dropped - 1) - 1
        rounded += bits
        rounded &= -(2**dropped)
        nearest, size = rounded.view(np.float64), np.abs(values)
        with np.errstate(invalid="ignore"):
            under = size < self.smallest_normal
            if under.any():
                # One ulp of `spaced` is the smallest subnormal number, so `size + spaced` is rounded to a multiple of
                # the smallest subnormal number.
                spaced = 1.5 * 2.0**52 * self.smallest_subnormal
                nearest = np.where(under, np.copysign((size + spaced) - spaced, values), nearest)
            if not size.max(initial=0.0) < self.largest * (1 - self.unit_roundoff):
                over = np.abs(nearest) > self.largest
                nearest = np.where(np.isfinite(values), np.where(over, np.copysign(np.inf, values), nearest), values)
        return nearest


# IEEE 754-2019, table 3.5. bfloat16 has the exponents of float32, and eight bits of precision.
FLOAT16 = Format("float16", 11, -14, 65504.0)
BFLOAT16 = Format("bfloat16", 8, -126, 2.0**127 * (2 - 2.0**-7))
FLOAT32 = Format("float32", 24, -126, 2.0**127 * (2 - 2.0**-23))
FLOAT64 = Format("float64", 53, -1022, 2.0**1023 * (2 - 2.0**-52))
FORMATS = {f.name: f for f in (FLOAT16, BFLOAT16, FLOAT32, FLOAT64)}


@cache
def flushing(format: Format) -> Format:
    """Return a copy of the format in which operations may flush subnormal numbers to 0."""
    return replace(format, flushes=True)


def where_any(mask: NDArray[np.bool_], a: Array | float, b: Array) -> Array:
    """Return `np.where(mask, a, b)`, or `b` itself if the mask is False everywhere and has the shape of `b`.

    In most calls, the mask is False everywhere. Then the function avoids a copy.
    """
    if mask.any() or mask.shape != b.shape:
        return np.where(mask, a, b)
    return b


def is_power_of_two(values: Array) -> NDArray[np.bool_]:
    """Return a mask of the numbers whose magnitude is a power of two."""
    return np.asarray(np.abs(np.frexp(values)[0]) == 0.5)
