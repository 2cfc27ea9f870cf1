"""Messages repeat at most 200 characters of a value from a file or a user, and no control characters."""

import json
import re

import pytest
import torch
from support.error_lines import error_line
from support.running import check_on

from crossent.cases.case import Case
from crossent.cli import main
from crossent.words import LONGEST_VALUE, cut, quoted

LONG = "\x1b[31m" + "x" * 100_000
CASE = "float32-7x5-normal-int64-none-rows"
ID = f"formula:loss:{CASE}"


def refused(capsys, *arguments):
    """Return the line that a refused command prints."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    error_line(err)
    runs = re.findall("x+", err)
    assert max(map(len, runs), default=0) <= LONGEST_VALUE
    assert len(err) < 2_000
    return err


def test_a_value_in_a_message_is_printable_and_cut():
    assert quoted("mine") == "'mine'"
    assert quoted(3.0) == "3.0"
    assert quoted("\x1b[31m") == "'\\x1b[31m'"
    assert quoted("x" * 1000) == f"'{'x' * 199}… (802 more characters)"
    assert cut("\x1b" + "x" * 1000) == f"\\x1b{'x' * 196}… (804 more characters)"
    assert cut("x" * 200) == "x" * 200
    assert cut("x" * 201) == f"{'x' * 200}… (1 more character)"
    assert cut("\n" * 100) == "\\n" * 100
    assert cut("\n" * 200) == "\\n" * 100 + "… (100 more characters)"
    assert cut("\x1b" * 51) == "\\x1b" * 50 + "… (1 more character)"
    assert quoted(10**5000) == "a value of type int that cannot be printed"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert quoted(deep) == "a value of type list that cannot be printed"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", LONG),
        ("check", f"{LONG}.py:loss"),
        ("check", f"{LONG}:loss"),
        ("check", f"json:{LONG}"),
        ("check", f"json:loads.{LONG}"),
        ("check", LONG, "--jobs", "1"),
        ("check", "formula", "--dtype", LONG),
        ("check", "formula", f"--dtype={LONG}"),
        ("check", "formula", "--device", LONG),
        ("check", "formula", "--level", LONG),
        ("check", "formula", "--seed", LONG),
        ("check", "formula", "--without", LONG),
        ("check", "formula", "--contract", LONG),
        ("check", "formula", "--grade", LONG),
        ("check", "formula", "--jobs", LONG),
        ("check", "formula", "--timeout", LONG),
        ("check", "formula", "--max-findings", LONG),
        ("check", "formula", "--check", LONG),
        ("check", "formula", "--case", LONG),
        ("check", "formula", "--case", f"*{LONG}"),
        ("check", "formula", "--case", f"float32-{'7x' * 1000}5-normal-int64-none-{LONG}"),
        ("check", "formula", "--baseline", LONG),
        ("check", "formula", "--expected-findings", LONG),
        ("check", "formula", "--json", LONG),
        ("check", "formula", "--json", f"{LONG}/x"),
        ("check", "formula", f"--{LONG}"),
        ("diff", LONG, LONG),
        ("list", "checks", LONG),
        (LONG,),
        ("list", LONG),
        ("repro", LONG),
        ("repro", f"{LONG}:loss:{CASE}"),
        ("repro", f"formula:{LONG}:{CASE}"),
        ("repro", f"formula:loss:{LONG}"),
        ("repro", f"formula:{LONG}:{CASE}", "--passed"),
        ("repro", f"formula:loss:{LONG}", "--passed"),
        ("repro", ID, LONG),
        ("repro", ID, "--device", LONG),
        ("explain", "--logits", LONG, "--target", "0"),
        ("explain", "--logits", "1,2", "--target", LONG),
        ("explain", "--logits", "1,2", "--target", "9" * 1000),
    ],
    ids=lambda words: " ".join(word.replace(LONG, "…")[:25] for word in words),
)
def test_a_long_word_of_the_command_line_is_cut(arguments, capsys):
    assert "…" in refused(capsys, *arguments)


ENTRY = {"subject": "formula", "checks": ["loss"], "kind": "wrong", "cases": ["*"], "reason": "r"}


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "subject": LONG},
        {**ENTRY, "checks": [LONG]},
        {**ENTRY, "results": [LONG]},
        {**ENTRY, "cases": [LONG]},
        {**ENTRY, "torch": LONG},
        {**ENTRY, "sometimes": LONG},
        {**ENTRY, "reason": LONG, "cases": ["x"]},
        {**ENTRY, LONG: "x"},
        {"id": LONG, "reason": "r"},
        {"id": f"{LONG}:loss:{CASE}", "reason": "r"},
        {"id": f"formula:loss:{LONG}", "reason": "r"},
        {"id": ID, "subject": LONG, "reason": "r"},
    ],
    ids=range(12),
)
def test_a_long_value_of_expected_findings_is_cut(entry, tmp_path, capsys):
    lines = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in entry.items())
    (tmp_path / "expected.toml").write_text(f"[[finding]]\n{lines}\n")
    refused(capsys, "check", "formula", "--level", "quick", "--expected-findings", str(tmp_path / "expected.toml"))


@pytest.mark.parametrize(
    "text", [f"{json.dumps(LONG)} = 1\n", f"{LONG}", f"[{json.dumps(LONG)}]\n", "x = " + "[" * 10**5]
)
def test_a_long_key_of_expected_findings_is_cut(text, tmp_path, capsys):
    (tmp_path / "expected.toml").write_text(text)
    refused(capsys, "check", "formula", "--level", "quick", "--expected-findings", str(tmp_path / "expected.toml"))


@pytest.fixture(scope="module")
def document():
    def off(*args, **options):
        return torch.nn.functional.cross_entropy(*args, **options) * 1.01

    return check_on([Case.of(CASE)])(off).to_json()


def places(part, *before):
    """Yield each place of a document."""
    keys = part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
    for key in keys:
        yield (*before, key)
        yield from places(part[key], *before, key)


SHORTER = LONG[:1_000]
VALUES = [SHORTER, [SHORTER], 10**4000]


@pytest.mark.parametrize("value", VALUES, ids=["text", "list", "number"])
def test_a_long_value_of_a_report_is_cut(value, document, tmp_path, capsys):
    path = tmp_path / "report.json"
    (tmp_path / "right.json").write_text(json.dumps(document))
    finding, refusals = document["subjects"][0]["findings"][0]["id"], 0
    for place in {(place[-1], len(place)): place for place in places(document)}.values():
        other = json.loads(json.dumps(document))
        *before, last = place
        part = other
        for key in before:
            part = part[key]
        part[last] = value
        path.write_text(json.dumps(other))
        for command in (["diff", str(path), str(tmp_path / "right.json")], ["repro", finding, str(path)]):
            status = main(command)
            out, err = capsys.readouterr()
            assert status in (0, 1, 2), (place, err)
            if status == 2:
                refusals += 1
                assert out == ""
                assert err[:-1].isprintable(), place
                assert max(map(len, re.findall("x+", err)), default=0) <= LONGEST_VALUE, place
                assert len(err) < 2_000, place
    assert refusals > 50


def test_a_long_key_of_a_report_is_cut(document, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps({**document, LONG: 1}))
    refused(capsys, "diff", *[str(tmp_path / "report.json")] * 2)
    text = json.dumps(document)[:-1] + f", {json.dumps(LONG)}: 1, {json.dumps(LONG)}: 2}}"
    (tmp_path / "report.json").write_text(text)
    refused(capsys, "diff", *[str(tmp_path / "report.json")] * 2)
    (tmp_path / "report.json").write_text(LONG)
    refused(capsys, "repro", ID, str(tmp_path / "report.json"))
    (tmp_path / "report.json").write_text("9" * 100_000)
    refused(capsys, "repro", ID, str(tmp_path / "report.json"))
