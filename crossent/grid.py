"""The grid: cases in which every triple of options meets.

Most real bugs sit where weight, ignored rows, smoothing and the reduction touch (pytorch#73205).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from crossent.cases import DTYPES, REDUCTIONS, Case

# Each shape is one lesson: the class axis, its place among further dimensions, and the sizes that hide bugs.
SIZES = (
    (5,),
    (7, 5),
    (3, 5, 4),
    (2, 5, 3, 2),
    (2, 3, 2, 2, 3),
    (4, 1),
    (5, 5),  # N == C: an index vector must not be taken for a dense row
    (0, 5),
)
VALUES = ("offset", "wide")  # beside "normal", which every shape has
AXES: dict[str, tuple[Any, ...]] = {
    "sizes and values": (*((sizes, "normal") for sizes in SIZES), *(((7, 5), values) for values in VALUES)),
    "target": ("int64", "uint8", "probabilities"),
    "weight": ("unweighted", "weighted"),
    "ignored": ("kept", "ignored", "ignored_class", "ignored_all"),
    "label_smoothing": (0.0, 0.1, 1.0),
    "reduction and upstream": tuple(
        (reduction, upstream)
        for reduction in REDUCTIONS
        for upstream in (("rows", "stride0") if reduction == "none" else ("scalar",))
    ),
}


def grid(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """A third of all valid combinations of the options, over every dtype and shape, and over the values of one shape.

    Those whose places in their lists add up to a multiple of three: whichever three are chosen, an option with three or
    more values is left to make the sum so, and every triple stays, as a test counts.
    """
    for dtype in dtypes:
        for places in itertools.product(*(range(len(axis)) for axis in AXES.values())):
            if sum(places) % 3:
                continue
            (sizes, values), target, weight, ignored, smoothing, (reduction, upstream) = (
                axis[place] for axis, place in zip(AXES.values(), places, strict=True)
            )
            case = Case(dtype, sizes, values, target, reduction, weight, ignored, smoothing, upstream, seed)
            if not case.invalid:
                yield case
