"""The order of the cases of a run: first a few cases that find most bugs, then parts of about equal cost.

`first_cases.txt` and, for a linear cross-entropy, `first_linear_cases.txt` list the ids of the first cases. The first
cases together find most mutants, the wrong cross-entropies of `tests/mutants/`. `nox -s mutants` chooses the first
cases. A run ignores an id that is not in its plan.
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
    """The cases and the subjects of one part of a run. One worker process runs the part.

    `cases` are indices in the plan, and `subjects` are indices in the run. If `isolated`, the subjects run in isolated
    processes. `cost` is the estimated cost in CPU seconds. `what` names the most expensive check and its case, such as
    "loss on ID".
    """

    cases: Sequence[int]
    subjects: Sequence[int]
    isolated: bool
    cost: float = 0.0
    what: str = ""


@dataclass
class Step:
    """A finished step of a run, for a progress bar.

    Attributes:
        cost: the estimated CPU seconds; 0 for a case that runs again.
        findings: the findings that are not known failures.
    """

    cost: float = 0.0
    findings: Sequence[Finding] = field(default_factory=list)


@cache
def first_cases(operation: Operation) -> tuple[str, ...]:
    """Return the ids of the first cases of an operation, in the order in which they run."""
    return tuple((files("crossent.run") / FIRST_CASES[operation]).read_text(encoding="utf-8").split())


def imports_compilers(checks: Iterable[Check]) -> bool:
    """Return whether one of the checks may import torch's compilers, which takes seconds."""
    # Forward-mode differentiation of log_softmax imports the compilers too.
    return any(check.transforms or check is forward_ad for check in checks)


def ordered(planned: Plan) -> tuple[list[int], list[int], list[int]]:
    """Return the indices of first cases, of other cases, and of cases that need torch's compilers."""
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
    # The error bounds of neighbors with the same structure are computed together.
    rest, compiling = (sorted(group, key=structures.__getitem__) for group in others)
    return sorted(first, key=first.__getitem__), rest, compiling


def _structure(case: Case | BadInput) -> tuple[object, ...]:
    """Return the properties that cases share if their error bounds can be computed together."""
    if isinstance(case, BadInput):
        return ("no case",)
    of_target = case.target in INDEX_TARGETS, case.weight == "unweighted", case.label_smoothing > 0
    return ("case", case.dtype, case.classes, *of_target, case.reduction, case.target)


def cost(case: Case | BadInput, checks: Sequence[Check]) -> tuple[float, str]:
    """Return the estimated CPU seconds of a case on one subject, and the name of its most expensive check."""
    if isinstance(case, BadInput):
        return _BAD_INPUT, "errors"
    costs = {check.name: _seconds(check) for check in checks if check.applies(case)} or {"call": 0.0}
    return sum(costs.values()) + len(costs) * _ELEMENT * case.rows * case.classes, max(costs, key=costs.__getitem__)


def _seconds(check: Check) -> float:
    makes_graph = check.cost is Cost.STRUCTURE and not check.needs.keys().isdisjoint(("compile", "export"))
    return _GRAPH if makes_graph else _SECONDS[check.cost.name]


def parts(planned: Plan, subjects: int, jobs: int, isolated: bool, brief: bool, random: Random) -> list[Part]:
    """Return the parts of a run, in the order in which they start.

    `subjects` is the number of subjects, and `jobs` is the number of worker processes.

    Each first case is a separate part. The other cases are divided into parts of about equal cost. Parts with expensive
    cases start early.

    If `isolated`, the subjects run in isolated processes, and the other cases have a random order. If `brief`, the run
    may end early, and cases that need torch's compilers come last.
    """
    cases, every = list(planned.items()), list(range(subjects))
    costs = [cost(case, checks) for case, checks in cases]
    first, others, compiling = ordered(planned)
    alike = {at: _structure(case) for at, (case, _) in enumerate(cases)}
    bins: list[list[int]] = []
    for items in (others, compiling) if brief else ([*others, *compiling],):
        if isolated:
            random.shuffle(items)  # so that a subject cannot predict the next case
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
    """Divide the items, which are indices of `costs`, into about `count` bins of about equal cost."""
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
    """The steps of a run, for a progress bar. Reading a step runs the step.

    Attributes:
        cost: the estimated CPU seconds of all steps.
        running: the most expensive check that runs now, and its case, such as "loss on ID".
    """

    def __init__(self, work: Iterator[Step], count: int, cost: float) -> None:
        self._work, self._count, self.cost, self.running = work, count, cost, ""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Step]:
        return self._work
