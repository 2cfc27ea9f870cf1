"""The table that anyone can run: how long each form and each peer takes, forward, and forward with backward.

    pytest benchmarks                       # a few minutes on two CPU cores
    pytest benchmarks --benchmark-disable   # each benchmark once, without timing
    pytest benchmarks --benchmark-json=out.json

These times come minutes apart; on a machine with neighbours they are no basis for a ratio, which `python -m benchmarks`
takes from calls in turns. Threads and allocator move them, and no turns take that out: the header names both.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.hot_path import DTYPES, SHAPES, Numbers, Pass
from benchmarks.limits import allocator
from benchmarks.peers import forms, peers, tried

pytest.importorskip("pytest_benchmark", reason="the benchmarks wait for pip install -e '.[bench]'")

DEVICES = ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))
NAMES = (*forms(), *peers((2, 2), "cpu"))
# As many rounds as a few minutes allow: a call with the most logits takes up to a second and a half on two cores.
ROUNDS: dict[tuple[int, ...], int] = {(32, 10): 300, (4096, 1000): 20}
FEW = 5


@pytest.fixture(
    scope="module",  # pytest runs all tests of one input together, so one input at a time is in memory
    params=[(shape, dtype, device) for device in DEVICES for shape in SHAPES for dtype in DTYPES],
    ids=lambda param: f"{'x'.join(map(str, param[0]))}-{param[1]}-{param[2]}",
)
def numbers(request: pytest.FixtureRequest) -> tuple[Numbers, Any]:
    of = Numbers(*request.param)
    return of, of.drawn()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("of", Pass, ids=lambda of: of.value)
def test_a_cross_entropy_is_timed(benchmark: Any, numbers: tuple[Numbers, Any], of: Pass, name: str) -> None:
    shape, device = numbers[0].shape, numbers[0].device
    logits, target = numbers[1]()
    maker = {**peers(shape, device), **forms()}[name]
    reason = maker if isinstance(maker, str) else tried(maker, logits, target, of.backward)
    if isinstance(maker, str) or reason:
        pytest.skip(f"{name} {reason}")
    call = maker(logits, target, of.backward)

    def complete() -> None:
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)

    benchmark.group = f"{of.value} {'x'.join(map(str, shape))} {numbers[0].dtype} {device}"
    benchmark.name = name  # the rest of the test's name is the group's
    benchmark.extra_info |= {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "allocator": allocator(device),
    }
    benchmark.pedantic(complete, rounds=ROUNDS.get(shape, FEW), warmup_rounds=1)
