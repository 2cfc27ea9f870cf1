"""Levels: how much of all that can be asked is asked; which cases, and which checks on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.edges import edges, large_cases
from crossent.cases.grid import grid
from crossent.checks import ALWAYS, CHECKS
from crossent.checks.circumstances import CIRCUMSTANCES
from crossent.checks.derivatives import DERIVATIVES
from crossent.checks.determinism import DETERMINISM
from crossent.checks.large import LARGE
from crossent.checks.options import OPTIONS
from crossent.checks.relations import RELATIONS, TWO_BACKWARDS
from crossent.checks.transforms import TRANSFORMS
from crossent.trials.trial import Check

LEVELS = ("quick", "normal", "thorough")
Checks = tuple[Check, ...]


# Code is made in seconds, and a dynamic graph in half of one. Below the level thorough, a bug that these find is asked
# for on one case, in the graph before it is code, which is fast; and they themselves on a case with class indices or on
# one with probabilities.
SLOW_OF_INDICES, SLOW_OF_PROBABILITIES = ("compile", "trace_dynamic", "compiled_error"), ("compile_dynamic",)
SLOW = (*SLOW_OF_INDICES, *SLOW_OF_PROBABILITIES)
FAST = "trace"
# Of what costs as much as all other relations, the structure of a call decides, and hardly its numbers.
COSTLY = ("threads",)


def plan(level: str, dtypes: Sequence[str], seed: int) -> dict[Case | BadInput, Checks]:
    """The cases of a level in these dtypes, each with the checks that run on it.

    quick: every two choices meet. normal: every three, and the checks that cost more calls where every two do.
    thorough: the same with other numbers four times over, and what takes minutes.
    """
    planned: dict[Case | BadInput, set[str]] = {}
    for case, checks in _sources(level, dtypes, seed):
        planned.setdefault(case, set()).update(checks)
    bad = [bad_input for bad_input in BAD_INPUTS if bad_input.dtype in dtypes]
    ordered = {case: tuple(CHECKS[name] for name in CHECKS if name in names) for case, names in planned.items()}
    return ordered | dict.fromkeys(bad, ())


def _sources(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[str]]]:
    thorough, always = level == "thorough", _names(ALWAYS)
    deep = {*_names((*RELATIONS, *OPTIONS, *TWO_BACKWARDS, *CIRCUMSTANCES, *DERIVATIVES))} - {*COSTLY}
    for bug in bugs():  # first, so that a case that others have too keeps its name
        of_graphs = set(bug.checks) & {*SLOW, FAST}
        for at, case in enumerate(case for case in bug.cases if case.dtype in dtypes and case.tiled == 1):
            yield case.seeded(seed), {*always, *bug.checks} - of_graphs
            if of_graphs and (thorough or at == 0):
                yield case.seeded(seed), {FAST, *(of_graphs if thorough else ())}
    yield from ((case, always) for case in edges(dtypes, seed, level))
    if level == "quick":
        yield from ((case, always) for case in grid(dtypes, seed, "pairs"))
        return
    for at in range(4 if thorough else 1):
        yield from ((case, (*always, *deep)) for case in grid(dtypes, seed + at, "pairs"))
        yield from ((case, always) for case in grid(dtypes, seed + at, "triples"))
    transformed = list(grid(dtypes, seed, "transformed"))
    yield from ((case, {*always, *COSTLY, *_names((*DETERMINISM, *TRANSFORMS))} - {*SLOW}) for case in transformed)
    if thorough:
        yield from ((case, SLOW) for case in transformed)
        yield from ((case, _names(LARGE)) for case in large_cases(dtypes, seed))
    else:
        some = [case for case in transformed if case.rows and case.weight != "unweighted" and case.target != "uint8"]
        yield from ((case, SLOW_OF_INDICES) for case in [case for case in some if case.target == "int64"][:1])
        yield from ((case, SLOW_OF_PROBABILITIES) for case in [case for case in some if case.target != "int64"][:1])


def _names(checks: Checks) -> tuple[str, ...]:
    return tuple(check.name for check in checks)
