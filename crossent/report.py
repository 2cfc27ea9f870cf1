"""Reports: everything that one run found, and everything that it did not run."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Finding:
    """A failed check, with its numbers in the message."""

    check: str
    case: str
    kind: str  # "wrong", or "refused" where the subject raised
    message: str

    def __str__(self) -> str:
        return f"{self.check} {self.kind} on {self.case}\n  {self.message}"


@dataclass
class Tally:
    """The worst difference of one check on one dtype, and the case where it was."""

    error: float = 0.0
    ratio: float = 0.0
    case: str = ""

    def add(self, error: float, ratio: float, case: str) -> None:
        """Enter one difference."""
        self.error = max(self.error, error)
        if ratio >= self.ratio:
            self.ratio, self.case = ratio, case


@dataclass
class SubjectReport:
    """One subject's part: what ran for each dtype, what was found, and why the rest did not run."""

    name: str
    cases: Counter[str] = field(default_factory=Counter)
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    not_applicable: Counter[str] = field(default_factory=Counter)

    def tally(self, check: str, dtype: str) -> Tally:
        """The tally of one check on one dtype, made when it is first asked for."""
        return self.tallies.setdefault((check, dtype), Tally())

    def failed(self, dtype: str) -> int:
        """How many cases of this dtype have a finding."""
        return len({finding.case for finding in self.findings if finding.case.startswith(f"{dtype}-")})


@dataclass
class Report:
    """One run: its environment and a part for each subject.

    `str(report)` is the readable table; `report.ok` is True where something ran and nothing was found.
    """

    environment: dict[str, str]
    subjects: list[SubjectReport] = field(default_factory=list)

    @property
    def ran(self) -> int:
        """How many calls were judged: cases, times the subjects that they apply to."""
        return sum(sum(subject.cases.values()) for subject in self.subjects)

    @property
    def findings(self) -> list[Finding]:
        """Those of every subject."""
        return [finding for subject in self.subjects for finding in subject.findings]

    @property
    def ok(self) -> bool:
        """Whether something ran and nothing was found."""
        return self.ran > 0 and not self.findings

    def render(self, most_findings: int = 5) -> RenderableType:
        """The table, the findings, and what did not run and why."""
        parts: list[RenderableType] = [Text("  ".join(f"{k} {v}" for k, v in self.environment.items()))]
        parts.append(self._table())
        for subject in self.subjects:
            for finding in subject.findings[:most_findings]:
                parts.append(Text(f"{subject.name}: {finding}"))
            if len(subject.findings) > most_findings:
                parts.append(Text(f"{subject.name}: … and {len(subject.findings) - most_findings} more findings"))
            for reason, count in sorted(subject.not_applicable.items()):
                parts.append(Text(f"not applicable: {subject.name} {reason} ({count} cases)"))
        parts.append(Text(self.summary))
        return Group(*parts)

    @property
    def summary(self) -> str:
        """The run in one line."""
        if not self.ran:
            return "nothing ran"
        if self.findings:
            return f"{len(self.findings)} findings in {self.ran} checked calls"
        return f"{self.ran} calls checked, each equal to nn.CrossEntropyLoss within what rounding allows"

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("form", no_wrap=True)
        table.add_column("dtype", no_wrap=True)
        table.add_column("cases", justify="right", no_wrap=True)
        for check in ("loss", "gradient"):
            table.add_column(f"{check}:\nworst", justify="right", no_wrap=True)
            table.add_column("of\nbound", justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for subject in self.subjects:
            for dtype, count in subject.cases.items():
                cells = [subject.name, dtype, str(count)]
                for check in ("loss", "gradient"):
                    tally = subject.tallies.get((check, dtype))
                    cells += [f"{tally.error:.1e}", _share(tally.ratio)] if tally else ["–", "–"]
                failed = subject.failed(dtype)
                verdict = Text(f"{failed} wrong", "bold red") if failed else Text("equal", "green")
                table.add_row(*cells, verdict)
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=100).print(self.render())
        return text.getvalue().rstrip()


def _share(ratio: float) -> str:
    """A ratio of error to bound as a percentage; beyond ten times the bound the number says no more."""
    return f"{100 * ratio:.0f} %" if ratio < 10 else "> 10 ×"
