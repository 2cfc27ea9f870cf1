"""Plots of the error as a share of its bound: the cells of a heat map, and plots with a row for each regime.

The *regime* of a case is the kind of its logits, `Case.values`, such as "normal". A small error on normal logits says
nothing about logits with an offset of 1e8.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossent.cases.axes import DTYPES
from crossent.cases.ids import case_or_none
from crossent.cases.values import VALUES
from crossent.report.findings import Measured, SubjectReport, Tally
from crossent.report.text import share, short

# The checks that have a plot.
PLOTTED = ("loss", "gradient")
STEPS = 5  # colours of the heat map, for errors from 0 to the error bound


@dataclass(frozen=True)
class Cell:
    """A cell of the heat map: one check in one dtype.

    `kind` names the colour. `says` is the text, above the smaller lines `below`. `title` is the tooltip.
    """

    kind: str
    says: str = ""
    below: Sequence[str] = ()
    title: str = ""


def cell(tally: Tally | None, missing: int) -> Cell:
    """Return the cell of a check in a dtype: the largest share of a bound, and how many comparisons are evidence.

    If the check failed, the cell has the number of failures instead of the evidence. A comparison is evidence if a
    wrong result, such as zeros, would fail. `missing` counts the cases that skipped the check.
    """
    if tally is None:
        return Cell("missing", "not run", [f"{missing:,}"]) if missing else Cell("absent")
    known = [f"{tally.expected:,} known"] if tally.expected else []
    title = "" if tally.ulp is None else f"worst: {short(tally.ulp)} ulp on {tally.case}"
    passed, evidence = tally.ran - tally.expected, tally.ran - tally.vacuous
    if tally.failed:
        worst = "" if tally.ratio is None else f" {share(tally.ratio)}"
        kind, says, below = "failed", f"✗{worst}", f"{tally.failed:,} failed"
        known = [f"of {tally.ran:,}", *known]
    elif not passed:
        kind, says, below, known = "known", "known", f"{tally.ran:,}", []
    elif tally.ratio is None:
        kind, says, below = "passed", "passed", f"{passed:,}"
    elif not evidence:
        kind, says, below = "none", "no evidence", f"0/{tally.ran:,}"
    else:
        step = min(int(STEPS * tally.ratio), STEPS - 1)
        kind, says, below = f"step{step}", share(tally.ratio), f"{evidence:,}/{tally.ran:,}"
    return Cell(kind, says, [below, *known, *([f"{missing:,} not run"] if missing else [])], title)


@dataclass(frozen=True)
class Mark:
    """A mark in a plot, for the results of one check in one regime and dtype.

    Attributes:
        kind: "passed"; "failed" if a result failed; "known" for known failures; "none" if no result is evidence.
        count: the number of results.
        ratio, ulp, case: the error of the worst result, as a share of its bound and in ulp, and its case.
        median: the median of the errors, as shares of their bounds.
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
    """The plot of one check of a subject: the marks of each regime, in the order of the dtypes."""

    check: str
    regimes: dict[str, list[Mark]]

    @property
    def worst(self) -> tuple[str, Mark] | None:
        """The regime and the mark of the worst result, without known failures; None if there is no result."""
        marks = [(regime, mark) for regime, of in self.regimes.items() for mark in of if mark.case]
        candidates = [(regime, mark) for regime, mark in marks if mark.kind != "known"]
        return max(candidates, key=lambda candidate: candidate[1].ratio, default=None)


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from `low` to `high`, for shares of a bound."""

    low: float
    high: float

    def at(self, ratio: float) -> float:
        """Return the position of a share of the bound on the axis, in percent of the width."""
        bound = 72.0 if self.high > 10 else 88.0  # the position of 100% on an axis whose ends are at 3 and 97
        if ratio <= 1:
            return round(3 + (bound - 3) * (1 - math.log(max(ratio, self.low)) / math.log(self.low)), 2)
        return round(bound + (97 - bound) * math.log(min(ratio, self.high)) / math.log(self.high), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The position and the label of each tick."""
        names = {0.01: "≤1%", 0.1: "10%", 1.0: "100%", 100.0: "≥100×"}
        return [(self.at(ratio), name) for ratio, name in names.items() if ratio <= self.high]


def scale(strips: Iterable[Strip]) -> Scale:
    """Return one scale for all plots of a page, so that readers can compare the plots."""
    worst = max((mark.ratio for strip in strips for marks in strip.regimes.values() for mark in marks), default=0.0)
    return Scale(0.01, 100.0 if worst > 1 else 2.0)


def strips(subject: SubjectReport) -> list[Strip]:
    """Return the plots of a subject: one for the loss, one for the gradient."""
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


def regime_of(case: str) -> str | None:
    """Return the regime of the case with this id; None for a bad input or an unknown id."""
    found = case_or_none(case)
    return None if found is None else found.values


def _marks(
    check: str, dtype: str, results: Sequence[tuple[str, Measured]], known: set[tuple[str, str]]
) -> Iterable[Mark]:
    """Yield the marks of one check, dtype and regime: for the known failures, and for the other results.

    `known` has the check and the case of each known failure.
    """
    expected = [(case, of) for case, of in results if of.failed and (check, case) in known]
    if expected:
        yield _mark(dtype, "known", expected)
    others = [result for result in results if result not in expected]
    evidence = [(case, of) for case, of in others if of.failed or not of.vacuous]
    if evidence:
        yield _mark(dtype, "failed" if any(of.failed for _, of in evidence) else "passed", evidence)
    elif others:
        yield Mark(dtype, "none", len(others))


def _mark(dtype: str, kind: str, results: Sequence[tuple[str, Measured]]) -> Mark:
    ratios = [of.ratio or 0.0 for _, of in results]
    case, worst = max(results, key=lambda result: result[1].ratio or 0.0)
    return Mark(dtype, kind, len(results), max(ratios), worst.ulp or 0.0, case, statistics.median(ratios))
