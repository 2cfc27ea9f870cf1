"""Classes for the results of a run, from one failed check (`Finding`) to the report of a subject (`SubjectReport`)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crossent.cases.axes import DTYPES
from crossent.report.clarity import by_plainness, similarity_key, size_of_error
from crossent.words import printable, shell_word

# The checks that compare the loss and the gradients of the first call with their exact values.
NUMBERS = ("loss", "gradient", "target_gradient", "weight_gradient", "bias_gradient")
# A message with these words is about a failure that a single call in a new process may not show.
DEPENDS = "the result depends on earlier calls"


@dataclass(frozen=True)
class Finding:
    """A failed check of one subject on one case.

    Attributes:
        subject, check, case: the names of the subject and the check, and the id of the case.
        kind: how the check failed. "wrong": a wrong result, `requires_grad` flag or class of error, or too much memory.
            "refused": the subject raised. "accepted": the subject must raise, but did not. "changed_input": a call
            wrote into its arguments. "aliased": a result shares memory with an argument. "changed_state": a call
            changed global state. "not_repeated": a repeated call or backward pass gives other bits. "disturbed": two
            losses of the same logits change each other. "crashed": the process of the call ended, or sent a damaged
            reply. "hung": the call did not return.
        message: the failure in words.
        call: a description of the arguments.
        numbers: the worst element and its error; None if the finding is not about a number.
        torch: torch's value of the worst element, or torch's exception, as text; otherwise "".
        expected: the reason from the list of known failures; None if the finding is not a known failure.
        of: the wrong result, such as "gradient" or "loss under no_grad", or "".
        repeat: the command or line of Python that repeats the finding; "" stands for `crossent repro` and the id.
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
    repeat: str = ""

    @property
    def id(self) -> str:
        """The id of the finding, which `crossent repro` takes."""
        return f"{self.subject}:{self.check}:{self.case}"

    @property
    def command(self) -> str:
        """The command or line of Python that repeats the finding."""
        return self.repeat or f"crossent repro {shell_word(self.id)}"

    @property
    def headline(self) -> str:
        """The finding in one line. An error above its bound is shown as a multiple of the bound."""
        ratio, said = self.numbers.ratio if self.numbers else 0, f"{self.subject}: {self.check} {self.kind}"
        times = "just over 1" if ratio < 1.005 else f"{ratio:.3g}"
        return f"{said} on {self.case}" + f", error {times} × the error bound" * (1 < ratio < math.inf)

    def __str__(self) -> str:
        lines = [self.headline]
        lines += [f"  {line}" for line in self.message.splitlines()]
        if self.numbers:
            lines.append(f"  got     {self.numbers.got!r}  ({self.numbers.bits})")
            lines.append(f"  {self.numbers.versus:<7} {self.numbers.exact!r} ± {self.numbers.radius:.1g}")
        lines += [f"  torch   {self.torch}"] if self.torch else []
        lines += [f"  call    {self.call}"] if self.call else []
        return "\n".join(map(printable, [*lines, f"  repeat  {self.command}"]))  # a file may have control characters


@dataclass(frozen=True)
class Numbers:
    """The worst element of a result, at `index`.

    Attributes:
        got, bits: the value of the element, and its bits in hexadecimal.
        exact, radius: the exact value and its error radius.
        ulp, ratio: the error in ulp, and as a share of the error bound `bound`.
        versus: "exact", or "other" if `exact` is a value that follows from other calls of the subject. Then `radius` is
            the error bound of this value.
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
    """The result of one check on one case.

    Attributes:
        failed: whether the check failed.
        ulp, ratio: the error of the worst element, in ulp and as a share of its bound; None if no number was compared.
        vacuous: whether a wrong result, such as zeros, would pass too. Such a pass is not evidence.
        not_judged: the number of elements without a finite bound, by reason.
        elements: the number of all elements.
    """

    failed: bool = False
    ulp: float | None = None
    ratio: float | None = None
    vacuous: bool = False
    not_judged: Mapping[str, int] = field(default_factory=dict)
    elements: int = 0


@dataclass(frozen=True)
class ResultSummary:
    """A summary of one result of a call, for the comparison with another run.

    Attributes:
        digest: a checksum of the bits. All NaN count as equal.
        value: the number, if the result has exactly one element; otherwise None.
        special: the counts of "nan", "inf" and "-inf" that are not 0.
    """

    digest: str
    dtype: str
    shape: tuple[int, ...]
    value: float | None = None
    special: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Outcome:
    """The results of the checks of one subject on one case.

    Attributes:
        dtype: the dtype of the logits.
        inputs, digest: checksums of the bits of the inputs and of the results. `digest` is "" if `results` is empty.
        grade: the grade that the subject reached, "A", "B" or "F"; "" if no grade was computed.
        checks, not_run: the result of each check that ran, and the reason for each skipped check.
        results: summaries of the first call's results, by name ("loss"); empty if the check "call" did not pass.
        raised: the class and message of the error that a call with bad input raised; otherwise "".
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
    """The counts of one check in one dtype, and the worst case: the case with the largest share of its bound.

    `expected` counts the known failures, and `failed` the other failures. A known failure is never the worst case.
    """

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
        """Add the result of one case. `known` says whether a failure on this case is a known failure."""
        self.ran += 1
        self.failed += measured.failed and not known
        self.expected += measured.failed and known
        self.vacuous += measured.vacuous
        self.elements += measured.elements
        if measured.not_judged:
            self.not_judged.update(measured.not_judged)
        if measured.ratio is None or (measured.failed and known):
            return
        if self.ratio is None or measured.ratio > self.ratio:
            self.ulp, self.ratio, self.case = measured.ulp, measured.ratio, case


def together(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of several tallies, without a worst case."""
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
    """The outcome of one subject on one case, with its findings, or the reason why the case did not run."""

    case: str  # the id
    outcome: Outcome | None = None
    findings: Sequence[Finding] = ()
    not_applicable: str = ""  # the reason, if `outcome` is None


@dataclass
class SubjectReport:
    """The report of one subject.

    Attributes:
        outcomes: the outcome of each case that ran, by the id of the case.
        not_applicable: the number of cases that are not applicable, by reason.
        order: the order of the checks in tables.
        needs: the features that each check needs.
        contract: the name of the contract that the user chose; "" for the default.
        declared: the declared differences from torch, such as "returns float32 for half precision".
    """

    name: str
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    not_applicable: Counter[str] = field(default_factory=Counter)
    order: Sequence[str] = ()
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    contract: str = ""
    declared: Sequence[str] = ()

    def enter(self, verdict: Verdict) -> None:
        """Add the verdict on one case."""
        if verdict.outcome is None:
            self.not_applicable[verdict.not_applicable] += 1
            return
        self.outcomes[verdict.case] = verdict.outcome
        self.findings += verdict.findings

    @property
    def tallies(self) -> dict[tuple[str, str], Tally]:
        """The counts and the worst case of each check and dtype, in the order of the checks."""
        known = {(finding.check, finding.case) for finding in self.findings if finding.expected is not None}
        tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        for case, outcome in self.outcomes.items():
            for check, measured in outcome.checks.items():
                tallies[check, outcome.dtype].add(case, measured, (check, case) in known)
        order = list(dict.fromkeys((*self.order, *(check for check, _ in tallies))))
        dtypes = list(DTYPES)
        return dict(sorted(tallies.items(), key=lambda entry: (order.index(entry[0][0]), dtypes.index(entry[0][1]))))

    @property
    def not_run(self) -> dict[str, Counter[str]]:
        """For each skipped check and each reason, the number of cases."""
        reasons: dict[str, Counter[str]] = {}
        for outcome in self.outcomes.values():
            for check, reason in outcome.not_run.items():
                reasons.setdefault(check, Counter())[reason] += 1
        return reasons

    @property
    def skipped(self) -> dict[str, dict[str, int]]:
        """For each reason, the number of cases that skipped each check, the largest number first."""
        checks: dict[str, dict[str, int]] = {}
        for check, reasons in self.not_run.items():
            for reason, count in reasons.items():
                checks.setdefault(reason, {})[check] = count
        return {reason: dict(Counter(counts).most_common()) for reason, counts in checks.items()}

    @property
    def sorts(self) -> list[list[Finding]]:
        """The findings that are not known failures, in groups of similar findings.

        Similar findings have the same check and kind, and similar messages (`similarity_key`). The clearest finding of
        a group comes first (`by_plainness`). The groups are sorted by rule 1, then by rule 2, …:
        1. The kinds "refused" and "accepted" come last.
        2. One group of each check and kind, if possible without advice for `--without`, comes before further groups.
        3. Errors against the exact value come before errors against another result.
        4. Larger errors come before smaller errors. The first finding of a group counts (`size_of_error`).
        5. Earlier checks come before later checks.
        """
        sorts: dict[tuple[str, str, str, str], list[Finding]] = {}
        for finding in self.findings:
            if finding.expected is None:
                sorts.setdefault((finding.check, finding.kind, *similarity_key(finding)), []).append(finding)
        order = {name: at for at, name in enumerate(self.order)}
        seen: Counter[tuple[str, str]] = Counter()
        places = {}
        for sort, findings in sorted(sorts.items(), key=lambda of: of[0][-1] != ""):  # groups with a declaration last
            check, kind, *_ = sort
            findings.sort(key=by_plainness)
            first, refused = findings[0], kind in ("refused", "accepted")
            relative = first.numbers is not None and first.numbers.versus != "exact"
            places[sort] = refused, seen[check, kind] > 0, relative, -size_of_error(first), order.get(check, len(order))
            seen[check, kind] += 1
        return [sorts[sort] for sort in sorted(sorts, key=places.__getitem__)]

    @property
    def known(self) -> dict[str, list[Finding]]:
        """The findings that are known failures, by their reason."""
        known: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.expected is not None:
                known.setdefault(finding.expected, []).append(finding)
        return known

    @property
    def grades(self) -> dict[str, str]:
        """The lowest grade in each dtype: A is the best, F the worst. Cases with a known failure do not count."""
        known = {finding.case for finding in self.findings if finding.expected is not None}
        grades: dict[str, str] = {}
        for case, outcome in self.outcomes.items():
            if outcome.grade and case not in known:
                grades[outcome.dtype] = max(grades.get(outcome.dtype, ""), outcome.grade)
        return grades

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of cases: "ran", "failed", "expected" (known failures only) and "not_applicable"."""
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
        """The results without evidence, such as "loss in float16": a wrong result, such as zeros, would always pass."""
        tallies = self.tallies
        for dtype in {outcome.dtype for outcome in self.outcomes.values()}:
            tallies.setdefault((NUMBERS[0], dtype), Tally())  # a dtype without a compared loss
        # No evidence is needed where torch raises, as torch 2.0 does for float16 on a CPU.
        refused = {dtype: tally.expected for (check, dtype), tally in tallies.items() if check == "call"}
        return [
            f"{check} in {dtype}"
            for (check, dtype), tally in tallies.items()
            if check in NUMBERS and tally.vacuous == tally.ran and (tally.ran or 1) > refused.get(dtype, 0)
        ]
