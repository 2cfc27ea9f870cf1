"""The plan of a run: the cases of a level, and the checks that run on each case.

Each level also runs everything in the levels above it. :class:`crossent.trials.check.Cost` explains the costs.

    level      cases            costs of the checks
    quick      corpus           CALL, and the checks that the bug names
               edges            CALL
               pairs            CALL
               sizes            CALL, without the widest rows
    normal     pairs            CALL, CALLS
               triples          CALL
               sizes            CALL
               size_triples     CALL
               transformed      CALL, STRUCTURE
               samples          CODE: each check on one case
    thorough   pairs, triples   as at level normal, four times with other numbers
               sizes            as at level normal, four times with other numbers
               size_triples     as at level normal, four times with other numbers
               transformed      CALL, STRUCTURE, CODE
               large            TILES

Bad inputs run at every level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.edges import edges, large_cases
from crossent.cases.grid import WIDEST, grid
from crossent.checks import CHECKS, compiled_code
from crossent.trials.check import Check, Cost

Plan = Mapping[Case | BadInput, tuple[Check, ...]]
# How often the covering arrays run, each time with other numbers.
_REPETITIONS = {"quick": 1, "normal": 1, "thorough": 4}


def plan(level: str, dtypes: Sequence[str], seed: int) -> Plan:
    """Return the cases of a level in these dtypes, each with the checks that run on it.

    quick: the cases cover all pairs of choices. normal: the cases cover all triples, and checks that need several calls
    run on the pairwise cases. thorough: like normal, four times with other numbers, and checks that take minutes. The
    sizes of classes and rows are among the choices, but the widest rows are in no case of level quick, and in pairs
    alone at the other levels.
    """
    planned: dict[Case | BadInput, set[Check]] = {}
    for case, checks in _planned(level, dtypes, seed):
        planned.setdefault(case, set()).update(checks)
    ordered = {case: tuple(check for check in CHECKS.values() if check in checks) for case, checks in planned.items()}
    return {**ordered, **{bad: () for bad in BAD_INPUTS if bad.dtype in dtypes}}


@cache
def of_cost(*costs: Cost) -> tuple[Check, ...]:
    """Return the checks of these costs."""
    return tuple(check for check in CHECKS.values() if check.cost in costs)


def _planned(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[Check]]]:
    yield from _of_corpus(level, dtypes, seed)  # first, so that a case of two sources keeps the name of its bug
    for case in edges(dtypes, seed, level):
        yield case, of_cost(Cost.CALL)
    for at in range(_REPETITIONS[level]):
        for case in grid(dtypes, seed + at, "pairs"):
            yield case, of_cost(Cost.CALL) if level == "quick" else of_cost(Cost.CALL, Cost.CALLS)
        for case in _grids(level, dtypes, seed + at):
            yield case, of_cost(Cost.CALL)
    if level == "quick":
        return
    transformed = list(grid(dtypes, seed, "transformed"))
    for case in transformed:
        yield case, of_cost(Cost.CALL, Cost.STRUCTURE)
    if level == "thorough":
        yield from ((case, of_cost(Cost.CODE)) for case in transformed)
        yield from ((case, of_cost(Cost.TILES)) for case in large_cases(dtypes, seed))
    else:
        yield from _samples(transformed)


def _grids(level: str, dtypes: Sequence[str], seed: int) -> Iterator[Case]:
    """Yield the cases of the covering arrays that have the checks of cost CALL at this level."""
    quick = level == "quick"
    yield from (case for case in grid(dtypes, seed, "sizes") if not quick or case.class_size != WIDEST)
    if not quick:
        yield from grid(dtypes, seed, "triples")
        yield from grid(dtypes, seed, "size_triples")


def _of_corpus(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Iterable[Check]]]:
    """The cases of each bug, with the checks that it names.

    Below level thorough, a bug that only a graph shows runs `trace` on the first of its cases: a traced graph takes
    half a second, and code takes several.
    """
    graphs = {compiled_code.trace, *of_cost(Cost.CODE)}
    for bug in bugs():
        named = {CHECKS[name] for name in bug.checks if name in CHECKS}
        for at, case in enumerate(case for case in bug.cases if case.dtype in dtypes and case.tiled == 1):
            yield case.seeded(seed), {*of_cost(Cost.CALL), *named} - (named & graphs)
            if named & graphs and (level == "thorough" or at == 0):
                yield case.seeded(seed), {compiled_code.trace, *(named & graphs if level == "thorough" else ())}


def _samples(cases: Sequence[Case]) -> Iterator[tuple[Case, Iterable[Check]]]:
    """For each check that makes code the first of the cases that may stand for the others."""
    some = [case for case in cases if case.rows and case.weight != "unweighted" and case.target != "uint8"]
    for check in of_cost(Cost.CODE):
        yield from ((case, [check]) for case in [case for case in some if check.sample(case)][:1])
