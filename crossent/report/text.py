"""Show the parts of a report as text for a terminal."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.cases.axes import DTYPES
from crossent.report.causes import Cause, causes, published, split_by_feature
from crossent.report.findings import NUMBERS, SubjectReport, Tally
from crossent.words import DECLARED, as_options, counted, first_names


def plain_text(parts: Iterable[RenderableType]) -> str:
    """Return the parts of a report as text without colours, with tables and paragraphs of at most 100 columns."""
    text = io.StringIO()
    # Without these arguments, FORCE_COLOR adds colours, and a notebook gets the text in place of `text`.
    console = Console(file=text, width=100, color_system=None, force_terminal=False, force_jupyter=False)
    for part in parts:
        console.print(part, soft_wrap=keeps_lines(part))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def paragraph(text: str) -> Text:
    """Return a text as a paragraph, which rich wraps at the width of the terminal."""
    return Text(text, overflow="fold")


def keeps_lines(part: RenderableType) -> bool:
    """Return whether a part of a report keeps its lines, so that users can copy commands from it."""
    return isinstance(part, Text) and part.overflow is None


# For each kind of finding, what the call did.
_DID = {
    "wrong": "gave a wrong result",
    "refused": "raised",
    "accepted": "did not raise",
    "changed_input": "wrote into an argument",
    "aliased": "returned memory of an argument",
    "changed_state": "changed global state",
    "not_repeated": "gave other bits when repeated",
    "disturbed": "changed another loss of the same logits",
    "crashed": "crashed",
    "hung": "hung",
}
# The checks whose findings of a kind need other words.
_DID_IN = {
    "errors": _DID | {"wrong": "raised another class of error", "accepted": "accepted"},
    "memory": _DID | {"wrong": "took too much memory"},
}
# The reason why a comparison is not evidence: see `vacuous` of crossent.report.findings.Measured.
NO_EVIDENCE = "a wrong result, such as zeros, would pass too"
LEGEND = "for each dtype: the grade, and the largest error as a share of its error bound"


def overview(subjects: Sequence[SubjectReport], *, ended: bool = True, part: bool = False) -> Table:
    """Return a table with a row for each subject: its result, its counts, and its grade and largest error by dtype.

    Args:
        subjects: the reports of the subjects.
        ended: whether the run reached its last case.
        part: whether only chosen checks or cases, or only a shard, ran.
    """
    parts = {subject.name: subject.tallies for subject in subjects}
    dtypes = [dtype for dtype in DTYPES if any(of == dtype for part in parts.values() for _, of in part)]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("subject", overflow="fold", header_style="dim")
    table.add_column("result", no_wrap=True, header_style="dim")
    for number in ("known", "cases", "checks"):
        table.add_column(number, no_wrap=True, justify="right", header_style="dim")
    for dtype in dtypes:
        table.add_column(dtype, no_wrap=True, header_style="dim")
    for subject in subjects:
        tallies, grades, counts = parts[subject.name], subject.grades, subject.counts
        of = {dtype: [tally for (_, its), tally in tallies.items() if its == dtype] for dtype in dtypes}
        cells = [_of_dtype(own, grades.get(dtype)) for dtype, own in of.items()]
        numbers = (counts["expected"] or "", counts["ran"], len({check for check, _ in tallies}))
        table.add_row(Text(subject.name), _result(subject, ended, part), *map(str, numbers), *cells)
    return table


def _result(subject: SubjectReport, ended: bool, part: bool) -> Text:
    failed = subject.counts["failed"]
    if failed:
        return Text(f"{failed} FAILED", "bold red")
    if not subject.outcomes:
        return Text("nothing ran", "bold red" if not part else "")
    if not ended:
        return Text("so far", "yellow")
    unproven = subject.without_evidence and not part
    return Text("UNPROVEN", "bold red") if unproven else Text("PASSED", "green")


def not_covered(subject: SubjectReport) -> Iterator[str]:
    """Yield a line about the cases that are not applicable, and a line about the checks that need a missing feature."""
    if subject.not_applicable:
        number = counted(sum(subject.not_applicable.values()), "case")
        lacking = [reason for reason in subject.not_applicable if reason.startswith(DECLARED)]
        others = [reason for reason in subject.not_applicable if reason not in lacking]
        declared = ", ".join(sorted(reason.removeprefix(DECLARED) for reason in lacking))
        reasons = first_names([*others, *([f"{DECLARED}{declared}"] if declared else [])])
        yield f"not applicable: {number}, since {subject.name} {reasons}"
    if missing := missing_features_by_check(subject):
        features = first_names(list(dict.fromkeys(missing.values())))
        yield f"not checked: {', '.join(missing)}, since {subject.name} {DECLARED}{features}"


def missing_features_by_check(subject: SubjectReport) -> dict[str, str]:
    """Return the checks that ran on no case, each with a declared missing feature that the check needs."""
    ran = {check for check, _ in subject.tallies}
    missing: dict[str, str] = {}
    for check, reasons in subject.not_run.items():
        declared = [reason.removeprefix(DECLARED) for reason in reasons if reason.startswith(DECLARED)]
        if declared and check not in ran:
            missing[check] = declared[0]
    return missing


def _of_dtype(tallies: Sequence[Tally], grade: str | None) -> Text:
    """Return the grade and the largest share of a bound in one dtype, such as "A 43%"."""
    ratios = [tally.ratio for tally in tallies if tally.ratio is not None]
    failed = any(tally.failed for tally in tallies)
    said = " ".join([*([grade] if grade else []), *([share(max(ratios))] if ratios else [])])
    return Text(said or "failed" * failed, "red" if failed else "")


def failures(subject: SubjectReport, most: int | None, *, ids: bool = False) -> Iterator[RenderableType]:
    """Yield the lines about each probable cause of a subject's findings, with one example for each cause.

    `most` limits the number of causes that no missing feature explains. `ids` adds the ids of all findings of each
    cause shown.
    """
    wrong, declarable = split_by_feature(causes(subject))
    for at, cause in enumerate(wrong[:most], start=1):
        counts = ", ".join(f"{check} {count}" for check, count in cause.checks.items())
        which = f"cause {at} of {len(wrong)}, " if len(wrong) > 1 else ""
        yield Text()
        yield Text(f"{which}{counted(len(cause.findings), 'finding')}: {counts}", "bold")
        if cause.common:
            yield Text(f"  where   {cause.common}", "bold")
        if bug := published(subject, cause):
            yield Text(f"  corpus  {bug}")
        if cause.lacks:
            yield Text(f"  declare {as_options(without=[cause.lacks])}, if the feature is missing on purpose")
        yield Text(str(cause.example))
        if ids:
            yield from _ids(cause)
    if hidden := wrong[len(wrong[:most]) :]:
        number = counted(sum(len(cause.findings) for cause in hidden), "finding")
        shown = "-v shows them, and report.findings in Python"
        yield Text(f"\n{counted(len(hidden), 'more cause')} with {number}: {shown}", "dim")
    yield from _declarable(declarable, ids=ids)


def _ids(cause: Cause) -> Iterator[Text]:
    yield Text("  findings of this cause", "dim")
    for finding in cause.findings:
        yield Text(f"    {finding.id}")


def _declarable(found: Sequence[Cause], *, ids: bool) -> Iterator[Text]:
    """Yield the lines about causes that missing features explain, with the option that declares the features."""
    if not found:
        return
    options = as_options(without=[cause.feature for cause in found])
    number = counted(sum(len(cause.findings) for cause in found), "finding")
    if len(found) == 1:
        said = f"A missing feature would explain {number}. If it is missing on purpose, declare it"
    else:
        said = f"Missing features would explain {number}. Declare each feature that is missing on purpose"
    yield Text(f"\n{said}: {options}", "bold")
    for cause in found:
        first = cause.findings[0]
        yield Text(f"  {cause.feature}: {explained(cause)}; {first.case}: {first.message.partition(chr(10))[0]}")
        if ids:
            yield from _ids(cause)


def explained(cause: Cause) -> str:
    """Return a phrase about the findings of a cause, such as "152 calls raised with class probabilities"."""
    counts = Counter((finding.check if finding.check in _DID_IN else "", finding.kind) for finding in cause.findings)
    phrases = []
    for (check, kind), count in counts.items():
        did = _DID_IN.get(check, _DID)
        # The kind of a finding from a file may be any text.
        phrases.append(f"{counted(count, 'bad input' if check == 'errors' else 'call')} {did.get(kind, kind)}")
    said = ", ".join(phrases)
    if [*cause.checks] == ["errors"]:
        return said
    if cause.common:
        return f"{said} with {', '.join(cause.common.words)}"
    return f"{said} in the check{'s' * (len(cause.checks) > 1)} {', '.join(cause.checks)}"


def in_short(subject: SubjectReport) -> Iterator[str]:
    """Yield short lines about the contract, the declared differences and the known failures of a subject."""
    promised = [f"has the contract {subject.contract}"] * bool(subject.contract) + list(subject.declared)
    if promised:
        yield f"declared: {subject.name} {'; '.join(promised)}"
    if known := subject.known:
        cases = {finding.case for findings in known.values() for finding in findings}
        number, reasons = counted(len(cases), "case"), counted(len(known), "reason")
        yield f"{subject.name} has known failures on {number}, for {reasons}; -v lists the reasons"


def details(subject: SubjectReport) -> Iterator[RenderableType]:
    """Yield a subject's contract and declared differences, its table by check and dtype, and its known failures."""
    yield Text()
    yield Text(subject.name, "bold")
    if subject.contract:
        yield Text(f"  judged under the contract {subject.contract}")
    if subject.declared:
        yield Text(f"  declared: {subject.name} {'; '.join(subject.declared)}")
    if subject.outcomes:
        yield Padding(_table(subject), (0, 0, 0, 2))
    for reason, findings in subject.known.items():
        yield Text(f"  {counted(len(findings), 'known failure')}: {reason}; for example {findings[0].id}")


def gaps(subject: SubjectReport) -> Iterator[RenderableType]:
    """Yield the cases nearest to a bound, and the cases and checks that did not run, with the reasons."""
    if subject.outcomes:
        yield from _nearest(subject)
    for reason, count in sorted(subject.not_applicable.items()):
        yield Text(f"  not applicable, {counted(count, 'case')}: {subject.name} {reason}")
    for reason, counts in subject.skipped.items():
        for count in dict.fromkeys(counts.values()):
            checks = [check for check, of_check in counts.items() if of_check == count]
            of = f"{'each of ' if len(checks) > 1 else ''}{', '.join(checks)}"
            yield Text(f"  not run, {counted(count, 'case')} of {of}: {subject.name} {reason}")


def _table(subject: SubjectReport) -> Table:
    """Return a table with a row for each check and a column for each dtype."""
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
    """Return the cell of a check in a dtype, such as "40 12%": 40 cases, and a largest error of 12% of its bound."""
    if tally is None:
        return Text("")
    if tally.failed:
        return Text(f"✗ {tally.failed}/{tally.ran}", "bold red")
    if tally.ratio is None:
        return Text(f"{tally.ran - tally.expected} passed")
    return Text(f"{tally.ran:<5}{share(tally.ratio):>5}")


def _nearest(subject: SubjectReport) -> Iterator[Text]:
    """Yield the lines of a table: for each check, the case nearest to a bound."""
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
    """Return a share of a bound as a percentage, or ">10×".

    >>> share(0.123), share(1.002), share(12)
    ('12%', '>100%', '>10×')
    """
    percent = f"{100 * ratio:.0f}%"
    if ratio > 1 and percent == "100%":
        return ">100%"
    return percent if ratio < 10 else ">10×"  # also for NaN


def short(ulp: float) -> str:
    """Return an error in ulp in a few digits, such as "0.5" or "2e+04"."""
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"
