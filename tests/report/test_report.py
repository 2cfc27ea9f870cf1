"""The report: the keys of its JSON, the writing of its files, and a text that no name or message can forge."""

import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import textwrap

import pytest
import torch
from support.running import run
from support.subjects import off_by_a_percent

import crossent
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.console import Output
from crossent.report import document
from crossent.report.expected_findings import torch_list
from crossent.report.findings import Finding, Measured, Numbers, Outcome, SubjectReport
from crossent.report.reader import find, read_json, read_report
from crossent.report.report import Report
from crossent.report.text import failures, plain_text, share
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject
from crossent.words import LONGEST_LINE

CASES = [
    Case.of(name)
    for name in (
        "float32-7x5-normal-int64-mean-weighted-smooth0.1",
        "float32-3x5x4-normal-probabilities-none-rows",
        "float32-4x1-normal-int64-sum",
        "bfloat16-7x5-normal-int64-mean",
        "half_sure/bfloat16-4x2-sure-int64-mean-gradeA",
    )
]
NAN, INF = math.nan, math.inf
ENVIRONMENT = {"crossent": "0.1.0", "torch": "2.13.0", "device": "cpu"}


def report_on(*subjects, chosen=CASES):
    """Return the report of these subjects on the cases `chosen`. Mark the known failures of torch."""
    return run(subjects, chosen, known=torch_list())


def subject(loss, name="mine"):
    return Subject(name, loss)


def writes_into_its_input(input, target, **options):
    input.data[...] = 0
    return crossent.formula(input, target, **options)


def raises(message):
    def loss(*args, **options):
        raise ValueError(message)

    return loss


def numbers(index=(1,), got=0.5, exact=0.25):
    return Numbers(index, got, "0x3f000000", exact, 1e-18, 1e-7, 2e6, 2.5e6)


def written(tmp_path, *findings):
    """Write a report with these findings to a file, and return the path of the file."""
    part = SubjectReport("mine", {finding.case: Outcome("float32", "00000001") for finding in findings}, list(findings))
    Report(ENVIRONMENT, [part]).write_json(tmp_path / "report.json")
    return tmp_path / "report.json"


def test_the_json_has_the_keys_of_schema_1(tmp_path):
    report_on(TORCH, FORM_SUBJECTS["formula"], subject(off_by_a_percent), subject(raises("no"), "no")).write_json(
        tmp_path / "r"
    )
    document = json.loads((tmp_path / "r").read_text(encoding="utf-8"))
    assert set(document) == {
        "schema",
        "crossent",
        "level",
        "coverage",
        "left_out",
        "seed",
        "planned",
        "environment",
        "subjects",
        "mended",
    }
    assert (document["schema"], document["level"], document["seed"]) == (1, "normal", 0)
    named = {"torch", "numpy", "python", "platform", "device", "cpu_capability", "threads", "crossent"}
    assert set(document["environment"]) == named
    assert [part["name"] for part in document["subjects"]] == ["torch", "formula", "mine", "no"]
    for part in document["subjects"]:
        assert set(part) == {"name", "counts", "grades", "not_applicable", "not_run", "checks", "findings", "cases"}
        assert set(part["counts"]) == {"ran", "failed", "expected", "not_applicable"}
        for dtypes in part["checks"].values():
            for tally in dtypes.values():
                assert set(tally) == {"ran", "failed", "expected", "vacuous", "not_judged", "elements", "worst"}
                assert tally["worst"] is None or set(tally["worst"]) == {"ratio", "ulp", "case"}
        for finding in part["findings"]:
            assert set(finding) == {
                *("id", "check", "case", "kind", "of", "message", "call", "torch", "expected"),
                *("index", "got", "bits", "exact", "radius", "bound", "ulp", "ratio", "versus"),
            }
        assert set(part["cases"]) == {case.id for case in CASES}
        for case in part["cases"].values():
            assert set(case) - {"loss", "gradient", "target_gradient"} == {
                *("outcome", "dtype", "inputs", "digest", "grade", "results", "raised", "held", "not_run"),
            }
            assert case["outcome"] in ("held", "failed", "expected")
            for check in ("loss", "gradient", "target_gradient"):
                assert check not in case or set(case[check]) - {"vacuous", "not_judged"} == {"ulp", "ratio", "elements"}
            for shown in case["results"].values():
                assert set(shown) == {"digest", "dtype", "shape", "value", "special"}
    outcomes = [[case["outcome"] for case in part["cases"].values()] for part in document["subjects"]]
    assert outcomes == [
        ["held"] * 4 + ["expected"],
        ["held"] * 5,
        ["failed"] * 2 + ["held"] + ["failed"] * 2,
        ["failed"] * 5,
    ]


def test_the_json_is_strict_with_a_string_for_each_number_that_json_does_not_have(tmp_path):
    special = Finding("mine", "loss", "a", "wrong", "x", numbers=Numbers((), NAN, "0x7fc0", -INF, 0.0, 0.0, INF, INF))
    path = written(tmp_path, special)

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    entry = document["subjects"][0]["findings"][0]
    assert (entry["got"], entry["exact"], entry["ulp"], entry["index"]) == ("nan", "-inf", "inf", [])


@pytest.mark.parametrize(
    "finding",
    [
        Finding("mine", "loss", "a", "wrong", "two\nlines", "call", numbers(), "0.25  (0x3e800000)"),
        Finding("mine", "loss", "a", "wrong", "scalar", numbers=numbers(())),
        Finding("mine", "gradient", "a", "wrong", "deep", numbers=numbers((1, 0, 2, 3))),
        Finding("mine", "loss", "a", "wrong", "special", numbers=numbers(got=-INF, exact=INF)),
        Finding("mine", "loss", "a", "wrong", "nan", numbers=numbers(got=NAN, exact=NAN)),
        Finding("mine", "loss", "a", "wrong", "tiny", numbers=numbers(got=5e-324, exact=0.1 + 0.2)),
        Finding("mine", "loss", "a", "wrong", "minus zero", numbers=numbers(got=-0.0)),
        Finding("mine", "call", "a", "refused", "RuntimeError", expected="since pytorch#1"),
        Finding("mine", "errors", "a", "accepted", '"quotes" \\ \u2028 \ud800 ünï'),
        Finding("a:b/c.py:mine", "call", "a/b", "refused", ""),
    ],
    ids=lambda finding: finding.message[:12] or "empty",
)
def test_a_finding_is_read_back_as_it_was_written(tmp_path, finding):
    part = SubjectReport(finding.subject, {finding.case: Outcome("float32", "0123abcd")}, [finding])
    Report(ENVIRONMENT, [part]).write_json(tmp_path / "r")
    again, digest = find(read_json(tmp_path / "r"), finding.id)
    assert repr(again) == repr(finding)  # by ==, NaN differs from itself, and -0.0 equals 0.0
    assert digest == "0123abcd"


def test_a_run_and_its_json_have_the_same_findings(tmp_path):
    made = report_on(TORCH, subject(off_by_a_percent), subject(raises("no"), "no"))
    made.write_json(tmp_path / "r")
    document = read_json(tmp_path / "r")
    findings = [finding for part in made.subjects for finding in part.findings]
    assert len(findings) > 5
    for finding in findings:
        assert repr(find(document, finding.id)[0]) == repr(finding)


def test_the_error_about_a_missing_finding_names_findings_of_the_report(tmp_path):
    document = read_json(written(tmp_path, Finding("mine", "loss", "a", "wrong", "x")))
    with pytest.raises(ValueError, match=r"which the report does not have; choose from mine:loss:a$"):
        find(document, "mine:loss:b")
    with pytest.raises(ValueError, match="the report has no findings; give a report that has the finding"):
        find(read_json(written(tmp_path)), "mine:loss:b")


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        Report({"device": object()}).write_json(path)
    assert path.read_text() == "before"

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        Report(ENVIRONMENT).write_json(path)
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["r.json"]  # no temporary file is left
    Report(ENVIRONMENT).write_json(path)
    assert read_json(path)["environment"] == ENVIRONMENT
    assert os.listdir(tmp_path) == ["r.json"]


def test_a_folder_and_a_missing_folder_are_an_os_error_and_leave_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "r.json"):
        with pytest.raises(OSError, match="directory"):
            Report(ENVIRONMENT).write_json(path)
    assert os.listdir(tmp_path) == []
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_a_link_stays_a_link_and_its_file_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder" / "real.json"
    for before in (None, "before"):
        if before:
            real.write_text(before)
        link = tmp_path / f"link{before}"
        link.symlink_to(real)
        Report(ENVIRONMENT).write_json(link)
        assert link.is_symlink()
        assert read_json(real) == read_json(link)


def test_a_new_file_has_the_mode_of_any_other_and_an_old_one_keeps_its_own(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "r.json"
    before = os.umask(0o027)
    try:
        plain.touch()
        Report(ENVIRONMENT).write_json(path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode) == 0o640
    path.chmod(0o600)
    Report(ENVIRONMENT).write_json(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_that_is_as_long_as_a_name_can_be_is_written(tmp_path):
    Report(ENVIRONMENT).write_json(tmp_path / ("r" * 255))
    assert os.listdir(tmp_path) == ["r" * 255]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a system with /dev/full")
def test_a_full_device_is_an_os_error_and_stays_a_device():
    with pytest.raises(OSError, match="No space"):
        Report(ENVIRONMENT).write_json("/dev/full")
    assert pathlib.Path("/dev/full").is_char_device()


@pytest.mark.skipif(not pathlib.Path("/dev/stdout").exists(), reason="needs a system with /dev/stdout")
def test_stdout_is_written_into_even_where_it_is_a_file_and_is_never_replaced(tmp_path):
    before = os.lstat("/dev/stdout")
    # An empty module stands for the package, so that the script does not import torch, and takes less than a second.
    code = textwrap.dedent(f"""
        import importlib.machinery, importlib.util, sys
        print("first", flush=True)
        sys.modules["crossent"] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("crossent", None))
        sys.modules["crossent"].__path__ = [{str(pathlib.Path(document.__file__).parents[1])!r}]
        from crossent.report.report import Report
        Report({{}}).write_json("/dev/stdout")
    """)
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    first, _, rest = (tmp_path / "out").read_text().partition("\n")
    assert first == "first"
    assert json.loads(rest)["schema"] == 1
    assert (os.lstat("/dev/stdout").st_ino, os.lstat("/dev/stdout").st_mode) == (before.st_ino, before.st_mode)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a system with /dev/shm")
def test_an_ordinary_file_in_dev_shm_is_replaced():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for _ in range(2):
            Report(ENVIRONMENT).write_json(f"{folder}/report.json")
        assert json.loads(pathlib.Path(folder, "report.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a report"),
        (b"{", "not a report"),
        (b"\x7fELF\x00\xff", "not a report"),
        (b"[" * 100_000, "not a report"),
        (b"[" * 100 + b"]" * 100, "not a report of crossent: schema is missing; give a report"),
        (b"9" * 10_000, "not a report"),
        (b"null", "schema is missing"),
        (b"[]", "schema is missing"),
        (b"{}", "schema is missing"),
        (b'{"schema": 2}', "schema 2"),
        (b'{"schema": "1"}', "schema '1'"),
        (b'{"schema": "\\u001b[31m\\n"}', r"schema '\x1b[31m\n'"),
        (b'{"schema": 1}', "environment.device is missing"),
        (b'{"schema": 1, "environment": []}', "environment.device is missing"),
        (b'{"schema": 1, "environment": {"device": "cpu"}}', "environment.torch is missing"),
        (
            b'{"schema": 1, "environment": {"device": 3, "torch": "2.13.0"}}',
            "damaged, or from another version of crossent: environment.device is 3; allowed are cpu, cuda, cuda:N, "
            "xpu, xpu:N and mps; write a new report",
        ),
    ],
)
def test_a_file_that_is_no_report_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_json(tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_seed_below_0_is_damage_of_the_file(tmp_path):
    """A run with this seed would raise too, but with a message about an option that the user did not give."""
    made = report_on(TORCH)
    made.seed = -1
    made.write_json(tmp_path / "r")
    with pytest.raises(ValueError, match=r"r: damaged, .*: seed is -1; it must be 0 or more; write a new report$"):
        read_report(tmp_path / "r")


def test_the_counts_add_up():
    scalar = FORM_SUBJECTS["scalar"]
    made = report_on(
        TORCH, scalar, subject(off_by_a_percent), subject(raises("no"), "no"), chosen=[*CASES, *BAD_INPUTS]
    )
    for part in made.subjects:
        counts = part.counts
        passed = sum(
            not any(measured.failed for measured in outcome.checks.values()) for outcome in part.outcomes.values()
        )
        assert counts["ran"] == len(part.outcomes) == passed + counts["failed"] + counts["expected"]
        applied = len(CASES) + len(BAD_INPUTS) - counts["not_applicable"]
        assert counts["ran"] == applied
        failed = sum(tally.failed for tally in part.tallies.values())
        known = sum(tally.expected for tally in part.tallies.values())
        assert failed == sum(finding.expected is None for finding in part.findings)
        assert known == sum(finding.expected is not None for finding in part.findings)
    assert made.ran == sum(part.counts["ran"] for part in made.subjects)
    assert made.subjects[0].counts["expected"] == 5  # half_sure, and label_smoothing: three negative values and NaN
    assert made.subjects[1].counts["ran"] == sum(bad.build().input.dim() == 1 for bad in BAD_INPUTS)
    assert not made.ok


def part_of(*entries):
    """Return the report of a subject without findings. An entry has a case, a check and the result of the check."""
    made = SubjectReport("mine")
    for case, check, measured in entries:
        made.outcomes.setdefault(case, Outcome("float32", "")).checks[check] = measured
    return made


def test_a_tally_keeps_the_worst_case_and_leaves_known_failures_out_of_it():
    made = part_of(
        ("a", "loss", Measured(False, 1.0, 0.5, True, {"overflow": 2}, 7)),
        ("b", "loss", Measured(False, 9.0, 0.9, False, {"overflow": 1}, 5)),
        ("c", "loss", Measured(True, 99.0, 50.0, False, {}, 3)),
        ("d", "loss", Measured(True, INF, INF, False, {}, 1)),
    )
    made.findings = [Finding("mine", "loss", "c", "wrong", ""), Finding("mine", "loss", "d", "wrong", "", expected="y")]
    tally = made.tallies["loss", "float32"]
    assert (tally.ran, tally.failed, tally.expected, tally.vacuous, tally.elements) == (4, 1, 1, 1, 16)
    assert tally.not_judged == {"overflow": 3}
    assert (tally.case, tally.ulp, tally.ratio) == ("c", 99.0, 50.0)


def test_known_failures_do_not_count_for_grade_and_verdict():
    made = part_of(*((case, "loss", Measured(case == "b", 1.0, 0.5)) for case in "ab"))
    made.outcomes["a"].grade, made.outcomes["b"].grade = "A", "F"
    wrong = Finding("mine", "loss", "b", "wrong", "")
    made.findings = [wrong]
    assert made.grades == {"float32": "F"}
    assert Report({}, [made]).summary == "1 finding in 2 checked calls"
    made.findings = [dataclasses.replace(wrong, expected="known")]
    whole = Report({}, [made])
    assert made.grades == {"float32": "A"}
    assert made.counts == {"ran": 2, "failed": 0, "expected": 1, "not_applicable": 0}
    assert whole.ok
    assert not whole.findings
    assert whole.summary.endswith("except in 1 call with known failures")
    assert "mine has known failures on 1 case, for 1 reason; -v lists the reasons" in str(whole)
    assert "1 known failure: known; for example mine:loss:b" in shown(whole, verbosity=1)


def test_a_case_with_a_known_and_another_finding_has_failed():
    made = part_of(("a", "loss", Measured(True, 1.0, 2.0)), ("a", "gradient", Measured(True, 1.0, 2.0)))
    made.findings = [
        Finding("mine", "loss", "a", "wrong", "", expected="known"),
        Finding("mine", "gradient", "a", "wrong", ""),
    ]
    whole = Report(ENVIRONMENT, [made])
    assert made.counts == {"ran": 1, "failed": 1, "expected": 0, "not_applicable": 0}
    assert whole.to_json()["subjects"][0]["cases"]["a"]["outcome"] == "failed"
    assert [finding.check for finding in whole.findings] == ["gradient"]
    assert not whole.ok
    assert "mine has known failures on 1 case, for 1 reason; -v lists the reasons" in str(whole)


def test_one_judged_number_is_in_the_singular():
    made = part_of(("a", "loss", Measured(False, 0.1, 0.2, elements=1)))
    assert "1 case with 0 combinations of three options; 1 number judged\n" in str(Report(ENVIRONMENT, [made]))


def test_two_known_failures_of_a_case_are_one_call_with_known_failures():
    wrong = Measured(True, 1.0, 2.0, elements=1)
    made = part_of(("a", "loss", wrong), ("a", "gradient", wrong))
    made.findings = [Finding("mine", check, "a", "wrong", "", expected=check) for check in ("loss", "gradient")]
    whole = Report(ENVIRONMENT, [made])
    assert whole.summary.endswith("within its error bound, except in 1 call with known failures")
    assert "mine has known failures on 1 case, for 2 reasons; -v lists the reasons" in str(whole)


def test_the_first_line_has_level_and_seed_and_with_vv_the_whole_environment():
    made = Report({**ENVIRONMENT, "platform": "Linux"}, level="quick", seed=7)
    text = "crossent 0.1.0, torch 2.13.0, device cpu, {}level quick, seed 7"
    assert shown(made).splitlines()[0] == text.format("")
    assert shown(made, verbosity=2).splitlines()[0] == text.format("platform Linux, ")


def test_the_line_about_causes_that_are_not_shown_says_where_they_are():
    (part,) = report_on(subject(off_by_a_percent)).subjects
    count = f"1 more cause with {len(part.findings)} findings"
    assert plain_text(failures(part, 0)) == f"\n{count}: -v shows them, and report.findings in Python"


def test_a_check_that_zeros_would_pass_on_every_case_is_no_evidence_and_not_ok():
    made = part_of(*((case, "loss", Measured(False, 0.0, 0.0, vacuous=True)) for case in "ab"))
    whole = Report({}, [made])
    assert made.without_evidence == ["loss in float32"]
    assert not whole.ok
    assert "NO EVIDENCE for the loss in float32 of mine: a wrong result, such as zeros, would pass too" in str(whole)
    assert "some results have no evidence" in whole.summary
    made.outcomes["b"].checks["loss"] = Measured(False, 1.0, 0.5)
    assert whole.ok


def test_a_run_with_a_subject_on_which_nothing_ran_is_not_ok():
    """If such a run were ok, one right subject would hide that the other subject was not checked."""
    made = part_of(("a", "loss", Measured(False, 1.0, 0.5, elements=1)))
    whole = Report({}, [made, SubjectReport("other")])
    assert not whole.ok
    assert whole.summary == "1 call checked without findings, but no case ran on other"
    assert "NOT PROVEN: 1 call checked without findings, but no case ran on other" in str(whole)
    assert Report({}, [made]).ok
    whole.only = {"cases": ["a"]}  # the user chose the case, which is not applicable to the other subject
    assert whole.ok
    assert whole.summary == "1 call checked, every judged number within its error bound; no case ran on other"
    whole.subjects[1].declared = ["returns float32 for half precision"]
    assert "declared difference" not in whole.summary


def test_the_summary_names_a_subject_on_which_no_chosen_check_ran():
    """The checks `call` and `result` run in every run, and say nothing about the chosen check."""
    made, other = part_of(("a", "memory", Measured())), SubjectReport("other")
    other.outcomes["a"] = Outcome("float32", "", checks={"call": Measured()}, not_run={"memory": "stores the logits"})
    whole = Report({}, [made, other], only={"checks": ["memory"]})
    assert whole.summary == "2 calls checked, every check passed; no chosen check ran on other"
    other.outcomes["a"].checks["memory"] = Measured()
    assert whole.summary == "2 calls checked, every check passed"


def test_a_report_without_any_case_is_not_ok():
    assert Report({}).summary == "nothing ran"
    assert not Report({}).ok
    assert "nothing ran" in str(Report({}, [SubjectReport("mine")]))


def test_a_report_in_which_no_chosen_check_ran_is_not_ok():
    """For example, `--check compile --level quick` runs the check `call`, but not the chosen check."""
    made = SubjectReport("mine", {"a": Outcome("float32", 0, checks={"call": Measured(False)})})
    for chosen, left_out, ok in (
        (["memory"], ["memory"], False),
        (["memory", "call"], ["memory"], True),
        ([], ["memory"], True),
    ):
        report = Report({}, [made], only={"checks": chosen} if chosen else {"cases": ["a"]}, left_out=left_out)
        assert report.ok == ok
        said = "1 call checked, but no chosen check is planned for a case of level normal; choose a higher level"
        assert (report.summary == said) != ok
        assert (f"NOT PROVEN: {said}" in str(report)) != ok
        report.level = "thorough"
        assert report.summary.endswith(", but no chosen check is planned for a case of level thorough") != ok


def test_a_report_in_which_each_chosen_check_was_skipped_is_not_ok():
    """For example, the check `chunks` is skipped for a function without an argument for the chunk size."""
    skipped = {"chunks": "has no known argument for the chunk size"}
    made = SubjectReport("mine", {"a": Outcome("float32", 0, checks={"call": Measured(False)}, not_run=skipped)})
    for only in ({"checks": ["chunks"]}, {"checks": ["chunks"], "cases": ["a"]}):
        report = Report({}, [made], only=only)
        assert not report.ok
        assert report.summary == "1 call checked, but every chosen check was skipped; -vv lists the reasons"
        assert "not run, 1 case of chunks: mine has no known argument" in shown(report, verbosity=2)
    assert Report({}, [made], only={"checks": ["chunks", "call"]}).ok


def test_checks_that_were_skipped_on_as_many_cases_are_in_one_line():
    made = part_of(("a", "call", Measured(False)), ("b", "call", Measured(False)))
    for outcome in made.outcomes.values():
        outcome.not_run |= dict.fromkeys(["vmap", "trace"], "runs on ranks")
    assert "not run, 2 cases of each of vmap, trace: mine runs on ranks" in shown(Report({}, [made]), verbosity=2)


def test_a_check_that_a_declaration_skips_is_named_even_if_the_first_case_skips_it_for_another_reason():
    made = part_of(("a", "call", Measured(True)), ("b", "loss", Measured(False, 1.0, 0.5, elements=1)))
    made.outcomes["a"].not_run["gradient"] = "fails `call`, which the other checks need"
    made.outcomes["b"].not_run["gradient"] = "is declared without gradient"
    made.findings = [Finding("mine", "call", "a", "refused", "", expected="a known failure")]
    report = Report(ENVIRONMENT, [made])
    assert report.ok
    assert report.summary.endswith("; no gradient of mine was checked")
    assert "not checked: gradient, since mine is declared without gradient" in str(report)


@pytest.mark.parametrize("setting", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_the_report_as_text_has_no_colours(monkeypatch, setting):
    monkeypatch.setenv(setting, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b" not in str(Report(ENVIRONMENT, [part_of(("a", "loss", Measured(False, 1.0, 0.5)))]))


def test_a_share_above_the_bound_is_never_100_percent():
    assert [share(ratio) for ratio in (1.0, 1.0049999999999997, 1.005, 1.01)] == ["100%", ">100%", ">100%", "101%"]


# Like the message of torch.testing.assert_close, with the error bound in place of its tolerance. The second line is
# about the element with the largest share of its bound, which need not have the greatest difference.
MISMATCH = re.compile(
    r"Mismatched elements: \d+ / \d+ \(\d+\.\d%\)\n"
    r"Worst difference: \S+( at index \([\d, ]+\))? \(up to \S+ allowed\)\n"
    r"Relative difference there: \S+, \S+ ulp"
)


def test_the_message_of_a_wrong_number_is_like_the_message_of_torch_testing():
    with pytest.raises(AssertionError) as caught:
        torch.testing.assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    theirs = str(caught.value).splitlines()
    ours = next(f for f in report_on(subject(off_by_a_percent)).findings if f.numbers.index).message
    assert MISMATCH.fullmatch(ours)
    assert theirs[2].partition(":")[0] == ours.partition(":")[0]
    assert re.search(r"Greatest absolute difference: \S+ at index \(\d+,\) \(up to \S+ allowed\)", theirs[3])


def test_the_summary_of_a_run_without_numbers_does_not_say_that_they_are_within_their_bounds():
    one = "float32-7x5-normal-int64-mean"
    summary = crossent.check("formula", level="quick", checks="state", cases=one).summary
    assert summary == "1 call checked, every check passed"
    assert "every judged number" in crossent.check("formula", level="quick", checks="loss", cases=one).summary


@pytest.mark.parametrize(
    ("ratio", "error"),
    [
        (0.5, ""),
        (1.002, ", error just over 1 × the error bound"),
        (2.5, ", error 2.5 × the error bound"),
        (float("inf"), ""),
        (float("nan"), ""),
    ],
)
def test_the_headline_has_a_finite_error_above_the_error_bound(ratio, error):
    numbers = Numbers((0,), 1.0, "0x0", 0.0, 0.0, 1.0, ratio, ratio)
    assert Finding("mine", "loss", "case", "wrong", "", numbers=numbers).headline == f"mine: loss wrong on case{error}"
    assert Finding("mine", "call", "case", "refused", "").headline == "mine: call refused on case"


def test_every_kind_of_finding_has_its_text():
    def wrong_shape(*args, **options):
        return crossent.formula(*args, **options)[None]

    def of(loss, chosen=CASES[:1], name="mine"):
        return [str(finding) for finding in report_on(subject(loss, name), chosen=chosen).findings]

    loss, gradient = of(off_by_a_percent)
    number = r"-?\d\S*"
    for check, text in (("loss", loss), ("gradient", gradient)):
        first, *lines = text.splitlines()
        assert re.fullmatch(rf"mine: {check} wrong on {CASES[0].id}, error \d\S* × the error bound", first)
        assert MISMATCH.fullmatch("\n".join(line.removeprefix("  ") for line in lines[:3]))
        assert re.fullmatch(rf"  got     {number}  \(0x[0-9a-f]{{8}}\)", lines[3])
        assert re.fullmatch(rf"  exact   {number} ± {number}", lines[4])
        assert re.fullmatch(
            rf"  torch   {number}  \(0x[0-9a-f]{{8}}\), off by {number}, {number} of the subject's error bound",
            lines[5],
        )
        assert re.fullmatch(r"  call    logits float32 \(7, 5\), target int64 \(7,\), reduction='mean', .*", lines[6])
        assert lines[7:] == [f"  repeat  crossent repro mine:{check}:{CASES[0].id}"]
    (refused,) = of(raises("not today"))
    assert refused.splitlines()[:2] == [f"mine: call refused on {CASES[0].id}", "  ValueError: not today"]
    (changed,) = of(lambda x, y, **o: (writes_into_its_input(x.detach(), y, **o), crossent.formula(x * 0, y, **o))[1])[
        :1
    ]
    assert changed.splitlines()[:2] == [
        f"mine: arguments changed_input on {CASES[0].id}",
        "  the call wrote into input in the forward pass",
    ]
    (shape,) = of(wrong_shape)
    assert shape.splitlines()[1] == "  loss: got float32 with shape (1,); expected float32 with shape ()"
    bad = next(bad_input for bad_input in BAD_INPUTS if bad_input.id == "reduction_unknown")
    (accepted,) = of(lambda *args, **options: torch.tensor(3.0), [bad])
    assert accepted.splitlines()[:2] == [
        "mine: errors accepted on reduction_unknown",
        "  the call returned 3.0; should have raised ValueError",
    ]
    (wrong,) = of(lambda *args, **options: {}["average"], [bad])
    assert wrong.splitlines()[:2] == [
        "mine: errors wrong on reduction_unknown",
        "  the call raised KeyError: 'average'; should have raised ValueError",
    ]


def test_a_finding_of_every_subject_except_torch_has_the_result_of_torch():
    half_sure = CASES[-1:]
    assert all(not finding.torch for finding in report_on(TORCH, chosen=half_sure).subjects[0].findings)
    (zero, _) = report_on(subject(lambda *args, **options: TORCH.loss(*args, **options)), chosen=half_sure).findings
    assert zero.torch.startswith("0.0  (0x0000), off by 0.001, ")
    uint8 = [Case.of("float32-3x5x4-normal-uint8-mean")]
    for finding in report_on(subject(off_by_a_percent), chosen=uint8).findings:
        assert finding.torch.startswith("raises RuntimeError: ")


def shown(made, width=200, verbosity=0):
    console = Output(width=width, file=io.StringIO())
    console.show(made.render(verbosity))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_that_is_to_be_copied_is_wrapped_at_any_width(width):
    made = report_on(subject(off_by_a_percent, "a_subject_with_a_name_that_is_longer_than_most_names_of_subjects"))
    text = shown(made, width)
    repeated = re.findall(r"^  repeat  crossent repro (\S+)$", text, re.M)
    assert len(repeated) == 1
    for finding in made.findings:
        if finding.id in repeated:
            assert f"\n{finding}\n" in text
    assert set(repeated) <= {finding.id for finding in made.findings}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_keeps_its_digits_at_any_width(width):
    made = report_on(FORM_SUBJECTS["formula"], TORCH)
    text = shown(made, width, verbosity=2)
    assert "…" not in text
    for part in made.subjects:
        for (check, dtype), tally in part.tallies.items():
            if tally.ratio is not None:
                assert re.search(rf"^  {check} .*\b{tally.ran} +\d+%", text, re.M)
                assert re.search(rf"^  {check} {dtype} +\d+% +\S+ ulp +{tally.vacuous}  {tally.case}$", text, re.M)
    table = [line for line in text.splitlines() if line.startswith("  loss ") and " ulp " not in line]
    assert max(map(len, table)) <= max(width, Output.NARROWEST)
    if width == 200:  # a wide terminal shows each id in one line, so that users can copy the id
        assert all(tally.case in text for part in made.subjects for tally in part.tallies.values())


def test_each_v_adds_to_the_report_and_a_green_report_fits_one_screen():
    made = report_on(FORM_SUBJECTS["formula"], TORCH)
    rows = [len(shown(made, 80, verbosity).splitlines()) for verbosity in (-1, 0, 1, 2)]
    assert rows == sorted(set(rows))
    assert rows[0] == 1
    assert rows[1] <= 24
    assert all(f"\n  {check} " in shown(made, 80, 1) for part in made.subjects for check, _ in part.tallies)


HOSTILE = [
    "[bold]bold[/bold] [/] [red",
    "[link=file:///etc/passwd]x[/link]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b31m",
    "first line\nsecond line",
    "\n\nafter empty lines",
    "carriage\rreturn \x08\x08 \x00 null \u2028 \u202e reversed",
    "x" * 1_000_000,
    "\udc80 half a pair",
    ":smile: {braces} %s %(x)s $(rm) `x`",
    "",
]


@pytest.mark.parametrize("message", HOSTILE, ids=lambda message: ascii(message[:12]))
def test_the_message_of_an_exception_is_shown_as_text(tmp_path, message):
    made = report_on(subject(raises(message)), chosen=CASES[:1])
    (finding,) = made.findings
    assert finding.message.startswith("ValueError")
    assert finding.message.isprintable()
    assert len(finding.message) <= LONGEST_LINE
    text = shown(made, 80)
    assert f"\n  {finding.message}\n" in text
    assert finding.message in str(made)
    assert all(char.isprintable() for char in text if char != "\n")
    made.write_json(tmp_path / "r")
    assert find(read_json(tmp_path / "r"), finding.id)[0] == finding


def test_brackets_are_shown_as_they_are():
    (finding,) = report_on(subject(raises("[bold]bold[/bold] [/]")), chosen=CASES[:1]).findings
    assert finding.message == "ValueError: [bold]bold[/bold] [/]"
    made = SubjectReport("[bold]mine[/bold]", not_applicable={"[red]reason": 2})
    made.outcomes["[/]"] = Outcome("float32", "", checks={"loss": Measured(False, 1.0, 0.5)})
    text = str(Report({"[bold]": "[/]"}, [made], fixed=["[/fixed]"]))
    text += shown(Report({"[bold]": "[/]"}, [made]), verbosity=2)
    for message in ("[bold] [/]", "[bold]mine[/bold]", "[red]reason", "no longer happens: [/fixed]"):
        assert message in text


def test_an_exception_whose_message_raises_is_a_finding_too():
    class MuteError(Exception):
        def __str__(self):
            raise RuntimeError("not even this")

    def loss(*args, **options):
        raise MuteError

    (finding,) = report_on(subject(loss), chosen=CASES[:1]).findings
    assert finding.message == "MuteError: the message cannot be shown, because str() raises RuntimeError"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, y, **o: crossent.formula(x, y, **o).to(torch.complex128), "complex128"),
        (lambda x, y, **o: crossent.formula(x, y, **o).to("meta"), "meta"),
        (lambda x, y, **o: None, "NoneType"),
        (lambda x, y, **o: (o["weight"].resize_(0), crossent.formula(x, y, reduction=o["reduction"]))[1], "weight"),
    ],
    ids=["complex", "meta", "none", "resized"],
)
def test_a_result_of_any_type_does_not_end_the_run(loss, message):
    findings = report_on(subject(loss), chosen=CASES[:1]).findings
    assert any(message in finding.message for finding in findings), findings


def test_the_repeat_line_can_be_pasted_into_a_shell():
    for name in ("mine", "<lambda>", "file name.py:attr", "a;b", "$(x)"):
        (finding,) = report_on(subject(raises("no"), name), chosen=CASES[:1]).findings
        repeat = str(finding).splitlines()[-1]
        assert shlex.split(repeat) == ["repeat", "crossent", "repro", finding.id]


def test_a_report_shows_one_finding_of_each_sort_and_counts_the_others():
    made = report_on(subject(off_by_a_percent))
    text = str(made)
    assert text.count("repeat  crossent repro") == 1
    assert re.search(rf"\n{len(made.findings)} findings: loss \d, gradient \d, target_gradient 1\n", text)
