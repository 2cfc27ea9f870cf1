"""Set the number of threads of the benchmarks, and print a header above pytest-benchmark's tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.limits import allocator, processor

# The default of torch, or OMP_NUM_THREADS. The conftest.py in the root sets one thread, but only after this line.
THREADS = torch.get_num_threads()


@pytest.fixture(scope="package", autouse=True)
def threads_as_torch_chose_them() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def pytest_report_header() -> list[str]:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"CUDA: {', '.join(devices)}" if devices else "no CUDA device"
    return [
        f"benchmarks: torch {torch.__version__}, {processor()}, threads: {THREADS}, allocator: {allocator()}, {cuda}",
        "benchmarks: do not divide these times by each other; `python -m benchmarks` measures ratios",
    ]
