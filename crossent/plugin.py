"""The pytest plugin: the options `--crossent-…`, the tests of `crossent.parametrize`, and a summary.

The plugin does not import torch unless a test of crossent needs torch.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from crossent.choices import CONTRACT_NAMES, OPERATION_NAMES
from crossent.words import counted, quoted

if TYPE_CHECKING:
    from crossent.run.pytest_checks import CheckTest
    from crossent.run.settings import Settings


DEVICE, DTYPE, LEVEL, _SEED = "--crossent-device", "--crossent-dtype", "--crossent-level", "--crossent-seed"
_SUBJECT, WITHOUT, EXPECTED = "--crossent-subject", "--crossent-without", "--crossent-expected-findings"
CONTRACT, OPERATION = "--crossent-contract", "--crossent-operation"
JSON, MIN_CHECKS, BASELINE = "--crossent-json", "--crossent-min-checks", "--crossent-baseline"
RECORDS = pytest.StashKey[list[str]]()  # the results of checks, each packed as a string
DESELECTED = pytest.StashKey[int]()  # the number of deselected checks
ENDED = pytest.StashKey[tuple[list[str], bool]]()  # lines about the baseline and the report, and whether the run fails
SHOWN = pytest.StashKey[bool]()  # whether the header has been shown
USAGE_ERRORS = (ValueError, TypeError, RuntimeError)  # the errors for a wrong subject or option


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `--crossent-…`."""
    group = parser.getgroup("crossent")

    def option(name: str, text: str, **how: Any) -> None:
        group.addoption(name, help=text, default=None, **how)

    option(
        _SUBJECT, "Also test this subject, named as for `crossent check`. Repeatable.", action="append", metavar="NAME"
    )
    operations = f"{' or '.join(OPERATION_NAMES)}. Default: cross_entropy"
    option(
        OPERATION, f"Operation of the subjects of {_SUBJECT}: {operations}, or the operation of a form.", metavar="NAME"
    )
    devices = "Device: cpu, cuda, cuda:N, xpu, xpu:N or mps. Repeatable. Default: cpu."
    option(DEVICE, devices, action="append", metavar="DEVICE")
    dtypes = "Dtype of the logits: float16, bfloat16, float32 or float64. Repeatable. Default: all four."
    option(DTYPE, dtypes, action="append", metavar="DTYPE")
    option(LEVEL, "How many cases and checks run: quick, normal or thorough. Default: quick.", metavar="LEVEL")
    option(_SEED, "Seed of the numbers in the cases. Default: 0.", type=int, metavar="N")
    option(WITHOUT, "Feature that the subjects lack. Repeatable.", action="append", metavar="FEATURE")
    contracts = f"{', '.join(CONTRACT_NAMES)}. Default: kernel; forms and torch have their own contracts."
    option(CONTRACT, f"What the subjects promise about their arithmetic: {contracts}", metavar="NAME")
    option(EXPECTED, "TOML file of known failures with their reasons.", metavar="FILE")
    option(JSON, "Write the report of the checks to this JSON file.", metavar="FILE")
    option(
        BASELINE,
        "Compare with this report, which --crossent-json wrote, and fail on a regression, as `crossent diff` does.",
        metavar="FILE",
    )
    least = "Fail if fewer than N checks ran. Default: 1 if the run has tests of crossent."
    option(MIN_CHECKS, least, type=int, metavar="N")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `crossent` and a :class:`RecordCollector`. Raise UsageError for a wrong subject."""
    config.addinivalue_line("markers", "crossent(subject, **options): checks of a loss; set by crossent.parametrize")
    config.stash[RECORDS], config.stash[SHOWN], config.stash[DESELECTED] = [], False, 0
    config.stash[ENDED] = [], False
    config.pluginmanager.register(RecordCollector(config))
    if config.getoption(_SUBJECT):
        _of_subjects(config)  # a wrong subject must raise UsageError before pytest collects


def pytest_report_header(config: pytest.Config) -> str | None:
    """Return crossent's header if the command has one of six options, such as `--crossent-level`."""
    if not any(config.getoption(name) is not None for name in (_SUBJECT, LEVEL, DTYPE, WITHOUT, JSON, MIN_CHECKS)):
        return None
    config.stash[SHOWN] = True
    return _header(config)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """Return crossent's header if pytest collected a check and has not shown the header yet."""
    if config.stash[SHOWN] or not any(_check_of(item) for item in items):
        return None
    return _header(config)


def _header(config: pytest.Config) -> str:
    """Return the line of crossent in pytest's header."""
    devices, level = config.getoption(DEVICE) or ["cpu"], config.getoption(LEVEL) or "quick"
    loud = f"QUICK ({LEVEL}=normal runs more)" if level == "quick" else level
    seed = config.getoption(_SEED) or 0
    may_differ = any(config.getoption(option) is None for option in (DEVICE, _SEED, LEVEL))
    own = ", unless a test sets its own" if may_differ else ""
    return f"crossent: torch {version('torch')}, device {', '.join(devices)}, seed {seed}, level {loud}{own}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """For a test marked by `crossent.parametrize`, make a test of each check on each case."""
    marks = list(metafunc.definition.iter_markers("crossent"))
    if not marks:
        return
    if "check" not in metafunc.fixturenames:
        raise pytest.Collector.CollectError(
            "crossent.parametrize: the test has no argument `check`; add the argument and call `check()`"
        )
    from crossent.run.pytest_checks import tests_of

    try:
        made = [
            one
            for mark in marks
            for settings in _settings_of(metafunc.config, dict(mark.kwargs))
            for one in tests_of(mark.args[0], settings)
        ]
    except USAGE_ERRORS as error:
        raise pytest.Collector.CollectError(_named(metafunc.config, error, "crossent.parametrize")) from None
    metafunc.parametrize("check", made, ids=[one.id for one in made])


# The options that override an argument of `crossent.parametrize`, by the name of the argument.
_OVERRIDING = {"dtypes": DTYPE, "level": LEVEL, "seed": _SEED, "contract": CONTRACT, "expected_findings": EXPECTED}


def _named(config: pytest.Config, error: Exception, prefix: str) -> str:
    """Return an error message that begins with the wrong option, or with `prefix` if no option is wrong."""
    name, _, rest = str(error).partition(": ")
    options = {**_OVERRIDING, "subject": _SUBJECT, "operation": OPERATION, "device": DEVICE, "without": WITHOUT}
    given = config.getoption(options[name]) if name in options else None
    values = given if isinstance(given, list) else [] if given is None else [given]
    from_option = any(name == "expected_findings" or rest.startswith(f"got {quoted(value)}") for value in values)
    return f"{options[name]}: {rest}" if from_option else f"{prefix}: {error}"


def _settings_of(config: pytest.Config, own: dict[str, Any]) -> Iterator[Settings]:
    """Yield the settings for each device. Options override `own`, the arguments of `crossent.parametrize`.

    `--crossent-without` adds features to the argument `without`.
    """
    from crossent.run.settings import Settings

    chosen = {name: config.getoption(option) for name, option in _OVERRIDING.items()}
    without = own.pop("without", ())
    features = [*([without] if isinstance(without, str) else without), *(config.getoption(WITHOUT) or ())]
    both = {**own, **{name: value for name, value in chosen.items() if value is not None}, "without": features}
    # If each process of pytest-xdist drew a seed, the processes would collect different tests.
    if not isinstance(seed := both.get("seed", 0), int) or seed < 0:
        not_random = "not the word random, which would give each process other cases"
        raise ValueError(f"seed: got {quoted(seed)}; allowed is a whole number of 0 or more ({not_random})")
    for device in config.getoption(DEVICE) or [both.get("device", "cpu")]:
        yield Settings(**{"level": "quick", **both, "device": device})


def _of_subjects(config: pytest.Config) -> list[CheckTest]:
    """Return the tests of `--crossent-subject`. Raise UsageError for a wrong subject or setting."""
    from crossent.run.pytest_checks import tests_of

    names, operation = config.getoption(_SUBJECT) or (), config.getoption(OPERATION)
    own = {"operation": operation} if operation is not None else {}
    try:
        return [
            replace(one, id=f"{name}:{one.id}")
            for name in dict.fromkeys(names)
            for settings in _settings_of(config, dict(own))
            for one in tests_of(name, settings)
        ]
    except USAGE_ERRORS as error:
        raise pytest.UsageError(_named(config, error, "crossent")) from None


class Subjects(pytest.Collector):
    """The collector of the tests of `--crossent-subject`, which are in no file."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield a test for each check on each case of each subject."""
        for one in _of_subjects(self.config):
            yield CheckItem.from_parent(self, name=one.id, check=one)


class CheckItem(pytest.Item):
    """A pytest test that runs one check on one case. The option `--crossent-subject` names the subject."""

    def __init__(self, *, check: CheckTest, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check

    def runtest(self) -> None:
        """Run the check."""
        self.check()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return a finding as text, without a traceback. Show other exceptions as pytest does."""
        return str(excinfo.value) if excinfo.errisinstance(AssertionError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, None, str]:
        """Return what pytest shows: the path, no line, and the name."""
        return self.path, None, self.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of `--crossent-subject`, before `-k` selects tests."""
    if config.getoption(_SUBJECT):
        collector = Subjects.from_parent(session, name="crossent", nodeid="crossent")
        report = collector.ihook.pytest_make_collect_report(collector=collector)
        collector.ihook.pytest_collectreport(report=report)  # so that pytest counts the tests
        items.extend(report.result)


def _check_of(item: pytest.Item) -> CheckTest | None:
    """Return the check that a test runs, or None if the test runs no check of crossent."""
    module = sys.modules.get("crossent.run.pytest_checks")
    if module is None:
        return None
    found = getattr(item, "check", None) or getattr(getattr(item, "callspec", None), "params", {}).get("check")
    return found if isinstance(found, module.CheckTest) else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Store the pytest command that repeats a test, for the findings of the test."""
    if (check := _check_of(item)) is not None:
        from crossent.run.pytest_checks import command_of

        given = {name: item.config.getoption(name) for name in (DEVICE, LEVEL, _SEED, WITHOUT, CONTRACT)}
        check.command = command_of(item, given)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Attach the record of a check to pytest's report. A test that does not call its check fails."""
    report, check = (yield).get_result(), _check_of(item)
    if call.when == "call" and check is not None:
        if check.record is not None:
            report.crossent = check.record.packed()
        elif report.passed:
            report.outcome, report.longrepr = "failed", "crossent.parametrize: the test did not call `check()`"


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the checks that pytest deselects."""
    if checks := [item for item in items if _check_of(item) is not None]:
        checks[0].config.stash[DESELECTED] += len(checks)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Read the number of deselected checks from a worker of pytest-xdist."""
    # Each worker deselects the same checks. A worker that crashed has no output.
    output = getattr(node, "workeroutput", {})
    node.config.stash[DESELECTED] = output.get("crossent_deselected", node.config.stash[DESELECTED])


class RecordCollector:
    """A pytest plugin that collects the results of checks, packed as records, also from workers of pytest-xdist."""

    def __init__(self, config: pytest.Config) -> None:
        self.records = config.stash[RECORDS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the record of a test."""
        if (record := getattr(report, "crossent", None)) is not None:
            self.records.append(record)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report, and compare with the baseline. Fail the run for regressions, errors or too few checks."""
    config = session.config
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist only sends its number of deselected checks
        config.workeroutput["crossent_deselected"] = config.stash[DESELECTED]  # type: ignore[attr-defined]
        return
    if config.option.collectonly:
        return
    config.stash[ENDED] = _end(config)
    if session.exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return
    if _ran(config) < _least(config) or config.stash[ENDED][1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _end(config: pytest.Config) -> tuple[list[str], bool]:
    """Compare with the baseline, and write the report. Return lines for the summary, and whether the run must fail."""
    path, json_file, records = config.getoption(BASELINE), config.getoption(JSON), config.stash[RECORDS]
    if path and not records:
        return [f"ERROR: {BASELINE}: no check ran, so nothing can be compared with {path}; select some checks"], True
    if not records or not (path or json_file):
        return [], False
    from crossent.run.pytest_checks import compare, report_of_packed, write_json

    report = report_of_packed(records)
    lines, fails = compare(path, report) if path else ([], False)
    errors = write_json(json_file, report) if json_file else []  # after the comparison: the file may be the baseline
    return [*lines, *errors], fails or bool(errors)


def _least(config: pytest.Config) -> int:
    given: int | None = config.getoption(MIN_CHECKS)
    return int(bool(config.stash[RECORDS] or config.getoption(_SUBJECT))) if given is None else given


def _ran(config: pytest.Config) -> int:
    if not config.stash[RECORDS]:
        return 0
    from crossent.run.pytest_checks import unpacked

    return sum(unpacked(record).ran for record in config.stash[RECORDS])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the summary of crossent."""
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    if not (config.stash[RECORDS] or _least(config) or config.getoption(BASELINE)):
        return
    terminalreporter.section("crossent")
    terminalreporter.line(_header(config))
    ran, least = _ran(config), _least(config)
    if ran < least:
        more = f"at least {least} must run: select more tests, or lower {MIN_CHECKS}"
        terminalreporter.line(f"ERROR: {counted(ran, 'check')} ran; {more}", red=True, bold=True)
    for line in config.stash[ENDED][0]:
        terminalreporter.line(line, red=line.startswith("ERROR"))
    if not (records := config.stash[RECORDS]):
        return
    from crossent.run.pytest_checks import report_of_packed, summary_of

    report = report_of_packed(records)
    for line in (line for part in report.subjects for line in summary_of(part)):
        terminalreporter.line(line)
    left_out = f"; {counted(deselected, 'test')} deselected" if (deselected := config.stash[DESELECTED]) else ""
    terminalreporter.line(f"{counted(ran, 'check')} ran; {report.summary}{left_out}")
    if report.level == "quick":
        terminalreporter.line(f"THIS WAS A QUICK RUN: {LEVEL}=normal runs more", yellow=True, bold=True)
