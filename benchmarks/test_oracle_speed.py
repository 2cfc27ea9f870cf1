"""Seconds that the oracle takes for a million logits: the loss, and the gradient with respect to every one of them.

    pytest benchmarks/test_oracle_speed.py

The limits are the project's own: 0.2 s where float64 answers, 2 s where balls do. One core works, so what is timed is
the processor's time, and the fastest round counts: neighbours only ever make a round slower. The gradient of target
probabilities is a million numbers more: it is timed too, without a limit of its own for balls.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from crossent.arguments import Arguments
from crossent.oracle import Answer, answer

LIMITS = {"float32": 0.2, "float64": 2.0}


@dataclass(frozen=True)
class Workload:
    """Logits of one shape, and what is asked of them."""

    rows: int
    classes: int
    dtype: str
    target: str = "index"
    label_smoothing: float = 0.0
    target_gradient: bool = False

    def __str__(self) -> str:
        smoothed = "-smoothed" if self.label_smoothing else ""
        with_target = "-with_target_gradient" if self.target_gradient else ""
        return f"{self.dtype}-{self.rows}x{self.classes}-{self.target}{smoothed}{with_target}"

    def arguments(self) -> Arguments:
        """The same numbers every time."""
        rng = np.random.default_rng(0)
        shape = self.rows, self.classes
        options: dict[str, Any] = {"index": rng.integers(0, self.classes, self.rows)}
        if self.target == "probabilities":
            options = {"probabilities": rng.random(shape).astype(self.dtype)}
        logits = (3 * rng.standard_normal(shape)).astype(self.dtype)
        return Arguments(logits, label_smoothing=self.label_smoothing, **options)

    def run(self, arguments: Arguments) -> Answer:
        """What is timed."""
        exact = answer(arguments)
        for block in exact.blocks():
            block.gradient()
            if self.target_gradient:
                block.target_gradient()
        return exact


WORKLOADS = [
    Workload(1000, 1000, "float32"),
    Workload(8, 128_256, "float32"),  # Llama 3's vocabulary
    Workload(32, 128_256, "float32"),  # too many for their exponentials to be kept from loss to gradient
    Workload(100_000, 10, "float32"),
    Workload(500_000, 2, "float32"),  # all rows and no classes
    Workload(1000, 1000, "float32", label_smoothing=0.1),
    Workload(1000, 1000, "float32", "probabilities", 0.1, target_gradient=True),
    Workload(1000, 1000, "float64"),
    Workload(8, 128_256, "float64"),
    Workload(100_000, 10, "float64"),
    Workload(16, 128_256, "float64"),  # too many, again
    Workload(1000, 1000, "float64", label_smoothing=0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1, target_gradient=True),
]


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_a_million_logits_take_no_longer_than_the_limit(
    workload: Workload, benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark.group = "oracle"
    arguments = workload.arguments()
    benchmark.pedantic(workload.run, (arguments,), rounds=5)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min / arguments.logits.size * 1e6
    benchmark.extra_info["seconds_per_million_logits"] = seconds
    limit = None if workload.target_gradient and workload.dtype == "float64" else LIMITS[workload.dtype]
    with capsys.disabled():
        print(f"\n{workload}: {seconds:.3f} s per million logits, limit {limit}", end="")
    assert limit is None or seconds <= limit
