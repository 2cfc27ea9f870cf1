"""Scripts for findings of torch and of the forms, whose case runs again; and errors for ids without a finding."""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
from support.repro.playing import RIGHT, TORCH_HALF, assert_refused, play

from crossent.cli import WRONG_USE, main
from crossent.forms import FORMS
from crossent.repro.rerun import repeated
from crossent.repro.script import script
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.compiler import INDUCTOR, why_cannot_compile

COMPILED = "where torch+compile is compiled"

IDS = {
    "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got 0.0, exact value 0.001",
    "torch_nll:gradient:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got ",
    "torch:loss:half_partial_sums/bfloat16-1000x10-normal-int64-mean-ignored_16th": "got ",
    "torch:call:float32-5-normal-uint8-mean-weighted-scalar-smooth1": "RuntimeError",
    "torch_nll:call:float64-2x5x3x2-normal-int64-mean-scalar": "must be contiguous",
    "torch:errors:label_smoothing_nan": "returned ",
    "torch:row_sums:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got ",
    "torch:large:half_partial_sums/bfloat16-64x3-normal-int64-mean-ignored_16th-tiled1024": "got ",
    "torch:vmap:float32-7x5-normal-uint8-mean": "RuntimeError: gather",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Return a folder with a script for each finding of `IDS`: 0.py, 1.py, …"""
    folder = tmp_path_factory.mktemp("scripts")
    for at, finding in enumerate(IDS):
        (folder / f"{at}.py").write_text(script(repeated(finding)), encoding="ascii")
    return folder


def test_the_scripts_of_torch_need_no_crossent(scripts):
    """One process without crossent runs all scripts, since the import of torch is slow."""
    code = textwrap.dedent("""
        import runpy, sys, traceback
        sys.modules["crossent"] = None
        for path in sys.argv[1:]:
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as exit:
                print("status", int(exit.code))
            except Exception:
                print(traceback.format_exc(), "status 1", sep="")
            print("end")
    """)
    paths = [str(scripts / f"{at}.py") for at in range(len(IDS))]
    clear = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code, *paths], env=clear, capture_output=True, text=True, check=True
    )
    outputs = process.stdout.split("end\n")
    for (finding, said), text in zip(IDS.items(), outputs, strict=False):
        assert said in text, (finding, text)
        assert text.endswith("status 1\n"), (finding, text)
    assert len(outputs) == len(IDS) + 1


@pytest.mark.parametrize("finding", IDS)
def test_the_script_of_a_finding_of_torch_says_right_of_a_right_subject(finding):
    text = script(repeated(finding))
    start, end = text.index("def subject("), text.index("\n\n\nlogits = ")
    _, status, out = play(text[:start] + RIGHT + text[end:])
    assert status == 0, out
    assert out.endswith("right\n")


@pytest.mark.parametrize(("check", "versus"), [("loss", "exact value"), ("shift", "value from other calls")])
@pytest.mark.parametrize("name", FORMS)
def test_the_script_of_a_form_imports_that_form(name, check, versus, monkeypatch):
    case = "float64-5-normal-int64-sum"
    known, right = BY_NAME[name], BY_NAME["formula"].loss

    def wrong(input, target, **options):
        return right(input, target, **options).to(known.dtype) + input[0].detach()

    monkeypatch.setitem(BY_NAME, name, replace(known, loss=wrong))
    text = script(repeated(f"{name}:{check}:{case}"))
    assert "crossent import" in text
    _, status, out = play(text)
    assert status == 0
    assert re.fullmatch(rf"torch \S+: got \S+, {versus} \S+, error \S+, error bound \S+\nright\n", out)


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("", "allowed is SUBJECT:CHECK:CASE"),
        ("torch", "allowed is SUBJECT:CHECK:CASE"),
        ("torch:loss", "allowed is SUBJECT:CHECK:CASE"),
        ("::", "got subject ''"),
        ("mine:loss:float32-7x5-normal-int64-mean", "got subject 'mine'; give a REPORT or --subject"),
        ("torch:loss:nonsense", "is not the id of a case"),
        ("torch:loss:float32-7x5-normal-int64-mean", "does not happen with torch"),
        ("torch:nonsense:float32-7x5-normal-int64-mean", "got check 'nonsense'; allowed are call, "),
        ("torch:loss:label_smoothing_nan", "does not happen"),
        ("torch:errors:float32-7x5-normal-int64-mean", "does not happen"),
        ("scalar:loss:float32-7x5-normal-int64-mean", "does not happen"),
        ("torch:loss:float32-99999999999999x99999999999-normal-int64-mean", "crossent: "),
        ("torch:loss:float32-7x5-normal-int64-mean\x1b[31m\n", r"\x1b[31m"),
        ("torch:stream:float32-7x5-normal-int64-mean", "where torch needs a CUDA device"),
        ("scalar:gradient:float32-5-normal-int64-mean", "where scalar is not differentiable"),
        ("torch:compile:reduction_unknown", "does not happen"),
        ("torch+compile:errors:label_smoothing_nan", COMPILED),
        ("mine+compile:loss:float32-7x5-normal-int64-mean", "got subject 'mine+compile'; give a REPORT or --subject"),
        ("scalar+compile:loss:float64-5-normal-int64-sum", "+compile may follow each name except scalar, torch_nll, "),
        ("torch_nll+compile:loss:float64-5-normal-int64-sum", "+compile may follow each name except scalar, "),
        ("torch:large:float32-7x5-normal-int64-mean", "does not happen"),
    ],
)
def test_an_id_without_a_finding_is_an_error_of_one_line_and_status_2(capsys, id, said):
    if said == COMPILED and (reason := why_cannot_compile(INDUCTOR, "cpu")):
        pytest.skip(reason)
    assert main(["repro", "--", id]) == WRONG_USE
    captured = capsys.readouterr()
    assert_refused(WRONG_USE, captured.out, captured.err)
    assert said in captured.err


@pytest.mark.parametrize("options", [[], ["--without", "vmap"], ["--contract", "kernel"]], ids=str)
def test_a_finding_of_fused_without_its_kernel_is_an_error_that_says_what_is_missing(capsys, options):
    """On a CPU, a run on the name fused has the subject fused_as_blocked."""
    status = main(["repro", "fused:loss:float32-7x5-normal-int64-mean", *options])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert "where fused needs CUDA" in captured.err


@pytest.mark.parametrize("check", ["loss", "nonsense"])
def test_a_passed_check_of_a_bad_input_can_only_be_errors(capsys, check):
    status = main(["repro", "--passed", f"formula:{check}:class_negative"])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert f"got check '{check}'; with --passed, a bad input needs the check 'errors'" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99", TORCH_HALF], "device: got 'cuda:99'; "),
        (["--device", "nonsense", TORCH_HALF], "device: got 'nonsense'; "),
        (["--device", "cpu", TORCH_HALF, __file__], "--device: got 'cpu' and a REPORT, which sets the device; give "),
    ],
    ids=["missing", "nonsense", "report"],
)
def test_a_device_that_cannot_be_used_is_an_error_of_one_line(capsys, arguments, said):
    status = main(["repro", *arguments])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert said in captured.err


def test_a_case_is_run_on_the_device_that_is_named(capsys, monkeypatch):
    devices = []
    monkeypatch.setattr(
        "crossent.repro.rerun.repeated",
        lambda name, device, *given, **promises: devices.append(device) or repeated(name),
    )
    assert main(["repro", TORCH_HALF, "--device", "cuda:1"]) == 0
    assert devices == ["cuda:1"]
    assert "\ndevice = 'cuda:1'\n" in capsys.readouterr().out


@pytest.mark.parametrize("id", ["formula:loss:float32-7x5-normal-int64-mean", "formula:errors:reduction_unknown"])
def test_the_script_of_a_check_that_passes_says_so(capsys, id):
    assert main(["repro", "--passed", id]) == 0
    subject, check, case = id.split(":")
    assert capsys.readouterr().out.startswith(f'"""{subject}: {check} passed on {case}\n')


@pytest.mark.parametrize(
    "id", [f"{check}:float64-5-normal-int64-sum" for check in ("formula:split", "scalar:gradient")]
)
def test_a_check_without_numbers_on_a_case_is_an_error_of_one_line(capsys, id):
    status = main(["repro", "--passed", id])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert " does not run on " in captured.err


def test_a_result_without_elements_has_no_number_for_a_script(capsys):
    status = main(["repro", "--passed", "formula:gradient:policy/float32-0x4-normal-int64-mean"])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert "the subject raises, or no number is compared; choose another check or case" in captured.err


def test_the_script_of_a_check_that_passes_proposes_no_declaration_and_has_a_relative_difference_of_0(capsys):
    assert main(["repro", "--passed", "formula:gradient:policy/float32-6x4-normal-int64-mean-ignored_all"]) == 0
    out = capsys.readouterr().out
    assert "If this is intended" not in out
    assert "Relative difference there: 0, 0 ulp" in out
