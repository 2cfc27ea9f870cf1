"""Merge the reports of the shards of one run, of `crossent check` or of `crossent soak`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossent.report.report import Report
from crossent.run.shards.match import in_order, machine_conditions, require_same_run
from crossent.run.shards.merge import merged as merged_reports
from crossent.run.soak.document import read_either
from crossent.run.soak.report import SoakReport
from crossent.run.soak.sums import SubjectSums
from crossent.words import counted, cut


def merge(*reports: Report | SoakReport | str | os.PathLike[str]) -> Report | SoakReport:
    """Return the report of a whole run, from the reports of all its shards in any order.

    The JSON document of the report equals the document of a run without shards, byte for byte. Shards may differ in the
    number of threads and in the version of the operating system's kernel. The merged report then has the values of the
    first shard.

    Args:
        reports: the results of :func:`crossent.check` or :func:`crossent.soak`, or the paths of the files that
            `crossent check --shard I/N --json FILE` or `crossent soak --shard I/N --json FILE` wrote.

    Raises:
        ValueError: a report is damaged, is not of a complete shard, or belongs to another run or command; or a shard is
            missing or given twice.
        OSError: a file cannot be read.

    Example:
        >>> import crossent
        >>> chosen = {"level": "quick", "dtypes": "float32", "cases": "float32-7x5-*", "checks": "loss"}
        >>> shards = [crossent.check("formula", **chosen, shard=(number, 2)) for number in (1, 2)]
        >>> crossent.merge(*shards) == crossent.check("formula", **chosen)
        True
    """
    named: list[tuple[str, Report | SoakReport]] = []
    for at, one in enumerate(reports, 1):
        known = isinstance(one, (Report, SoakReport))
        named.append((f"report {at}", one) if known else (cut(os.fspath(one)), read_either(one)))  # type: ignore[arg-type]
    return merged(named)


def merged(named: Sequence[tuple[str, Report | SoakReport]]) -> Report | SoakReport:
    """Return the report of a whole run from the reports of all its shards, each with a name for messages.

    Raises:
        ValueError: a report is damaged, not complete or of another run or command; or a shard is missing or repeated.
    """
    soaks = [(name, report) for name, report in named if isinstance(report, SoakReport)]
    checks = [(name, report) for name, report in named if isinstance(report, Report)]
    if soaks and checks:
        other = f"{soaks[0][0]} is of `crossent soak`"
        raise ValueError(f"{checks[0][0]}: a report of `crossent check`, but {other}; merge the reports of one command")
    return _merged_soaks(soaks) if soaks else merged_reports(checks)


def _merged_soaks(named: Sequence[tuple[str, SoakReport]]) -> SoakReport:
    shards = in_order(named, "soak", lambda one: "" if one.complete else f"after {counted(one.ran, 'call')}")
    require_same_run(shards, _conditions)
    (_, first), *_ = shards
    subjects = []
    for at, one in enumerate(first.subjects):
        subjects.append(whole := SubjectSums(one.name, one.contract, one.declared, one.source, one.code))
        for _, report in shards:
            whole.join(report.subjects[at])
    return replace(first, subjects=subjects, shard=None, seconds=None)


def _conditions(report: SoakReport) -> Mapping[str, Any]:
    """Return the values that must be equal in all shards of a soak, by name."""
    return {
        **machine_conditions(report.environment),
        "number of cases": report.cases,
        "seed": report.seed,
        "dtypes": ", ".join(report.dtypes),
        "operation": report.operation.name,
        **report.promises,
        "list of known failures": report.known_failures_checksum,
        "list of subjects": [one.name for one in report.subjects],
        **{f"code of {one.name}": (one.source, one.code) for one in report.subjects},
        **{f"contract of {one.name}": one.contract for one in report.subjects},
        **{f"declarations of {one.name}": list(one.declared) for one in report.subjects},
    }
