"""Cases from covering arrays: every possible pair, or every possible combination of three choices, occurs in a case.

Most real bugs need a combination of weight, ignored rows, label smoothing and reduction (pytorch#73205). The files
`pairs.txt`, `triples.txt` and `transformed.txt` hold the ids of the cases. `nox -s cover` computes the files again,
with the library covertable.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from crossent.cases.axes import AXES, CONSTRAINTS, DTYPES, IGNORED, Constraint
from crossent.cases.case import Case

# The sizes of the logits: the class axis alone, among further dimensions, and sizes that hide bugs.
_SIZES = (
    (5,),
    (7, 5),
    (3, 5, 4),
    (2, 5, 3, 2),
    (2, 3, 2, 2, 3),
    (4, 1),
    (5, 5),  # N == C: a vector of class indices must not be read as one row of probabilities
    (0, 5),
    (17, 3),  # more rows than torch sums up in one block
    (2, 257),  # one class more than a power of two
)
# The values that code for an option may get wrong. The other values are about rounding; the soak test has them.
_VALUES = (
    *("flat", "equal", "normal", "tiny", "wide", "large", "decades", "integers", "near_ties", "confident", "sure"),
    *("wrong", "outlier", "offset", "negative_offset", "large_offset", "row_offsets", "subnormal"),
    *("inf_off_target", "inf_on_target", "inf_tiles", "positive_inf", "nan", "nan_ignored", "inf_ignored"),
)
# The choices that the covering arrays combine. The edges and the corpus have the other words of the axes.
CHOICES: dict[str, tuple[Any, ...]] = {
    "sizes": _SIZES,
    **{axis: words for axis, words in AXES.items() if axis != "weight_layout"},
    "values": _VALUES,
    "ignored": tuple(word for word in IGNORED if word not in ("ignored_minus_one", "ignored_zero")),
    "upstream": ("one", "scalar", "rows", "stride0", "zero"),
    "label_smoothing": (0.0, 0.1, 1.0),
}
# The choices for compilers and transforms, which depend on the structure of a call and hardly on its numbers.
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


@dataclass(frozen=True)
class CoveringArray:
    """A covering array: each possible combination of `strength` choices occurs in one of its cases."""

    strength: int
    choices: dict[str, tuple[Any, ...]]


# The array with the name NAME is kept in NAME.txt.
ARRAYS = {
    "pairs": CoveringArray(2, CHOICES),
    "triples": CoveringArray(3, CHOICES),
    "transformed": CoveringArray(2, TRANSFORMED),
}


def grid(dtypes: Iterable[str] = tuple(DTYPES), seed: int = 0, array: str = "triples") -> Iterator[Case]:
    """Return the cases of a covering array that have these dtypes. The dtype is one of the choices it combines."""
    wanted = set(dtypes)
    for line in (files("crossent.cases") / f"{array}.txt").read_text(encoding="utf-8").splitlines():
        case = Case.of(line)
        if case.dtype in wanted:
            yield case.seeded(seed)


def met(cases: Iterable[Case], strength: int = 3) -> int:
    """Return how many different combinations of `strength` choices occur in these cases.

    Example:
        >>> met([Case("float32")])  # three of eleven axes
        165
    """
    columns = [[getattr(case, axis) for axis in CHOICES] for case in cases]
    codes = [
        np.unique([repr(word) for word in column], return_inverse=True)[1] for column in zip(*columns, strict=True)
    ]
    return sum(len(np.unique(np.stack(some), axis=1).T) for some in itertools.combinations(codes, strength))


def cover(array: CoveringArray) -> list[Case]:
    """Compute the cases of a covering array again. Needs the package covertable."""
    from covertable import make

    choices, strength = array.choices, array.strength

    def rule(constraint: Constraint) -> dict[str, Any]:
        def holds(row: Mapping[str, int]) -> bool:
            return not constraint.forbids(*(choices[axis][row[axis]] for axis in constraint.axes))

        return {"operator": "fn", "requires": list(constraint.axes), "evaluate": holds}

    # Give the library positions in the lists instead of choices: it hashes and compares them all.
    factors = {name: list(range(len(of))) for name, of in choices.items()}
    rows = make(factors, strength=strength, constraints=[rule(constraint) for constraint in CONSTRAINTS])
    cases = (Case(**{name: choices[name][place] for name, place in row.items()}) for row in rows)
    order = list(DTYPES)
    return sorted(_balanced(list(cases), strength), key=lambda case: (order.index(case.dtype), case.id))


def _balanced(cases: list[Case], strength: int) -> list[Case]:
    """Balance the dtypes of the cases as far as the cover allows: for a free choice the library takes the first."""
    others = [axis for axis in CHOICES if axis != "dtype"]

    def sets(case: Case) -> list[tuple[Any, ...]]:
        of = [(axis, getattr(case, axis)) for axis in others]
        return [(case.dtype, *chosen) for chosen in itertools.combinations(of, strength - 1)]

    covered = Counter(chosen for case in cases for chosen in sets(case))
    many = Counter(case.dtype for case in cases)
    for at, case in enumerate(cases):
        least = min(DTYPES, key=lambda dtype: many[dtype])
        moved = replace(case, dtype=least)
        if many[least] + 1 < many[case.dtype] and not moved.invalid and all(covered[s] > 1 for s in sets(case)):
            covered.subtract(sets(case))
            covered.update(sets(moved))
            many[case.dtype] -= 1
            many[least] += 1
            cases[at] = moved
    return cases


if __name__ == "__main__":
    for name, array in ARRAYS.items():
        cases = cover(array)
        Path(__file__).with_name(f"{name}.txt").write_text("".join(f"{case.id}\n" for case in cases), encoding="utf-8")
        print(f"{name}.txt: {len(cases)} cases, {array.strength} choices")
