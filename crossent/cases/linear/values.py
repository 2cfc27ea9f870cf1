"""The kinds of hidden states and weights of a linear cross-entropy.

All numbers come from operations that IEEE 754 rounds correctly. So a case has the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from crossent.cases.values import Draw
from crossent.numerics.formats import Array


@dataclass(frozen=True)
class LinearDraw:
    """The sizes and random numbers from which this module draws hidden states and weights.

    Attributes:
        row_draw: the sizes (N, V) of the logits, the true classes, and the source of random numbers.
        hidden: the length of a hidden state, H.
    """

    row_draw: Draw
    hidden: int

    def input(self) -> Array:
        """Return (N, H) nearly normal numbers with variance 1."""
        return replace(self.row_draw, classes=self.hidden).nearly_normal()

    def weight(self) -> Array:
        """Return (V, H) nearly normal numbers with variance 1/H, so that logits have variance 1."""
        row_for_each_class = replace(self.row_draw, rows=self.row_draw.classes, classes=self.hidden)
        scaled: Array = row_for_each_class.nearly_normal() / np.sqrt(self.hidden)
        return scaled


_Numbers = tuple[Array, Array]  # hidden states, (N, H), and a weight, (V, H)


def _confident(draw: LinearDraw) -> _Numbers:
    # The hidden state of a row points along the weight of the true class, so that this class is far above the others.
    weight = draw.weight()
    return weight[draw.row_draw.hot] * draw.row_draw.row_integers(8, 40), weight


def _offset(draw: LinearDraw) -> _Numbers:
    # The first hidden unit adds 64 to every logit.
    hidden, weight = draw.input(), draw.weight()
    hidden[:, :1], weight[:, :1] = 1.0, 64.0
    return hidden, weight


def _decades(draw: LinearDraw) -> _Numbers:
    # The terms of a dot product differ by orders of magnitude.
    powers = draw.row_draw.random.randint(-8, 4, size=draw.hidden)
    return np.ldexp(draw.input(), powers), draw.weight()


def _cancelling(draw: LinearDraw) -> _Numbers:
    # Each pair of hidden units adds a large number to a logit, and nearly the same number with the other sign.
    hidden, weight = draw.input(), draw.weight()
    pairs = draw.hidden // 2
    weight[:, pairs : 2 * pairs] = 32.0 * weight[:, :pairs] + weight[:, pairs : 2 * pairs] / 8
    weight[:, :pairs] *= 32.0
    hidden[:, pairs : 2 * pairs] = -hidden[:, :pairs]
    return hidden, weight


def _integers(draw: LinearDraw) -> _Numbers:
    # Small integers, whose products and sums are exact in every format.
    random, rows = draw.row_draw.random, draw.row_draw
    hidden = random.randint(-1, 2, size=(rows.rows, draw.hidden)).astype(np.float64)
    return hidden, random.randint(-2, 3, size=(rows.classes, draw.hidden)).astype(np.float64)


def _flat(draw: LinearDraw) -> _Numbers:
    # All classes have the same weight, so all logits of a row are equal, and the gradient of the input is 0.
    return draw.input(), np.broadcast_to(draw.weight()[:1], (draw.row_draw.classes, draw.hidden))


LINEAR_VALUES: dict[str, Callable[[LinearDraw], _Numbers]] = {
    "normal": lambda draw: (draw.input(), 3.0 * draw.weight()),
    "flat": _flat,
    "confident": _confident,
    "large": lambda draw: (60.0 * draw.input(), draw.weight()),
    "common_offset": _offset,
    "decades": _decades,
    "tiny": lambda draw: (draw.input(), 1e-3 * draw.weight()),
    "cancelling": _cancelling,
    "positive": lambda draw: (np.abs(draw.input()), np.abs(draw.weight())),  # no term of a logit is negative
    "integers": _integers,
}
