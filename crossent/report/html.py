"""A report as one HTML page that needs no network.

`report.html.jinja`, `macros.html.jinja`, `report.css` and `report.js` define the page, and `notebook.html.jinja` a
shorter page for a notebook. The template engine escapes all texts from outside.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from crossent.cases.axes import DTYPES
from crossent.report.causes import Cause, causes, published, split_by_feature
from crossent.report.findings import Finding, SubjectReport, Tally, together
from crossent.report.plots import Cell, Strip, cell, scale, strips
from crossent.report.text import NO_EVIDENCE, explained, share, short
from crossent.words import counted, first_names, printable

if TYPE_CHECKING:
    from crossent.report.report import Report

# The page shows only some of many findings. The JSON report has all findings.
MOST_CARDS = 24  # causes of a subject that are shown with an example in full
MOST_LINES = 60  # further causes of a subject, with a line each; the page only counts the other causes
MOST_FURTHER_OF_ALL = 144  # further findings of the causes of a subject that are shown in full, with a command each
MOST_FURTHER = 12  # further findings of a cause
OPEN = 3  # causes of a subject that are unfolded at first
LARGEST_NOTEBOOK = 200_000  # bytes; some notebooks store no larger output
_LONGEST_TEXT = 1000  # characters
LONGEST_NAME = 80  # characters
LONGEST_COMMAND = 4000  # characters
# An issue, a pull request or a discussion. The characters before and after must not belong to a longer address.
_ISSUE = re.compile(
    r"(?<![\w./:#@%-])(?:https://github\.com/\w[\w.-]*/\w[\w.-]*/(?:issues|pull|discussions)/\d+|\w[\w.-]*/\w[\w.-]*#\d+)"
    r"(?![\w/…])",
    re.ASCII,
)
# The attributes of the frame in a notebook: links open another page, and no script runs.
_FRAME = 'sandbox="allow-popups allow-popups-to-escape-sandbox" style="width: 100%; height: 40rem; border: 0"'
HEADLINES = {"passed": "Passed", "failed": "Failed", "unproven": "Not proven", "nothing": "Nothing ran"}


@dataclass(frozen=True)
class Group:
    """A cause on the page: the finding `example` in full, and the commands of the further findings `more`.

    `corpus` is a sentence about a published bug on the same inputs, or "".
    """

    cause: Cause
    example: Finding
    more: Sequence[Finding]
    corpus: str

    @property
    def count(self) -> int:
        """The number of findings."""
        return len(self.cause.findings)

    @property
    def rest(self) -> int:
        """The number of findings that are not shown."""
        return self.count - 1 - len(self.more)


@dataclass(frozen=True)
class CoverageLine:
    """A line about the coverage or a gap in the coverage: `count` in bold, then `what`, then `why` in small type.

    `count` is a number, or a word such as "No". `loud` highlights the line.
    """

    count: str
    what: str
    why: str = ""
    loud: bool = False


@dataclass(frozen=True)
class SubjectPart:
    """The part of the page for one subject.

    Attributes:
        verdict: a key of `HEADLINES`.
        dtypes, rows: the heat map. Each check has a row, with a cell for each dtype.
        strips: the plots of the errors.
        causes, lines: the groups shown in full, and the groups shown in one line.
        hidden: the number of findings that the page leaves out, by check and kind.
        features: the groups that a missing feature would explain.
        gaps: lines about what the verdict does not cover.
    """

    subject: SubjectReport
    verdict: str
    dtypes: Sequence[str]
    rows: dict[str, list[Cell]]
    strips: Sequence[Strip]
    causes: Sequence[Group]
    lines: Sequence[Group]
    hidden: Counter[str]
    features: Sequence[Group]
    gaps: Sequence[CoverageLine]

    @property
    def failed(self) -> int:
        """The number of findings that are not known failures."""
        return sum(finding.expected is None for finding in self.subject.findings)


def page(report: Report) -> str:
    """Return the report as an HTML document. Equal reports give equal documents."""
    return _document("report.html.jinja", report, [_part(subject, report) for subject in report.subjects])


def notebook(report: Report) -> str:
    """Return a short page for a notebook, as an iframe, so that the page cannot change the notebook.

    The iframe shows at most six subjects. Failed subjects come first.
    """
    made = [_part(subject, report) for subject in report.subjects]
    parts = sorted(made, key=lambda part: not part.failed)
    for most in (6, 3, 1, 0):
        # In a quoted attribute, only these two characters end or change the text.
        document = _document("notebook.html.jinja", report, parts[:most]).replace("&", "&amp;").replace('"', "&quot;")
        framed = f'<iframe title="crossent" {_FRAME} srcdoc="{document}"></iframe>'
        if len(framed.encode()) < LARGEST_NOTEBOOK:
            break
    return framed


def _document(template: str, report: Report, parts: Sequence[SubjectPart]) -> str:
    return render(
        template,
        report=report,
        parts=parts,
        verdict=verdict(report),
        headline=HEADLINES[verdict(report)],
        summary=report.summary if report.ran else "No case ran, so the report says nothing about any subject.",
        covered=list(covered(report)) if report.ran else [],
        gaps=list(gaps(report)),
        scale=scale(strip for part in parts for strip in part.strips),
        dtypes=[dtype for dtype in DTYPES if any(dtype in part.dtypes for part in parts)],
        open=OPEN,
    )


def verdict(report: Report) -> str:
    """Return the verdict on a report, a key of `HEADLINES`."""
    if not report.ran:
        return "nothing"
    return "passed" if report.ok else "failed" if report.failed else "unproven"


def covered(report: Report) -> Iterator[CoverageLine]:
    """Yield the lines about what the verdict covers: calls, cases, combinations and numbers."""
    names, compared = ", ".join(_name(subject.name) for subject in report.subjects), report.compared
    yield CoverageLine(*_counted(report.ran, "call", "checked"), f"of {names}")
    yield CoverageLine(*_counted(report.cases, "case"), f"level {report.level}, seed {report.seed}")
    if report.triples:
        triples, sized = "of three options", "of a size, an option and a dtype"
        yield CoverageLine(*_counted(report.triples, "combination", triples), "that occur in a case")
        yield CoverageLine(*_counted(report.sized[1], "combination", sized), "that occur in a case")
    if compared.ran:
        telling = compared.ran - compared.vacuous
        yield CoverageLine(*_counted(telling, "comparison", "that a wrong result would fail"), f"of {compared.ran:,}")
        judged = compared.elements - compared.not_judged.total()
        yield CoverageLine(*_counted(judged, "number", "judged"), "of losses, gradients and other results")


def gaps(report: Report) -> Iterator[CoverageLine]:
    """Yield the lines about what the verdict does not cover, the most serious first."""
    for what, names in report.only.items():
        yield CoverageLine("Only", "a part ran", f"only the {what} {first_names(names)}", loud=True)
    if (shard := report.shard) is not None:
        cases = f"{len(shard.places):,} of {counted(shard.planned, 'case')}"
        yield CoverageLine("Only", "a part ran", f"shard {shard}, with {cases}", loud=True)
    if report.planned is not None:
        cases = f"{report.cases:,} of {counted(report.planned, 'case')}"
        yield CoverageLine("Only", "a part ran", f"the run ended after {cases}", loud=True)
    for subject in report.subjects:
        if not subject.outcomes:
            yield CoverageLine("0", f"cases ran on {_name(subject.name)}", "this subject was not checked", loud=True)
        for result in () if report.is_part else subject.without_evidence:
            yield CoverageLine("No", f"evidence for the {result} of {_name(subject.name)}", NO_EVIDENCE, loud=True)
    if report.level == "quick":
        why = "level quick covers only combinations of two"
        yield CoverageLine("Some", "combinations of three options", why, loud=True)
    if report.left_out:
        yield CoverageLine(*_counted(len(report.left_out), "check", "planned for no case"))
    if skipped := sum(len(outcome.not_run) for subject in report.subjects for outcome in subject.outcomes.values()):
        yield CoverageLine(*_counted(skipped, "skipped check"), "counted for each case")
    if not_applicable := sum(subject.counts["not_applicable"] for subject in report.subjects):
        yield CoverageLine(*_counted(not_applicable, "case", "not applicable"), "counted for each subject")
    compared = report.compared
    if compared.vacuous:
        of = f"of {counted(compared.ran, 'comparison')} without evidence"
        yield CoverageLine(f"{compared.vacuous:,}", of, NO_EVIDENCE)
    if unjudged := compared.not_judged.total():
        of = f"of {counted(compared.elements, 'number')} not judged"
        yield CoverageLine(f"{unjudged:,}", of, "without an error bound")
    if known := sum(subject.counts["expected"] for subject in report.subjects):
        yield CoverageLine(*_counted(known, "case", "with known failures"), "not counted among the findings")


def _part(subject: SubjectReport, report: Report) -> SubjectPart:
    tallies = subject.tallies
    missing = Counter((check, outcome.dtype) for outcome in subject.outcomes.values() for check in outcome.not_run)
    used = {dtype for _, dtype in (*tallies, *missing)}
    dtypes = [dtype for dtype in DTYPES if dtype in used]
    planned = dict.fromkeys(check for check, _ in (*tallies, *missing))
    checks = dict.fromkeys((*(check for check in subject.order if check in planned), *planned))
    rows = {check: [cell(tallies.get((check, dtype)), missing[check, dtype]) for dtype in dtypes] for check in checks}
    found = causes(subject)
    each = min(MOST_FURTHER, MOST_FURTHER_OF_ALL // max(1, min(len(found), MOST_CARDS)))
    wrong, lacking = ([_group(subject, cause, each) for cause in part] for part in split_by_feature(found))
    small = wrong[MOST_CARDS + MOST_LINES :]
    hidden = Counter(f"{finding.check} {finding.kind}" for group in small for finding in group.cause.findings)
    result = "nothing" if not subject.outcomes else "failed" if found else None
    unproven = report.planned is not None or (subject.without_evidence and not report.is_part)
    return SubjectPart(
        subject=subject,
        verdict=result or ("unproven" if unproven else "passed"),
        dtypes=dtypes,
        rows=rows,
        strips=strips(subject),
        causes=wrong[:MOST_CARDS],
        lines=wrong[MOST_CARDS : MOST_CARDS + MOST_LINES],
        hidden=hidden,
        features=lacking,
        gaps=list(_gaps(subject, tallies.values())),
    )


def _group(subject: SubjectReport, cause: Cause, most: int) -> Group:
    example = cause.example
    others = [finding for finding in cause.findings if finding is not example]
    return Group(cause, example, others[:most], published(subject, cause))


def _gaps(subject: SubjectReport, tallies: Iterable[Tally]) -> Iterator[CoverageLine]:
    """Yield the lines about what the verdict on one subject does not cover."""
    for reason, count in sorted(subject.not_applicable.items()):
        yield CoverageLine(*_counted(count, "case", "not applicable"), reason)
    for reason, checks in subject.skipped.items():
        each = ", ".join(f"{check} {count:,}" for check, count in checks.items())
        yield CoverageLine(*_counted(sum(checks.values()), "skipped check", f"({each})"), reason)
    compared = together(tally for tally in tallies if tally.ratio is not None)
    if compared.vacuous:
        yield CoverageLine(*_counted(compared.vacuous, "comparison", "without evidence"), NO_EVIDENCE)
    for reason, count in sorted(compared.not_judged.items()):
        yield CoverageLine(*_counted(count, "number", "not judged"), reason)


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template of this folder, with the style and script that all pages share.

    `values` are the variables of the template.
    """
    folder = files("crossent.report")
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    engine = jinja2.Environment(
        loader=jinja2.PackageLoader("crossent.report", "."),
        autoescape=True,
        finalize=_make_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "share": share,
        "short": short,
        "name": _name,
        "command": lambda finding: command(finding.command),
        "linked": linked,
        "explained": explained,
        "counted": counted,
    }
    values |= {"style": Markup(style), "script": Markup(script)}
    return engine.get_template(template).render(style_hash=_hash(style), script_hash=_hash(script), **values)


def _make_printable(value: Any) -> Any:
    """Escape the control characters of a text, and cut a long text. Return any other value unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = "\n".join(map(printable, value.split("\n")))
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def command(line: str) -> Markup:
    """Return a command as escaped HTML; "" if the command is too long to copy."""
    line = printable(line)
    return Markup.escape(line) if len(line) <= LONGEST_COMMAND else Markup("")


def linked(text: str) -> Markup:
    """Return a text as escaped HTML, with links to issues, pull requests and discussions on GitHub."""
    made, end, text = Markup(), 0, _make_printable(text)
    for issue in _ISSUE.finditer(text):
        address = f"https://github.com/{issue[0].removeprefix('https://github.com/').replace('#', '/issues/')}"
        made += text[end : issue.start()] + Markup('<a href="{}">{}</a>').format(address, issue[0])
        end = issue.end()
    return made + text[end:]


def _counted(count: int, noun: str, what: str = "") -> tuple[str, str]:
    """Return the count, and the noun followed by `what`, such as ("9", "calls checked")."""
    number, _, noun = counted(count, noun).partition(" ")
    return number, f"{noun} {what}".rstrip()


def _hash(content: str) -> str:
    """Return the hash by which the content security policy of the page allows a style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
