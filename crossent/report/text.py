"""A report as text for a terminal."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import combinations
from operator import and_

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.cases.axes import CLASS_LIMITS, DENSE_TARGETS, DTYPES, IGNORED, ROW_LIMITS
from crossent.report.findings import DEPENDS, NUMBERS, Finding, SubjectReport, Tally
from crossent.report.regimes import case_or_none


def plain_text(parts: Iterable[RenderableType]) -> str:
    """Return the parts as text without colours. Tables are at most 100 columns wide, if their content permits it."""
    text = io.StringIO()
    console = Console(file=text, width=100)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def rendered(subject: SubjectReport, most_findings: int) -> Iterator[RenderableType]:
    """Yield the part of one subject: its table, the first findings, and the checks and cases that did not run."""
    counts = subject.counts
    title = Text(f"{subject.name}: ", "bold")
    title.append(f"{counts['ran']} ran, ")
    title.append(f"{counts['failed']} failed", "bold red" if counts["failed"] else "green")
    title.append(f", {counts['expected']} known failures, {counts['not_applicable']} not applicable")
    yield Text()
    yield title
    if subject.contract:
        yield Text(f"  judged under the contract {subject.contract}")
    if subject.declared:
        yield Text(f"  declared: {subject.name} {'; '.join(subject.declared)}")
    if subject.outcomes:
        yield Padding(_table(subject), (0, 0, 0, 2))
        yield from _nearest(subject)
    sorts = subject.sorts
    shown = sorts[:most_findings]
    for findings in shown:
        says = common(subject, findings)
        yield Text(f"\n{findings[0]}\n" + (f"  common  {says}\n" if says else ""))
    unexpected = [finding for findings in sorts for finding in findings]
    if len(unexpected) > len(shown):
        kinds = Counter(f"{finding.check} {finding.kind}" for finding in unexpected)
        yield Text(f"  {len(unexpected)} findings in all: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for reason, findings in subject.known.items():
        yield Text(f"  known failure, {len(findings)} findings: {reason}; for example {findings[0].id}")
    for reason, count in sorted(subject.not_applicable.items()):
        yield Text(f"  not applicable, {count} cases: {subject.name} {reason}")
    for reason, counts in subject.skipped.items():
        for count in dict.fromkeys(counts.values()):
            checks = ", ".join(check for check, of_check in counts.items() if of_check == count)
            yield Text(f"  not run, {count} cases of {checks}: {subject.name} {reason}")


def _table(subject: SubjectReport) -> Table:
    """Return the table of a subject, with a row for each check and a column for each dtype."""
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
    """Return the cell of a check in a dtype: how often the check ran, and the largest share of a bound."""
    if tally is None:
        return Text("")
    if tally.failed:
        return Text(f"{tally.failed} of {tally.ran} FAILED", "bold red")
    if tally.ratio is None:
        return Text(f"{tally.ran - tally.expected} passed")
    return Text(f"{tally.ran:<5}{share(tally.ratio):>5}")


def _nearest(subject: SubjectReport) -> Iterator[Text]:
    """Yield a table of the cases nearest to a bound, with the number of comparisons that are no evidence.

    The loss and the gradients have a line for each dtype. Every other check has one line for all dtypes.
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
    """Return a share of a bound as a percentage, or ">10×" if the error is more than ten times the bound."""
    return f"{100 * ratio:.0f}%" if ratio < 10 else ">10×"


def short(ulp: float) -> str:
    """Return a number of ulp in a few digits."""
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"


# The kinds of logits with rows far below zero, and how many other rows may come before such a row. The kinds
# "row_offsets" and "offsets" draw the sign of each row.
_FAR_BELOW = {"negative_offset": 0, "assorted": 3, "row_offsets": 1, "offsets": 1}
_MOST_WORDS = 3  # more words would describe the case itself


def common(subject: SubjectReport, findings: Sequence[Finding]) -> str:
    """Return what the first of these findings has in common with most other findings, but with few passing cases.

    All findings are of one check. The result names the words for which the share of failing cases with these words is
    furthest above the share of passing cases with them. It is "" if the difference is at most one half. A passing case
    is not counted if it is no evidence.
    """
    check, failing = findings[0].check, [finding.case for finding in findings]
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    passing = [case for case, result in measured.items() if not result.failed and not result.vacuous]
    words = _words(failing[0])
    bad, good = _having(words, failing), _having(words, passing)
    if len(failing) < 2 or not passing:
        return ""
    best, most = _by_earlier_calls(subject, check, failing, passing)
    for count in range(1, _MOST_WORDS + 1):
        for chosen in combinations(words, count):
            fails, passes = (reduce(and_, (having[word] for word in chosen)).bit_count() for having in (bad, good))
            above = fails / len(failing) - passes / len(passing)
            if above > most:
                most = above
                shares = f"{fails} of {len(failing)} failing cases, {passes or 'none'} of {len(passing)} passing cases"
                best = f"{', '.join(chosen)}: {shares}"
    return best


def _by_earlier_calls(
    subject: SubjectReport, check: str, failing: Sequence[str], passing: Sequence[str]
) -> tuple[str, float]:
    """Return the words for cases on which a second call gives different bits, and how much more of them fail.

    Return "" and one half if the difference is at most one half. `repeat` itself is about a second call.
    """
    repeated = {
        case: outcome.checks["repeat"] for case, outcome in subject.outcomes.items() if "repeat" in outcome.checks
    }
    unsteady = {case for case, measured in repeated.items() if measured.failed}
    fails, passes = len(unsteady.intersection(failing)), len(unsteady.intersection(passing))
    above = fails / len(failing) - passes / len(passing)
    if check == "repeat" or above <= 0.5:
        return "", 0.5
    shares = f"{fails} of {len(failing)} failing cases, {passes or 'none'} of {len(passing)} passing cases"
    return f"{DEPENDS}: {shares}", above


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, int]:
    """Return, for each word, the cases that have it: one bit for each case."""
    found = dict.fromkeys(words, 0)
    for at, case in enumerate(cases):
        for word in found.keys() & _words(case):
            found[word] |= 1 << at
    return found


def _words(id: str) -> list[str]:
    """Return the words that describe a case, without options at their default; nothing for a bad input."""
    case = case_or_none(id)
    if case is None:
        return []
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    described = {
        shape: True,
        "a weight": case.weight != "unweighted",
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "an ignore_index that is a class": case.ignored != "kept" and 0 <= IGNORED[case.ignored] < case.classes,
        "class probabilities": case.target in DENSE_TARGETS,
        "a target whose sum is not 1": case.target == "unnormalised",
        "uint8 targets": case.target == "uint8",
        f"reduction={case.reduction!r}": True,
        case.dtype: True,
        **{f"more than {limit} classes": case.classes > limit for limit in CLASS_LIMITS},
        **{f"more than {limit} rows": case.rows > limit for limit in ROW_LIMITS if limit},
        case.class_size: True,
        case.row_size: True,
        f"C {'' if case.classes & (case.classes - 1) == 0 else 'not '}a power of two": True,
        f"values {case.values}": True,
        "a row of logits far below zero": case.rows > _FAR_BELOW.get(case.values, case.rows),
        f"logits that are {'contiguous' if case.layout in ('contiguous', 'offset') else 'strided'}": True,
        "an upstream gradient other than 1": case.upstream != "one",
    }
    return [word for word, applies in described.items() if applies]
