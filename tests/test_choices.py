"""The words of the options are those of the rooms, and the command waits for no import of torch to print them."""

import subprocess
import sys

import pytest

from crossent.cases.axes import DTYPES
from crossent.checks import CHECKS
from crossent.choices import CHECK_NAMES, CONTRACT_NAMES, DTYPE_NAMES, LEVELS
from crossent.numerics.formats import FORMATS
from crossent.run.plan import plan
from crossent.subjects.contracts import CONTRACTS


def test_the_words_of_the_options_are_those_of_the_rooms():
    assert tuple(DTYPES) == tuple(FORMATS) == DTYPE_NAMES
    assert tuple(CONTRACTS) == CONTRACT_NAMES
    assert (*CHECKS, "errors") == CHECK_NAMES
    sizes = [len(plan(level, ("float32",), 0)) for level in LEVELS]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
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
