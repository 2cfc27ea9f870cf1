"""Text: a report as a terminal shows it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.cases.axes import DENSE_TARGETS, DTYPES
from crossent.cases.case import Case
from crossent.report.findings import NUMBERS, Finding, SubjectReport, Tally


def plain_text(parts: Iterable[RenderableType]) -> str:
    """Some parts as a text without colours, a hundred columns wide where a table can be narrower."""
    text = io.StringIO()
    console = Console(file=text, width=100)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def rendered(subject: SubjectReport, most_findings: int) -> Iterator[RenderableType]:
    """One subject's part: its table, the first findings, and what did not run."""
    counts = subject.counts
    title = Text(f"{subject.name}: ", "bold")
    title.append(f"{counts['ran']} ran, ")
    title.append(f"{counts['failed']} failed", "bold red" if counts["failed"] else "green")
    title.append(f", {counts['expected']} expected, {counts['not_applicable']} not applicable")
    yield Text()
    yield title
    if subject.outcomes:
        yield Padding(_table(subject), (0, 0, 0, 2))
        yield from _nearest(subject)
    sorts = subject.sorts
    shown = sorts[:most_findings]
    for findings in shown:
        says = common(subject, findings)
        yield Text(f"\n{findings[0]}\n" + (f"  common  {says}\n" if says else ""))
    surprising = [finding for findings in sorts for finding in findings]
    if len(surprising) > len(shown):
        kinds = Counter(f"{finding.check} {finding.kind}" for finding in surprising)
        yield Text(f"  … of {len(surprising)} findings: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for reason, findings in subject.known.items():
        yield Text(f"  expected, {len(findings)} findings: {reason}; as {findings[0].id}")
    for reason, count in sorted(subject.not_applicable.items()):
        yield Text(f"  not applicable, {count} cases: {subject.name} {reason}")
    missing: dict[tuple[str, int], list[str]] = {}
    for check, reasons in subject.not_run.items():
        for reason, count in reasons.items():
            missing.setdefault((reason, count), []).append(check)
    for (reason, count), checks in missing.items():
        yield Text(f"  not run, {count} cases of {', '.join(checks)}: {subject.name} {reason}")


def _table(subject: SubjectReport) -> Table:
    """A row for each check and a column for each dtype."""
    tallies, grades = subject.tallies, subject.grades
    dtypes = [dtype for dtype in DTYPES if any(of == dtype for _, of in tallies)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("check", no_wrap=True)
    for dtype in dtypes:
        table.add_column(f"{dtype}: {grades[dtype]}" if dtype in grades else dtype, no_wrap=True)
    for check in dict.fromkeys(check for check, _ in tallies):
        table.add_row(check, *(_cell(tallies.get((check, dtype))) for dtype in dtypes))
    return table


def _cell(tally: Tally | None) -> Text:
    """How often it ran, and the largest share of a bound."""
    if tally is None:
        return Text("")
    if tally.failed:
        return Text(f"{tally.failed} of {tally.ran} FAILED", "bold red")
    if tally.ratio is None:
        return Text(f"{tally.ran - tally.expected} held")
    return Text(f"{tally.ran:<5}{share(tally.ratio):>5}")


def _nearest(subject: SubjectReport) -> Iterator[Text]:
    """Where each number came nearest to its bound, and how often zeros or a constant would have passed too.

    For the loss and the gradients in each dtype, for every other check in all of them.
    """
    of_all: dict[str, Tally] = {}
    vacuous: Counter[str] = Counter()
    for (check, dtype), tally in subject.tallies.items():
        name = f"{check} {dtype}" if check in NUMBERS else check
        vacuous[name] += tally.vacuous
        if tally.ratio and tally.ratio >= (of_all.get(name, tally).ratio or 0.0):
            of_all[name] = tally
    if not of_all:
        return
    width = max(map(len, of_all))
    yield Text(f"  {'nearest to a bound':<{width}} share      error  no evidence  case", "dim")
    for name, tally in of_all.items():
        if tally.ratio is not None and tally.ulp is not None:
            error = f"{short(tally.ulp)} ulp"
            yield Text(f"  {name:<{width}} {share(tally.ratio):>5} {error:>10} {vacuous[name]:>12}  {tally.case}")


def share(ratio: float) -> str:
    """A ratio of error to bound as a percentage; beyond ten times the bound the number says no more."""
    return f"{100 * ratio:.0f}%" if ratio < 10 else ">10×"


def short(ulp: float) -> str:
    """A number of ulp in a few digits."""
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"


_MOST_WORDS = 3  # words: more would be the case itself


def common(subject: SubjectReport, findings: Sequence[Finding]) -> str:
    """What the first of these findings of one check has in common with most others, and with few cases that hold.

    It is the words for which the share of failing cases that have them is the most above the share of those that hold;
    "" where that is not more than one half. A case that holds and lets zeros pass is not counted.
    """
    check, failing = findings[0].check, [finding.case for finding in findings]
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    holding = [case for case, one in measured.items() if not one.failed and not one.vacuous]
    words = _words(failing[0])
    bad, good = _having(words, failing), _having(words, holding)
    if len(failing) < 2 or not holding:
        return ""
    said, most = "", 0.5
    for count in range(1, _MOST_WORDS + 1):
        for chosen in combinations(words, count):
            fail, hold = (len(set.intersection(*(having[word] for word in chosen))) for having in (bad, good))
            above = fail / len(failing) - hold / len(holding)
            if above > most:
                most = above
                of = f"{hold or 'none'} of {len(holding)} that hold"
                said = f"{', '.join(chosen)}: {fail} of {len(failing)} cases of this, and {of}"
    return said


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, set[str]]:
    """The cases that have each word."""
    found: dict[str, set[str]] = {word: set() for word in words}
    for case in cases:
        for word in _words(case):
            if word in found:
                found[word].add(case)
    return found


def _words(id: str) -> list[str]:
    """What a reader may want to know of a case, without options at their default; of a bad input, nothing."""
    try:
        case = Case.of(id)
    except ValueError:
        return []
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    told = {
        shape: True,
        "a weight": case.weight != "unweighted",
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "class probabilities": case.target in DENSE_TARGETS,
        "uint8 targets": case.target == "uint8",
        f"reduction={case.reduction!r}": True,
        case.dtype: True,
        "no rows": case.rows == 0,
        f"C {'a' if case.classes & (case.classes - 1) == 0 else 'no'} power of two": True,
        f"values {case.values}": True,
        f"logits that are {'contiguous' if case.layout in ('contiguous', 'offset') else 'strided'}": True,
        "an upstream gradient other than 1": case.upstream != "one",
    }
    return [word for word, holds in told.items() if holds]
