"""Compare the machines, versions and options of two runs, and list the results that only one of the runs has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.words import counted, first_names, quoted

_COMPILED = ("compile", "compile_dynamic", "compiled_error")  # the checks of compiled code
# The entries of the environment that can change the bits of results. If an entry differs, a change may have another
# cause than torch.
MACHINE = ("device", "device_name", "cpu_capability", "ranks")
UNKNOWN = "unknown"
_BY_DEFAULT = "the default"


def hindrances(old: Report, new: Report) -> list[str]:
    """Return the differences in machine and seed, as reasons why two runs cannot be compared."""
    found = []
    for name in MACHINE:
        was, now = (run.environment.get(name, "") for run in (old, new))
        if was != now and UNKNOWN not in (was, now):
            chosen = " (set ATEN_CPU_CAPABILITY to one value for both runs)" if name == "cpu_capability" else ""
            before, after = (quoted(value) if value else "not set" for value in (was, now))
            found.append(f"{name} was {before} and is {after}{chosen}")
    if old.seed != new.seed:
        seed = quoted(old.seed)
        seeds = f"seed was {seed} and is {quoted(new.seed)}, so the inputs differ"
        found.append(f"{seeds}: repeat the new run with --seed {seed}, in Python seed={seed}")
    return found


def differences(old: Report, new: Report) -> list[tuple[str, str, str]]:
    """Return the name, the old value and the new value of each difference in environment, options and coverage."""
    partial = is_incomplete(old) or is_incomplete(new)
    was, now = _describe(old, partial), _describe(new, partial)
    different = [
        (name, was.get(name, ""), now.get(name, ""))
        for name in {**was, **now}
        if was.get(name, "") != now.get(name, "") or (name in was) != (name in now)
    ]
    before = {part.name: part for part in old.subjects}
    shared = [(before[part.name], part) for part in new.subjects if part.name in before]
    for was_part, part in shared:
        contracts = was_part.contract or _BY_DEFAULT, part.contract or _BY_DEFAULT
        declared = "; ".join(was_part.declared) or "nothing", "; ".join(part.declared) or "nothing"
        different += [(f"contract of {part.name}", *contracts)] if contracts[0] != contracts[1] else []
        different += [(f"declarations of {part.name}", *declared)] if declared[0] != declared[1] else []
    return different


def _describe(run: Report, partial: bool) -> dict[str, str]:
    more = {
        "checks not run": ", ".join(run.left_out),
        "combinations of three options": str(run.triples),
        "known failures that no longer happen": "; ".join(run.fixed),
    }
    return {**run.environment, "level": run.level, "seed": str(run.seed), **({} if partial else more)}


def is_incomplete(run: Report) -> bool:
    """Return whether a run is only a part (`Report.is_part`) or ended early."""
    return run.is_part or run.planned is not None


def notes(
    old: Report,
    new: Report,
    pairs: Sequence[tuple[SubjectReport, SubjectReport]],
    explained: Collection[tuple[str, str]],
) -> Iterator[str]:
    """Yield lines about what is not compared, such as a subject, case or check that only one run has.

    `pairs` has the old and the new report of each subject that both runs have. `explained` has each subject and case
    whose first call changed. Missing checks on such a case get no line.
    """
    names = [{part.name for part in run.subjects} for run in (old, new)]
    for which, alone in (("old", names[0] - names[1]), ("new", names[1] - names[0])):
        yield from (f"only in the {which} run: subject {name}" for name in sorted(alone))
    for which, run in (("old", old), ("new", new)):
        chosen = ", ".join(f"only the {what} {first_names(names)}" for what, names in run.only.items())
        if chosen:
            yield f"the {which} run is only a part: {chosen}; only this part is compared"
        if run.shard is not None:
            yield f"the {which} run is shard {run.shard}; only its cases are compared"
        if run.planned is not None:
            cases = f"{run.cases:,} of {counted(run.planned, 'case')}"
            yield f"the {which} run ended after {cases}; the other cases are not compared"
    compared = {
        check
        for before, now in pairs
        for case in now.outcomes.keys() & before.outcomes.keys()
        for check in now.outcomes[case].checks.keys() & before.outcomes[case].checks.keys()
    }
    levels = [run.level for run in (old, new) if _COMPILED[0] in run.left_out]
    if levels and compared.isdisjoint(_COMPILED) and not any(part.name.endswith("+compile") for _, part in pairs):
        yield f"no compiled code is compared: level {levels[0]} runs none of {', '.join(_COMPILED)}"
    subjects: dict[tuple[str, str], list[str]] = {}
    for before, now in pairs:
        for parts in _notes_on(before, now, explained, (is_incomplete(new), is_incomplete(old))):
            subjects.setdefault(parts, []).append(now.name)
    for (note, details), of in subjects.items():
        yield f"{note} ({', '.join(of)}){details}"


def _notes_on(
    old: SubjectReport, new: SubjectReport, explained: Collection[tuple[str, str]], partial: tuple[bool, bool]
) -> Iterator[tuple[str, str]]:
    """Yield the notes on one subject. A note has two texts; :func:`notes` puts the names of subjects between the texts.

    `explained` has each subject and case whose first call changed. `partial` says whether the new run and the old run
    are incomplete, in this order.
    """
    both = (("old", old, new), ("new", new, old))
    sides = [side for side, is_part in zip(both, partial, strict=True) if not is_part]
    for which, mine, other in sides:
        if alone := [case for case in mine.outcomes if case not in other.outcomes]:
            yield f"only in the {which} run", f": {_some(alone)}"
    shared = [case for case in new.outcomes if case in old.outcomes]
    if unlike := [case for case in shared if old.outcomes[case].inputs != new.outcomes[case].inputs]:
        yield "not compared, because the bits of the inputs differ", f": {_some(unlike)}"
    for which, mine, other in sides:
        checks = Counter(
            check
            for case in shared
            if (new.name, case) not in explained
            for check in mine.outcomes[case].checks
            if check not in other.outcomes[case].checks
        )
        if checks:
            each = ", ".join(f"{check} on {counted(count, 'case')}" for check, count in checks.items())
            yield f"checks that ran only in the {which} run", f": {each}"
    for reason in sorted({*old.not_applicable, *new.not_applicable}):
        was, now = old.not_applicable[reason], new.not_applicable[reason]
        if was != now and not any(partial):
            yield "cases that are not applicable", f": {was} in the old run, {now} in the new run: {reason}"


def _some(cases: Sequence[str]) -> str:
    """Return the number of cases and the id of the first case, as one text."""
    return f"{counted(len(cases), 'case')}, {'for example ' if len(cases) > 1 else ''}{cases[0]}"
