"""Compare the seconds that the oracle takes for a million logits with the targets.

pytest benchmarks/test_verifier.py
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.verifier import WORKLOADS, Workload

pytest.importorskip("pytest_benchmark", reason="needs pip install -e '.[bench]'")


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("workload", WORKLOADS, ids=str)
def test_a_million_logits_take_no_longer_than_the_limit(workload: Workload, benchmark: Any) -> None:
    benchmark.group = "oracle"
    arguments = workload.arguments()
    benchmark.pedantic(workload.run, (arguments,), rounds=5)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.min / arguments.logits.size * 1e6
    benchmark.extra_info["seconds_per_million_logits"] = seconds
    assert workload.limit is None or seconds <= workload.limit
