"""Cases of a linear cross-entropy from covering arrays: each possible combination of two choices, or three, occurs.

The arrays have size ranges for the numbers of rows, classes and hidden units. A function that works in chunks changes
its code path where a chunk ends. So most numbers are 1, a prime, a power of two, or next to a power of two.

`nox -s cover` computes the arrays. The file NAME.txt has the ids of the cases of the array NAME.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from crossent.cases.axes import CLASS_LIMITS, DTYPES, ROW_LIMITS, Constraint, by_size_range
from crossent.cases.case import Case
from crossent.cases.grid import CHOICES, CoveringArray
from crossent.cases.linear.case import HIDDEN_LIMITS, LinearCase

# The size range of 33 to 256 classes ends with 255 here: with 256 classes, an ignore_index of 255 would be a class.
_CLASSES = by_size_range(
    (
        *(1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 61, 64, 67, 127, 128, 129, 251, 255),
        *(257, 300, 509, 511, 512, 513, 1000, 1021, 1023, 1024, 1025, 1031, 2047, 2048, 2049, 4093, 4096, 32000),
    ),
    CLASS_LIMITS,
    "classes",
)
_ROWS = by_size_range(
    (
        *(0, 1, 2, 3, 7, 8, 13, 15, 16, 17, 31, 32, 33, 61, 64, 67, 100, 127, 128, 129, 130, 255, 256, 257, 384),
        *(511, 512, 513, 1000, 1021, 1023, 1024, 1025, 1031, 2047, 2048, 2049, 4093, 4095, 4096),
    ),
    ROW_LIMITS,
    "rows",
)
_HIDDEN = by_size_range(
    (
        *(1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 96, 127, 128, 129, 251, 255, 256),
        *(257, 300, 509, 511, 512, 513, 768, 1000, 1021, 1024),
    ),
    HIDDEN_LIMITS,
    "hidden units",
)
# The dtype and the size ranges come first, so that the search notices an impossible combination early.
LINEAR_CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "row_size": tuple(_ROWS),
    "class_size": tuple(_CLASSES),
    "hidden_size": tuple(_HIDDEN),
    "values": LinearCase.axes["values"],
    "target": LinearCase.axes["target"],
    "reduction": LinearCase.axes["reduction"],
    "weight": CHOICES["weight"],
    "ignored": (*CHOICES["ignored"], "ignored_first_chunk"),
    "label_smoothing": CHOICES["label_smoothing"],
    "upstream": CHOICES["upstream"],
    "bias": LinearCase.axes["bias"],
    "layout": LinearCase.axes["layout"],
    "linear_layout": LinearCase.axes["linear_layout"],
    "target_layout": LinearCase.axes["target_layout"],
}
# Choices that hide bugs: with one of these choices, all gradients are zeros, empty or NaN.
_HIDING = {"row_size": ("no rows",), "class_size": ("1 class",), "ignored": ("ignored_all",), "upstream": ("zero",)}
# The 3-way array leaves out the sizes that hide bugs, and the sizes that cost most.
_NOT_IN_TRIPLES = ("no rows", "1 class", tuple(_CLASSES)[-1])
_OF_TRIPLES = {
    axis: tuple(word for word in words if word not in _NOT_IN_TRIPLES) for axis, words in LINEAR_CHOICES.items()
}
# The limits of a case: the most logits, the most logits in three rows or fewer, the most elements of input and weight.
_MOST_LOGITS, _MOST_OF_FEW_ROWS, _MOST_FACTORS = 34_000, 96_000, 300_000
# The limits in float64, whose exact values take long: the most logits, and the most products in all dot products.
_MOST_IN_FLOAT64, _MOST_PRODUCTS_IN_FLOAT64 = 2_100, 75_000


@cache
def linear_numbers(dtype: str, class_size: str, row_size: str, hidden_size: str) -> list[tuple[int, int, int]]:
    """Return the triples (classes, rows, hidden units) from three size ranges, except triples that cost too much."""
    return [
        (classes, rows, hidden)
        for classes, rows, hidden in itertools.product(_CLASSES[class_size], _ROWS[row_size], _HIDDEN[hidden_size])
        if classes * rows <= (_MOST_OF_FEW_ROWS if rows <= 3 else _MOST_LOGITS)
        and (rows > 0 or classes <= 255)  # an empty batch has no logits that could be wrong
        and (classes + rows) * hidden <= _MOST_FACTORS
        and (dtype != "float64" or classes * rows <= _MOST_IN_FLOAT64)
        and (dtype != "float64" or classes * rows * hidden <= _MOST_PRODUCTS_IN_FLOAT64)
    ]


_SIZE_AXES = ("dtype", "class_size", "row_size", "hidden_size")


@cache
def _possible(axes: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Return the combinations of choices that a case can have on `axes`, a subset of `_SIZE_AXES`."""
    every = itertools.product(*(LINEAR_CHOICES[axis] for axis in _SIZE_AXES))
    return {tuple(ranges[_SIZE_AXES.index(axis)] for axis in axes) for ranges in every if linear_numbers(*ranges)}


def _costs_too_much(axes: tuple[str, ...]) -> Constraint:
    return Constraint("the case would cost too much", axes, lambda *ranges: ranges not in _possible(axes))


@dataclass(frozen=True)
class LinearArray(CoveringArray):
    """A covering array of cases of a linear cross-entropy."""

    case_class: ClassVar[type[Case]] = LinearCase
    package: ClassVar[str] = "crossent.cases.linear"
    constraints: ClassVar[tuple[Constraint, ...]] = (
        # A constraint for each set of `_SIZE_AXES`: the search fills one axis after another, and so stops at the first
        # impossible choice.
        *(_costs_too_much(axes) for count in (2, 3, 4) for axes in itertools.combinations(_SIZE_AXES, count)),
        Constraint(
            "an ignore_index of 255 must not be a class",
            ("ignored", "class_size"),
            lambda ignored, classes: ignored in ("ignored", "ignored_all") and _CLASSES[classes][-1] > 255,
        ),
        Constraint(
            "without rows after the first chunk, all rows are ignored",
            ("ignored", "row_size"),
            lambda ignored, rows: ignored == "ignored_first_chunk" and _ROWS[rows][-1] <= 128,
        ),
        Constraint(
            "all rows are ignored, as with ignored_all",
            ("ignored", "row_size"),
            lambda ignored, rows: ignored in ("ignored_first", "ignored_16th") and rows == "1 row",
        ),
        Constraint(
            "a weight and hidden states in one storage are contiguous",
            ("layout", "linear_layout"),
            lambda layout, of_weight: of_weight == "linear_tied" and layout != "contiguous",
        ),
        *LinearCase.constraints,
    )
    size_axes: ClassVar[tuple[str, ...]] = _SIZE_AXES
    fields: ClassVar[tuple[str, ...]] = tuple(axis for axis in LINEAR_CHOICES if not axis.endswith("_size"))
    numbers: ClassVar[tuple[str, ...]] = ("classes", "rows", "hidden")
    hiding: ClassVar[Mapping[str, tuple[Any, ...]]] = _HIDING

    def sizes(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the smallest sizes in the size ranges of `chosen`, as fields of a case."""
        classes, rows, hidden = linear_numbers(*(chosen[axis] for axis in self.size_axes))[0]
        return {"sizes": (rows, classes), "hidden": hidden}

    def resized(self, case: Case) -> Iterator[Case]:
        """Yield the case with each triple (classes, rows, hidden units) in its size ranges, except costly triples."""
        assert isinstance(case, LinearCase)
        for classes, rows, hidden in linear_numbers(case.dtype, case.class_size, case.row_size, case.hidden_size):
            yield replace(case, sizes=(rows, classes), hidden=hidden)


LINEAR_ARRAYS = {"pairs": LinearArray(2, LINEAR_CHOICES), "triples": LinearArray(3, _OF_TRIPLES)}


def linear_grid(dtypes: Iterable[str] = tuple(DTYPES), seed: int = 0, array: str = "triples") -> Iterator[Case]:
    """Yield the cases of a covering array, a key of `LINEAR_ARRAYS`, in these dtypes, with this seed."""
    yield from LINEAR_ARRAYS[array].cases(array, dtypes, seed)
