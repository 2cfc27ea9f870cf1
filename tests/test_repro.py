"""Repro scripts: they show what was found, say where it is not there, and hold nothing that a report can inject."""

import ast
import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

import crossent
from crossent import cli, runner
from crossent.bad_inputs import BAD_INPUTS
from crossent.cases import Case, bits
from crossent.document import find, read_json
from crossent.findings import Finding, Numbers, SubjectReport
from crossent.judge import run_case
from crossent.report import Report
from crossent.repro import repeated, script
from crossent.subjects import BY_NAME, Subject

RIGHT = "from crossent import formula as subject"
TORCH_HALF = "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA"


def source(body):
    """A subject as the text that a user puts into the script."""
    return "import torch, crossent\ndef subject(input, target, **options):\n" + textwrap.indent(body, "    ")


OFF = source("return crossent.formula(input, target, **options) * 1.01")
OFF_TARGET = source("return crossent.formula(input, 2 * target - target.detach(), **options)")
CONSTANT = source(
    "return crossent.formula(input, target, **options).detach().zero_() + 0 * input.nan_to_num(0, 0, 0).sum()"
)
REFUSES = source("raise RuntimeError('not today')")
CUT_OFF = source("return crossent.formula(input, target.detach(), **options)")
A_LIST = source("return [crossent.formula(input, target, **options)]")
WRITES = source("input.data[...] = 0\nreturn crossent.formula(input, target, **options)")
WRITES_WEIGHT = source("loss = crossent.formula(input, target, **options)\noptions['weight'].zero_()\nreturn loss")
WRITES_BACKWARD = source(
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(lambda gradient: (input.data.zero_(), gradient)[1])\n"
    "return loss"
)
DOUBLE = source("return crossent.formula(input, target, **options).double()")
LONGER = source("return crossent.formula(input, target, **options)[None]")
ACCEPTS = source("return input.sum()")
WRONG_CLASS = source("raise KeyError('average')")


def found(text, case, check):
    """The finding of one check on one case, on the subject that a text defines."""
    names = {}
    exec(text, names)
    subject = Subject("mine", names["subject"])
    made = Report({}, [SubjectReport("mine")])
    case = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    with runner.ambient():
        run_case(case, [subject], made, "cpu")
    return next(finding for finding in made.findings if finding.check == check)


def with_subject(text, subject):
    """The script with the subject put where it asks for it."""
    asks = re.compile(r"^print\('import mine here as subject, .*\nraise SystemExit\(2\)$", re.M)
    assert len(asks.findall(text)) == 1
    return asks.sub(lambda match: subject, text)


def play(text):
    """Run a script here: its names, exit status and what it printed. A process of its own takes two seconds."""
    names = {"__name__": "__main__"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(text, "repro.py", "exec"), names)
        except SystemExit as end:
            status = int(end.code)
        except Exception as error:
            status = 1  # Python's own for an exception that nobody catches
            print(f"{type(error).__name__}: {error}")
        else:
            status = 0
    return names, status, out.getvalue()


KINDS = {
    "wrong loss": (OFF, "float32-7x5-normal-int64-mean", "loss"),
    "wrong gradient": (OFF, "float32-7x5-normal-int64-mean-scalar", "gradient"),
    "wrong target_gradient": (OFF_TARGET, "float32-7x5-normal-probabilities-mean-scalar", "target_gradient"),
    "refused": (REFUSES, "float32-7x5-normal-int64-mean", "call"),
    "cut off from the target": (CUT_OFF, "float32-7x5-normal-probabilities-mean", "call"),
    "a list": (A_LIST, "float32-7x5-normal-int64-mean", "call"),
    "accepted": (ACCEPTS, "reduction_unknown", "errors"),
    "wrong class of error": (WRONG_CLASS, "reduction_unknown", "errors"),
    "changed logits": (WRITES, "float32-7x5-normal-int64-mean", "arguments"),
    "changed weight": (WRITES_WEIGHT, "float32-7x5-normal-int64-mean-weighted", "arguments"),
    "changed in the backward": (WRITES_BACKWARD, "float32-7x5-normal-int64-mean", "arguments"),
    "changed beside NaN": (WRITES_WEIGHT, "float32-7x5-nan-int64-mean-weighted", "arguments"),
    "another dtype": (DOUBLE, "float32-7x5-normal-int64-mean", "result"),
    "another shape": (LONGER, "float32-7x5-normal-int64-mean", "result"),
    "stride 0": (OFF, "float64-3x5x4-normal-int64-none-stride0", "gradient"),
    "rows": (OFF, "float64-3x5x4-normal-int64-none-rows", "gradient"),
    "five dimensions": (OFF, "bfloat16-2x3x2x2x3-normal-int64-none-weighted-rows-smooth0.1", "loss"),
    "unbatched": (OFF, "float64-5-normal-int64-none-scalar", "loss"),
    "empty": (CONSTANT, "float32-0x5-normal-int64-mean", "loss"),
    "huge ignore_index": (OFF, "float32-7x5-normal-int64-sum-weighted-ignored_huge", "loss"),
    "uint8": (OFF, "float32-7x5-normal-uint8-mean-ignored", "gradient"),
    "exactly nan": (CONSTANT, "float32-7x5-nan-int64-sum", "loss"),
    "exactly inf": (CONSTANT, "float32-70x5-inf_on_target-int64-sum", "loss"),
    "all of float64": (OFF, "float64-7x5-decades-int64-none-rows-smooth0.3333333333333333", "gradient"),
    "float16": (OFF, "float16-7x5-subnormal-int64-none-weight_decades-rows", "loss"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_script_shows_what_was_found_and_says_right_where_it_is_not(name):
    subject, case, check = KINDS[name]
    finding = found(subject, case, check)
    text = script(finding)
    names, status, out = play(with_subject(text, subject))
    assert status == 1, out
    assert out.splitlines()[-1:] == ["wrong"] or finding.kind == "refused"
    if finding.numbers is not None:
        assert f"got {finding.numbers.got!r}, exact {finding.numbers.exact!r}, off by " in out
    names, status, out = play(with_subject(text, RIGHT))
    assert status == 0, out
    assert out.splitlines()[-1] == "right"
    _, status, out = play(text)  # as it stands, it asks for the subject: that is neither
    assert (status, out) == (2, "import mine here as subject, and take these two lines out\n")

    inputs = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    inputs = inputs.build()
    for one, two in (
        (names["logits"], inputs.logits),
        (names["target"], inputs.target),
        (names["upstream"], inputs.upstream),
    ):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert np.array_equal(bits(one), bits(two))
    assert list(names["options"]) == list(inputs.options)
    for key, value in inputs.options.items():
        assert repr(names["options"][key]) == repr(value)
        assert not torch.is_tensor(value) or np.array_equal(bits(names["options"][key]), bits(value))


def test_a_result_that_is_as_wrong_as_it_was_found_is_wrong():
    """The exact answer has more digits than a float64: where the bound is tight, its first 53 bits are not enough."""
    finding = found(OFF, "float64-7x5-normal-int64-sum", "loss")
    n = finding.numbers
    wide = Numbers(n.index, n.got, n.bits, n.exact, n.radius, 1e9, n.ulp, n.ratio)
    text = script(Finding("mine", "loss", finding.case, "wrong", "", numbers=wide))
    assert play(with_subject(text, OFF))[1] == 1
    assert play(with_subject(text, RIGHT))[1] == 0


IDS = {
    "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got 0.0, exact 0.001",
    "torch_nll:gradient:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got ",
    "torch:loss:half_partial_sums/bfloat16-1000x10-normal-int64-mean-ignored_16th": "got ",
    "torch:call:float32-5-normal-uint8-mean-weighted-scalar-smooth1": "RuntimeError",
    "torch_nll:call:float64-2x5x3x2-normal-int64-mean-scalar": "must be contiguous",
    "torch:errors:label_smoothing_nan": "accepted, and gave",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Files with the scripts of torch's own findings."""
    folder = tmp_path_factory.mktemp("scripts")
    for at, finding in enumerate(IDS):
        (folder / f"{at}.py").write_text(script(repeated(finding)), encoding="ascii")
    return folder


def test_the_scripts_of_torch_need_no_crossent(scripts):
    """All of them in one process in which crossent cannot be imported, since torch's import takes its time."""
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
    told = process.stdout.split("end\n")
    for (finding, said), text in zip(IDS.items(), told, strict=False):
        assert said in text, (finding, text)
        assert text.endswith("status 1\n"), (finding, text)
    assert len(told) == len(IDS) + 1


@pytest.mark.parametrize("finding", IDS)
def test_the_script_of_a_finding_of_torch_says_right_of_a_right_subject(finding):
    text = script(repeated(finding))
    start, end = text.index("def subject("), text.index("\n\n\nlogits = ")
    _, status, out = play(text[:start] + RIGHT + text[end:])
    assert status == 0, out
    assert out.endswith("right\n")


@pytest.mark.parametrize("name", ["formula", "log_softmax_nll", "one_hot", "scalar"])
def test_the_script_of_a_form_imports_that_form(name, monkeypatch):
    case = "float64-5-normal-int64-sum"
    known, right = BY_NAME[name], BY_NAME["formula"].loss
    wrong = replace(known, loss=lambda *args, **options: right(*args, **options).to(known.dtype) + 1)
    monkeypatch.setitem(BY_NAME, name, wrong)
    text = script(repeated(f"{name}:loss:{case}"))
    assert "crossent import" in text
    _, status, out = play(text)
    assert status == 0
    assert re.fullmatch(r"torch \S+: got \S+, exact \S+, off by \S+, allowed \S+\nright\n", out)


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("", "allowed is SUBJECT:CHECK:CASE"),
        ("torch", "allowed is SUBJECT:CHECK:CASE"),
        ("torch:loss", "allowed is SUBJECT:CHECK:CASE"),
        ("::", "got subject ''"),
        ("mine:loss:float32-7x5-normal-int64-mean", "got subject 'mine'; without its report"),
        ("torch:loss:nonsense", "no case's id"),
        ("torch:loss:float32-7x5-normal-int64-mean", "does not happen with torch"),
        ("torch:nonsense:float32-7x5-normal-int64-mean", "does not happen"),
        ("torch:loss:label_smoothing_nan", "does not happen"),
        ("torch:errors:float32-7x5-normal-int64-mean", "does not happen"),
        ("scalar:loss:float32-7x5-normal-int64-mean", "does not happen"),
        ("torch:loss:float32-99999999999999x99999999999-normal-int64-mean", "crossent: "),
        ("torch:loss:float32-7x5-normal-int64-mean\x1b[31m\n", r"\x1b[31m"),
    ],
)
def test_what_names_no_finding_is_one_line_and_status_2(capsys, id, said):
    assert cli.main(["repro", "--", id]) == cli.WRONG_USE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()


# Reports.


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A report with a finding of each kind, as it stands in its file."""
    folder = tmp_path_factory.mktemp("report")

    def off(*args, **options):
        return crossent.formula(*args, **options) * 1.01

    def refuses(*args, **options):
        raise RuntimeError("not today")

    subjects = [Subject("off", off), Subject("refuses", refuses)]
    made = Report(runner.environment("cpu"), [SubjectReport(subject.name) for subject in subjects])
    chosen = [
        Case.of("float32-3x5-normal-probabilities-none-rows"),
        *(b for b in BAD_INPUTS if b.id == "class_negative"),
    ]
    with runner.ambient():
        for case in chosen:
            run_case(case, subjects, made, "cpu")
    made.write_json(folder / "report.json")
    return read_json(folder / "report.json")


def repro(capsys, tmp_path, document, id):
    """`crossent repro` of a finding of a document."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    status = cli.main(["repro", id, str(path)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(status, out, err):
    assert (status, out) == (cli.WRONG_USE, "")
    assert err.startswith("crossent: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert len(err) < 2000


class _Skeleton(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant(None)

    def visit_UnaryOp(self, node):
        return ast.Constant(None)  # -0.5

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id == "float":
            return ast.Constant(None)  # float('nan')
        return self.generic_visit(node)


def skeleton(text):
    """What a script does, whatever its docstring and its constants are."""
    tree = ast.parse(text)
    assert isinstance(tree.body[0].value.value, str)
    return ast.dump(_Skeleton().visit(ast.Module(tree.body[1:], [])))


def test_a_script_from_a_report_is_the_one_from_the_run(capsys, tmp_path, document):
    for part in document["subjects"]:
        assert part["findings"]
        for entry in part["findings"]:
            status, out, err = repro(capsys, tmp_path, document, entry["id"])
            assert (status, err) == (0, "")
            assert out == script(find(document, entry["id"])[0])
            assert entry["message"].splitlines()[0] in ast.get_docstring(ast.parse(out))


def test_other_bits_than_the_report_saw_are_refused(capsys, tmp_path, document):
    other = copy.deepcopy(document)
    case = other["subjects"][0]["findings"][0]["case"]
    other["subjects"][0]["cases"][case]["inputs"] = "00000000"
    status, out, err = repro(capsys, tmp_path, other, other["subjects"][0]["findings"][0]["id"])
    refused(status, out, err)
    assert "has other bits here" in err


DAMAGE = [
    None,
    True,
    -1,
    3,
    1.5,
    10**400,
    "",
    "x",
    "nan",
    "a\nb",
    [],
    [[]],
    ["x"],
    [-1],
    [1.5],
    [10**30],
    [0] * 9,
    {},
    {"x": 1},
]


def _benign(entry):
    """The same kind of finding without a word of the report."""
    numbers = None
    if entry["index"] is not None:
        numbers = Numbers(tuple(0 for _ in entry["index"]), 1.0, "", 2.0, 0.0, 0.5, 1.0, 2.0)
    _, check, case = entry["id"].rsplit(":", 2)
    return Finding("mine", check, case, entry["kind"], "", numbers=numbers)


def test_a_report_with_any_field_of_a_finding_damaged_is_one_line_or_the_same_script(capsys, tmp_path, document):
    statuses = []
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            for name in entry if "gradient" not in entry["check"] else ("index", "check"):
                for damage in [*DAMAGE, "gone"]:
                    other = copy.deepcopy(document)
                    there = other["subjects"][p]["findings"][f]
                    there.pop(name) if damage == "gone" else there.update({name: damage})
                    status, out, err = repro(capsys, tmp_path, other, entry["id"])
                    statuses.append(status)
                    if status:
                        refused(status, out, err)
                    else:
                        assert skeleton(out) == skeleton(script(_benign(entry))), (name, damage)
    assert set(statuses) == {0, 2}  # another message is a message
    assert len(statuses) > 900


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: ascii(damage)[:12])
def test_a_report_that_is_damaged_around_a_finding_is_one_line(capsys, tmp_path, document, damage):
    entry = document["subjects"][0]["findings"][0]

    def part(other):
        return other["subjects"][0]

    places = {
        "schema": lambda other: (other, "schema"),
        "environment": lambda other: (other, "environment"),
        "device": lambda other: (other["environment"], "device"),
        "subjects": lambda other: (other, "subjects"),
        "subject": lambda other: (other["subjects"], 0),
        "name": lambda other: (part(other), "name"),
        "findings": lambda other: (part(other), "findings"),
        "finding": lambda other: (part(other)["findings"], 0),
        "cases": lambda other: (part(other), "cases"),
        "case": lambda other: (part(other)["cases"], entry["case"]),
        "inputs": lambda other: (part(other)["cases"][entry["case"]], "inputs"),
    }
    for place in places.values():
        other = copy.deepcopy(document)
        holder, key = place(other)
        holder[key] = damage
        refused(*repro(capsys, tmp_path, other, entry["id"]))


INJECTIONS = [
    '"""\nraise SystemExit(77)\n"""',
    "'''\nraise SystemExit(77)\n'''",
    '\\"""\nraise SystemExit(77)\n\\"""',
    '\\\\"""\nraise SystemExit(77)\n"""',
    '"',
    '""',
    "\\",
    "x\nraise SystemExit(77)",
    "x\rraise SystemExit(77)\r",
    "x\x0craise SystemExit(77)\x0b",
    "x\u2028raise SystemExit(77)\u2029\x85\x1c\x1d\x1e",
    "');raise SystemExit(77)#",
    "{body} {0} {device!r} %s",
    "\\N{no such name} \\x \\u12 \\U99999999",
    "\x00\x1a\x1b[31m",
    "\udc80 ünï ± 猫",
    "# -*- coding: utf-7 -*-\n+AGE-",
]


@pytest.mark.parametrize("injection", INJECTIONS, ids=ascii)
def test_what_a_hostile_report_says_is_inert_in_the_script(capsys, tmp_path, document, injection):
    """Into every text of it, and checked by what Python makes of the script, not by how it looks."""
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            other = copy.deepcopy(document)
            there = other["subjects"][p]["findings"][f]
            other["subjects"][p]["name"] = injection
            there.update(dict.fromkeys(("message", "call", "torch", "expected"), injection))
            there["bits"] = injection if there["bits"] is not None else None
            there["id"] = f"{injection}:{entry['check']}:{entry['case']}"
            status, out, err = repro(capsys, tmp_path, other, there["id"])
            assert (status, err) == (0, "")
            assert out.isascii()
            assert skeleton(out) == skeleton(script(_benign(entry)))
            names, status, printed = play(out)
            assert status == 2  # where it asks for the subject
            assert "result" not in names
            assert printed.rstrip("\n").isprintable()
    for name in ("check", "case", "kind"):
        other = copy.deepcopy(document)
        entry = other["subjects"][0]["findings"][0]
        entry[name] = injection
        entry["id"] = f"off:{entry['check']}:{entry['case']}"
        refused(*repro(capsys, tmp_path, other, entry["id"]))
    other = copy.deepcopy(document)
    other["environment"]["device"] = injection
    refused(*repro(capsys, tmp_path, other, document["subjects"][0]["findings"][0]["id"]))


@pytest.mark.parametrize(
    ("check", "kind", "case"),
    [
        ("loss", "wrong", "reduction_unknown"),
        ("errors", "accepted", "float32-7x5-normal-int64-mean"),
        ("loss", "refused", "float32-7x5-normal-int64-mean"),
        ("call", "wrong", "float32-7x5-normal-int64-mean"),
        ("loss", "wrong", "float32-7x5-normal-int64-mean"),  # without numbers
        ("target_gradient", "wrong", "float32-7x5-normal-int64-mean"),
        ("__class__", "wrong", "float32-7x5-normal-int64-mean"),
    ],
)
def test_a_finding_that_cannot_be_is_refused(check, kind, case):
    with pytest.raises(ValueError, match=r"^finding: "):
        script(Finding("mine", check, case, kind, ""))
    with pytest.raises(ValueError, match=r"^finding: "):
        script(
            Finding(
                "scalar",
                "gradient",
                "float32-5-normal-int64-mean",
                "wrong",
                "",
                numbers=Numbers((0,), 1.0, "", 2.0, 0.0, 0.0, 0.0, 2.0),
            )
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\x7fELF\x00\x01\xff", "no report"), (b"[" * 100_000, "no report"), (b"", "no report"), (b"{}", "schema None")],
    ids=["binary", "nested", "empty", "another"],
)
def test_a_file_that_is_no_report_is_one_line(capsys, tmp_path, content, said):
    (tmp_path / "r").write_bytes(content)
    status = cli.main(["repro", TORCH_HALF, str(tmp_path / "r")])
    captured = capsys.readouterr()
    refused(status, captured.out, captured.err)
    assert said in captured.err


@pytest.mark.parametrize("path", ["", "missing", ".", "/proc/self/mem"])
def test_a_file_that_cannot_be_read_is_one_line(capsys, path):
    status = cli.main(["repro", TORCH_HALF, path])
    captured = capsys.readouterr()
    refused(status, captured.out, captured.err)
