"""Scripts of findings in a report, which may be damaged or forged. No text of a report becomes code of a script."""

import ast
import copy
import json
import re

import pytest
from support.repro.playing import TORCH_HALF, assert_refused, play, skeleton
from support.running import run_case

import crossent
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.cli import main
from crossent.machine import ambient, environment
from crossent.report.findings import Finding, Numbers, SubjectReport
from crossent.report.reader import find, read_json
from crossent.report.report import Report
from crossent.repro.script import script
from crossent.subjects.subject import Subject

DOCUMENTED = ("call", "result", "loss", "gradient", "target_gradient", "rows_permuted", "options")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Return a report in JSON, as a dict, with findings about numbers, about whole results and about exceptions."""
    folder = tmp_path_factory.mktemp("report")

    def unweighted(input, target, weight=None, **options):
        return crossent.formula(input, target, **options) * (1 + 0.01 * input.detach()[0, 0])

    def off(*args, **options):
        return crossent.formula(*args, **options) * 1.01

    def refuses(*args, **options):
        raise RuntimeError("not today")

    subjects = [Subject("off", off), Subject("refuses", refuses), Subject("unweighted", unweighted)]
    made = Report(environment("cpu"), [SubjectReport(subject.name) for subject in subjects])
    chosen = [
        Case.of("float32-3x5-normal-probabilities-none-weighted-rows"),
        *(b for b in BAD_INPUTS if b.id == "class_negative"),
    ]
    with ambient():
        for case in chosen:
            run_case(case, subjects, made, "cpu", [CHECKS[check] for check in DOCUMENTED])
    made.write_json(folder / "report.json")
    return read_json(folder / "report.json")


def repro(capsys, tmp_path, document, id):
    """Run `crossent repro` on a finding of a report. Return the exit status, and the text on stdout and stderr."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    status = main(["repro", id, str(path)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_script_from_a_report_is_the_one_from_the_run(capsys, tmp_path, document):
    for part in document["subjects"]:
        assert part["findings"]
        for entry in part["findings"]:
            status, out, err = repro(capsys, tmp_path, document, entry["id"])
            assert (status, err) == (0, "")
            assert out == script(find(document, entry["id"])[0])
            assert entry["message"].splitlines()[0] in ast.get_docstring(ast.parse(out))


@pytest.mark.parametrize("damaged", [{}, {"name": "off", "declared": 7}, 7])
def test_damage_behind_a_finding_changes_no_script(capsys, tmp_path, document, damaged):
    entry = document["subjects"][0]["findings"][0]
    forged = {**document, "subjects": [document["subjects"][0], damaged]}
    status, out, err = repro(capsys, tmp_path, forged, entry["id"])
    assert (status, err) == (0, "")
    assert out == script(find(document, entry["id"])[0])


@pytest.mark.parametrize("damaged", [{"subjects": 3}, {"subjects": [{"findings": 3}]}, {"environment": {}}])
def test_the_error_for_a_damaged_report_begins_with_the_argument(capsys, tmp_path, document, damaged):
    status, out, err = repro(capsys, tmp_path, {**document, **damaged}, "off:loss:float32-7x5")
    assert_refused(status, out, err)
    assert err.startswith("crossent: REPORT: ")
    assert "not iterable" not in err


def test_an_integer_that_no_float_holds_is_named(capsys, tmp_path, document):
    other = copy.deepcopy(document)
    entry = next(one for one in other["subjects"][0]["findings"] if one["ulp"] is not None)
    entry["ulp"] = 10**400
    status, out, err = repro(capsys, tmp_path, other, entry["id"])
    assert_refused(status, out, err)
    assert "a finding: ulp is 1000" in err
    assert "a float cannot be so large" in err


def test_inputs_with_other_bits_than_in_the_report_are_refused(capsys, tmp_path, document):
    other = copy.deepcopy(document)
    case = other["subjects"][0]["findings"][0]["case"]
    other["subjects"][0]["cases"][case]["inputs"] = "00000000"
    status, out, err = repro(capsys, tmp_path, other, other["subjects"][0]["findings"][0]["id"])
    assert_refused(status, out, err)
    assert "have other bits here" in err


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


def _benign(entry, subject="mine"):
    """Return a finding with the check, case, kind and index of an entry of a report, but without any of its texts."""
    numbers = None
    if entry["index"] is not None:
        numbers = Numbers(tuple(0 for _ in entry["index"]), 1.0, "", 2.0, 0.0, 0.5, 1.0, 2.0)
    _, check, case = entry["id"].rsplit(":", 2)
    return Finding(subject, check, case, entry["kind"], "", numbers=numbers, of=entry["of"])


def test_a_report_with_a_damaged_field_of_a_finding_is_refused_in_one_line_or_gives_the_same_script(
    capsys, tmp_path, document
):
    statuses = []
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            whole = part["name"] != "unweighted" and "gradient" not in entry["check"]
            benign = {}
            for name in entry if whole else ("index", "check", "of"):
                for damage in [*DAMAGE, "gone"]:
                    other = copy.deepcopy(document)
                    changed = other["subjects"][p]["findings"][f]
                    changed.pop(name) if damage == "gone" else changed.update({name: damage})
                    status, out, err = repro(capsys, tmp_path, other, entry["id"])
                    statuses.append(status)
                    if status:
                        assert_refused(status, out, err)
                    else:
                        # Without a name in `of`, a finding about an option becomes a finding about no single result.
                        of = "" if (name, damage) == ("of", "") else entry["of"]
                        if of not in benign:
                            benign[of] = skeleton(script(_benign({**entry, "of": of})))
                        assert skeleton(out) == benign[of], (name, damage)
    assert set(statuses) == {0, 2}  # a report with another message is no damaged report
    assert len(statuses) > 900


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: ascii(damage)[:12])
def test_a_report_that_is_damaged_around_a_finding_is_refused_in_one_line(capsys, tmp_path, document, damage):
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
        assert_refused(*repro(capsys, tmp_path, other, entry["id"]))


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
    "')\nraise SystemExit(77)\n#+compile",
]


@pytest.mark.parametrize("injection", INJECTIONS, ids=ascii)
def test_the_text_of_a_hostile_report_runs_nothing_in_the_script(capsys, tmp_path, document, injection):
    """The test puts code into every text of a finding. The script must have the syntax tree of a harmless script."""
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            other = copy.deepcopy(document)
            changed = other["subjects"][p]["findings"][f]
            other["subjects"][p]["name"] = injection
            changed.update(dict.fromkeys(("message", "call", "torch", "expected"), injection))
            changed["bits"] = injection if changed["bits"] is not None else None
            changed["id"] = f"{injection}:{entry['check']}:{entry['case']}"
            status, out, err = repro(capsys, tmp_path, other, changed["id"])
            assert (status, err) == (0, "")
            assert out.isascii()
            subject = "mine+compile" if injection.endswith("+compile") else "mine"
            assert skeleton(out) == skeleton(script(_benign(entry, subject)))
            names, status, printed = play(out)
            assert status == 2  # the line that asks for the subject
            assert not {"logits", "result"} & set(names)
            assert printed.rstrip("\n").isprintable()
    for name in ("check", "case", "kind", "of"):
        other = copy.deepcopy(document)
        entry = other["subjects"][0]["findings"][0]
        entry[name] = injection
        entry["id"] = f"off:{entry['check']}:{entry['case']}"
        assert_refused(*repro(capsys, tmp_path, other, entry["id"]))
    other = copy.deepcopy(document)
    other["environment"]["device"] = injection
    assert_refused(*repro(capsys, tmp_path, other, document["subjects"][0]["findings"][0]["id"]))


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
def test_an_impossible_finding_is_refused(check, kind, case):
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


NUMBER = Numbers((), 1.0, "", 2.0, 0.0, 0.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("check", "kind", "of", "numbers", "said"),
    [
        (
            "loss",
            "wrong",
            "",
            None,
            "got result '' without numbers; give numbers, and choose from 'loss'",
        ),
        (
            "func_grad",
            "wrong",
            "gradient",
            None,
            "got result 'gradient' without numbers; the check func_grad reports this result with numbers, "
            "so give the numbers",
        ),
        (
            "loss",
            "wrong",
            "loss",
            None,
            "got result 'loss' without numbers; the check loss reports this result with numbers, so give the numbers",
        ),
        ("loss", "wrong", "gradient", NUMBER, "got result 'gradient'; choose from 'loss'"),
        (
            "no_grad",
            "refused",
            "loss",
            None,
            "got result 'loss'; the check no_grad has no finding of kind 'refused' about a result, "
            "so leave the result empty",
        ),
        (
            "result",
            "wrong",
            "loss",
            None,
            "got result 'loss'; the check result has no finding of kind 'wrong' about a result, "
            "so leave the result empty",
        ),
        (
            "result",
            "wrong",
            "",
            NUMBER,
            "got numbers; the check result has no finding about a number, so leave out the numbers",
        ),
    ],
)
def test_a_finding_about_an_impossible_result_is_refused_with_the_reason(check, kind, of, numbers, said):
    finding = Finding("mine", check, "float32-7x5-normal-int64-mean", kind, "", of=of, numbers=numbers)
    with pytest.raises(ValueError, match=re.escape(f"finding: {said}") + "$"):
        script(finding)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x7fELF\x00\x01\xff", "not a report"),
        (b"[" * 100_000, "not a report"),
        (b"", "not a report"),
        (b"{}", "schema is missing"),
    ],
    ids=["binary", "nested", "empty", "another"],
)
def test_a_file_that_is_no_report_is_refused_in_one_line(capsys, tmp_path, content, said):
    (tmp_path / "r").write_bytes(content)
    status = main(["repro", TORCH_HALF, str(tmp_path / "r")])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
    assert said in captured.err


@pytest.mark.parametrize("path", ["", "missing", ".", "/proc/self/mem"])
def test_a_file_that_cannot_be_read_is_refused_in_one_line(capsys, path):
    status = main(["repro", TORCH_HALF, path])
    captured = capsys.readouterr()
    assert_refused(status, captured.out, captured.err)
