"""Time `fused` on CUDA, as a share of the bandwidth of a copy, beside torch, torch.compile and Liger.

    python -m benchmarks.fused                       # every shape in bfloat16, forward and backward; writes a JSON file
    python -m benchmarks.fused --shape 8192x32000 --dtype float32
    python -m benchmarks.fused --device cpu --elements 4096 --rounds 3   # a dry run: shows that the program works

Nothing has been timed on a GPU yet. The targets on an H100, for forward and backward in bfloat16:

- With 8,192 classes or more, the share is at least 0.85. The share is the time of a copy of the logits, divided by the
  time of the call. A copy reads and writes as much as a loss must: the logits once, and their gradient once. The kernel
  reads the logits twice. So the share is at most 2/3 where the second read of a row misses the cache.
- With 4,096 classes or more, `fused` is not slower than torch, torch.compile or Liger.
- The host never waits for the device.

CUDA events time each call. Before each call, a write of 512 MiB flushes the second-level cache of the device. In each
round, all calls run in a new random order, and the result of a call is the median over the rounds. The file has the
clock rates of the device before and after, because times of a device that becomes slower cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.readme import RESULTS
from crossent.forms import blocked, fused
from crossent.forms.fused import path_of
from crossent.machine import environment

Call = Callable[[], object]
Timer = Callable[[Call], float]  # returns the seconds of one call

CLASSES = (1024, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144)
ELEMENTS = 2**28  # logits of a shape: 512 MiB in bfloat16, ten times the cache of an H100
FLUSHED = 2**29  # bytes
LEAST_SHARE, SHARE_FROM = 0.85, 8192
RIVALS, RIVALS_FROM = ("torch", "torch.compile", "liger"), 4096
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.draw,clocks_event_reasons.active"


@dataclass
class Timed:
    """The times of one shape.

    Attributes:
        shape: the shape of the logits, such as "65536x4096".
        classes: the number of classes.
        seconds: the median seconds of each call. "copy" copies the logits.
        missing: the reasons why calls did not run, by name.
        waits: torch's message if `fused` makes the host wait for the device; otherwise "".
    """

    shape: str
    classes: int
    seconds: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    waits: str = ""

    def share(self, name: str) -> float:
        """Return the time of a copy of the logits, divided by the time of a call."""
        return self.seconds["copy"] / self.seconds[name]

    @property
    def missed(self) -> list[str]:
        """The targets that `fused` misses, as sentences."""
        found = []
        if self.classes >= SHARE_FROM and self.share("fused") < LEAST_SHARE:
            found.append(f"{self.shape}: the share is {self.share('fused'):.2f}, below {LEAST_SHARE}")
        for rival in RIVALS if self.classes >= RIVALS_FROM else ():
            if rival in self.seconds and self.seconds["fused"] > self.seconds[rival]:
                ratio = self.seconds["fused"] / self.seconds[rival]
                found.append(f"{self.shape}: fused takes {ratio:.2f} times as long as {rival}")
        if self.waits:
            found.append(f"{self.shape}: the host waits for the device: {self.waits}")
        return found


def cuda_timer(device: torch.device) -> Timer:
    """Return a timer that uses CUDA events, and flushes the second-level cache of the device before each call."""
    other = torch.empty(FLUSHED, dtype=torch.int8, device=device)

    def seconds(call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.zero_()
        torch.cuda._sleep(1_000_000)  # half a millisecond, in which the host launches all kernels of the call
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return seconds


def host_timer(call: Call) -> float:
    """Return the seconds of a call by the clock of the host, for a dry run on a CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def calls(logits: Tensor, target: Tensor) -> tuple[dict[str, Call], dict[str, str]]:
    """Return the calls to time, by name, and the reasons why other calls are missing, by name."""
    shape, device = tuple(logits.shape), logits.device.type
    out = torch.empty_like(logits)
    makers: dict[str, peers.Maker | str] = {
        "fused": peers.of_torch(fused),
        "blocked": peers.of_torch(blocked),
        "torch": peers.of_torch(torch.nn.CrossEntropyLoss()),
        **{name: maker for name, maker in peers.peers(shape, device).items() if name in RIVALS},
    }
    found: dict[str, Call] = {"copy": lambda: out.copy_(logits)}
    missing = {}
    for name, maker in makers.items():
        reason = maker if isinstance(maker, str) else peers.tried(maker, logits, target, True)
        if isinstance(maker, str) or reason:
            missing[name] = reason
        else:
            found[name] = maker(logits, target, True)
    return found, missing


def measure(timed: Mapping[str, Call], timer: Timer, rounds: int, seed: int = 0) -> dict[str, float]:
    """Return the median seconds of each call, over rounds in which the calls run in a new random order."""
    order, seconds = list(timed), {name: [] for name in timed}  # type: dict[str, list[float]]
    shuffle = random.Random(seed).shuffle
    for at in range(rounds + 1):
        shuffle(order)
        for name in order:
            taken = timer(timed[name])
            if at:  # the first round warms up
                seconds[name].append(taken)
    return {name: statistics.median(each) for name, each in seconds.items()}


def time_shape(shape: Sequence[int], dtype: torch.dtype, device: str, rounds: int) -> Timed:
    """Time all calls on logits of a shape, (N, C)."""
    where = torch.device(device)
    logits = torch.randn(*shape, device=where, dtype=dtype)
    target = torch.randint(shape[1], (shape[0],), device=where)
    timed, missing = calls(logits, target)
    waits = peers.host_waits(timed["fused"]) if where.type == "cuda" else ""
    seconds = measure(timed, cuda_timer(where) if where.type == "cuda" else host_timer, rounds)
    return Timed("x".join(map(str, shape)), shape[1], seconds, missing, waits)


def clocks() -> str:
    """Return the clock rates, temperature and power of the devices, as nvidia-smi prints them; or why it fails."""
    try:
        command = ["nvidia-smi", f"--query-gpu=name,{_CLOCKS}", "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {type(error).__name__}"


def table(found: Sequence[Timed]) -> str:
    """Return the table of the results in Markdown: milliseconds, and the share of the copy bandwidth."""
    names = ["copy", "fused", *RIVALS, "blocked"]
    lines = [f"| logits | {' | '.join(f'{name}, ms' for name in names)} | share |", "| --- " * (len(names) + 2) + "|"]
    for one in found:
        cells = [f"{1000 * one.seconds[name]:.3g}" if name in one.seconds else "" for name in names]
        lines.append(f"| {one.shape} | {' | '.join(cells)} | {one.share('fused'):.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time the shapes, print the table and the missed targets, and write the file; return 1 if a target is missed.

    A run on a CPU is a dry run. It has no targets, and writes no file without --into.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fused")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("float16", "bfloat16", "float32", "float64"))
    parser.add_argument(
        "--shape",
        action="append",
        metavar="NxC",
        help="shape of the logits; default: a shape for each number of classes",
    )
    parser.add_argument("--elements", type=int, default=ELEMENTS, help="the number of logits of each default shape")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--into", type=Path, help="the JSON file; default: benchmarks/results/fused.json")
    given = parser.parse_args(arguments)
    dry = not given.device.startswith("cuda")
    if not dry and path_of("cuda") != "kernel":
        parser.error("fused has no compiled kernel here: install triton, and unset TRITON_INTERPRET")
    shapes = [[int(size) for size in shape.split("x")] for shape in given.shape or ()]
    shapes = shapes or [[given.elements // classes, classes] for classes in CLASSES if given.elements >= classes]
    made: dict[str, Any] = {"environment": environment(given.device), "dtype": given.dtype, "clocks": [clocks()]}
    made |= {"path": path_of(given.device.partition(":")[0]), "dry": dry}
    found = [time_shape(shape, getattr(torch, given.dtype), given.device, given.rounds) for shape in shapes]
    made["clocks"].append(clocks())
    missed = [] if dry else [sentence for one in found for sentence in one.missed]
    made |= {"shapes": [asdict(one) for one in found], "missed": missed}
    into = given.into or (None if dry else RESULTS / "fused.json")
    if into is not None:
        into.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    for one in found:
        for name, reason in one.missing.items():
            print(f"{one.shape}: {name} is missing: {reason}")
    print("\n".join(missed) if missed else "a dry run: no target was checked" if dry else "all targets are met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
