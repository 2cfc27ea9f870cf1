"""Group the findings of a subject by probable cause: similar findings, on cases that have words in common.

A word of a case is a short text about an option or a size, such as "a weight". The function `words_of` of
:mod:`crossent.report.clarity` returns the words of a case.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUT_KINDS
from crossent.report.clarity import same_trigger, words_of
from crossent.report.findings import DEPENDS, Finding, Outcome, SubjectReport
from crossent.words import counted

_MOST_WORDS = 3  # with more words, few cases would have all of them
_LEAST_INCREASE = 0.02  # a further word must increase `Common.above` by at least this share
# For each word, the feature that a subject lacks if the subject refuses the cases with this word.
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
    """Words that describe cases, and how many failing and passing cases have all the words.

    Attributes:
        words: the words, as `words_of` returns them.
        fails, failing: the number of failing cases with all the words, and the number of all failing cases.
        passes, passing: the number of passing cases with all the words, and the number of all passing cases.
    """

    words: Sequence[str]
    fails: int
    failing: int
    passes: int
    passing: int

    @property
    def above(self) -> float:
        """The share of failing cases that have the words, minus the share of passing cases that have the words."""
        return self.fails / self.failing - self.passes / self.passing

    def applies(self, case: str) -> bool:
        """Return whether a case has all the words."""
        return set(self.words).issubset(words_of(case))

    def __str__(self) -> str:
        failing = f"{self.fails} of {self.failing} failing cases"
        passing = f"{self.passes} of {self.passing} passing cases" if self.passes else "no passing case"
        return f"{', '.join(self.words)}: {failing}, {passing}"


@dataclass
class Cause:
    """Findings that probably have one cause.

    Attributes:
        findings: the findings, by group. In each group the clearest finding is first.
        common: the words that most failing cases, but few passing cases, have; None if there are no such words.
        feature: the feature whose lack explains the findings, for the option `--without`; "" if there is none.
    """

    findings: list[Finding]
    common: Common | None = None
    feature: str = ""

    def __post_init__(self) -> None:
        self.cases = {finding.case for finding in self.findings}
        self.kinds = {kind for kind in map(_kind_of_number, self.findings) if kind}

    @property
    def checks(self) -> dict[str, int]:
        """The number of findings of each check."""
        return dict(Counter(finding.check for finding in self.findings))

    @property
    def explained(self) -> str:
        """A text about the findings of a missing feature, such as "152 calls raised with class probabilities"."""
        first, count = self.findings[0], len(self.findings)
        if first.check == "errors":
            return counted(count, "bad input") + (" accepted" if first.kind == "accepted" else ", another error")
        where = f"with {', '.join(self.common.words)}" if self.common else f"in the check {first.check}"
        return f"{counted(count, 'call')} {'raised' if first.kind == 'refused' else first.kind} {where}"

    @property
    def example(self) -> Finding:
        """The clearest finding. If possible, its case has the common words, and its exact value is finite and not 0."""

        def order(finding: Finding) -> tuple[bool, ...]:
            words = words_of(finding.case)
            typical = self.common is None or self.common.applies(finding.case)
            rows = "logits of (N, C)" in words, "reduction='none'" in words  # such cases show which rows are wrong
            loss = finding.check == "loss" and "linear-" in finding.case  # clearer than many gradients
            return not typical, not _has_ordinary_value(finding), not loss, *map(operator.not_, rows)

        return min(self.findings, key=order)

    def join(self, other: Cause) -> None:
        """Add the findings of another cause. If a feature is missing, keep the common words of the larger cause."""
        if self.feature and len(other.findings) > len(self.findings):
            self.common = other.common
        self.findings += other.findings
        self.cases.update(finding.case for finding in other.findings)

    def explains(self, other: Cause) -> bool:
        """Return whether the findings of another cause probably belong to this cause.

        Causes with the same missing feature belong together. Otherwise nearly all findings of the other cause must be
        on cases of this cause, or on cases with its common words. Common words are not enough for a NaN and a finite
        number, which may have two causes. Refused calls never belong to a cause with wrong results.
        """
        if self.feature or other.feature:
            return self.feature == other.feature
        if len({cause.findings[0].kind in _REFUSALS for cause in (self, other)}) > 1:
            return False
        cases = [finding.case for finding in other.findings]
        same = sum(case in self.cases for case in cases)
        alike = sum(self.common is not None and self.common.applies(case) for case in cases)
        if self.kinds and other.kinds and self.kinds.isdisjoint(other.kinds):
            alike = 0
        return max(same, alike) >= _MOST_OF * len(cases)


_REFUSALS = ("refused", "accepted")
# Findings with NaN, infinite and finite numbers are separated only if the cases of one kind can be chosen in at least
# this many ways. With fewer ways, one of the 20 words of a case may distinguish the kinds by chance.
_LEAST_WAYS = 1000
_MOST_OF = 0.9  # this share of the cases counts as nearly all


def causes(subject: SubjectReport) -> list[Cause]:
    """Return the probable causes of the findings that are not known failures. The largest cause is first.

    A group of similar findings joins an earlier cause if `Cause.explains` says that the two belong together.
    """
    found: list[Cause] = []
    parts = ((part, group) for group in subject.sorts for part in _by_number(group))
    for part, group in parts:
        other_numbers = [*{finding.case for finding in group}.difference(finding.case for finding in part)]
        for cause in _by_feature(subject, part) or _separated(subject, part, other_numbers):
            earlier = next((one for one in found if one.explains(cause)), None)
            if earlier is None:
                found.append(cause)
            else:
                earlier.join(cause)
    return sorted(found, key=lambda cause: -len(cause.findings))


def in_order(found: Sequence[Cause]) -> tuple[list[Cause], list[Cause]]:
    """Return the causes in two lists, as a report shows them: without and with a missing feature."""
    return [cause for cause in found if not cause.feature], [cause for cause in found if cause.feature]


def clearest_first(subject: SubjectReport) -> list[Finding]:
    """Return the findings that are not known failures, cause by cause. Each cause begins with its example."""
    wrong, declarable = in_order(causes(subject))
    ordered: list[Finding] = []
    for cause in (*wrong, *declarable):
        example = cause.example
        ordered += [example, *(finding for finding in cause.findings if finding is not example)]
    return ordered


def published(subject: SubjectReport, cause: Cause) -> str:
    """Return a sentence about the published bug that fails on the same inputs as a cause; "" if there is none."""
    check = cause.findings[0].check
    failing = [finding.case for finding in cause.findings if finding.check == check]
    words = cause.common.words if cause.common else ()
    ran = {case: outcome.checks for case, outcome in subject.outcomes.items()}
    return same_trigger(cause.findings, words, failing, _passing(subject, check), ran)


def _has_ordinary_value(finding: Finding) -> bool:
    """Return whether the exact value is finite and not 0. True for a finding without numbers."""
    numbers = finding.numbers
    return numbers is None or (math.isfinite(numbers.exact) and numbers.exact != 0)


def _by_feature(subject: SubjectReport, findings: Sequence[Finding]) -> list[Cause]:
    """Return a cause for each missing feature that explains some of the findings, which are of one check and kind.

    - Refused calls: a feature explains them if nearly all calls that need the feature are refused. The remaining
      refused calls get causes without a feature.
    - A check that no case passes: the feature that the check needs explains the findings without numbers.
    - Bad inputs: the feature is the kind of the bad input, or `error_classes` if the class of the error is wrong.
    """
    first, cases = findings[0], [finding.case for finding in findings]
    if first.check == "errors":
        kinds = Counter(word for case in cases for word in words_of(case))
        if first.kind == "wrong":
            return [Cause(list(findings), None, "error_classes")]
        return [Cause([one for one in findings if kind in words_of(one.case)], None, kind) for kind in kinds]
    if first.kind != "refused" and first.numbers is not None:
        return []
    accepted = [case for case, outcome in subject.outcomes.items() if _passes(outcome, first.check)]
    if not accepted:
        works = {name for outcome in subject.outcomes.values() for name in outcome.checks if _passes(outcome, name)}
        present = {feature for name in works for feature in subject.needs.get(name, ())}
        lacking = [feature for feature in subject.needs.get(first.check, ()) if feature not in present]
        return [Cause(list(findings), None, lacking[0])] if lacking else []
    if first.kind != "refused" or first.check != "call":
        return []  # another check runs on few cases, which may have a word in common by chance
    used, rest, made = Counter(word for case in accepted for word in words_of(case)), list(findings), list[Cause]()
    while rest:
        words = Counter(word for finding in rest for word in words_of(finding.case))
        unused = {word: n for word, n in words.items() if word in FEATURE_OF and n >= _MOST_OF * (n + used[word])}
        if not unused:
            break
        word = max(unused, key=unused.__getitem__)
        having = [finding for finding in rest if word in words_of(finding.case)]
        shared = Common([word], len(having), len(findings), used[word], len(accepted))
        made.append(Cause(having, shared, FEATURE_OF[word]))
        rest = [finding for finding in rest if word not in words_of(finding.case)]
    return [*made, *(_separated(subject, rest) if rest and made else [])]


def _passes(outcome: Outcome, check: str) -> bool:
    """Return whether a check ran on a case and passed."""
    measured = outcome.checks.get(check)
    return measured is not None and not measured.failed


def common(subject: SubjectReport, findings: Sequence[Finding], other: Sequence[str] = ()) -> Common | None:
    """Return the words that most failing cases, but few passing cases, have; None if there are no such words.

    All findings are of one check. `Common.above` is largest for the returned words, and above one half. The case of the
    first finding has the words.

    `other` has the ids of cases that fail with another kind of number, such as NaN. They count as passing cases when
    the function chooses the words.
    """
    check, failing, passing = findings[0].check, [one.case for one in findings], _passing(subject, findings[0].check)
    if len(failing) < 2 or not passing:
        return None
    others = [*passing, *other]
    found = _choices(words_of(failing[0]), _MOST_WORDS, failing, others)
    each = (*([] if other else _by_earlier_calls(subject, check, failing, passing)), *found)
    best = max(each, key=lambda one: one.above - _LEAST_INCREASE * len(one.words))
    passes = best.passes - sum(best.applies(case) for case in other)
    return replace(best, passes=passes, passing=len(passing)) if best.above > 0.5 else None


def _separated(subject: SubjectReport, findings: Sequence[Finding], other: Sequence[str] = ()) -> list[Cause]:
    """Return the causes of the findings of one check: one cause if some words describe most of the failing cases.

    Otherwise, look for one or two words such that nearly all cases with them fail. The words with the most failing
    cases give the first cause. Separate the remaining findings in the same way. For `other` see `common`.
    """
    whole = Cause(list(findings), common(subject, findings, other))
    failing, passing = [finding.case for finding in findings], _passing(subject, findings[0].check)
    if whole.common or len(findings) < 2 or not passing:
        return [whole]
    words = list(dict.fromkeys(word for case in failing for word in words_of(case)))
    certain = [one for one in _choices(words, 2, failing, passing) if one.fails >= _MOST_OF * (one.fails + one.passes)]
    best = max(certain, key=lambda one: one.fails, default=None)
    if best is None or best.fails < 2:
        return [whole]
    having = [finding for finding in findings if best.applies(finding.case)]
    rest = [finding for finding in findings if not best.applies(finding.case)]
    return [Cause(having, best), *(_separated(subject, rest, other) if rest else [])]


def _kind_of_number(finding: Finding) -> str:
    """Return the kind of the wrong number: "NaN", "infinite" or "finite"; "" for a finding without numbers."""
    if finding.numbers is None:
        return ""
    got = finding.numbers.got
    return "NaN" if math.isnan(got) else "infinite" if math.isinf(got) else "finite"


def _by_number(findings: Sequence[Finding]) -> list[Sequence[Finding]]:
    """Return the findings of one check in groups by the kind of the wrong number, if words distinguish the kinds.

    A kind gets its own group if a word distinguishes its cases from those of the other kinds: nearly all of its cases
    have the word, and nearly no other case does. Small groups are not separated: see `_LEAST_WAYS`.
    """
    made: list[Sequence[Finding]] = []
    rest = findings
    for kind in dict.fromkeys(map(_kind_of_number, findings)):
        own, others = ([one for one in rest if (_kind_of_number(one) == kind) is of] for of in (True, False))
        if own and others and math.comb(len(rest), len(own)) >= _LEAST_WAYS and _differ(own, others):
            made.append(own)
            rest = others
    return [*made, rest]


def _differ(findings: Sequence[Finding], others: Sequence[Finding]) -> bool:
    """Return whether nearly all cases of the findings, and nearly no case of the others, have a word in common."""
    cases, without = ([finding.case for finding in part] for part in (findings, others))
    words = list(dict.fromkeys(word for case in cases for word in words_of(case)))
    return any(one.above >= _MOST_OF for one in _choices(words, 1, cases, without))


def _passing(subject: SubjectReport, check: str) -> list[str]:
    """Return the ids of the cases that pass a check, except cases without evidence: see `Measured.vacuous`."""
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    return [case for case, result in measured.items() if not result.failed and not result.vacuous]


def _choices(words: Sequence[str], most: int, failing: Sequence[str], passing: Sequence[str]) -> Iterator[Common]:
    """Yield, for each selection of at most `most` words, how many failing and passing cases have the words."""
    bad, good = _having(words, failing), _having(words, passing)
    for count in range(1, most + 1):
        for chosen in combinations(words, count):
            fails, passes = (reduce(operator.and_, map(of.__getitem__, chosen)).bit_count() for of in (bad, good))
            yield Common(chosen, fails, len(failing), passes, len(passing))


def _by_earlier_calls(
    subject: SubjectReport, check: str, failing: Sequence[str], passing: Sequence[str]
) -> Iterator[Common]:
    """Yield how many failing and passing cases also fail the check `repeat`, unless `check` is `repeat`."""
    if check != "repeat":
        repeated = {case: of.checks["repeat"] for case, of in subject.outcomes.items() if "repeat" in of.checks}
        unsteady = {case for case, measured in repeated.items() if measured.failed}
        fails, passes = len(unsteady.intersection(failing)), len(unsteady.intersection(passing))
        yield Common([DEPENDS], fails, len(failing), passes, len(passing))


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, int]:
    """Return, for each word, the cases that have the word, as an int with one bit for each case."""
    found = dict.fromkeys(words, 0)
    for at, case in enumerate(cases):
        for word in found.keys() & words_of(case):
            found[word] |= 1 << at
    return found
