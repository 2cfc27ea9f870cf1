"""Group the findings of a subject by probable cause.

Similar findings (`SubjectReport.sorts`) on cases with common words probably have one cause. A word is a phrase about a
case, such as "a weight of 0". The option `--without` names features that a subject lacks. The declaration of a finding
is the feature that the message of the finding suggests for `--without`.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from crossent.report.clarity import (
    FEATURE_OF,
    Common,
    count_words,
    declaration,
    factor_names,
    kind_of_number,
    less_clear,
    rank_cause,
    same_trigger,
    selections,
    words_of,
)
from crossent.report.findings import DEPENDS, Finding, SubjectReport

_MOST_WORDS = 3  # of a cause; with more words, few cases would have all of them
_LEAST_INCREASE = 0.02  # a further word must increase `Common.above` by at least this share


@dataclass
class Cause:
    """Findings that probably have one cause.

    Attributes:
        findings: the findings, in groups of similar findings. The clearest finding of a group comes first.
        common: the words that most failing and few passing cases have, or None.
        feature: the missing feature that explains the findings, or "".
        lacks: a missing feature that may explain the findings, or "".
        cases: the ids of the cases.
        number_kinds: the kinds of the wrong numbers, such as "NaN".
        declaration: the declaration of the first finding, or "".
    """

    findings: list[Finding]
    common: Common | None = None
    feature: str = ""
    lacks: str = ""

    def __post_init__(self) -> None:
        self.cases = {finding.case for finding in self.findings}
        self.number_kinds = {kind for kind in map(kind_of_number, self.findings) if kind}
        self.declaration = declaration(self.findings[0])

    @property
    def checks(self) -> dict[str, int]:
        """The number of findings of each check."""
        return dict(Counter(finding.check for finding in self.findings))

    @property
    def example(self) -> Finding:
        """The finding that shows the failure most clearly."""
        check = self.findings[0].check
        names = {finding.id: factor_names(finding) for finding in self.findings if finding.check == check}
        factor, count = max(Counter(chain(*names.values())).items(), key=lambda one: one[1], default=("", 0))

        def order(finding: Finding) -> tuple[int, ...]:
            words = words_of(finding.case)
            typical = self.common is None or self.common.applies(finding.case)
            rows = "logits of (N, C)" in words, "reduction='none'" in words  # such cases show which rows are wrong
            own = names.get(finding.id, ()) if count > 1 else ()
            return not typical, *less_clear(finding), factor not in own, len(own), *map(operator.not_, rows)

        return min(self.findings, key=order)

    def join(self, other: Cause) -> None:
        """Add the findings of `other`."""
        # with a feature, the larger cause chooses the words
        if self.feature and len(other.findings) > len(self.findings):
            self.common = other.common
        self.findings += other.findings
        self.cases.update(finding.case for finding in other.findings)

    def explains(self, other: Cause) -> bool:
        """Return whether the findings of `other` probably belong to this cause."""
        if self.feature or other.feature:
            return self.feature == other.feature
        if len({cause.findings[0].kind in _REFUSALS for cause in (self, other)}) > 1:
            return False
        if self.declaration and other.declaration:
            return self.declaration == other.declaration
        cases = [finding.case for finding in other.findings]
        same = sum(case in self.cases for case in cases)
        alike = sum(self.common is not None and self.common.applies(case) for case in cases)
        kinds = self.number_kinds, other.number_kinds
        if self.declaration or (all(kinds) and kinds[0].isdisjoint(kinds[1])):
            alike = 0  # the common words do not count
        return max(same, alike) >= _MOST_OF * len(cases)


_REFUSALS = ("refused", "accepted")
# Separate the n of N findings with one kind of number (NaN, infinite, finite) only if there are at least this many ways
# to choose n of N findings. With fewer ways, a word may distinguish the kinds by chance.
_LEAST_WAYS = 1000
_LEAST_OF = 0.25  # if the common words are `vague`, a separate cause needs at least this share of the findings
_MOST_OF = 0.9  # this share of the cases counts as nearly all


def causes(subject: SubjectReport) -> list[Cause]:
    """Return the probable causes of the findings except known failures, the most important cause first."""
    found: list[Cause] = []
    lacking = _lacking(subject)
    for part, group in ((part, alike) for alike in subject.sorts for part in _by_number(alike)):
        other_numbers = [*{finding.case for finding in group}.difference(finding.case for finding in part)]
        for cause in _by_feature(subject, part, lacking) or _separate(subject, part, other_numbers):
            earlier = next((one for one in found if one.explains(cause)), None)
            if earlier is None:
                found.append(cause)
            else:
                earlier.join(cause)
    for cause in found:
        cause.lacks = _may_lack(subject, cause)
    return sorted(found, key=lambda cause: (*rank_cause(cause.checks, cause.example), -len(cause.findings)))


def split_by_feature(found: Sequence[Cause]) -> tuple[list[Cause], list[Cause]]:
    """Return two lists: the causes without a missing feature, and the causes with a missing feature."""
    return [cause for cause in found if not cause.feature], [cause for cause in found if cause.feature]


def clearest_first(subject: SubjectReport) -> list[Finding]:
    """Return the findings except known failures, grouped by cause. Causes with a missing feature come last."""
    ordered: list[Finding] = []
    for cause in operator.add(*split_by_feature(causes(subject))):
        example = cause.example
        ordered += [example, *(finding for finding in cause.findings if finding is not example)]
    return ordered


def published(subject: SubjectReport, cause: Cause) -> str:
    """Return a sentence about a published bug with the same trigger as the findings of a cause, or ""."""
    check = cause.findings[0].check
    failing = [finding.case for finding in cause.findings if finding.check == check]
    words = cause.common.words if cause.common else ()
    ran = {case: outcome.checks for case, outcome in subject.outcomes.items()}
    return same_trigger(cause.findings, words, failing, _passing(subject, check), ran)


def _by_feature(subject: SubjectReport, findings: Sequence[Finding], lacking: Mapping[str, Common]) -> list[Cause]:
    """Return the causes of similar findings, or [] if no missing feature explains any of them.

    Each missing feature is one cause, and the remaining findings have other causes. `lacking` comes from `_lacking`.
    """
    first = findings[0]
    if first.check == "errors":
        bad_input_kinds = count_words(finding.case for finding in findings)
        if first.kind == "wrong":  # an error of the wrong class
            return [Cause(list(findings), None, "error_classes")]
        return [Cause([one for one in findings if kind in words_of(one.case)], None, kind) for kind in bad_input_kinds]
    if first.kind != "refused" and first.numbers is not None:
        return []  # no feature explains wrong numbers
    rest, made = list(findings), list[Cause]()
    for word, shared in lacking.items() if first.kind == "refused" else ():
        if having := [finding for finding in rest if word in words_of(finding.case)]:
            made.append(Cause(having, shared, FEATURE_OF[word]))
            rest = [finding for finding in rest if word not in words_of(finding.case)]
    if rest and (feature := _of_check(subject, first.check)):
        return [*made, Cause(rest, None, declaration(first) or feature)]
    return [*made, *(_separate(subject, rest) if rest and made else [])]


def _of_check(subject: SubjectReport, check: str) -> str:
    """Return a feature that `check` needs, but no check with a passing case needs; "" if there is none.

    Of several, return the feature that the most failing checks need: declaring it explains the most findings.
    """
    ran = [measured for outcome in subject.outcomes.values() for measured in outcome.checks.items()]
    works = {name for name, measured in ran if not measured.failed}
    present = {feature for name in works for feature in subject.needs.get(name, ())}
    missing = [feature for feature in subject.needs.get(check, ()) if check not in works and feature not in present]
    failed = {name for name, _ in ran} - works
    return max(missing, key=lambda feature: sum(feature in subject.needs.get(name, ()) for name in failed), default="")


def _by_result(subject: SubjectReport) -> dict[str, list[str]]:
    """Return the ids of the cases by the result of the first call: "right", "wrong", "misshapen" or "refused"."""
    refused = {one.case for one in subject.findings if (one.check, one.kind, one.expected) == ("call", "refused", None)}
    found: dict[str, list[str]] = {"right": [], "wrong": [], "misshapen": [], "refused": []}
    for case, outcome in subject.outcomes.items():
        call, result, loss = map(outcome.checks.get, ("call", "result", "loss"))
        judged = loss or result or call  # the last check that ran
        if case in refused:
            found["refused"].append(case)
        elif judged is not None and (judged.failed or not judged.vacuous):
            found["right" if not judged.failed else "wrong" if loss else "misshapen"].append(case)
    return found


def _missing_feature_words(of: Mapping[str, Sequence[str]], *failed: str) -> Counter[str]:
    """Return the words whose features may be missing, and how many failed calls have each word.

    `of` comes from `_by_result`. `failed` has the results that count as failed, such as "refused".
    """
    right, failing = count_words(of["right"]), count_words(chain(*map(of.__getitem__, failed)))
    rare = {word for word in failing if word in FEATURE_OF and 2 * right[word] < len(of["right"])}
    return Counter({word: failing[word] for word in rare if failing[word] >= _MOST_OF * (failing[word] + right[word])})


def _lacking(subject: SubjectReport) -> dict[str, Common]:
    """Return the words whose features seem missing, and how many refused and right calls have each word."""
    of = _by_result(subject)
    if not of["right"]:  # then the calls that are not refused show which features the subject has
        of["right"], of["wrong"] = of["wrong"], []
    missing, wrong, rest = _missing_feature_words(of, "wrong", "refused"), count_words(of["wrong"]), of["refused"]
    found: dict[str, Common] = {}
    while rest:
        words = count_words(rest)
        own = [word for word in missing if words[word] >= max(wrong[word], 1)]
        word = max(own, key=lambda one: (words[one], one), default="")
        if not word:
            break
        used, right = count_words(of["right"])[word], len(of["right"])
        found[word] = Common([word], words[word], len(of["refused"]), used, right)
        rest = [case for case in rest if word not in words_of(case)]  # a call counts only for its first word
    return found


def _may_lack(subject: SubjectReport, cause: Cause) -> str:
    """Return a missing feature that may explain a cause, or ""."""
    if cause.feature or "--without" in cause.example.message:
        return ""  # the cause or its example names a feature already
    missing = _missing_feature_words(_by_result(subject), "wrong", "misshapen", "refused")
    told = {word for word, n in count_words(cause.cases).items() if n >= _MOST_OF * len(cause.cases)}
    told.update(cause.common.words if cause.common else ())
    word = max(told.intersection(missing), key=lambda one: (missing[one], one), default="")
    of_check = _of_check(subject, cause.findings[0].check)
    return FEATURE_OF.get(word, "" if of_check in FEATURE_OF.values() else of_check)


def common(subject: SubjectReport, findings: Sequence[Finding], other: Sequence[str] = ()) -> Common | None:
    """Return the words that most failing but few passing cases of a check have, or None.

    `other` has the ids of cases that fail with another kind of number. When the
    words are chosen, these cases count as passing.
    """
    check, failing, passing = findings[0].check, [one.case for one in findings], _passing(subject, findings[0].check)
    if len(failing) < 2 or not passing:
        return None
    others = [*passing, *other]
    found = selections(words_of(failing[0]), _MOST_WORDS, failing, others)
    each = (*([] if other else _by_earlier_calls(subject, check, failing, passing)), *found)
    best = max(each, key=lambda one: one.above - _LEAST_INCREASE * len(one.words))
    # `other` counts as passing in the choice of words, but not in the result
    passes = best.passes - sum(best.applies(case) for case in other)
    return replace(best, passes=passes, passing=len(passing)) if best.above > 0.5 else None


def _separate(subject: SubjectReport, findings: Sequence[Finding], other: Sequence[str] = ()) -> list[Cause]:
    """Return the causes of the findings of one check.

    If the findings have no clear words in common, split the findings by words. `other` has the ids of cases that fail
    with another kind of number.
    """
    whole = Cause(list(findings), common(subject, findings, other))
    failing, passing = [finding.case for finding in findings], _passing(subject, findings[0].check)
    if (whole.common and not whole.common.vague) or whole.declaration or len(findings) < 2 or not passing:
        return [whole]
    words = list(dict.fromkeys(word for case in failing for word in words_of(case)))
    found = [one for one in selections(words, 2, failing, passing) if one.fails >= _MOST_OF * (one.fails + one.passes)]
    best = max(found, key=lambda one: one.fails, default=None)
    if best is None or best.fails < 2 or (whole.common and best.fails < _LEAST_OF * len(findings)):
        return [whole]
    having = [finding for finding in findings if best.applies(finding.case)]
    rest = [finding for finding in findings if not best.applies(finding.case)]
    return [Cause(having, best), *(_separate(subject, rest, other) if rest else [])]


def _by_number(findings: Sequence[Finding]) -> list[Sequence[Finding]]:
    """Group the findings of one check by `kind_of_number`, if a word of the cases distinguishes the kinds."""
    made: list[Sequence[Finding]] = []
    rest = findings
    for kind in dict.fromkeys(map(kind_of_number, findings)):
        own, others = ([one for one in rest if (kind_of_number(one) == kind) is of] for of in (True, False))
        if own and others and math.comb(len(rest), len(own)) >= _LEAST_WAYS and _differ(own, others):
            made.append(own)
            rest = others
    return [*made, rest]


def _differ(findings: Sequence[Finding], others: Sequence[Finding]) -> bool:
    """Return whether nearly all cases of `findings`, but nearly no cases of `others`, share a word."""
    cases, without = ([finding.case for finding in part] for part in (findings, others))
    words = list(dict.fromkeys(word for case in cases for word in words_of(case)))
    return any(one.above >= _MOST_OF for one in selections(words, 1, cases, without))


def _passing(subject: SubjectReport, check: str) -> list[str]:
    """Return the ids of the cases that pass a check, except passes without evidence (`Measured.vacuous`)."""
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    return [case for case, result in measured.items() if not result.failed and not result.vacuous]


def _by_earlier_calls(
    subject: SubjectReport, check: str, failing: Sequence[str], passing: Sequence[str]
) -> Iterator[Common]:
    """Yield how many failing and passing cases of `check` fail the check `repeat`; nothing for `repeat` itself."""
    if check != "repeat":
        repeated = {case: of.checks["repeat"] for case, of in subject.outcomes.items() if "repeat" in of.checks}
        unsteady = {case for case, measured in repeated.items() if measured.failed}
        fails, passes = len(unsteady.intersection(failing)), len(unsteady.intersection(passing))
        yield Common([DEPENDS], fails, len(failing), passes, len(passing))
