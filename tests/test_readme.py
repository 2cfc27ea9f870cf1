"""The README: its examples run, its links have targets, and its tables agree with the code."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from support.examples import assert_prints_its_comments, blocks
from support.readme import PAGES, README, ROOT, part
from support.terminal import lines_of, picture

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS, INTEGERS
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.grid import count_combinations
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import checks_of
from crossent.checks.refusals import ERRORS
from crossent.choices import LEVELS
from crossent.machine import cores
from crossent.run.plan import plan
from crossent.subjects.builtin import NAMED

CHECKS = checks_of(CROSS_ENTROPY)

CHECK, FINDING = (ROOT / "docs" / "terminal" / f"{name}.svg" for name in ("check", "finding"))
KERNEL = "kernels/mine.py:loss"  # the function that the page "Check your kernel" shows
LACKS = "spatial unbatched probability_target uint8_target autocast errors"


@pytest.fixture(scope="module")
def pictures(request, tmp_path_factory):
    """Return the lines of the two pictures of the README, and draw the pictures again if figures are written."""
    if request.config.getoption("--crossent-write-figures"):
        (_, source), *_ = blocks(ROOT / "docs" / "check-your-kernel.md", "python")
        file = tmp_path_factory.mktemp("kernel") / "mine.py"
        file.write_text(source, encoding="utf-8")
        CHECK.write_text(picture("crossent check --level quick", crossent.check(level="quick", jobs=cores())))
        found = crossent.check(f"{file}:loss", level="quick", jobs=cores(), without=LACKS.split())
        for finding in (part.findings for part in found.subjects):
            finding[:] = [replace(one, repeat=one.repeat.replace(f"{file}", "kernels/mine.py")) for one in finding]
        FINDING.write_text(picture(f"crossent check {KERNEL} --level quick --without {LACKS}", found))
    return [lines_of(file.read_text(encoding="utf-8")) for file in (CHECK, FINDING)]


def lacking():
    """Return the number of bad inputs that this torch lacks: one for each integer dtype of newer versions."""
    return sum(not hasattr(torch, of) for of in INTEGERS)


def test_the_picture_of_a_check_shows_every_subject_and_the_number_of_cases(pictures):
    again = "`nox -s figures` draws the picture again"
    cases = len(plan("quick", tuple(DTYPES), 0)) + lacking()
    shown = {line.split()[0]: line for line in pictures[0] if " PASSED " in line}
    names = [name for name in NAMED if name != "fused"]  # no kernel runs on a CPU
    assert set(shown) == {subject.name for name in names for subject in NAMED[name]}, again
    for name, line in shown.items():
        assert name in ("scalar", "torch_nll") or f" {cases} " in line, again
    assert any(line.startswith("PASSED: ") for line in pictures[0][-2:]), again
    assert len(pictures[0]) <= 24


def test_the_picture_of_a_finding_shows_the_cause_and_the_command(pictures):
    text = "\n".join(pictures[1])
    again = "`nox -s figures` draws the picture again"
    assert re.search(r"^ +where +ignored rows, reduction='mean'[^:]*: \d+ of \d+ failing cases", text, re.M), again
    assert re.search(r"^ +repeat +crossent repro loss:loss:\S+", text, re.M), again
    assert pictures[1][-1].startswith("FAILED: "), again


def table():
    """Return the table of the checks, with the number of cases at each level."""
    planned = {level: plan(level, tuple(DTYPES), 0) for level in LEVELS}
    lines = ["| check | what must be true | " + " | ".join(LEVELS) + " |", "| --- | --- |" + " ---: |" * len(LEVELS)]
    for name, check in CHECKS.items():
        every = ((level, case, of) for level in LEVELS for case, of in planned[level].items())
        on = Counter(level for level, case, of in every if check in of and check.applies(case))
        counts = [on[level] for level in LEVELS]
        lines.append(f"| `{name}` | {check.sentence} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    bad = len(BAD_INPUTS) + lacking()
    lines.append(f"| `errors` | {ERRORS} |" + f" {bad} |" * len(LEVELS))
    triples = [count_combinations(case for case in planned[level] if isinstance(case, Case)) for level in LEVELS]
    lines.append("| | 3-way combinations of options | " + " | ".join(f"{count:,}" for count in triples) + " |")
    known = sum(not bug.why_not for bug in bugs())
    lines += ["", f"Bugs in the corpus: {len(bugs())}, of which {known} have cases of their own."]
    return "\n".join(lines) + "\n"


def test_the_benchmarks_readme_has_the_table_of_the_checks(request):
    if request.config.getoption("--crossent-write-figures"):
        part("checks", table())
    assert part("checks") == table(), "`nox -s figures` writes the table again"


def anchors(page):
    """Return the fragments that GitHub gives to the headings of a page."""
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
def test_every_path_that_a_page_names_exists(page):
    named = re.findall(r"`((?:crossent|tests|benchmarks)/[\w./]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_module_and_function_that_contributing_names_exists():
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
    assert_prints_its_comments(source, place)
