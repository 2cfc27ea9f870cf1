"""The README: its examples run, and its tables say what the code has."""

import contextlib
import io
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from crossent.axes import DTYPES
from crossent.bad_inputs import BAD_INPUTS, INTEGERS
from crossent.cases import Case
from crossent.corpus import bugs
from crossent.grid import met
from crossent.levels import CHECKS, LEVELS, plan
from crossent.refusals import ERRORS

README = Path(__file__).parents[1] / "README.md"
MARKS = "<!-- checks:begin -->\n", "<!-- checks:end -->\n"


def table():
    """What is asked at each level, and of how many cases."""
    planned = {level: plan(level, tuple(DTYPES), 0) for level in LEVELS}
    lines = ["| check | asks | " + " | ".join(LEVELS) + " |", "| --- | --- |" + " ---: |" * len(LEVELS)]
    for name, check in CHECKS.items():
        asked = ((level, case, of) for level in LEVELS for case, of in planned[level].items())
        on = Counter(level for level, case, of in asked if check in of and check.about(case))
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
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    shown, after = rest.split(MARKS[1])
    if request.config.getoption("--crossent-write-figures"):
        README.write_text(before + MARKS[0] + table() + MARKS[1] + after)
        return
    assert shown == table(), "nox -s figures writes it anew"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("at", range(len(EXAMPLES)))
def test_an_example_of_the_readme_runs_and_prints_what_it_says(at):
    said = re.findall(r"^print\(.*\)  # (\S+)", EXAMPLES[at], re.M)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(EXAMPLES[at], f"README example {at}", "exec"), {"__name__": "example"})
    for line in said:
        assert line.rstrip(":") in out.getvalue()
