"""Merge the reports of the shards of `crossent check`. No code from a report is run or imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossent.cases.case import Case
from crossent.cases.grid import count_combinations
from crossent.cases.ids import case_of
from crossent.cases.operation import OPERATIONS
from crossent.checks import RANK_CHECKS, checks_of
from crossent.machine import ranks_of
from crossent.report.document import Shard
from crossent.report.expected_findings import fixed
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run.commands import with_commands
from crossent.run.shards.match import in_order, machine_conditions, require_same_run
from crossent.subjects.features import FEATURES
from crossent.subjects.ranks.protocol import require_number_of_ranks
from crossent.words import counted, cut, quoted


def merged(named: Sequence[tuple[str, Report]]) -> Report:
    """Return the report of a whole run from the reports of all its shards, each with a name for messages.

    Raises:
        ValueError: a report is damaged, not complete or of another run; or a shard is missing or repeated.
    """
    shards = in_order(named, "check", lambda one: "" if one.planned is None else f"after {counted(one.cases, 'case')}")
    require_same_run(shards, _conditions)
    _require_each_case_once(shards)
    return _joined([report for _, report in shards], _shard(shards[0][1]))


def _shard(report: Report) -> Shard:
    assert report.shard is not None
    return report.shard


def _conditions(report: Report) -> Mapping[str, Any]:
    """Return the values that must be equal in all shards of a run, by name."""
    shard = _shard(report)
    return {
        **machine_conditions(report.environment),
        "level": report.level,
        "seed": report.seed,
        "without": list(report.without),
        "grade": report.grade,
        "choice of checks and cases": {what: list(names) for what, names in report.only.items()},
        **shard.run,
        "number of cases": shard.planned,
        "list of subjects": [part.name for part in report.subjects],
        **{f"contract of {part.name}": part.contract for part in report.subjects},
        **{f"declarations of {part.name}": list(part.declared) for part in report.subjects},
        **{f"features that checks of {part.name} need": _needs(part) for part in report.subjects},
        "list of known failures": [reason for reason, _ in shard.known],
    }


def _needs(part: SubjectReport) -> dict[str, list[str]]:
    """Return the features that each check of a subject needs, by check. Leave out checks that need no feature."""
    return {check: list(names) for check, names in part.needs.items() if names}


def _require_each_case_once(shards: Sequence[tuple[str, Report]]) -> None:
    """Check that each case of the plan is in exactly one shard, and that each subject has one result for each case."""
    owner: dict[int, str] = {}
    owner_of_case: dict[str, str] = {}
    for name, report in shards:
        shard = _shard(report)
        for case, place in shard.places.items():
            if place in owner:
                raise _damaged(name, f"the case {cut(case)} has the same place in the plan as a case of {owner[place]}")
            if case in owner_of_case:
                raise _damaged(name, f"the case {cut(case)} is also in {owner_of_case[case]}")
            owner[place] = owner_of_case[case] = name
        for part in report.subjects:
            if other := part.outcomes.keys() - shard.places.keys():
                raise _damaged(name, f"the case {quoted(min(other))} does not belong to this shard")
            judged = len(part.outcomes) + part.not_applicable.total()
            if min(part.not_applicable.values(), default=0) < 0:
                raise _damaged(name, f"a reason in `not_applicable` of {cut(part.name)} counts fewer than 0 cases")
            if judged != len(shard.places):
                got = f"the results of {cut(part.name)} count {counted(judged, 'case')}"
                raise _damaged(name, f"{got}, but the shard has {counted(len(shard.places), 'case')}")
    planned = _shard(shards[0][1]).planned
    if len(owner) != planned:
        raise _damaged("shards", f"together they have {len(owner)} of the {planned} cases of the run")


def _damaged(name: str, why: str) -> ValueError:
    """Return the error that the report `name` is damaged: `why`. The name "shards" stands for all reports together."""
    return ValueError(f"{name}: damaged: {why}; run {'them' if name == 'shards' else 'this shard'} again")


def _joined(reports: Sequence[Report], description: Shard) -> Report:
    """Return one report from the reports of all shards. `description` is the :class:`Shard` in the first report."""
    first, operation = reports[0], OPERATIONS.get(description.run.get("operation", ""))
    if operation is None:
        got = quoted(description.run.get("operation"))
        raise _damaged("shards", f"`operation` is {got}; allowed are {', '.join(OPERATIONS)}")
    if (ranks := ranks_of(first.environment)) is not None:
        require_number_of_ranks(ranks, operation)
    every = checks_of(operation) | (RANK_CHECKS if ranks is not None else {})
    needs = {name: tuple(check.needs) for name, check in every.items()}
    contract = next((part.contract for part in first.subjects if part.contract), None)
    if unknown := [name for name in first.without if name not in FEATURES]:
        raise _damaged("shards", f"`without` has the feature {quoted(unknown[0])}, which crossent does not have")
    options: dict[str, Any] = {"level": first.level, "device": first.environment["device"], "operation": operation.name}
    options |= {"ranks": ranks, "without": first.without, "contract": contract, "grade": first.grade or None}
    subjects = []
    for at, part in enumerate(first.subjects):
        of_shards = [report.subjects[at] for report in reports]
        whole = SubjectReport(part.name, order=(*every, "errors"), needs=needs)
        whole.contract, whole.declared = part.contract, part.declared
        for one in of_shards:
            whole.outcomes |= one.outcomes
            whole.findings += with_commands(one.findings, description.sources.get(part.name, ""), options)
            whole.not_applicable.update(one.not_applicable)
        subjects.append(whole)
    report = replace(first, subjects=subjects, shard=None, seconds=None)
    places = {case: place for one in reports if one.shard for case, place in one.shard.places.items()}
    report.sort(sorted(places, key=places.__getitem__))
    left_out = [set(one.left_out) for one in reports]
    report.left_out = [name for name in first.left_out if all(name in names for names in left_out)]
    report.fixed = [] if report.only else fixed([one.shard.known for one in reports if one.shard])
    done = map(case_of, {case for part in subjects for case in part.outcomes})
    report.triples = count_combinations(case for case in done if isinstance(case, Case))
    return report
