"""The script of a finding shows the finding with the wrong subject, and prints "right" with a right subject."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.repro.playing import LACKS_MINE, RIGHT, found, play, skeleton, skip_unless_graphs_work, with_subject
from support.repro.wrong_findings import INDEX, KINDS, ROWS
from support.repro.wrong_subjects import (
    ACCEPTS,
    CLAMPS,
    DOUBLE,
    IS_TRACED,
    LARGER_EACH_TIME,
    LONGER,
    OFF,
    REFUSE,
    REFUSES,
    RETURNS_A_LIST,
    UNDER_DETERMINISM,
    later,
    source,
    where,
)
from support.running import run

from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.inputs import bits
from crossent.checks import CHECKS, compiled_code
from crossent.checks.compiled_code import _why_no_error
from crossent.report.findings import DEPENDS, Finding, Numbers
from crossent.repro.script import script
from crossent.repro.scripts import single
from crossent.subjects.compiler import TRACER
from crossent.subjects.subject import Subject


@pytest.mark.parametrize("name", KINDS)
def test_a_script_shows_the_finding_and_says_right_of_a_right_subject(name):
    subject, case, said = KINDS[name]
    check, kind = said.split()
    skip_unless_graphs_work(check)
    finding = found(subject, case, check)
    assert finding.kind == kind
    text = script(finding)
    names, status, out = play(with_subject(text, subject))
    assert status == 1, out
    assert out.splitlines()[-1:] == ["wrong"] or finding.kind == "refused"
    if finding.numbers is not None and check != "row_sums":  # whose check and script round their sums differently
        n = finding.numbers
        expected = "exact value" if n.versus == "exact" else "value from other calls"
        assert f"got {n.got!r}, {expected} {n.exact!r}, error " in out
    names, status, out = play(with_subject(text, RIGHT))
    assert status == 0, out
    assert out.splitlines()[-1] == "right"
    assert "exact value" not in out or check != "sign"  # which compares a loss with 0, and knows no exact value
    _, status, out = play(text)  # without the subject, the script only asks for the subject
    assert (status, out) == (2, f"{LACKS_MINE}\n")

    inputs = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    inputs = inputs.build()
    for one, two in (
        (names["logits"], inputs.input),
        (names["target"], inputs.target),
        (names["upstream"], inputs.upstream),
    ):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert np.array_equal(bits(one), bits(two))
    assert list(names["options"]) == list(inputs.options)
    for key, value in inputs.options.items():
        assert repr(names["options"][key]) == repr(value)
        assert not torch.is_tensor(value) or np.array_equal(bits(names["options"][key]), bits(value))


def test_a_result_that_equals_the_found_result_is_wrong_whatever_the_bound():
    """The script has the exact value only in float64, which is too imprecise to judge a result near a small bound."""
    finding = found(OFF, "float64-7x5-normal-int64-sum", "loss")
    n = finding.numbers
    wide = Numbers(n.index, n.got, n.bits, n.exact, n.radius, 1e9, n.ulp, n.ratio)
    text = script(replace(finding, numbers=wide))
    assert play(with_subject(text, OFF))[1] == 1
    assert play(with_subject(text, RIGHT))[1] == 0


def test_a_script_shows_that_compiled_code_accepts_a_class_out_of_range(monkeypatch):
    """The graph runs in torch's own kernels, since code generation takes seconds."""
    skip_unless_graphs_work("trace")
    if reason := _why_no_error():
        pytest.skip(reason)
    monkeypatch.setattr(compiled_code, "INDUCTOR", TRACER)
    finding = found(CLAMPS, INDEX, "compiled_error")
    assert finding.kind == "accepted"
    text = script(finding)
    assert skeleton(text) == skeleton(script(replace(finding, kind="wrong")))
    _, status, out = play(with_subject(text, CLAMPS))
    assert (status, out.splitlines()[-1]) == (1, "wrong")
    assert "the call with class 5, which is out of range, returned" in out
    _, status, out = play(with_subject(text, RIGHT))
    assert (status, out.splitlines()[-1]) == (0, "right")
    _, status, out = play(with_subject(text, where(IS_TRACED, REFUSE)))
    assert status == 2
    assert "the script cannot run here: " in out


def test_a_script_cannot_run_if_torch_has_no_deterministic_kernel():
    text = script(found(LARGER_EACH_TIME, INDEX, "deterministic"))
    says = "raise RuntimeError('it is not deterministic: use_deterministic_algorithms(False) is needed')"
    _, status, out = play(with_subject(text, where(UNDER_DETERMINISM, says)))
    assert status == 2
    assert "the script cannot run here: it is not deterministic" in out


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)", 1, "the call ended its process, with exit code -6"),
        ("import time\ntime.sleep(1000)", 1, "the call did not return within 1 s"),
        ("return crossent.formula(input, target, **options)", 0, "which is right"),
    ],
    ids=["dies", "hangs", "right"],
)
def test_a_call_that_may_end_its_process_is_made_in_another(tmp_path, body, status, said):
    text = script(Finding("mine", "errors", "reduction_unknown", "crashed" if "os" in body else "hung", ""))
    assert play(text)[1:] == (2, f"{LACKS_MINE}\n")
    text = with_subject(text, source(body))
    assert play(text)[1:] == (2, "save this script as a file, and run the file: the script starts a second process\n")
    path = tmp_path / "script.py"
    patience = 1 if "sleep" in body else 60
    path.write_text(text.replace("seconds = 60\n", f"seconds = {patience}\n"), encoding="ascii")
    _, ended, out = play(path.read_text(), str(path))
    assert (ended, out.splitlines()[-1]) == (status, "wrong" if status else "right")
    assert said in out


def test_a_call_that_ends_in_an_assert_on_cuda_is_made_in_another_process():
    finding = Finding("mine", "errors", "class_negative", "accepted", "")
    assert "subprocess" in script(finding, "cuda:0")
    assert "subprocess" not in script(finding)


def test_a_script_of_the_check_stream_is_made_for_cuda_alone():
    numbers = Numbers((6,), 1.0, "0x3f800000", 2.0, 0.0, 0.5, 1.0, 2.0)
    finding = Finding("torch", "stream", ROWS, "wrong", "", numbers=numbers, of="loss")
    text = script(finding, "cuda")
    compile(text, "repro.py", "exec")
    assert "torch.cuda.Stream(" in text
    with pytest.raises(ValueError, match="check stream does not run on cpu; the check needs a CUDA device"):
        script(finding)


@pytest.mark.parametrize(
    ("was", "said", "now", "why"),
    [
        (OFF, "loss wrong", REFUSES, "RuntimeError: not today"),
        (DOUBLE, "result wrong", REFUSES, "RuntimeError: not today"),
        (where("input.std() > 1e4"), "shift wrong", REFUSES, "RuntimeError: not today"),
        (OFF, "gradient wrong", LONGER, "KeyError: 'gradient'"),
        (OFF, "loss wrong", RETURNS_A_LIST, "TypeError: loss: got list; expected a dense tensor of real numbers"),
        (OFF, "loss wrong", source("raise RuntimeError('two\\nlines')"), "RuntimeError: two"),
    ],
    ids=["loss", "result", "shift", "shape", "list", "lines"],
)
def test_a_script_says_in_a_line_that_another_torch_refuses_the_call(was, said, now, why):
    check, kind = said.split()
    finding = found(was, INDEX, check)
    assert finding.kind == kind
    _, status, out = play(with_subject(script(finding), now))
    assert (status, out) == (2, f"torch {torch.__version__}: the script cannot run here: {why}\n")


def test_a_call_that_is_refused_in_a_process_of_its_own_has_not_ended_it(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(with_subject(script(Finding("mine", "call", INDEX, "crashed", "")), REFUSES), encoding="ascii")
    _, status, out = play(path.read_text(), str(path))
    assert (status, out) == (2, f"torch {torch.__version__}: the script cannot run here: RuntimeError: not today\n")


def test_a_finding_of_a_compiled_subject_has_a_script_that_compiles_it():
    """The graph runs in torch's own kernels, since code generation takes seconds."""
    skip_unless_graphs_work("trace")
    numbers = found(OFF, INDEX, "loss").numbers
    text = script(Finding("mine+compile", "loss", INDEX, "wrong", "", numbers=numbers, of="loss"))
    assert "\n\n\nsubject = compiled(subject)\n" in text
    _, status, out = play(text)
    assert (status, out) == (2, f"{LACKS_MINE}\n")
    text = text.replace('backend="inductor"', f'backend="{TRACER}"')
    for subject, ended in ((RIGHT, 0), (where(IS_TRACED), 1)):
        _, status, out = play(with_subject(text, subject))
        assert (status, out.splitlines()[-1]) == (ended, "wrong" if ended else "right")


def test_a_finding_of_compiled_torch_asks_for_no_subject():
    text = script(Finding("torch+compile", "call", INDEX, "refused", ""))
    assert "\ndef subject(input, target, **options):\n" in text
    assert text.index("\ndef subject(") < text.index("\nsubject = compiled(subject)\n") < text.index("\nlogits = ")
    assert "lacks the code" not in text


# Subjects whose result depends on earlier calls. The first uses the target of the last call of the same shape, the
# second is wrong in one of six calls, and the third is wrong after a call with more classes.
KEEPS_TARGET = """
import crossent

kept = {}

def subject(input, target, **options):
    known = kept.get(target.shape, target)
    kept[target.shape] = target.detach().clone()
    return crossent.formula(input, known, **options)
"""
EACH_SIXTH = later("if subject.calls % 6 == 4:\n    loss = loss * 1.01")
AFTER_MORE_CLASSES = source(
    "subject.wide = getattr(subject, 'wide', False) or input.shape[-1] > 5\n"
    "wrong, subject.wide = subject.wide and input.shape[-1] <= 5, input.shape[-1] > 5\n"
    "return crossent.formula(input, target, **options) * (1.01 if wrong else 1)"
)


def found_after(text, before, case):
    """Check the subject in `text` on the case `before`, and then on `case`. Return the findings on `case`, by check."""
    names = {}
    exec(text, names)
    checks = [CHECKS[name] for name in ("call", "result", "loss", "repeat")]
    report = run([Subject("mine", names["subject"])], [Case.of(before), Case.of(case)], checks)
    return {finding.check: finding for finding in report.findings if finding.case == case}


@pytest.mark.parametrize("check", ["loss", "repeat"])
@pytest.mark.parametrize(("subject", "before"), [(KEEPS_TARGET, INDEX + "-seed1"), (EACH_SIXTH, INDEX + "-seed1")])
def test_a_script_makes_other_calls_where_the_result_depends_on_them(subject, before, check):
    finding = found_after(subject, before, INDEX)[check]
    text = script(finding)
    _, status, out = play(with_subject(text, subject))
    assert (status, out.splitlines()[-1]) == (1, "wrong"), out


@pytest.mark.parametrize("check", ["loss", "repeat"])
def test_a_script_says_that_it_does_not_know_the_earlier_calls(check):
    finding = found_after(AFTER_MORE_CLASSES, "float32-7x11-normal-int64-mean", INDEX)[check]
    assert DEPENDS in finding.message
    text = script(finding)
    for subject in (AFTER_MORE_CLASSES, RIGHT):
        _, status, out = play(with_subject(text, subject))
        assert status == 2, out
        assert "right" not in out.split()
        assert "depends on calls that the run made before" in out
        assert "crossent check SUBJECT --level LEVEL" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("aliased", "the loss shares memory with input"),
        ("no gradient of the target alone", "expected requires_grad=True, since requires_grad is True for target"),
        ("wrong class of error", "the call raised KeyError('average'); expected ValueError"),
    ],
)
def test_a_script_says_what_is_wrong(name, said):
    subject, case, words = KINDS[name]
    _, status, out = play(with_subject(script(found(subject, case, words.split()[0])), subject))
    assert (status, f"{said}\nwrong\n" in out) == (1, True), out


def test_a_script_names_each_error_that_a_bad_call_may_raise():
    text = script(Finding("mine", "errors", "target_of_another_batch", "accepted", ""))
    _, status, out = play(with_subject(text, ACCEPTS))
    assert (status, out.splitlines()[-2].partition("; ")[2]) == (1, "expected ValueError or RuntimeError")


def test_a_script_says_that_the_call_raised_system_exit():
    text = script(found(source("raise SystemExit(3)"), INDEX, "call"))
    _, status, out = play(with_subject(text, source("raise SystemExit(3)")))
    assert (status, out) == (1, f"torch {torch.__version__}: the call raised SystemExit(3)\nwrong\n")


def test_a_script_of_repeated_logits_cannot_run_without_memory_for_the_upstream_gradient(monkeypatch, capsys):
    def no_memory(tile):
        raise MemoryError

    for name, value in (("upstream", torch.ones(2)), ("each_row", True), ("repeated", no_memory)):
        monkeypatch.setattr(single, name, value)
    with pytest.raises(SystemExit) as end:
        single.call_on_repeated()
    assert end.value.code == 2
    assert "cannot run here: MemoryError" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(torch._C, "_set_fp32_precision_setter"), reason="needs torch 2.9 or newer")
def test_a_script_shows_that_the_call_changed_the_matmul_precision_of_one_backend():
    change = 'torch._C._set_fp32_precision_setter("cuda", "matmul", "tf32")'
    subject = source(f"{change}\nreturn crossent.formula(input, target, **options)")
    _, status, out = play(with_subject(script(found(subject, INDEX, "state")), subject))
    assert (status, ": the call changed the float32 matmul precision\nwrong\n" in out) == (1, True), out


def test_a_script_says_which_loss_the_subject_may_not_return():
    text = script(found(OFF, INDEX, "loss"))
    for line, got in (
        ("return input.sum().to(torch.complex64)", "a tensor of torch.complex64 with layout torch.strided"),
        ("return input.to_sparse()", "a tensor of torch.float32 with layout torch.sparse_coo"),
        ("return crossent.formula(input.detach(), target, **options)", "requires_grad=False"),
    ):
        expected = "requires_grad=True" if "requires" in got else "a dense tensor of real numbers"
        _, status, out = play(with_subject(text, source(line)))
        assert status == 2
        assert out.endswith(f"the script cannot run here: TypeError: loss: got {got}; expected {expected}\n")


@pytest.mark.parametrize(("name", "which"), [("changed logits", "forward"), ("changed in the backward", "backward")])
def test_a_script_says_which_pass_writes_into_an_argument(name, which):
    subject, case, _ = KINDS[name]
    _, _, out = play(with_subject(script(found(subject, case, "arguments")), subject))
    assert f": the call changed input in the {which} pass\n" in out
