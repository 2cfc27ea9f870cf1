"""Rank findings by clarity, describe cases in words, and find published bugs by their trigger.

The trigger of a bug is the input that shows the bug. A word is a phrase about a case, such as "a weight of 0".
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from itertools import combinations
from typing import TYPE_CHECKING

from crossent.cases.axes import CLASS_LIMITS, DENSE_TARGETS, DTYPES, ROW_LIMITS
from crossent.cases.bad_inputs import BAD_INPUT_KINDS
from crossent.cases.case import Case
from crossent.cases.corpus import Bug, bugs
from crossent.cases.ids import BAD_INPUT_OF, MOST_CACHED, case_or_none
from crossent.cases.linear.case import LinearCase
from crossent.cases.values import VALUES

if TYPE_CHECKING:
    from crossent.report.findings import Finding

_MISMATCHED = re.compile(r"Mismatched elements: (\d+) / (\d+) ")
# A line of a message that names the option --without, --contract or --grade under which the check would pass.
_DECLARATION = re.compile(r"^If .+: --(\w+) (\w+)(?: --grade \w)?, in Python ", re.MULTILINE)
# Only the dtype of a result is wrong. On a device other than the CPU, the message names the device.
_OTHER_DTYPE = re.compile(r"got \S+ with shape (\(.*\)(?: on \S+)?); expected \S+ with shape \1(?! on )")
_FACTOR = re.compile(r"^The number is the exact value times \S+: (.+)$", re.MULTILINE)
_PLAIN = 3  # an error of 10**3 times its bound is as clear as any larger error
# Cases with fewer than twice this many logits count as equally small: a reader can read all of their numbers.
_SMALL = 64
# For each kind of logits with rows far below zero: a case with more rows than this number has such a row. For
# "row_offsets" and "offsets" this is only probable, because the offset of each row has a random sign.
_FAR_BELOW = {"negative_offset": 0, "assorted": 3, "row_offsets": 1, "offsets": 1}
# The kinds of logits with -inf, +inf or NaN.
_NOT_FINITE = {name for name in VALUES if name.startswith(("inf_", "nan", "positive_inf"))}
# A copy of `findings.NUMBERS`: this module cannot import `findings`, which imports this module.
_NUMBERS = {"loss", "gradient", "target_gradient", "weight_gradient", "bias_gradient"}

# For each word: the feature that a subject lacks if the subject refuses all cases with this word. For a kind of bad
# inputs: the feature that a subject lacks if the subject accepts them.
FEATURE_OF = {
    "logits of (C)": "unbatched",
    "logits of (N, C, d1, …)": "spatial",
    "a weight": "weight",
    "label_smoothing": "label_smoothing",
    "ignored rows": "ignore_index",
    "class indices": "index_target",
    "class probabilities": "probability_target",
    "a target of probabilities whose sum is not 1": "unnormalised",
    "uint8 targets": "uint8_target",
    "a linear_bias": "linear_bias",
    **{f"non-contiguous {name}": "strided" for name in ("logits", "input", "linear_weight")},
    "an empty batch": "empty",
    "1 class": "one_class",
    "logits that are not finite": "nonfinite",
    **{f"reduction={name!r}": f"reduction_{name}" for name in ("none", "mean", "sum")},
    **{dtype: dtype for dtype in DTYPES},
    **{kind: kind for kind in BAD_INPUT_KINDS},
}


def by_plainness(finding: Finding) -> tuple[int, int, float, int]:
    """Return a sort key of a finding. The finding that shows its failure most clearly has the smallest key.

    A clear finding has a large error, a small case, a large share of wrong numbers, and few options in its id.
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
    """Return the size of the error in powers of ten of its bound, from 0 to 3. A finding without numbers has 3."""
    ratio = finding.numbers.ratio if finding.numbers else math.inf
    return int(math.log10(max(ratio, 1.0))) if ratio < 10**_PLAIN else _PLAIN  # a ratio of NaN is not smaller


def declaration(finding: Finding) -> str:
    """Return the feature that the message of a finding suggests for `--without`, or ""."""
    found = _DECLARATION.search(finding.message)
    return found[2] if found and found[1] == "without" else ""


def factor_names(finding: Finding) -> tuple[str, ...]:
    """Return the possible names of the factor between the wrong and the exact number, such as "kept rows / rows"."""
    found = _FACTOR.search(finding.message)
    return tuple(found[1].split(" or ")) if found else ()


def less_clear(finding: Finding) -> tuple[bool, bool]:
    """Return two reasons why a finding is less clear, as booleans.

    The first is True if the exact value is infinite, NaN or 0. The second is True if a linear cross-entropy fails a
    check other than `loss`.
    """
    # A linear cross-entropy has gradients with thousands of small errors, so a wrong loss shows the bug better.
    numbers = finding.numbers
    ordinary = numbers is None or (math.isfinite(numbers.exact) and numbers.exact != 0)
    return not ordinary, finding.check != "loss" and "linear-" in finding.case


def rank_cause(checks: Collection[str], example: Finding) -> tuple[bool, bool, bool]:
    """Return a sort key of a cause, from its checks and its example. Each True is a reason to show the cause later."""
    accepted = _DECLARATION.search(example.message)  # an option under which the example would pass
    return bool(accepted and accepted[1] != "without"), set(checks) == {"target_gradient"}, less_clear(example)[1]


def kind_of_number(finding: Finding) -> str:
    """Return whether the wrong number is "NaN", "infinite" or "finite". A finding without numbers has ""."""
    got = finding.numbers.got if finding.numbers else None
    return "" if got is None else "NaN" if math.isnan(got) else "infinite" if math.isinf(got) else "finite"


def similarity_key(finding: Finding) -> tuple[str, str]:
    """Return two texts that are equal for similar findings of a check.

    The first text is the first line of the message without numbers, or "" if the finding has `numbers`. The second text
    is the feature that the message suggests for `--without`, or "".
    """
    line = _OTHER_DTYPE.sub("got another dtype", finding.message.partition("\n")[0])
    return "" if finding.numbers else re.sub(r"\bb?float\d+|\d+", "#", line), declaration(finding)


@lru_cache(MOST_CACHED)
def words_of(id: str) -> tuple[str, ...]:
    """Return the words for the case with this id. A bad input has one word, its kind, such as "index_errors"."""
    case = case_or_none(id)
    if case is None:
        return (BAD_INPUT_OF[id].kind,) if id in BAD_INPUT_OF else ()
    shape = {1: "logits of (C)", 2: "logits of (N, C)"}.get(len(case.sizes), "logits of (N, C, d1, …)")
    described = {
        shape: True,
        f"logits of {len(case.sizes)} dimensions": len(case.sizes) > 3,
        "a weight": case.weight != "unweighted",
        "a weight of 0": case.weight in ("weight_zeros", "weight_all_zeros"),
        "label_smoothing": case.label_smoothing > 0,
        "ignored rows": case.ignored != "kept",
        "an ignore_index that is a class": case.ignored != "kept" and 0 <= case.ignore_index < case.classes,
        "an empty batch": case.rows == 0,
        "class indices": case.target not in DENSE_TARGETS,
        "class probabilities": case.target in DENSE_TARGETS,
        "a target of probabilities whose sum is not 1": case.target in ("unnormalised", "padded"),
        "uint8 targets": case.target == "uint8",
        f"reduction={case.reduction!r}": True,
        case.dtype: True,
        **{f"more than {limit} class{'es' * (limit > 1)}": case.classes > limit for limit in CLASS_LIMITS},
        **{f"more than {limit} row{'s' * (limit > 1)}": case.rows > limit for limit in ROW_LIMITS if limit},
        "an odd number of classes": case.classes % 2 == 1,
        "an odd batch size": len(case.sizes) > 1 and case.sizes[0] % 2 == 1,
        case.class_size: True,
        case.row_size: True,
        f"C {'' if case.classes & (case.classes - 1) == 0 else 'not '}a power of two": True,
        f"logits of the kind {case.values}": True,
        "logits that are not finite": case.values in _NOT_FINITE,
        "a class with a logit of -inf": case.values.startswith("inf_"),
        "a row of logits far below zero": case.rows > _FAR_BELOW.get(case.values, case.rows),
        f"{'' if case.layout in ('contiguous', 'offset') else 'non-'}contiguous {case.operation.word('input')}": True,
        "an upstream gradient other than 1": case.upstream != "one",
        **dict.fromkeys(case.further_words(), True),
    }
    return tuple(word for word, applies in described.items() if applies)


@dataclass(frozen=True)
class Common:
    """Words that describe cases, and how many failing and passing cases have all the words.

    Attributes:
        words: words from `words_of`; or only `DEPENDS`, which describes cases that fail the check `repeat`.
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

    @property
    def vague(self) -> bool:
        """Whether default cases have all the words, and more passing than failing cases have all the words."""
        return _PLAIN_WORDS.issuperset(self.words) and self.fails < self.passes

    def applies(self, case: str) -> bool:
        """Return whether the case with the id `case` has all the words."""
        return set(self.words).issubset(words_of(case))

    def __str__(self) -> str:
        failing = f"{self.fails} of {self.failing} failing cases"
        passing = f"{self.passes} of {self.passing} passing cases" if self.passes else "no passing case"
        return f"{', '.join(self.words)}: {failing}, {passing}"


def count_words(cases: Iterable[str]) -> Counter[str]:
    """Return how many of the cases, given by their ids, have each word."""
    return Counter(word for case in cases for word in words_of(case))


def selections(words: Sequence[str], most: int, failing: Sequence[str], passing: Sequence[str]) -> Iterator[Common]:
    """Yield the counts of failing and passing cases for each selection of 1 to `most` words."""
    bad, good = _having(words, failing), _having(words, passing)
    for count in range(1, most + 1):
        for chosen in combinations(words, count):
            fails, passes = (reduce(operator.and_, map(of.__getitem__, chosen)).bit_count() for of in (bad, good))
            yield Common(chosen, fails, len(failing), passes, len(passing))


def _having(words: Sequence[str], cases: Iterable[str]) -> dict[str, int]:
    """Return an int for each word. Bit n is 1 if case n has the word."""
    found = dict.fromkeys(words, 0)
    for at, case in enumerate(cases):
        for word in found.keys() & words_of(case):
            found[word] |= 1 << at
    return found


def same_trigger(
    findings: Iterable[Finding],
    words: Collection[str],
    failing: Sequence[str],
    passing: Sequence[str],
    ran: Mapping[str, Collection[str]],
) -> str:
    """Return a sentence about the published bug with the same trigger as these findings, or "".

    One of the findings is on a case of this bug; only the seed may differ. Most failing but few passing cases have the
    words of the bug.

    Args:
        findings: findings that probably have one cause.
        words: the words that the failing cases have in common.
        failing: the ids of the cases that fail the check of the first finding.
        passing: the ids of the cases that pass this check.
        ran: the checks that ran on each case, by the id of the case.
    """
    telling = set(words) - _PLAIN_WORDS
    if not telling and len(failing) > 1 and case_or_none(failing[0]) is not None:
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
    """Return whether the bug explains the checks that failed on a case. `ran` has all checks that ran on this case."""
    # of the loss and the gradients that ran, exactly those of the bug must fail
    wrong = {check for check in bug.checks if check in _NUMBERS and check in ran}
    return wrong == _NUMBERS.intersection(failed) and not set(bug.checks).isdisjoint(failed)


@lru_cache(MOST_CACHED)
def _trigger(id: str) -> str:
    """Return the id of a case without its name and seed. Return the id of a bad input unchanged."""
    case = case_or_none(id)
    return id if case is None else case.seeded(0).id.rpartition("/")[2]


@cache
def _triggers(bug: Bug) -> frozenset[str]:
    return frozenset((*(_trigger(case.id) for case in bug.cases), *bug.bad_inputs))


@cache
def _words_of_bug(bug: Bug) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that all cases of a bug have, and the subset that no case with default options has."""
    words = [set(words_of(case.id)) for case in bug.cases]
    # plain cases: default options and logits
    plain = [words_of(Case("float32", case.sizes).id) for case in bug.cases]
    shared = frozenset(set.intersection(*words)) if words else frozenset()
    return shared, shared.difference(*plain)


def _share(words: Collection[str], cases: Sequence[str]) -> float:
    """Return the share of the cases, given by their ids, that have all the words."""
    return sum(set(words).issubset(words_of(case)) for case in cases) / max(1, len(cases))


# The words of the default cases of both operations. They say nothing about the trigger of a bug.
_PLAIN_WORDS = frozenset(words_of(Case("float32").id) + words_of(LinearCase("float32").id))
