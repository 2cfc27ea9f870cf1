"""How plainly a finding shows that a subject is wrong, and which published bug has the same trigger."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import TYPE_CHECKING

from crossent.cases.case import Case
from crossent.cases.corpus import Bug, bugs

if TYPE_CHECKING:
    from crossent.report.findings import Finding

_MISMATCHED = re.compile(r"Mismatched elements: (\d+) / (\d+) ")
_PLAIN = 3  # an error of 1000 times its bound is as plain as a larger error, or as a failure without numbers
_SMALL = 64  # logits, which a reader can look at
_MOST_OTHERS = 2


def by_plainness(finding: Finding) -> tuple[int, int, float, int]:
    """Return a sort key of a finding: the plainest finding has the smallest key.

    In this order: how many times larger than its bound the error is, by powers of ten up to 1000; the size of the
    case, by powers of two above 64 logits; the share of the numbers that are wrong; how many choices of the case are
    unusual.
    """
    counts = _MISMATCHED.search(finding.message)
    wrong = int(counts[1]) / int(counts[2]) if counts else 1.0
    try:
        case = Case.of(finding.case)
    except ValueError:  # a bad input: a small call with one bad argument
        return -size_of_error(finding), 0, -round(wrong, 1), 0
    above = max(0, (case.rows * case.classes // _SMALL).bit_length() - 1)
    unusual = finding.case.count("-") + (case.values != "normal")
    return -size_of_error(finding), above, -round(wrong, 1), unusual


def size_of_error(finding: Finding) -> int:
    """Return the share of the bound as a power of ten, from 0 to 3; 3 for a finding without numbers."""
    ratio = finding.numbers.ratio if finding.numbers else math.inf
    return int(math.log10(max(ratio, 1.0))) if ratio < 10**_PLAIN else _PLAIN  # NaN is plain too


def same_trigger(check: str, case: str) -> str:
    """Return a sentence about the published bug that this case shows and this check must find; "" for no bug."""
    try:
        of = Case.of(case)
        key, name = of.seeded(0).id.rpartition("/")[2], of.name
    except ValueError:
        key, name = case, ""
    found = [bug for bug in _by_trigger().get(key, ()) if check in bug.checks]
    if not found:
        return ""
    first, *others = sorted(found, key=lambda bug: not any(case.name == name for case in bug.cases))
    more = [bug.issues[0] for bug in others if bug.issues][:_MOST_OTHERS]
    also = f" The same is true of {' and '.join(more)}." if more else ""
    bug = first.issues[0] if first.issues else "a known bug"
    return f"{bug} has the same trigger: {first.breaks}{also}"


@cache
def _by_trigger() -> dict[str, list[Bug]]:
    """Return the bugs of the corpus by the ids, without names, of their cases and bad inputs."""
    found: dict[str, list[Bug]] = {}
    for bug in bugs():
        for trigger in (*(case.id.rpartition("/")[2] for case in bug.cases), *bug.bad_inputs):
            found.setdefault(trigger, []).append(bug)
    return found
