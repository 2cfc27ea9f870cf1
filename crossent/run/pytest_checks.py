"""Run each check on each case as a pytest test, and make one report of all these tests."""

from __future__ import annotations

import base64
import os
import pickle
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.operation import CROSS_ENTROPY, OPERATIONS
from crossent.checks import CHECKS, single
from crossent.machine import ambient, environment
from crossent.report.findings import Finding, Outcome, SubjectReport
from crossent.report.moves.diff import diff
from crossent.report.report import Report
from crossent.run.commands import options_of, with_commands
from crossent.run.parallel import judge_each
from crossent.run.settings import Settings, mark_expected, operation_of
from crossent.subjects.builtin import chosen_contract
from crossent.subjects.features import declared
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.check import Check, Cost
from crossent.words import counted, quoted

# The settings that a test can have. pytest itself has options for processes (-n of pytest-xdist) and an early end (-x).
# A test calls the subject in its own process, so a test has no ranks, and no time limit for calls.
_NOT_OPTIONS = ("jobs", "timeout", "max_findings", "shard", "ranks")
_OPTIONS = [option.name for option in fields(Settings) if option.name not in _NOT_OPTIONS]


def parametrize(
    subject: str | Callable[..., Any], **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes one pytest test for each check on each case. The test calls its argument `check`.

    `check()` runs the check, and raises AssertionError with the finding if the check fails. `check()` marks a known
    failure as xfail, and skips the test if the check does not run. Each bad input has one test, for the check `errors`.

    The id of a test is `check[case]`. On a device other than the CPU, the id also has the device, as in
    `check[case]@cuda`. The name "torch" stands for two functions, so the id then starts with the function, as in
    `torch_nll:check[case]`.

    Options on the command line, such as `--crossent-level`, override the arguments of this function. The features of
    `--crossent-without` are added to `without`.

    Args:
        subject: the function to check, as an object or as a string, such as "path/to/file.py:NAME".
        options: device, dtypes, level (default "quick"), seed (a number), without, contract, grade, expected_findings,
            checks, cases and operation. :func:`crossent.check` explains these arguments.

    Raises:
        TypeError: `options` has an option that this function does not take.

    Example::

        import crossent
        from torch.nn.functional import cross_entropy

        @crossent.parametrize(cross_entropy, contract="torch", dtypes=["float32"])
        def test_cross_entropy(check):
            check()
    """
    import pytest  # here, since only tests need pytest

    if unknown := sorted(options.keys() - set(_OPTIONS)):
        allowed = f"allowed are {', '.join(_OPTIONS)}"
        raise TypeError(f"crossent.parametrize: got the option {quoted(unknown[0])}; {allowed}")
    return pytest.mark.crossent.with_args(subject, **options)  # mark.crossent(subject) would decorate the subject


@dataclass(eq=False)
class CaseRun:
    """Some checks of one subject on one case. The checks share the first call of the subject.

    Attributes:
        checks: the checks to run; empty for a bad input, on which `errors`, `arguments` and `state` run.
        known: torch's list and the user's list of known failures.
    """

    subject: Subject
    case: Case | BadInput
    checks: tuple[Check, ...]
    settings: Settings
    known: Any

    @cached_property
    def part(self) -> SubjectReport:
        """The results of the checks, which run at the first access to this attribute."""
        part, device = SubjectReport(self.subject.name), self.settings.device
        with ambient():
            for verdict in judge_each(self.case, self.checks, [self.subject], [Here(self.subject.loss)], device):
                part.enter(verdict)
        mark_expected(Report(environment(device), [part]), self.known, [self.subject])
        part.findings = with_commands(part.findings, self.subject.source, options_of(self.settings))
        return part


@dataclass(eq=False)
class CheckTest:
    """One check on one case, as a pytest test. Calling the object runs the check.

    Attributes:
        id: the id of the test, such as "check[case]@cuda".
        record: the result; None until the test has run.
        command: the command that runs this test alone; "" until the plugin sets it.
    """

    check: str
    run: CaseRun
    id: str
    record: CheckRecord | None = None
    command: str = ""

    def __call__(self) -> None:
        """Run the check. Mark a known failure as xfail, and skip the test if the check does not run on the case.

        Raises:
            AssertionError: the check failed. The message is the finding.
        """
        __tracebackhide__ = True
        import pytest

        subject, case, part = self.run.subject, self.run.case, self.run.part
        own = chosen_contract(subject), declared(subject.lacks)
        self.record = CheckRecord(subject.name, case.id, self.run.settings, *own)
        if case.id not in part.outcomes:
            (self.record.not_applicable,) = part.not_applicable
            pytest.skip(f"{subject.name} {self.record.not_applicable}")
        outcome = part.outcomes[case.id]
        # If a call made the device unusable, the outcome has only the check `call`, which then fails in every test.
        ended = self.check not in {*outcome.checks, *outcome.not_run}
        of = list(outcome.checks) if ended or isinstance(case, BadInput) else [self.check]
        measured = {name: outcome.checks[name] for name in of if name in outcome.checks}
        not_run = {name: outcome.not_run[name] for name in of if name in outcome.not_run}
        self.record.outcome = replace(outcome, checks=measured, not_run=not_run)
        self.record.findings = [finding for finding in part.findings if finding.check in of]
        for finding in self.record.findings:
            if finding.expected is None:
                raise AssertionError(str(finding if subject.source else replace(finding, repeat=self.command)))
        for finding in self.record.findings:
            pytest.xfail(str(finding.expected))
        for reason in not_run.values():
            pytest.skip(f"{subject.name} {reason}")


@dataclass
class CheckRecord:
    """The result of one test, for the report.

    Attributes:
        contract: the contract that the user chose, or "".
        declared: the declared differences from torch, such as "returns float32 for half precision".
        outcome: the outcome of the check; None if the case is not applicable.
        not_applicable: the reason why the case is not applicable, or "".
    """

    subject: str
    case: str
    settings: Settings
    contract: str = ""
    declared: Sequence[str] = ()
    outcome: Outcome | None = None
    findings: list[Finding] = field(default_factory=list)
    not_applicable: str = ""

    @property
    def ran(self) -> bool:
        """Whether the test ran a check."""
        return self.outcome is not None and bool(self.outcome.checks)

    def packed(self) -> str:
        """Return the record as a string. pytest-xdist sends only plain data from one process to another."""
        return base64.b64encode(pickle.dumps(self)).decode()


def unpacked(text: str) -> CheckRecord:
    """Return the record from a string of :meth:`CheckRecord.packed`."""
    record: CheckRecord = pickle.loads(base64.b64decode(text))
    return record


def tests_of(subject: str | Callable[..., Any], settings: Settings) -> Iterator[CheckTest]:
    """Yield a test for each check that applies to a case, and a test for each bad input.

    Raises:
        ValueError, TypeError, RuntimeError: a subject or a setting is wrong, as in :func:`crossent.check`.
    """
    given = None if settings.operation == CROSS_ENTROPY.name else settings.operation
    settings = replace(settings, operation=operation_of([subject], given))
    options: dict[str, Any] = {"without": settings.without, "contract": settings.contract, "grade": settings.grade}
    options["operation"] = OPERATIONS[settings.operation]
    subjects = load(subject, **options, device=settings.device)
    settings.require_grade_applies(subjects)
    known = settings.expected(None)  # None, since the list may name other subjects of the test run
    where = "" if settings.device == "cpu" else f"@{settings.device}"
    for one in subjects:
        whose = f"{one.name}:" if len(subjects) > 1 else ""
        for case, checks in settings.plan().items():
            if isinstance(case, BadInput):
                yield CheckTest("errors", CaseRun(one, case, (), settings, known), f"{whose}errors[{case.id}]{where}")
                continue
            applying = [check for check in checks if check.applies(case)]
            cheap = tuple(check for check in applying if check.cost in (Cost.CALL, Cost.AGAIN))
            together = CaseRun(one, case, cheap, settings, known)
            before = () if case.tiled > 1 else (single.call, single.result)
            for check in applying:
                run = together if check in cheap else CaseRun(one, case, (*before, check), settings, known)
                yield CheckTest(check.name, run, f"{whose}{check.name}[{case.id}]{where}")


def command_of(item: Any, given: Mapping[str, Any]) -> str:
    """Return the command that repeats pytest's test `item` from the folder in which the user called pytest.

    `given` maps each option, such as "--crossent-level", to a value, a list of values, or None to leave out the option.
    """
    each = [(name, one) for name, value in given.items() for one in (value if isinstance(value, list) else [value])]
    options = [f"{name}={one}" for name, one in each if one is not None]
    file, *names = str(item.nodeid).split("::")  # the file is relative to pytest's root folder
    path = os.path.relpath(item.config.rootpath / file, item.config.invocation_params.dir)
    return shlex.join(["pytest", *options, "::".join([path, *names])])


def report_of_records(records: Iterable[CheckRecord]) -> Report:
    """Return the report of all tests from their records. There must be at least one record."""
    all_records = list(records)
    settings = all_records[0].settings
    assert isinstance(settings.seed, int)
    report = Report(environment(settings.device), level=settings.level, seed=settings.seed, only=settings.only)
    report.without, report.grade = list(settings.without), settings.grade or ""
    parts: dict[str, SubjectReport] = {}
    contracts: dict[str, set[str]] = {}
    skipped: set[tuple[str, str]] = set()
    # Several tests may have a finding of one check on one case: tests with other options, or after a call that makes
    # the device unusable. The report keeps one finding, if possible a finding that is not a known failure.
    found: dict[tuple[str, str, str], Finding] = {}
    for one in all_records:
        part = parts.setdefault(one.subject, SubjectReport(one.subject, order=(*CHECKS, "errors")))
        contracts.setdefault(one.subject, set()).add(one.contract)
        part.declared = list(dict.fromkeys((*part.declared, *one.declared)))
        if one.outcome is None:
            if (one.subject, one.case) not in skipped:  # count the case once, not once for each check
                part.not_applicable[one.not_applicable] += 1
            skipped.add((one.subject, one.case))
            continue
        outcome = part.outcomes.setdefault(one.case, replace(one.outcome, checks={}, not_run={}))
        outcome.checks.update(one.outcome.checks)
        outcome.not_run.update(one.outcome.not_run)
        outcome.grade = max(outcome.grade, one.outcome.grade)
        for finding in one.findings:
            key = part.name, finding.case, finding.check
            if key not in found or (found[key].expected is not None and finding.expected is None):
                found[key] = finding
    for (name, *_), finding in found.items():
        parts[name].findings.append(finding)
    for name, chosen in contracts.items():  # tests of one subject may have several contracts
        parts[name].contract = " and ".join(word or "the default" for word in sorted(chosen)) if any(chosen) else ""
    report.subjects = list(parts.values())
    return report


def report_of_packed(records: Sequence[str]) -> Report:
    """Return the report of all tests from their packed records. There must be at least one record."""
    return report_of_records([unpacked(record) for record in records])


def compare(path: str, report: Report) -> tuple[list[str], bool]:
    """Compare the report with the report at `path`. Return lines about the changes, and whether the run must fail."""
    try:
        moved = diff(path, report)
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}; give a report that --crossent-json wrote"
        return [f"ERROR: --crossent-baseline: {why}"], True
    except ValueError as error:
        return [f"ERROR: --crossent-baseline: {error}"], True
    return str(moved).splitlines(), not moved.ok


def write_json(path: str, report: Report) -> list[str]:
    """Write the report as JSON into the file `path`. Return a list with the error message, or an empty list."""
    try:
        report.write_json(path)
    except OSError as error:
        why = f"{path} cannot be written: {error.strerror}; give a file in a folder that you can write to"
        return [f"ERROR: --crossent-json: {why}"]
    return []


def summary_of(part: SubjectReport) -> Iterator[str]:
    """Yield the lines of pytest's summary about a subject."""
    of, contract = part.counts, part.contract and f", under the contract {part.contract}"
    counts = f"{of['failed']:,} failed, {of['expected']:,} with known failures, {of['not_applicable']:,} not applicable"
    yield f"{part.name}: {counted(of['ran'], 'case')} ran, {counts}{contract}"
    if part.declared:
        yield f"  declared: {part.name} {'; '.join(part.declared)}"
    for reason, count in sorted(part.not_applicable.items()):
        yield f"  not applicable, {counted(count, 'case')}: {part.name} {reason}"
