"""Losses of packages from PyPI as subjects: each finding must be in findings.toml, with its reason.

`nox -s world` installs the packages and runs this file. By default, pytest does not collect it (conftest.py).
"""

import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.examples import blocks, commands

import crossent
from crossent.cases.operation import OPERATIONS
from crossent.checks import CHECKS
from crossent.choices import DTYPE_NAMES
from crossent.report.expected_findings import check_entries, mark, read_list
from crossent.run.plan import plan

pytestmark = pytest.mark.filterwarnings("default")  # warnings of these packages are no errors
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the files import each other, as when crossent loads them
from faults import FAULTS  # noqa: E402

FINDINGS = read_list(HERE / "findings.toml")
KINDS = ("bug: ", "documented difference: ")
LOSSES = tomllib.loads((HERE / "losses.toml").read_text(encoding="utf-8"))
DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("name", LOSSES)
def test_every_finding_of_a_package_is_explained(name):
    file = HERE / f"{name.partition('_')[0]}_losses.py"
    settings = {"dtypes": DTYPES, **LOSSES[name]}
    del settings["package"]
    settings["dtypes"] = DTYPE_NAMES if settings["dtypes"] == "all" else settings["dtypes"]
    report = crossent.check(f"{file}:{name}", **settings, level="quick", seed=0, jobs=2)
    mark(report, FINDINGS)
    (subject,) = report.subjects
    assert not report.findings, str(report)
    assert report.fixed == []  # remove an entry of findings.toml that no longer happens
    assert subject.without_evidence == []


def test_every_entry_has_a_kind_of_reason_and_can_match():
    cases = [case.id for operation in OPERATIONS.values() for case in plan("quick", DTYPE_NAMES, 0, operation)]
    check_entries(FINDINGS, LOSSES, (*CHECKS, "errors"), lambda: cases)
    assert [entry.reason for entry in FINDINGS if not entry.reason.startswith(KINDS)] == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_script_without_crossent_shows_the_fault(fault):
    fault()


def test_the_recipe_for_the_kernel_of_liger_gives_a_verdict_on_the_kernel(tmp_path):
    page = HERE.parents[1] / "docs" / "check-your-kernel.md"
    (source,) = (source for _, source in blocks(page, "py") if source.startswith("# liger.py"))
    (tmp_path / "liger.py").write_text(source, encoding="utf-8")
    (command,) = (command for command in commands(page) if "liger.py" in command)
    words = [*shlex.split(command), "--seed", "0", "--check", "gradient", "--case", "*7x5*"]
    ran = subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "where   non-contiguous logits: " in ran.stdout
    assert "refused" not in ran.stdout


def test_every_loss_with_a_bug_has_a_script():
    buggy = {entry.subject for entry in FINDINGS if entry.reason.startswith("bug: ")}
    assert {name for name in buggy if not any(fault.__name__.startswith(name) for fault in FAULTS)} == set()
