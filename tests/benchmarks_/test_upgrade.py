"""`nox -s upgrade`: the requirements that pip gets, the files that are kept, and the messages when a version fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import environments, upgrade
from benchmarks.readme import part
from benchmarks.turns import Hot
from crossent.forms import FORMS
from crossent.report.moves.rules import Kind

SCRIPT = Path(upgrade.__file__)
on_posix = pytest.mark.skipif(os.name != "posix", reason="needs a system with /bin/sh")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Return the folder of environments and reports."""
    monkeypatch.setattr(environments, "PLACE", tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def here(kept, tmp_path):
    """Return two folders that look like environments and run this Python."""
    for name in ("one", "other"):
        (tmp_path / name / "bin").mkdir(parents=True)
        python = tmp_path / name / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    return [str(tmp_path / name) for name in ("one", "other")]


def pip_that(says, monkeypatch, status=1):
    """Replace the Python of new environments by a script that, like pip, prints lines and exits with a status."""

    def create(place, **how):
        (place / "bin").mkdir(parents=True)
        lines = "\n".join(f"echo '{line}'" for line in says)
        (place / "bin" / "python").write_text(f"#!/bin/sh\n{lines}\nexit {status}\n")
        (place / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(environments.venv, "create", create)


def one_line(capsys):
    """Return stderr, and assert that it is one line."""
    err = capsys.readouterr().err
    assert err.startswith("upgrade: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("2.0.1", ["torch==2.0.1", "numpy<2"]),
        ("2.2", ["torch==2.2", "numpy<2"]),
        ("2.3.0", ["torch==2.3.0", "numpy>=1.24"]),
        ("2.15.0+cpu", ["torch==2.15.0+cpu", "numpy>=1.24"]),
        ("torch>=2.14", ["torch>=2.14", "numpy>=1.24"]),
        ("./wheels/torch-2.16.whl", ["./wheels/torch-2.16.whl", "numpy>=1.24"]),
    ],
)
def test_a_version_is_a_requirement_of_pip(spec, expected):
    assert environments.requirements(spec) == expected


def test_the_other_requirements_are_those_of_the_package():
    needed = environments.other_requirements()
    assert {"python-flint>=0.7", "rich>=13.4", "setuptools"} <= set(needed)
    assert not [one for one in needed if one.startswith(("torch", "numpy"))]


def test_the_subjects_are_torch_and_the_forms_on_tensors():
    forms = [name for name in FORMS if name != "scalar"]
    assert list(environments.SUBJECTS) == ["torch", *forms]


@on_posix
@pytest.mark.parametrize(
    ("says", "message"),
    [
        (
            [
                "ERROR: Could not find a version that satisfies the requirement torch==2.999 (from versions: 2.8.0)",
                "ERROR: No matching distribution found for torch==2.999",
            ],
            r"Could not find a version that satisfies the requirement torch==2\.999 \(from versions: 2\.8\.0\)$",
        ),
        (
            [
                "WARNING: Retrying (Retry(total=0)) after connection broken by Error(<pip at 0x7f>: refused): /simple/",
                "ERROR: Could not find a version that satisfies the requirement torch==2.999 (from versions: none)",
                "    The user requested (constraint) torch<=2.14.1",
            ],
            r"\(from versions: none\); no connection: Error\(refused\): /simple/$",
        ),
        (
            [
                "ERROR: Cannot install torch==2.999 because these package versions have conflicting dependencies.",
                "The conflict is caused by:",
                "    The user requested torch==2.999",
                "    The user requested (constraint) torch<=2.14.1",
                "ERROR: ResolutionImpossible: for help visit a page",
            ],
            r"conflicting dependencies; The user requested \(constraint\) torch<=2\.14\.1$",
        ),
        ([], "exit status 1$"),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line_and_status_2(kept, monkeypatch, capsys, says, message):
    pip_that(says, monkeypatch)
    assert upgrade.main(["2.999", "--no-times"]) == 2
    assert re.match(rf"upgrade: 2\.999: no environment of Python 3\.\d+: .*{message}", one_line(capsys))
    assert list(kept.iterdir()) == []  # --reuse would take a folder for an environment


@pytest.mark.parametrize("spec", ["", "/", "no/such/..", "reports", "no/such/reports"])
def test_a_version_without_a_folder_of_its_own_deletes_nothing(kept, capsys, spec):
    (kept / "reports").mkdir(parents=True)
    (kept / "reports" / "one.json").touch()
    assert upgrade.main([spec, "--no-times"]) == 2
    assert one_line(capsys).startswith(f"upgrade: {spec!r}: not a version; give ")
    assert (kept / "reports" / "one.json").exists()


def test_a_wheel_that_is_not_there_is_one_line_and_status_2(kept, capsys):
    assert upgrade.main(["./torch-2.999.whl", "--no-times"]) == 2
    assert one_line(capsys) == "upgrade: ./torch-2.999.whl: this wheel does not exist; give the path of a wheel\n"
    assert not kept.exists()


@on_posix
def test_the_large_steps_of_pip_are_shown(kept, monkeypatch, capsys):
    says = [
        "Collecting torch==2.8.0",
        "  Downloading torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)",
        "  Downloading sympy-1.14.0-py3-none-any.whl (6.3 MB)",
        "Installing collected packages: sympy, torch",
    ]
    pip_that(says, monkeypatch, 0)
    environments.environment("2.8.0", "quick", False)
    lines = [line for line in capsys.readouterr().out.splitlines() if ": pip: " in line]
    assert [line.rpartition(", ")[0] for line in lines[:2]] == [
        "upgrade: 2.8.0: pip: torch-2.8.0 (888.1 MB)",
        "upgrade: 2.8.0: pip: installing 2 packages",
    ]
    environments.environment("2.8.0", "quick", True)
    assert capsys.readouterr().out == f"upgrade: 2.8.0: reusing {kept / '2.8.0'}\n"


@on_posix
def test_an_environment_that_was_left_half_made_is_made_anew(kept, monkeypatch, capsys):
    pip_that([], monkeypatch, 0)
    environments.environment("2.8.0", "quick", False)
    (kept / "2.8.0" / environments.MADE).unlink()
    shutil.rmtree(kept / "2.8.0" / "bin")
    monkeypatch.setattr(environments.venv, "create", lambda place, **how: (_ for _ in ()).throw(OSError("made anew")))
    with pytest.raises(OSError, match="made anew"):
        environments.environment("2.8.0", "quick", True)


@on_posix
def test_reports_are_kept_compared_and_used_again(here, kept, capfd):
    options = ["--subject", "scalar", "--no-times"]
    assert upgrade.main([here[0], *options]) == 0  # of one version, which has nothing beside it
    (first,) = (kept / "reports").iterdir()
    other = environments.environment(here[1], "quick", True, ("scalar",)).report
    shutil.copy(first, other)
    assert upgrade.main([*here, *options, "--reuse"]) == 0
    kinds = sorted(path.suffix for path in (kept / "reports").iterdir())
    assert kinds == [".html", ".json", ".json", ".json"]
    out, err = capfd.readouterr()
    assert out.splitlines()[-1].endswith(" same bits")
    assert "no regression: " in out.splitlines()[-1]
    assert err == ""
    document = json.loads(other.read_text(encoding="utf-8"))
    case = next(case for case in document["subjects"][0]["cases"].values() if case["results"])
    case["results"]["loss"]["shape"] = [1]
    other.write_text(json.dumps(document), encoding="utf-8")
    assert upgrade.main([*here, *options, "--reuse"]) == 1
    assert "look before you upgrade: 1 changed behaviour, " in capfd.readouterr().out
    document["seed"] = 7
    other.write_text(json.dumps(document), encoding="utf-8")
    assert upgrade.main([*here, *options, "--reuse"]) == 2
    assert "these runs cannot be compared: seed was 0 and is 7" in one_line(capfd)


def test_the_columns_of_the_table_have_every_kind_of_change_once():
    assert sorted(kind for kinds in upgrade.COLUMNS.values() for kind in kinds) == sorted(Kind)


def test_each_environment_has_its_own_report(here):
    """Otherwise two environments that are called .venv would share a report."""
    (Path(here[0]) / ".venv" / "bin").mkdir(parents=True)
    (Path(here[1]) / ".venv" / "bin").mkdir(parents=True)
    made = [
        environments.Environment(f"{here[0]}/.venv", Path(), "quick"),
        environments.Environment(f"{here[1]}/.venv", Path(), "quick"),
        environments.Environment("2.8.0", Path(), "quick"),
        environments.Environment("2.8.0", Path(), "quick", nth=2),
        environments.Environment("2.8.0", Path(), "normal"),
        environments.Environment("2.8.0", Path(), "quick", ("torch",)),
        environments.Environment("2.8.0", Path(), "quick", ("torch", "scalar")),
    ]
    assert len({one.report for one in made}) == len(made)


@on_posix
def test_a_report_that_is_older_than_crossent_is_made_anew(here, capsys, monkeypatch):
    one = environments.environment(here[0], "quick", True)
    one.report.parent.mkdir(parents=True)
    one.report.write_text("{}")
    commands = []
    monkeypatch.setattr(
        environments, "follow", lambda command, *rest, **more: commands.append(command) or write(command)
    )

    def write(command):
        Path(command[-1]).write_text("another")

    environments.checked(one, True)
    assert commands == []
    (newest,) = sorted((environments.ROOT / "crossent").rglob("*.py"), key=lambda path: path.stat().st_mtime)[-1:]
    older = newest.stat().st_mtime - 1  # than a module of a room, which lies in a folder of the package
    os.utime(one.report, (older, older))
    environments.checked(one, True)
    assert commands
    assert one.report.read_text() == "another"
    assert "is older than crossent's code" in capsys.readouterr().out


@on_posix
def test_a_traceback_is_no_report_and_its_last_line_is_shown(here, capsys):
    """Python exits with 1, as `crossent check` does when there are findings."""
    (Path(here[0]) / "bin" / "python").write_text("#!/bin/sh\necho 'ImportError: no such torch' >&2\nexit 1\n")
    assert upgrade.main([here[0], "--no-times"]) == 2
    assert one_line(capsys) == f"upgrade: {here[0]}: no report: ImportError: no such torch\n"


@on_posix
def test_an_interrupt_leaves_no_half_report_and_ends_with_130(here, tmp_path):
    """An interrupted `crossent check` writes an unfinished report."""
    fake = Path(here[0]) / "bin" / "python"
    fake.write_text(
        '#!/bin/sh\nfor last; do :; done\ntrap \'echo "{}" > "$last"; touch "$last.was"; exit 130\' TERM INT\n'
        f"touch {tmp_path}/began\nwhile :; do sleep 0.05; done\n"
    )
    # A shell that starts the tests in the background ignores SIGINT, and so would every process that they start.
    code = "import pathlib, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from benchmarks import environments, upgrade; "
    code += f"environments.PLACE = pathlib.Path({str(tmp_path / 'kept')!r})"
    code += f"; raise SystemExit(upgrade.main([{here[0]!r}]))"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
        while not (tmp_path / "began").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.communicate(timeout=30)[1].splitlines() == ["upgrade: interrupted"]
    assert process.returncode == 130
    (left,) = (tmp_path / "kept" / "reports").iterdir()
    assert left.suffix == ".was"


@on_posix
def test_the_hot_path_is_timed_in_turns(here, monkeypatch):
    monkeypatch.setattr(upgrade, "HOT", [Hot("torch", "float32", 5, (32, 10))])
    monkeypatch.setattr(upgrade, "BLOCKS", 3)
    old, new = (environments.environment(name, "quick", True) for name in here)
    (lower, median, upper) = upgrade.timed(old, new)["torch 32x10 float32"]
    assert 0 < lower <= median <= upper


@on_posix
def test_a_hot_path_that_does_not_run_says_why(here):
    (Path(here[1]) / "bin" / "python").write_text("#!/bin/sh\necho 'ImportError: no such torch' >&2\nexit 1\n")
    old, new = (environments.environment(name, "quick", True) for name in here)
    with pytest.raises(environments.CannotError, match=r": the hot path does not run: ImportError: no such torch$"):
        upgrade.timed(old, new)


def test_the_readme_has_the_table_of_the_figures():
    kept = json.loads(upgrade.FIGURES.read_text(encoding="utf-8"))
    assert part("upgrades") == upgrade.table(kept)


def test_failures_of_one_check_are_stored_as_the_first_with_their_number():
    move = {
        "kind": "regression",
        "subject": "torch",
        "check": "loss",
        "id": "torch:loss:a",
        "policy": "",
        "says": "0 → 1",
    }
    comparison = {
        "old": {},
        "new": {},
        "cases": {"torch": {"regression": 2}},
        "moves": [move, {**move, "id": "torch:loss:b"}],
    }
    assert upgrade.figures(comparison, {})["moves"] == [
        {"kind": "regression", "id": "torch:loss:a", "policy": "", "says": "0 → 1", "cases": 2}
    ]
