"""Measure peak memory: the most bytes that a call has allocated at any time.

On a CPU there are two sources. torch's profiler reports the allocations of torch alone. The operating system reports
the peak of resident memory, which includes whole pages, loaded libraries and memory that malloc keeps. A test compares
both.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the most bytes that torch allocates on a device during a call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return traced(call)


def traced(call: Callable[[], object]) -> int:
    """Return the most bytes that torch allocates on a CPU during a call, by the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _no_words(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    ours = [one for one in events if one.get("name") == "[memory]" and one["args"].get("Device Type") == 0]
    ours.sort(key=lambda one: one["ts"])
    total = most = 0
    for one in ours:  # add up the events, since their own totals include memory from before the call
        total += one["args"]["Bytes"]
        most = max(most, total)
    return most


def resident(call: Callable[[], object]) -> int | None:
    """Return how many bytes the resident memory of this process grows at most during a call; None outside Linux."""
    try:
        CLEAR_REFS.write_text("5")  # resets the peak: proc_pid_clear_refs(5)
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


@contextlib.contextmanager
def _no_words() -> Iterator[None]:
    """Hide the two lines that the profiler writes to stderr from C++."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.M)
    if not found:
        raise OSError(f"{STATUS} has no {name}")
    return int(found[1]) * 1024
