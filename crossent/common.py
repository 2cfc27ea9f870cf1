"""Common: what most cases on which a check fails have in common, and few on which it holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from crossent.axes import DENSE_TARGETS
from crossent.cases import Case
from crossent.findings import Finding, SubjectReport

MOST = 3  # words: more would be the case itself


def common(subject: SubjectReport, findings: Sequence[Finding]) -> str:
    """What the first of these findings of one check has in common with most others, and with few cases that hold.

    It is the words for which the share of failing cases that have them is the most above the share of those that hold;
    "" where that is not more than one half. A case that holds and lets zeros pass is not counted.
    """
    check, failing = findings[0].check, [finding.case for finding in findings]
    measured = {case: outcome.checks[check] for case, outcome in subject.outcomes.items() if check in outcome.checks}
    holding = [case for case, one in measured.items() if not one.failed and not one.vacuous]
    words = _words(failing[0])
    bad, good = _having(words, failing), _having(words, holding)
    if len(failing) < 2 or not holding:
        return ""
    said, most = "", 0.5
    for count in range(1, MOST + 1):
        for chosen in combinations(words, count):
            fail, hold = (len(set.intersection(*(having[word] for word in chosen))) for having in (bad, good))
            above = fail / len(failing) - hold / len(holding)
            if above > most:
                most = above
                of = f"{hold or 'none'} of {len(holding)} that hold"
                said = f"{', '.join(chosen)}: {fail} of {len(failing)} cases of this, and {of}"
    return said


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, set[str]]:
    """The cases that have each word."""
    found: dict[str, set[str]] = {word: set() for word in words}
    for case in cases:
        for word in _words(case):
            if word in found:
                found[word].add(case)
    return found


def _words(id: str) -> list[str]:
    """What a reader may want to know of a case, without options at their default; of a bad input, nothing."""
    try:
        case = Case.of(id)
    except ValueError:
        return []
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    told = {
        shape: True,
        "a weight": case.weight != "unweighted",
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "class probabilities": case.target in DENSE_TARGETS,
        "uint8 targets": case.target == "uint8",
        f"reduction={case.reduction!r}": True,
        case.dtype: True,
        "no rows": case.rows == 0,
        f"C {'a' if case.classes & (case.classes - 1) == 0 else 'no'} power of two": True,
        f"values {case.values}": True,
        f"logits that are {'contiguous' if case.layout in ('contiguous', 'offset') else 'strided'}": True,
        "an upstream gradient other than 1": case.upstream != "one",
    }
    return [word for word, holds in told.items() if holds]
