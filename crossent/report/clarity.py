"""Rank findings by clarity, describe their cases in words, and find published bugs that fail on the same inputs."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from crossent.cases.axes import CLASS_LIMITS, DENSE_TARGETS, ROW_LIMITS
from crossent.cases.case import Case
from crossent.cases.corpus import Bug, bugs
from crossent.cases.ids import BAD_INPUT_OF, case_of
from crossent.cases.values import VALUES

if TYPE_CHECKING:
    from crossent.report.findings import Finding

_MISMATCHED = re.compile(r"Mismatched elements: (\d+) / (\d+) ")
_PLAIN = 3  # an error above 10**3 times its bound is as clear as a larger error
_SMALL = 64  # a case with at most this many logits is small: a reader can read all of its numbers
# The kinds of logits with rows far below zero, and how many other rows may come before such a row. The kinds
# "row_offsets" and "offsets" add an offset of random sign to each row.
_FAR_BELOW = {"negative_offset": 0, "assorted": 3, "row_offsets": 1, "offsets": 1}
# The kinds of logits with -inf, +inf or NaN.
_NOT_FINITE = {name for name in VALUES if name.startswith(("inf_", "nan", "positive_inf"))}
# A copy of NUMBERS of `findings`, which imports this module.
_NUMBERS = {"loss", "gradient", "target_gradient", "weight_gradient", "bias_gradient"}


def by_plainness(finding: Finding) -> tuple[int, int, float, int]:
    """Return a sort key of a finding. The finding that shows its failure most clearly has the smallest key.

    These make a finding clearer, the most important first: a larger error, in powers of ten of its bound up to 1000; a
    smaller case, in powers of two above 64 logits; a larger share of wrong numbers; fewer unusual options.
    """
    counts = _MISMATCHED.search(finding.message)
    wrong = int(counts[1]) / int(counts[2]) if counts else 1.0
    case = case_or_none(finding.case)
    if case is None:  # a bad input has few logits and one bad argument
        return -size_of_error(finding), 0, -round(wrong, 1), 0
    above = max(0, (case.rows * case.classes // _SMALL).bit_length() - 1)
    unusual = finding.case.count("-") + (case.values != "normal")
    return -size_of_error(finding), above, -round(wrong, 1), unusual


def size_of_error(finding: Finding) -> int:
    """Return the error as a power of ten of its bound: 0, 1, 2 or 3. Return 3 for a finding without numbers."""
    ratio = finding.numbers.ratio if finding.numbers else math.inf
    return int(math.log10(max(ratio, 1.0))) if ratio < 10**_PLAIN else _PLAIN  # a ratio of NaN is not smaller


@cache
def case_or_none(id: str) -> Case | None:
    """Return the case with this id, or None for a bad input."""
    try:
        found = case_of(id)
    except ValueError:
        return None
    return found if isinstance(found, Case) else None


@cache
def words_of(id: str) -> tuple[str, ...]:
    """Return the words that describe the options and sizes of a case, such as "a weight"; for a bad input, its kind."""
    case = case_or_none(id)
    if case is None:
        return (BAD_INPUT_OF[id].kind,) if id in BAD_INPUT_OF else ()
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    described = {
        shape: True,
        f"logits of {len(case.sizes)} dimensions": len(case.sizes) > 3,
        "a weight": case.weight != "unweighted",
        "a weight of 0": case.weight == "weight_zeros",
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "an ignore_index that is a class": case.ignored != "kept" and 0 <= case.ignore_index < case.classes,
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


def same_trigger(
    findings: Iterable[Finding],
    words: Collection[str],
    failing: Sequence[str],
    passing: Sequence[str],
    ran: Mapping[str, Collection[str]],
) -> str:
    """Return a sentence about the published bug with the same trigger as these findings; "" if there is none.

    The trigger of a bug is the input on which the bug shows. An unusual word is a word that a case with default options
    lacks. A bug has the same trigger if all of this is true:

    - A case of the bug is among the findings, and fails as with the bug: see `_shows`. The case has all of `words`.
    - `words` has an unusual word, and every case of the bug has the unusual words of `words`. A single finding, and
      findings on bad inputs, need no unusual word.
    - Most failing cases, but few passing cases, have `words` and the unusual words of the bug.

    Args:
        findings: findings that probably have one cause.
        words: the words that the failing cases have in common; empty if there are none.
        failing: the cases that fail the check of the first finding.
        passing: the cases that pass this check.
        ran: for each case, the checks that ran on it.
    """
    several = len(failing) > 1 and case_or_none(failing[0]) is not None
    telling = set(words) - _PLAIN_WORDS
    if several and not telling:
        return ""
    checks = {_trigger(case): set(names) for case, names in ran.items()}
    found: dict[str, set[str]] = {}
    for finding in findings:
        found.setdefault(_trigger(finding.case), set()).add(finding.check)
    best, most = "", 0.5
    for bug in bugs():
        shared, options = _words_of_bug(bug)
        triggers = [trigger for trigger in _triggers(bug) if trigger in found and telling <= shared]
        if any(set(words).issubset(words_of(one)) and _shows(bug, found[one], checks.get(one, ())) for one in triggers):
            above = _share({*words, *options}, failing) - _share({*words, *options}, passing)
            if above > most:
                issue = bug.issues[0] if bug.issues else "a known bug"
                best, most = f"{issue} has the same trigger: {bug.breaks}", above
    return best


def _shows(bug: Bug, failed: Collection[str], ran: Collection[str]) -> bool:
    """Return whether a case fails as with the bug: the same results are wrong, and a check of the bug fails.

    The compared results are the loss, the gradient and the gradient of the target, as far as their checks ran.
    """
    wrong = {check for check in bug.checks if check in _NUMBERS and check in ran}
    return wrong == _NUMBERS.intersection(failed) and not set(bug.checks).isdisjoint(failed)


@cache
def _trigger(id: str) -> str:
    """Return the id of a case without its name and seed. The id of a bad input is unchanged."""
    case = case_or_none(id)
    return id if case is None else case.seeded(0).id.rpartition("/")[2]


@cache
def _triggers(bug: Bug) -> frozenset[str]:
    return frozenset((*(_trigger(case.id) for case in bug.cases), *bug.bad_inputs))


@cache
def _words_of_bug(bug: Bug) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that all cases of a bug have, and the unusual words among them."""
    words = [set(words_of(case.id)) for case in bug.cases]
    plain = [words_of(Case("float32", case.sizes).id) for case in bug.cases]
    shared = frozenset(set.intersection(*words)) if words else frozenset()
    return shared, shared.difference(*plain)


def _share(words: Collection[str], cases: Sequence[str]) -> float:
    """Return the share of the cases that have all the words."""
    return sum(set(words).issubset(words_of(case)) for case in cases) / max(1, len(cases))


# The words of a case with default options. They cannot tell failing cases from passing cases.
_PLAIN_WORDS = frozenset(words_of(Case("float32").id))
