"""Text: a report as a terminal shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.findings import SubjectReport


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
    surprising = [finding for finding in subject.findings if finding.expected is None]
    # One of each sort before another of the same.
    sorts = {(f.check, f.kind, "" if f.numbers else f.message): f for f in reversed(surprising)}
    shown = list(reversed(sorts.values()))[:most_findings]
    for finding in shown:
        yield Text(f"\n{finding}\n")
    if len(surprising) > len(shown):
        kinds = Counter(f"{finding.check} {finding.kind}" for finding in surprising)
        yield Text(f"  … of {len(surprising)} findings: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    for reason, count in Counter(finding.expected for finding in subject.findings if finding.expected).items():
        yield Text(f"  expected, {count} findings: {reason}")
    for reason, count in sorted(subject.not_applicable.items()):
        yield Text(f"  not applicable, {count} cases: {subject.name} {reason}")
    for check, reasons in subject.not_run.items():
        for reason, count in sorted(reasons.items()):
            yield Text(f"  not run, {check} on {count} cases: {subject.name} {reason}")


def _table(subject: SubjectReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    table.add_column("check", no_wrap=True)
    for heading in ("ran", "no ev-\nidence", "worst\nulp", "of\nbound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("grade", justify="center", no_wrap=True)
    table.add_column("on", overflow="fold")
    grades = subject.grades
    quiet: Counter[str] = Counter()
    for (check, dtype), tally in subject.tallies.items():
        if tally.ratio is not None and tally.ulp is not None:
            worst = [str(tally.vacuous), _short(tally.ulp), _share(tally.ratio), grades.get(dtype, "–"), tally.case]
        elif tally.failed or tally.expected:
            failed = [f"{tally.failed} failed"] if tally.failed else []
            failed += [f"{tally.expected} failed as expected"] if tally.expected else []
            worst = ["", "", "", "", f"{dtype}: {', '.join(failed)}"]
        else:
            quiet[check] += tally.ran
            continue
        # Texts: a string's brackets would be taken for markup.
        table.add_row(*map(Text, (check, str(tally.ran), *worst)), style="red" if tally.failed else "")
    for check, ran in quiet.items():
        table.add_row(check, str(ran), "", "", "", "", "held on all of them")
    return table


def _share(ratio: float) -> str:
    """A ratio of error to bound as a percentage; beyond ten times the bound the number says no more."""
    return f"{100 * ratio:.0f} %" if ratio < 10 else "> 10 ×"


def _short(ulp: float) -> str:
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"
