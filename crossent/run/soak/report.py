"""SoakReport: one soak, or a shard of a soak, as text and as a JSON document."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from crossent.cases.axes import DTYPES
from crossent.cases.operation import Operation
from crossent.checks import checks_of
from crossent.files import write_whole
from crossent.report.document import ShardNumber, finding_json, jsonable
from crossent.report.findings import Finding
from crossent.report.text import NO_EVIDENCE, paragraph, plain_text, share
from crossent.run.commands import with_commands
from crossent.run.soak.sums import SubjectSums
from crossent.words import counted, duration, first_names, printable

SOAK_SCHEMA = "soak-1"
SHOWN_VERSIONS = ("crossent", "torch", "python", "device")  # the entries of the environment in the text of a report


@dataclass
class SoakReport:
    """The report of a soak, or of a shard of a soak. `str(report)` is the report as text.

    Attributes:
        environment: the versions and the device.
        subjects: the sums of each subject.
        cases: the number of cases in each dtype. In the report of a shard, the number for the whole soak.
        seed: the seed from which the cases are drawn.
        dtypes: the dtypes of the logits.
        operation: the function of torch that the subjects compute.
        promises: the values of the options "without", "contract" and "grade", by name.
        known_failures_checksum: a checksum of the lists of known failures.
        shard: the number of the shard, and the count of all shards, such as 2/8; None for a whole soak.
        complete: whether all cases ran.
        seconds: how long the soak took; None for a report from a file.
    """

    environment: dict[str, str]
    subjects: list[SubjectSums]
    cases: int
    seed: int
    dtypes: Sequence[str]
    operation: Operation
    promises: Mapping[str, Any]
    known_failures_checksum: str = ""
    shard: ShardNumber | None = None
    complete: bool = True
    seconds: float | None = field(default=None, compare=False)

    @property
    def numbers(self) -> range:
        """The numbers of all cases of this soak or shard, including cases that did not run."""
        number, count = (1, 1) if self.shard is None else (self.shard.number, self.shard.count)
        return range((number - 1) * self.cases // count, number * self.cases // count)

    @property
    def planned(self) -> int:
        """The number of cases of each subject in a complete soak or shard, including cases that are not applicable."""
        return len(self.numbers) * len(self.dtypes)

    @property
    def ran(self) -> int:
        """The number of judged calls of all subjects together."""
        return sum(subject.calls(dtype) for subject in self.subjects for dtype in self.dtypes)

    @property
    def failed(self) -> int:
        """The number of findings of all subjects that are not known failures."""
        return sum(subject.failed for subject in self.subjects)

    @property
    def ok(self) -> bool:
        """Whether the soak is complete, has no findings except known failures, and has evidence for every result.

        A result has no evidence if a wrong result would pass on every case. At least one case must have run on every
        subject. A shard needs neither evidence nor a case on every subject, since the merged report judges all shards.
        """
        if self.shard is not None:
            return self.complete and not self.failed
        unproven = self.unchecked or any(any(subject.without_evidence) for subject in self.subjects)
        return self.complete and self.ran > 0 and not self.failed and not unproven

    @property
    def unchecked(self) -> list[str]:
        """The names of the subjects on which no case ran."""
        return [one.name for one in self.subjects if not any(one.calls(dtype) for dtype in self.dtypes)]

    @property
    def findings(self) -> list[Finding]:
        """The findings that the report keeps, each with the command that repeats the finding.

        A report keeps no known failures. The findings are in the order of subjects, checks, dtypes and kinds.
        """
        return [one for subject in self.subjects for kept, _ in self._groups(subject) for one in kept]

    def _groups(self, subject: SubjectSums) -> Iterator[tuple[list[Finding], int]]:
        """Yield, for each check, dtype and kind, the kept findings of a subject, and the count of all such findings."""
        options = {"level": "normal", "device": self.environment["device"], "operation": self.operation.name}
        for _, failures in self._sorted(subject.failures):
            kept = [finding for _, finding in failures.first]
            yield with_commands(kept, subject.source, {**options, "ranks": None, **self.promises}), failures.count

    def _sorted(self, entries: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
        """Sort entries with keys (check, dtype) or (check, dtype, kind), in the order of checks and dtypes."""
        checks, dtypes = list(checks_of(self.operation)), list(DTYPES)
        return sorted(entries.items(), key=lambda of: (checks.index(of[0][0]), dtypes.index(of[0][1]), *of[0][2:]))

    def render(self, verbosity: int = 0) -> list[RenderableType]:
        """Return the report as a list of texts, which `crossent soak` prints with rich.

        Args:
            verbosity: 0 shows the worst case of each subject in each dtype, and one finding of each check, dtype and
                kind. 1 or more shows the worst case of each check, all findings that the report keeps, and the known
                failures. A negative number shows the verdict alone.
        """
        if verbosity < 0:
            return [self._verdict()]
        named = [f"{name} {self.environment[name]}" for name in SHOWN_VERSIONS]
        parts: list[RenderableType] = [Text(printable(", ".join([*named, f"seed {self.seed}"]))), Text()]
        parts += self._table(verbosity > 0)
        for subject in self.subjects:
            for reason, count in sorted(subject.not_applicable.items()):
                parts.append(
                    paragraph(printable(f"not applicable: {counted(count, 'case')}, since {subject.name} {reason}"))
                )
            for reason, count in sorted(subject.known.items()) if verbosity > 0 else ():
                parts.append(paragraph(printable(f"{counted(count, 'known failure')} of {subject.name}: {reason}")))
            for result in subject.without_evidence if self.shard is None else ():
                parts.append(paragraph(printable(f"NO EVIDENCE for the {result} of {subject.name}: {NO_EVIDENCE}")))
            for kept, count in self._groups(subject):
                shown = kept if verbosity > 0 else kept[:1]
                parts += [part for finding in shown for part in (Text(), Text(str(finding)))]
                if more := count - len(shown):
                    parts.append(Text(f"  {counted(more, 'more finding')} of this check, dtype and kind", "dim"))
        return [*parts, Text(), self._verdict()]

    def _table(self, by_check: bool) -> Iterator[Text]:
        """Yield the lines of the table of worst cases.

        Each subject and dtype has one row, or with `by_check` one row for each check.
        """
        rows = [("subject", "dtype", "calls", "failed", "known", "check", "worst", "case")]
        for subject in self.subjects:
            for dtype in self.dtypes:
                tallies = [(check, tally) for (check, of), tally in self._sorted(subject.tallies) if of == dtype]
                judged = sorted((one for one in tallies if one[1].ratio is not None), key=lambda one: -one[1].ratio)
                for check, tally in (judged if by_check else judged[:1]) or tallies[:1]:
                    counts = [tally] if by_check else [tally for _, tally in tallies]
                    numbers = (sum(one.failed for one in counts), sum(one.expected for one in counts))
                    worst = ("", "") if tally.ratio is None else (share(tally.ratio), tally.case)
                    calls = tally.ran if by_check else subject.calls(dtype)
                    rows.append(
                        (printable(subject.name), dtype, *(f"{one:,}" for one in (calls, *numbers)), check, *worst)
                    )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for at, row in enumerate(rows if len(rows) > 1 else ()):
            sides = "<<>>><><"
            cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)]
            # no line is wrapped, so that a user can copy the ids of cases
            yield Text("  ".join(cells).rstrip(), "dim" if at == 0 else "")

    @property
    def summary(self) -> str:
        """The result of the soak in one line."""
        planned, findings = self.planned * len(self.subjects), counted(self.failed, "finding")
        some = f"{self.ran:,} of {counted(planned, 'call')}"  # the other cases are not applicable, or did not run
        calls = counted(self.ran, "call") if self.ran == planned else some
        if not self.complete:
            return f"INCOMPLETE after {some}, with {findings}"
        if self.failed:
            return f"{findings} in {calls}"
        if self.shard is not None:
            return f"{calls} checked without findings; `crossent merge` gives the verdict on all shards"
        if not self.ran:
            return "nothing ran"
        if self.unchecked:
            return f"{calls} checked without findings, but no case ran on {printable(first_names(self.unchecked))}"
        if not self.ok:
            return f"{calls} checked without findings, but some results have no evidence"
        known = sum(subject.known.total() for subject in self.subjects)
        except_in = f", except in {counted(known, 'known failure')}" if known else ""
        return f"{calls} checked, every judged number within its error bound{except_in}"

    def _verdict(self) -> Text:
        took = "" if self.seconds is None else f", in {duration(self.seconds)}"
        if not self.complete:
            return Text(f"{self.summary}{took}", "bold red")
        word = "PASSED" if self.ok else "FAILED" if self.failed else "NOT PROVEN" if self.ran else "NOTHING RAN"
        word = word if self.shard is None else f"SHARD {self.shard}"
        return Text.assemble((word, "bold green" if self.ok else "bold red"), f": {self.summary}{took}")

    def __str__(self) -> str:
        return plain_text(self.render())

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON document. Numbers that JSON cannot write are strings: "nan", "inf" and "-inf"."""
        made: dict[str, Any] = jsonable(
            {
                "schema": SOAK_SCHEMA,
                "cases": self.cases,
                "seed": self.seed,
                "dtypes": list(self.dtypes),
                "operation": self.operation.name,
                "promises": dict(self.promises),
                "expected_findings": self.known_failures_checksum,
                "shard": None if self.shard is None else [self.shard.number, self.shard.count],
                "complete": self.complete,
                "environment": self.environment,
                "subjects": [self._subject_json(subject) for subject in self.subjects],
            }
        )
        return made

    def _subject_json(self, subject: SubjectSums) -> dict[str, Any]:
        checks: dict[str, dict[str, Any]] = {}
        for (check, dtype), tally in self._sorted(subject.tallies):
            worst = {"ratio": tally.ratio, "ulp": tally.ulp, "number": tally.number, "case": tally.case}
            checks.setdefault(check, {})[dtype] = {
                "ran": tally.ran,
                "failed": tally.failed,
                "expected": tally.expected,
                "skipped": tally.skipped,
                "vacuous": tally.vacuous,
                "elements": tally.elements,
                "not_judged": dict(sorted(tally.not_judged.items())),
                "worst": None if tally.ratio is None else worst,
            }
        return {
            "name": subject.name,
            "source": subject.source,
            "code": subject.code,
            "contract": subject.contract,
            "declared": list(subject.declared),
            "not_applicable": dict(sorted(subject.not_applicable.items())),
            "known": dict(sorted(subject.known.items())),
            "checks": checks,
            "failures": [
                {
                    **{"check": check, "dtype": dtype, "kind": kind, "count": failures.count},
                    "first": [{"number": number, **finding_json(finding)} for number, finding in failures.first],
                }
                for (check, dtype, kind), failures in self._sorted(subject.failures)
            ],
        }

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write the report to a JSON file. If writing fails, an existing file keeps its content."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
