"""Findings, and the outcomes that they are among: everything that one subject's part of a report is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crossent.cases.axes import DTYPES
from crossent.words import word

# The checks that hold what a call gives to the exact answer.
NUMBERS = ("loss", "gradient", "target_gradient")


@dataclass(frozen=True)
class Finding:
    """A failed check, with its numbers.

    Attributes:
        subject, check, case: whose result, which property of it, on which input.
        kind: "wrong", "refused" where the subject raised, "accepted" where it should have, "changed_input", "aliased",
            "changed_state", "not_repeated", "disturbed"; "crashed" and "hung" of what runs in a process of its own.
        message: what is wrong, in one line or a few.
        call: the arguments in words.
        numbers: of the worst element; None where the finding is not about a number.
        torch: what torch itself gives there, and how far that is off; "" where torch is the subject.
        expected: why it is known and no surprise, or None.
        of: the result that it is about, where a check looks at several: "gradient", "gradient turned along 2", …;
            "" where that is none of them, as where the subject raised.
        named: whether the subject is found by its name; else repeating it takes the report and the subject's import.
    """

    subject: str
    check: str
    case: str
    kind: str
    message: str
    call: str = ""
    numbers: Numbers | None = None
    torch: str = ""
    expected: str | None = None
    of: str = ""
    named: bool = True

    @property
    def id(self) -> str:
        """Enough for `crossent repro` to repeat it."""
        return f"{self.subject}:{self.check}:{self.case}"

    @property
    def command(self) -> str:
        """What repeats it, to be pasted into a shell."""
        file = "" if self.named else " REPORT.json"
        return f"crossent repro {word(self.id)}{file}"

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.check} {self.kind} on {self.case}"]
        lines += [f"  {line}" for line in self.message.splitlines()]
        if self.numbers:
            lines.append(f"  got     {self.numbers.got!r}  ({self.numbers.bits})")
            lines.append(f"  {self.numbers.versus:<7} {self.numbers.exact!r} ± {self.numbers.radius:.1g}")
        lines += [f"  torch   {self.torch}"] if self.torch else []
        lines += [f"  call    {self.call}"] if self.call else []
        return "\n".join([*lines, f"  repeat  {self.command}"])


@dataclass(frozen=True)
class Numbers:
    """The worst element of a result: where, what came, what is right, and what was allowed.

    `exact` is what is right: the exact number or, where `versus` is "other", what another call of the subject gave.
    """

    index: tuple[int, ...]
    got: float
    bits: str
    exact: float
    radius: float
    bound: float
    ulp: float
    ratio: float
    versus: str = "exact"


@dataclass(frozen=True)
class Measured:
    """One check on one case.

    Attributes:
        ulp, ratio: of the worst element; None where the check is not about numbers.
        vacuous: whether zeros or a constant would pass too.
        not_judged: elements whose bound is infinite, by reason.
        elements: how many there are.
    """

    failed: bool = False
    ulp: float | None = None
    ratio: float | None = None
    vacuous: bool = False
    not_judged: Mapping[str, int] = field(default_factory=dict)
    elements: int = 0


@dataclass(frozen=True)
class ResultSummary:
    """One result of a call, as far as another run can be compared with it.

    Attributes:
        digest: a checksum of its bits, whatever NaN is made of.
        dtype, shape: its own.
        value: its number, where there is one alone.
        special: how many of its numbers are "nan", "inf" and "-inf"; what there is none of is left out.
    """

    digest: str
    dtype: str
    shape: tuple[int, ...]
    value: float | None = None
    special: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """One case on one subject.

    Attributes:
        dtype: of the logits.
        inputs, digest: checksums of the inputs' and of the results' bits; the latter is "" where nothing came.
        grade: what it reached; "" where that was not asked.
        checks: what was measured.
        not_run: why a check that says something about the case did not run.
        results: of the first call, by "loss", "gradient" and "target_gradient"; empty where nothing came.
        raised: the error with which a bad call was refused; "" of any other call.
    """

    dtype: str
    inputs: str
    digest: str = ""
    grade: str = ""
    checks: dict[str, Measured] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    results: dict[str, ResultSummary] = field(default_factory=dict)
    raised: str = ""


@dataclass
class Tally:
    """One check on one dtype: what ran, and where it came nearest to its bound."""

    ran: int = 0
    failed: int = 0
    expected: int = 0
    vacuous: int = 0
    elements: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    ulp: float | None = None
    ratio: float | None = None
    case: str = ""

    def add(self, case: str, measured: Measured, known: bool) -> None:
        """Enter one case; where it is known to fail, not as the worst."""
        self.ran += 1
        self.failed += measured.failed and not known
        self.expected += measured.failed and known
        self.vacuous += measured.vacuous
        self.elements += measured.elements
        if measured.not_judged:
            self.not_judged.update(measured.not_judged)
        if measured.failed and known:
            return
        if measured.ratio is not None and (self.ratio is None or measured.ratio > self.ratio):
            self.ulp, self.ratio, self.case = measured.ulp, measured.ratio, case


def together(tallies: Iterable[Tally]) -> Tally:
    """The counts of several in one; which was the worst is not told."""
    whole = Tally()
    for tally in tallies:
        whole.ran += tally.ran
        whole.failed += tally.failed
        whole.expected += tally.expected
        whole.vacuous += tally.vacuous
        whole.elements += tally.elements
        whole.not_judged.update(tally.not_judged)
    return whole


@dataclass(frozen=True)
class Verdict:
    """The judge's word on one subject and one case: an outcome with its findings, or why the case does not apply."""

    case: str
    outcome: Outcome | None = None
    findings: Sequence[Finding] = ()
    not_applicable: str = ""


@dataclass
class SubjectReport:
    """One subject's part: what came of each case, what was found, and why the rest did not run.

    `order` is that of the checks in its tables.
    """

    name: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    not_applicable: Counter[str] = field(default_factory=Counter)
    order: Sequence[str] = ()

    def enter(self, verdict: Verdict) -> None:
        """Add a verdict."""
        if verdict.outcome is None:
            self.not_applicable[verdict.not_applicable] += 1
            return
        self.outcomes[verdict.case] = verdict.outcome
        self.findings += verdict.findings

    @property
    def tallies(self) -> dict[tuple[str, str], Tally]:
        """For each check and dtype, check by check."""
        known = {(finding.check, finding.case) for finding in self.findings if finding.expected is not None}
        tallies: dict[tuple[str, str], Tally] = {}
        for case, outcome in self.outcomes.items():
            for check, measured in outcome.checks.items():
                if (check, outcome.dtype) not in tallies:
                    tallies[check, outcome.dtype] = Tally()
                tallies[check, outcome.dtype].add(case, measured, (check, case) in known)
        order = list(dict.fromkeys((*self.order, *(check for check, _ in tallies))))
        dtypes = list(DTYPES)
        return dict(sorted(tallies.items(), key=lambda entry: (order.index(entry[0][0]), dtypes.index(entry[0][1]))))

    @property
    def not_run(self) -> dict[str, Counter[str]]:
        """For each check how often it did not run, by reason."""
        reasons: dict[str, Counter[str]] = {}
        for outcome in self.outcomes.values():
            for check, reason in outcome.not_run.items():
                reasons.setdefault(check, Counter())[reason] += 1
        return reasons

    @property
    def sorts(self) -> list[list[Finding]]:
        """The findings that nobody expected, those together that are of one sort: a reader wants one of each.

        What is wrong comes before what is refused, which may only be undeclared; one of each check and kind before a
        second of any; then in the order of the checks.
        """
        sorts: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            if finding.expected is None:
                told = "" if finding.numbers else finding.message
                sorts.setdefault((finding.check, finding.kind, told), []).append(finding)
        order = {name: at for at, name in enumerate(self.order)}
        seen: Counter[tuple[str, str]] = Counter()
        places = {}
        for check, kind, told in sorts:
            refused = kind in ("refused", "accepted")
            places[check, kind, told] = refused, seen[check, kind] > 0, order.get(check, len(order))
            seen[check, kind] += 1
        return [sorts[sort] for sort in sorted(sorts, key=places.__getitem__)]

    @property
    def known(self) -> dict[str, list[Finding]]:
        """The expected findings, by their reason."""
        known: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.expected is not None:
                known.setdefault(finding.expected, []).append(finding)
        return known

    @property
    def grades(self) -> dict[str, str]:
        """For each dtype the lowest that a case reached, known findings aside: A comes before B and F."""
        known = {finding.case for finding in self.findings if finding.expected is not None}
        grades: dict[str, str] = {}
        for case, outcome in self.outcomes.items():
            if outcome.grade and case not in known:
                grades[outcome.dtype] = max(grades.get(outcome.dtype, ""), outcome.grade)
        return grades

    @property
    def counts(self) -> dict[str, int]:
        """How many cases ran, failed, failed as expected, and did not apply."""
        failed = {finding.case for finding in self.findings if finding.expected is None}
        known = {finding.case for finding in self.findings if finding.expected is not None}
        return {
            "ran": len(self.outcomes),
            "failed": len(failed),
            "expected": len(known - failed),
            "not_applicable": sum(self.not_applicable.values()),
        }

    @property
    def without_evidence(self) -> list[str]:
        """The dtypes in which every case would let a constant pass, for the loss and for each gradient.

        Not where most cases of a dtype are refused, as is known: float16 by torch 2.0 on a CPU, but for empty ones.
        """
        tallies = self.tallies
        refused = {dtype: tally.expected for (check, dtype), tally in tallies.items() if check == "call"}
        return [
            f"{check} in {dtype}"
            for (check, dtype), tally in tallies.items()
            if check in NUMBERS and tally.vacuous == tally.ran > refused.get(dtype, 0)
        ]
