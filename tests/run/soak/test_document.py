"""Read the report of a soak from a file. A file that no soak can have written is refused in one line."""

import copy
import json

import pytest
from support.subjects import off_by_a_percent

import crossent
from crossent.cli import WRONG_USE, main
from crossent.report.document import SCHEMA
from crossent.report.reader import read_report
from crossent.run.soak.document import read_either, soak_of
from crossent.run.soak.report import SOAK_SCHEMA

CHOSEN = {"cases": 8, "dtypes": ["float32", "float64"], "seed": 3}


@pytest.fixture(scope="module")
def shards():
    """Return the documents of two shards of a soak of a wrong loss and a form."""
    made = [crossent.soak(off_by_a_percent, "formula", **CHOSEN, shard=(number, 2)) for number in (1, 2)]
    return [report.to_json() for report in made]


def changed(document, *keys, value):
    """Return a copy of a document in which the entry at these keys has another value."""
    document = part = copy.deepcopy(document)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value(part[keys[-1]]) if callable(value) else value
    return document


def test_a_report_is_read_as_it_was_written(shards, tmp_path):
    report = soak_of(shards[0])
    assert report.to_json() == shards[0]
    report.write_json(tmp_path / "one.json")
    assert read_either(tmp_path / "one.json") == report
    assert [finding.command for finding in report.findings]


SUMS = ("subjects", 1, "checks")


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("cases",), 10, "cases, but the settings of the report give"),
        (("cases",), 0, "cases: got 0; allowed are whole numbers from 1 to "),
        (("cases",), "8", "cases is '8'; it must be an integer"),
        (("operation",), "addition", "operation: got 'addition'; allowed are cross_entropy, "),
        (("seed",), 4, "but the seed gives another"),
        (("seed",), -1, "seed: got -1; allowed are whole numbers from 0 to "),
        (("dtypes",), ["float64", "float32"], "dtypes: got"),
        (("dtypes",), ["float32"], "does not belong to this soak or shard"),
        (("shard",), [2, 2], "does not belong to this soak or shard"),
        (("shard",), [3, 2], "shard: got 3/2"),
        (("shard",), [True, 2], "shard: got True/2"),
        (("shard",), [1], r"shard: got \[1\]; allowed are null, and an array such as \[2, 8\]"),
        (("shard",), [1, 2, 3], r"shard: got \[1, 2, 3\]; allowed are null"),
        (("shard",), [], r"shard: got \[\]; allowed are null"),
        (("shard",), None, "cases, but the settings of the report give"),
        (("operation",), "addition", "addition"),
        (("promises", "contract"), "none", "contract: got 'none'"),
        (("promises", "without"), ["gravity"], "got the feature 'gravity'; allowed are the names of"),
        (("complete",), 1, "complete is 1"),
        (("subjects", 1, "name"), "off_by_a_percent", "two subjects have the name 'off_by_a_percent'"),
        ((*SUMS, "call", "float32", "ran"), lambda ran: 2 * ran, "cases, but the settings of the report give"),
        ((*SUMS, "loss", "float32", "ran"), lambda ran: 2 * ran, "counts of loss in float32 do not fit together"),
        ((*SUMS, "loss", "float32", "failed"), 1, "counts of loss in float32 do not fit together"),
        ((*SUMS, "loss", "float32", "expected"), 1, "do not fit the counts in `checks`"),
        ((*SUMS, "loss", "float32", "skipped"), -1, "counts of loss in float32 do not fit together"),
        ((*SUMS, "loss", "float32", "vacuous"), 99, "counts of loss in float32 do not fit together"),
        ((*SUMS, "loss", "float32", "elements"), 1.5, "it must be an integer"),
        ((*SUMS, "loss", "float32", "not_judged"), {"no reason": -1}, "counts of loss in float32 do not fit together"),
        (
            (*SUMS, "loss", "float32", "worst", "ratio"),
            1.5,
            "the error in the worst case of loss in float32 is 1.5 times its",
        ),
        ((*SUMS, "loss", "float32", "worst", "ratio"), "nan", "the worst case of loss in float32 is nan"),
        ((*SUMS, "loss", "float32", "worst", "ulp"), -1.0, "times its bound and -1.0 ulp; allowed are 0 or more"),
        ((*SUMS, "loss", "float32", "worst", "case"), "float32-7x5-normal-int64-sum", "but the seed gives another"),
        ((*SUMS, "loss", "float32", "worst", "number"), 1.5, "loss: worst: number is 1.5; it must be an int"),
        ((*SUMS, "loss", "float32", "worst", "case"), 1, "loss: worst: case is 1; it must be a str"),
        ((*SUMS, "loss", "float32", "worst", "ulp"), None, "loss: worst: ulp is None; it must be a number"),
        ((*SUMS, "loss", "float32", "worst", "ratio"), 10**400, "a float cannot be so large"),
        ((*SUMS, "loss", "float32", "worst", "number"), 7, "does not belong to this soak or shard"),
        ((*SUMS, "loss"), {"half": {}}, "missing"),
        ((*SUMS, "loss"), None, "checks: loss is None; it must be an object"),
        (("subjects", 0, "failures", 0, "count"), lambda count: count + 1, "findings? of kind|counts of"),
        (
            ("subjects", 0, "failures", 0, "kind"),
            "odd",
            "got findings of kind 'odd'; allowed are wrong, refused, ",
        ),
        (
            ("subjects", 0, "failures", 0, "first"),
            lambda first: first[:1],
            "of kind '.*', and a list of 1; a report lists",
        ),
        (("subjects", 0, "failures", 0, "first"), lambda first: first[::-1], "findings of kind"),
        (("subjects", 0, "failures", 0, "first", 0, "case"), "float32-5-flat-int64-sum", "the seed gives another"),
        (("subjects", 0, "failures", 0, "first", 0, "check"), "state", "is among the findings of"),
        (("subjects", 0, "failures", 0, "first", 0, "kind"), "nan", "of kind 'nan' is among .* and the kind 'wrong'"),
        (("subjects", 0, "failures", 0, "first", 0, "expected"), "a reason", "a known failure is listed, but"),
        (("subjects", 0, "failures"), [], "do not fit together"),
        (("subjects", 0, "known"), {"a reason": 1}, "do not fit the counts in `checks`"),
        (("subjects", 0, "not_applicable"), {"a reason": 0}, "a count in `known` or `not_applicable` is below 1"),
    ],
)
def test_a_forged_value_is_refused(shards, keys, value, reason):
    with pytest.raises(
        (ValueError, TypeError, LookupError, ArithmeticError), match=reason if reason != "missing" else None
    ):
        soak_of(changed(shards[0], *keys, value=value))


@pytest.mark.parametrize("key", ["cases", "promises", "shard", "complete", "environment", "subjects"])
def test_a_key_that_is_missing_or_unknown_is_refused(shards, key):
    document = {name: value for name, value in shards[0].items() if name != key}
    with pytest.raises(LookupError):
        soak_of(document)
    with pytest.raises(ValueError, match="more is not as a soak would have written it"):
        soak_of({**shards[0], "more": 1})


def line(capsys, *arguments):
    """Return the only line that a command prints for a file that it refuses."""
    status, captured = main(arguments), capsys.readouterr()
    assert (status, captured.out) == (WRONG_USE, "")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_command_refuses_a_damaged_file_in_one_line(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, document in enumerate(shards, 1):
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    text = json.dumps(shards[0])
    damaged = {
        "cut.json": (text[: len(text) // 2], "cut.json: not a report of crossent"),
        "other.json": (
            json.dumps({**shards[0], "schema": "soak-2"}),
            "schema 'soak-2'; allowed is schema 1 or soak-1",
        ),
        "twice.json": (json.dumps(changed(shards[0], "shard", value=[2, 2])), "does not belong to this soak or shard"),
        "more.json": (json.dumps(changed(shards[0], *SUMS, "call", "float32", "ran", value=8)), "the report give 8"),
        "key.json": (json.dumps({k: v for k, v in shards[0].items() if k != "cases"}), "the key 'cases' is missing"),
    }
    for name, (content, reason) in damaged.items():
        (tmp_path / name).write_text(content)
        assert reason in line(capsys, "merge", name, "2.json")
    assert "1.json: got shard 1/2 again, after 1.json" in line(capsys, "merge", "1.json", "1.json", "2.json")
    assert "1 of 2 is missing: 2/2" in line(capsys, "merge", "1.json")
    said = f"got a report with schema '{SOAK_SCHEMA}'; allowed is schema {SCHEMA} "
    writers = f"(`crossent check` writes schema {SCHEMA}, and `crossent soak` writes schema {SOAK_SCHEMA})"
    assert f"{said}{writers}\n" in line(capsys, "diff", "1.json", "2.json")
    with pytest.raises(ValueError, match="got a report with schema 'soak-1'"):
        read_report(tmp_path / "1.json")


@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("environment", "torch"), "9.9", "torch: '9.9' here"),
        (("environment", "cpu_capability"), "other", "set ATEN_CPU_CAPABILITY"),
        (("expected_findings",), "00000000", "list of known failures: "),
        (("promises", "grade"), "B", "grade: 'B' here"),
        (("subjects", 1, "code"), "12345678", "code of formula: "),
        (("subjects", 1, "contract"), "torch", "contract of formula: 'torch' here"),
    ],
)
def test_shards_of_two_soaks_are_refused(shards, keys, value, what):
    other = soak_of(changed(shards[1], *keys, value=value))
    with pytest.raises(ValueError, match=f"report 2: got a shard of another run; .*{what}"):
        crossent.merge(soak_of(shards[0]), other)


def test_threads_and_kernel_may_differ(shards):
    other = changed(shards[1], "environment", "threads", value="99")
    merged = crossent.merge(soak_of(other), soak_of(shards[0]))
    assert merged.to_json() == crossent.soak(off_by_a_percent, "formula", **CHOSEN).to_json()


def test_reports_of_check_and_of_soak_are_not_merged(shards):
    of_check = crossent.check("formula", dtypes="float64", level="quick", checks="loss", cases="*3x5x4*", shard=(1, 2))
    with pytest.raises(ValueError, match=r"report 2: a report of `crossent check`, but report 1 is of `crossent soak`"):
        crossent.merge(soak_of(shards[0]), of_check)
    early = [crossent.soak("formula", cases=2, dtypes="float64", shard=(number, 2)) for number in (1, 2)]
    early[1].complete = False
    with pytest.raises(ValueError, match="report 2: shard 2/2 ended early, after 1 call; run this shard again"):
        crossent.merge(*early)
    whole = soak_of({**crossent.soak("formula", cases=1, dtypes="float64").to_json()})
    with pytest.raises(
        ValueError, match="got the report of a whole run; give reports of shards, from `crossent soak --shard I/N"
    ):
        crossent.merge(whole)


@pytest.mark.parametrize("name", ["crossent", "torch", "python"])
def test_a_version_that_the_text_shows_is_required(shards, name):
    environment = {key: value for key, value in shards[0]["environment"].items() if key != name}
    with pytest.raises(KeyError, match=name):
        soak_of({**shards[0], "environment": environment})


def test_a_huge_number_of_shards_takes_no_time_and_no_memory():
    whole = crossent.soak("formula", cases=1, dtypes="float64", shard=(1, 2)).to_json()
    huge = {**whole, "shard": [1, 10**18]}
    with pytest.raises(ValueError, match=r"shards: 999999999999999999 of 1000000000000000000 are missing: 2/.* …; run"):
        crossent.merge(soak_of(huge))


def test_a_file_cannot_control_the_terminal(shards):
    evil = "x\x1b[31m"
    document = changed(shards[0], "subjects", 1, "name", value=evil)
    document = changed(document, "environment", "torch", value=evil)
    for key in ("message", "call", "torch", "bits", "versus"):
        document = changed(document, "subjects", 0, "failures", 0, "first", 0, key, value=evil)
    text = str(soak_of(document))
    assert "\x1b" not in text
    assert r"x\x1b[31m" in text


def test_a_soak_in_which_no_loss_was_compared_has_no_evidence():
    whole = crossent.soak("formula", cases=4, dtypes="float64").to_json()
    assert soak_of(whole).ok
    del whole["subjects"][0]["checks"]["loss"]
    report = soak_of(whole)
    assert not report.ok
    assert "NO EVIDENCE for the loss in float64 of formula" in str(report)
