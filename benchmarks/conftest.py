"""The threads that the benchmarks run on, and what is said before and after pytest-benchmark's tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# What torch, or OMP_NUM_THREADS, chose: `pytest benchmarks` reads this before the tests' conftest.py goes down to one.
THREADS = torch.get_num_threads()


@pytest.fixture(scope="package", autouse=True)
def threads_as_torch_chose_them() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def pytest_report_header() -> str:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"benchmarks: torch {torch.__version__}, CPU threads: {THREADS}, " + (
        f"CUDA: {', '.join(devices)}" if devices else "no CUDA device, so nothing is timed on one"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the ratios to torch, which pytest-benchmark keeps in its JSON only."""
    table: dict[str, dict[str, float]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "ratio_to_torch":
                group, form, ratio = value
                table.setdefault(group, {})[form] = ratio
    if not table:
        return
    forms = list(dict.fromkeys(form for ratios in table.values() for form in ratios))
    width = max(map(len, table))
    terminalreporter.section("time ÷ time of torch.nn.CrossEntropyLoss, run in turns; torch ÷ torch is the noise")
    terminalreporter.write_line(" " * width + "".join(f"{form:>17}" for form in forms))
    for group, ratios in sorted(table.items()):
        cells = (f"{ratios[form]:17.2f}" if form in ratios else " " * 17 for form in forms)
        terminalreporter.write_line(f"{group:<{width}}" + "".join(cells))
