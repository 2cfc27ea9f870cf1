"""`nox -s upgrade`: what it asks pip for, what it keeps, and what it says where a version cannot be had."""

import json
import os
import shutil
import sys

import pytest

import benchmarks.upgrade
from benchmarks.turns import Hot


@pytest.fixture(scope="module")
def upgrade():
    return benchmarks.upgrade


@pytest.fixture
def here(upgrade, tmp_path, monkeypatch):
    """Two folders that look like environments, whose Python is this one; what is kept lies beside them."""
    monkeypatch.setattr(upgrade, "PLACE", tmp_path / "kept")
    for name in ("one", "other"):
        (tmp_path / name / "bin").mkdir(parents=True)
        python = tmp_path / name / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
    return [str(tmp_path / name) for name in ("one", "other")]


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("2.0.1", ["torch==2.0.1", "numpy<2"]),
        ("2.2", ["torch==2.2", "numpy<2"]),
        ("2.3.0", ["torch==2.3.0", "numpy>=1.24"]),
        ("2.15.0+cpu", ["torch==2.15.0+cpu", "numpy>=1.24"]),
        ("torch>=2.14", ["torch>=2.14", "numpy>=1.24"]),
        ("./wheels/torch-2.16.whl", ["./wheels/torch-2.16.whl", "numpy>=1.24"]),
    ],
)
def test_a_version_is_what_pip_takes(upgrade, spec, asked):
    assert upgrade.requirements(spec) == asked


def test_a_version_that_is_none_is_one_line_and_status_2(upgrade, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(upgrade, "PLACE", tmp_path)
    monkeypatch.setattr(upgrade.venv, "create", lambda place, **how: os.makedirs(place / "bin"))
    assert upgrade.main(["2.999", "--no-times"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("upgrade: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="waits for a system with /bin/sh")
def test_reports_are_kept_compared_and_used_again(upgrade, here, tmp_path, capfd):
    options = ["--subject", "scalar", "--no-times"]
    assert upgrade.main([here[0], *options]) == 0  # of one version, which has nothing beside it
    reports = tmp_path / "kept" / "reports"
    shutil.copy(reports / "one-quick.json", reports / "other-quick.json")
    assert upgrade.main([*here, *options, "--reuse"]) == 0
    kept = {path.name for path in (tmp_path / "kept" / "reports").iterdir()}
    assert kept == {"one-quick.json", "other-quick.json", "one..other.json", "one..other.html"}
    assert "same bits" in capfd.readouterr().out
    report = tmp_path / "kept" / "reports" / "other-quick.json"
    document = json.loads(report.read_text(encoding="utf-8"))
    case = next(case for case in document["subjects"][0]["cases"].values() if case["results"])
    case["results"]["loss"]["shape"] = [1]
    report.write_text(json.dumps(document), encoding="utf-8")
    assert upgrade.main([*here, *options, "--reuse"]) == 1
    assert "contract changed" in capfd.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="waits for a system with /bin/sh")
def test_the_hot_path_is_timed_in_turns(upgrade, here, monkeypatch):
    monkeypatch.setattr(upgrade, "HOT", [Hot("torch", "float32", 5, (32, 10))])
    monkeypatch.setattr(upgrade, "BLOCKS", 3)
    old, new = (upgrade.environment(name, "quick", True) for name in here)
    (lower, median, upper) = upgrade.timed(old, new)["torch 32x10 float32"]
    assert 0 < lower <= median <= upper


def test_the_readme_has_the_table_of_the_figures(upgrade):
    kept = json.loads(upgrade.FIGURES.read_text(encoding="utf-8"))
    shown = upgrade.README.read_text(encoding="utf-8").split("<!-- upgrades:begin -->\n")[1]
    assert shown.split("<!-- upgrades:end -->")[0] == upgrade.table(kept)


def test_what_fails_is_kept_by_its_first_case(upgrade):
    move = {"kind": "broken", "subject": "torch", "check": "loss", "id": "torch:loss:a", "policy": "", "says": "0 → 1"}
    moved = {"old": {}, "new": {}, "cases": {"broken": 2}, "moves": [move, {**move, "id": "torch:loss:b"}]}
    assert upgrade.figures(moved, {})["moves"] == [
        {"kind": "broken", "id": "torch:loss:a", "policy": "", "says": "0 → 1", "cases": 2}
    ]
