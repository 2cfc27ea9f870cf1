"""Select a part of a plan: chosen cases, and chosen checks on these cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.ids import case_of
from crossent.checks import checks_of, single
from crossent.run.plan import Plan, of_cost
from crossent.trials.check import Check, Cost
from crossent.words import quoted

# These checks run before any other check, since the others need a loss of the right shape and dtype.
BEFORE = (single.call, single.result)
# A full id can choose a case that the plan lacks. For each level, the costs of the checks that run on such a case.
_COSTS = {
    "quick": (Cost.CALL, Cost.AGAIN),
    "normal": (Cost.CALL, Cost.AGAIN, Cost.CALLS, Cost.STRUCTURE),
    "thorough": (Cost.CALL, Cost.AGAIN, Cost.CALLS, Cost.STRUCTURE, Cost.CODE),
}
_ERRORS = "errors"  # the name that chooses the checks of bad inputs


def select(
    planned: Plan,
    level: str,
    checks: Collection[str],
    cases: Mapping[str, Collection[str]],
    every: Mapping[str, Check] | None = None,
) -> Plan:
    """Return the chosen cases of a plan, each with its chosen checks.

    Args:
        planned: the plan.
        level: the level of the plan.
        checks: the names of checks; all checks of the plan if empty. `call` and `result` run too.
        cases: for each id of a case, or pattern such as `*smooth0.1*`, the names of the checks to run; all cases if
            empty. An id or a pattern without names has the checks in `checks`. A full id also chooses a
            case that the plan lacks.
        every: the checks that a name can choose; by default, the checks of the operation of the case.

    Raises:
        ValueError: an id or a pattern matches no case, or no chosen check runs on any chosen case.
    """
    wanted: dict[Case | BadInput, set[str]] = {}
    by_full_id: set[Case | BadInput] = set()
    for word, own in cases.items():
        full = not _is_pattern(word)
        for case in [_case(word)] if full else _matching(planned, word):
            chosen = set(own or checks)
            before = wanted.get(case, chosen)
            wanted[case] = before | chosen if before and chosen else set()  # no names choose all checks
            by_full_id |= {case} if full else set()
    if not cases:
        wanted = {case: set(checks) for case in planned}
    own_case = {case: case for case in planned}  # the plan's object also has the name of a bug
    part = {
        own_case.get(case, case): tuple(_checks(case, names, planned.get(case), case in by_full_id, level, every))
        for case, names in wanted.items()
        if _runs(case, names, planned.get(case), case in by_full_id, every)
    }
    if not part:
        if cases and by_full_id == wanted.keys():
            names = sorted({name for of_case in wanted.values() for name in of_case})
            what = f"no chosen check ({', '.join(names)}) applies to a chosen case; choose another check or case"
            raise ValueError(f"cases: got {', '.join(cases)}; {what}")
        if checks:
            given, what = f"checks: got {', '.join(checks)}", f"no chosen case of level {level} runs these checks"
        else:
            given, what = f"cases: got {', '.join(cases)}", "no chosen check runs on these cases"
        raise ValueError(f"{given}; {what}; choose another level or dtype, or name a case by its full id")
    order = {case: at for at, case in enumerate(planned)}
    return dict(sorted(part.items(), key=lambda entry: order.get(entry[0], len(order))))


def _is_pattern(word: str) -> bool:
    return any(sign in word for sign in "*?[")


def _case(id: str) -> Case | BadInput:
    try:
        return case_of(id)
    except ValueError as error:
        raise ValueError(f"cases{str(error).removeprefix('case')}; a pattern has a *, as in '*smooth0.1*'") from None


def _matching(planned: Iterable[Case | BadInput], pattern: str) -> list[Case | BadInput]:
    found = [case for case in planned if any(fnmatchcase(name, pattern) for name in _ids(case))]
    if not found:
        raise ValueError(
            f"cases: got {quoted(pattern)}, which matches no case of this level and these dtypes; "
            f"see `crossent list cases`"
        )
    return found


def _ids(case: Case | BadInput) -> Iterator[str]:
    """Yield the id of a case with the seed, then the id without the seed. A bad input has only one id."""
    yield case.id
    if isinstance(case, Case):
        yield case.seeded(0).id


def _runs(
    case: Case | BadInput,
    names: Collection[str],
    planned: Collection[Check] | None,
    by_full_id: bool,
    every: Mapping[str, Check] | None,
) -> bool:
    """Return whether at least one check in `names` runs on a case. If `names` is empty, return True."""
    if isinstance(case, BadInput):
        return not names or _ERRORS in names
    return not names or any(
        check.name in names for check in _checks(case, names, planned, by_full_id, "", every) if check.applies(case)
    )


def _checks(
    case: Case | BadInput,
    names: Collection[str],
    planned: Collection[Check] | None,
    by_full_id: bool,
    level: str,
    every: Mapping[str, Check] | None,
) -> Iterator[Check]:
    """Yield the checks in `names` that run on a case, and the checks `call` and `result`, which run before them.

    If `names` is empty, yield the checks of the plan. For a case that the plan lacks, yield the checks of the level.
    """
    if isinstance(case, BadInput):
        return
    if not names and planned is not None:
        yield from planned
        return
    every = every or checks_of(case.operation)
    if not names:
        # On a batch of more than 2^31 elements (`tiled`), only checks of the cost TILES run.
        costs = (Cost.TILES,) if case.tiled > 1 else _COSTS[level]
        yield from (check for check in every.values() if check.cost in costs)
        return
    possible = of_cost(Cost.TILES) if case.tiled > 1 else every.values()
    before = () if case.tiled > 1 else BEFORE
    for check in possible:
        if check in before or (check.name in names and (by_full_id or check in (planned or ()))):
            yield check
