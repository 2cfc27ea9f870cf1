"""The page of torch's failures: every script prints the output on the page, and the page has every known failure."""

import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from support.examples import printed
from support.readme import ROOT

from crossent.cases.operation import OPERATIONS
from crossent.report.expected_findings import torch_list

PAGE = ROOT / "docs" / "torch-findings.md"
TEXT = PAGE.read_text(encoding="utf-8")
# Each section with a script: its heading and its text.
SECTIONS = [part for part in re.split(r"^### ", TEXT, flags=re.M)[1:] if "```python" in part]
SCRIPTS = [(section, script) for section in SECTIONS for script in re.findall(r"```python\n(.*?)```", section, re.S)]
RELEASE = Version(torch.__version__).base_version
KNOWN = [known for operation in OPERATIONS.values() for known in torch_list(operation)]


def expected(script):
    """Return the comments of a script that say what its lines print or raise."""
    return re.findall(r"  # (.+)$", script, re.M)


def printed_by_a_new_python(script):
    """Return the printed lines of a script, and the last line of its error. The script changes its whole process."""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    errors = [line.removeprefix("[rank0]: ") for line in ended.stderr.splitlines() if "Error: " in line]
    return [*ended.stdout.splitlines(), *(errors[-1:] if ended.returncode else [])]


@pytest.mark.parametrize(("section", "script"), SCRIPTS, ids=[section.splitlines()[0] for section, _ in SCRIPTS])
def test_a_script_prints_what_the_page_says(section, script):
    versions = re.search(r"^- Versions: (?:all|`([^`]+)`)", section, re.M)
    assert versions, "a section with a script names the versions of torch"
    if not SpecifierSet(versions[1] or "").contains(RELEASE):
        pytest.skip(f"the page shows the output of torch {versions[1]}")
    run = printed_by_a_new_python if "torch.distributed" in script else partial(printed, errors=True)
    got, said = run(script), expected(script)
    assert len(got) >= len(said) > 0
    for line, comment in zip(got, said, strict=False):
        assert line.startswith(comment) if "Error: " in comment else line == comment


def test_a_script_that_prints_something_else_is_noticed():
    assert printed("print(1)\nraise ValueError('bad')", errors=True) == ["1", "ValueError: bad"]
    assert expected("x = 1  # a comment\nprint(x)  # 1\n") == ["a comment", "1"]


def test_the_page_has_every_known_failure_and_no_other():
    prose = re.sub(r"```.*?```|`[^`]*`", "", TEXT, flags=re.S)
    named = re.findall(r"\*([^*]+)\*", re.sub(r"\s+", " ", prose))
    assert sorted(named) == sorted(known.reason for known in KNOWN)


def test_the_page_links_the_issue_of_every_known_failure():
    assert [known.issue for known in KNOWN if known.issue and known.issue not in TEXT] == []
