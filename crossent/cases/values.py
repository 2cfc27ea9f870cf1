"""The kinds of logits: ordinary numbers, and numbers that trigger one kind of numerical error.

Each kind gives the same bits on every machine and with every version of numpy. Its random numbers come from
`numpy.random.RandomState`, which is frozen (NEP 19). Its operations are defined by IEEE 754 to the last bit, unlike exp
and log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import Array, Format

LN2 = 0.6931471805599453


@dataclass(frozen=True)
class Draw:
    """The data from which a kind of logits draws its numbers.

    Attributes:
        rows: the number of rows R.
        classes: the number of classes C.
        hot: (R,), the true class of each row, or a random class if the target has no single true class.
        ignored: (R,), True on ignored rows.
        format: the floating-point format of the logits.
    """

    random: np.random.RandomState
    rows: int
    classes: int
    hot: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    format: Format

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (R, C) of the logits."""
        return self.rows, self.classes

    def nearly_normal(self) -> Array:
        """Return nearly normal numbers of variance 1, (R, C). Each number is a scaled sum of four uniform numbers."""
        total = np.zeros(self.shape)
        for _ in range(4):
            total += self.random.random_sample(self.shape) - 0.5
        return total * 1.7320508075688772  # √3, because the sum has the variance 4/12

    def row_integers(self, low: int, high: int) -> Array:
        """Return a random integer from `low` to `high` for each row, (R, 1)."""
        return self.random.randint(low, high + 1, size=(self.rows, 1)).astype(np.float64)

    @property
    def is_hot(self) -> NDArray[np.bool_]:
        """A mask (R, C), True at the class `hot` of each row."""
        return np.asarray(np.arange(self.classes) == self.hot[:, None])


def _confident(draw: Draw) -> Array:
    # The true class leads by k+b times log 2: k is random, and 2^b > C-1. So the other classes together have less than
    # 2^-k of the probability of the true class.
    return np.where(draw.is_hot, LN2 * (draw.row_integers(0, 20) + max(draw.classes - 1, 0).bit_length()), 0.0)


def _near_ties(draw: Draw) -> Array:
    # The logits differ by a few units in the last place of one format, and are ties in narrower formats.
    last_place = np.ldexp(1.0, -draw.random.choice([7, 10, 23, 52], size=(draw.rows, 1)))
    return np.asarray(1.0 + draw.random.randint(0, 4, size=draw.shape) * last_place)


def _subnormal(draw: Draw) -> Array:
    return np.asarray(draw.random.randint(-40, 41, size=draw.shape) * draw.format.smallest_subnormal)


def _decades(draw: Draw) -> Array:
    signs = draw.random.choice([-1.0, 1.0], size=draw.shape)
    return np.asarray(
        np.ldexp(signs * (1 + draw.random.random_sample(draw.shape)), draw.random.randint(-12, 10, size=draw.shape))
    )


def _outlier(draw: Draw) -> Array:
    at = draw.random.randint(0, max(draw.classes, 1), size=(draw.rows, 1))
    return np.where(np.arange(draw.classes) == at, draw.row_integers(20, 200), draw.nearly_normal())


def _scales(draw: Draw) -> Array:
    # Each row has its own scale, from 0.001 to 8000, so the mean adds up losses of very different sizes.
    return np.ldexp(draw.nearly_normal(), draw.random.randint(-10, 14, size=(draw.rows, 1)))


def _offsets(draw: Draw) -> Array:
    # Offsets of either sign, from 1 to 7e7. With an offset of 2^24 or more, most float32 logits of a row are ties.
    signs = draw.random.choice([-1.0, 1.0], size=(draw.rows, 1))
    return np.asarray(np.ldexp(signs, draw.random.randint(0, 27, size=(draw.rows, 1))) + draw.nearly_normal())


def _extreme(draw: Draw) -> Array:
    # Logits close to the format's largest number, so that differences and sums overflow. Some rows are much smaller.
    down = draw.random.randint(2, min(60, -draw.format.smallest_exponent), size=(draw.rows, 1))
    return np.asarray(np.ldexp(draw.nearly_normal(), -down) * draw.format.largest)


def _ramp(draw: Draw) -> Array:
    # Equal steps of a power of two: the exponentials are powers of one number, and their sum is a geometric series.
    down = draw.random.randint(0, 13, size=(draw.rows, 1))
    # The last logit must not overflow the format: x / 2^e is below 1 for the exponent e that frexp returns.
    fits = max(0, math.frexp(max(draw.classes - 1, 0) / draw.format.largest)[1])
    step = np.ldexp(1.0, -np.maximum(down, fits))
    return np.asarray(-step * np.arange(draw.classes))


def _biased(draw: Draw) -> Array:
    # All classes but one are equally far below that class: each addition of a running sum rounds in the same direction.
    at = draw.random.randint(0, max(draw.classes, 1), size=(draw.rows, 1))
    return np.where(np.arange(draw.classes) == at, 0.0, -draw.row_integers(1, 256) / 64)


def _pair(draw: Draw) -> Array:
    # Two classes tie far above the others: the sum of exponentials is about 2, or about 1 if one class is drawn twice.
    at = draw.random.randint(0, max(draw.classes, 1), size=(draw.rows, 2))
    top = (np.arange(draw.classes) == at[:, :1]) | (np.arange(draw.classes) == at[:, 1:])
    return np.where(top, draw.row_integers(20, 200), draw.nearly_normal())


def _assorted(draw: Draw) -> Array:
    # The rows take turns: normal, one class far above the others, all classes equal, far below zero.
    kinds = (3.0 * draw.nearly_normal(), _outlier(draw), np.zeros(draw.shape), 3.0 * draw.nearly_normal() - 1e4)
    return np.asarray(np.choose(np.arange(draw.rows)[:, None] % 4, kinds))


def _with(value: float, where: Callable[[Draw], NDArray[np.bool_]]) -> Callable[[Draw], Array]:
    return lambda draw: np.where(where(draw), value, 3.0 * draw.nearly_normal())


def _off_target(draw: Draw) -> NDArray[np.bool_]:
    return ~draw.is_hot & (draw.random.random_sample(draw.shape) < 0.4)


def _leading_tile(draw: Draw) -> NDArray[np.bool_]:
    # All classes but the last eighth, and never the true class. So most of a kernel's first tiles hold only -inf.
    return ~draw.is_hot & (np.arange(draw.classes) < draw.classes - max(1, draw.classes // 8))


def _one_of_the_row(draw: Draw) -> NDArray[np.bool_]:
    return np.asarray(np.arange(draw.classes) == draw.random.randint(0, max(draw.classes, 1), size=(draw.rows, 1)))


def _some_rows(draw: Draw) -> NDArray[np.bool_]:
    return np.broadcast_to(draw.random.random_sample((draw.rows, 1)) < 0.4, draw.shape)


@dataclass(frozen=True)
class LogitKind:
    """One kind of logits.

    Attributes:
        largest: an upper bound of the magnitudes of the finite logits. The largest number of a case's dtype must be at
            least this bound. The bound is 0 for `extreme`, whose logits scale with the dtype.
        ignored_only: whether only the logits of ignored rows are special.
    """

    draw: Callable[[Draw], Array]
    largest: float = 1e3
    ignored_only: bool = False


_DECIMALS = (-0.0, 0.0, 0.1, -0.1, 0.25, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.0)
VALUES = {
    "flat": LogitKind(lambda d: np.zeros(d.shape)),
    "equal": LogitKind(lambda d: np.broadcast_to(d.row_integers(-9, 9), d.shape)),
    "normal": LogitKind(lambda d: 3.0 * d.nearly_normal()),
    "tiny": LogitKind(lambda d: 1e-3 * d.nearly_normal()),
    "wide": LogitKind(lambda d: 60.0 * d.nearly_normal()),  # gaps over 100: exponentials underflow in float32
    "large": LogitKind(lambda d: 1e4 * d.nearly_normal(), 4e4),
    "decades": LogitKind(_decades, 2e3),
    "scales": LogitKind(_scales, 3e4),
    "extreme": LogitKind(_extreme, 0.0),
    "integers": LogitKind(lambda d: d.random.randint(-3, 4, size=d.shape).astype(np.float64)),  # exact ties
    "decimals": LogitKind(lambda d: d.random.choice(_DECIMALS, size=d.shape)),  # numbers that people write, and -0.0
    "near_ties": LogitKind(_near_ties),
    "confident": LogitKind(_confident),
    # p = 0.999 with two classes; all formats hold 6.90625
    "sure": LogitKind(lambda d: np.where(d.is_hot, 6.90625, 0.0)),
    # The true class is the least likely.
    "wrong": LogitKind(lambda d: d.nearly_normal() - d.is_hot * d.row_integers(20, 90)),
    "outlier": LogitKind(_outlier),  # one class far above the others
    "pair": LogitKind(_pair),
    "ramp": LogitKind(_ramp, 5e4),  # enough for 50,000 classes
    "ascending": LogitKind(lambda d: np.sort(3.0 * d.nearly_normal(), 1)),  # a running maximum changes at every class
    "biased": LogitKind(_biased),
    "offset": LogitKind(lambda d: 3.0 * d.nearly_normal() + 1e4, 1.1e4),
    "negative_offset": LogitKind(lambda d: 3.0 * d.nearly_normal() - 1e4, 1.1e4),
    "large_offset": LogitKind(lambda d: 3.0 * d.nearly_normal() + 1e8, 1.1e8),  # pytorch#38839
    "offsets": LogitKind(_offsets, 7e7),
    "row_offsets": LogitKind(lambda d: 3.0 * d.nearly_normal() + 128.0 * d.row_integers(-64, 64), 9e3),
    "subnormal": LogitKind(_subnormal),
    "inf_off_target": LogitKind(_with(-np.inf, _off_target)),
    "inf_on_target": LogitKind(_with(-np.inf, lambda d: d.is_hot & _some_rows(d))),
    "inf_tiles": LogitKind(_with(-np.inf, _leading_tile)),  # flash-attention#1930
    "positive_inf": LogitKind(_with(np.inf, lambda d: _one_of_the_row(d) & _some_rows(d))),
    "nan": LogitKind(_with(np.nan, lambda d: _one_of_the_row(d) & _some_rows(d))),
    "nan_ignored": LogitKind(_with(np.nan, lambda d: np.broadcast_to(d.ignored[:, None], d.shape)), ignored_only=True),
    "inf_ignored": LogitKind(_with(-np.inf, lambda d: np.broadcast_to(d.ignored[:, None], d.shape)), ignored_only=True),
    "assorted": LogitKind(_assorted, 1.1e4),
    "inf_rows": LogitKind(_with(-np.inf, _some_rows)),  # a row of -inf: its loss is NaN at every width, mlx#1467
}
