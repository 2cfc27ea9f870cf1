"""`crossent check --baseline`: an unusable baseline is refused before the run."""

import json
from dataclasses import replace

import pytest
from support.error_lines import error_line

from crossent.cli import main
from crossent.report.reader import read_report
from crossent.run import parallel

CASE = "float32-9x4-normal-int64-none-rows"
CHECK = ("check", "formula", "--level", "quick", "--jobs", "1", "--no-cache", "--case", CASE)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    path = tmp_path_factory.mktemp("baseline") / "old.json"
    assert main([*CHECK, "--json", str(path)]) == 0
    return path


@pytest.fixture
def nothing_runs(monkeypatch):
    """Make the test fail if a case runs."""

    def run(*_):
        raise AssertionError("a case runs")

    monkeypatch.setattr(parallel, "run", run)


def error_of(capsys, *words):
    """Run the command with further words, which it must refuse. Return the error line."""
    status = main([*CHECK, *words])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    return error_line(err)


def other_digest(report):
    outcomes = report.subjects[0].outcomes
    outcomes[CASE] = replace(outcomes[CASE], inputs="00000000")


def another_subject(report):
    report.subjects[0].name = "one_hot"


def another_case(report):
    outcomes = report.subjects[0].outcomes
    outcomes["float32-3x5-normal-int64-mean"] = outcomes.pop(CASE)


CHANGES = {
    "device": (lambda report: report.environment.update(device="cuda:0"), "device was 'cuda:0'"),
    "processor": (lambda report: report.environment.update(cpu_capability="ALTIVEC"), "was 'ALTIVEC' and is"),
    "subject": (another_subject, "no subject in common"),
    "case": (another_case, "no case in common"),
    "inputs": (other_digest, "no case in common whose inputs have the same bits"),
}


@pytest.mark.parametrize(("change", "text"), CHANGES.values(), ids=CHANGES)
def test_a_baseline_that_cannot_be_compared_is_refused_before_the_run(
    change, text, baseline, tmp_path, nothing_runs, capsys
):
    report = read_report(baseline)
    change(report)
    report.write_json(tmp_path / "other.json")
    assert text in error_of(capsys, "--baseline", str(tmp_path / "other.json"))


def test_a_run_with_another_seed_than_its_baseline_is_refused_before_it_runs(baseline, nothing_runs, capsys):
    for seed in ("7", "random"):
        assert "seed was 0 and is" in error_of(capsys, "--baseline", str(baseline), "--seed", seed)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 2}', "\0", None])
def test_a_damaged_baseline_is_refused_before_the_run(text, baseline, tmp_path, nothing_runs, capsys):
    if text is None:
        document = json.loads(baseline.read_text())
        document["subjects"][0]["counts"]["failed"] = 1
        text = json.dumps(document)
    (tmp_path / "other.json").write_text(text)
    error_of(capsys, "--baseline", str(tmp_path / "other.json"))
    error_of(capsys, "--baseline", str(tmp_path))


@pytest.mark.parametrize(
    "text", ["[[", "x = 1", "[[finding]]", '[[finding]]\nid = "formula:loss:x"\nreason = "r"', "\0"]
)
def test_damaged_expected_findings_are_refused_before_the_run(text, tmp_path, nothing_runs, capsys):
    (tmp_path / "expected.toml").write_text(text)
    error_of(capsys, "--expected-findings", str(tmp_path / "expected.toml"))
    error_of(capsys, "--expected-findings", str(tmp_path / "none.toml"))
    error_of(capsys, "--expected-findings", str(tmp_path))


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("name", ["", ".", "none/x", "x" * 300, "/proc/x", "old.json/x"])
def test_a_report_that_could_not_be_written_is_refused_before_the_run(option, name, baseline, nothing_runs, capsys):
    place = name if name in ("", "/proc/x") else str(baseline.parent / name)
    error_of(capsys, option, place)


def test_the_right_baseline_is_compared(baseline, capsys):
    assert main([*CHECK, "--baseline", str(baseline)]) == 0
    assert "1 case in both runs: 1 same bits" in capsys.readouterr().out
