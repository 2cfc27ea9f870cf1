"""The order of the cases of a run: first a few cases that find most bugs, then parts of about equal cost.

`first_cases.txt` lists the ids of the first cases, without seeds. Together these cases find most of the mutants, the
wrong cross-entropies of `tests/mutants/`. `first_linear_cases.txt` lists the first cases of a linear cross-entropy, for
the mutants of `tests/mutants/linear/`.

`nox -s mutants` chooses the first cases one after another. Each time, the session adds the case that finds the most
mutants among the mutants not found so far. The session chooses named cases and bad inputs before cases of the covering
arrays, because `nox -s cover` may replace the covering arrays. A run ignores an id that is not in its plan. A run also
ignores the id of a case whose checks need torch's compilers, since importing the compilers takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random

from crossent.cases.axes import INDEX_TARGETS
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation
from crossent.checks.derivatives import forward_ad
from crossent.report.findings import Finding
from crossent.run.plan import Plan
from crossent.trials.check import Check, Cost

# The file that lists the first cases of an operation.
FIRST_CASES = {CROSS_ENTROPY: "first_cases.txt", LINEAR_CROSS_ENTROPY: "first_linear_cases.txt"}
# The number of parts for each worker, if the parts are not too small. With few large parts, most workers would wait
# while a worker runs the last part.
PARTS_PER_WORKER = 32
# The least average cost of a part, in CPU seconds. Smaller parts would be slow, since a worker computes the error
# bounds of a part together.
SECONDS_OF_A_PART = 0.5
SUBJECTS_AT_ONCE = 8  # the most subjects of a part with isolated processes, since each process takes memory
# CPU seconds of a check on a small case, by cost, as measured at level normal. Rough figures are enough, since there
# are many parts.
_SECONDS = {"CALL": 0.001, "AGAIN": 0.004, "CALLS": 0.006, "STRUCTURE": 0.015, "CODE": 3.0, "TILES": 60.0}
_GRAPH = 0.3  # CPU seconds of a check of cost STRUCTURE that makes a graph of the subject
_ELEMENT = 4e-8  # CPU seconds of a check for each element of the logits
_BAD_INPUT = 0.001  # CPU seconds of a bad input


@dataclass(frozen=True)
class Part:
    """A part of a run: some cases on some subjects. A part runs in one worker process.

    Attributes:
        cases: the indices of the cases in the plan.
        subjects: the indices of the subjects in the run.
        isolated: whether the subjects run in isolated processes.
        cost: the estimated CPU seconds.
        what: the most expensive case and its most expensive check, as text such as "loss on ID".
    """

    cases: Sequence[int]
    subjects: Sequence[int]
    isolated: bool
    cost: float = 0.0
    what: str = ""


@dataclass
class Step:
    """A finished step of a run, for a progress bar: a case in this process, or a :class:`Part` in a worker process.

    Attributes:
        cost: the estimated CPU seconds of the step; 0 for a case that runs again after a worker crashed or hung.
        findings: the findings of the step that are not known failures.
    """

    cost: float = 0.0
    findings: Sequence[Finding] = field(default_factory=list)


@cache
def first_cases(operation: Operation) -> tuple[str, ...]:
    """Return the ids of the first cases of an operation, in the order in which the cases run."""
    return tuple((files("crossent.run") / FIRST_CASES[operation]).read_text(encoding="utf-8").split())


def imports_compilers(checks: Iterable[Check]) -> bool:
    """Return whether torch may import its compilers, which takes seconds, for one of these checks.

    A check that transforms the subject may need the compilers. Forward-mode differentiation of log_softmax needs
    the compilers.
    """
    return any(check.transforms or check is forward_ad for check in checks)


def ordered(planned: Plan) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of a plan's cases in three lists: first cases, other cases, cases that need torch's compilers.

    The first cases have the order of their file. In the other lists, cases of the same structure (:func:`_structure`)
    are next to each other, because their error bounds are computed together.
    """
    places = {name: at for operation in FIRST_CASES for at, name in enumerate(first_cases(operation))}
    first: dict[int, int] = {}
    others: tuple[list[int], list[int]] = [], []
    for at, (case, checks) in enumerate(planned.items()):
        name = case.seeded(0).id if isinstance(case, Case) else case.id
        compiles = imports_compilers(checks)
        if name in places and not compiles:
            first[at] = places[name]
        else:
            others[compiles].append(at)
    structures = [_structure(case) for case in planned]
    rest, compiling = (sorted(group, key=structures.__getitem__) for group in others)
    return sorted(first, key=first.__getitem__), rest, compiling


def _structure(case: Case | BadInput) -> tuple[object, ...]:
    """Return the structure of a case: the properties that cases share if their error bounds can be computed together.

    Computing the bounds together is faster. All bad inputs have the same structure, since they have no error bounds.
    """
    if isinstance(case, BadInput):
        return ("no case",)
    of_target = case.target in INDEX_TARGETS, case.weight == "unweighted", case.label_smoothing > 0
    return ("case", case.dtype, case.classes, *of_target, case.reduction, case.target)


def cost(case: Case | BadInput, checks: Sequence[Check]) -> tuple[float, str]:
    """Return the estimated CPU seconds of a case on one subject, and the name of the most expensive check.

    The name is "errors" for a bad input, and "call" if no check applies to the case.
    """
    if isinstance(case, BadInput):
        return _BAD_INPUT, "errors"
    costs = {check.name: _seconds(check) for check in checks if check.applies(case)} or {"call": 0.0}
    return sum(costs.values()) + len(costs) * _ELEMENT * case.rows * case.classes, max(costs, key=costs.__getitem__)


def _seconds(check: Check) -> float:
    makes_graph = check.cost is Cost.STRUCTURE and not check.needs.keys().isdisjoint(("compile", "export"))
    return _GRAPH if makes_graph else _SECONDS[check.cost.name]


def parts(planned: Plan, subjects: int, jobs: int, isolated: bool, brief: bool, random: Random) -> list[Part]:
    """Return the parts of a run, in the order in which they start.

    Each of the first cases is a separate part, so that its findings are reported at once. These parts start first. The
    other cases are divided into parts of about equal cost, except that an expensive case is a part by itself. Among
    these parts, the parts with the most expensive cases start first. In a run that may end soon, the parts with cases
    that need torch's compilers come last. Most cases of the same structure (:func:`_structure`) are in one part, whose
    worker computes their error bounds together.

    With isolated processes, the subjects are divided into groups of at most `SUBJECTS_AT_ONCE`, and a part has the
    subjects of one group. All parts of a group, in the order above, come before the parts of the next group.
    Random numbers divide the other cases into parts, and order the cases of each part. So a subject cannot predict
    which of the other cases comes next.

    Args:
        planned: the plan.
        subjects: the number of subjects.
        jobs: the number of worker processes.
        isolated: whether the subjects run in isolated processes.
        brief: whether the run may end soon, after a number of findings.
        random: the generator of the random order.
    """
    cases, every = list(planned.items()), list(range(subjects))
    costs = [cost(case, checks) for case, checks in cases]
    first, others, compiling = ordered(planned)
    alike = {at: _structure(case) for at, (case, _) in enumerate(cases)}
    bins: list[list[int]] = []
    for items in (others, compiling) if brief else ([*others, *compiling],):
        if isolated:
            random.shuffle(items)
            ranks = {structure: random.random() for structure in alike.values()}
            items.sort(key=lambda at: ranks[alike[at]])
        total = subjects * sum(costs[at][0] for at in items)
        most = jobs * min(PARTS_PER_WORKER, math.ceil(total / jobs / SECONDS_OF_A_PART))
        bins += _bins(items, [seconds for seconds, _ in costs], most)
    if isolated:
        for one in bins:
            random.shuffle(one)

    def part(of: Sequence[int], group: Sequence[int]) -> Part:
        dear = max(of, key=lambda at: costs[at][0])
        what = f"{costs[dear][1]} on {cases[dear][0].id}"
        return Part(of, group, isolated, len(group) * sum(costs[at][0] for at in of), what)

    groups = [every[at : at + SUBJECTS_AT_ONCE] for at in every[::SUBJECTS_AT_ONCE]] if isolated else [every]
    return [part(of, group) for group in groups for of in (*([at] for at in first), *bins)]


def _bins(items: Sequence[int], costs: Sequence[float], count: int) -> list[list[int]]:
    """Divide the items into bins. The bins with the most expensive items come first.

    The items are indices of cases, and `costs` has the cost of each index. The planned cost of a bin is the total cost
    divided by `count`. An item that costs more than a third of the planned cost is alone in its bin. The other bins
    have about the planned cost. So there can be more than `count` bins.
    """
    most = sum(costs[item] for item in items) / max(count, 1)
    bins = [[item] for item in items if costs[item] > most / 3]
    filled = most
    for item in items:
        if costs[item] <= most / 3:
            if filled + costs[item] / 2 > most:
                bins.append([])
                filled = 0.0
            bins[-1].append(item)
            filled += costs[item]
    return sorted(bins, key=lambda items: -max(costs[item] for item in items))


class Steps:
    """The steps of a run, for a progress bar. An iteration runs the steps, and yields a :class:`Step` after each step.

    Attributes:
        cost: the estimated CPU seconds of all steps.
        running: the most expensive case of the running step, and its most expensive check; "" if none runs. Of several
            running steps, this is the most expensive step.

    `work` runs the steps and yields them. `count` is the planned number of steps: a case that runs again adds a step.
    """

    def __init__(self, work: Iterator[Step], count: int, cost: float) -> None:
        self._work, self._count, self.cost, self.running = work, count, cost, ""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Step]:
        return self._work
