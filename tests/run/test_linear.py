"""Runs on a linear cross-entropy: the command, isolated processes, reports, comparisons and pytest."""

import json
import re
import textwrap

import pytest
import torch.nn.functional as F

import crossent
from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.choices import DTYPE_NAMES
from crossent.cli import FAILED, PASSED, WRONG_USE, main
from crossent.forms import LINEAR_FORMS
from crossent.report.document import jsonable
from crossent.report.expected_findings import torch_list
from crossent.report.reader import read_report
from crossent.report.text import plain_text
from crossent.run.plan import plan
from crossent.run.settings import Settings
from crossent.run.verify import verify
from crossent.subjects.builtin import EVERY_NAMED, LINEAR_ALIAS
from crossent.subjects.features import FEATURES

OPERATION = ["--operation", "linear_cross_entropy"]
NEEDS_213 = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
MINE = """
import torch
import torch.nn.functional as F

def right(hidden, weight, target, *, linear_bias=None, ignore_index=-100, reduction="mean"):
    bias = None if linear_bias is None else linear_bias.float()
    logits = F.linear(hidden.float(), weight.float(), bias)
    return F.cross_entropy(logits, target, ignore_index=ignore_index, reduction=reduction).to(hidden.dtype)

def mean_of_means(hidden, weight, target):
    chunks = zip(hidden.split(3), target.split(3))
    return torch.stack([right(h, weight, t) for h, t in chunks]).mean()
"""
# The function has no class weight and no label_smoothing, and torch accepts bad values of some options.
NO_ERRORS = ["--without", "errors"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    status = main([*words])
    return status, capsys.readouterr().out


def test_the_command_checks_a_function_in_isolation(folder, capsys):
    level = ["--level", "quick", "--dtype", "float32", "--no-cache", "--seed", "0"]
    status, out = run(capsys, "check", "mine.py:right", *OPERATION, *level, *NO_ERRORS, "--case", "linear-*7x5*")
    assert status == PASSED, out
    assert "\nPASSED" in out
    status, out = run(capsys, "check", "mine.py:mean_of_means", *OPERATION, *level, "--case", "linear-*7x5-normal*")
    assert status == FAILED
    assert "mean_of_means: loss wrong on linear-float32-7x5-normal-int64-mean-hidden16" in out
    assert "call    input float32 (7, 16), target int64 (7,), linear_weight=float32 (5, 16), reduction='mean'" in out
    command = "crossent repro mean_of_means:loss:linear-float32-7x5-normal-int64-mean-hidden16 --subject"
    assert f"repeat  {command} mine.py:mean_of_means\n" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine.py:right"], "(a linear cross-entropy needs --operation linear_cross_entropy, in Python operation="),
        (["mine.py:right", "--operation", "softmax"], "--operation: got 'softmax'; allowed are cross_entropy, linear_"),
        (
            ["formula", *OPERATION],
            "--operation: got 'linear_cross_entropy', but formula computes cross_entropy; "
            "choose cross_entropy or another subject",
        ),
        (
            ["linear_formula", "formula+compile"],
            "linear_formula computes linear_cross_entropy, but formula+compile comp",
        ),
        (["formula", "linear_formula"], "--operation: formula computes cross_entropy, but linear_formula computes"),
        (["torch_linear", "formula"], "--operation: torch_linear computes linear_cross_entropy, but formula computes"),
        (
            ["mine.py:right", *OPERATION, "--check", "target_gradient"],
            "--check: got 'target_gradient'; allowed are call, result,",
        ),
        (["formula", "--check", "bias_gradient"], "--check: got 'bias_gradient'; allowed are call, result,"),
        (
            ["formula", "--case", LinearCase("float32").id],
            "--case: got 'linear-float32-7x5-normal-int64-mean-hidden16', a case of linear_cross_entropy",
        ),
        (["mine.py:right", *OPERATION, "--case", "class_huge"], "--case: got 'class_huge', a case of cross_entropy"),
    ],
)
def test_a_wrong_choice_is_refused_in_one_line(folder, capsys, words, said):
    assert main(["check", *words, "--no-cache"]) == WRONG_USE
    line = capsys.readouterr().err.splitlines()[0]
    assert said in line


def test_the_lists_are_of_the_operation(capsys):
    listed = {what: run(capsys, "list", what, *OPERATION)[1].split("\n") for what in ("subjects", "checks", "features")}
    assert [line.split() for line in listed["subjects"] if line] == [
        [name, "linear_cross_entropy"] for name in ("linear_formula", "linear_blocked", LINEAR_ALIAS)
    ]
    assert [line.split()[0] for line in listed["checks"] if line] == [
        *Settings(operation="linear_cross_entropy").every_check,
        "errors",
    ]
    assert any(line.startswith("linear_bias ") for line in listed["features"])
    of_logits = [line.split()[0] for line in listed["checks"] if "logits" in line]  # otherwise the argument is input
    assert of_logits == ["memory"]
    status, out = run(capsys, "list", "cases", "--level", "quick", *OPERATION)
    assert status == PASSED
    assert len(out.splitlines()) == len(
        plan("quick", DTYPE_NAMES, 0, Settings(operation="linear_cross_entropy")._operation)
    )
    for what in ("checks", "cases"):
        assert "linear" not in run(capsys, "list", what, "--level", "quick")[1]


def test_without_an_operation_the_lists_have_the_subjects_and_features_of_every_operation(capsys):
    subjects = [line.split() for line in run(capsys, "list", "subjects")[1].splitlines()]
    assert subjects == [[name, group[0].operation.name] for name, group in EVERY_NAMED.items()]
    features = [line.split()[0] for line in run(capsys, "list", "features")[1].splitlines()]
    assert features == list(FEATURES)


def test_the_command_checks_the_forms_at_grade_a(capsys):
    cases = ["--case", "linear-*7x5-*", "--case", "linear-*17x3-*", "--case", "linear_*"]
    status, out = run(capsys, "check", *LINEAR_FORMS, "--level", "quick", *cases, "--no-cache")
    assert status == PASSED, out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0] in LINEAR_FORMS]
    assert [row[0] for row in rows] == list(LINEAR_FORMS)
    assert all(row[1] == "PASSED" and row.count("A") == 4 for row in rows), out


@NEEDS_213
def test_the_level_quick_shows_that_torch_loses_the_loss_in_bfloat16():
    report = crossent.check(LINEAR_ALIAS, level="quick", dtypes="bfloat16")
    by_name = {part.name: part for part in report.subjects}
    assert by_name["torch_linear"].findings == []
    case = "linear-bfloat16-4096x16-normal-int64-mean-hidden16"
    (loss,) = (one for one in by_name["torch_linear_chunk1"].findings if (one.check, one.case) == ("loss", case))
    assert loss.numbers.got < 0.3 * loss.numbers.exact
    assert loss.expected
    assert report.ok
    assert f"{loss.expected}; for example torch_linear_chunk1:loss:linear-bfloat16-" in plain_text(report.render(1))
    again = crossent.diff(report, report, force=True)
    assert again.ok
    assert len(again.compared) > 100


@NEEDS_213
def test_a_known_failure_of_torch_ends_with_0_and_a_new_one_with_1(monkeypatch, capsys):
    ignored = "linear-float32-7x5-normal-int64-mean-ignored_all-bias-hidden16"
    words = ["check", LINEAR_ALIAS, "--case", ignored, "--case", "linear_class_negative", "--no-cache", "-v"]
    status, out = run(capsys, *words)
    assert status == PASSED, out
    assert " known failures: in chunks, the gradients of a mean over no rows are NaN; for example torch_linear_" in out
    assert "1 known failure: in chunks, a class out of range raises a RuntimeError, not an IndexError" in out
    others = [known for known in torch_list(LINEAR_CROSS_ENTROPY) if "no rows" not in known.reason]
    monkeypatch.setattr("crossent.report.expected_findings.torch_list", lambda operation: others)
    status, out = run(capsys, *words)
    assert status == FAILED
    assert f" wrong on {ignored}" in out
    assert re.search(r"FAILED: \d\d findings in ", out)


def wrapper(input, linear_weight, target, *, linear_bias=None, weight=None, **options):
    if options.get("ignore_index", -100) == -100 or target.is_floating_point():
        options.pop("ignore_index", None)
    return F.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, weight=weight, **options)


@NEEDS_213
def test_under_the_contract_of_torch_a_function_has_torchs_known_failures():
    chosen = {"operation": "linear_cross_entropy", "cases": "linear_label_smoothing_nan"}
    assert not crossent.check(wrapper, **chosen).ok
    report = crossent.check(wrapper, contract="torch", **chosen)
    assert [finding.kind for finding in report.subjects[0].findings] == ["accepted"]
    assert report.ok


@NEEDS_213
def test_a_report_is_read_and_verified(tmp_path):
    chosen = {"cases": ["linear-*7x5-normal-*", "linear_bias_*"], "dtypes": "float32", "level": "quick"}
    report = crossent.check(LINEAR_ALIAS, **chosen)
    assert report.ok
    path = tmp_path / "report.json"
    report.write_json(path)
    assert json.loads(path.read_text())["schema"] == 1
    claim = read_report(path)
    assert jsonable(claim.to_json()) == jsonable(report.to_json())
    assert verify(claim).ok
    claim.subjects[0].outcomes[LinearCase("float32").id].digest = "00000000"
    assert not verify(claim).ok


def test_the_last_failures_are_kept_for_each_operation(folder, capsys):
    words = ["check", "mine.py:mean_of_means", *OPERATION, "--level", "quick", "--dtype", "float32"]
    assert run(capsys, *words, "--case", "linear-*7x5-normal-int64-mean-hidden16", "--check", "loss")[0] == FAILED
    status, out = run(capsys, *words, "--last-failed")
    assert status == FAILED
    assert "in 1 checked call" in out


def test_pytest_runs_the_checks_of_the_operation(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    tests = """
    import crossent
    chosen = dict(dtypes="float32", operation="linear_cross_entropy", cases="linear-*7x5-normal-int64-mean-hidden16")

    @crossent.parametrize(right, **chosen)
    def test_right(check):
        check()

    @crossent.parametrize(mean_of_means, **chosen)
    def test_wrong(check):
        check()
    """
    pytester.makepyfile(MINE + textwrap.dedent(tests))
    result = pytester.runpytest_subprocess("-p", "crossent.plugin", "-p", "no:cacheprovider", "-rf")
    out = result.stdout.str()
    assert "test_wrong[loss[linear-float32-7x5-normal-int64-mean-hidden16]]" in out
    assert "test_wrong[weight_gradient[linear-float32-7x5-normal-int64-mean-hidden16]]" in out
    assert "test_right" not in "\n".join(line for line in out.splitlines() if line.startswith("FAILED"))
