"""Time the hot path with two versions of torch or crossent, in two processes that take turns.

A block is four turns: old, new, new, old. The ratio of a block is new / old; in this order a steady drift cancels. A
block is discarded if one of the processes lost its core, as in :mod:`benchmarks.paired`. This module imports only the
standard library, like `upgrade.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from benchmarks.paired import Spread, spread

# One thread, so that ratios depend less on other processes. One compile thread, since a forked process cannot use the
# compile workers of its parent.
ALONE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
BLOCKS = 9  # an odd number, so that the median is a measured ratio

# The code of a process. It reads a line, makes the calls that the line names, and prints the seconds and how often the
# process lost its core. It prints "none" if there is no form of this name.
WAITS = """
import sys, time
import torch, crossent
try:
    from resource import RUSAGE_SELF, getrusage
    switches = lambda: getrusage(RUSAGE_SELF).ru_nivcsw
except ImportError:  # Windows
    switches = lambda: 0
torch.set_num_threads(1)
made = {}
def inputs(shape, dtype):
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=random)).to(getattr(torch, dtype)).requires_grad_()
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=random)
for line in sys.stdin:
    name, dtype, calls, *shape = line.split()
    loss = torch.nn.CrossEntropyLoss() if name == "torch" else getattr(crossent, name, None)
    if loss is None:
        print("none", flush=True)
        continue
    key = dtype, tuple(map(int, shape))
    if key not in made:
        made.clear()
        made[key] = inputs(key[1], dtype)
    logits, target = made[key]
    before, start = switches(), time.perf_counter()
    for _ in range(int(calls)):
        torch.autograd.grad(loss(logits, target), logits)
    print(time.perf_counter() - start, switches() - before, flush=True)
"""


class EndedError(Exception):
    """A process ended or did not start. The message names the process."""


@dataclass(frozen=True)
class Side:
    """One of the two versions: a Python, and the folder with its crossent.

    `waits` is the code that the process runs. The option `-P` keeps the current folder off the import path.
    """

    name: str
    python: str
    folder: str
    waits: str = WAITS

    @contextlib.contextmanager
    def waiting(self) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """Start the process, and yield it with its stderr."""
        pipe = subprocess.PIPE
        env = {**os.environ, **ALONE, "PYTHONPATH": self.folder}
        command = [self.python, "-P", "-c", self.waits]
        with (
            tempfile.TemporaryFile("w+", errors="replace") as aside,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=aside, text=True, env=env) as process,
        ):
            try:
                yield process, aside
            finally:
                process.kill()
                with contextlib.suppress(BrokenPipeError):  # the process has ended without reading the last line
                    process.communicate()


@dataclass(frozen=True)
class Hot:
    """A form or torch on logits of one dtype and shape, and the number of calls in a turn."""

    name: str
    dtype: str
    calls: int
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))} {self.dtype}"

    @property
    def logits(self) -> tuple[str, tuple[int, ...]]:
        """The dtype and the shape of the logits."""
        return self.dtype, self.shape

    @property
    def line(self) -> str:
        """The line that the process reads."""
        return f"{self.name} {self.dtype} {self.calls} {' '.join(map(str, self.shape))}\n"


# Pairs of a number of calls and a shape. The calls of a pair take about a tenth of a second together.
SHAPES = ((1000, (32, 10)), (5, (4096, 1000)), (1, (8, 21, 256, 256)))
DTYPES = ("float32", "bfloat16")


def hot(names: tuple[str, ...]) -> list[Hot]:
    """Return the calls of these forms, on small and large shapes."""
    return [Hot(name, dtype, calls, shape) for calls, shape in SHAPES for dtype in DTYPES for name in names]


def ratios(old: Side, new: Side, calls: list[Hot], blocks: int = BLOCKS) -> Iterator[tuple[Hot, Spread]]:
    """Yield the ratio of times, new / old, of each call that both sides have.

    Raises:
        EndedError: a call does not run.
    """
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(side.waiting()) for side in (old, new)]

        def seconds(at: int, line: str) -> tuple[float, bool] | None:
            process, aside = both[at]
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None
            with contextlib.suppress(BrokenPipeError):
                stdin.write(line)
                stdin.flush()
            if not (reply := stdout.readline()):
                aside.seek(0)
                said = [line.strip() for line in aside if line.strip()][-1:]
                raise EndedError(": ".join([(old, new)[at].name, "the hot path does not run", *said]))
            if reply.strip() == "none":
                return None
            took, switches = reply.split()
            return float(took), int(switches) > 0

        for call in calls:
            if None in [seconds(at, call.line) for at in (0, 1)]:  # warm up: load libraries, allocate memory
                continue
            found = []
            for _ in range(blocks):
                turns = [seconds(at, call.line) or (math.nan, True) for at in (0, 1, 1, 0)]
                (a, _), (b, _), (c, _), (d, _) = turns
                found.append((math.sqrt(b * c / (a * d)), any(disturbed for _, disturbed in turns)))
            yield call, spread(found)
