"""Measure the hot path: the time and memory of a call of each form and peer.

    python -m benchmarks hot_path

A peer is the cross-entropy of another library. Times are divided by torch's time, and compared with the time to read
and write the memory that every implementation must (see `limits` in `peers`). A cell is a shape, a dtype, a pass, and a
number of threads. Each number of threads runs in a separate process.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory, paired
from benchmarks.limits import Clock
from benchmarks.peers import NAMES, Call, Maker, forms, host_waits, limits, peers, tried

# In this order: few logits, which show the overhead of a call; image classification; language models with the
# vocabularies of LLaMA and Llama 3; segmentation with the classes of Pascal VOC, where the class axis is not the last.
SHAPES = ((32, 10), (4096, 1000), (1024, 32000), (512, 128256), (8, 21, 256, 256))
DTYPES = ("float32", "bfloat16")
# Resident memory is measured from this many bytes of logits. With fewer, the interpreter uses most of the memory.
LARGE = 2**24


class Pass(enum.Enum):
    """The timed pass: forward alone, or forward and backward."""

    FORWARD = "forward"
    BOTH = "forward+backward"

    @property
    def backward(self) -> bool:
        """Whether a gradient is needed."""
        return self is Pass.BOTH


@dataclass(frozen=True)
class Target:
    """Targets of `blocked`, forward and backward: time / torch's time by dtype, and extra memory / logits' size."""

    float32: float
    bfloat16: float
    extra: float | None = None


# With 32,000 classes or more, two reads and a write are a third of the memory traffic of torch. With few classes,
# arithmetic takes time too. With 320 logits, the overhead of calls takes all of the time.
TARGETS = {
    (1024, 32000): Target(0.50, 0.55, 1.05),
    (512, 128256): Target(0.50, 0.55, 1.05),
    (4096, 1000): Target(0.60, 0.80, 1.05),
    (8, 21, 256, 256): Target(0.70, 1.0, 1.1),
    (32, 10): Target(2.0, 2.0),
}
# The targets of `blocked` for the forward pass alone, in any dtype: time / torch's time.
FORWARD_TARGETS = {(1024, 32000): 0.5, (512, 128256): 0.5, (4096, 1000): 1.1}
# Each share is the time to move the memory that a pass must move, divided by the time of the pass. A sum reads the
# logits. A copy into allocated memory, or a clone into new memory, writes as much as the gradient has.
SHARES = {"share_of_limit": ("sum", "copy"), "share_in_new_memory": ("sum", "clone")}
# The least number of rounds. Quartiles need five, and some may be discarded.
ROUNDS = 7
# The target of the other forms, forward and backward, in float32, for a thousand classes or more: time / torch's time.
OTHERS = 2.0


@dataclass(frozen=True)
class Numbers:
    """Logits and targets of one shape and dtype."""

    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"

    def drawn(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return a function that makes new inputs fast: the same rows of `3 * randn`, in another order."""
        random = torch.Generator().manual_seed(0)  # all dtypes and devices round the same numbers
        logits = (3 * torch.randn(self.shape, generator=random)).to(self.device, getattr(torch, self.dtype))
        target = torch.randint(self.shape[1], (self.shape[0], *self.shape[2:]), generator=random).to(self.device)

        def fresh() -> tuple[Tensor, Tensor]:
            order = torch.randperm(self.shape[0], generator=random).to(self.device)
            return logits[order], target[order]

        return fresh


def measure(
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    dtypes: tuple[str, ...] = DTYPES,
    *,
    device: str = "cpu",
    seconds: float,
    with_memory: bool = True,
) -> Iterator[dict[str, Any]]:
    """Yield a dict for each cell, in the format of the result files. Each cell takes `seconds`."""
    for shape in shapes:
        for dtype in dtypes:
            for of in Pass:
                numbers = Numbers(shape, dtype, device)
                yield _cell(numbers, of, seconds, with_memory)


def _cell(numbers: Numbers, of: Pass, seconds: float, with_memory: bool) -> dict[str, Any]:
    draw = numbers.drawn()
    logits, target = draw()
    known, missing = forms(), {}
    for name, maker in peers(numbers.shape, numbers.device).items() if of.backward else ():
        if isinstance(maker, str) or (reason := tried(maker, logits, target, of.backward)):
            missing[name] = maker if isinstance(maker, str) else reason
        else:
            known[name] = maker
    all_of_them = {**known, **limits(of.backward)}

    def fresh() -> dict[str, Call]:
        logits, target = draw()
        return {name: make(logits, target, of.backward) for name, make in all_of_them.items()}

    on_cuda = numbers.device.startswith("cuda")
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    clock = Clock.now()
    rounds = paired.measure(fresh, seconds=seconds, wait=wait, least=ROUNDS)
    others = clock.others()
    size = logits.numel() * logits.element_size()
    found: dict[str, dict[str, Any]] = {
        name: {
            "seconds": asdict(rounds.seconds(name)),
            "ratio_to_torch": asdict(rounds.ratio(name, "torch")),
        }
        for name in all_of_them
    }
    for share, parts in SHARES.items():
        limit = sum(found[name]["seconds"]["median"] for name in parts if name in found)
        for name in known:
            found[name][share] = limit / found[name]["seconds"]["median"]
    if with_memory:
        for name, kinds in _memories(known, logits, target, of, numbers.device).items():
            found[name]["extra_memory"] = {kind: taken / size for kind, taken in kinds.items()}
    if on_cuda:
        for name, make in known.items():
            found[name]["host_waits"] = host_waits(make(logits, target, of.backward))
    return {
        "shape": list(numbers.shape),
        "dtype": numbers.dtype,
        "pass": of.value,
        "device": numbers.device,
        "threads": torch.get_num_threads(),
        "share_of_others": others,  # the share of the machine that other processes used during the measurement
        "bytes": size,
        "bytes_moved_at_least": size * (3 if of.backward else 1),
        "found": found,
        "missing": missing,
    }


def _memories(
    known: dict[str, Maker], logits: Tensor, target: Tensor, of: Pass, device: str
) -> dict[str, dict[str, int]]:
    """Return the peak memory of each call in bytes, as torch and the operating system report it.

    torch does not see the memory of JAX, so optax has no number from torch.
    """
    found: dict[str, dict[str, int]] = {}
    for name, make in known.items():
        call = make(logits, target, of.backward)
        call()
        found[name] = {} if name == "optax" else {"torch": memory.peak(call, device)}
        if device == "cpu" and logits.numel() * logits.element_size() >= LARGE:
            seen = memory.resident(call)
            found[name] |= {} if seen is None else {"resident": seen}
    return found


def verdicts(cells: list[dict[str, Any]]) -> Iterator[tuple[str, float, float]]:
    """Yield for each target its name, the measured figure and the target. Only cells with the most threads count."""
    most = max(cell["threads"] for cell in cells)
    for cell in cells:
        if cell["threads"] != most:
            continue
        shape, backward, found = tuple(cell["shape"]), cell["pass"] == Pass.BOTH.value, cell["found"]
        name = f"{'x'.join(map(str, shape))} {cell['dtype']} {cell['pass']}, {cell['threads']} threads"
        ratios = {form: one["ratio_to_torch"]["median"] for form, one in found.items()}
        if backward and (target := TARGETS.get(shape)) and "blocked" in found:
            yield f"blocked {name}: time", ratios["blocked"], getattr(target, cell["dtype"])
            extra = found["blocked"].get("extra_memory", {}).get("torch")
            if target.extra is not None and extra is not None:
                yield f"blocked {name}: extra memory", extra, target.extra
        if not backward and shape in FORWARD_TARGETS and "blocked" in found:
            yield f"blocked {name}: time", ratios["blocked"], FORWARD_TARGETS[shape]
        for form, one in found.items():
            if "host_waits" in one:
                yield f"{form} {name}: waits of the host", bool(one["host_waits"]), bool(found["torch"]["host_waits"])
        if backward and shape[1] >= 1000 and cell["dtype"] == "float32":
            for form in (name for name in NAMES if name != "blocked"):
                yield f"{form} {name}: time", ratios[form], OTHERS
