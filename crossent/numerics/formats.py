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
    """A binary floating-point format.

    Attributes:
        name: The dtype, such as "float32".
        precision: The number of bits of the significand, with the implicit bit.
        smallest_exponent: The exponent `k` of the smallest normal number, `2^k`.
        largest: The largest finite number.
        flushes: Whether an operation may replace subnormal operands and results by 0.
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
        """The smallest positive normal number."""
        return 2.0**self.smallest_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive subnormal number: the distance between neighbouring subnormal numbers."""
        return 2.0 ** (self.smallest_exponent - self.precision + 1)

    @property
    def largest_underflow_error(self) -> float:
        """The largest error of rounding a number below the smallest normal number."""
        if self.flushes:
            return self.smallest_normal
        # float64 has no number that is half its smallest subnormal number
        return self.smallest_subnormal / 2 or self.smallest_subnormal

    def last_place(self, value: float) -> float:
        """Return the spacing of the numbers of this format near `value`: one unit in the last place (ulp)."""
        exponent = math.frexp(value)[1] if value and math.isfinite(value) else self.smallest_exponent
        return 2.0 ** (max(exponent, self.smallest_exponent + 1) - self.precision)

    def contains(self, other: Format | None) -> bool:
        """Return whether this format represents every number of `other`. None stands for an unknown format."""
        return (
            other is not None
            and (other.flushes or not self.flushes)
            and self.precision >= other.precision
            and self.smallest_exponent - self.precision <= other.smallest_exponent - other.precision
            and self.largest >= other.largest
        )

    def overflows(self, sizes: Array) -> NDArray[np.bool_]:
        """Return a mask of the magnitudes in `sizes` that may be too large for this format."""
        # the margin covers the rounding errors of `sizes`
        return np.asarray(sizes > self.largest * (1 - 2.0**-20))

    def rounding_error(self, largest: Array, under: float = np.inf, error: Array | float = 0.0) -> Array:
        """Return the largest error that rounding to this format adds to each number.

        Args:
            largest: The largest possible magnitude of each number: `|v| + e` for a number `v` with the error `e`.
            under: The rounding may underflow only where `largest` is below this limit.
            error: The error `e` of each number before the rounding.
        """
        once = self.unit_roundoff * largest
        if self.flushes:
            under = min(under, 2 * self.smallest_normal)
            least = largest - 2 * error  # |v| - e, which flushing `v` to 0 adds to the error e
            once = where_any(least < (1 + 2.0**-20) * self.smallest_normal, np.maximum(once, least), once)
        small = (largest < under) & (largest > 0)
        return where_any(small, np.maximum(once, self.largest_underflow_error), once)

    def underflow_error(self, smallest: Array) -> Array:
        """Return the largest error of multiplying by a power of two, which is exact except for underflow.

        `smallest` has the smallest possible magnitude of each product.
        """
        return np.where(smallest > 4 * self.smallest_normal, 0.0, self.largest_underflow_error)

    def nearest(self, values: Array) -> Array:
        """Return `values` rounded to this format, as float64: ties to even, gradual underflow, overflow to infinity.

        The attribute `flushes` has no effect.
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
    """Return a copy of the format with `flushes=True`."""
    return replace(format, flushes=True)


def where_any(mask: NDArray[np.bool_], a: Array | float, b: Array) -> Array:
    """Return `np.where(mask, a, b)`. The result may be `b` itself, to avoid a copy."""
    if mask.any() or mask.shape != b.shape:
        return np.where(mask, a, b)
    return b


def is_power_of_two(values: Array) -> NDArray[np.bool_]:
    """Return a mask of the numbers whose magnitude is a power of two."""
    return np.asarray(np.abs(np.frexp(values)[0]) == 0.5)
