"""Levels: how much of all that can be asked is asked; which cases, and which checks on each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crossent.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases import Case
from crossent.checks import SINGLE
from crossent.corpus import bugs
from crossent.determinism import DETERMINISM
from crossent.edges import edges
from crossent.grid import grid
from crossent.invariants import INVARIANTS
from crossent.relations import RELATIONS
from crossent.transforms import COMPILED, TRANSFORMS
from crossent.trials import Check

LEVELS = ("quick", "normal", "thorough")
Checks = tuple[Check, ...]
# What a call costs and little more; these run on every case.
ALWAYS: Checks = (*SINGLE, *INVARIANTS)
CHECKS = {check.name: check for check in (*ALWAYS, *RELATIONS, *DETERMINISM, *TRANSFORMS, *COMPILED)}


def plan(level: str, dtypes: Sequence[str], seed: int) -> dict[Case | BadInput, Checks]:
    """The cases of a level in these dtypes, each with the checks that run on it.

    quick: every two choices meet. normal: every three, and the checks that cost more calls where every two do.
    thorough: the same with other numbers four times over, and what takes minutes.
    """
    planned: dict[Case | BadInput, Checks] = {}
    for case, checks in _sources(level, dtypes, seed):
        planned[case] = tuple(dict.fromkeys((*planned.get(case, ()), *checks)))
    bad = [bad_input for bad_input in BAD_INPUTS if bad_input.dtype in dtypes]
    return planned | dict.fromkeys(bad, ())


def _sources(level: str, dtypes: Sequence[str], seed: int) -> Iterator[tuple[Case, Checks]]:
    for bug in bugs():  # first, so that a case that others have too keeps its name
        checks = tuple(CHECKS[name] for name in bug.checks if name in CHECKS)
        yield from ((case.seeded(seed), (*ALWAYS, *checks)) for case in bug.cases if case.dtype in dtypes)
    yield from ((case, ALWAYS) for case in edges(dtypes, seed, level))
    for at in range(4 if level == "thorough" else 1):
        if level == "quick":
            yield from ((case, ALWAYS) for case in grid(dtypes, seed, "pairs"))
        else:
            yield from ((case, (*ALWAYS, *RELATIONS)) for case in grid(dtypes, seed + at, "pairs"))
            yield from ((case, (*ALWAYS, *DETERMINISM, *TRANSFORMS)) for case in grid(dtypes, seed + at, "transformed"))
            yield from ((case, ALWAYS) for case in grid(dtypes, seed + at, "triples"))
