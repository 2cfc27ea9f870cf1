"""The examples of the pages in docs/: Python code prints the output on the page, and shell commands work."""

import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from support.examples import assert_prints_its_comments, blocks, commands, file_of
from support.readme import ROOT
from support.waits import computes, older_than

from crossent import cli
from crossent.subjects.ranks.protocol import can_start_ranks

PAGES = sorted((ROOT / "docs").glob("*.md"))
TESTED_ELSEWHERE = {"torch-findings.md"}  # tests/test_torch_findings.py runs its scripts, which differ by version
SHELL = tomllib.loads((ROOT / "tests" / "pages" / "shell_examples.toml").read_text(encoding="utf-8"))
WITH_CODE = [page for page in PAGES if blocks(page, "python") and page.name not in TESTED_ELSEWHERE]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


def name(page):
    return page.stem


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the files of the pages, such as kernels/mine.py, in which the examples run."""
    shown = [source for page in PAGES for language in ("python", "toml") for _, source in blocks(page, language)]
    for source in filter(file_of, shown):
        path = tmp_path / file_of(source)
        path.parent.mkdir(exist_ok=True)
        path.write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in ("kernels", "kernels.mine"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
@pytest.mark.usefixtures("folder")
def test_the_python_examples_of_a_page_run_in_order_and_print_what_they_say(page):
    if page.stem == "start" and not computes("float16"):
        pytest.skip("needs a torch that computes in float16 on a CPU")
    if page.stem == "ranks" and not can_start_ranks():
        pytest.skip("needs a system that forks, and torch 2.3 or newer")
    names = {"__name__": "example"}
    for place, source in blocks(page, "python"):
        assert_prints_its_comments(source, place, names)


def test_a_comment_that_is_not_what_the_code_prints_is_noticed():
    assert_prints_its_comments("for x in 1, 2:\n    pass\nprint(x)  # 2\nprint('x' * 9)  # x…x\n")
    for wrong in ("print(1)  # 2\n", "print(1)\n", "x = 1\nif x:\n    print(x, end='')  # 2\n"):
        with pytest.raises(AssertionError):
            assert_prints_its_comments(wrong)


def test_every_shell_example_is_listed_and_no_other():
    assert {page.name: commands(page) for page in WITH_COMMANDS} == {page: list(of) for page, of in SHELL.items()}


def test_every_session_or_file_that_runs_a_shell_example_exists():
    sessions = re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.M)
    for command, of in ((command, of) for listed in SHELL.values() for command, of in listed.items()):
        assert of.keys() & {"status", "by", "why"}, command
        if "by" in of:
            session = of["by"].removeprefix("nox -s ")
            assert session in sessions or (ROOT / of["by"]).exists(), command


@pytest.mark.parametrize("page", [page for page in SHELL if any("status" in of for of in SHELL[page].values())])
@pytest.mark.usefixtures("folder")
def test_the_commands_of_a_page_have_the_listed_exit_status(page, capsys):
    for command, of in SHELL[page].items():
        if "status" in of and not ("since" in of and older_than(of["since"])):
            program, *words = shlex.split(f"{command} {of.get('more', '')}")
            status = {"crossent": cli.main, "pytest": in_pytest}[program](words)
            assert status == of["status"], f"{command}\n{capsys.readouterr()}"


def in_pytest(words):
    """Run pytest in a separate process, as in another project."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = os.pathsep.join([os.getcwd(), str(ROOT)])
    plugin = ["-p", "crossent.plugin", "-p", "no:cacheprovider"]  # also where crossent is not installed
    command = [sys.executable, "-m", "pytest", *plugin, *words]
    return subprocess.run(command, env={**own, "PYTHONPATH": path}, check=False, capture_output=True).returncode
