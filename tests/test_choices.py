"""The options accept the names that the package has, and the command prints these names without importing torch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.readme import ROOT

from crossent.cases.axes import DTYPES
from crossent.cases.grid import ARRAYS, grid
from crossent.cases.linear.grid import LINEAR_ARRAYS, linear_grid
from crossent.cases.operation import OPERATIONS
from crossent.checks import CHECKS, RANK_CHECKS
from crossent.choices import (
    BUILTIN_NAMES,
    CHECK_NAMES,
    CONTRACT_NAMES,
    DTYPE_NAMES,
    FEATURE_NAMES,
    LEVELS,
    OPERATION_NAMES,
    RANK_CHECK_NAMES,
    SUBJECT_NAMES,
)
from crossent.numerics.formats import FORMATS
from crossent.run.plan import plan
from crossent.subjects.builtin import BY_NAME, EVERY_NAMED
from crossent.subjects.contracts import CONTRACTS
from crossent.subjects.features import FEATURES


def test_the_words_of_the_options_are_the_names_that_the_package_has():
    assert tuple(DTYPES) == tuple(FORMATS) == DTYPE_NAMES
    assert tuple(CONTRACTS) == CONTRACT_NAMES
    assert tuple(OPERATIONS) == OPERATION_NAMES
    assert (*CHECKS, "errors") == CHECK_NAMES
    assert tuple(RANK_CHECKS) == RANK_CHECK_NAMES
    assert tuple(EVERY_NAMED) == SUBJECT_NAMES
    assert tuple(BY_NAME) == BUILTIN_NAMES
    assert tuple(FEATURES) == FEATURE_NAMES
    sizes = [len(plan(level, ("float32",), 0)) for level in LEVELS]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["-h"], 0),
        (["--version"], 0),
        (["-V"], 0),
        (["check", "--help"], 0),
        (["check", "--levl", "quick"], 2),
        (["check", "--level", "fast"], 2),
        (["list", "nothing"], 2),
        (["repro"], 2),
        ([], 2),
    ],
)
def test_help_and_wrong_use_import_no_torch(arguments, status):
    code = (
        "import sys; from crossent.cli import main; status = main(sys.argv[1:]); "
        "heavy = sorted({'torch', 'numpy', 'rich'} & set(sys.modules)); print(status, heavy)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == f"{status} []"


def completed(*words):
    """Return the completions of the last word, as bash asks for them. Completing imports neither torch nor numpy."""
    code = (
        "import sys; from crossent.cli import main; status = main(); "
        "print(status, sorted({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    )
    line = {"COMP_WORDS": " ".join(["crossent", *words]), "COMP_CWORD": str(len(words))}
    environment = {**os.environ, "_CROSSENT_COMPLETE": "bash_complete", **line}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    *lines, last = run.stdout.splitlines()
    assert last == "0 []"
    assert run.stderr == ""
    return [line.removeprefix("plain,") for line in lines if line]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["che"], ["check"]),
        (["check", "o"], ["one_hot"]),
        (["verify", "report.json", "sca"], ["scalar"]),
        (["check", "kernels/mi"], ["file,kernels/mi"]),
        (["check", "vm"], ["file,vm"]),
        (["check", "--without", "forw"], ["forward_ad"]),
        (["check", "--without", "weight", "vm"], ["vmap"]),
        (["check", "--check", "lo"], ["loss"]),
        (["check", "--level", "q"], ["quick"]),
        (["check", "--case", "nowhere"], []),
        (["list", "bu"], ["bugs"]),
    ],
    ids=" ".join,
)
def test_a_shell_completes_what_the_command_accepts(words, said):
    assert completed(*words) == said


@pytest.mark.parametrize(
    ("start", "cases"),
    [
        ("float32-7x5-", [case for array in ARRAYS for case in grid(array=array)]),
        ("linear-float32-", [case for array in LINEAR_ARRAYS for case in linear_grid(array=array)]),
    ],
    ids=["cross_entropy", "linear_cross_entropy"],
)
def test_a_shell_completes_the_ids_of_the_covering_arrays(start, cases):
    ids = {case.id for case in cases}
    found = completed("check", "--case", start)
    assert found == sorted(case for case in ids if case.startswith(start))
    assert len(found) > 10


def enabling(shell):
    """Return the line of docs/completion.md that turns completion on in a shell."""
    return re.search(rf"```{shell}\n(.+)\n```", (ROOT / "docs" / "completion.md").read_text(encoding="utf-8"))[1]


def run_in_bash(script):
    """Run a script in bash, where `crossent` is the command beside this Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_line_of_the_documentation_turns_completion_on_in_bash():
    complete = 'COMP_WORDS=(crossent check one); COMP_CWORD=2; _crossent_completion crossent; echo "${COMPREPLY[@]}"'
    assert run_in_bash(f"{enabling('bash')}\n{complete}") == "one_hot\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("shell", "said"), [("zsh", "compdef _crossent_completion crossent"), ("fish", "complete ")])
def test_the_lines_of_the_documentation_make_the_scripts_of_other_shells(shell, said):
    command = re.search(r"_CROSSENT_COMPLETE=\w+ crossent", enabling(shell))[0]
    assert said in run_in_bash(command)
