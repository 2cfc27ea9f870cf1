"""Cases from covering arrays: each possible combination of two choices (pairwise), or three (3-way), occurs in a case.

Most real bugs need a combination of weight, ignored rows, label smoothing and reduction (pytorch#73205). Other bugs
need an option together with many classes or rows. So the arrays `sizes` and `size_triples` combine options with size
ranges, such as 257 to 1024 classes.

`nox -s cover` computes the arrays. The file NAME.txt has the ids of the cases of the array NAME.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

import numpy as np

from crossent.cases.axes import AXES, CLASS_SIZES, DTYPES, IGNORED, ROW_SIZES, Constraint, why_forbidden
from crossent.cases.case import Case

# The sizes of the logits: the class axis alone, with a batch, with further dimensions, and sizes that trigger bugs.
_SIZES = (
    (5,),
    (7, 5),
    (3, 5, 4),
    (2, 5, 3, 2),
    (2, 3, 2, 2, 3),
    (4, 1),
    (5, 5),  # N == C: a vector of class indices must not be read as one row of probabilities
    (0, 5),
    (17, 3),  # more rows than torch sums in one block
    (2, 257),  # one class more than a power of two
)
# The kinds of logits that matter for the code of an option. `nox -s soak` tests all kinds, and `edges` some others.
_VALUES = (
    *("flat", "equal", "normal", "tiny", "wide", "large", "decades", "integers", "near_ties", "confident", "sure"),
    *("wrong", "outlier", "offset", "negative_offset", "large_offset", "row_offsets", "subnormal"),
    *("inf_off_target", "inf_on_target", "inf_tiles", "positive_inf", "nan", "nan_ignored", "inf_ignored"),
)
# The choices that the arrays `pairs` and `triples` combine. `edges` and `corpus` have cases with the other words of
# `AXES`, except for some kinds of logits.
CHOICES: dict[str, tuple[Any, ...]] = {
    "sizes": _SIZES,
    **{axis: words for axis, words in AXES.items() if axis != "weight_layout"},
    "values": _VALUES,
    "target": tuple(word for word in AXES["target"] if word != "padded"),
    "weight": ("unweighted", "weighted", "weight_decades", "weight_zeros", "weight_negative"),
    "ignored": tuple(
        word for word in IGNORED if word not in ("ignored_minus_one", "ignored_minus_two", "ignored_zero")
    ),
    "upstream": ("one", "scalar", "rows", "stride0", "zero"),
    "layout": tuple(word for word in AXES["layout"] if word != "cropped"),
    "target_layout": tuple(word for word in AXES["target_layout"] if word != "target_cropped"),
    "label_smoothing": (0.0, 0.1, 1.0),
}
# The choices of the array `transformed`, for compilers and transforms. Their bugs depend on the structure of a call,
# and hardly on its numbers.
TRANSFORMED: dict[str, tuple[Any, ...]] = {
    **CHOICES,
    "sizes": ((5,), (7, 5), (3, 5, 4), (2, 5, 3, 2), (0, 5)),
    "values": ("normal", "inf_off_target", "nan_ignored"),
    "weight": ("unweighted", "weighted"),
    "ignored": ("kept", "ignored", "ignored_default", "ignored_class", "ignored_all"),
    "label_smoothing": (0.0, 0.1),
    "upstream": ("one", "rows", "stride0"),
    "layout": ("contiguous", "class_last", "strided", "expanded"),
    "target_layout": ("target_contiguous", "target_strided"),
}

# The choices of the arrays with size ranges. Three axes determine the sizes: the size range of the number of classes,
# the size range of the number of rows, and the number of dimensions. The cases use the numbers of a size range in turn.
SIZED: dict[str, tuple[Any, ...]] = {
    "class_size": tuple(CLASS_SIZES),
    "row_size": tuple(ROW_SIZES),
    "dimensions": (1, 2, 3, 4),
    "dtype": CHOICES["dtype"],
    "values": ("normal", "assorted", "outlier", "negative_offset", "inf_off_target", "nan_ignored"),
    "target": CHOICES["target"],
    "reduction": CHOICES["reduction"],
    "weight": CHOICES["weight"],
    "ignored": ("kept", "ignored", "ignored_default", "ignored_class", "ignored_16th", "ignored_all"),
    "label_smoothing": (0.0, 0.1, 1.0),
    "upstream": ("one", "scalar", "rows", "stride0"),
    "layout": ("contiguous", "transposed", "class_last", "strided"),
    "target_layout": ("target_contiguous", "target_strided"),
}
SIZE_AXES = ("class_size", "row_size", "dimensions")
# A case with the widest rows costs as much as a dozen other cases, so the 3-way array leaves out these rows.
WIDEST = tuple(CLASS_SIZES)[-1]
SIZED_TRIPLES = {**SIZED, "class_size": tuple(size for size in SIZED["class_size"] if size != WIDEST)}
_MOST_LOGITS = {1: 2**20, 2: 33_000}  # the most logits of a case with one row and with two rows
_MOST_OF_ROWS = 12_300  # the most logits of a case with more rows


@cache
def numbers_of(class_size: str, row_size: str) -> list[tuple[int, int]]:
    """Return the pairs (classes, rows) from two size ranges, except pairs that give too many logits."""
    return [
        (classes, rows)
        for classes, rows in itertools.product(CLASS_SIZES[class_size], ROW_SIZES[row_size])
        if classes * rows <= _MOST_LOGITS.get(rows, _MOST_OF_ROWS)
    ]


@cache
def sizes_of(classes: int, rows: int, dimensions: int) -> tuple[int, ...]:
    """Return sizes of logits with these numbers of classes, rows and dimensions.

    >>> sizes_of(300, 12, 2), sizes_of(300, 12, 3), sizes_of(300, 12, 4), sizes_of(300, 1, 1)
    ((12, 300), (3, 300, 4), (2, 300, 2, 3), (300,))
    """
    axes = []
    for left in range(dimensions - 1, 1, -1):
        axes.append(max(n for n in range(1, rows + 1) if rows % n == 0 and n**left <= rows))
        rows //= axes[-1]
    return (classes,) if dimensions == 1 else tuple((*axes[:1], classes, *axes[1:], rows) if axes else (rows, classes))


SIZE_CONSTRAINTS = (
    Constraint(
        "the case would cost too much",
        ("class_size", "row_size"),
        lambda classes, rows: not numbers_of(classes, rows),
    ),
    Constraint(
        "logits without a batch are one row",
        ("dimensions", "row_size"),
        lambda dimensions, rows: dimensions == 1 and rows != "1 row",
    ),
)


@dataclass(frozen=True)
class CoveringArray:
    """A list of cases in which each possible combination of choices on `strength` axes occurs.

    Attributes:
        strength: 2 for a pairwise array, 3 for a 3-way array.
        choices: the choices on each axis, by the name of the axis.
        around: names of axes. If there are any, each covered combination has a choice on one of these axes.
    """

    # The class of the cases, the constraints on their choices, and the package whose NAME.txt has the cases.
    case_class: ClassVar[type[Case]] = Case
    constraints: ClassVar[tuple[Constraint, ...]] = (*SIZE_CONSTRAINTS, *Case.constraints)
    package: ClassVar[str] = "crossent.cases"
    # The axes that determine the sizes of a case, if the array has size ranges.
    size_axes: ClassVar[tuple[str, ...]] = SIZE_AXES
    # The axes that are fields of a case.
    fields: ClassVar[tuple[str, ...]] = tuple(CHOICES)
    # The attributes of a case that :meth:`resized` changes.
    numbers: ClassVar[tuple[str, ...]] = ("classes", "rows")
    # For some axes, the choices that hide bugs: with such a choice, all gradients are zeros, empty or NaN. A case with
    # such choices covers only the combinations that contain all of these choices.
    hiding: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    strength: int
    choices: dict[str, tuple[Any, ...]]
    around: tuple[str, ...] = ()

    @property
    def combined(self) -> list[tuple[str, ...]]:
        """The sets of axes whose choices the array combines."""
        every = itertools.combinations(self.choices, self.strength)
        return [axes for axes in every if not self.around or set(self.around) & set(axes)]

    @property
    def sized(self) -> bool:
        """Whether the array has size ranges instead of sizes."""
        return set(self.size_axes) <= self.choices.keys()

    @property
    def option_axes(self) -> tuple[str, ...]:
        """The axes other than the dtype and the size ranges."""
        return tuple(axis for axis in self.choices if axis not in (*self.size_axes, "dtype"))

    def hiding_axes(self, chosen: Mapping[str, Any]) -> set[str]:
        """Return the axes whose choice in `chosen` hides bugs, such as an upstream gradient of zeros."""
        return {axis for axis, words in self.hiding.items() if chosen.get(axis) in words}

    def revealing_choices(self, axis: str) -> list[Any]:
        """Return the choices on an axis that hide no bugs."""
        return [word for word in self.choices[axis] if word not in self.hiding.get(axis, ())]

    def combinations(self, case: Case) -> list[tuple[tuple[str, Any], ...]]:
        """Return the combinations of choices that a case covers, each as pairs (axis, choice)."""
        hiding = self.hiding_axes({axis: getattr(case, axis) for axis in self.hiding})
        return [tuple((axis, getattr(case, axis)) for axis in axes) for axes in self.combined if hiding <= set(axes)]

    def forbids(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether a constraint forbids `chosen`, alone or with the smallest sizes in its size ranges."""
        if why_forbidden(chosen, self.constraints) is not None:
            return True
        if not set(self.size_axes) <= chosen.keys():
            return False
        return why_forbidden({**chosen, **self.sizes(chosen)}, self.constraints) is not None

    def case(self, chosen: Mapping[str, Any]) -> Case:
        """Return the case with the choices `chosen`. From each size range, the case has the smallest size."""
        sizes = self.sizes(chosen) if self.sized else {}
        return self.case_class(**sizes, **{axis: chosen[axis] for axis in self.fields if axis in chosen})

    def sizes(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the smallest sizes in the size ranges of `chosen`, as fields of a case."""
        return {"sizes": sizes_of(*numbers_of(chosen["class_size"], chosen["row_size"])[0], chosen["dimensions"])}

    def resized(self, case: Case) -> Iterator[Case]:
        """Yield the case with each pair (classes, rows) in its size ranges, except pairs that give too many logits."""
        for classes, rows in numbers_of(case.class_size, case.row_size):
            yield replace(case, sizes=sizes_of(classes, rows, case.dimensions))

    def cases(self, name: str, dtypes: Iterable[str], seed: int) -> Iterator[Case]:
        """Yield the cases of the array `name` in these dtypes, with this seed, from the file NAME.txt."""
        wanted = set(dtypes)
        for line in (files(self.package) / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            case = self.case_class.of(line)
            if case.dtype in wanted:
                yield case.seeded(seed)


# The covering arrays, by name. The file NAME.txt has the cases of the array NAME.
ARRAYS = {
    "pairs": CoveringArray(2, CHOICES),
    "triples": CoveringArray(3, CHOICES),
    "transformed": CoveringArray(2, TRANSFORMED),
    "sizes": CoveringArray(2, SIZED),
    "size_triples": CoveringArray(3, SIZED_TRIPLES, ("class_size", "row_size")),
}


def grid(dtypes: Iterable[str] = tuple(DTYPES), seed: int = 0, array: str = "triples") -> Iterator[Case]:
    """Yield the cases of a covering array, a key of `ARRAYS`, in these dtypes, with this seed."""
    yield from ARRAYS[array].cases(array, dtypes, seed)


def each_choice(cases: Sequence[Case], others: Iterable[Case] = ()) -> list[Case]:
    """Return a few of `cases` that, together with `others`, have all choices of `cases`.

    Only choices on the axes of `TRANSFORMED` count.
    """
    had = [choice for case in others for choice in _pairs(case)]
    left = {choice for case in cases for choice in _choices(case)} - {one for pair in had for one in pair}
    pairs, some = set(had), list[Case]()
    while left:
        # Prefer a case with rows: the compiled graph of an empty batch can hardly be wrong.
        some.append(max(cases, key=lambda case: (len(left & _choices(case)), case.rows > 0, len(_pairs(case) - pairs))))
        left -= _choices(some[-1])
        pairs |= _pairs(some[-1])
    return some


def _choices(case: Case) -> set[tuple[str, Any]]:
    return {(axis, getattr(case, axis)) for axis in TRANSFORMED}


def _pairs(case: Case) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(sorted(_choices(case), key=lambda choice: choice[0]), 2))


def count_combinations(cases: Iterable[Case], strength: int = 3) -> int:
    """Return the number of different combinations of `strength` choices on the axes of `Case.counted`.

    All cases must have the same operation.

    >>> count_combinations([Case("float32")])  # three of eleven axes
    165
    """
    columns = [[getattr(case, axis) for axis in case.counted] for case in cases]
    codes = [
        np.unique([repr(word) for word in column], return_inverse=True)[1] for column in zip(*columns, strict=True)
    ]
    return sum(len(np.unique(np.stack(some), axis=1).T) for some in itertools.combinations(codes, strength))


def sized_triples(case: Case) -> set[tuple[str, str, str]]:
    """Return the triples (size range of classes or rows, choice on another axis, dtype) of a case.

    >>> ("257 to 1024 classes", "reduction sum", "float32") in sized_triples(Case.of("float32-300-flat-int64-sum"))
    True
    """
    sizes = {"sizes", "class_size", "row_size", "dtype"}
    options = [f"{axis} {getattr(case, axis)}" for axis in (*case.counted, "dimensions") if axis not in sizes]
    return {(size, option, case.dtype) for size in (case.class_size, case.row_size) for option in options}
