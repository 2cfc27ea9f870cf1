"""The README: its examples run, and its tables say what the code has."""

import contextlib
import io
import re
from collections import Counter

import pytest
import torch
from support.readme import README, part

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS, INTEGERS
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.grid import met
from crossent.checks import CHECKS
from crossent.checks.refusals import ERRORS
from crossent.report.findings import NUMBERS
from crossent.run.plan import LEVELS, plan


def sample():
    """What the command says of one form, but for the rows of the table that go without saying."""
    lines = str(crossent.check("formula")).splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("formula: "))
    nearest = next(at for at, line in enumerate(lines) if line.startswith("  nearest to a bound"))
    rows = [line for line in lines[first + 3 : nearest] if line.split()[0] in ("call", *NUMBERS)]
    shown = [line for line in lines[nearest + 1 :] if line.split()[:1] in (["loss"], ["gradient"])]
    last = [line for line in lines if line.startswith(("no evidence", "not judged")) or line == lines[-1]]
    texts = [*lines[first : first + 3], *rows, "  …", lines[nearest], *shown, "  …", *last]
    return "\n".join(["```", *texts, "```"]) + "\n"


def test_the_sample_in_the_readme_counts_the_cases_that_there_are(request):
    if request.config.getoption("--crossent-write-figures"):
        part("sample", sample())
    planned = plan("normal", tuple(DTYPES), 0)
    asked = [case for case, of in planned.items() if isinstance(case, Case) and CHECKS["loss"] in of]
    counts = [sum(case.dtype == dtype for case in asked) for dtype in DTYPES]
    shown = part("sample")
    assert re.search(r"^formula: (\d+) ran", shown, re.M)[1] == str(len(planned))
    assert re.search(r"^  loss +" + " +".join(rf"{count} +\d+%" for count in counts) + "$", shown, re.M), counts


def table():
    """What is asked at each level, and of how many cases."""
    planned = {level: plan(level, tuple(DTYPES), 0) for level in LEVELS}
    lines = ["| check | asks | " + " | ".join(LEVELS) + " |", "| --- | --- |" + " ---: |" * len(LEVELS)]
    for name, check in CHECKS.items():
        asked = ((level, case, of) for level in LEVELS for case, of in planned[level].items())
        on = Counter(level for level, case, of in asked if check in of and check.applies(case))
        counts = [on[level] for level in LEVELS]
        lines.append(f"| `{name}` | {check.sentence} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    bad = len(BAD_INPUTS) + sum(not hasattr(torch, of) for of in INTEGERS)  # of any torch: the newest has them all
    lines.append(f"| `errors` | {ERRORS} |" + f" {bad} |" * len(LEVELS))
    triples = [met(case for case in planned[level] if isinstance(case, Case)) for level in LEVELS]
    lines.append("| | sets of three choices that meet | " + " | ".join(f"{count:,}" for count in triples) + " |")
    known = sum(not bug.why_not for bug in bugs())
    lines += ["", f"Bugs that somebody shipped: {len(bugs())}, of which {known} have cases of their own."]
    return "\n".join(lines) + "\n"


def test_the_readme_has_the_table_of_the_checks(request):
    if request.config.getoption("--crossent-write-figures"):
        part("checks", table())
    assert part("checks") == table(), "nox -s figures writes it anew"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("at", range(len(EXAMPLES)))
def test_an_example_of_the_readme_runs_and_prints_what_it_says(at):
    said = re.findall(r"^print\(.*\)  # (\S+)", EXAMPLES[at], re.M)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(EXAMPLES[at], f"README example {at}", "exec"), {"__name__": "example"})
    for line in said:
        assert line.rstrip(":") in out.getvalue()
