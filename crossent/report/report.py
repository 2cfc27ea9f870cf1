"""Report: the results and findings of one run, its verdict, and the first and last lines of its text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from crossent.cases.grid import sized_triples
from crossent.cases.ids import case_or_none
from crossent.choices import LEVELS
from crossent.files import write_whole
from crossent.report.causes import clearest_first
from crossent.report.document import SCHEMA, Shard, jsonable, shard_json, subject_json
from crossent.report.findings import Finding, SubjectReport, Tally, together
from crossent.report.html import notebook, page
from crossent.report.text import (
    LEGEND,
    NO_EVIDENCE,
    details,
    failures,
    gaps,
    in_short,
    missing_features_by_check,
    not_covered,
    overview,
    paragraph,
    plain_text,
)
from crossent.words import counted, cut, duration, first_names

MOST_CAUSES = 3  # the most causes of a subject that a report without -v shows, with one finding each


@dataclass
class Report:
    """One run: its environment, and a report on each subject.

    `str(report)` is the report as text. `report.ok` is the verdict: whether the run passed.

    Attributes:
        environment: the versions and the device, which a reader needs to repeat the run.
        subjects: the results and findings of each subject.
        level, seed: the level and the seed of the cases.
        fixed: known failures that were tested and no longer happen. Delete their entries in the list of known failures.
        triples: the number of different combinations of three options in the cases that ran.
        left_out: the checks that are planned for no case. If the user chose checks, only the chosen checks are listed.
            Empty if the user chose cases.
        planned: None for a complete run. If the run was interrupted or stopped early, the number of planned cases.
        stopped: whether the run stopped early, because it reached `max_findings`.
        only: the chosen checks under the key "checks", and the ids and patterns of the chosen cases under the key
            "cases". Empty if the user chose neither.
        without: the features that the user declared as missing.
        grade: the grade that the user chose; "" for the default.
        seconds: how long the run took; None if unknown, for example for a report from a file.
        shard: the description of the shard that ran, or None for a whole run.
    """

    environment: dict[str, str]
    subjects: list[SubjectReport] = field(default_factory=list)
    level: str = "normal"
    seed: int = 0
    fixed: list[str] = field(default_factory=list)
    triples: int = 0
    left_out: Sequence[str] = ()
    planned: int | None = None
    stopped: bool = False
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    without: Sequence[str] = ()
    grade: str = ""
    seconds: float | None = field(default=None, compare=False)
    shard: Shard | None = None

    def __repr__(self) -> str:
        """Return the run in one line: the names of the subjects, and the summary.

        >>> Report({})
        <Report: no subjects; nothing ran>
        """
        names = ", ".join(subject.name for subject in self.subjects) or "no subjects"
        return f"<Report: {cut(names)}; {self.summary}>"

    @property
    def ran(self) -> int:
        """The number of checked calls: one for each subject and each case that ran on the subject."""
        return sum(len(subject.outcomes) for subject in self.subjects)

    @property
    def cases(self) -> int:
        """The number of cases that ran on at least one subject."""
        return len({case for subject in self.subjects for case in subject.outcomes})

    @property
    def sized(self) -> tuple[int, int]:
        """The numbers of different pairs and triples in the cases that ran.

        A pair is a range of sizes and an option. A triple also has a dtype.
        """
        ids = dict.fromkeys(case for subject in self.subjects for case in subject.outcomes)
        triples = {triple for case in map(case_or_none, ids) if case is not None for triple in sized_triples(case)}
        return len({(size, option) for size, option, _ in triples}), len(triples)

    @property
    def elements(self) -> int:
        """The number of compared elements with a finite error bound, summed over all checks and subjects."""
        tallies = (tally for subject in self.subjects for tally in subject.tallies.values())
        return sum(tally.elements - tally.not_judged.total() for tally in tallies)

    @property
    def compared(self) -> Tally:
        """The counts of all checks that compare numbers, summed over all subjects and dtypes."""
        tallies = (tally for subject in self.subjects for tally in subject.tallies.values())
        return together(tally for tally in tallies if tally.ratio is not None)

    @property
    def findings(self) -> list[Finding]:
        """The findings that are not known failures, in the order of the printed report.

        The order is by subject, then by cause. Each cause starts with its clearest finding.
        """
        return [finding for subject in self.subjects for finding in clearest_first(subject)]

    @property
    def failed(self) -> int:
        """The number of findings that are not known failures."""
        return sum(finding.expected is None for subject in self.subjects for finding in subject.findings)

    @property
    def is_part(self) -> bool:
        """Whether only chosen checks or cases, or only a shard, ran."""
        return bool(self.only) or self.shard is not None

    @property
    def ok(self) -> bool:
        """Whether the run is complete, has no findings except known failures, and has evidence for every result.

        A result, such as the loss in float16, has evidence if a wrong result, such as zeros, would fail on some case.
        At least one case must have run on every subject.

        If the user chose checks or cases, the run needs no evidence. Then a case must have run on at least one subject,
        and at least one of the chosen checks must have run. A shard is ok if the shard is complete and has no findings
        except known failures.
        """
        if self.shard is not None:
            return self.planned is None and not self.failed
        complete = self.ran > 0 and self.planned is None and not self._no_chosen_check_ran
        unproven = self.unchecked or any(subject.without_evidence for subject in self.subjects)
        return complete and not self.failed and (bool(self.only) or not unproven)

    @property
    def unchecked(self) -> list[str]:
        """The names of the subjects on which no case ran."""
        return [subject.name for subject in self.subjects if not subject.outcomes]

    @property
    def _no_chosen_check_ran(self) -> bool:
        """Whether the user chose checks, and none of these checks ran on a case."""
        return not any(map(self._tested, self.subjects)) and bool(self.only.get("checks"))

    def _tested(self, subject: SubjectReport) -> bool:
        """Return whether a check ran on a subject. If the user chose checks, only the chosen checks count."""
        chosen = self.only.get("checks")
        return any(not chosen or not one.checks.keys().isdisjoint(chosen) for one in subject.outcomes.values())

    @property
    def summary(self) -> str:
        """The result of the run in one line, such as "2 findings in 40 checked calls"."""
        if self.planned is not None:
            word = "STOPPED EARLY" if self.stopped else "INTERRUPTED"
            number = counted(self.failed, "finding")
            return f"{word} after {self.cases:,} of {self.planned:,} cases, with {number}"
        if not self.ran and self.shard is None:
            return "nothing ran"
        if self.failed:
            return f"{counted(self.failed, 'finding')} in {counted(self.ran, 'checked call')}"
        calls = f"{counted(self.ran, 'call')} checked"
        if self.shard is not None:
            return f"{calls} without findings; `crossent merge` gives the verdict on all shards"
        if self._no_chosen_check_ran and not set(self.only["checks"]) <= set(self.left_out):
            return f"{calls}, but every chosen check was skipped; -vv lists the reasons"
        if self._no_chosen_check_ran:
            advice = "" if self.level == LEVELS[-1] else "; choose a higher level"
            return f"{calls}, but no chosen check is planned for a case of level {self.level}{advice}"
        if self.unchecked and not self.only:
            return f"{calls} without findings, but no case ran on {first_names(self.unchecked)}"
        if not self.ok:
            return f"{calls} without findings, but some results have no evidence"
        uncovered = [f"no case ran on {first_names(self.unchecked)}"] if self.unchecked else []
        if untested := [subject.name for subject in self.subjects if subject.outcomes and not self._tested(subject)]:
            uncovered.append(f"no chosen check ran on {first_names(untested)}")
        if blind := [subject.name for subject in self.subjects if "gradient" in missing_features_by_check(subject)]:
            uncovered.append(f"no gradient of {first_names(blind)} was checked")
        known = sum(subject.counts["expected"] for subject in self.subjects)
        failures = f", except in {counted(known, 'call')} with known failures" if known else ""
        differences = sum(len(subject.declared) for subject in self.subjects if subject.outcomes)
        declared = f", with {counted(differences, 'declared difference')}" if differences else ""
        judged = "every judged number within its error bound" if self.elements else "every check passed"
        return "; ".join([f"{calls}, {judged}{failures}{declared}", *uncovered])

    def sort(self, cases: list[str]) -> None:
        """Sort outcomes and findings in place, in the order of `cases`, the ids of all cases that ran."""
        places = {case: at for at, case in enumerate(cases)}
        for subject in self.subjects:
            subject.not_applicable = Counter(dict(sorted(subject.not_applicable.items())))
            subject.outcomes = dict(sorted(subject.outcomes.items(), key=lambda entry: places[entry[0]]))
            subject.findings.sort(key=lambda finding: places[finding.case])

    def render(self, verbosity: int = 0) -> list[RenderableType]:
        """Return the report as renderables of rich, for `crossent check`.

        Args:
            verbosity: -1 gives the verdict alone. 0 gives a table with a row for each subject, the clearest findings
                and the coverage. 1 adds a table by check and dtype for each subject, all causes and the known failures.
                2 adds the environment, the id of each finding, the cases nearest to a bound, and why cases or checks
                did not run.
        """
        if verbosity < 0:
            return [self._verdict()]
        parts: list[RenderableType] = [Text(line) for line in self._head(verbosity)]
        if self.ran:
            table = overview(self.subjects, ended=self.planned is None, part=self.is_part)
            parts += [Text(), table, Text(LEGEND, "dim")]
        for subject in self.subjects:
            if verbosity > 0:
                parts += details(subject)
            else:
                parts += map(paragraph, in_short(subject))
            if verbosity > 1:
                parts += gaps(subject)
            parts += failures(subject, MOST_CAUSES if verbosity == 0 else None, ids=verbosity > 1)
        parts += [Text(), *map(paragraph, self._coverage())]
        parts += [Text(line) for line in (self._every_gap() if verbosity > 1 else ())]
        return [*parts, Text(), self._verdict()]

    def _verdict(self) -> Text:
        """Return the last line: the verdict in a colour, the summary and the time of the run."""
        took = "" if self.seconds is None else f", in {duration(self.seconds)}"
        if self.shard is not None and self.planned is None:
            return Text.assemble(
                (f"SHARD {self.shard}", "bold red" if self.failed else "bold"), f": {self.summary}{took}"
            )
        if self.ok:
            return Text.assemble(("PASSED", "bold green"), f": {self.summary}{took}")
        if self.planned is not None:
            return Text(f"{self.summary}{took}", "bold red")
        word = "FAILED" if self.failed else "NOT PROVEN" if self.ran else "NOTHING RAN"
        return Text.assemble((word, "bold red"), f": {self.summary}{took}")

    def _head(self, verbosity: int) -> Iterator[str]:
        """Yield a line with the environment, the level and the seed."""
        of = self.environment
        shown = of if verbosity > 1 else [name for name in ("crossent", "torch", "python", "device") if name in of]
        yield ", ".join([*(f"{name} {of[name]}" for name in shown), f"level {self.level}", f"seed {self.seed}"])

    def _coverage(self) -> Iterator[str]:
        """Yield lines about the coverage of the run, its gaps, and the fixed known failures."""
        if self.ran:
            triples = f"{counted(self.triples, 'combination')} of three options"
            yield f"{counted(self.cases, 'case')} with {triples}; {counted(self.elements, 'number')} judged"
        uncovered = list(self._uncovered()) if self.ran else []
        if uncovered:
            yield f"not covered: {'; '.join(uncovered)}"
        for subject in self.subjects:
            yield from not_covered(subject)
        for what, names in self.only.items():
            yield f"ONLY A PART RAN: only the {what} {first_names(names)}"
        if self.shard is not None:
            cases = f"{len(self.shard.places):,} of {self.shard.planned:,} cases"
            yield f"ONLY A PART RAN: shard {self.shard}, with {cases}"
        for subject in () if self.is_part else self.subjects:  # a part needs no evidence for its results
            for result in subject.without_evidence:
                yield f"NO EVIDENCE for the {result} of {subject.name}: {NO_EVIDENCE}"
        for line in self.fixed:
            yield f"known failure no longer happens: {line}"

    def _uncovered(self) -> Iterator[str]:
        """Yield a text for each gap in the coverage."""
        if self.level == "quick":
            yield "some combinations of three options, since level quick covers only combinations of two"
        if self.left_out:
            yield f"{counted(len(self.left_out), 'check')} planned for no case"
        compared = self.compared
        if compared.vacuous:
            yield f"{compared.vacuous:,} of {compared.ran:,} comparisons without evidence: {NO_EVIDENCE}"
        if unjudged := compared.not_judged.total():
            yield f"{unjudged:,} of {compared.elements:,} numbers not judged: no error bound"

    def _every_gap(self) -> Iterator[str]:
        """Yield lines about the covered pairs and triples, the unplanned checks, and the unjudged numbers."""
        pairs, triples = self.sized
        yield f"covered: {pairs} pairs of a size and an option, {triples} triples of a size, an option and a dtype"
        if self.left_out:
            yield f"checks planned for no case: {', '.join(self.left_out)}"
        compared = self.compared
        for reason, count in sorted(compared.not_judged.items()):
            yield f"not judged, since {reason}: {count} of {compared.elements} numbers"

    def __str__(self) -> str:
        return plain_text(self.render())

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows."""
        return notebook(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document, schema 1. Numbers that JSON lacks are strings: "nan", "inf", "-inf".

        Some names come from earlier versions of crossent, so that old files can still be read. The key "mended" lists
        the known failures that are fixed. The key "held" of a case lists the passed checks that compared no number. The
        outcome "held" means that the case passed. The outcome "expected" means that only known failures happened.
        """
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
            "mended": self.fixed,
        }
        document |= {"stopped": True} if self.stopped else {}
        document |= {"without": list(self.without)} if self.without else {}
        document |= {"grade": self.grade} if self.grade else {}
        document |= {"only": {what: list(names) for what, names in self.only.items()}} if self.only else {}
        document |= {"shard": shard_json(self.shard)} if self.shard else {}
        made: dict[str, Any] = jsonable(document)
        return made

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a JSON file. If writing fails, raise OSError; a regular file is then unchanged."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one HTML page. If writing fails, raise OSError; a regular file is then unchanged."""
        write_whole(path, page(self))
