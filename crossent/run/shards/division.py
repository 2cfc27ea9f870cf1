"""The division of a run into shards of about equal cost, and the values that must be equal in all shards."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from crossent.report.document import Shard
from crossent.run.commands import relative_source
from crossent.run.order import cost, ordered
from crossent.run.plan import Plan
from crossent.run.settings import Settings
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.subject import Subject

_LARGE = 1 / 3  # a case is expensive if it costs more than this fraction of the average shard


def divide(planned: Plan, count: int) -> list[list[int]]:
    """Return the indices of the cases of each shard. The division depends only on the plan and on `count`."""
    costs = [cost(case, checks)[0] for case, checks in planned.items()]
    goal = sum(costs) / count
    shards: list[list[int]] = [[] for _ in range(count)]
    filled = [0.0] * count
    first, others, compiling = ordered(planned)
    items = [*first, *others, *compiling]
    # Each expensive case goes to the shard that costs the least so far.
    for item in sorted((item for item in items if costs[item] > _LARGE * goal), key=lambda item: (-costs[item], item)):
        at = filled.index(min(filled))
        shards[at].append(item)
        filled[at] += costs[item]
    at, small = 0, [item for item in items if costs[item] <= _LARGE * goal]
    for item in small:  # in this order, few shards import torch's compilers
        while at < count - 1 and filled[at] + costs[item] / 2 > goal:
            at += 1
        shards[at].append(item)
        filled[at] += costs[item]
    return [sorted(items) for items in shards]


def plan_of_shard(planned: Plan, shard: tuple[int, int]) -> Plan:
    """Return the cases of one shard, with their checks. The shard (2, 8) is the second of eight."""
    number, count = shard
    cases = list(planned)
    return {cases[at]: planned[cases[at]] for at in divide(planned, count)[number - 1]}


def described(settings: Settings, subjects: Sequence[Subject], planned: Plan, part: Plan) -> Shard:
    """Return the description of a shard, which :func:`crossent.run.shards.merge.merged` needs to merge the reports.

    `planned` is the plan of the whole run, and `part` is the plan of the shard.
    """
    assert settings.shard is not None
    number, count = settings.shard
    return Shard(
        number,
        count,
        run=_values_of_run(settings, subjects, planned),
        planned=len(planned),
        places={case.id: at for at, case in enumerate(planned) if case in part},
        sources={one.name: relative_source(one.source) for one in subjects},
    )


def _values_of_run(settings: Settings, subjects: Sequence[Subject], planned: Plan) -> Mapping[str, str]:
    """Return, by name, values that must be equal in all shards and that the report of a whole run does not have."""
    checks = {case.id: [check.name for check in checks] for case, checks in planned.items()}
    plan = hashlib.sha256(json.dumps(list(checks.items())).encode()).hexdigest()
    code = {f"code of {one.name}": checksum_of_file(one.source) for one in subjects}
    return {
        "operation": settings.operation,
        "dtypes": ", ".join(settings.dtypes),
        "plan": plan,
        **{name: checksum for name, checksum in code.items() if checksum},
    }


def checksum_of_file(source: str) -> str:
    """Return a checksum of the .py file in a source such as "path/to/file.py:NAME", or "" without a file."""
    path = source.removesuffix(COMPILE_SUFFIX).rpartition(":")[0]
    if path.endswith(".py"):
        with suppress(OSError):
            return f"{zlib.crc32(Path(path).read_bytes()):08x}"
    return ""
