"""Compute the covering arrays of `crossent.cases.grid` and `crossent.cases.linear.grid` again: `nox -s cover`.

The library covertable computes the arrays without size ranges. The arrays with size ranges would take covertable hours,
because their constraints join many axes. The greedy search of this module takes some minutes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from crossent.cases.axes import DTYPES, Constraint
from crossent.cases.case import Case
from crossent.cases.grid import ARRAYS, CoveringArray, sized_triples
from crossent.cases.linear.grid import LINEAR_ARRAYS

# The number of candidates for each case. The search takes the candidate that completes the most combinations.
_CANDIDATES = 12

Chosen = dict[str, Any]  # the choices on some axes, by the name of the axis
Left = Mapping[tuple[str, ...], set[tuple[Any, ...]]]  # the combinations of choices that no case has yet, by their axes


def cover(array: CoveringArray) -> list[Case]:
    """Compute the cases of a covering array, sorted by dtype and id."""
    cases = _cover_sizes(array) if array.sized else _cover_options(array)
    order = list(DTYPES)
    return sorted(cases, key=lambda case: (order.index(case.dtype), case.id))


def _cover_options(array: CoveringArray) -> list[Case]:
    """Compute the cases of an array without size ranges, with covertable."""
    from covertable import make

    choices, strength = array.choices, array.strength

    def rule(constraint: Constraint) -> dict[str, Any]:
        def holds(row: Mapping[str, int]) -> bool:
            return not constraint.forbids(*(choices[axis][row[axis]] for axis in constraint.axes))

        return {"operator": "fn", "requires": list(constraint.axes), "evaluate": holds}

    # Give the library positions in the lists instead of choices: the library hashes and compares everything it gets.
    factors = {name: list(range(len(of))) for name, of in choices.items()}
    constraints = [rule(constraint) for constraint in array.case_class.constraints]
    rows = make(factors, strength=strength, constraints=constraints)
    made = [array.case({name: choices[name][place] for name, place in row.items()}) for row in rows]
    return _balance_dtypes(made, array)  # the first dtype has the most cases: covertable prefers first choices


def _balance_dtypes(cases: list[Case], array: CoveringArray) -> list[Case]:
    """Change the dtypes of some cases, so that all dtypes have about equally many cases."""
    covered = Counter(chosen for case in cases for chosen in array.combinations(case))
    many = Counter(case.dtype for case in cases)
    for at, case in enumerate(cases):
        least = min(DTYPES, key=lambda dtype: many[dtype])
        moved = replace(case, dtype=least)
        if many[least] + 1 < many[case.dtype] and not moved.invalid and _can_move(case, moved, covered, array):
            covered.subtract(array.combinations(case))
            covered.update(array.combinations(moved))
            many[case.dtype] -= 1
            many[least] += 1
            cases[at] = moved
    return cases


def _cover_sizes(array: CoveringArray) -> list[Case]:
    """Compute the cases of an array with size ranges, by a greedy search."""
    random = Random(0)
    left: Left = {axes: set(itertools.product(*(array.choices[axis] for axis in axes))) for axes in array.combined}
    cases = []
    for axes in array.combined:
        for words in itertools.product(*(array.choices[axis] for axis in axes)):
            start = dict(zip(axes, words, strict=True))
            if words not in left[axes] or not _is_possible(start, array):
                continue
            grown: list[tuple[int, Chosen]] = []
            while len(grown) < _CANDIDATES:
                grown += _complete(start, array, left, random)
            _, best = max(grown, key=lambda candidate: candidate[0])
            hiding = array.hiding_axes(best)
            for some, of_axes in left.items():
                if hiding <= set(some):
                    of_axes.discard(tuple(best[axis] for axis in some))
            cases.append(array.case(best))
    return list(_vary_sizes(_add_triples(cases, array), array))


def _complete(start: Chosen, array: CoveringArray, left: Left, random: Random) -> Iterator[tuple[int, Chosen]]:
    """Add a choice on every other axis to `start`. Yield a pair: a number of combinations, and all choices.

    The number counts the combinations in `left` that the choices complete. At a dead end, yield nothing.
    """
    # `start` is a missing combination, so it counts as the first completed one.
    chosen, completed, hiding = dict(start), 1, array.hiding_axes(start)
    axes = [axis for axis in array.choices if axis not in start]
    random.shuffle(axes)
    for axis in axes:
        words = [word for word in array.revealing_choices(axis) if not array.forbids({**chosen, axis: word})]
        if not words:  # a dead end; the caller tries again
            return
        joined = [of for of in left if axis in of and chosen.keys() >= {*of} - {axis} and hiding <= {*of}]
        random.shuffle(words)
        tried = [{**chosen, axis: word} for word in words]
        gains = [sum(tuple(map(one.__getitem__, of)) in left[of] for of in joined) for one in tried]
        completed += max(gains)
        chosen = tried[gains.index(max(gains))]
    yield completed, chosen


def _is_possible(chosen: Chosen, array: CoveringArray) -> bool:
    """Return whether a case of the array can have these choices."""
    if array.forbids(chosen):
        return False
    axis = next((axis for axis in array.choices if axis not in chosen), None)
    return axis is None or any(_is_possible({**chosen, axis: word}, array) for word in array.revealing_choices(axis))


def _add_triples(cases: list[Case], array: CoveringArray) -> list[Case]:
    """Change some choices of the cases, so that more triples (size range, choice on another axis, dtype) occur."""
    covered = Counter(chosen for case in cases for chosen in array.combinations(case))
    occurrences = Counter(chosen for case in cases for chosen in sized_triples(case))
    improved = True
    while improved:
        improved = False
        for (at, _), axis in itertools.product(enumerate(cases), ("dtype", *array.option_axes)):
            for word in array.choices[axis]:
                case, moved = cases[at], replace(cases[at], **{axis: word})
                before, after = sized_triples(case), sized_triples(moved)
                gain = sum(occurrences[new] == 0 for new in after - before) - sum(
                    occurrences[old] == 1 for old in before - after
                )
                if gain > 0 and _is_allowed(moved, array) and _can_move(case, moved, covered, array):
                    covered.subtract(array.combinations(case))
                    covered.update(array.combinations(moved))
                    occurrences.subtract(before)
                    occurrences.update(after)
                    cases[at], improved = moved, True
    return cases


def _is_allowed(case: Case, array: CoveringArray) -> bool:
    return not case.invalid and not array.forbids({axis: getattr(case, axis) for axis in array.choices})


def _can_move(case: Case, moved: Case, covered: Counter[Any], array: CoveringArray) -> bool:
    """Return whether every combination still occurs if `moved` replaces `case`. `covered` counts the combinations."""
    return all(covered[chosen] > 1 for chosen in set(array.combinations(case)) - set(array.combinations(moved)))


def _vary_sizes(cases: Iterable[Case], array: CoveringArray) -> Iterator[Case]:
    """Change sizes within their size ranges, so that all sizes of a range occur about equally often."""
    used: Counter[tuple[str, int]] = Counter()

    def numbers(case: Case) -> list[tuple[str, int]]:
        return [(name, getattr(case, name)) for name in array.numbers]

    for case in cases:
        chosen = min(array.resized(case), key=lambda one: sum(used[number] for number in numbers(one)))
        used.update(numbers(chosen))
        yield chosen


if __name__ == "__main__":
    for folder, arrays in (("", ARRAYS), ("linear", LINEAR_ARRAYS)):
        for name, array in arrays.items():
            made = cover(array)
            path = Path(__file__).parent / folder / f"{name}.txt"
            path.write_text("".join(f"{case.id}\n" for case in made), encoding="utf-8")
            what = f"{len(made)} cases, which cover combinations of {array.strength} choices"
            print(f"{path.relative_to(Path(__file__).parent)}: {what}")
