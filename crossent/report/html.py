"""A page: a report as one HTML file that asks nothing of a network.

What the page shows is worked out here; how it looks is in `report.html.jinja`, `report.css` and `report.js`. All that a
subject may have said, its name and its exceptions, is escaped by the template engine, its control characters are
written out; and by the page's own policy a browser runs and loads nothing but what is in this package.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from crossent.cases.axes import DTYPES
from crossent.report.findings import Finding, SubjectReport, Tally, together
from crossent.report.regimes import Strip, scale, strips
from crossent.report.text import share, short
from crossent.words import printable

if TYPE_CHECKING:
    from crossent.report.report import Report


# What is shown of each subject; a page is to be read, the rest is in the JSON.
MOST_SORTS = 12
MOST_OF_A_SORT = 12
OPEN = 3  # of its sorts; the others are a line each, to be unfolded
_LONGEST_TEXT = 1000
LONGEST_NAME = 80
LONGEST_COMMAND = 4000
STEPS = 5  # of the heat map's colours, from 0 to the bound
HEADLINES = {"held": "Held", "failed": "Failed", "unproven": "Not proven", "nothing": "Nothing ran"}


@dataclass(frozen=True)
class Cell:
    """One check in one dtype: `kind` is its colour; `says` is its first line, `below` are the small ones."""

    kind: str
    says: str = ""
    below: Sequence[str] = ()
    title: str = ""


@dataclass(frozen=True)
class Sort:
    """Findings of one sort: the first in full, some more by their case, and how many there are."""

    first: Finding
    more: Sequence[Finding]
    count: int

    @property
    def rest(self) -> int:
        """How many are not shown."""
        return self.count - 1 - len(self.more)


@dataclass(frozen=True)
class Figure:
    """What the verdict covers or, more often, does not: a number, what it counts, and why."""

    count: str
    what: str
    why: str = ""
    loud: bool = False


@dataclass(frozen=True)
class SubjectPart:
    """One subject's part of the page."""

    subject: SubjectReport
    verdict: str
    dtypes: Sequence[str]
    rows: dict[str, list[Cell]]
    strips: Sequence[Strip]
    sorts: Sequence[Sort]
    hidden: Counter[str]
    gaps: Sequence[Figure]

    @property
    def failed(self) -> int:
        """How many findings nobody expected."""
        return sum(finding.expected is None for finding in self.subject.findings)


def page(report: Report) -> str:
    """The report as a whole HTML document; the same for the same report."""
    folder = files("crossent.report")
    style, script, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.jinja")
    )
    parts = [_part(subject) for subject in report.subjects]
    said = verdict(report)
    return (
        engine()
        .from_string(template)
        .render(
            report=report,
            parts=parts,
            verdict=said,
            headline=HEADLINES[said],
            summary=report.summary if report.ran else "No case was judged: this says nothing about any subject.",
            covered=list(covered(report)) if report.ran else [],
            gaps=list(gaps(report)),
            scale=scale(strip for part in parts for strip in part.strips),
            dtypes=[dtype for dtype in DTYPES if any(dtype in part.dtypes for part in parts)],
            open=OPEN,
            style=Markup(style),
            script=Markup(script),
            style_hash=hash_of(style),
            script_hash=hash_of(script),
        )
    )


def verdict(report: Report) -> str:
    """A key of `HEADLINES`."""
    if not report.ran:
        return "nothing"
    return "held" if report.ok else "failed" if report.findings else "unproven"


def covered(report: Report) -> Iterator[Figure]:
    """What the verdict is about."""
    names, compared = ", ".join(_name(subject.name) for subject in report.subjects), report.compared
    yield Figure(*_counted(report.ran, "call", "checked"), f"of {names}")
    yield Figure(*_counted(report.cases, "case"), f"level {report.level}, seed {report.seed}")
    if report.triples:
        yield Figure(f"{report.triples:,}", "sets of three choices", "that stand together in a case")
    if compared.ran:
        yield Figure(f"{compared.ran - compared.vacuous:,}", "comparisons that are evidence", f"of {compared.ran:,}")
        judged = compared.elements - compared.not_judged.total()
        yield Figure(f"{judged:,}", "numbers judged", "of losses, of gradients, and of other results")


def gaps(report: Report) -> Iterator[Figure]:
    """What the verdict does not cover, the gravest first."""
    for subject in report.subjects:
        if not subject.outcomes:
            yield Figure("0", f"cases ran on {_name(subject.name)}", "nothing is said about it", loud=True)
        for nothing in subject.without_evidence:
            why = "every comparison would let zeros or a constant pass"
            yield Figure("No", f"evidence for the {nothing} of {_name(subject.name)}", why, loud=True)
    if report.level == "quick":
        yield Figure("Quick", "run, in which every two choices meet", "--level normal asks every three", loud=True)
    if report.left_out:
        yield Figure(*_counted(len(report.left_out), "check", "not asked"), f"at level {report.level}")
    if not_run := sum(len(outcome.not_run) for subject in report.subjects for outcome in subject.outcomes.values()):
        yield Figure(*_counted(not_run, "check", "of a case not run"), "for reasons that are listed below")
    if skipped := sum(subject.counts["not_applicable"] for subject in report.subjects):
        yield Figure(*_counted(skipped, "case", "not applicable"), "to a subject, which takes no such arguments")
    compared = report.compared
    if compared.vacuous:
        what = f"of {compared.ran:,} comparisons no evidence"
        yield Figure(f"{compared.vacuous:,}", what, "zeros or a constant would pass too")
    if unjudged := compared.not_judged.total():
        yield Figure(f"{unjudged:,}", f"of {compared.elements:,} numbers not judged", "nothing bounds them")
    if known := sum(subject.counts["expected"] for subject in report.subjects):
        yield Figure(*_counted(known, "case", "known to fail"), "not counted among the findings")


def _part(subject: SubjectReport) -> SubjectPart:
    tallies = subject.tallies
    missing = Counter((check, outcome.dtype) for outcome in subject.outcomes.values() for check in outcome.not_run)
    met = {dtype for _, dtype in (*tallies, *missing)}
    dtypes = [dtype for dtype in DTYPES if dtype in met]
    asked = dict.fromkeys(check for check, _ in (*tallies, *missing))
    checks = dict.fromkeys((*(check for check in subject.order if check in asked), *asked))
    rows = {check: [_cell(tallies.get((check, dtype)), missing[check, dtype]) for dtype in dtypes] for check in checks}
    sorts = subject.sorts
    shown = [Sort(of[0], of[1 : 1 + MOST_OF_A_SORT], len(of)) for of in sorts[:MOST_SORTS]]
    hidden = Counter(f"{finding.check} {finding.kind}" for of in sorts[MOST_SORTS:] for finding in of)
    if not subject.outcomes:
        said = "nothing"
    else:
        said = "failed" if sorts else "unproven" if subject.without_evidence else "held"
    return SubjectPart(
        subject, said, dtypes, rows, strips(subject), shown, hidden, list(_gaps(subject, tallies.values()))
    )


def _gaps(subject: SubjectReport, tallies: Iterable[Tally]) -> Iterator[Figure]:
    """What of a subject did not run, or was not judged, and why."""
    for reason, count in sorted(subject.not_applicable.items()):
        yield Figure(*_counted(count, "case", "not applicable"), reason)
    not_run: dict[str, dict[str, int]] = {}
    for check, reasons in subject.not_run.items():
        for reason, count in reasons.items():
            not_run.setdefault(reason, {})[check] = count
    for reason, checks in not_run.items():
        each = ", ".join(f"{check} {count:,}" for check, count in sorted(checks.items(), key=lambda one: -one[1]))
        yield Figure(*_counted(sum(checks.values()), "check", f"of a case not run: {each}"), reason)
    compared = together(tally for tally in tallies if tally.ratio is not None)
    if compared.vacuous:
        what = "that is no evidence" if compared.vacuous == 1 else "that are no evidence"
        yield Figure(*_counted(compared.vacuous, "comparison", what), "zeros or a constant would pass too")
    for reason, count in sorted(compared.not_judged.items()):
        yield Figure(*_counted(count, "number", "not judged"), reason)


def _cell(tally: Tally | None, missing: int) -> Cell:
    """The worst share of a bound, and how many of the results that ran are evidence for it."""
    if tally is None:
        return Cell("missing", "not run", [f"{missing:,}"]) if missing else Cell("absent")
    known = [f"{tally.expected:,} known"] if tally.expected else []
    title = "" if tally.ulp is None else f"worst: {short(tally.ulp)} ulp on {tally.case}"
    held, evidence = tally.ran - tally.expected, tally.ran - tally.vacuous
    if tally.failed:
        worst = "" if tally.ratio is None else f" {share(tally.ratio)}"
        kind, says, below = "failed", f"✗{worst}", f"{tally.failed:,} failed"
        known = [f"of {tally.ran:,}", *known]
    elif not held:
        kind, says, below, known = "known", "known", f"{tally.ran:,}", []
    elif tally.ratio is None:
        kind, says, below = "held", "held", f"{held:,}"
    elif not evidence:
        kind, says, below = "none", "no evidence", f"0/{tally.ran:,}"
    else:
        step = min(int(STEPS * tally.ratio), STEPS - 1)
        kind, says, below = f"step{step}", share(tally.ratio), f"{evidence:,}/{tally.ran:,}"
    return Cell(kind, says, [below, *known, *([f"{missing:,} not run"] if missing else [])], title)


def engine() -> jinja2.Environment:
    """What makes a page of a template: all that is not markup is escaped, and its control characters written out."""
    engine = jinja2.Environment(
        autoescape=True, finalize=_shown, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters |= {
        "share": share,
        "short": short,
        "name": _name,
        "command": _command,
        "counted": lambda count, noun: " ".join(_counted(count, noun)),
    }
    return engine


def _shown(value: Any) -> Any:
    """What the page says of a value: with its control characters written out, and not endless."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = "\n".join(map(printable, value.split("\n")))
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _command(finding: Finding) -> Markup:
    """What repeats a finding, escaped and whole; "" where it is too long to be copied by anybody."""
    command = finding.command
    return Markup.escape(command) if len(command) <= LONGEST_COMMAND else Markup("")


def _counted(count: int, noun: str, what: str = "") -> tuple[str, str]:
    """A number and what it counts: `1`, `finding`; `2,243`, `findings`."""
    return f"{count:,}", f"{noun if count == 1 else noun + 's'} {what}".rstrip()


def hash_of(content: str) -> str:
    """By which the page's policy knows its own style and script, so that it allows no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
