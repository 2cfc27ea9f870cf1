"""The README: its examples run, its links lead somewhere, and its tables say what the code has."""

import re
from collections import Counter

import pytest
import torch
from support.examples import blocks, require_said
from support.readme import PAGES, README, ROOT, part

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS, INTEGERS
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.grid import met
from crossent.checks import CHECKS
from crossent.checks.refusals import ERRORS
from crossent.choices import LEVELS
from crossent.report.findings import NUMBERS
from crossent.run.plan import plan


def sample():
    """The command's output for one form, without the rows of the table that are alike in every run."""
    lines = str(crossent.check("formula")).splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("formula: "))
    nearest = next(at for at, line in enumerate(lines) if line.startswith("  nearest to a bound"))
    rows = [line for line in lines[first + 3 : nearest] if line.split()[0] in ("call", *NUMBERS)]
    shown = [line for line in lines[nearest + 1 :] if line.split()[:1] in (["loss"], ["gradient"])]
    last = [line for line in lines if line.startswith(("no evidence", "not judged")) or line == lines[-1]]
    texts = [*lines[first : first + 3], *rows, "  …", lines[nearest], *shown, "  …", *last]
    return "\n".join(["```", *texts, "```"]) + "\n"


def lacking():
    """Return how many bad inputs this torch lacks: one for each dtype of integers that only newer versions have."""
    return sum(not hasattr(torch, of) for of in INTEGERS)


def test_the_sample_in_the_readme_counts_the_cases_that_there_are(request):
    if request.config.getoption("--crossent-write-figures"):
        part("sample", sample())
    planned = plan("normal", tuple(DTYPES), 0)
    with_loss = [case for case, of in planned.items() if isinstance(case, Case) and CHECKS["loss"] in of]
    counts = [sum(case.dtype == dtype for case in with_loss) for dtype in DTYPES]
    shown = part("sample")
    again = "`nox -s figures` writes the sample again"
    assert re.search(r"^formula: (\d+) ran", shown, re.M)[1] == str(len(planned) + lacking()), again
    assert re.search(r"^  loss +" + " +".join(rf"{count} +\d+%" for count in counts) + "$", shown, re.M), again


def table():
    """Each check, and the number of cases that it runs on at each level."""
    planned = {level: plan(level, tuple(DTYPES), 0) for level in LEVELS}
    lines = ["| check | what must be true | " + " | ".join(LEVELS) + " |", "| --- | --- |" + " ---: |" * len(LEVELS)]
    for name, check in CHECKS.items():
        every = ((level, case, of) for level in LEVELS for case, of in planned[level].items())
        on = Counter(level for level, case, of in every if check in of and check.applies(case))
        counts = [on[level] for level in LEVELS]
        lines.append(f"| `{name}` | {check.sentence} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    bad = len(BAD_INPUTS) + lacking()
    lines.append(f"| `errors` | {ERRORS} |" + f" {bad} |" * len(LEVELS))
    triples = [met(case for case in planned[level] if isinstance(case, Case)) for level in LEVELS]
    lines.append("| | 3-way combinations of choices | " + " | ".join(f"{count:,}" for count in triples) + " |")
    known = sum(not bug.why_not for bug in bugs())
    lines += ["", f"Bugs in the corpus: {len(bugs())}, of which {known} have cases of their own."]
    return "\n".join(lines) + "\n"


def test_the_benchmarks_readme_has_the_table_of_the_checks(request):
    if request.config.getoption("--crossent-write-figures"):
        part("checks", table())
    assert part("checks") == table(), "`nox -s figures` writes the table again"


def anchors(page):
    """The fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), link
        assert not anchor or anchor in anchors(to), link


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page):
    named = re.findall(r"`((?:crossent|tests|benchmarks)/[\w./]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_module_and_function_that_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.(?:py|toml))(?:: ([\w, ]+))?`", text)
    assert len(named) > 30
    for path, names in named:
        module = next((root / path for root in (ROOT, ROOT / "crossent") if (root / path).exists()), None)
        assert module is not None, path
        for name in filter(None, names.split(", ")):
            assert re.search(rf"^(?:def|class) {name}\b", module.read_text(encoding="utf-8"), re.M), f"{path}: {name}"


@pytest.mark.parametrize(("place", "source"), blocks(README, "python"))
def test_an_example_of_the_readme_runs_and_prints_what_it_says(place, source):
    require_said(source, place)
