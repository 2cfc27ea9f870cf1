"""The command that a report prints for a finding repeats the finding: nothing has to be added to the command."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import crossent
from crossent.cli import FAILED, PASSED, main
from crossent.machine import can_fork
from crossent.report.document import finding_json
from crossent.report.findings import Finding
from crossent.report.last_findings import FOLDER, find_file
from crossent.repro.rerun import script_of
from crossent.subjects.ranks.protocol import can_start_ranks

FILE = """
import functools
import numpy as np
import torch
import crossent
from crossent.adapters import from_numpy

def loss(input, target, weight=None, ignore_index=-100, reduction="mean"):
    return crossent.formula(input, target, weight, ignore_index, reduction) * 1.01

class Loss(torch.nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, input, target):
        return loss(input, target, reduction=self.reduction)

def factory(reduction="mean"):
    return functools.partial(loss, reduction=reduction)

def of_arrays(logits, target, reduction="mean"):
    rows = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), target]
    return np.float64(1.01 * rows.mean())

adapted = from_numpy(of_arrays)
"""
CASE = "float64-7x5-normal-int64-mean"
FORKS = pytest.mark.skipif(not can_fork(), reason="needs a system that forks")


@pytest.fixture
def repeated(tmp_path, monkeypatch, capsys):
    """Return a function that checks a subject of a file, and returns the printed command and its script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")

    def run(*words):
        assert main(["check", *words, "--check", "loss", "--jobs", "1"]) == FAILED
        command = re.search(r"^  repeat  (.+)$", capsys.readouterr().out, re.M)[1]
        assert main(shlex.split(command)[1:]) == PASSED
        return command, capsys.readouterr().out

    return run


def run_script(script, folder):
    return subprocess.run([sys.executable, "-"], input=script, text=True, capture_output=True, cwd=folder, check=False)


NO_TARGET_GRADIENT = """
import crossent
def loss(input, target, **options):
    return crossent.formula(input * 1.01, target.detach(), **options)
"""
NO_GRADIENT = """
import torch
import crossent
def loss(input, target, ignore_index=-100, **options):
    loss = crossent.formula(input.detach(), target, ignore_index=ignore_index, **options)
    return torch.where(target == ignore_index, 1, loss) if options["reduction"] == "none" else loss
"""
NO_GRADIENT_ATTRIBUTE = NO_GRADIENT + 'loss.lacks = {"gradient": "has no gradient"}\n'


@FORKS
@pytest.mark.parametrize(
    ("text", "lacks", "check", "case"),
    [
        (NO_TARGET_GRADIENT, "target_gradient", "gradient", "float32-7x5-normal-probabilities-mean"),
        (NO_GRADIENT, "gradient", "ignored_rows", "float32-7x5-normal-int64-none-ignored"),
        (NO_GRADIENT_ATTRIBUTE, "vmap", "ignored_rows", "float32-7x5-normal-int64-none-ignored"),
    ],
    ids=["target_gradient", "gradient", "attribute"],
)
def test_a_script_computes_no_gradient_that_is_declared_missing(tmp_path, text, lacks, check, case):
    file, report = tmp_path / "mine.py", tmp_path / "report.json"
    file.write_text(text, encoding="utf-8")
    source = f"{file}:loss"
    found = crossent.check(source, level="quick", cases={case: [check]}, without=[lacks], jobs=1)
    report.write_text(json.dumps(found.to_json()), encoding="utf-8")
    finding = f"loss:{check}:{case}"
    for script in (script_of(finding, source=source, without=lacks), script_of(finding, str(report), source=source)):
        ended = run_script(script, tmp_path)
        assert (ended.returncode, "\nwrong\n" in ended.stdout) == (1, True), ended.stdout + ended.stderr


NO_TARGET_GRADIENT_ATTRIBUTE = NO_TARGET_GRADIENT + 'loss.lacks = {"target_gradient": "has no gradient"}\n'
OF_ARRAYS = """
import numpy as np
from crossent.adapters import from_numpy
def of_arrays(logits, target, **options):
    rows = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), target]
    return np.float64(1.01 * rows.mean())
loss = from_numpy(of_arrays)
"""


@FORKS
@pytest.mark.parametrize(
    ("text", "check", "case"),
    [
        (NO_GRADIENT_ATTRIBUTE, "ignored_rows", "float32-7x5-normal-int64-none-ignored"),
        (NO_TARGET_GRADIENT_ATTRIBUTE, "gradient", "float32-7x5-normal-probabilities-mean"),
        (OF_ARRAYS, "loss", CASE),
    ],
    ids=["gradient", "target_gradient", "numpy"],
)
def test_a_script_of_a_report_computes_no_gradient_that_the_function_itself_declares_missing(
    tmp_path, text, check, case
):
    """The script lacks the code of the function, and so its attributes. Only the report says what is missing."""
    file, report = tmp_path / "mine.py", tmp_path / "report.json"
    file.write_text(text, encoding="utf-8")
    crossent.check(f"{file}:loss", level="quick", cases={case: [check]}, jobs=1).write_json(report)
    finding = f"loss:{check}:{case}"
    text = script_of(finding, str(report)).replace("\nraise SystemExit(2)", "\nfrom mine import loss as subject")
    ended = run_script(text, tmp_path)
    assert (ended.returncode, "\nwrong\n" in ended.stdout) == (1, True), ended.stdout + ended.stderr


REFUSES_NEGATED_VIEWS = """
import torch
import crossent
def loss(input, target, **options):
    if input.is_neg():
        raise ValueError("no views")
    return crossent.formula(input, target, **options) * (1.01 if isinstance(input, torch.nn.Parameter) else 1)
"""


@FORKS
def test_a_script_makes_no_call_in_a_circumstance_that_is_declared_missing(tmp_path):
    file, report, case = tmp_path / "mine.py", tmp_path / "report.json", "float64-7x5-normal-int64-none-rows"
    file.write_text(REFUSES_NEGATED_VIEWS, encoding="utf-8")
    source, finding = f"{file}:loss", f"loss:circumstances:{case}"
    crossent.check(source, level="quick", cases={case: ["circumstances"]}, without=["strided"], jobs=1).write_json(
        report
    )
    for script in (
        script_of(finding, source=source, without="strided"),
        script_of(finding, str(report), source=source),
    ):
        ended = run_script(script, tmp_path)
        assert (ended.returncode, "\nwrong\n" in ended.stdout) == (1, True), ended.stdout + ended.stderr


def test_what_is_declared_missing_changes_no_script_of_a_check_that_passes():
    check = "torch:non_leaf:bfloat16-7x5-normal-int64-mean"
    assert script_of(check, passed=True, without=["half_result"]) == script_of(check, passed=True)


@FORKS
@pytest.mark.parametrize("name", ["mine.py:loss", "mine:loss", "mine.py:Loss", "mine.py:factory", "mine.py:adapted"])
def test_the_command_that_is_printed_for_your_function_repeats_the_finding(repeated, tmp_path, name):
    command, script = repeated(name, "--case", CASE)
    assert command == f"crossent repro {name.rpartition(':')[2]}:loss:{CASE} --subject {name}"
    found = run_script(
        script, tmp_path if name.startswith("mine:") else tmp_path.parent
    )  # a file is found from any folder
    assert (found.returncode, "\nwrong\n" in found.stdout) == (1, True), found.stdout + found.stderr
    (tmp_path / "mine.py").write_text(FILE.replace("1.01", "1"), encoding="utf-8")
    assert run_script(script, tmp_path).returncode == 0
    for text in ("def loss(:", "import no_such_module", "other = 1"):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        unknown = run_script(script, tmp_path)
        assert (unknown.returncode, unknown.stderr) == (2, ""), unknown.stdout + unknown.stderr
        assert "the script cannot run here: ValueError: subject: got" in unknown.stdout


@FORKS
def test_the_finding_of_the_last_run_and_that_of_another_run_give_the_same_script(repeated, tmp_path, capsys):
    command, script = repeated("mine.py:loss", "--case", CASE)
    shutil.rmtree(tmp_path / FOLDER)
    assert main(shlex.split(command)[1:]) == PASSED
    assert capsys.readouterr().out == script


def test_the_command_of_a_finding_names_the_chosen_contract_and_grade(repeated, tmp_path, capsys):
    half = "bfloat16-7x5-normal-int64-none-ignored_default-rows"
    command, script = repeated("torch", "--contract", "kernel", "--grade", "A", "--case", half)
    assert re.fullmatch(rf"crossent repro torch:loss:\S+/{half} --contract=kernel --grade=A", command)
    shutil.rmtree(tmp_path / FOLDER)
    assert main(shlex.split(command)[1:]) == PASSED
    assert capsys.readouterr().out == script
    assert run_script(script, tmp_path).returncode == 1


def off_by_a_percent(input, target, reduction="mean"):
    return crossent.formula(input, target, reduction=reduction) * 1.01


def test_the_command_of_a_callable_is_python():
    (finding,) = crossent.check(off_by_a_percent, checks=["loss"], cases=[CASE]).findings
    again = eval(finding.command, {"crossent": crossent, "off_by_a_percent": off_by_a_percent})
    assert [one.id for one in again.findings] == [finding.id]


def test_the_command_of_a_callable_names_what_differs_from_the_defaults():
    options = {"level": "quick", "without": ["weight", "nan_mean"], "grade": "B"}
    (finding,) = crossent.check(off_by_a_percent, checks=["loss"], cases=[CASE], **options).findings
    given = f"checks=['loss'], cases=['{CASE}'], level='quick', without=['weight', 'nan_mean'], grade='B'"
    assert finding.command == f"crossent.check(off_by_a_percent, {given})"
    again = eval(finding.command, {"crossent": crossent, "off_by_a_percent": off_by_a_percent})
    assert [one.command for one in again.findings] == [finding.command]
    assert again.level == "quick"


@FORKS
def test_the_report_of_the_last_run_is_used_only_if_undamaged_and_of_the_same_torch(repeated, tmp_path):
    repeated("mine.py:loss", "--case", CASE)
    name = f"loss:loss:{CASE}"
    (file,) = Path(FOLDER).glob("*.json")
    document = json.loads(file.read_text(encoding="utf-8"))
    here = document["environment"]["torch"]
    assert find_file(name, here) == str(file)
    assert find_file(name, "0.1") is None
    assert find_file(f"loss:gradient:{CASE}", here) is None
    (Path(FOLDER) / "damaged.json").write_text("{", encoding="utf-8")
    assert find_file(name, here) == str(file)
    file.write_text("[]", encoding="utf-8")
    assert find_file(name, here) is None


def test_a_subject_that_does_not_load_is_an_error_of_one_line(capsys):
    assert main(["repro", f"loss:loss:{CASE}", "--subject", "nothing.py:loss"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err == "crossent: --subject: got 'nothing.py:loss'; 'nothing.py' does not exist; "
        "give the path of an existing file\nTry 'crossent repro --help'.\n"
    )
    assert main(["repro", f"formula:loss:{CASE}", "--subject", "formula"]) == 2
    assert "for a form or torch, leave out --subject" in capsys.readouterr().err
    assert main(["repro", f"loss:loss:{CASE}"]) == 2
    assert "give a REPORT or --subject, or choose from formula" in capsys.readouterr().err


@pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
def test_a_finding_of_several_ranks_has_no_script_but_a_command(tmp_path, capsys):
    finding = "loss_parallel:nested_context:float32-7x5-normal-int64-mean"
    command = f"crossent check loss_parallel --ranks 2 --check nested_context --case {finding.rpartition(':')[2]}"
    line = f"{finding} needs several ranks, but a script has one process; run `{command}` instead"
    assert main(["repro", finding]) == 2
    assert line in capsys.readouterr().err
    report = str(tmp_path / "report.json")
    assert main([*shlex.split(command)[1:], "--json", report, "--no-cache"]) == PASSED  # a known failure
    assert main(["repro", finding, report]) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "word"), [("", "SUBJECT"), ("my kernels/ranks.py:Loss", "'my kernels/ranks.py:Loss'")]
)
def test_the_command_for_a_finding_of_your_class_on_several_ranks_names_your_class(tmp_path, source, word):
    """The id has the name of the class, from which a command cannot load the class."""
    finding = Finding("Loss", "loss", CASE, "wrong", "x")
    part = {"name": "Loss", "findings": [finding_json(finding)], "cases": {CASE: {"inputs": "00000000"}}}
    environment = {"device": "cpu", "torch": "2.13.0", "ranks": "2"}
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"schema": 1, "environment": environment, "subjects": [part]}), encoding="utf-8")
    command = f"crossent check {word} --ranks 2 --check loss --case {CASE}"
    with pytest.raises(ValueError, match=f"has one process; {re.escape(f'run `{command}` instead')}$"):
        script_of(finding.id, str(report), source=source)
