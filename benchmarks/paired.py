"""Measure ratios of times: calls take turns, round after round, and each ratio compares two turns of one round.

Ratios of times that are measured one after another are wrong by several percent: the clock rate drifts, and other
processes interfere. So all calls of a round get the same new inputs and run in a shuffled order. The next round
reverses the order, so that a steady drift cancels. The operating system reports when another process took the core
during a turn. The ratios of such a turn are discarded and counted. The result is the median over the rounds, with
quartiles.

pytest-benchmark, pyperf and asv finish one benchmark before the next, so they cannot let calls take turns.
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
except ImportError:  # Windows, where no turn counts as disturbed
    resource = None  # type: ignore[assignment]

Call = Callable[[], object]

# A turn makes enough calls to last this many seconds. In a shorter turn, reading the clock takes too large a share.
TURN = 1e-3
# A turn is disturbed if it waits for a core for more than this share of its time. A shorter wait makes a ratio wrong by
# at most this share.
WAITED = 0.01
# The least number of undisturbed rounds. With fewer, all rounds count, and the ratio is marked as disturbed.
LEAST = 5


@dataclass(frozen=True)
class Turn:
    """The seconds of a call, as the average of a turn, and whether another process took a core during the turn."""

    seconds: float
    disturbed: bool


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles.

    Attributes:
        rounds: the number of rounds that count.
        thrown_out: the number of discarded rounds, in which another process was running.
        disturbed: whether too few rounds were undisturbed, so that all of them count.
    """

    lower: float
    median: float
    upper: float
    rounds: int
    thrown_out: int = 0
    disturbed: bool = False

    @property
    def width(self) -> float:
        """The distance between the quartiles."""
        return self.upper - self.lower

    def __str__(self) -> str:
        """Return the median and the quartiles as text, with three digits."""
        return f"{self.median:.3g} ({self.lower:.3g} to {self.upper:.3g})" + (" disturbed" if self.disturbed else "")


@dataclass
class Rounds:
    """The turns of each call, round by round."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> Spread:
        """Return the spread of the ratio of two calls' times, `name` / `to`. Each ratio compares turns of one round."""
        pairs = zip(self.turns[name], self.turns[to], strict=True)
        return spread([(a.seconds / b.seconds, a.disturbed or b.disturbed) for a, b in pairs])

    def seconds(self, name: str) -> Spread:
        """Return the spread of the seconds of a call."""
        return spread([(turn.seconds, turn.disturbed) for turn in self.turns[name]])


def spread(values: Sequence[tuple[float, bool]]) -> Spread:
    """Return the median and quartiles of the undisturbed values; of all values if too few are undisturbed.

    Each value is a pair of a number and whether it is disturbed.
    """
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
    """Let calls take turns for some seconds, and for `least` rounds or more, and return the turns.

    Args:
        fresh: makes the calls of a round, by name, on new inputs; its own time does not count.
        seconds: the time for all rounds, including `fresh`.
        least: the least number of rounds.
        most: the largest number of rounds.
        wait: waits until the device has finished a call.
        seed: the seed of the random order of the calls.
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
    """Make the calls of one turn, and return the seconds of one call. `calls` is the number of calls."""
    wait()
    switches, waited = _switches(), _waited()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    took = time.perf_counter() - start
    # A thread that loses its core may continue at once. So the waiting time decides, if the system reports it.
    lost = None if waited is None else (_waited() or 0.0) - waited
    disturbed = _switches() > switches and (lost is None or lost > WAITED * took)
    return Turn(took / calls, disturbed)


def _calibrated(made: Mapping[str, Call], wait: Call) -> dict[str, int]:
    """Return the number of calls in a turn, by name. An untimed call first loads, compiles and allocates memory."""
    calls = {}
    for name, call in made.items():
        turn(call, 1, wait)
        calls[name] = max(1, math.ceil(TURN / turn(call, 1, wait).seconds))
    return calls


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Switch off garbage collection in the `with` block, since a collection would interrupt a turn."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _switches() -> int:
    """Return how often a thread of this process lost its core."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _waited() -> float | None:
    """Return the seconds that the threads of this process waited for a core, or None outside Linux."""
    total, told = 0.0, False
    for task in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            total += int(task.read_text().split()[1]) / 1e9
            told = True
    return total if told else None
