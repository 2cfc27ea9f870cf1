"""Benchmarks of the forms and the peers with pytest-benchmark: forward, and forward with backward.

    pytest benchmarks                       # a few minutes on two CPU cores
    pytest benchmarks --benchmark-disable   # each benchmark once, without timing
    pytest benchmarks --benchmark-json=out.json

Do not divide these times by each other: minutes pass between two measurements. `python -m benchmarks` measures ratios,
with calls that take turns. Times also depend on the threads and the allocator, which the header names.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.hot_path import DTYPES, SHAPES, Numbers, Pass
from benchmarks.limits import allocator
from benchmarks.peers import forms, peers, tried

pytest.importorskip("pytest_benchmark", reason="needs pip install -e '.[bench]'")

DEVICES = ("cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))
NAMES = (*forms(), *peers((2, 2), "cpu"))
# The rounds that fit into a few minutes: the largest call takes up to a second and a half on two cores.
ROUNDS: dict[tuple[int, ...], int] = {(32, 10): 300, (4096, 1000): 20}
FEW = 5


@pytest.fixture(
    scope="module",  # pytest runs all tests of an input together, so only one input is in memory
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
    benchmark.name = name  # the group has the rest of the test's name
    benchmark.extra_info |= {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "allocator": allocator(device),
    }
    benchmark.pedantic(complete, rounds=ROUNDS.get(shape, FEW), warmup_rounds=1)
