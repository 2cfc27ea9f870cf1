"""What a form costs beside `torch.nn.CrossEntropyLoss`: forward, and forward with backward.

    pytest benchmarks                       # about three minutes on two CPU cores
    pytest benchmarks --benchmark-disable   # each benchmark once, without timing
    pytest benchmarks --benchmark-json=out.json

The times in pytest-benchmark's tables come minutes apart; on a machine with neighbours they are no basis for a
ratio. `extra_info["ratio_to_torch"]` is measured otherwise: torch and the form take turns, in blocks of torch, form,
form, torch. A block's ratio is the form's two times over torch's two, and the result is the median over the blocks.
A steady drift, and a state that flips with every call, fall out of a block; an interruption falls out of the median.
Torch is compared with itself in the same way: how far that ratio is from 1 is what the others may be off by.

Two things move the ratios on a CPU that no turns take out, so every result names them. Threads: where neighbours
take the cores, each parallel loop ends with a wait for a thread that was sent to the queue, and the ratio comes to
count loops; measure with OMP_NUM_THREADS=1 there. The allocator: glibc's maps every large result afresh, and mapping
262 MB took twice as long as computing them where this was written; another allocator through LD_PRELOAD, or
GLIBC_TUNABLES with a high mmap_threshold and trim_threshold, shows the arithmetic.
"""

from __future__ import annotations

import enum
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import crossent

pytest.importorskip("pytest_benchmark", reason="the benchmarks wait for pip install -e '.[bench]'")

FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": torch.nn.CrossEntropyLoss(),
    "formula": crossent.formula,
    "log_softmax_nll": crossent.log_softmax_nll,
    "one_hot": crossent.one_hot,
}


@dataclass(frozen=True)
class Size:
    """A shape of the logits, `(N, C, d1, …)`, and over how many blocks of two rounds the median is taken."""

    shape: tuple[int, ...]
    blocks: int

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


# Odd, so that the median is a block and not the mean of two; as many as three minutes allow. A round of the largest
# size takes up to a second and a half on two cores, so it gets the fewest that have a median.
SIZES = (
    Size((32, 10), blocks=151),  # all overhead: the data fit in the first-level cache
    Size((4096, 1000), blocks=13),  # a batch of image classification
    Size((512, 128256), blocks=3),  # tokens of a language model with Llama 3's vocabulary
    Size((8, 21, 256, 256), blocks=5),  # segmentation, Pascal VOC's classes: the class axis is not the last
)
DTYPES = (torch.float32, torch.bfloat16)
DEVICES = ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))


class Pass(enum.Enum):
    """What is timed. The value is how often a perfect implementation moves the logits' bytes.

    The forward pass reads the logits once: maximum and sum of exponentials can be taken in one sweep (Milakov &
    Gimelshein, arXiv:1805.02867). The backward pass reads them again, as no cache keeps them in between, and
    writes a gradient of their size. Not counted: targets and losses, one number for a whole row.
    """

    FORWARD = 1
    FORWARD_BACKWARD = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", "+")


@dataclass(frozen=True)
class Inputs:
    """The tensors of one size, dtype and device, shared by all that is timed on them."""

    size: Size
    logits: Tensor
    target: Tensor

    def call(self, form: Callable[[Tensor, Tensor], Tensor], direction: Pass) -> Callable[[], None]:
        """One call of the form, complete when it returns. It returns nothing, so what it allocates it also frees."""
        device = self.logits.device
        # A view of the same numbers: an input that requires a gradient would make the forward pass keep a graph.
        logits = self.logits.detach().requires_grad_(direction is Pass.FORWARD_BACKWARD)

        def run() -> None:
            result = form(logits, self.target)
            if direction is Pass.FORWARD_BACKWARD:
                (result,) = torch.autograd.grad(result, logits)  # leaves no .grad for the next call to add to
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run


@pytest.fixture(
    scope="module",  # pytest runs all tests of one input together, so one input at a time is in memory
    params=[(size, dtype, device) for device in DEVICES for size in SIZES for dtype in DTYPES],
    ids=lambda param: f"{param[0]}-{_name(param[1])}-{param[2]}",
)
def inputs(request: pytest.FixtureRequest) -> Inputs:
    size, dtype, device = request.param
    random = torch.Generator().manual_seed(0)  # each dtype and device rounds the same numbers
    logits = 3 * torch.randn(size.shape, generator=random)  # the spread of the test cases' logits
    target = torch.randint(size.shape[1], (size.shape[0], *size.shape[2:]), generator=random)
    return Inputs(size, logits.to(device, dtype), target.to(device))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("direction", Pass, ids=str)
def test_a_form_is_timed_beside_torch(benchmark, record_property, inputs: Inputs, direction: Pass, form: str) -> None:
    logits = inputs.logits
    benchmark.group = f"{direction} {inputs.size} {_name(logits.dtype)} {logits.device}"
    benchmark.name = form  # the rest of the test's name is the group's
    ours, reference = Stopwatch(inputs.call(FORMS[form], direction)), Stopwatch(inputs.call(FORMS["torch"], direction))
    if benchmark.disabled:
        benchmark.pedantic(ours)
        return

    def torch_in_turn() -> None:
        # Asked before and after each round: torch runs before the first, after the second, before the third, …
        if len(ours.seconds) % 2 == 0:
            reference()

    # The warm-up, not timed: libraries load and the allocator grows.
    ours.function()
    reference.function()
    benchmark.pedantic(ours, setup=torch_in_turn, teardown=torch_in_turn, rounds=2 * inputs.size.blocks)
    lower, ratio, upper = statistics.quantiles(block_ratios(ours.seconds, reference.seconds), n=4, method="inclusive")
    benchmark.extra_info |= {
        "bytes_moved": direction.value * logits.numel() * logits.element_size(),
        "ratio_to_torch": ratio,
        "ratio_quartiles": [lower, upper],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "allocator": allocator(logits.device),
    }
    # For the table of ratios that conftest.py prints.
    record_property("ratio_to_torch", (benchmark.group, form, ratio))


class Stopwatch:
    """A function together with the time of each call: one clock for the form and for torch."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Call the function and note the time."""
        start = time.perf_counter()
        self.function()
        self.seconds.append(time.perf_counter() - start)


def block_ratios(ours: list[float], reference: list[float]) -> list[float]:
    """Divide the form's times by torch's, two by two: one ratio for each block.

    By geometric means: what slows every other call by a factor, whichever it hits, then cancels.
    """
    return [
        math.sqrt(math.prod(two_of_ours) / math.prod(two_of_reference))
        for two_of_ours, two_of_reference in zip(_in_twos(ours), _in_twos(reference), strict=True)
    ]


def _in_twos(values: list[float]) -> Iterator[tuple[float, float]]:
    return zip(values[::2], values[1::2], strict=True)


def allocator(device: torch.device) -> str:
    """Name what hands out the memory on the device, as far as it can be seen."""
    if device.type == "cuda":
        return f"torch.cuda {torch.cuda.get_allocator_backend()}"
    # A malloc that was put in front of libc's, by LD_PRELOAD as a rule, is among the mapped files; only Linux tells.
    maps = Path("/proc/self/maps")
    preloaded = re.search(r"/lib(jemalloc|tcmalloc|mimalloc)", maps.read_text()) if maps.exists() else None
    if preloaded:
        return preloaded[1]
    libc = " ".join(filter(None, (*platform.libc_ver(), os.environ.get("GLIBC_TUNABLES"))))
    return libc or "unknown"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
