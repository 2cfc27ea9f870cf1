"""Reports: everything that one run found, and everything that it did not run."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Console, RenderableType
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
    """One check on one dtype: what it judged, and where it came nearest to its bound."""

    ran: int = 0
    vacuous: int = 0
    judged: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    ulp: float = 0.0
    ratio: float = 0.0
    case: str = ""

    def add(
        self, case: str, ulp: float, ratio: float, judged: int, not_judged: Mapping[str, int], vacuous: bool
    ) -> None:
        """Enter one difference."""
        self.ran += 1
        self.vacuous += vacuous
        self.judged += judged
        self.not_judged.update(not_judged)
        if ratio >= self.ratio:
            self.ulp, self.ratio, self.case = ulp, ratio, case


@dataclass
class SubjectReport:
    """One subject's part: what ran for each dtype, what was found, and why the rest did not run."""

    name: str
    cases: Counter[str] = field(default_factory=Counter)
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    grades: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    not_applicable: Counter[str] = field(default_factory=Counter)

    def tally(self, check: str, dtype: str) -> Tally:
        """The tally of one check on one dtype, made when it is first asked for."""
        return self.tallies.setdefault((check, dtype), Tally())

    def grade(self, dtype: str, reached: str) -> None:
        """Enter the grade that one case reached: the subject's is the lowest, and A comes before B and F."""
        self.grades[dtype] = max(self.grades.get(dtype, reached), reached)

    def failed(self, dtype: str) -> int:
        """How many cases of this dtype have a finding."""
        return len({finding.case for finding in self.findings if finding.case.startswith(f"{dtype}-")})

    @property
    def without_evidence(self) -> list[str]:
        """The checks and dtypes of which every case would let a constant pass."""
        return [f"{check} in {dtype}" for (check, dtype), tally in self.tallies.items() if tally.vacuous == tally.ran]


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
        """Whether something ran, nothing was found, and none of it was without evidence."""
        return self.ran > 0 and not self.findings and not any(subject.without_evidence for subject in self.subjects)

    def render(self, most_findings: int = 5) -> list[RenderableType]:
        """The table, the findings, and what did not run and why."""
        parts: list[RenderableType] = [Text("  ".join(f"{k} {v}" for k, v in self.environment.items()))]
        parts.append(self._table())
        for subject in self.subjects:
            for finding in subject.findings[:most_findings]:
                parts.append(Text(f"{subject.name}: {finding}"))
            if len(subject.findings) > most_findings:
                parts.append(Text(f"{subject.name}: … and {len(subject.findings) - most_findings} more findings"))
        parts.extend(Text(line) for line in self._fine_print())
        parts.append(Text(self.summary))
        return parts

    @property
    def summary(self) -> str:
        """The run in one line."""
        if not self.ran:
            return "nothing ran"
        if self.findings:
            return f"{len(self.findings)} findings in {self.ran} checked calls"
        if not self.ok:
            return f"{self.ran} calls checked and nothing found, but not everything has evidence"
        return f"{self.ran} calls checked, each equal to the exact answer within what rounding allows"

    def _fine_print(self) -> Iterator[str]:
        """Where the run came nearest to a bound, what of it says nothing, and what did not run."""
        for check in ("loss", "gradient"):
            named = [(t, s.name) for s in self.subjects for (of, _), t in s.tallies.items() if of == check]
            if named:
                tally, name = max(named, key=lambda pair: pair[0].ratio)
                yield f"{check} with the largest share of its bound: {name} on {tally.case}"
        every = [tally for subject in self.subjects for tally in subject.tallies.values()]
        ran, vacuous = sum(tally.ran for tally in every), sum(tally.vacuous for tally in every)
        if vacuous:
            yield f"no evidence, since zeros or a constant would pass: {vacuous} of {ran} comparisons"
        numbers = sum(tally.judged + tally.not_judged.total() for tally in every)
        for reason, count in sum((tally.not_judged for tally in every), Counter[str]()).most_common():
            yield f"not judged, since {reason}: {count} of {numbers} numbers"
        for subject in self.subjects:
            for nothing in subject.without_evidence:
                yield f"NO EVIDENCE: every comparison of {subject.name}'s {nothing} would let zeros or a constant pass"
            for reason, count in sorted(subject.not_applicable.items()):
                yield f"not applicable: {subject.name} {reason} ({count} cases)"

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("subject", no_wrap=True)
        table.add_column("dtype", no_wrap=True)
        table.add_column("cases", justify="right", no_wrap=True)
        for heading in ("loss:", "grad.:"):
            table.add_column(f"{heading}\nulp", justify="right", no_wrap=True)
            table.add_column("of\nbound", justify="right", no_wrap=True)
        table.add_column("grade", justify="center", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for subject in self.subjects:
            for dtype, count in subject.cases.items():
                cells = [subject.name, dtype, str(count)]
                for check in ("loss", "gradient"):
                    tally = subject.tallies.get((check, dtype))
                    cells += [_short(tally.ulp), _share(tally.ratio)] if tally else ["–", "–"]
                cells.append(subject.grades.get(dtype, "–"))
                failed = subject.failed(dtype)
                verdict = Text(f"{failed} failed", "bold red") if failed else Text("equal", "green")
                table.add_row(*cells, verdict)
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        console = Console(file=text, width=100)
        for part in self.render():
            console.print(part, soft_wrap=isinstance(part, Text))
        return text.getvalue().rstrip()


def _share(ratio: float) -> str:
    """A ratio of error to bound as a percentage; beyond ten times the bound the number says no more."""
    return f"{100 * ratio:.0f} %" if ratio < 10 else "> 10 ×"


def _short(ulp: float) -> str:
    return f"{ulp:.1f}" if ulp < 1000 else f"{ulp:.0e}"
