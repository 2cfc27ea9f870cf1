"""Reports: everything that one run found, and everything that it did not run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from crossent.report.document import SCHEMA, jsonable, subject_json, write_whole
from crossent.report.findings import Finding, SubjectReport, Tally, together
from crossent.report.html import page
from crossent.report.text import plain_text, rendered


@dataclass
class Report:
    """One run: its environment and a part for each subject.

    `str(report)` is the readable table; `report.ok` is True where something ran and nothing unexpected was found.

    Attributes:
        environment: what a reader must know to repeat the run.
        level, seed: of the cases.
        mended: expected findings whose cases ran and did not fail: each a line for the list that can go.
        triples: how many different sets of three choices stand together in the cases.
        left_out: the checks that the level does not ask.
        planned: how many cases there would have been, of a run that was interrupted.
    """

    environment: dict[str, str]
    subjects: list[SubjectReport] = field(default_factory=list)
    level: str = "normal"
    seed: int = 0
    mended: list[str] = field(default_factory=list)
    triples: int = 0
    left_out: Sequence[str] = ()
    planned: int | None = None

    @property
    def ran(self) -> int:
        """How many calls were judged: cases, times the subjects that they apply to."""
        return sum(len(subject.outcomes) for subject in self.subjects)

    @property
    def cases(self) -> int:
        """How many cases ran on a subject or more."""
        return len({case for subject in self.subjects for case in subject.outcomes})

    @property
    def elements(self) -> int:
        """How many numbers were judged: of losses and gradients, of every subject."""
        tallies = (tally for subject in self.subjects for tally in subject.tallies.values())
        return sum(tally.elements - tally.not_judged.total() for tally in tallies)

    @property
    def compared(self) -> Tally:
        """All comparisons in one: of the checks that measure numbers, on every case, of every subject."""
        tallies = (tally for subject in self.subjects for tally in subject.tallies.values())
        return together(tally for tally in tallies if tally.ratio is not None)

    @property
    def findings(self) -> list[Finding]:
        """Those of every subject that nobody expected."""
        return [finding for subject in self.subjects for finding in subject.findings if finding.expected is None]

    @property
    def ok(self) -> bool:
        """Whether all of something ran, nothing unexpected was found, and none of it was without evidence."""
        evident = self.ran > 0 and self.planned is None
        return evident and not self.findings and not any(subject.without_evidence for subject in self.subjects)

    @property
    def summary(self) -> str:
        """The run in one line."""
        if self.planned is not None:
            return f"INTERRUPTED after {self.cases} of {self.planned} cases, with {len(self.findings)} findings"
        if not self.ran:
            return "nothing ran"
        if self.findings:
            return f"{len(self.findings)} findings in {self.ran} checked calls"
        if not self.ok:
            return f"{self.ran} calls checked and nothing found, but not everything has evidence"
        known = sum(subject.counts["expected"] for subject in self.subjects)
        but = f", but for {known} known findings" if known else ""
        return f"{self.ran} calls checked, every number within what rounding allows of the exact one{but}"

    def sort(self, cases: list[str]) -> None:
        """Put outcomes and findings in the order of these ids, which are all of its cases."""
        places = {case: at for at, case in enumerate(cases)}
        for subject in self.subjects:
            subject.outcomes = dict(sorted(subject.outcomes.items(), key=lambda entry: places[entry[0]]))
            subject.findings.sort(key=lambda finding: places[finding.case])

    def render(self, most_findings: int = 4) -> list[RenderableType]:
        """A table for each subject, the findings, and what did not run and why."""
        parts: list[RenderableType] = [Text("  ".join(f"{k} {v}" for k, v in self.environment.items()))]
        for subject in self.subjects:
            parts += rendered(subject, most_findings)
        parts += [Text(), *(Text(line) for line in self._fine_print()), Text(self.summary)]
        return parts

    def _fine_print(self) -> Iterator[str]:
        """What the run looked at, and what it says nothing about."""
        yield f"level {self.level}, seed {self.seed}"
        yield f"{self.cases} cases, in which {self.triples} sets of three choices meet; {self.elements} numbers judged"
        if self.level == "quick":
            yield "THIS WAS A QUICK RUN: of the choices, every two meet, and not every three; --level normal asks more"
        if self.left_out:
            yield f"not asked at level {self.level}: {', '.join(self.left_out)}"
        compared = self.compared
        if compared.vacuous:
            yield f"no evidence, since zeros or a constant would pass: {compared.vacuous} of {compared.ran} comparisons"
        for reason, count in sorted(compared.not_judged.items()):
            yield f"not judged, since {reason}: {count} of {compared.elements} numbers"
        for subject in self.subjects:
            for nothing in subject.without_evidence:
                yield f"NO EVIDENCE: every comparison of {subject.name}'s {nothing} would let zeros or a constant pass"
        for line in self.mended:
            yield f"no longer happens: {line}"

    def __str__(self) -> str:
        return plain_text(self.render())

    def to_json(self) -> dict[str, Any]:
        """The report in schema 1: numbers are JSON's, and "nan", "inf" and "-inf" are strings."""
        document = {
            "schema": SCHEMA,
            "crossent": self.environment.get("crossent", ""),
            "level": self.level,
            "coverage": {"cases": self.cases, "triples": self.triples, "elements": self.elements},
            "left_out": list(self.left_out),
            "seed": self.seed,
            "planned": self.planned,
            "environment": self.environment,
            "subjects": [subject_json(subject) for subject in self.subjects],
            "mended": self.mended,
        }
        made: dict[str, Any] = jsonable(document)
        return made

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file: all of it or, where that fails, nothing."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write it to a file as one page for a browser: all of it or, where that fails, nothing."""
        write_whole(path, page(self))
