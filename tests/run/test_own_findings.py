"""A user's file of known failures: matching findings are shown and do not fail the run, and mistakes raise an error."""

import pytest
from support.error_lines import error_line
from support.running import check_on
from support.subjects import off_in_the_loss

import crossent
from crossent.cli import WRONG_USE, main
from crossent.report.text import plain_text

TABLE = """
[[finding]]
subject = "off*"
checks = ["loss", "sign"]
kind = "wrong"
cases = ["*"]
reason = "a percent too much"
"""


def torch_like(input, target, **options):
    return crossent.formula(input, target, **options) * 1.01


@pytest.fixture
def run(tmp_path):
    few = [crossent.cases.case.Case("float64"), crossent.cases.case.Case("float64", reduction="sum")]

    def check(text, *subjects, **options):
        (tmp_path / "known.toml").write_text(text)
        arguments = {"level": "quick", "dtypes": ["float64"], "expected_findings": tmp_path / "known.toml"}
        return check_on(few)(*subjects, **{**arguments, **options})

    return check


def test_a_finding_that_a_pattern_describes_is_expected(run):
    report = run(TABLE, off_in_the_loss)
    (part,) = report.subjects
    assert {finding.expected for finding in part.findings} == {"a percent too much"}
    assert report.ok
    assert "2 known failures: a percent too much" in plain_text(report.render(1))


def test_a_finding_is_described_by_its_id_alone(run):
    (_, one) = run("", off_in_the_loss).findings
    report = run(f'[[finding]]\nid = "{one.id}"\nreason = "known"', off_in_the_loss)
    assert [finding.expected for finding in report.subjects[0].findings] == [None, "known"]
    assert not report.ok


def test_a_known_failure_that_no_longer_happens_is_reported(run):
    report = run(TABLE.replace("off*", "*"), "formula")
    assert report.fixed == ["a percent too much"]
    assert "no longer happens: a percent too much" in str(report)


def test_a_known_failure_of_another_torch_does_not_apply(run):
    for line in ('torch = "<1"', 'device = "cuda*"'):
        report = run(TABLE.replace('"off*"', '"nobody"') + line, off_in_the_loss)
        assert len(report.findings) == 2
        assert report.fixed == []


def test_a_known_failure_of_torch_is_no_known_failure_of_another_subject(run, monkeypatch):
    entry = crossent.report.expected_findings.ExpectedFinding("torch*", ("loss",), "wrong", ("*",), "known of torch")
    monkeypatch.setattr("crossent.report.expected_findings.torch_list", lambda _: [entry])
    (part,) = run("", torch_like).subjects
    assert part.findings
    assert {finding.expected for finding in part.findings} == {None}


@pytest.mark.parametrize(
    ("text", "text_of_error"),
    [
        (
            TABLE.replace("off*", "of"),
            "entry with the reason 'a percent too much': no subject matches 'of'; this run has off_in_the_loss",
        ),
        (
            TABLE.replace('"loss"', '"lost"'),
            "entry with the reason 'a percent too much': got check 'lost'; allowed are call, result,",
        ),
        (
            TABLE.replace('["*"]', '["float63*"]'),
            "no case matches 'float63*'; see `crossent list cases --level thorough --operation cross_entropy`",
        ),
        (
            TABLE.replace('"wrong"', '"wrnog"'),
            "finding 1: kind: got 'wrnog'; allowed are wrong, refused, accepted, changed_input,",
        ),
        (
            "[[finding]]\nid = 'a:loss:c'\nkind = 'crash'\nreason = 'c'",
            "finding 1: kind: got 'crash'; allowed are wrong, refused,",
        ),
        (TABLE.replace("kind", "sort"), "finding 1: got the key 'sort'; allowed are subject, checks,"),
        ("[[finding]]\nid = 'a:b'\nreason = 'c'", "finding 1: id: got 'a:b'; allowed is SUBJECT:CHECK:CASE"),
        ("[[finding]]\nid = 3\nreason = 'c'", "finding 1: id: got 3; allowed is SUBJECT:CHECK:CASE"),
        ("[[finding]]\nid = 'a:loss:c'", "finding 1: reason is missing"),
        (
            "[[finding]]\nid = 'a:loss:c'\ncases = ['x']\nreason = 'c'",
            "got both id and cases; remove one of them",
        ),
        ("[[finding]", "known.toml: not TOML: Expected"),
    ],
)
def test_a_wrong_list_is_an_error_of_one_line_before_the_run(run, tmp_path, monkeypatch, text, text_of_error):
    monkeypatch.setattr("crossent.run.parallel.run", None)  # the run would raise an error
    with pytest.raises(ValueError, match=r"^expected_findings: ") as caught:
        run(text, off_in_the_loss)
    assert text_of_error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_entry_may_be_about_cases_of_another_dtype(run):
    assert run(TABLE.replace('["*"]', '["class_negative"]'), off_in_the_loss).findings  # the finding is in float32


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_list_that_cannot_be_read_is_wrong_use(tmp_path, capsys, name):
    path = str(tmp_path / name)
    assert main(["check", "formula", "--expected-findings", path]) == WRONG_USE
    out, err = capsys.readouterr()
    assert out == ""
    line = error_line(err).rstrip("\n")
    assert line.startswith(f"crossent: --expected-findings: got {path!r}; this file cannot be read: ")
    assert line.endswith("; give a TOML file of known failures")
