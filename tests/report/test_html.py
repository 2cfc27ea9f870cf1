"""The HTML page of a report: its content, its safety against markup in names, and its behaviour in a browser."""

import base64
import hashlib
import html
import html.parser
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.report.document import Shard
from crossent.report.findings import Finding, Measured, Numbers, Outcome, ResultSummary, SubjectReport
from crossent.report.html import (
    LARGEST_NOTEBOOK,
    LONGEST_COMMAND,
    MOST_CARDS,
    MOST_FURTHER,
    MOST_FURTHER_OF_ALL,
    MOST_LINES,
    OPEN,
    linked,
    page,
)
from crossent.report.moves.diff import diff
from crossent.report.moves.html import page as moves_page
from crossent.report.moves.rules import Kind
from crossent.report.plots import Scale, scale, strips
from crossent.report.reader import read_report
from crossent.report.report import Report

ENVIRONMENT = {"crossent": "0.1.0", "torch": "2.13.0", "device": "cpu"}
CASE = "float32-7x5-normal-int64-mean"
ISSUE = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull|discussions)/[0-9]+", re.ASCII)
HOSTILE = [
    "<script>document.title = 'obeyed'</script>",
    "</pre></style></script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "{{ report }} {% raw %} {# #}",
    "&lt;b&gt; &amp; &#x3c;",
    "<!-- ]]> --> <![CDATA[",
    "\x1b[31mred\x07 \x00 null \u2028 \u202e reversed \u200f",
    "\u05d0\u05d1\u05d2 \u0627\u0628",
    "\udc80 half a pair",
    "two\nlines\r\nand three",
    "x" * 100_000,
    "x " * 50_000,
    "",
]


def report_with(text, mine="mine"):
    """Return a report with `text` in each field that a subject or a file can fill."""
    numbers = Numbers((1,), 0.5, text, 0.25, 1e-18, 1e-7, 2e6, 2.5e6)
    findings = [
        Finding(mine, "loss", text, "wrong", text, text, numbers, text, repeat=text),
        Finding(mine, "call", text, "refused", text, text),
        Finding(mine, "call", text, "refused", text, text),
        Finding(mine, "gradient", text, "wrong", text, expected=text),
    ]
    part = SubjectReport(mine, findings=findings, not_applicable={text: 1})
    part.outcomes[CASE] = Outcome("float32", "", checks={"loss": Measured(True, 2e6, 2.5e6)})
    part.outcomes[text] = Outcome("float32", "", checks={"call": Measured(True)}, not_run={"loss": text})
    return Report(ENVIRONMENT | {"platform": text}, [part], fixed=[text], left_out=["large"], level="quick")


def measured_report(*measured, **options):
    part = SubjectReport("mine", {CASE: Outcome("float32", "", grade="A", checks=dict(measured))})
    return Report(ENVIRONMENT, [part], **options)


class Document(html.parser.HTMLParser):
    """The `tags` of a page with their attributes, and its `text`. Every opened tag must be closed."""

    VOID = ("meta", "base", "br", "rect", "line", "use", "circle", "path")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))
        self.text += " " if tag in ("td", "th", "dt", "dd") else ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:12]))
@pytest.mark.parametrize("everywhere", [False, True], ids=["in texts", "also in the name"])
def test_hostile_text_changes_no_tag_and_no_attribute_except_title_and_aria_label(text, everywhere):
    def shape(made):
        return [
            (tag, [(k, v) for k, v in attributes if k not in ("title", "aria-label")]) for tag, attributes in made.tags
        ]

    plain, hostile = (
        Document(page(report_with("plain"))),
        Document(page(report_with(text, text if everywhere else "mine"))),
    )
    if 0 < len(text) < LONGEST_COMMAND:  # for other texts, a row is missing, or a note replaces a command
        assert shape(hostile) == shape(plain)
    assert hostile.open == []
    assert all(char.isprintable() or char == "\n" for char in hostile.text)
    assert len(hostile.text) < 60_000
    if text.isprintable() and len(text) < 100:
        assert text in hostile.text


def test_a_page_loads_nothing_from_a_network_and_allows_only_its_own_style_and_script():
    text = page(report_with("https://example.org/x.js"))
    document = Document(text)
    for tag, attributes in document.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "video", "audio", "source")
        for name, value in attributes:
            assert name not in ("src", "srcset", "style", "action")
            assert not name.startswith("on")
            assert name != "href" or value.startswith("#") or ISSUE.fullmatch(value)
    policies = [dict(a)["content"] for t, a in document.tags if dict(a).get("http-equiv") == "Content-Security-Policy"]
    (policy,) = policies
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        own = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{own}';" in policy
    assert policy.startswith("default-src 'none';")
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert "url(" not in text
    assert "@import" not in text


def test_the_same_report_gives_the_same_page():
    assert page(report_with("x")) == page(report_with("x"))


def test_every_link_within_the_page_has_a_target():
    document = Document(page(report_with("x")))
    ids = [dict(attributes)["id"] for _, attributes in document.tags if "id" in dict(attributes)]
    addresses = [dict(attributes).get("href", "") for _, attributes in document.tags]
    links = [address[1:] for address in addresses if address.startswith("#")]
    assert len(set(ids)) == len(ids)
    assert links
    assert set(links) <= set(ids)


LOSS = ("loss", Measured(False, 1.0, 0.5, False, {}, 7))
VACUOUS = ("loss", Measured(False, 0.0, 0.0, True, {"overflow": 2}, 7))


@pytest.mark.parametrize(
    ("report", "headline"),
    [
        (measured_report(LOSS), "Passed"),
        (report_with("x"), "Failed"),
        (measured_report(VACUOUS), "Not proven"),
        (Report(ENVIRONMENT), "Nothing ran"),
        (Report({}), "Nothing ran"),
        (Report(ENVIRONMENT, [SubjectReport("mine")]), "Nothing ran"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_verdict_comes_first(report, headline):
    text = Document(page(report)).text
    assert text.split()[: len(headline.split())] == f"{headline}:".split()  # the title
    body = text[text.index("Cross-entropy tested against the exact value") :]
    assert body.split("value", 1)[1].split()[: len(headline.split())] == headline.split()


def test_the_gaps_of_the_verdict_stand_next_to_it():
    made = measured_report(VACUOUS, level="quick", left_out=["large", "compile"])
    made.subjects[0].not_applicable["takes one row only"] = 1030
    made.subjects[0].outcomes[CASE].not_run = {"stream": "needs a CUDA device", "vmap": "needs a CUDA device"}
    made.subjects.append(SubjectReport("other"))
    text = Document(page(made)).text
    top = " ".join(text[: text.index("Subjects")].split())
    for words in (
        "Not covered by this verdict",
        "0 cases ran on other this subject was not checked",
        "No evidence for the loss in float32 of mine",
        "Some combinations of three options level quick covers only combinations of two",
        "2 checks planned for no case",
        "2 skipped checks counted for each case",
        "1,030 cases not applicable counted for each subject",
        "1 of 1 comparison without evidence a wrong result, such as zeros, would pass too",
        "2 of 7 numbers not judged without an error bound",
    ):
        assert words in top
    below = " ".join(text[text.index("What did not run, and why") :].split())
    for words in (
        "Not run at level quick: large, compile",
        "1,030 cases not applicable takes one row only",
        "2 skipped checks (stream 1, vmap 1) needs a CUDA device",
        "2 numbers not judged overflow",
    ):
        assert words in below


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"only": {"checks": ["loss"], "cases": [CASE]}}, ["only the checks loss", f"only the cases {CASE}"]),
        ({"shard": Shard(2, 8, {}, 40, {CASE: 3}, {})}, ["shard 2/8, with 1 of 40 cases"]),
    ],
    ids=["chosen", "shard"],
)
def test_the_page_of_a_part_of_a_run_says_so_and_asks_for_no_evidence(part, said):
    made = measured_report(VACUOUS, level="normal", **part)
    for text in (page(made), Frame(made._repr_html_()).frames[0][1]["srcdoc"]):
        shown = " ".join(Document(text).text.split())
        assert shown.startswith("Passed:")
        assert shown.index("Not covered by this verdict Only a part ran") < shown.index("1 of 1 comparison")
        assert all(f"Only a part ran {words}" in shown for words in said)
        assert "No evidence for" not in shown
        assert "not proven" not in shown
        assert "1 comparison that a wrong result would fail" not in shown


def test_the_page_of_a_run_that_ended_early_says_so_and_no_subject_passed():
    made = measured_report(LOSS, planned=9)
    for text in (page(made), Frame(made._repr_html_()).frames[0][1]["srcdoc"]):
        shown = " ".join(Document(text).text.split())
        assert "Not covered by this verdict Only a part ran the run ended after 1 of 9 cases" in shown
        assert "every check ran" not in shown.lower()
        assert "Every check of this run ran" not in shown
    assert re.search(r"mine not proven \d", " ".join(Document(page(made)).text.split()))


def test_the_page_counts_one_comparison_in_the_singular():
    shown = " ".join(Document(page(measured_report(("loss", Measured(False, 1.0, 0.5, False, {}, 1))))).text.split())
    assert "1 comparison that a wrong result would fail of 1" in shown
    assert "1 number judged of losses" in shown


def cells(report):
    """Return the cells of the heat map: the check, the colour and the text."""
    found = re.findall(r'<tr><th scope="row">(\w+)</th>(<td class="cell .*?)</tr>', page(report), re.S)
    return {check: re.findall(r'class="cell (\w+)"[^>]*>(.*?)</td>', row, re.S) for check, row in found}


def test_a_cell_says_the_worst_share_and_how_much_of_it_is_evidence():
    made = measured_report(LOSS)
    made.subjects[0].outcomes["b"] = Outcome("float32", "", checks=dict([VACUOUS]))
    half = ("step2", "50% <small>1/2</small>")
    assert cells(made) == {"loss": [half]}
    made.subjects[0].outcomes["c"] = Outcome("float16", "", checks={"loss": Measured(True, 9.0, 12.0)})
    made.subjects[0].findings = [Finding("mine", "loss", "c", "wrong", "")]
    assert cells(made) == {"loss": [("failed", "✗ &gt;10× <small>1 failed</small> <small>of 1</small>"), half]}


@pytest.mark.parametrize(
    ("measured", "not_run", "expected", "cell"),
    [
        (Measured(), {}, None, ("passed", "passed <small>1</small>")),
        (None, {"loss": "skipped"}, None, ("missing", "not run <small>1</small>")),
        (Measured(), {"loss": "skipped"}, None, ("passed", "passed <small>1</small> <small>1 not run</small>")),
        (Measured(False, 0.0, 0.0, True), {}, None, ("none", "no evidence <small>0/1</small>")),
        (Measured(False, 1.0, 1.0), {}, None, ("step4", "100% <small>1/1</small>")),
        (Measured(True, 9.0, 2.0), {}, "known", ("known", "known <small>1</small>")),
        (Measured(True, float("inf"), float("inf")), {}, None, ("failed", "✗ &gt;10× <small>1 failed</small>")),
        (Measured(True), {}, None, ("failed", "✗ <small>1 failed</small> <small>of 1</small>")),
    ],
)
def test_every_kind_of_cell_has_its_colour_and_its_words(measured, not_run, expected, cell):
    made = measured_report(*([("loss", measured)] if measured else []))
    made.subjects[0].outcomes[CASE].not_run = not_run
    if measured and measured.failed:
        made.subjects[0].findings = [Finding("mine", "loss", CASE, "wrong", "", expected=expected)]
    ((kind, says),) = cells(made)["loss"]
    assert kind == cell[0]
    assert says.startswith(cell[1])


def test_a_command_is_shown_whole_and_repeats_its_finding():
    for name in ("mine", "<lambda>", 'a;b\'s "c"', "$(x) `y`"):
        finding = Finding(name, "loss", CASE, "wrong", "x")
        part = SubjectReport(name, {CASE: Outcome("float32", "")}, [finding])
        (code,) = re.findall(r'class="command"><code>(.*?)</code>', page(Report(ENVIRONMENT, [part])), re.S)
        assert shlex.split(html.unescape(code)) == ["crossent", "repro", finding.id]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_command_quotes_control_characters_for_bash():
    finding = Finding("a\x1b[31m\\'\u202e\x80\n", "loss", CASE, "wrong", "x")
    assert finding.command.isprintable()
    line = finding.command.replace("crossent repro", "printf %s")
    utf8 = {**os.environ, "LC_ALL": "C.UTF-8"}
    assert subprocess.run(["bash", "-c", line], capture_output=True, env=utf8, check=True).stdout.decode() == finding.id


def failing(*causes):
    """Return a subject's report with these causes: each is a number of findings, their check and their message."""
    part = SubjectReport("mine")
    for count, check, message in causes:
        for _ in range(count):
            case = Case.of(CASE).seeded(len(part.outcomes)).id
            part.outcomes[case] = Outcome("float32", "", checks={check: Measured(True)})
            part.findings.append(Finding("mine", check, case, "wrong", message))
    return part


def page_text(report):
    """Return the text of a report's page, with single spaces in place of all white space."""
    return " ".join(Document(page(report)).text.split())


def test_a_cause_has_its_counts_what_its_cases_share_and_its_example_in_full():
    part = SubjectReport("mine")
    for seed in range(6):
        case = Case("float32", values="wide" if seed < 3 else "normal", seed=seed).id
        checks = {"loss": Measured(seed < 3, 9.0, 1e4), "gradient": Measured(seed < 3)}
        part.outcomes[case] = Outcome("float32", "", checks=checks)
        if seed < 3:
            numbers = Numbers((1,), 0.5, "0x3f000000", 0.25, 1e-18, 1e-7, 2e6, 1e4)
            part.findings.append(Finding("mine", "loss", case, "wrong", "far off", "the call", numbers))
            part.findings.append(Finding("mine", "gradient", case, "wrong", "the sign"))
    text = page_text(Report(ENVIRONMENT, [part]))
    assert "6 findings : loss 3, gradient 3" in text.replace("findings:", "findings :")
    assert "where logits of the kind wide: 3 of 3 failing cases, no passing case" in text
    (example,) = {finding.case for finding in part.findings if f"loss wrong on {finding.case} far off" in text}
    assert f"crossent repro mine:loss:{example}" in text
    assert "5 further findings" in text


def test_no_cause_is_left_out():
    counts = [152, 2, 3, *range(4, 2 + MOST_CARDS + MOST_LINES)]
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(at)) for at in range(len(counts))]
    causes = [(count, "loss", f"about {word}") for count, word in zip(counts, words, strict=True)]
    text = page_text(Report(ENVIRONMENT, [failing(*causes)]))
    for count in {*counts} - {2}:
        assert re.search(rf"\b{count} findings: loss {count}\b", text), count
    assert f"{MOST_LINES} further causes, and still smaller causes by check" in text
    assert "2 findings: loss wrong" in text


def test_refused_calls_and_accepted_bad_inputs_are_shown_by_feature_with_the_option_that_declares_them():
    part = SubjectReport("mine", order=["call", "errors"])
    for seed in range(152):
        case = Case("float32", target="probabilities", seed=seed).id
        part.outcomes[case] = Outcome("float32", "", checks={"call": Measured(True)})
        part.findings.append(Finding("mine", "call", case, "refused", "TypeError: indices <only>"))
        part.outcomes[Case("float32", seed=seed).id] = Outcome("float32", "", checks={"call": Measured()})
    part.findings.append(Finding("mine", "errors", "class_beyond_the_last", "accepted", "returned 0"))
    text = page_text(Report(ENVIRONMENT, [part]))
    assert "A missing feature would explain 153 findings" in text
    assert "--without probability_target index_errors" in text
    assert "probability_target: 152 calls raised with class probabilities TypeError: indices <only>" in text
    assert "index_errors: 1 bad input accepted returned 0" in text
    assert "151 further findings" in text


def test_a_page_of_many_findings_shows_some_of_each_cause_and_counts_the_others():
    words = ["".join(chr(ord("a") + int(digit)) for digit in str(at)) for at in range(500)]
    causes = [(2_000, "loss", "the same"), *((1, "call", f"{word} {'x' * 400}") for word in words)]
    text = page(Report(ENVIRONMENT, [failing(*causes)] * 6))
    shown = " ".join(Document(text).text.split())
    assert f"… and {2_000 - 1 - MOST_FURTHER_OF_ALL // MOST_CARDS:,} that this page does not show" in shown
    others = 500 - MOST_CARDS - MOST_LINES + 1
    assert f"{others:,} findings: call wrong" in shown
    assert len(text.encode()) < 500_000
    alone = page_text(Report(ENVIRONMENT, [failing((2_000, "loss", "the same"))]))
    assert f"… and {2_000 - 1 - MOST_FURTHER:,} that this page does not show" in alone


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (
            "see pytorch/pytorch#123, and https://github.com/a/b.c/pull/4.",
            ["pytorch/pytorch/issues/123", "a/b.c/pull/4"],
        ),
        ("(https://github.com/a/b/discussions/5)", ["a/b/discussions/5"]),
        ("<b>a/b#1</b>", ["a/b/issues/1"]),
        ("pytorch#123 and #4", []),
        ("http://github.com/a/b/issues/1", []),
        ("javascript:alert(1)//a/b#1", []),
        ("javascript:a/b#1", []),
        ("https://github.com.example.org/a/b/issues/1", []),
        ("https://github.com@example.org/a/b/issues/1", []),
        ("https://example.org/a/b#1", []),
        ("https://example.org/https://github.com/a/b/issues/1", []),
        ("https://github.com/../x/issues/1", []),
        ("a/b#1x and a/b#1/../..", []),
        ('https://github.com/a/b/issues/1" onclick="alert(1)', ["a/b/issues/1"]),
        ("x" * 990 + " a/b#123456789", []),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_issues_are_links_and_nothing_else_is(text, addresses):
    document = Document(str(linked(text)))
    assert document.tags == [("a", [("href", f"https://github.com/{address}")]) for address in addresses]
    assert document.text == (text if len(text) < 1000 else f"{text[:999]}…")


class OnceDifferentiable(torch.autograd.Function):
    """The mean cross-entropy, with a gradient that autograd cannot differentiate again."""

    @staticmethod
    def forward(context, logits, target):
        context.save_for_backward(logits, target)
        return torch.nn.functional.cross_entropy(logits, target)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, upstream):
        logits, target = context.saved_tensors
        return upstream * (logits.softmax(1) - torch.nn.functional.one_hot(target, logits.shape[1])) / len(target), None


def test_a_page_from_a_file_is_the_page_of_the_run(tmp_path):
    """The commands are left out, because a file does not say where the user's code is."""

    def loss(input, target, reduction="mean"):
        return OnceDifferentiable.apply(input, target)

    cases = [f"float64-{rows}x5-normal-int64-mean" for rows in (5, 7)]
    report = crossent.check(loss, level="normal", cases=cases, checks=["gradient", "double_backward"])
    for part in report.subjects:
        part.findings = [replace(finding, repeat="") for finding in part.findings]
    report.write_json(tmp_path / "report.json")
    assert "<code>--without double_backward" in page(report)
    assert page(read_report(tmp_path / "report.json")) == page(report)


def test_the_issues_of_reasons_and_of_the_corpus_are_links():
    trigger = "tinyengine-107/bfloat16-7x5-negative_offset-int64-mean"
    outcomes = {CASE: Outcome("float32", ""), trigger: Outcome("bfloat16", "", checks={"loss": Measured(True)})}
    part = SubjectReport("mine", outcomes, not_applicable={"see a/b#1": 2})
    part.findings = [
        Finding("mine", "loss", trigger, "wrong", "c/d#1"),
        Finding("mine", "loss", CASE, "wrong", "", expected="known (https://github.com/a/b/issues/2)"),
    ]
    text = page(Report(ENVIRONMENT, [part], fixed=["a/b#3"]))
    links = set(re.findall(r'href="(https:[^"]*)"', text))
    assert links >= {f"https://github.com/a/b/issues/{at}" for at in (1, 2, 3)}
    assert "https://github.com/mit-han-lab/tinyengine/issues/107" in links
    assert "c/d/issues" not in text  # only reasons and sentences of the corpus have links, and "c/d#1" is a message


class Frame(html.parser.HTMLParser):
    """The tags in the output for a notebook, with their attributes. Text outside of tags is an error."""

    def __init__(self, text):
        super().__init__()
        self.frames = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.frames.append((tag, dict(attributes)))

    def handle_data(self, data):
        raise AssertionError(data)


@pytest.mark.parametrize("text", ["plain", *HOSTILE], ids=lambda text: ascii(text[:12]))
def test_a_notebook_shows_the_head_of_the_page_in_a_frame_without_scripts(text):
    ((tag, attributes),) = Frame(report_with(text, text)._repr_html_()).frames
    assert tag == "iframe"
    assert "allow-scripts" not in attributes["sandbox"]
    document = Document(attributes["srcdoc"])
    assert document.open == []
    assert "script" not in [tag for tag, _ in document.tags]
    shown = " ".join(document.text.split())
    order = ["Failed", "Not covered by this verdict", "2 findings:", "Errors by check"]
    places = [shown.index(word) for word in order]
    assert places == sorted(places)


def test_a_notebook_says_how_many_causes_it_does_not_show():
    causes = [(2, "loss", f"about {chr(ord('a') + at)}") for at in range(26)]
    (_, attributes), *_ = Frame(Report(ENVIRONMENT, [failing(*causes)])._repr_html_()).frames
    assert f"… and {26 - OPEN} further causes." in Document(attributes["srcdoc"]).text


def test_the_output_for_a_notebook_is_small_and_shows_failed_subjects_first():
    many = [SubjectReport(f"passes{at}", measured_report(LOSS).subjects[0].outcomes) for at in range(200)]
    text = Report(ENVIRONMENT, [*many, *report_with("&" * 100_000, "fails").subjects])._repr_html_()
    assert len(text.encode()) < LARGEST_NOTEBOOK
    document = Document(Frame(text).frames[0][1]["srcdoc"])
    assert "fails" in document.text
    assert "of 201 subjects" in document.text
    wide = report_with('"' * 100_000, "x")
    for at in range(3_000):
        wide.subjects[0].outcomes[CASE].checks[f"check{at}"] = Measured()
    text = wide._repr_html_()
    assert len(text.encode()) < LARGEST_NOTEBOOK
    assert "This frame shows 0 of 1 subject." in Frame(text).frames[0][1]["srcdoc"]


def measured_on(*regimes):
    """Return a subject's report with the check `loss` on a case for each (regime, dtype, share of bound, `vacuous`)."""
    part = SubjectReport("mine")
    for seed, (regime, dtype, ratio, vacuous) in enumerate(regimes):
        case = Case(dtype, values=regime, seed=seed).id
        part.outcomes[case] = Outcome(dtype, "", checks={"loss": Measured(ratio > 1, 3.0, ratio, vacuous)})
    return part


def test_a_strip_has_the_worst_of_each_regime_and_dtype_and_says_what_is_no_evidence():
    part = measured_on(
        ("normal", "float32", 0.25, False),
        ("normal", "float32", 0.75, False),
        ("normal", "float32", 0.9, True),
        ("normal", "float16", 0.5, False),
        ("offset", "float32", 0.5, True),
        ("sure", "float32", 7.0, False),
    )
    part.outcomes["reduction_unknown"] = Outcome("float32", "", checks={"loss": Measured(False, 1.0, 0.1)})
    (strip,) = strips(part)
    assert strip.check == "loss"
    assert {
        regime: [(m.dtype, m.kind, m.count, m.ratio, m.median) for m in of] for regime, of in strip.regimes.items()
    } == {
        "normal": [("float16", "passed", 1, 0.5, 0.5), ("float32", "passed", 2, 0.75, 0.5)],
        "sure": [("float32", "failed", 1, 7.0, 7.0)],
        "offset": [("float32", "none", 1, 0.0, 0.0)],
    }
    assert (strip.worst[0], strip.worst[1].ratio) == ("sure", 7.0)
    case = next(case for case, outcome in part.outcomes.items() if outcome.checks["loss"].ratio == 7.0)
    part.findings = [Finding("mine", "loss", case, "wrong", "", expected="known")]
    (strip,) = strips(part)
    assert [mark.kind for mark in strip.regimes["sure"]] == ["known"]
    assert (strip.worst[0], strip.worst[1].ratio) == ("normal", 0.75)


def test_a_scale_puts_larger_ratios_further_right_and_the_bound_where_its_line_is():
    for made in (Scale(0.01, 2.0), Scale(0.01, 100.0)):
        places = [made.at(ratio) for ratio in (0.0, 0.01, 0.1, 0.99, 1.0, 1.01, 2.0)]
        assert places == sorted(places)
        assert 0 < places[0] == places[1] < places[2] < places[3] < places[4] < places[5] < places[6] < 100
        assert made.at(float("inf")) == made.at(made.high)
        assert (made.at(1.0), "100%") in made.ticks


def test_the_scale_goes_beyond_the_bound_where_a_result_does():
    assert scale(strips(measured_on(("normal", "float32", 1.0, False)))).high == 2.0
    assert scale(strips(measured_on(("normal", "float32", 1.1, False)))).high == 100.0
    assert scale([]).high == 2.0


def colours(dark):
    style = (files("crossent.report") / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    return dict(re.findall(r"--([\w-]+): (#\w+);", blocks[dark]))


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read_on_its_background(dark):
    """WCAG 2.2 requires a contrast ratio of 4.5 for text (1.4.3), and of 3 for marks in a plot (1.4.11)."""
    of = colours(dark) | {"white": "#ffffff"}
    grounds = ["ground", "surface", "cell-passed", "cell-known", *(f"step{step}" for step in range(5))]
    texts = [("ink", ground) for ground in grounds]
    texts += [(text, ground) for text in ("soft", "passed", "failed", "warn") for ground in ("ground", "surface")]
    texts += [("warn", "warn-ground"), ("failed", "failed-ground"), ("white", "cell-failed"), ("soft", "cell-passed")]
    marks = [(dtype, "surface") for dtype in ("float16", "bfloat16", "float32", "float64")]
    for wanted, pairs in ((4.5, texts), (3.0, marks)):
        for text, ground in pairs:
            low, high = sorted((luminance(of[text]), luminance(of[ground])))
            assert (high + 0.05) / (low + 0.05) >= wanted, (text, ground)


def test_a_page_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        measured_report(LOSS).write_html(path)
    monkeypatch.undo()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["r.html"]
    measured_report(LOSS).write_html(path)
    assert path.read_text(encoding="utf-8") == page(measured_report(LOSS))


# Options so that the browser itself sends no request.
OFFLINE = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
OFFLINE += ("--disable-sync", "--no-first-run")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[browser]'")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs a chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=OFFLINE)
        yield browser
        browser.close()


@pytest.fixture
def shown(browser, tmp_path):
    """Return a function that opens a report's page and records its `requests`, and its console lines as `messages`."""
    contexts = []

    def show(report, width=375, **options):
        report.write_html(tmp_path / "r.html")
        context = browser.new_context(viewport={"width": width, "height": 800}, offline=True, **options)
        contexts.append(context)
        opened = context.new_page()
        opened.requests, opened.messages = [], []
        opened.on("request", lambda request: opened.requests.append(request.url))
        opened.on("console", lambda message: opened.messages.append(message.text))
        opened.on("pageerror", lambda error: opened.messages.append(str(error)))
        opened.goto((tmp_path / "r.html").as_uri())
        return opened

    yield show
    for context in contexts:
        context.close()


def everything():
    """Return a report with a subject for each text of `HOSTILE`, and a subject with plain texts."""
    made = report_with("plain")
    made.subjects += [part for text in HOSTILE for part in report_with(text, text).subjects]
    return made


def failed():
    """Return a failing report with several causes, proposed features, known failures and a second subject."""
    part = failing((4, "loss", "far off"), (3, "gradient", "the sign"), (1, "result", "a shape"))
    part.order, part.declared = ["call", "loss", "gradient", "result", "errors"], ["returns float32"]
    for seed, regime in enumerate(["normal", "wide", "sure", "negative_offset", "an_unusually_long_regime"]):
        for dtype in ("float16", "bfloat16", "float64"):
            case = Case(dtype, values="normal" if regime.startswith("an") else regime, seed=seed).id
            part.outcomes[case] = Outcome(dtype, "", grade="A", checks=dict([LOSS]), not_run={"vmap": "needs a call"})
    for seed in range(152):
        case = Case("float32", target="probabilities", seed=seed).id
        part.outcomes[case] = Outcome("float32", "", grade="F", checks={"call": Measured(True)})
        part.findings.append(Finding("mine", "call", case, "refused", "TypeError: class indices only"))
        part.outcomes[Case("float32", seed=1000 + seed).id] = Outcome("float32", "", checks={"call": Measured()})
    part.findings.append(Finding("mine", "errors", "class_beyond_the_last", "accepted", "returned 0"))
    numbers = Numbers((1,), 0.5, "0x3f000000", 0.25, 1e-18, 1e-7, 2e6, 1e4)
    corpus = "tinyengine-107/bfloat16-7x5-negative_offset-int64-mean"
    part.outcomes[corpus] = Outcome("bfloat16", "", checks={"loss": Measured(True, 2e6, 1e4)})
    part.findings.append(Finding("mine", "loss", corpus, "wrong", "off", "the call", numbers, "0.25, right"))
    known = Finding("mine", "vmap", CASE, "refused", "", expected="known (https://github.com/a/b/issues/2)")
    part.findings.append(known)
    return Report(
        ENVIRONMENT, [part, SubjectReport("other", measured_report(VACUOUS).subjects[0].outcomes)], level="quick"
    )


def every_move():
    """Return the comparison of two runs, with a change of every kind, and 18 similar changes of two of the kinds."""
    runs = []
    for new in (False, True):
        part = SubjectReport("mine")

        def enter(seed, check, measured, digest="0", message="", kind="wrong", part=part, **more):
            of = list(DTYPES)[seed % 4]
            case = Case(of, seed=seed).id
            dtype = more.pop("dtype", of)
            results = {check: ResultSummary(digest, dtype, (), 0.5)} if digest else {}
            part.outcomes[case] = Outcome(of, "same", checks={check: measured}, results=results, **more)
            if measured.failed:
                part.findings.append(Finding("mine", check, case, kind, message))

        small, large = Measured(ulp=1.0, ratio=0.1), Measured(ulp=9.0, ratio=0.9)
        wrong = Measured(True, 1e5, 1e4)
        bits = "1" if new else "0"
        enter(1, "loss", wrong if new else small, bits)  # a regression
        for seed in range(2, 20):
            enter(seed, "call", Measured(new), "", "RuntimeError: not for this", "refused")
        enter(20, "loss", small, bits, dtype="float64" if new else "float16")  # changed behaviour
        enter(21, "loss", large if new else small, bits)
        enter(22, "loss", replace(wrong, ulp=1e6) if new else wrong, bits)
        enter(23, "loss", small if new else wrong, bits)
        enter(24, "call", Measured(not new), "", "RuntimeError: not for this", "refused")
        enter(25, "loss", small if new else large, bits)
        enter(26, "loss", replace(small, ulp=1.1) if new else small, bits)
        for seed in range(27, 45):
            enter(seed, "errors", Measured(), "", raised=f"ValueError: {'new' if new else 'old'} words {seed}")
        enter(45, "loss", replace(small, ulp=1.2) if new else small)
        enter(46, "loss", small)
        runs.append(Report(ENVIRONMENT | {"torch": "2.13.0" if new else "2.8.0"}, [part]))
    return diff(*runs)


def test_the_diff_for_these_tests_has_every_kind_of_change():
    assert {move.kind for move in every_move().compared} == set(Kind)


def test_changes_that_are_alike_share_a_card_and_only_serious_ones_have_a_red_border():
    text = moves_page(every_move())
    cards = re.findall(r'<details class="card finding ?(\w*)"(?: open)?>\n<summary>(.*?)</summary>', text)
    shown_cards = [(tone, " ".join(Document(summary).text.split())) for tone, summary in cards]
    assert shown_cards == [
        ("failed", "loss 1 change mine"),
        ("failed", "call 18 changes mine"),
        ("failed", "loss 1 change mine"),
        ("known", "loss 1 change mine"),
        ("known", "loss 1 change mine"),
        ("", "loss 1 change mine"),
        ("", "call 1 change mine"),
        ("", "loss 1 change mine"),
        ("", "loss 1 change mine"),
        ("", "errors 18 changes mine"),
        ("", "loss 1 change mine"),
    ]
    text = Document(text).text
    assert text.count("17 further changes") == 2
    for seed in range(27, 45):
        assert f"ValueError: old words {seed} → ValueError: new words {seed}" in text


@pytest.mark.parametrize(
    "report", [everything(), measured_report(LOSS), Report(ENVIRONMENT)], ids=["failed", "passed", "nothing"]
)
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_a_page_is_never_wider_than_the_screen_and_sends_no_request(shown, report, width):
    opened = shown(report, width)
    opened.evaluate("for (const closed of document.querySelectorAll('details')) closed.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert len(opened.requests) == 1
    assert opened.messages == []
    assert opened.title().startswith(("Failed: ", "Passed: ", "Nothing ran: "))


@pytest.mark.parametrize("of", ["report", "diff"])
def test_every_table_scrolls_in_itself_and_a_keyboard_reaches_it(shown, of):
    opened = shown(failed() if of == "report" else every_move(), 320)
    opened.evaluate("for (const closed of document.querySelectorAll('details')) closed.open = true")
    tables = opened.evaluate("""
        [...document.querySelectorAll("table")].map(({parentElement: around}) =>
            [getComputedStyle(around).overflowX, around.tabIndex, around.getAttribute("role"), around.ariaLabel])
    """)
    assert tables
    assert {tuple(of[:3]) for of in tables} == {("auto", 0, "region")}
    labels = [label for *_, label in tables]
    assert all(labels)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("of", ["failed", "passed", "diff"])
def test_nothing_is_cut_on_a_phone(shown, of):
    """No text is wider than its box, except in the table of errors in ulp, which a user can scroll."""
    opened = shown({"failed": failed, "passed": lambda: measured_report(LOSS), "diff": every_move}[of]())
    opened.evaluate("for (const closed of document.querySelectorAll('details')) closed.open = true")
    cut = opened.evaluate("""
        [...document.querySelectorAll("body *")].filter((box) => !box.closest("svg, .shapes, table.numbers"))
            .filter((box) => box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).display != "inline")
            .filter((box) => !box.querySelector("table.numbers"))
            .map((box) => box.outerHTML.slice(0, 200))
    """)
    assert cut == []


def test_only_a_change_that_needs_attention_has_a_coloured_border(shown):
    borders = shown(every_move()).evaluate("""
        [...document.querySelectorAll(".finding")].map((card) => [card.classList[2] || "", getComputedStyle(card)])
            .map(([tone, style]) => [tone, style.borderLeftColor === style.borderTopColor])
    """)
    assert {tuple(border) for border in borders} == {("failed", False), ("known", False), ("", True)}


AXE_PAGES = {
    "passed": lambda: measured_report(LOSS),
    "failed": lambda: failed(),
    "unproven": lambda: measured_report(VACUOUS, level="quick"),
    "diff": lambda: every_move(),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("of", AXE_PAGES)
def test_axe_finds_no_violation(shown, of, width, scheme):
    """axe-core tests the rules of WCAG and its own best practices in the browser."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install -e '.[browser]'")
    opened = shown(AXE_PAGES[of](), width, color_scheme=scheme)
    opened.evaluate("for (const closed of document.querySelectorAll('details')) closed.open = true")
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()


def test_a_notebook_shows_the_frame_and_executes_no_text_in_it(browser):
    report = everything()
    opened = browser.new_context(viewport={"width": 900, "height": 800}, offline=True).new_page()
    messages = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.set_content(f"<title>before</title><p>A cell</p>{report._repr_html_()}")
    frame = opened.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == "Failed"
    assert frame.locator(".map").count() > 0
    (inner,) = opened.frames[1:]
    assert inner.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert inner.evaluate("document.title").startswith("Failed")
    assert opened.title() == "before"
    assert opened.locator("body > *").count() == 2
    assert messages == []
    opened.context.close()


def test_a_dark_screen_gets_a_dark_page(shown):
    grounds = [
        shown(measured_report(LOSS), color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", ground))) for ground in grounds)
    assert dark < 100 < 650 < light


def report_with_shell_name(name="$(x)\n'y' <b>"):
    """Return a report with one finding. A shell must not execute the name of its subject."""
    return Report(ENVIRONMENT, [SubjectReport(name, findings=[Finding(name, "loss", CASE, "wrong", "")])])


def test_a_button_copies_the_command_and_nothing_else(shown):
    opened = shown(report_with_shell_name(), permissions=["clipboard-read", "clipboard-write"])
    opened.click("details[open] > .command button")
    assert opened.text_content("details[open] > .command button") == "Copied"
    assert opened.evaluate("navigator.clipboard.readText()") == report_with_shell_name().findings[0].command


def test_a_button_copies_where_a_browser_gives_no_clipboard(shown):
    opened = shown(report_with_shell_name())
    opened.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    opened.click("details[open] > .command button")
    assert opened.text_content("details[open] > .command button") == "Copied"
    assert opened.evaluate("getSelection().toString()") == report_with_shell_name().findings[0].command


def test_a_page_shows_every_command_without_scripts(shown):
    opened = shown(report_with_shell_name(), java_script_enabled=False)
    assert opened.locator("button").count() == 0
    assert opened.locator("details[open] > .command").first.inner_text() == report_with_shell_name().findings[0].command


def test_the_content_security_policy_stops_markup_that_passes_the_escaping(shown):
    opened = shown(measured_report(LOSS))
    stopped = []
    opened.on("requestfailed", lambda request: stopped.append((request.url, request.failure)))
    opened.evaluate("""
        document.body.insertAdjacentHTML("beforeend", "<img src='https://example.org/x' onerror='obeyed = 1'>");
        const script = document.createElement("script");
        script.textContent = "obeyed = 1";
        document.body.append(script);
    """)
    opened.wait_for_timeout(200)
    assert opened.evaluate("'obeyed' in window") is False
    assert stopped == [("https://example.org/x", "csp")]
    assert sum("Content Security Policy" in line for line in opened.messages) >= 2
