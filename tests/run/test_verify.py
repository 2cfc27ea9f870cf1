"""`crossent verify`: the cases of a report run again, and differences are shown."""

import json
import re
from dataclasses import replace

import pytest

from crossent.cli import main
from crossent.machine import environment
from crossent.report.findings import Outcome, SubjectReport
from crossent.report.report import Report
from crossent.run.settings import Settings
from crossent.run.verify import Verification, require_comparable

CASES = ("float32-7x5-normal-int64-none-rows", "float64-7x5-normal-int64-mean-weighted-ignored")
MINE = """
import torch
from pathlib import Path
Path({ran!r}).touch()
def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    options = dict(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    return torch.nn.functional.cross_entropy(input, target, **options) * {factor}
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Write reports of the forms and of functions in files, and return their folder."""
    folder = tmp_path_factory.mktemp("reports")
    cases = [word for case in CASES for word in ("--case", case)]
    for name, factor in (("right", 1), ("wrong", 1.01)):
        (folder / f"{name}.py").write_text(MINE.format(ran=str(folder / f"{name}.ran"), factor=factor))
    runs = {
        "forms": ["formula", "torch", *cases],
        "wrong": [f"{folder / 'wrong.py'}:loss", "--seed", "7", "--without", "vmap", "--grade", "B", *cases],
        "as_torch": [f"{folder / 'right.py'}:loss", "--contract", "torch", *cases],
        "errors": ["formula", "--check", "errors"],
        "stopped": [f"{folder / 'wrong.py'}:loss", "-x", *cases],
    }
    for name, words in runs.items():
        options = ["--level", "quick", "--jobs", "1", "--no-cache", "--json", str(folder / f"{name}.json")]
        assert main(["check", *words, *options]) in (0, 1)
    for name in ("right", "wrong"):
        (folder / f"{name}.ran").unlink()
    return folder


def verify(capsys, report, *words):
    status = main(["verify", str(report), "--jobs", "1", *words])
    return status, *capsys.readouterr()


def changed(reports, name, change):
    """Return the path of a changed copy of a report, in which the reader finds no contradiction."""
    from crossent.report.reader import read_report

    report = read_report(reports / f"{name}.json")
    change(report)
    report.write_json(reports / "changed.json")
    return reports / "changed.json"


def test_a_true_report_is_verified(reports, capsys):
    for name, words in (
        ("forms", []),
        ("errors", []),
        ("wrong", [f"{reports / 'wrong.py'}:loss"]),
        ("stopped", [f"{reports / 'wrong.py'}:loss"]),
        ("as_torch", [f"{reports / 'right.py'}:loss"]),
    ):
        capsys.readouterr()
        status, out, err = verify(capsys, reports / f"{name}.json", *words)
        assert (status, err) == (0, ""), (name, out)
        assert "every call has the result of the report" in out


def less_wrong(report):
    part = report.subjects[0]
    part.findings.clear()
    for outcome in part.outcomes.values():
        for check, measured in outcome.checks.items():
            outcome.checks[check] = type(measured)(False, measured.ulp and 0.1, measured.ratio and 0.1)
    report.fixed.clear()


def another_digest(report):
    report.subjects[0].outcomes[CASES[0]].digest = "00000000"


def other_inputs(report):
    report.subjects[0].outcomes[CASES[0]].inputs = "00000000"


def other_bits(report):
    results = report.subjects[0].outcomes[CASES[0]].results
    results["loss"] = type(results["loss"])("00000000", results["loss"].dtype, results["loss"].shape)


def a_known_failure(report):
    part = report.subjects[0]
    part.findings = [replace(finding, expected="a made-up reason") for finding in part.findings]


def no_case(report):
    report.subjects[0].outcomes.pop(CASES[0])
    report.subjects[0].findings = [one for one in report.subjects[0].findings if one.case != CASES[0]]


def other_needs(report):
    report.subjects[0].needs["jacfwd"] = ["gradient"]


def not_applicable(report):
    report.subjects[0].not_applicable["does not apply here"] += 1


def more_triples(report):
    report.triples += 1000


@pytest.mark.parametrize(
    "forge",
    [
        less_wrong, another_digest, other_inputs, other_bits, a_known_failure, no_case, other_needs, not_applicable,
        more_triples,
    ],
)  # fmt: skip
def test_a_forged_report_that_is_consistent_is_not_verified(forge, reports, capsys):
    path = changed(reports, "wrong", forge)
    status, out, err = verify(capsys, path, f"{reports / 'wrong.py'}:loss")
    assert (status, err) == (1, "")
    assert "DIFFERS" in out
    if forge in (another_digest, other_inputs, other_bits, no_case):
        assert CASES[0] in out
        assert f"differ: loss: {CASES[1]}" not in out
    if forge is less_wrong:
        assert f"loss: {CASES[0]}: outcome differs here; passed in the report, failed here\n" in out
    if forge is more_triples:
        assert re.search(r"^DIFFERS combinations of three options: (\d+) in the report, \d+ here$", out, re.M)
    if forge in (other_needs, more_triples):
        assert "every call has the result of the report, but 1 other value differs" in out


def test_a_failure_of_a_check_that_the_report_lacks_says_so(reports, capsys):
    def without_gradient(report):
        part = report.subjects[0]
        report.only = {"checks": sorted(part.outcomes[CASES[0]].checks), "cases": list(CASES)}
        part.findings = [one for one in part.findings if one.check != "gradient"]
        for outcome in part.outcomes.values():
            outcome.checks.pop("gradient", None)

    path = changed(reports, "wrong", without_gradient)
    status, out, _ = verify(capsys, path, f"{reports / 'wrong.py'}:loss")
    assert status == 1
    assert "gradient fails here, and the report has no result of this check" in out


@pytest.mark.parametrize(
    ("different", "others", "end"),
    [
        (0, 0, "1 call repeated: every call has the result of the report"),
        (1, 0, "1 of 1 call differs from the report"),
        (0, 21, "and 1 more difference\nthe report says: "),
    ],
)
def test_the_lines_count_calls_and_differences(different, others, end):
    claim = Report(environment("cpu"), [SubjectReport("formula", {CASES[0]: Outcome("float32", "")})])
    cases = dict.fromkeys([("formula", str(number)) for number in range(different)], "differs here")
    assert end in "\n".join(Verification(claim, [], cases, ["a value"] * others).lines)


def test_a_report_runs_no_code_that_the_user_did_not_name(reports, capsys):
    def of_wrong(report):
        part = report.subjects[0]
        part.name = f"{reports / 'wrong.py'}:loss"
        part.findings = [replace(finding, subject=part.name) for finding in part.findings]

    (reports / "wrong.ran").unlink(missing_ok=True)
    for path in (reports / "wrong.json", changed(reports, "wrong", of_wrong)):
        status, out, err = verify(capsys, path)
        assert (status, out) == (2, "")
        assert f"crossent verify {path} FILE.py:NAME" in err
        assert "1 subject of the report is neither a form nor torch: '" in err
        assert err.count("\n") == 1
    assert not (reports / "wrong.ran").exists()
    status, out, err = verify(capsys, reports / "forms.json", f"{reports / 'wrong.py'}:loss")
    assert (status, out) == (2, "")
    assert "the report has no subject 'loss'" in err
    status, out, err = verify(
        capsys, reports / "wrong.json", f"{reports / 'wrong.py'}:torch.nn.functional.cross_entropy"
    )
    assert (status, out) == (2, "")
    assert "the report has no subject 'cross_entropy'; choose from loss" in err


def test_another_function_than_the_report_is_about_differs(reports, capsys):
    status, out, _ = verify(capsys, reports / "wrong.json", f"{reports / 'right.py'}:loss")
    assert status == 1
    assert "2 of 2 calls differ" in out


def test_a_report_of_a_form_that_runs_elsewhere_is_refused_in_one_line(reports, capsys):
    """On a CPU, the name "fused" stands for the subject fused_as_blocked."""
    changed(reports, "forms", lambda report: setattr(report.subjects[0], "name", "fused"))
    status, out, err = verify(capsys, reports / "changed.json")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "the report is about 'fused', whose kernel cannot run here" in err


@pytest.mark.parametrize("name", ["torch", "python", "numpy", "cpu_capability"])
def test_a_report_of_another_machine_is_not_verified_unless_forced(name, reports, capsys):
    path = changed(reports, "forms", lambda report: report.environment.update({name: "0.9"}))
    status, out, err = verify(capsys, path)
    assert (status, out) == (2, "")
    assert f"{name} was '0.9' and is " in err
    assert err.count("\n") == 1
    status, out, _ = verify(capsys, path, "--force")
    assert status == 0
    assert f"{name} was '0.9' and is " in out


@pytest.mark.parametrize(
    ("key", "value"),
    [("level", "nonsense"), ("seed", -1), ("only", {"cases": ["float32-9999999999x9-normal-int64-mean"]}),
     ("only", {"cases": ["nonsense"]}), ("only", {"checks": ["nonsense"]}), ("only", {"x": ["y"]}),
     ("without", ["nonsense"]),
     ("grade", "Z"), ("without", "nonsense")],
)  # fmt: skip
def test_a_report_that_cannot_run_is_an_error_of_one_line(key, value, reports, capsys):
    document = json.loads((reports / "forms.json").read_text())
    document[key] = value
    (reports / "changed.json").write_text(json.dumps(document))
    status, out, err = verify(capsys, reports / "changed.json")
    assert (status, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("subject", "inputs", "end"),
    [
        ("formula", None, "; --force compares the two runs anyway"),
        ("one_hot", None, "; the two runs have no subject in common; check a subject of the baseline"),
        ("formula", "00000000", "whose inputs have the same bits; run the cases of the baseline"),
    ],
    ids=["another processor", "another subject", "other inputs"],
)
def test_a_baseline_of_another_processor_names_force_if_a_case_is_in_common(subject, inputs, end):
    settings = Settings("cpu", level="quick", seed=0, cases=CASES[:1])
    (case,) = settings.plan()
    outcome = Outcome(case.dtype, inputs or case.build().digest)
    old = Report(
        {**environment("cpu"), "cpu_capability": "another"}, [SubjectReport(subject, {case.id: outcome})], level="quick"
    )
    with pytest.raises(
        ValueError, match="cannot be compared with the baseline: cpu_capability was 'another'"
    ) as caught:
        require_comparable(old, settings, ["formula"])
    assert str(caught.value).endswith(end)
