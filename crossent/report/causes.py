"""The causes of findings: similar findings on cases that have the same choices in common."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import combinations

from crossent.cases.axes import CLASS_LIMITS, DENSE_TARGETS, DTYPES, IGNORED, ROW_LIMITS
from crossent.cases.bad_inputs import BAD_INPUT_KINDS, BAD_INPUTS
from crossent.cases.values import VALUES
from crossent.report.findings import DEPENDS, Finding, Outcome, SubjectReport
from crossent.report.regimes import case_or_none
from crossent.words import counted

# The kinds of logits with rows far below zero, and how many other rows may come before such a row. The kinds
# "row_offsets" and "offsets" draw the sign of each row.
_FAR_BELOW = {"negative_offset": 0, "assorted": 3, "row_offsets": 1, "offsets": 1}
# The kinds of logits with -inf, +inf or NaN.
_NOT_FINITE = {name for name in VALUES if name.startswith(("inf_", "nan", "positive_inf"))}
_MOST_WORDS = 3  # more words would describe the case itself
_WORD = 0.02  # by how much a further word must set failing cases apart from passing ones
# The feature that a subject lacks if it refuses all cases with these words.
FEATURE_OF = {
    "logits of (C)": "unbatched",
    "logits of (N, C, d1, …)": "spatial",
    "a weight": "weight",
    "label_smoothing": "label_smoothing",
    "ignored rows": "ignore_index",
    "class indices": "index_target",
    "class probabilities": "probability_target",
    "a target whose sum is not 1": "unnormalised",
    "uint8 targets": "uint8_target",
    "logits that are strided": "strided",
    "an empty batch": "empty",
    "1 class": "one_class",
    "logits that are not finite": "nonfinite",
    **{f"reduction={name!r}": f"reduction_{name}" for name in ("none", "mean", "sum")},
    **{dtype: dtype for dtype in DTYPES},
    **{kind: kind for kind in BAD_INPUT_KINDS},
}


@dataclass(frozen=True)
class Common:
    """Words that describe a case, and how many of the failing and of the passing cases have them."""

    words: Sequence[str]
    fails: int
    failing: int
    passes: int
    passing: int

    @property
    def above(self) -> float:
        """The share of failing cases with these words, less the share of passing cases with them."""
        return self.fails / self.failing - self.passes / self.passing

    def applies(self, case: str) -> bool:
        """Whether a case has all the words."""
        return set(self.words).issubset(_words(case))

    def __str__(self) -> str:
        failing = f"{self.fails} of {self.failing} failing cases"
        passing = f"{self.passes} of {self.passing} passing cases" if self.passes else "no passing case"
        return f"{', '.join(self.words)}: {failing}, {passing}"


@dataclass
class Cause:
    """Findings that probably have one cause.

    Attributes:
        findings: the findings, the plainest first.
        common: what the cases of the first group have in common, but few passing cases; None if there is nothing.
        feature: the feature of `--without` that declares these refused calls or accepted bad inputs, or "".
    """

    findings: list[Finding]
    common: Common | None = None
    feature: str = ""

    def __post_init__(self) -> None:
        self.cases = {finding.case for finding in self.findings}

    @property
    def checks(self) -> dict[str, int]:
        """The number of findings of each check."""
        return dict(Counter(finding.check for finding in self.findings))

    @property
    def explained(self) -> str:
        """What the lack of the feature explains, such as "152 calls raised with class probabilities"."""
        first, count = self.findings[0], len(self.findings)
        if first.check == "errors":
            return counted(count, "bad input") + (" accepted" if first.kind == "accepted" else ", another error")
        where = f"with {', '.join(self.common.words)}" if self.common else f"in the check {first.check}"
        return f"{counted(count, 'call')} {'raised' if first.kind == 'refused' else first.kind} {where}"

    @property
    def example(self) -> Finding:
        """The plainest finding whose case has the common words, and whose exact value is a number other than 0."""

        def order(finding: Finding) -> tuple[bool, ...]:
            words = _words(finding.case)
            typical = self.common is None or self.common.applies(finding.case)
            rows = "logits of (N, C)" in words, "reduction='none'" in words  # which show the rows that are wrong
            return not typical, not _telling(finding), *map(operator.not_, rows)

        return min(self.findings, key=order)

    def join(self, other: Cause) -> None:
        """Take in another group of findings. Refused calls are described as in the larger group."""
        if self.feature and len(other.findings) > len(self.findings):
            self.common = other.common
        self.findings += other.findings
        self.cases.update(finding.case for finding in other.findings)

    def explains(self, other: Cause) -> bool:
        """Whether another group of findings is on the same cases, or on cases with the same choices."""
        if self.feature or other.feature:
            return self.feature == other.feature
        if len({cause.findings[0].kind in _REFUSALS for cause in (self, other)}) > 1:
            return False
        cases = [finding.case for finding in other.findings]
        same = sum(case in self.cases for case in cases)
        alike = sum(self.common is not None and self.common.applies(case) for case in cases)
        return max(same, alike) >= _MOST_OF * len(cases)


_REFUSALS = ("refused", "accepted")
_MOST_OF = 0.9  # the share of a group that another cause explains, so that the group is not a cause of its own


def causes(subject: SubjectReport) -> list[Cause]:
    """Return the findings that are not known failures by their probable causes, the largest cause first.

    A group of similar findings joins an earlier cause if the same cases fail, or cases with the same choices.
    """
    found: list[Cause] = []
    for group in subject.sorts:
        for cause in _by_feature(subject, group) or _separated(subject, group):
            earlier = next((one for one in found if one.explains(cause)), None)
            if earlier is None:
                found.append(cause)
            else:
                earlier.join(cause)
    return sorted(found, key=lambda cause: -len(cause.findings))


def _telling(finding: Finding) -> bool:
    numbers = finding.numbers
    return numbers is None or (math.isfinite(numbers.exact) and numbers.exact != 0)


def _by_feature(subject: SubjectReport, findings: Sequence[Finding]) -> list[Cause]:
    """Return refused calls, and bad inputs that are not refused, by the feature whose lack explains them.

    A feature explains refused calls if nearly all calls that need it are refused. Calls that no feature explains are a
    cause as well. The feature of a check explains its findings without numbers if no case passes the check. Return an
    empty list for other findings, or if no feature explains one of them.
    """
    first, cases = findings[0], [finding.case for finding in findings]
    if first.check == "errors":
        kinds = Counter(word for case in cases for word in _words(case))
        if first.kind == "wrong":
            return [Cause(list(findings), None, "error_classes")]
        return [Cause([one for one in findings if kind in _words(one.case)], None, kind) for kind in kinds]
    if first.kind != "refused" and first.numbers is not None:
        return []
    accepted = [case for case, outcome in subject.outcomes.items() if _passes(outcome, first.check)]
    if not accepted:
        works = {name for outcome in subject.outcomes.values() for name in outcome.checks if _passes(outcome, name)}
        present = {feature for name in works for feature in subject.needs.get(name, ())}
        lacking = [feature for feature in subject.needs.get(first.check, ()) if feature not in present]
        return [Cause(list(findings), None, lacking[0])] if lacking else []
    if first.kind != "refused" or first.check != "call":
        return []  # another check runs on few cases, so a choice that they share may be chance
    used, rest, made = Counter(word for case in accepted for word in _words(case)), list(findings), list[Cause]()
    while rest:
        words = Counter(word for finding in rest for word in _words(finding.case))
        unused = {word: n for word, n in words.items() if word in FEATURE_OF and n >= _MOST_OF * (n + used[word])}
        if not unused:
            break
        word = max(unused, key=unused.__getitem__)
        having = [finding for finding in rest if word in _words(finding.case)]
        shared = Common([word], len(having), len(findings), used[word], len(accepted))
        made.append(Cause(having, shared, FEATURE_OF[word]))
        rest = [finding for finding in rest if word not in _words(finding.case)]
    return [*made, *(_separated(subject, rest) if rest and made else [])]


def _passes(outcome: Outcome, check: str) -> bool:
    """Whether a check ran on a case and passed."""
    measured = outcome.checks.get(check)
    return measured is not None and not measured.failed


def common(subject: SubjectReport, findings: Sequence[Finding]) -> Common | None:
    """Return what the first of these findings has in common with most other findings, but with few passing cases.

    All findings are of one check. The result has the few words for which the share of failing cases with these words
    is furthest above the share of passing cases with them. It is None if the difference is at most one half.
    """
    check, failing, passing = findings[0].check, [one.case for one in findings], _passing(subject, findings[0].check)
    if len(failing) < 2 or not passing:
        return None
    found = _choices(_words(failing[0]), _MOST_WORDS, failing, passing)
    each = (*_by_earlier_calls(subject, check, failing, passing), *found)
    best = max(each, key=lambda one: one.above - _WORD * len(one.words))
    return best if best.above > 0.5 else None


def _separated(subject: SubjectReport, findings: Sequence[Finding]) -> list[Cause]:
    """Return the causes of findings of one check: several if their cases have little in common.

    Each cause is a choice with which nearly all cases fail. The choice with the most failing cases is taken first, and
    the remaining findings are separated again.
    """
    whole = Cause(list(findings), common(subject, findings))
    failing, passing = [finding.case for finding in findings], _passing(subject, findings[0].check)
    if whole.common or len(findings) < 2 or not passing:
        return [whole]
    words = list(dict.fromkeys(word for case in failing for word in _words(case)))
    certain = [one for one in _choices(words, 2, failing, passing) if one.fails >= _MOST_OF * (one.fails + one.passes)]
    best = max(certain, key=lambda one: one.fails, default=None)
    if best is None or best.fails < 2:
        return [whole]
    having = [finding for finding in findings if best.applies(finding.case)]
    rest = [finding for finding in findings if not best.applies(finding.case)]
    return [Cause(having, best), *(_separated(subject, rest) if rest else [])]


def _passing(subject: SubjectReport, check: str) -> list[str]:
    """Return the cases that pass a check. A case that is no evidence does not count."""
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    return [case for case, result in measured.items() if not result.failed and not result.vacuous]


def _choices(words: Sequence[str], most: int, failing: Sequence[str], passing: Sequence[str]) -> Iterator[Common]:
    """Yield how many failing and passing cases have each choice of at most `most` words."""
    bad, good = _having(words, failing), _having(words, passing)
    for count in range(1, most + 1):
        for chosen in combinations(words, count):
            fails, passes = (reduce(operator.and_, map(of.__getitem__, chosen)).bit_count() for of in (bad, good))
            yield Common(chosen, fails, len(failing), passes, len(passing))


def _by_earlier_calls(
    subject: SubjectReport, check: str, failing: Sequence[str], passing: Sequence[str]
) -> Iterator[Common]:
    """Yield how many of the cases give different bits in a second call. `repeat` itself is about a second call."""
    if check != "repeat":
        repeated = {case: of.checks["repeat"] for case, of in subject.outcomes.items() if "repeat" in of.checks}
        unsteady = {case for case, measured in repeated.items() if measured.failed}
        fails, passes = len(unsteady.intersection(failing)), len(unsteady.intersection(passing))
        yield Common([DEPENDS], fails, len(failing), passes, len(passing))


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, int]:
    """Return, for each word, the cases that have it: one bit for each case."""
    found = dict.fromkeys(words, 0)
    for at, case in enumerate(cases):
        for word in found.keys() & _words(case):
            found[word] |= 1 << at
    return found


@cache
def _words(id: str) -> tuple[str, ...]:
    """Return the words that describe a case, without options at their default; for a bad input, the kind of error."""
    case = case_or_none(id)
    if case is None:
        return tuple(bad.kind for bad in BAD_INPUTS if bad.id == id)
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    described = {
        shape: True,
        f"logits of {len(case.sizes)} dimensions": len(case.sizes) > 3,
        "a weight": case.weight != "unweighted",
        "a weight of 0": case.weight == "weight_zeros",
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "an ignore_index that is a class": case.ignored != "kept" and 0 <= IGNORED[case.ignored] < case.classes,
        "an empty batch": case.rows == 0,
        "class indices": case.target not in DENSE_TARGETS,
        "class probabilities": case.target in DENSE_TARGETS,
        "a target whose sum is not 1": case.target == "unnormalised",
        "uint8 targets": case.target == "uint8",
        f"reduction={case.reduction!r}": True,
        case.dtype: True,
        **{f"more than {limit} classes": case.classes > limit for limit in CLASS_LIMITS},
        **{f"more than {limit} row{'s' * (limit > 1)}": case.rows > limit for limit in ROW_LIMITS if limit},
        "an odd number of classes": case.classes % 2 == 1,
        "an odd batch": len(case.sizes) > 1 and case.sizes[0] % 2 == 1,
        case.class_size: True,
        case.row_size: True,
        f"C {'' if case.classes & (case.classes - 1) == 0 else 'not '}a power of two": True,
        f"values {case.values}": True,
        "logits that are not finite": case.values in _NOT_FINITE,
        "a class with a logit of -inf": case.values.startswith("inf_"),
        "a row of logits far below zero": case.rows > _FAR_BELOW.get(case.values, case.rows),
        f"logits that are {'contiguous' if case.layout in ('contiguous', 'offset') else 'strided'}": True,
        "an upstream gradient other than 1": case.upstream != "one",
    }
    return tuple(word for word, applies in described.items() if applies)
