"""Moves: what became of one check of one case from one run to another, by rules that are written here.

No rule is a tolerance for a result: both runs were held to the exact answer when they were made. What is asked here is
what changed between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from crossent.report.findings import Finding, Measured, ResultSummary
from crossent.report.text import share

# What an error and its share of the bound must have grown to be worse: past the last bit, in which any other order of
# summation shows. Both, since the worst numbers of two runs need not be the same one: that which is closer to zero has
# more ulps, and no larger error.
TIMES, LAST_PLACES = 2.0, 1.0


class Kind(StrEnum):
    """What became of it, the gravest first."""

    BROKEN = "broken"
    REFUSED = "newly refused"
    CONTRACT = "contract changed"
    WORSE = "worse within bounds"
    STILL = "still wrong"
    MENDED = "mended"
    ACCEPTED = "newly accepted"
    BETTER = "better"
    MOVED = "moved within bounds"
    WORDS = "other words"
    JUDGED = "same bits, judged anew"
    SAME = "same bits"

    @property
    def fails(self) -> bool:
        """Whether nobody should upgrade without a look at it."""
        return self in (Kind.BROKEN, Kind.REFUSED, Kind.CONTRACT)

    @property
    def meaning(self) -> str:
        """What it says, in a sentence."""
        return MEANINGS[self]


MEANINGS = {
    Kind.BROKEN: "It was within its bound, or held, and is not; or it was refused, and is taken and wrong.",
    Kind.REFUSED: "The call was taken, and raises.",
    Kind.CONTRACT: "Another kind of value, as NaN, another dtype, shape or class of error, or other bits each time.",
    Kind.WORSE: "Within its bound, of which it takes over twice what it did, in ulp too, and by more than one ulp.",
    Kind.STILL: "It is wrong as it was, in other numbers.",
    Kind.MENDED: "It was wrong, and is not.",
    Kind.ACCEPTED: "It was refused, and is right.",
    Kind.BETTER: "Within its bound, of which it takes under half of what it did, in ulp too, and by more than one ulp.",
    Kind.MOVED: "Other bits, within the bound.",
    Kind.WORDS: "Refused with the same class of error, in other words.",
    Kind.JUDGED: "The same bits, as far as is kept, whose error or bound was computed with another numpy or crossent.",
    Kind.SAME: "The same bits; of a check of several calls, the same error.",
}


@dataclass(frozen=True)
class Side:
    """One check of one case in one run.

    Attributes:
        measured: what it measured.
        finding: what it found, or None where it held.
        shown: the results of the first call that it is about; a check of several calls has none.
        raised: the error with which a bad call was refused, or "".
        digest: of other results that it is about.
        grade: what was reached, where it is the check that says so.
    """

    measured: Measured
    finding: Finding | None = None
    shown: Mapping[str, ResultSummary] = field(default_factory=dict)
    raised: str = ""
    digest: str = ""
    grade: str = ""

    @property
    def error(self) -> str:
        """The class of the error that it raised, or ""."""
        raised = self.finding.message if self.finding and self.finding.kind == "refused" else self.raised
        return raised.partition(":")[0]


@dataclass(frozen=True)
class Move:
    """What became of one check of one case of one subject.

    `policy` is the question that the case stands for, where it is one of :mod:`crossent.cases.edges`. `also` are the
    checks that the new run found something wrong with, of a case that the old one refused.
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
        """As a finding's."""
        return f"{self.subject}:{self.check}:{self.case}"

    @property
    def says(self) -> str:
        """What it was and what it is, in one line."""
        if self.old.shown.keys() == self.new.shown.keys():
            pairs = [(self.old.shown[name], self.new.shown[name]) for name in self.old.shown]
            values = [words for old, new in pairs if (words := _between(old, new, self._alone))]
        else:
            values = []
        errors = _errors(self.old, self.new)
        numbers = _numbers(self.old.measured, self.new.measured)
        grades = f"grade {self.old.grade} → {self.new.grade}" if self.old.grade != self.new.grade else ""
        if self.also:
            errors = f"{errors.removesuffix('right')}taken, and wrong in {', '.join(self.also)}"
        said = [*values, *(words for words in (errors, grades, numbers) if words)]
        other_bits = self.kind is Kind.MOVED and not _same_bits(self.old, self.new)
        return "; ".join(said) or ("other bits" if other_bits else "in other counts or other words")

    @property
    def _alone(self) -> bool:
        """Whether values are told that are numbers like any other."""
        return bool(self.policy) or self.kind in (Kind.BROKEN, Kind.CONTRACT, Kind.MENDED)

    @property
    def growth(self) -> float:
        """How much the share of the bound has changed, in ulp: what comes first among others of its kind."""
        old, new = self.old.measured.ulp or 0.0, self.new.measured.ulp or 0.0
        return math.inf if math.isnan(new - old) else abs(new - old)


def kind_of(check: str, old: Side, new: Side, policy: bool = False) -> Kind:
    """The one rule that holds for a check, of which both runs asked the same."""
    before, now = old.finding, new.finding
    if _same(old, new):
        return Kind.SAME
    if _contract(check, old, new, policy):
        return Kind.CONTRACT
    if before is None or now is None:
        if before is None and now is None:
            return _within(old, new)
        if now is not None:
            return Kind.REFUSED if now.kind == "refused" else Kind.BROKEN
        return Kind.ACCEPTED if before is not None and before.kind == "refused" else Kind.MENDED
    if (before.kind == "refused") != (now.kind == "refused"):
        return Kind.REFUSED if now.kind == "refused" else Kind.ACCEPTED
    if now.kind == "refused":
        return Kind.WORDS
    return Kind.JUDGED if _same_bits(old, new) else Kind.STILL


def _same(old: Side, new: Side) -> bool:
    """Not a bit, not a number and not a word is another one; NaN is NaN."""
    return repr(_told(old)) == repr(_told(new))


def _same_bits(old: Side, new: Side) -> bool:
    """Whether it is known that the same bits came."""
    bits = [({name: shown.digest for name, shown in side.shown.items()}, side.digest) for side in (old, new)]
    return bits[0] == bits[1] != ({}, "")


def _same_error(old: Side, new: Side) -> bool:
    """Whether the worst number is off by the same, of a check of several calls, whose bits are not kept.

    A number of other bits is off by whole ulps more or less. What changes beyond the third place is what the exact
    answer was computed with.
    """
    before, now = old.measured.ulp, new.measured.ulp
    kept = any((old.shown, old.digest, new.shown, new.digest))
    return not kept and before is not None and now is not None and f"{before:.3f}" == f"{now:.3f}"


def _told(side: Side) -> Side:
    finding = side.finding and replace(side.finding, named=True)
    measured = replace(side.measured, not_judged=dict(sorted(side.measured.not_judged.items())))
    return replace(side, finding=finding, measured=measured)


def _contract(check: str, old: Side, new: Side, policy: bool) -> bool:
    """Whether something is promised otherwise: a kind of value, a shape, a dtype, an error's class, the same bits."""
    held, holds = old.finding is None, new.finding is None
    if held and new.finding is not None and (check == "result" or new.finding.kind == "not_repeated"):
        return True
    if held == holds and old.error != new.error:
        return True
    if old.shown.keys() != new.shown.keys():
        return held == holds
    for name, before in old.shown.items():
        now = new.shown[name]
        if (before.dtype, before.shape) != (now.dtype, now.shape):
            return True
        if dict(before.special) != dict(now.special):
            # A number that was right and is NaN is broken, and NaN that was wrong and is a number is mended.
            return held == holds or (held and (policy or bool(before.special)))
    return False


def _within(old: Side, new: Side) -> Kind:
    """Of what held in both runs, and is not the same."""
    if old.raised != new.raised:
        return Kind.WORDS
    if old.grade != new.grade:
        return Kind.WORSE if new.grade > old.grade else Kind.BETTER
    if _same_bits(old, new) or _same_error(old, new):
        return Kind.JUDGED
    if _grown(old.measured, new.measured):
        return Kind.WORSE
    return Kind.BETTER if _grown(new.measured, old.measured) else Kind.MOVED


def _grown(less: Measured, more: Measured) -> bool:
    """Whether the one error is larger by so much that it is worth a word."""
    if less.ulp is None or more.ulp is None or less.ratio is None or more.ratio is None:
        return False
    return more.ulp > TIMES * less.ulp and more.ulp > less.ulp + LAST_PLACES and more.ratio > TIMES * less.ratio


def _between(old: ResultSummary, new: ResultSummary, alone: bool) -> str:
    """What one result was and is, where that is more than other bits: "NaN → 0"."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f"{old.dtype} {old.shape} → {new.dtype} {new.shape}"
    if old.value is not None and new.value is not None:
        if alone and old.digest != new.digest:
            return f"{number(old.value)} → {number(new.value)}"
    elif dict(old.special) != dict(new.special):
        count = math.prod(old.shape)
        return f"{_special(old)} → {_special(new)}, of {count}"
    return ""


def _special(shown: ResultSummary) -> str:
    return ", ".join(f"{count} {'NaN' if name == 'nan' else name}" for name, count in shown.special.items()) or "finite"


def _errors(old: Side, new: Side) -> str:
    """What was raised, or not, and what is: in the words of a finding where there is one."""
    told = [_words(side) for side in (old, new)]
    if not any(told) or told[0] == told[1]:
        return ""
    return f"{told[0] or 'right'} → {told[1] or 'right'}"


def _words(side: Side) -> str:
    if side.finding is not None and side.finding.numbers is None:
        return side.finding.message.partition("\n")[0]
    return side.raised


def _numbers(old: Measured, new: Measured) -> str:
    if old.ulp is None or new.ulp is None or old.ratio is None or new.ratio is None:
        return ""
    return f"{old.ulp:.3g} → {new.ulp:.3g} ulp, {share(old.ratio)} → {share(new.ratio)} of the bound"


def number(value: float) -> str:
    """A value in a few digits: "NaN", "0", "0.4517"."""
    return "NaN" if math.isnan(value) else f"{value:.5g}"
