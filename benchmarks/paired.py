"""Ratios: several calls take turns, round after round, and a ratio is of two turns of one round.

Times taken one after another lie by several percent: the clock drifts, and neighbours come and go. Here all calls of a
round get the same new inputs and run in a shuffled order, which the next round reverses, so that a steady drift falls
out of two rounds; what remains is an interruption. The operating system says when somebody else had the core: such a
turn is thrown out with its ratios, and counted. Shown is the median over the rounds, with its quartiles.

pytest-benchmark, pyperf and asv time one benchmark to its end before the next one, and no library for Python was found
that does it so.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

try:
    import resource
except ImportError:  # Windows, where no turn is seen to be disturbed
    resource = None  # type: ignore[assignment]

Call = Callable[[], object]

# A turn is as many calls as take this long: below it the clock, and the look at it, are a part of what is measured.
TURN = 1e-3
# A turn that waited for its core for less than this share of its time cannot move a ratio by more.
WAITED = 0.01
# With fewer rounds there are no quartiles to speak of: then all are kept, and the ratio says that it was disturbed.
LEAST = 5


@dataclass(frozen=True)
class Turn:
    """How long a call took, and whether another process had a core meanwhile that this one wanted."""

    seconds: float
    disturbed: bool


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles.

    Attributes:
        rounds: how many it is of.
        thrown_out: how many more there were, in which another process was running.
        disturbed: so many were thrown out that all have been taken back.
    """

    lower: float
    median: float
    upper: float
    rounds: int
    thrown_out: int = 0
    disturbed: bool = False

    @property
    def width(self) -> float:
        """From one quartile to the other."""
        return self.upper - self.lower

    def __str__(self) -> str:
        """The median with its quartiles, to three digits."""
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})" + (" disturbed" if self.disturbed else "")


@dataclass
class Rounds:
    """The turns of each call, round by round."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> Spread:
        """Of the times of two calls, each ratio from one round."""
        pairs = zip(self.turns[name], self.turns[to], strict=True)
        return spread([(a.seconds / b.seconds, a.disturbed or b.disturbed) for a, b in pairs])

    def seconds(self, name: str) -> Spread:
        """The time of a call."""
        return spread([(turn.seconds, turn.disturbed) for turn in self.turns[name]])


def spread(values: Sequence[tuple[float, bool]]) -> Spread:
    """The median of some values with its quartiles, without those that were disturbed where enough are left."""
    kept = [value for value, disturbed in values if not disturbed]
    thrown_out = len(values) - len(kept)
    if too_few := thrown_out > 0 and len(kept) < LEAST:
        kept = [value for value, _ in values]
    lower, median, upper = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
    return Spread(lower, median, upper, len(kept), 0 if too_few else thrown_out, too_few)


def measure(
    fresh: Callable[[], Mapping[str, Call]],
    *,
    seconds: float,
    least: int = LEAST,
    most: int = 101,
    wait: Call = lambda: None,
    seed: int = 0,
) -> Rounds:
    """Let calls take turns for so many seconds, and for no fewer rounds than `least`.

    Args:
        fresh: makes the calls of a round, by name, on inputs that none has seen; it is not timed.
        seconds: for all rounds, with what `fresh` takes.
        least: rounds, however long they take.
        most: rounds, however short.
        wait: waits until the device has done what a call asked of it.
        seed: of the order.
    """
    order = random.Random(seed)
    calls = _calibrated(fresh(), wait)
    rounds = Rounds({name: [] for name in calls})
    names = list(calls)
    until = time.perf_counter() + seconds
    with _no_collector():
        for done in range(most):
            if done >= least and time.perf_counter() > until:
                break
            if done % 2 == 0:
                order.shuffle(names)
            else:
                names.reverse()
            made = fresh()
            for name in names:
                rounds.turns[name].append(turn(made[name], calls[name], wait))
            del made
    return rounds


def turn(call: Call, calls: int, wait: Call = lambda: None) -> Turn:
    """One turn: so many calls."""
    wait()
    switches, waited = _switches(), _waited()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    took = time.perf_counter() - start
    # A switch alone may have cost nothing; where the kernel tells the time, that counts.
    lost = None if waited is None else (_waited() or 0.0) - waited
    disturbed = _switches() > switches and (lost is None or lost > WAITED * took)
    return Turn(took / calls, disturbed)


def _calibrated(made: Mapping[str, Call], wait: Call) -> dict[str, int]:
    """How many calls make a turn of each. The first is the warm-up: libraries load, code is made, memory is had."""
    calls = {}
    for name, call in made.items():
        turn(call, 1, wait)
        calls[name] = max(1, math.ceil(TURN / turn(call, 1, wait).seconds))
    return calls


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Python's collector of garbage comes after so many allocations, in whosever turn that is."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _switches() -> int:
    """How often a core was taken from a thread of this process."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _waited() -> float | None:
    """Seconds that the threads of this process waited for a core, where the kernel says so; Linux does."""
    total, told = 0.0, False
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(task.read_text().split()[1]) / 1e9
            told = True
    return total if told else None
