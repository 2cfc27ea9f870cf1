"""Describe the machine: its caches, its allocator, and the speed at which it copies and sums memory."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossent.machine import environment

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return the conditions of a measurement: versions, processor, caches, threads, allocator, speed of memory."""
    return {
        **environment(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "caches": caches(),
        "allocator": allocator(device),
        "gigabytes_per_second": {name: round(rate / 1e9, 1) for name, rate in rates(device).items()},
    }


@dataclass(frozen=True)
class Clock:
    """A reading of the clock and of CPU time, in seconds.

    `everyone` is the CPU time of all processes, or None if unknown. `own` is the CPU time of this process.
    """

    wall: float
    everyone: float | None
    own: float

    @staticmethod
    def now() -> Clock:
        """Return a reading of this moment. Linux counts CPU time in hundredths of a second."""
        own = os.times()
        counted = [int(field) for field in _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]]
        idle = counted[3] + counted[4] if counted else 0
        everyone = (sum(counted) - idle) / os.sysconf("SC_CLK_TCK") if counted else None
        return Clock(time.perf_counter(), everyone, own.user + own.system + own.children_user + own.children_system)

    def others(self) -> float | None:
        """Return the share of the machine that other processes have used since this reading; None if unknown."""
        now = Clock.now()
        if now.everyone is None or self.everyone is None:
            return None
        theirs = (now.everyone - self.everyone) - (now.own - self.own)
        return round(max(0.0, theirs / (now.wall - self.wall) / (os.cpu_count() or 1)), 3)


def processor() -> str:
    """Return the name of the processor."""
    found = re.search(r"^model name\s*:\s*(.+)", _read(Path("/proc/cpuinfo")), re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """Return the size of each data cache of a core, as the kernel writes it: `{"L1": "48K"}`."""
    levels = [index for index in sorted(CACHES.glob("index*")) if _read(index / "type").strip() != "Instruction"]
    return {f"L{_read(index / 'level').strip()}": _read(index / "size").strip() for index in levels}


def allocator(device: str = "cpu") -> str:
    """Return the name of the memory allocator of a device, as far as the process shows it.

    glibc maps new memory for every large result, which may take longer than the computation. To time the arithmetic
    alone, set another allocator by LD_PRELOAD, or a high mmap_threshold and trim_threshold in GLIBC_TUNABLES.
    """
    if device.startswith("cuda"):
        return f"torch.cuda {torch.cuda.get_allocator_backend()}"
    # On Linux, an allocator from LD_PRELOAD is among the mapped files.
    if preloaded := re.search(r"/lib(jemalloc|tcmalloc|mimalloc)", _read(Path("/proc/self/maps"))):
        return preloaded[1]
    libc = " ".join(filter(None, (*platform.libc_ver(), os.environ.get("GLIBC_TUNABLES"))))
    return libc or "unknown"


def rates(device: str = "cpu", size: int = 2**28) -> dict[str, float]:
    """Return the bytes per second of a sum, of a copy into allocated memory, and of a clone into new memory.

    `size` is the size of the tensor in bytes, far larger than a cache.
    """
    x = torch.ones(size // 4, device=device)
    out = torch.empty_like(x).copy_(x)
    wait: Callable[[], object] = torch.cuda.synchronize if x.is_cuda else lambda: None
    return {
        "sum": size / _fastest(lambda: summed(x), wait),
        "copy": 2 * size / _fastest(lambda: out.copy_(x), wait),
        "clone": 2 * size / _fastest(x.clone, wait),
    }


def summed(x: Tensor) -> Tensor:
    """Return a sum that reads every byte of x once. Read half precision as float32, whose sum is fast everywhere."""
    as_float32 = x.element_size() < 4 and x.is_contiguous() and x.shape[-1] % 2 == 0
    return (x.view(torch.float32) if as_float32 else x).sum()


def _fastest(call: Callable[[], object], wait: Callable[[], object], rounds: int = 5) -> float:
    """Return the seconds of the fastest of some calls. `wait` waits until the device has finished."""
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
