"""Conditions: under which two runs were made, what is another one about them, and what only one of them has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from crossent.report.findings import SubjectReport
from crossent.report.report import Report

# What makes other bits by itself: where it is another one, nothing that moved says anything of torch.
MACHINE = ("device", "device_name", "cpu_capability")
UNKNOWN = "unknown"


def hindrances(old: Report, new: Report) -> list[str]:
    """Why the two say little about each other."""
    found = []
    for name in MACHINE:
        was, now = (run.environment.get(name, "") for run in (old, new))
        if was != now and UNKNOWN not in (was, now):
            chosen = " (ATEN_CPU_CAPABILITY makes the choice)" if name == "cpu_capability" else ""
            found.append(f"{name} was {was!r} and is {now!r}{chosen}")
    if old.seed != new.seed:
        found.append(f"seed was {old.seed} and is {new.seed}, which makes other numbers")
    return found


def others(old: Report, new: Report) -> list[tuple[str, str, str]]:
    """What is another one about the runs: its name, what it was, and what it is; "" where there was none."""
    was, now = _told(old), _told(new)
    return [
        (name, was.get(name, ""), now.get(name, ""))
        for name in {**was, **now}
        if was.get(name, "") != now.get(name, "") or (name in was) != (name in now)
    ]


def _told(run: Report) -> dict[str, str]:
    more = {
        "level": run.level,
        "seed": str(run.seed),
        "checks not asked": ", ".join(run.left_out),
        "sets of three choices": str(run.triples),
        "expected findings that no longer happen": "; ".join(run.mended),
    }
    return {**run.environment, **more}


def notes(
    old: Report,
    new: Report,
    pairs: Sequence[tuple[SubjectReport, SubjectReport]],
    explained: Collection[tuple[str, str]],
) -> Iterator[str]:
    """What only one run has, a line each.

    Args:
        old: a run.
        new: another.
        pairs: the parts of the subjects that both have.
        explained: subjects and cases of which it is said elsewhere why one run asked less.
    """
    names = [{part.name for part in run.subjects} for run in (old, new)]
    for which, alone in (("old", names[0] - names[1]), ("new", names[1] - names[0])):
        yield from (f"in the {which} run alone: subject {name}" for name in sorted(alone))
    whose: dict[tuple[str, str], list[str]] = {}
    for before, now in pairs:
        for told in _of_one(before, now, explained):
            whose.setdefault(told, []).append(now.name)
    for (note, more), of in whose.items():
        yield f"{note}, of {', '.join(of)}{more}"


def _of_one(
    old: SubjectReport, new: SubjectReport, explained: Collection[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """The same of one subject, before and behind its name: it is often to be said of others too."""
    for which, mine, other in (("old", old, new), ("new", new, old)):
        if alone := [case for case in mine.outcomes if case not in other.outcomes]:
            yield f"in the {which} run alone: {_some(alone)}", ""
    shared = [case for case in new.outcomes if case in old.outcomes]
    if unlike := [case for case in shared if old.outcomes[case].inputs != new.outcomes[case].inputs]:
        yield f"not compared, since the inputs have other bits: {_some(unlike)}", ""
    for which, mine, other in (("old", old, new), ("new", new, old)):
        asked = Counter(
            check
            for case in shared
            if (new.name, case) not in explained
            for check in mine.outcomes[case].checks
            if check not in other.outcomes[case].checks
        )
        if asked:
            each = ", ".join(f"{check} on {count}" for check, count in asked.items())
            yield f"asked in the {which} run alone", f": {each}"
    for reason in sorted({*old.not_applicable, *new.not_applicable}):
        was, now = old.not_applicable[reason], new.not_applicable[reason]
        if was != now:
            yield f"not applicable, {was} → {now} cases", f": {reason}"


def _some(cases: Sequence[str]) -> str:
    """How many, and one of them."""
    return f"{len(cases)} case{'s' if len(cases) > 1 else ''}, as {cases[0]}"
