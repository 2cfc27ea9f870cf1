"""The order of the cases of a run: first the cases that find most bugs, then parts of equal cost.

`first_cases.txt` lists the ids of the first cases, without seeds. Together they find the wrong cross-entropies of
`tests/mutants/`; each finds the most of those that the cases above it do not find. `nox -s mutants` writes the file.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.report.findings import Finding
from crossent.run.plan import Plan
from crossent.trials.check import Check, Cost

FIRST_CASES = "first_cases.txt"
PARTS_PER_WORKER = 32  # so that no worker waits long for another
SUBJECTS_AT_ONCE = 8  # foreign subjects whose isolated processes a worker keeps at a time: each takes memory
# CPU seconds of a check on a small case, by cost, as `crossent check --level normal` takes them; a rough figure
# is enough, since the parts are many. The second figure is for a check that makes a graph of the subject.
_SECONDS = {Cost.CALL: 0.001, Cost.CALLS: 0.003, Cost.STRUCTURE: 0.03, Cost.CODE: 4.0, Cost.TILES: 60.0}
_GRAPH = 0.4
_ELEMENT = 4e-8  # CPU seconds of a check for each element of the logits
_BAD_INPUT = 0.001


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        cases: the indices of its cases in the plan.
        subjects: the indices of its subjects.
        isolated: whether the subjects run in isolated processes.
        cost: the estimated CPU seconds.
        what: the most expensive case and check, for a reader.
    """

    cases: Sequence[int]
    subjects: Sequence[int]
    isolated: bool
    cost: float = 0.0
    what: str = ""


@dataclass
class Step:
    """A part that is done: its estimated CPU seconds, and its findings that are not known failures."""

    cost: float = 0.0
    findings: Sequence[Finding] = field(default_factory=list)


@cache
def first_cases() -> tuple[str, ...]:
    """Return the ids of the cases that run first."""
    return tuple((files("crossent.run") / FIRST_CASES).read_text(encoding="utf-8").split())


def ordered(planned: Plan) -> tuple[list[int], list[int]]:
    """Return the indices of the cases that run first, and of the others in the order of the plan.

    A case on which a check transforms the subject is never first: torch imports its compilers for seconds.
    """
    places = {name: at for at, name in enumerate(first_cases())}
    first: dict[int, int] = {}
    for at, (case, checks) in enumerate(planned.items()):
        name = case.seeded(0).id if isinstance(case, Case) else case.id
        if name in places and not any(check.transforms for check in checks):
            first[at] = places[name]
    return sorted(first, key=first.__getitem__), [at for at in range(len(planned)) if at not in first]


def cost(case: Case | BadInput, checks: Sequence[Check]) -> tuple[float, str]:
    """Return the estimated CPU seconds of a case on one subject, and its most expensive check."""
    if isinstance(case, BadInput):
        return _BAD_INPUT, "errors"
    costs = {check.name: _seconds(check) for check in checks if check.applies(case)} or {"call": 0.0}
    return sum(costs.values()) + len(costs) * _ELEMENT * case.rows * case.classes, max(costs, key=costs.__getitem__)


def _seconds(check: Check) -> float:
    return _GRAPH if check.cost is Cost.STRUCTURE and "compile" in check.needs else _SECONDS[check.cost]


def parts(planned: Plan, subjects: int, jobs: int, isolated: bool, random: Random) -> list[Part]:
    """Return the parts of a run, in the order in which they start.

    Each of the first cases is a part of its own, so that its findings come at once. The other parts have equal cost,
    and the most expensive cases start first. Foreign subjects run in isolated processes, and see the other cases
    in random order.
    """
    cases, every = list(planned.items()), list(range(subjects))
    first, others = ordered(planned)
    if isolated:
        random.shuffle(others)
    costs = [cost(case, checks) for case, checks in cases]
    bins = _bins(others, [seconds for seconds, _ in costs], jobs * PARTS_PER_WORKER)
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
    """Share items out among bins of about equal cost: the most expensive item first, into the cheapest bin.

    The bins with the most expensive items come first.
    """
    bins: list[list[int]] = [[] for _ in range(min(count, len(items)))]
    heap = [(0.0, at) for at in range(len(bins))]
    for item in sorted(items, key=lambda item: -costs[item]):
        filled, at = heap[0]
        bins[at].append(item)
        heapq.heapreplace(heap, (filled + costs[item], at))
    return bins


class Steps:
    """The work of a run, as a progress bar sees it: each iteration does some of the work and yields a :class:`Step`.

    Attributes:
        cost: the estimated CPU seconds of all steps.
        running: what is running now, for a reader.
    """

    def __init__(self, work: Iterator[Step], count: int, cost: float) -> None:
        self._work, self._count, self.cost, self.running = work, count, cost, ""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Step]:
        return self._work
