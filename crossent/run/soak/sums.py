"""The sums of a subject's results, which the report of a soak keeps.

The methods `join` add up the results of two parts of a soak. Neither the division of the cases into parts nor the order
of the parts changes the sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from crossent.report.findings import NUMBERS, Finding, SubjectReport, Tally

# The most findings that a report keeps of each check, dtype and kind. Findings with the lowest case numbers are kept.
FINDINGS_KEPT = 3


@dataclass
class SoakTally(Tally):
    """The sums of one check in one dtype, and the worst case: the case with the largest share of its error bound.

    `ran` counts the cases on which the check ran, and `skipped` the cases on which the check was skipped. `expected`
    counts known failures, and `failed` the other failures. `case`, `number` and `ratio` are the id, the number and the
    share of the worst case. Without a worst case, `case` is "", `number` is 0 and `ratio` is None. Of equally bad
    cases, the worst case has the lowest number. A known failure is never the worst case.

    `ulp` is the error of the worst case in ulp. `vacuous` counts the cases on which a wrong result would pass too.
    `elements` counts the numbers in the results, and `not_judged` the numbers without a finite bound, by reason.
    """

    skipped: int = 0
    number: int = 0

    def join(self, other: SoakTally) -> None:
        """Add the sums of other cases, and keep the worse of the two worst cases."""
        for name in ("ran", "failed", "expected", "vacuous", "elements", "not_judged", "skipped"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.ratio is not None and self._badness < other._badness:
            self.ulp, self.ratio, self.case, self.number = other.ulp, other.ratio, other.case, other.number

    @property
    def _badness(self) -> tuple[float, int]:
        return (-1.0 if self.ratio is None else self.ratio), -self.number


@dataclass
class Failures:
    """The findings of one check, dtype and kind that are not known failures.

    Attributes:
        count: the number of findings.
        first: up to `FINDINGS_KEPT` findings with the lowest case numbers, as pairs of case number and finding.
    """

    count: int = 0
    first: list[tuple[int, Finding]] = field(default_factory=list)

    def join(self, other: Failures) -> None:
        """Add other findings, and keep the findings with the lowest case numbers."""
        self.count += other.count
        self.first = sorted([*self.first, *other.first], key=lambda one: one[0])[:FINDINGS_KEPT]


@dataclass
class SubjectSums:
    """The sums of one subject.

    Attributes:
        name: the name of the subject.
        contract: the name of the contract that the user chose; "" for the default.
        declared: the declared differences from torch, such as "returns float32 for half precision".
        source: the string from which the subject is loaded, such as "path/to/file.py:NAME"; "" for a callable object.
        code: the checksum of the subject's file; "" if `source` names no readable .py file.
        tallies: the sums by check and dtype.
        not_applicable: the number of cases that are not applicable, by reason.
        known: the number of known failures, by reason.
        failures: the findings that are not known failures, by check, dtype and kind.
    """

    name: str
    contract: str = ""
    declared: Sequence[str] = ()
    source: str = ""
    code: str = ""
    tallies: dict[tuple[str, str], SoakTally] = field(default_factory=dict)
    not_applicable: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)
    failures: dict[tuple[str, str, str], Failures] = field(default_factory=dict)

    def join(self, other: SubjectSums) -> None:
        """Add the sums of this subject on other cases."""
        for key, tally in other.tallies.items():
            self.tallies.setdefault(key, SoakTally()).join(tally)
        for group, failures in other.failures.items():
            self.failures.setdefault(group, Failures()).join(failures)
        self.not_applicable += other.not_applicable
        self.known += other.known

    def calls(self, dtype: str) -> int:
        """Return the number of judged calls in a dtype: one call for each applicable case."""
        tally = self.tallies.get(("call", dtype), SoakTally())
        return tally.ran + tally.skipped

    @property
    def failed(self) -> int:
        """The number of findings that are not known failures."""
        return sum(failures.count for failures in self.failures.values())

    @property
    def without_evidence(self) -> Iterator[str]:
        """The results without evidence, such as "loss in float16": a wrong result would pass on every case.

        No evidence is needed if torch raises a known error, as torch 2.0 does for float16 on a CPU.
        """
        for dtype in dict.fromkeys(dtype for _, dtype in self.tallies):
            refused = self.tallies.get(("call", dtype), SoakTally()).expected
            for check in NUMBERS:
                tally = self.tallies.get((check, dtype), SoakTally())
                compared = tally.ran or check == NUMBERS[0]  # a subject without a gradient still has a loss
                if compared and tally.vacuous == tally.ran and (tally.ran or 1) > refused:
                    yield f"{check} in {dtype}"


def sums_of(part: SubjectReport, numbers: Mapping[str, int]) -> SubjectSums:
    """Return the sums of the results of one subject. `numbers` maps each case id to the case number."""
    sums = SubjectSums(part.name, not_applicable=part.not_applicable)
    for key, tally in part.tallies.items():
        kept = {one.name: getattr(tally, one.name) for one in fields(tally)}
        sums.tallies[key] = SoakTally(**kept, number=numbers.get(tally.case, 0))
    for outcome in part.outcomes.values():
        for check in outcome.not_run:
            sums.tallies.setdefault((check, outcome.dtype), SoakTally()).skipped += 1
    for finding in part.findings:
        if finding.expected is not None:
            sums.known[finding.expected] += 1
        else:
            group = finding.check, part.outcomes[finding.case].dtype, finding.kind
            sums.failures.setdefault(group, Failures()).join(Failures(1, [(numbers[finding.case], finding)]))
    return sums
