"""Turns: the hot path of two versions of torch, timed beside each other.

Two processes wait, and take turns in blocks of old, new, new, old. A block's ratio is new over old; shown is the median
over the blocks with its quartiles. Times of two jobs are no ratio.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

from environments import CannotError, Environment, say

BLOCKS = 9  # odd, so that the median is one of them

# Waits for a line, makes that many calls, and says how long they took.
TURNS = """
import sys, time
import torch, crossent
torch.set_num_threads(1)
loss = {"torch": torch.nn.CrossEntropyLoss(), "formula": crossent.formula}
made = {}
def inputs(shape, dtype):
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=random)).to(getattr(torch, dtype)).requires_grad_()
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=random)
for line in sys.stdin:
    name, dtype, calls, *shape = line.split()
    key = dtype, tuple(map(int, shape))
    if key not in made:
        made.clear()
        made[key] = inputs(key[1], dtype)
    logits, target = made[key]
    start = time.perf_counter()
    for _ in range(int(calls)):
        torch.autograd.grad(loss[name](logits, target), logits)
    print(time.perf_counter() - start, flush=True)
"""
# Shapes as in test_hot_path.py, and how many calls make a tenth of a second or so.
HOT = [
    (name, dtype, calls, shape)
    for name in ("torch", "formula")
    for dtype in ("float32", "bfloat16")
    for calls, shape in ((1000, (32, 10)), (5, (4096, 1000)), (1, (8, 21, 256, 256)))
]


def timed(old: Environment, new: Environment) -> dict[str, list[float]]:
    """For each call of the hot path the ratio of its times, new to old: lower quartile, median, upper quartile."""
    ratios: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(waiting(one)) for one in (old, new)]

        def seconds(at: int, line: str) -> float:
            process, aside = both[at]
            stdin, stdout = process.stdin, process.stdout
            assert stdin is not None
            assert stdout is not None
            with contextlib.suppress(BrokenPipeError):
                stdin.write(line)
                stdin.flush()
            if not (answer := stdout.readline()):
                aside.seek(0)
                said = [line.strip() for line in aside if line.strip()][-1:]
                raise CannotError(": ".join([(old, new)[at].spec, "the hot path does not run", *said]))
            return float(answer)

        for name, dtype, calls, shape in HOT:
            line = f"{name} {dtype} {calls} {' '.join(map(str, shape))}\n"
            for at in (0, 1):  # libraries load, and memory is taken
                seconds(at, line)
            blocks = []
            for _ in range(BLOCKS):
                a, b, c, d = (seconds(at, line) for at in (0, 1, 1, 0))
                blocks.append(math.sqrt(b * c / (a * d)))
            quartiles = statistics.quantiles(blocks, n=4, method="inclusive")
            lower, median, upper = ratio = [round(quartile, 3) for quartile in quartiles]
            ratios[call := f"{name} {'x'.join(map(str, shape))} {dtype}"] = ratio
            say(f"{call}: {median:.2f} of the time ({lower:.2f} to {upper:.2f}), forward and backward")
    return ratios


@contextlib.contextmanager
def waiting(one: Environment) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process that waits for its turns, and what it says beside them."""
    pipe = subprocess.PIPE
    command = [str(one.python), "-c", TURNS]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as aside,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=aside, text=True, env=one.variables) as process,
    ):
        try:
            yield process, aside
        finally:
            process.kill()
            with contextlib.suppress(BrokenPipeError):  # a line that it did not take
                process.communicate()
