"""Check that reports of shards fit together: each shard is given exactly once, and all shards belong to one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from crossent.report.document import ShardNumber
from crossent.words import cut, quoted

# The entries of the environment that may differ between shards. A run does not use torch's default number of threads.
MAY_DIFFER = ("threads",)
_SHOWN = 10  # the most numbers of shards that a message lists


class AnyReport(Protocol):
    """A report of a shard or of a whole run: a `Report` or a `SoakReport`."""

    @property
    def shard(self) -> ShardNumber | None:
        """The number of the shard, such as 2/8; None for a whole run."""


R = TypeVar("R", bound=AnyReport)
Named = tuple[str, R]  # a report, and its name for messages, such as its file


def shard_number(name: str, report: AnyReport, command: str) -> ShardNumber:
    """Return the number of a report's shard. Messages show `name` and `command`, which is "check" or "soak".

    Raises:
        ValueError: the report is of a whole run.
    """
    if report.shard is None:
        shards = f"reports of shards, from `crossent {command} --shard I/N --json FILE`, or with shard=(I, N) in Python"
        raise ValueError(f"{name}: got the report of a whole run; give {shards}")
    return report.shard


def in_order(named: Sequence[Named[R]], command: str, early: Callable[[R], str]) -> list[Named[R]]:
    """Return the reports in the order of the shards. Check that each shard is complete, and given exactly once.

    Args:
        named: the reports, each with a name for messages.
        command: the command that makes the reports, "check" or "soak".
        early: returns where the run of a report ended early, such as "after 3 cases"; "" for a complete run.

    Raises:
        ValueError: a shard is missing, repeated or not complete, or belongs to another run; or a report is of a whole
            run.
    """
    if not named:
        raise ValueError("shards: got no report; give the reports of all shards of a run")
    found: dict[int, Named[R]] = {}
    first = shard_number(*named[0], command)
    for name, report in named:
        shard = shard_number(name, report, command)
        if shard.count != first.count:
            other = f"{named[0][0]} is shard {first}"
            raise ValueError(f"{name}: got shard {shard}, but {other}; give the shards of one run")
        if shard.number in found:
            other = found[shard.number][0]
            raise ValueError(f"{name}: got shard {shard} again, after {other}; give each shard once")
        if where := early(report):
            raise ValueError(f"{name}: shard {shard} ended early, {where}; run this shard again")
        found[shard.number] = name, report
    if missing := first.count - len(found):
        more = " …" if missing > _SHOWN else ""
        # A damaged file may have a huge count: look at no more numbers than the message shows.
        shown = islice((number for number in range(1, first.count + 1) if number not in found), _SHOWN)
        numbers = ", ".join(f"{number}/{first.count}" for number in shown)
        one = missing == 1
        advice = f"run {'this shard' if one else 'these shards'}, or give {'its report' if one else 'their reports'}"
        are = "is" if one else "are"
        raise ValueError(f"shards: {missing} of {first.count} {are} missing: {numbers}{more}; {advice}")
    return [found[number] for number in sorted(found)]


def require_same_run(named: Sequence[Named[R]], conditions: Callable[[R], Mapping[str, Any]]) -> None:
    """Check that all shards belong to one run.

    Args:
        named: the reports, each with a name for messages.
        conditions: returns the values of a report that must be equal in all shards, by name.

    Raises:
        ValueError: a shard belongs to another run.
    """
    first_name, first = named[0]
    was = conditions(first)
    for name, report in named[1:]:
        now = conditions(report)
        for what in {**was, **now}:
            if was.get(what) != now.get(what):
                values = f"{quoted(now.get(what))} here, {quoted(was.get(what))} in {first_name}"
                same = "set ATEN_CPU_CAPABILITY to one value for all shards"
                hint = same if what == "cpu_capability" else "give the shards of one run"
                raise ValueError(f"{name}: got a shard of another run; {cut(what)}: {values}; {hint}")


def machine_conditions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a report's environment that must be equal in all shards, without the Linux version."""
    machine = {name: value for name, value in environment.items() if name not in MAY_DIFFER}
    # the version of the Linux kernel often differs in a cluster
    return {**machine, "platform": _without_kernel(machine.get("platform", ""))}


def _without_kernel(platform: str) -> str:
    """Return "Linux on x86_64 with glibc2.39" for the platform "Linux-6.8.0-x86_64-with-glibc2.39"."""
    system, found, library = platform.rpartition("-with-")
    return f"{system.partition('-')[0]} on {system.rpartition('-')[2]} with {library}" if found else platform
