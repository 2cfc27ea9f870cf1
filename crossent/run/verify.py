"""Run the cases of a report again, and compare the results with the report.

Anybody can write a report. So a report never decides which code runs: a subject other than the forms and torch is
loaded only if the user names its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from crossent.cases.axes import DTYPES
from crossent.cases.ids import case_of
from crossent.cases.operation import CROSS_ENTROPY, OPERATIONS
from crossent.machine import environment, ranks_of
from crossent.report.document import jsonable, subject_json
from crossent.report.findings import SubjectReport
from crossent.report.moves.conditions import hindrances
from crossent.report.reader import unlike
from crossent.report.report import Report
from crossent.run.parallel import Progress
from crossent.run.runner import run
from crossent.run.settings import Settings
from crossent.subjects.builtin import BY_NAME, EVERY_NAMED, builtin_subjects
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.subject import Subject
from crossent.words import counted, cut, first_names, quoted

# The entries of the environment that may differ, since they change no result. A run sets its own number of threads.
_NO_CONDITION = ("threads",)
_PARTS = ("checks", "cases")  # the keys that `only` of a report may have
_SHOWN = 20  # the most differences that are printed


@dataclass(frozen=True)
class Verification:
    """The differences between a report and a new run of its cases.

    Attributes:
        claim: the report.
        conditions: the differences in device, machine and versions, as texts.
        cases: the first difference of each case whose results differ, by subject and case id.
        others: the differences that belong to no single case, as texts.
    """

    claim: Report
    conditions: Sequence[str]
    cases: Mapping[tuple[str, str], str]
    others: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether every result is the same as in the report."""
        return not self.cases and not self.others

    @property
    def lines(self) -> list[str]:
        """The comparison as lines of text. The last line is the verdict."""
        lines = [f"other conditions: {one}" for one in self.conditions]
        differing = [f"{name}: {case}: {what}" for (name, case), what in self.cases.items()] + [*self.others]
        lines += [f"DIFFERS {one}" for one in differing[:_SHOWN]]
        more = len(differing) - _SHOWN
        lines += [f"and {counted(more, 'more difference')}"] if more > 0 else []
        lines.append(f"the report says: {self.claim.summary}")
        calls = counted(self.claim.ran, "call")
        every = f"{calls} repeated: every call has the result of the report"
        verdict = f"{len(self.cases):,} of {calls} {_differ(self.cases)} from the report" if self.cases else every
        if self.others:
            others = f"{counted(len(self.others), 'other value')} {_differ(self.others)}"
            verdict += f", {'and' if self.cases else 'but'} {others}"
        return [*lines, verdict]


def _differ(what: Sized) -> str:
    return "differs" if len(what) == 1 else "differ"


def require_comparable(old: Report, settings: Settings, subjects: Sequence[str]) -> None:
    """Raise ValueError if the results of a planned run cannot be compared with the report `old`.

    `settings` and `subjects` describe the planned run. A subject is, for example, "torch" or "path/to/file.py:NAME". If
    `subjects` is empty, the run has the forms and torch.
    """
    assert isinstance(settings.seed, int)
    stub = Report(environment(settings.device, settings.ranks), level=settings.level, seed=settings.seed)
    reasons = hindrances(old, stub)
    every = builtin_subjects(OPERATIONS[settings.operation])
    names = {name for description in subjects or every for name in _names(description)}
    parts = [part for part in old.subjects if part.name.partition("#")[0] in names]
    hint = "; --force compares the two runs anyway" if reasons else ""
    if not parts:
        reasons.append("the two runs have no subject in common")
        hint = "; check a subject of the baseline"
    elif not any(
        part.outcomes[case.id].inputs == case.build(settings.device).digest
        for case in settings.plan()
        for part in parts
        if case.id in part.outcomes
    ):
        reasons.append("the two runs have no case in common whose inputs have the same bits")
        hint = "; run the cases of the baseline"
    if reasons:
        raise ValueError(f"this run cannot be compared with the baseline: {'; '.join(reasons)}{hint}")


def _names(description: str) -> list[str]:
    """Return the names that the subjects of a description such as "torch" may have. Load no subject."""
    base = description.removesuffix(COMPILE_SUFFIX)
    own = [one.name for one in EVERY_NAMED.get(base, ())] or [base.rpartition(":")[2].rpartition(".")[2]]
    return [name + description.removeprefix(base) for name in own]


def verify(
    claim: Report,
    subjects: Sequence[str] = (),
    *,
    file: str = "REPORT",
    expected_findings: str | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    force: bool = False,
    progress: Progress = iter,
) -> Verification:
    """Run the cases of a report again, and compare every result with the report.

    `subjects` describes the subjects other than the forms and torch, such as "path/to/file.py:NAME". With `force`, run
    even if the versions or the machine differ from the report. Messages show `file`, the name of the report's file.
    `expected_findings` is the path of a file of known failures.

    Raises:
        ValueError: the report cannot be verified here, or `subjects` does not fit the report.
        RuntimeError: this machine does not have the device of the report.
    """
    names = [part.name for part in claim.subjects]
    foreign = [name for name in names if name.removesuffix(COMPILE_SUFFIX) not in BY_NAME]
    if foreign and all(_is_builtin(given) for given in subjects):
        raise ValueError(
            f"{counted(len(foreign), 'subject')} of the report {'is' if len(foreign) == 1 else 'are'} neither a form "
            f"nor torch: {first_names([*map(quoted, foreign)], 3)}; "
            f"name the code to run: crossent verify {cut(file)} FILE.py:NAME"
        )
    settings = settings_of(claim, expected_findings, jobs, timeout)
    here = environment(settings.device, settings.ranks)
    then = claim.environment
    conditions = [
        f"{cut(name)} was {quoted(then.get(name, ''))} and is {quoted(here.get(name, ''))}"
        for name in {**here, **then}
        if then.get(name) != here.get(name) and name not in _NO_CONDITION
    ]
    if conditions and not force:
        raise ValueError(
            f"this report cannot be verified bit for bit here: {'; '.join(conditions[:5])}; --force runs its cases"
        )
    made = run(settings, _subjects(settings, names, subjects), progress=progress)
    cases: dict[tuple[str, str], str] = {}
    others: list[str] = []
    again = {part.name: part for part in made.subjects}
    for part in claim.subjects:
        cases |= {(part.name, case): what for case, what in _differing(claim, part, again[part.name])}
        if {check: [*names] for check, names in again[part.name].needs.items() if names} != part.needs:
            others.append(f"{cut(part.name)}: the features that the checks need differ from the report")
        if claim.planned is None and part.not_applicable != again[part.name].not_applicable:
            others.append(f"{cut(part.name)}: the numbers of not applicable cases differ from the report")
    if claim.planned is None:
        then, now = _values_without_case(claim), _values_without_case(made)
        others += [
            f"{what}: {quoted(then[what])} in the report, {quoted(now[what])} here"
            for what in then
            if then[what] != now[what]
        ]
    return Verification(claim, conditions, cases, others)


def settings_of(claim: Report, expected_findings: str | None, jobs: int | None, timeout: float) -> Settings:
    """Return the settings for a run that repeats the report `claim`.

    Raises:
        ValueError: the report is of a shard, has no results, or has settings that a single run cannot have.
        RuntimeError: this machine does not have the device of the report.
    """
    contracts = {part.contract for part in claim.subjects} - {""}
    if len(contracts) > 1:
        raise ValueError(
            f"the subjects of the report have different contracts: {', '.join(sorted(contracts))}; "
            f"a run has one contract, so give a report with one contract"
        )
    if unknown := claim.only.keys() - set(_PARTS):
        raise ValueError(f"the report's `only` has {quoted(min(unknown))}; allowed are {', '.join(_PARTS)}")
    if claim.shard is not None:
        raise ValueError(f"the report is of shard {claim.shard} alone; give the report of `crossent merge`")
    if not claim.ran:
        raise ValueError("no case of the report ran, so nothing can be verified; give a report of a run with cases")
    used = {outcome.dtype for part in claim.subjects for outcome in part.outcomes.values()}
    ids = dict.fromkeys(case for part in claim.subjects for case in part.outcomes)
    return Settings(
        claim.environment["device"],
        [dtype for dtype in DTYPES if dtype in used],
        claim.level,
        claim.seed,
        claim.without,
        next(iter(contracts), None),
        claim.grade or None,
        expected_findings,
        jobs,
        timeout,
        claim.only.get("checks", ()),
        claim.only.get("cases", ()) if claim.planned is None else list(ids),
        operation=_operation_of(ids),
        ranks=ranks_of(claim.environment),
    )


def _operation_of(ids: Iterable[str]) -> str:
    """Return the name of the operation of the first valid case id, or "cross_entropy"."""
    for one in ids:
        with suppress(ValueError):
            return case_of(one).operation.name
    return CROSS_ENTROPY.name


def _is_builtin(description: str) -> bool:
    return description.removesuffix(COMPILE_SUFFIX) in {**EVERY_NAMED, **BY_NAME}


def _subjects(settings: Settings, names: Sequence[str], given: Sequence[str]) -> list[Subject]:
    """Return the subjects with the names `names`. The descriptions `given` name the code of the user's functions."""
    loaded = settings.load(*given) if given else []
    have = [subject.name for subject in loaded]
    if extra := [name for name in have if name not in names and not _is_builtin(name)]:
        raise ValueError(f"the report has no subject {quoted(extra[0])}; choose from {cut(', '.join(names))}")
    missing = [name for name in names if name not in have]
    if foreign := [name for name in missing if not _is_builtin(name)]:
        raise ValueError(
            f"the report also has the subject {quoted(foreign[0])}; name the code of this subject too, as FILE.py:NAME"
        )
    by_name = {subject.name: subject for subject in settings.load(*given, *missing)}
    if absent := [name for name in names if name not in by_name]:
        needed = "use a machine with CUDA and Triton, without TRITON_INTERPRET=1"
        raise ValueError(f"the report is about {quoted(absent[0])}, whose kernel cannot run here; {needed}")
    return [by_name[name] for name in names]


def _values_without_case(report: Report) -> dict[str, Any]:
    """Return the values of a report that belong to no single case, by name."""
    listed = {"known failures that no longer happen": list(report.fixed), "checks not run": list(report.left_out)}
    return {**listed, "combinations of three options": report.triples}


def _differing(claim: Report, then: SubjectReport, now: SubjectReport) -> Iterator[tuple[str, str]]:
    """Yield the id of each case whose results differ, and the difference.

    `then` has the results of a subject in the report `claim`, and `now` the results of the new run.
    """
    # With --last-failed, each case may have its own checks. A run that stopped early left out checks of its last cases.
    # So compare only the checks in the report. If the run did not stop early, `added` has failures of other checks.
    some_checks = len(claim.only) == len(_PARTS) or claim.planned is not None
    new = {(finding.case, finding.check) for finding in now.findings}
    old = {(finding.case, finding.check) for finding in then.findings}
    if some_checks:
        now = _restrict(now, then)
    before, after = (_entries(part, claim.planned is not None) for part in (then, now))
    for case in {**before, **after}:
        added = sorted(check for at, check in new - old if at == case) if claim.planned is None else []
        if case not in after:
            yield case, "does not run here"
        elif case not in before:
            yield case, "is not in the report"
        elif places := list(unlike(before[case], after[case])):
            place = "outcome" if places[0].startswith("outcome,") else cut(places[0])  # the outcomes follow in words
            yield case, f"{place} differs here" + _outcomes_in_words(before[case], after[case])
        elif added:
            yield case, f"{added[0]} fails here, and the report has no result of this check"


def _outcomes_in_words(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the end of a message with the outcomes in the two runs; "" if the outcomes are equal."""
    was, now = before["outcome"], after["outcome"]
    words = {"held": "passed", "expected": "known failure"}
    return "" if was == now else f"; {words.get(was, was)} in the report, {words.get(now, now)} here"


def _restrict(part: SubjectReport, to: SubjectReport) -> SubjectReport:
    """Return a copy of the results `part` with only the cases and checks that `to` also has."""
    outcomes = {
        case: replace(
            outcome,
            checks={check: one for check, one in outcome.checks.items() if check in to.outcomes[case].checks},
            not_run={check: why for check, why in outcome.not_run.items() if check in to.outcomes[case].not_run},
        )
        for case, outcome in part.outcomes.items()
        if case in to.outcomes
    }
    findings = [one for one in part.findings if one.case in outcomes and one.check in outcomes[one.case].checks]
    return replace(part, outcomes=outcomes, findings=findings)


def _entries(part: SubjectReport, stopped: bool) -> dict[str, dict[str, Any]]:
    """Return the JSON entry of each case, with findings, by case id. If the run `stopped` early, omit the grades."""
    document = jsonable(subject_json(part))
    cases: dict[str, dict[str, Any]] = document["cases"]
    for entry in cases.values():
        entry["held"] = sorted(entry["held"])
        entry["findings"] = {}
        if stopped:  # a grade needs all checks of a case
            del entry["grade"]
    for finding in document["findings"]:
        cases[finding["case"]]["findings"][finding["check"]] = finding
    return cases
