"""The grid: cases in which every three choices that can stand together meet.

Most real bugs sit where weight, ignored rows, smoothing and the reduction touch (pytorch#73205). The arrays of cases
are made once by a library and kept in `pairs.txt` and `triples.txt`, as ids; `nox -s cover` makes them anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from crossent.cases import AXES, CONSTRAINTS, DTYPES, Case, Constraint

# Each is one lesson: the class axis, its place among further dimensions, and the sizes that hide bugs.
SIZES = (
    (5,),
    (7, 5),
    (3, 5, 4),
    (2, 5, 3, 2),
    (2, 3, 2, 2, 3),
    (4, 1),
    (5, 5),  # N == C: an index vector must not be taken for a dense row
    (0, 5),
    (17, 3),  # more rows than torch's block of sums
    (2, 257),  # one class more than a power of two
)
CHOICES: dict[str, tuple[Any, ...]] = {
    "sizes": SIZES,
    **AXES,
    "label_smoothing": (0.0, 0.1, 1.0),
}
ARRAYS = {2: "pairs.txt", 3: "triples.txt"}


def grid(dtypes: Iterable[str] = tuple(DTYPES), seed: int = 0, strength: int = 3) -> Iterator[Case]:
    """The cases of these dtypes in which every `strength` choices meet, 2 or 3, the dtype being one of them."""
    wanted = set(dtypes)
    for line in (files("crossent") / ARRAYS[strength]).read_text().splitlines():
        case = Case.of(line)
        if case.dtype in wanted:
            yield case.seeded(seed)


def cover(strength: int) -> list[Case]:
    """An array in which every `strength` choices meet that can: needs covertable."""
    from covertable import make

    def rule(constraint: Constraint) -> dict[str, Any]:
        def holds(row: Mapping[str, int]) -> bool:
            return not constraint.forbids(*(CHOICES[axis][row[axis]] for axis in constraint.axes))

        return {"operator": "fn", "requires": list(constraint.axes), "evaluate": holds}

    # Places in the lists instead of choices, which are all hashed and compared there.
    factors = {name: list(range(len(choices))) for name, choices in CHOICES.items()}
    rows = make(factors, strength=strength, constraints=[rule(constraint) for constraint in CONSTRAINTS])
    cases = (Case(**{name: CHOICES[name][place] for name, place in row.items()}) for row in rows)
    order = list(DTYPES)
    return sorted(cases, key=lambda case: (order.index(case.dtype), case.id))


if __name__ == "__main__":
    for strength, name in ARRAYS.items():
        cases = cover(strength)
        Path(__file__).with_name(name).write_text("".join(f"{case.id}\n" for case in cases))
        print(f"{name}: {len(cases)} cases, {strength} choices")
