"""What the machine is, and what it can do at best: its caches, its allocator, how fast it copies and sums."""

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
    """What a reader must know of a figure: versions, processor, caches, threads, allocator, and the measured rates."""
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
    """Seconds by the clock, of all processes on all cores, which may not be told, and of this process."""

    wall: float
    everyone: float | None
    own: float

    @staticmethod
    def now() -> Clock:
        """What Linux counts in hundredths of a second."""
        own = os.times()
        counted = [int(field) for field in _read(Path("/proc/stat")).partition("\n")[0].split()[1:9]]
        idle = counted[3] + counted[4] if counted else 0
        everyone = (sum(counted) - idle) / os.sysconf("SC_CLK_TCK") if counted else None
        return Clock(time.perf_counter(), everyone, own.user + own.system + own.children_user + own.children_system)

    def others(self) -> float | None:
        """The share of the machine that other processes have had since."""
        now = Clock.now()
        if now.everyone is None or self.everyone is None:
            return None
        theirs = (now.everyone - self.everyone) - (now.own - self.own)
        return round(max(0.0, theirs / (now.wall - self.wall) / (os.cpu_count() or 1)), 3)


def processor() -> str:
    """The processor's name."""
    found = re.search(r"^model name\s*:\s*(.+)", _read(Path("/proc/cpuinfo")), re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def caches() -> dict[str, str]:
    """The size of each level's cache of data, of one core, as the kernel writes it: `{"L1": "48K"}`."""
    levels = [index for index in sorted(CACHES.glob("index*")) if _read(index / "type").strip() != "Instruction"]
    return {f"L{_read(index / 'level').strip()}": _read(index / "size").strip() for index in levels}


def allocator(device: str = "cpu") -> str:
    """Name what hands out the memory on the device, as far as it can be seen.

    glibc's maps every large result afresh, which may take longer than to compute it; another one through LD_PRELOAD, or
    GLIBC_TUNABLES with high mmap_threshold and trim_threshold, shows the arithmetic.
    """
    if device.startswith("cuda"):
        return f"torch.cuda {torch.cuda.get_allocator_backend()}"
    # A malloc that was put in front of libc's, by LD_PRELOAD as a rule, is among the mapped files; only Linux tells.
    if preloaded := re.search(r"/lib(jemalloc|tcmalloc|mimalloc)", _read(Path("/proc/self/maps"))):
        return preloaded[1]
    libc = " ".join(filter(None, (*platform.libc_ver(), os.environ.get("GLIBC_TUNABLES"))))
    return libc or "unknown"


def rates(device: str = "cpu", size: int = 2**28) -> dict[str, float]:
    """Bytes that pass a second at best: read in a sum; read and written in a copy, to memory in use and to new memory.

    `size`: bytes of the tensor, far more than a cache has.
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
    """Every byte of x read once: half precision is summed as if it were float32, which no processor is slow at."""
    as_float32 = x.dtype.itemsize < 4 and x.is_contiguous() and x.shape[-1] % 2 == 0
    return (x.view(torch.float32) if as_float32 else x).sum()


def _fastest(call: Callable[[], object], wait: Callable[[], object], rounds: int = 5) -> float:
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
