"""Asked: one check of one subject on one case, as a test that pytest runs, and what comes back from it."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.checks import ALWAYS, CHECKS
from crossent.checks.single import CALL, RESULT
from crossent.machine import ambient, environment, require_device
from crossent.report.findings import Finding, Outcome, SubjectReport
from crossent.report.report import Report
from crossent.run.judge import run_case
from crossent.run.plan import LEVELS, Checks, plan
from crossent.run.settings import Settings, expected_lists, mark_expected, own_names
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject


def parametrize(
    subject: str | Callable[..., Any], **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the test is run for each check on each case of a level, with a `check` to call.

    `check()` raises AssertionError with the finding in full, and skips what does not apply. The ids of the tests are
    `check[case]`. What stands on the command line, as `--crossent-level`, comes before what stands here.

    Args:
        subject: as :func:`crossent.check` takes it.
        options: device, dtypes, level ("quick" unless given), seed, without, grade and expected_findings, as there.

    Example:
        @crossent.parametrize(my_loss, without={"double_backward"})
        def test_my_loss(check):
            check()
    """
    import pytest  # needed by nobody else

    if unknown := sorted(options.keys() - Settings.__dataclass_fields__.keys()):
        raise TypeError(f"parametrize: got {unknown[0]!r}; allowed are {', '.join(Settings.__dataclass_fields__)}")
    return pytest.mark.crossent.with_args(subject, **options)  # a call would take it for the function to mark


@dataclass(eq=False)
class CaseRun:
    """Checks of one subject on one case that are made together, since each of them costs little more than the call."""

    subject: Subject
    case: Case | BadInput
    checks: Checks
    settings: Settings
    known: Any

    @cached_property
    def part(self) -> SubjectReport:
        """What came of it."""
        report = Report(environment(self.settings.device), [SubjectReport(self.subject.name)])
        with ambient():
            run_case(self.case, [self.subject], report, self.settings.device, self.checks)
        mark_expected(report, self.known, own_names([self.subject]))
        (part,) = report.subjects
        if self.subject.source != self.subject.name:
            part.findings = [replace(finding, named=False) for finding in part.findings]
        return part


@dataclass(eq=False)
class CheckTest:
    """One check of a run, by its name: call it.

    Attributes:
        id: `check[case]`.
        record: what came of it, once it was called.
    """

    check: str
    run: CaseRun
    id: str
    record: CheckRecord | None = None

    def __call__(self) -> None:
        """Make the check.

        Raises:
            AssertionError: the finding in full.
        """
        __tracebackhide__ = True
        import pytest

        subject, case, part = self.run.subject, self.run.case, self.run.part
        self.record = CheckRecord(subject.name, subject.source, case.id, self.run.settings)
        if case.id not in part.outcomes:
            (self.record.not_applicable,) = part.not_applicable
            pytest.skip(f"{subject.name} {self.record.not_applicable}")
        outcome = part.outcomes[case.id]
        of = list(outcome.checks) if isinstance(case, BadInput) else [self.check]
        measured = {name: outcome.checks[name] for name in of if name in outcome.checks}
        not_run = {name: outcome.not_run[name] for name in of if name in outcome.not_run}
        self.record.outcome = replace(outcome, checks=measured, not_run=not_run)
        self.record.findings = [finding for finding in part.findings if finding.check in of]
        for finding in self.record.findings:
            if finding.expected is None:
                raise AssertionError(str(finding))
        for finding in self.record.findings:
            pytest.xfail(str(finding.expected))
        for reason in not_run.values():
            pytest.skip(f"{subject.name} {reason}")


@dataclass
class CheckRecord:
    """What came of one test: sent from the process that ran it to the one that reports."""

    subject: str
    source: str
    case: str
    settings: Settings
    outcome: Outcome | None = None
    findings: list[Finding] = field(default_factory=list)
    not_applicable: str = ""

    @property
    def ran(self) -> bool:
        """Whether something was measured."""
        return self.outcome is not None and bool(self.outcome.checks)

    def packed(self) -> str:
        """As a string, which is all that may be sent."""
        return base64.b64encode(pickle.dumps(self)).decode()


def unpacked(text: str) -> CheckRecord:
    """The inverse of :meth:`CheckRecord.sent`."""
    record: CheckRecord = pickle.loads(base64.b64decode(text))
    return record


_planned = lru_cache(plan)


def tests_of(subject: str | Callable[..., Any], settings: Settings) -> Iterator[CheckTest]:
    """Each check of a level on each of its cases.

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`crossent.check` raises them.
    """
    dtypes = tuple([settings.dtypes] if isinstance(settings.dtypes, str) else settings.dtypes)
    if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
        raise ValueError(f"dtypes: got {unknown[0]!r}; allowed are {', '.join(DTYPES)}")
    if settings.level not in LEVELS:
        raise ValueError(f"level: got {settings.level!r}; allowed are {', '.join(LEVELS)}")
    if settings.seed < 0:
        raise ValueError(f"seed: got {settings.seed}; allowed is 0 or more")
    require_device(settings.device)
    subjects = load(subject, without=settings.without, grade=settings.grade, device=settings.device)
    # A list of the command line is of all subjects, of which this is one.
    known = expected_lists(settings.expected_findings, None, settings.device, settings.seed)
    sent = replace(settings, dtypes=dtypes, without=tuple(settings.without))
    where = "" if settings.device == "cpu" else f"@{settings.device}"
    for one in subjects:
        whose = f"{one.name}:" if len(subjects) > 1 else ""
        for case, checks in _planned(settings.level, dtypes, settings.seed).items():
            if isinstance(case, BadInput):
                yield CheckTest("errors", CaseRun(one, case, (), sent, known), f"{whose}errors[{case.id}]{where}")
                continue
            about = [check for check in checks if check.applies(case)]
            together = CaseRun(one, case, tuple(check for check in about if check in ALWAYS), sent, known)
            before = () if case.tiled > 1 else (CALL, RESULT)
            for check in about:
                run = together if check in ALWAYS else CaseRun(one, case, (*before, check), sent, known)
                yield CheckTest(check.name, run, f"{whose}{check.name}[{case.id}]{where}")


def report_of_records(records: Iterable[CheckRecord]) -> Report:
    """One report of all tests, of which there is one or more, in whichever process each ran."""
    all_records = list(records)
    settings = all_records[0].settings
    report = Report(environment(settings.device), level=settings.level, seed=settings.seed)
    parts: dict[str, SubjectReport] = {}
    skipped: set[tuple[str, str]] = set()
    for one in all_records:
        part = parts.setdefault(one.subject, SubjectReport(one.subject, order=(*CHECKS, "errors")))
        if one.outcome is None:
            if (one.subject, one.case) not in skipped:  # a case that does not apply is one, for all of its checks
                part.not_applicable[one.not_applicable] += 1
            skipped.add((one.subject, one.case))
            continue
        outcome = part.outcomes.setdefault(one.case, replace(one.outcome, checks={}, not_run={}))
        outcome.checks.update(one.outcome.checks)
        outcome.not_run.update(one.outcome.not_run)
        outcome.grade = max(outcome.grade, one.outcome.grade)
        part.findings += one.findings
    report.subjects = list(parts.values())
    return report
