"""The rules that name the change of one check on one case between two runs.

Each run has already compared its results with the exact values. No rule is a tolerance for a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from crossent.report.findings import Finding, Measured, ResultSummary
from crossent.report.text import share
from crossent.words import counted

# An error counts as worse if it grew by more than the factor TIMES and by more than LAST_PLACES ulp, and as better the
# other way round. The second limit is needed because another order of summation changes the last bit. The share of the
# bound must also grow by more than TIMES: the worst element of the new run may be closer to zero, where the same error
# is more ulp.
TIMES, LAST_PLACES = 2.0, 1.0


class Kind(StrEnum):
    """The kinds of changes, the most serious kind first. The values are the names for users."""

    BROKEN = "regression"
    REFUSED = "newly refused"
    BEHAVIOUR = "changed behaviour"
    WORSE = "worse within bounds"
    STILL = "still wrong"
    FIXED = "fixed"
    ACCEPTED = "newly accepted"
    BETTER = "better"
    MOVED = "changed within bounds"
    WORDS = "other error message"
    JUDGED = "same bits, judged again"
    SAME = "same bits"

    @property
    def fails(self) -> bool:
        """Whether a change of this kind makes the comparison fail."""
        return self in (Kind.BROKEN, Kind.REFUSED, Kind.BEHAVIOUR)

    def counted(self, count: int) -> str:
        """Return a number and the name of the kind, such as "2 regressions"."""
        return f"{count:,} {self}{'s' if self is Kind.BROKEN and count != 1 else ''}"

    @property
    def meaning(self) -> str:
        """A sentence about the kind."""
        return MEANINGS[self]


MEANINGS = {
    Kind.BROKEN: "The check passed and now fails; or the call raised, crashed or hung, and now returns, "
    "but fails a check.",
    Kind.REFUSED: "The call returned a result and now raises.",
    Kind.BEHAVIOUR: "The kind of value (such as NaN), dtype, shape or class of error changed; or a second call gives "
    "other bits; or the results differ, and the runs have different contracts or declarations.",
    Kind.WORSE: "Within its bound, the error grew by more than one ulp and more than doubled, in ulp and as a share of "
    "the bound; or the grade is lower.",
    Kind.STILL: "The check failed before and still fails, with other numbers, other bits or another message.",
    Kind.FIXED: "The check failed and now passes.",
    Kind.ACCEPTED: "The call raised and now returns a correct result.",
    Kind.BETTER: "Within its bound, the error shrank by more than one ulp and to less than half, in ulp and as a share "
    "of the bound; or the grade is higher.",
    Kind.MOVED: "The bits changed, and the error is within its bound.",
    Kind.WORDS: "The call raises the same class of error with another message.",
    Kind.JUDGED: "The results are the same, but the error, its bound or other details differ, for example because of "
    "another version of numpy or crossent.",
    Kind.SAME: "The bits are the same. Reports have no bits for a check that makes several calls; for such a check, "
    "the error is the same.",
}


@dataclass(frozen=True)
class Side:
    """One check on one case in one run.

    Attributes:
        finding: the finding, or None if the check passed.
        shown: the summary of the result with the name of the check, such as "gradient". For "call", the summaries of
            the results that at least one of the two runs does not check.
        raised: for "call" and "errors", the class and message of the error on a bad input; otherwise "".
        digest: for a check that uses results with other names, such as "sign", the checksums of these results. For
            "call", the checksum of all results, if both runs have equal results. Otherwise "".
        grade: for the check "result", the grade of the subject on the case; otherwise "".
    """

    measured: Measured
    finding: Finding | None = None
    shown: Mapping[str, ResultSummary] = field(default_factory=dict)
    raised: str = ""
    digest: str = ""
    grade: str = ""

    @property
    def error_class(self) -> str:
        """The class of the error that the call raised; "" if there is no error."""
        raised = self.finding.message if self.finding and self.finding.kind == "refused" else self.raised
        return raised.partition(":")[0]


@dataclass(frozen=True)
class Move:
    """The comparison of one check on one case of one subject. `old` and `new` are the check in each run.

    `policy` is the name of the decision of torch that the case shows (`POLICIES` of :mod:`crossent.cases.edges`), or
    "". If the call returns only in the new run, `also` has the checks that the new result fails.
    """

    kind: Kind
    subject: str
    check: str
    case: str
    dtype: str
    old: Side
    new: Side
    policy: str = ""
    also: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The id of the change, SUBJECT:CHECK:CASE, like the id of a finding."""
        return f"{self.subject}:{self.check}:{self.case}"

    @property
    def says(self) -> str:
        """The difference between the two sides in one line, such as "NaN → 0"."""
        if self.old.shown.keys() == self.new.shown.keys():
            pairs = [(self.old.shown[name], self.new.shown[name]) for name in self.old.shown]
            values = [words for old, new in pairs if (words := _between(old, new, self._shows_values))]
        else:
            values = []
        messages = _messages(self.old, self.new)
        numbers = _numbers(self.old.measured, self.new.measured)
        before, now = self.old.grade, self.new.grade
        grades = f"grade {before} → {now}" if before and now and before != now else ""
        if self.also:
            messages = f"{messages.removesuffix('right')}returns a result, but fails {', '.join(self.also)}"
        if parts := [*values, *(words for words in (messages, grades, numbers) if words)]:
            return "; ".join(parts)
        if self.kind is Kind.MOVED and _has_checksums(self.old, self.new) and not _same_bits(self.old, self.new):
            return "other bits"
        return "other details, such as another message, known failure or number of elements"

    @property
    def _shows_values(self) -> bool:
        return bool(self.policy) or self.kind in (Kind.BROKEN, Kind.BEHAVIOUR, Kind.FIXED)

    @property
    def change_in_ulp(self) -> float:
        """The absolute change of the error in ulp. A missing error counts as 0.

        The change counts as infinite if an error is NaN, or if both errors are infinite.
        """
        old, new = self.old.measured.ulp or 0.0, self.new.measured.ulp or 0.0
        return math.inf if math.isnan(new - old) else abs(new - old)


def kind_of(check: str, old: Side, new: Side, policy: bool = False) -> Kind:
    """Return the kind of the change from `old` to `new`, the sides of the check `check` on one case.

    The two runs must have the same input bits, contract and declarations. `policy` says whether torch decides the
    result of the case.
    """
    before, now = old.finding, new.finding
    if _same(old, new):
        return Kind.SAME
    if _behaves_otherwise(check, old, new, policy):
        return Kind.BEHAVIOUR
    if before is None or now is None:
        if before is None and now is None:
            return _within(old, new)
        if now is not None:
            return Kind.REFUSED if now.kind == "refused" else Kind.BROKEN
        return Kind.ACCEPTED if before is not None and before.kind == "refused" else Kind.FIXED
    if (before.kind == "refused") != (now.kind == "refused"):
        return Kind.REFUSED if now.kind == "refused" else Kind.ACCEPTED
    if now.kind == "refused":
        return Kind.WORDS
    same = _same_bits(old, new) or (not _has_checksums(old, new) and _same_failure(before, now))
    return Kind.JUDGED if same else Kind.STILL


def _same(old: Side, new: Side) -> bool:
    """Return whether the two sides are equal, except for the command of the finding."""
    return repr(_comparable(old)) == repr(_comparable(new))  # NaN is not equal to NaN, but has the same repr


def _same_bits(old: Side, new: Side) -> bool:
    """Return whether the two sides have checksums of results, and the checksums are equal."""
    bits = [({name: shown.digest for name, shown in side.shown.items()}, side.digest) for side in (old, new)]
    return bits[0] == bits[1] != ({}, "")


def _same_error(old: Side, new: Side) -> bool:
    """Return whether the errors of the worst element are equal, rounded to 0.001 ulp.

    If a side has checksums of results, return False. If the last bit of the element changes, the error changes by about
    1 ulp. Another library for the exact value changes the error by less than 0.001 ulp.
    """
    before, now = old.measured.ulp, new.measured.ulp
    if _has_checksums(old, new) or before is None or now is None:
        return False
    return f"{before:.3f}" == f"{now:.3f}"


def _same_failure(before: Finding, now: Finding) -> bool:
    """Return whether two findings have the same numbers and message."""
    first, second = (replace(finding, call="", torch="", expected=None, repeat="") for finding in (before, now))
    return repr(first) == repr(second)


def _has_checksums(old: Side, new: Side) -> bool:
    return any((old.shown, old.digest, new.shown, new.digest))


def _comparable(side: Side) -> Side:
    """Return a copy of a side without the command of the finding, and with the reasons of `not_judged` sorted."""
    finding = side.finding and replace(side.finding, repeat="")
    measured = replace(side.measured, not_judged=dict(sorted(side.measured.not_judged.items())))
    return replace(side, finding=finding, measured=measured)


def _behaves_otherwise(check: str, old: Side, new: Side, policy: bool) -> bool:
    """Return whether a dtype, shape, class of error or kind of value changed, or a second call newly gives other bits.

    If the check failed and now passes, only another dtype or shape counts. If a finite result became a wrong NaN or
    infinity, return True only if torch decides the result (`policy`).
    """
    passed, passes = old.finding is None, new.finding is None
    if passed and new.finding is not None and (check == "result" or new.finding.kind == "not_repeated"):
        return True
    if passed == passes and old.error_class != new.error_class:
        return True
    if old.shown.keys() != new.shown.keys():
        return passed == passes
    for name, before in old.shown.items():
        now = new.shown[name]
        if (before.dtype, before.shape) != (now.dtype, now.shape):
            return True
        if dict(before.special) != dict(now.special):
            return passed == passes or (passed and (policy or bool(before.special)))
    return False


def _within(old: Side, new: Side) -> Kind:
    """Return the kind of the change between two different sides of a check that passed in both runs."""
    if old.raised != new.raised:
        return Kind.WORDS
    if old.grade != new.grade:
        return Kind.WORSE if new.grade > old.grade else Kind.BETTER
    if _same_bits(old, new) or _same_error(old, new):
        return Kind.JUDGED
    if _has_grown(old.measured, new.measured):
        return Kind.WORSE
    return Kind.BETTER if _has_grown(new.measured, old.measured) else Kind.MOVED


def _has_grown(less: Measured, more: Measured) -> bool:
    """Return whether the error of `more` exceeds `TIMES` times the error of `less`, in ulp and as a share of the bound.

    The error of `more` must also be larger by more than `LAST_PLACES` ulp.
    """
    if less.ulp is None or more.ulp is None or less.ratio is None or more.ratio is None:
        return False
    return more.ulp > TIMES * less.ulp and more.ulp > less.ulp + LAST_PLACES and more.ratio > TIMES * less.ratio


def _between(old: ResultSummary, new: ResultSummary, show_values: bool) -> str:
    """Return the change of a result in words, such as "NaN → 0"; "" if there is nothing to show."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype} {old.shape} → {new.dtype} {new.shape}"
    if old.value is not None and new.value is not None:
        if show_values and old.digest != new.digest:
            return f"{number(old.value)} → {number(new.value)}"
    elif dict(old.special) != dict(new.special):
        return f"{_special(old)} → {_special(new)}, of {counted(math.prod(old.shape), 'element')}"
    return ""


def _special(shown: ResultSummary) -> str:
    return ", ".join(f"{count} {'NaN' if name == 'nan' else name}" for name, count in shown.special.items()) or "finite"


def _messages(old: Side, new: Side) -> str:
    """Return the old and the new message, such as "right → IndexError: …"; "" if the messages are equal."""
    was, now = _message(old), _message(new)
    if was == now:
        return ""
    return " → ".join(message or ("wrong" if side.finding else "right") for message, side in ((was, old), (now, new)))


def _message(side: Side) -> str:
    if side.finding is not None and side.finding.numbers is None:
        return side.finding.message.partition("\n")[0]
    return side.raised


def _numbers(old: Measured, new: Measured) -> str:
    if old.ulp is None or new.ulp is None or old.ratio is None or new.ratio is None:
        return ""
    return f"{old.ulp:.3g} → {new.ulp:.3g} ulp, {share(old.ratio)} → {share(new.ratio)} of the bound"


def number(value: float) -> str:
    """Return a value as text with at most five significant digits, such as "NaN" or "0.4517"."""
    return "NaN" if math.isnan(value) else f"{value:.5g}"
