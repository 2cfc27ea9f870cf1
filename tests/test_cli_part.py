"""The command on a part of a run: chosen checks and cases, the first findings, and the failures of the last run."""

import io
import json
import os
import re
from pathlib import Path

import pytest
from rich.console import Console
from support.error_lines import error_line
from support.running import check_on

from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.cli import FAILED, PASSED, WRONG_USE, main
from crossent.options import chosen_seed
from crossent.report.last_findings import FOLDER, path_of, read_failed_checks
from crossent.report.reader import find, read_json
from crossent.run import pytest_checks
from crossent.run.order import Step, Steps
from crossent.run.settings import Settings

WRONG = """
import os
import crossent

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    loss = crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss * 1.01 if label_smoothing and not os.path.exists('fixed') else loss
"""
CASES = [Case("float32", (3, n), label_smoothing=smoothing) for n in (5, 6) for smoothing in (0.0, 0.1)]


@pytest.fixture(autouse=True)
def few_cases(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("crossent.machine.cores", lambda: None)
    monkeypatch.setattr("crossent.run.runner.check", check_on(CASES, bad_inputs=False))
    Path("wrong.py").write_text(WRONG)


@pytest.fixture
def check(capsys, tmp_path):
    def check(*arguments, subject="wrong.py:loss"):
        """Return the status, the ids of the cases that ran, stdout and stderr."""
        report = tmp_path / "report.json"
        status = main(["check", subject, "--level", "quick", "--json", str(report), *arguments])
        captured = capsys.readouterr()
        cases = [*json.loads(report.read_text())["subjects"][0]["cases"]] if report.exists() else []
        report.unlink(missing_ok=True)
        return status, [re.sub(r"-seed\d+", "", case) for case in cases], captured.out, captured.err

    return check


@pytest.mark.parametrize(("names", "keep"), [(["formula"], "formula keeps its"), ([], "torch_nll keep their")])
def test_a_grade_that_changes_nothing_is_wrong_use(capsys, names, keep):
    assert main(["check", *names, "--grade", "A"]) == WRONG_USE
    err = capsys.readouterr().err
    assert err.startswith("crossent: --grade: got 'A', which would change nothing: without a contract, ")
    assert f"{keep} own grade; choose a contract too\n" in err


def test_a_grade_that_changes_some_subjects_says_which_keep_their_own(check):
    status, _, _, err = check("torch", "--grade", "B")
    assert status == FAILED
    assert err == (
        "crossent: --grade does not apply to torch: without --contract, the forms and torch keep their own grades; "
        "add --contract, or leave out torch\n"
    )
    assert check("--grade", "B")[3] == ""
    assert check("torch", "--grade", "B", "--contract", "kernel")[3] == ""


def test_a_grade_that_changes_nothing_is_refused_in_pytest_and_python():
    with pytest.raises(ValueError, match="grade: got 'B', which would change nothing"):
        list(pytest_checks.tests_of("torch", Settings(grade="B")))
    assert Settings(grade="B", contract="kernel").load("formula")


def test_x_ends_at_the_first_finding_and_never_passes(check):
    for option in (["-x"], ["--exitfirst"], ["--max-findings", "1"]):
        status, cases, out, _ = check(*option)
        assert (status, len(cases)) == (FAILED, 2)
        assert out.splitlines()[-1].startswith("STOPPED EARLY after 2 of 4 cases, with 1 finding, in ")
    status, cases, out, _ = check("--max-findings", "1000")
    assert (status, len(cases)) == (FAILED, 4)
    assert "STOPPED" not in out


def test_a_check_and_a_case_can_be_chosen(check):
    status, cases, out, _ = check("--check", "sign", "--check", "repeat", "--case", "*3x6*")
    assert (status, len(cases)) == (PASSED, 2)
    assert re.search("^ONLY A PART RAN: only the checks repeat, sign *$", out, re.M)
    assert re.search(r"^ONLY A PART RAN: only the cases \*3x6\* *$", out, re.M)
    own = "float32-3x9-normal-int64-sum"
    smoothed = "float32-3x5-normal-int64-mean-smooth0.1"
    assert check("--case", own, "--case", "*3x5*smooth0.1")[:2] == (
        FAILED,
        [smoothed, own],
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "los"], "--check: got 'los' (did you mean loss?); allowed are call, result"),
        (["--case", "*3x7*"], "--case: got '*3x7*', which matches no case of this level and these dtypes"),
        (["--case", "3x7"], "--case: got '3x7', which is not the id of a case; `crossent list cases` prints ids"),
        (
            ["--check", "large"],
            "--check: got large; no chosen case of level quick runs these checks; choose another level or dtype",
        ),
        (["--max-findings", "0"], "--max-findings"),
        (["-x", "--max-findings", "2"], "-x means --max-findings 1: leave out one of the two"),
        (["--last-failed", "--case", "*"], "--last-failed chooses the cases: leave out --case"),
        (["--check", "loss,los"], "--check: got 'los' (did you mean loss?); allowed are call, result"),
        (["--check", "loss,"], "--check: got ''; allowed are call, result"),
    ],
)
def test_a_selection_of_nothing_is_an_error_of_one_line(check, arguments, said):
    status, cases, out, err = check(*arguments)
    assert (status, cases, out) == (WRONG_USE, [], "")
    assert said in error_line(err)


def test_several_checks_are_separated_by_commas_or_repeat_the_option(check):
    for words in (
        ["--check", "sign,repeat"],
        ["--check", "sign, repeat"],
        ["--check", "sign", "--check", "repeat,sign"],
    ):
        status, cases, out, _ = check(*words)
        assert (status, len(cases)) == (PASSED, 4)
        assert re.search("^ONLY A PART RAN: only the checks repeat, sign *$", out, re.M)


def test_last_failed_with_a_check_runs_this_check_on_the_cases_that_failed_in_it(check):
    check()
    status, cases, out, err = check("--last-failed", "--check", "gradient,sign")
    assert (status, cases, err) == (FAILED, [one.id for one in CASES if one.label_smoothing], "")
    assert re.search("^ONLY A PART RAN: only the checks gradient *$", out, re.M)
    status, cases, out, err = check("--last-failed", "--check", "sign")
    assert (status, len(cases)) == (PASSED, 4)
    said = "this folder stores no finding of sign from the last run on these subjects; the chosen checks run on every"
    assert err == f"crossent: --last-failed: {said} case\n"
    assert re.search("^ONLY A PART RAN: only the checks sign *$", out, re.M)


def test_last_failed_runs_the_failed_checks_on_the_failed_cases_and_then_everything(check, tmp_path):
    assert len(check()[1]) == 4
    failed = read_failed_checks(["wrong.py:loss"])
    assert [re.sub(r"-seed\d+", "", case) for case in failed] == [one.id for one in CASES if one.label_smoothing]
    assert all(set(checks) >= {"loss", "gradient"} for checks in failed.values())
    status, cases, out, err = check("--last-failed")
    assert (status, cases, err) == (FAILED, [one.id for one in CASES if one.label_smoothing], "")
    assert re.search(r"ONLY A PART RAN: only the checks loss, gradient", out)
    assert not re.search(r"^  sign ", out, re.M)
    Path("fixed").touch()
    assert check("--last-failed")[:2] == (PASSED, cases)
    status, cases, _, err = check("--last-failed")
    assert (status, len(cases)) == (PASSED, 4)
    said = "this folder stores no finding from the last run on these subjects; everything runs"
    assert err == f"crossent: --last-failed: {said}\n"


def test_each_set_of_subjects_has_its_last_report(check):
    check()
    check(subject="formula")
    assert read_failed_checks(["wrong.py:loss"])
    assert not read_failed_checks(["formula"])
    assert not read_failed_checks(["wrong.py:loss", "formula"])
    assert path_of(["a", "b"]) == path_of(["b", "a", "b"]) != path_of(["a"])


def test_the_folder_says_what_it_is_and_git_ignores_it(check):
    check()
    folder = Path(FOLDER)
    assert (folder / ".gitignore").read_text() == "*\n"
    assert "crossent check" in (folder / "README").read_text()
    assert [one.name for one in folder.glob("*.json")] == [path_of(["wrong.py:loss"]).name]


def test_the_kept_report_has_the_cases_with_findings_and_their_inputs(check):
    check()
    document = read_json(path_of(["wrong.py:loss"]))
    (part,) = document["subjects"]
    assert set(part["cases"]) == set(read_failed_checks(["wrong.py:loss"]))
    finding, digest = find(document, part["findings"][0]["id"])
    assert (finding.check, bool(digest)) == ("loss", True)


def test_no_cache_keeps_nothing(check):
    assert check("--no-cache")[0] == FAILED
    assert not Path(FOLDER).exists()


def test_a_folder_that_cannot_be_written_or_is_damaged_is_no_error(check):
    Path(FOLDER).write_text("a file")
    status, _, _, err = check()
    assert (status, err) == (FAILED, "")
    os.remove(FOLDER)
    check()
    path_of(["wrong.py:loss"]).write_text("{")
    assert len(check("--last-failed")[1]) == 4


def test_a_part_is_compared_with_a_baseline_on_what_it_has(check, capsys, monkeypatch):
    planned = dict.fromkeys(CASES, tuple(CHECKS.values()))  # compared with the baseline before the run
    monkeypatch.setattr("crossent.run.settings._plan", lambda *_: planned)
    main(["check", "wrong.py:loss", "--level", "quick", "--seed", "0", "--json", "old.json"])
    capsys.readouterr()
    _, _, out, _ = check("--baseline", "old.json", "--check", "sign")
    assert "the new run is only a part: only the checks sign; only this part is compared" in out
    assert "only in the old run" not in out


def test_a_case_that_this_version_lacks_is_not_repeated(check):
    check()
    path = path_of(["wrong.py:loss"])
    failed = read_failed_checks(["wrong.py:loss"])
    assert len(failed) == 2
    missing = next(iter(failed))
    path.write_text(path.read_text().replace(missing, missing.replace("-normal-", "-gone-")))
    assert [*read_failed_checks(["wrong.py:loss"])] == [case for case in failed if case != missing]


class Work(Steps):
    """Three steps of a run; the second step has a finding."""

    def __init__(self, findings):
        steps = (Step(1.0), Step(6.0, findings), Step(3.0))
        super().__init__(iter(steps), 3, 10.0)
        self.running = "vmap on float32-3x5-normal-int64-mean"


@pytest.fixture
def findings():
    return check_on([CASES[1]], bad_inputs=False)("wrong.py:loss", level="quick", max_findings=1).findings


def shown(monkeypatch, findings, interactive):
    from crossent import console

    file = io.StringIO()
    terminal = Console(file=file, force_terminal=interactive, force_interactive=interactive, width=120)
    monkeypatch.setattr(console, "Console", lambda **options: terminal)
    return [*console.progress(Work(findings))], re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", file.getvalue())


def test_a_terminal_shows_what_runs_and_each_finding_as_it_comes(monkeypatch, findings):
    steps, text = shown(monkeypatch, findings, True)
    assert len(steps) == 3
    (finding,) = findings
    assert text.count(f"loss: {finding.check} wrong on {finding.case}") == 1
    assert "vmap on float32-3x5-normal-int64-mean" in text
    assert "100%" in text


def test_a_terminal_shows_the_first_of_many_findings(monkeypatch, findings):
    _, text = shown(monkeypatch, findings * 50, True)
    assert text.count(findings[0].headline) == 20
    assert text.count("no more than 20 findings are shown during the run") == 1


def test_a_pipe_gets_no_progress_and_no_findings(monkeypatch, findings):
    steps, text = shown(monkeypatch, findings, False)
    assert (len(steps), text) == (3, "")


@pytest.mark.parametrize(
    ("done", "elapsed", "said"),
    [(0.0, 5.0, ""), (0.4, 5.0, ""), (1.0, 10.0, "1 min 30 s left"), (5.0, 10.0, "10 s left"), (10.0, 9.0, "0 s left")],
)
def test_the_remaining_time_follows_the_cost_of_what_is_done(done, elapsed, said):
    from types import SimpleNamespace

    from crossent.console import Remaining

    assert Remaining().render(SimpleNamespace(completed=done, total=10.0, elapsed=elapsed)).plain == said


@pytest.mark.parametrize("name", ["torch", "torch+compile", "formula+compile", "torch_nll", "loss_parallel"])
def test_forms_and_losses_of_torch_have_the_seed_0_also_if_compiled(name):
    assert chosen_seed(None, ["formula", name], None) == 0
    assert chosen_seed(None, [name, "wrong.py:loss"], None) == "random"
