"""Regimes: how near to its bound a subject came on each kind of values, and where a plot of it has its marks.

A regime is what the logits of a case look like, the word on its axis `values`: a bound that holds on normal logits says
nothing about rows with an offset of 1e8.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.values import VALUES
from crossent.report.findings import Measured, SubjectReport

PLOTTED = ("loss", "gradient")


@dataclass(frozen=True)
class Mark:
    """The worst of the results of a regime and a dtype.

    Attributes:
        kind: "held", "failed", "known" of a failure that is expected, or "none" where no result is evidence.
        ratio, ulp, case: the worst one's; 0 and "" where there is no evidence.
        median: of all their ratios.
        count: how many results there are.
    """

    dtype: str
    kind: str
    count: int
    ratio: float = 0.0
    ulp: float = 0.0
    case: str = ""
    median: float = 0.0


@dataclass(frozen=True)
class Strip:
    """One check of a subject: for each regime that it met, the marks, dtype by dtype."""

    check: str
    regimes: dict[str, list[Mark]]

    @property
    def worst(self) -> tuple[str, Mark] | None:
        """The regime and the mark of the worst result that nobody expected; None where none is evidence."""
        marks = [(regime, mark) for regime, of in self.regimes.items() for mark in of if mark.case]
        unknown = [one for one in marks if one[1].kind != "known"]
        return max(unknown, key=lambda one: one[1].ratio, default=None)


@dataclass(frozen=True)
class Scale:
    """From a ratio to a place on a logarithmic axis, in percent of its length; what is beyond an end stands on it."""

    low: float
    high: float

    def at(self, ratio: float) -> float:
        """The place of a ratio; most of the axis is inside the bound, where right results are told apart."""
        bound = 72.0 if self.high > 10 else 88.0
        if ratio <= 1:
            return round(3 + (bound - 3) * (1 - math.log(max(ratio, self.low)) / math.log(self.low)), 2)
        return round(bound + (97 - bound) * math.log(min(ratio, self.high)) / math.log(self.high), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The powers of ten on it, and what is written there."""
        names = {0.01: "≤1%", 0.1: "10%", 1.0: "100%", 100.0: "≥100×"}
        return [(self.at(ratio), name) for ratio, name in names.items() if ratio <= self.high]


def scale(strips: Iterable[Strip]) -> Scale:
    """One for all of them, so that they can be compared; it goes beyond the bound as far as there is something."""
    worst = max((mark.ratio for strip in strips for marks in strip.regimes.values() for mark in marks), default=0.0)
    return Scale(0.01, 100.0 if worst > 1 else 2.0)


def strips(subject: SubjectReport) -> list[Strip]:
    """The regimes of a subject's loss and gradient."""
    known = {(finding.check, finding.case) for finding in subject.findings if finding.expected is not None}
    found: dict[tuple[str, str, str], list[tuple[str, Measured]]] = {}
    for case, outcome in subject.outcomes.items():
        for check in PLOTTED:
            measured = outcome.checks.get(check)
            if measured is not None and measured.ratio is not None and (regime := regime_of(case)):
                found.setdefault((check, regime, outcome.dtype), []).append((case, measured))
    made = []
    for check in PLOTTED:
        regimes: dict[str, list[Mark]] = {}
        for regime in VALUES:
            for dtype in DTYPES:
                if results := found.get((check, regime, dtype)):
                    regimes.setdefault(regime, []).extend(_marks(check, dtype, results, known))
        if regimes:
            made.append(Strip(check, regimes))
    return made


@cache
def regime_of(case: str) -> str | None:
    """The regime of the case with this id; None where it is no case's, as a bad input's."""
    try:
        return Case.of(case).values
    except ValueError:
        return None


def _marks(
    check: str, dtype: str, results: Sequence[tuple[str, Measured]], known: set[tuple[str, str]]
) -> Iterable[Mark]:
    """One of what nobody expected, and one of what is known to fail."""
    expected = [(case, of) for case, of in results if of.failed and (check, case) in known]
    if expected:
        yield _worst(dtype, "known", expected)
    others = [one for one in results if one not in expected]
    evidence = [(case, of) for case, of in others if of.failed or not of.vacuous]
    if evidence:
        yield _worst(dtype, "failed" if any(of.failed for _, of in evidence) else "held", evidence)
    elif others:
        yield Mark(dtype, "none", len(others))


def _worst(dtype: str, kind: str, results: Sequence[tuple[str, Measured]]) -> Mark:
    ratios = [of.ratio or 0.0 for _, of in results]
    case, worst = max(results, key=lambda one: one[1].ratio or 0.0)
    return Mark(dtype, kind, len(results), max(ratios), worst.ulp or 0.0, case, statistics.median(ratios))
