"""The options and the summary of the tests, and the search profiles of Hypothesis (`--hypothesis-profile`).

The conftest.py in the root also serves the benchmarks, which need no Hypothesis.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import settings

# The same few cases in every run, so that only a change of the code fails a test; seconds.
settings.register_profile("ci", derandomize=True, max_examples=200, database=None, deadline=None, print_blob=False)
# New cases in every run; minutes. A failure is printed in a form that repeats it.
settings.register_profile("thorough", max_examples=20_000, database=None, deadline=None, print_blob=True)
settings.load_profile("ci")


def pytest_addoption(parser):
    group = parser.getgroup("crossent")
    group.addoption(
        "--crossent-write-figures",
        action="store_true",
        help="Write the tables of README.md and benchmarks/README.md, and the files in benchmarks/results.",
    )
    group.addoption(
        "--crossent-repetitions",
        type=int,
        default=1,
        metavar="N",
        help="Seeds with which the forms and torch are checked. Default: 1; `nox -s repetitions` takes 100.",
    )
    group.addoption(
        "--crossent-exhaustive", action="store_true", help="Measure exp and log on every float32. Default: a sample."
    )
    group.addoption(
        "--crossent-soak",
        type=int,
        default=64,
        metavar="N",
        help="How many cases the soak runs in each dtype. Default: 64, a few seconds; `nox -s soak` takes 20000.",
    )


# With this many cases, the largest share of a bound must be at least REACHED. The random right implementations must
# come nearer, with as many cases as `nox -s soak` takes.
WHOLE_SOAK, WHOLE_OF_RIGHT = 1000, 20_000
REACHED, REACHED_BY_RIGHT = 0.5, 0.9


def pytest_sessionfinish(session):
    """Fail a long soak whose results stay far below a bound, since the bound is too wide."""
    terminalreporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminalreporter is None or session.config.getoption("--crossent-soak") < WHOLE_SOAK:
        return
    shares = [
        (dtype, check, max(part[check]["worst"][0] for part in parts), REACHED)
        for dtype, parts in _soaked(terminalreporter).items()
        for check in ("loss", "gradient")
        if sum(part["cases"] for part in parts) >= WHOLE_SOAK
    ]
    if session.config.getoption("--crossent-soak") >= WHOLE_OF_RIGHT:
        shares += [
            (dtype, check, max(part["worst"][check][0] for part in parts), REACHED_BY_RIGHT)
            for dtype, parts in _soaked(terminalreporter, "right").items()
            for check in ("loss", "gradient")
        ]
    for dtype, check, worst, least in shares:
        if worst < least:
            terminalreporter.write_line(
                f"\n{check} in {dtype}: the largest share of the bound is {worst:.2f}, below {least}"
            )
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _soaked(terminalreporter, name="soak"):
    """Return the figures of the parts of a soak, by dtype."""
    parts: dict[str, list] = {}
    for part in map(json.loads, _recorded(terminalreporter, name)):
        parts.setdefault(part["dtype"], []).append(part)
    return parts


def _recorded(terminalreporter, name):
    """Yield the texts that tests recorded under this name, in any process."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        yield from (text for recorded, text in report.user_properties if recorded == name)


@pytest.fixture
def figure(record_property):
    """Return a function that adds a line to the summary of the run."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter):
    """Print the figures of the run and the results of the soak."""
    if figures := list(_recorded(terminalreporter, "figure")):
        terminalreporter.section("figures")
    for line in figures:
        terminalreporter.line(line)
    if parts := _soaked(terminalreporter):
        terminalreporter.section("soak")
    for dtype, of in parts.items():
        terminalreporter.line(f"{dtype}: {sum(part['cases'] for part in of)} cases, {len(of)} parts")
        for check in ("loss", "gradient", "target_gradient"):
            ratio, subject, case = max(part[check]["worst"] for part in of)
            numbers, comparisons = (sum(part[check][name] for part in of) for name in ("numbers", "comparisons"))
            terminalreporter.line(f"  {check}: {numbers} numbers in {comparisons} comparisons")
            terminalreporter.line(f"    largest share of a bound: {ratio:.4f}, {subject} on {case}")
            for counted, unit, total in (
                ("not_judged", "numbers", numbers),
                ("partly_judged", "comparisons", comparisons),
            ):
                for reason, count in sum((Counter(part[check][counted]) for part in of), Counter()).items():
                    terminalreporter.line(f"    no bound, {reason}: {count} {unit}, {100 * count / total:.3f} %")
        for reason, count in sum((Counter(part["known"]) for part in of), Counter()).items():
            terminalreporter.line(f"  known failure of torch, {reason}: {count}")
    if parts := _soaked(terminalreporter, "right"):
        terminalreporter.section("right implementations")
    for dtype, of in parts.items():
        terminalreporter.line(f"{dtype}: {sum(part['cases'] for part in of)} cases")
        for check in of[0]["worst"]:
            share, implementation, case = max(part["worst"][check] for part in of)
            terminalreporter.line(
                f"  {check}: largest share of a bound {share:.4f}, implementation {implementation} on {case}"
            )
