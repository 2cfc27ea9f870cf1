"""The machine: its devices, versions and free memory, and the state of torch during a run."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import platform
import re
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from crossent.words import one_line, quoted


@contextmanager
def ambient() -> Iterator[None]:
    """Context manager that sets torch's state for a run: gradients on, no autocast, no inference mode, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine, a run with several threads took three times as long
    try:
        with ExitStack() as stack:
            stack.enter_context(_one_thread_of_openblas())  # the last bits of a product depend on the threads
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in _kinds_with_autocast():
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_num_threads(threads)


def end_threads() -> None:
    """End GNU OpenMP's threads. Call this function before a fork, in the thread that forks.

    A forked process has none of these threads. Without this call, a computation in that process would
    wait for the threads forever.
    """
    for library in _gnu_openmp():
        if pause := getattr(library, "omp_pause_resource_all", None):
            pause(_OMP_PAUSE_HARD)


def forks_with_threads() -> bool:
    """Return whether a process that is forked after :func:`end_threads` can compute in several threads."""
    # GNU OpenMP can end its threads since GCC 9. Older versions of torch contain an older GNU OpenMP.
    return all(hasattr(library, "omp_pause_resource_all") for library in _gnu_openmp())


_OMP_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0, section 3.2.44: free everything


@cache
def _gnu_openmp() -> list[ctypes.CDLL]:
    """Return the GNU OpenMP libraries of this process. torch and other packages each contain such a library."""
    with suppress(OSError):  # only Linux has this file
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if "/libgomp" in line}
        return [ctypes.CDLL(path) for path in sorted(paths)]
    return []


def _kinds_with_autocast() -> Iterator[str]:
    """Yield "cpu", and the other types of devices of this machine that support autocast."""
    yield "cpu"
    has_autocast = getattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")  # since torch 2.4
    modules = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}
    for kind, module in modules.items():
        # Some versions of torch warn about autocast on a missing device.
        if module is not None and module.is_available() and has_autocast(kind):
            yield kind


DEVICES = "cpu, cuda, cuda:N, xpu, xpu:N and mps"  # in words, for messages


@contextmanager
def _one_thread_of_openblas() -> Iterator[None]:
    """Context manager in which the OpenBLAS of numpy's wheel has one thread."""
    found = _thread_functions()
    if found is None:
        yield
        return
    get, put = found
    threads = get()
    put(1)
    try:
        yield
    finally:
        put(threads)


@cache
def _thread_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Return the functions that get and set the number of threads of numpy's OpenBLAS; None without OpenBLAS."""
    package = Path(np.__file__).parent
    for path in [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]:
        library = ctypes.CDLL(str(path))
        for prefix, suffix in (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", "")):
            with suppress(AttributeError):
                name = f"{prefix}openblas_{{}}_num_threads{suffix}"
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None


def require_device(device: object) -> None:
    """Raise an error of one line unless torch can use the device.

    Raises:
        TypeError: The device is not a string.
        RuntimeError: The device is not one of `DEVICES`, or torch cannot use the device.
    """
    if not isinstance(device, str):
        raise TypeError(f"device: got {quoted(device)}; allowed is a string: {DEVICES}")
    if not re.fullmatch(r"cpu|(cuda|xpu)(:\d+)?|mps", device):
        raise RuntimeError(f"device: got {quoted(device)}; allowed are {DEVICES}")
    try:
        torch.zeros(1, device=device).item()  # item() waits for the device, and raises its errors
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # After the first sentence, torch lists its backends.
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise RuntimeError(
            f"device: got {quoted(device)}; torch cannot use this device ({reason}); choose another, such as cpu"
        ) from None


def lacks_float64(device: str) -> str:
    """Return "" if a device supports float64; otherwise "needs float64, which the device mps does not have"."""
    return "needs float64, which the device mps does not have" if device.startswith("mps") else ""


def lost(device: str) -> str:
    """Return "" if this process can still use a device; otherwise the first line of torch's error.

    For example, a process cannot use a CUDA device after a device-side assert.
    """
    if device.startswith("cpu"):
        return ""
    try:
        (torch.zeros(1, device=device) + 1).item()
    except torch.cuda.OutOfMemoryError:  # the memory is full, but the device works
        return ""
    except RuntimeError as error:  # torch.AcceleratorError is a RuntimeError
        return one_line((str(error) or type(error).__name__).splitlines()[0])
    return ""


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work. Raise RuntimeError after a failed assert on the device."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def environment(device: str, ranks: int | None = None) -> dict[str, str]:
    """Return the versions, the processor and the device of a run, as a dict with keys such as "torch".

    `ranks` is the number of ranks, or None for a run without ranks.
    """
    found = {
        "crossent": _own_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "device": device,
    }
    found |= {} if ranks is None else {"ranks": str(ranks)}
    if device.startswith("cuda"):
        return {**found, "device_name": torch.cuda.get_device_name(device)}
    return {**found, "device_name": str(torch.xpu.get_device_name(device))} if device.startswith("xpu") else found


def ranks_of(environment: Mapping[str, str]) -> int | None:
    """Return the number of ranks in a report's environment: None if the entry is missing, 0 if it is damaged."""
    given = environment.get("ranks")
    return None if given is None else int(given) if given.isdecimal() and len(given) < 10 else 0


def _own_version() -> str:
    """Return the version of crossent: of the installed package, else from pyproject.toml, else "unknown"."""
    with suppress(PackageNotFoundError):
        return version("crossent")
    project = Path(__file__).parents[1] / "pyproject.toml"
    found = re.search(r'^version = "(.+)"$', project.read_text("utf-8") if project.exists() else "", re.MULTILINE)
    return found[1] if found else "unknown"


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Return whether this system can fork a process."""
    return "fork" in multiprocessing.get_all_start_methods()


def cpu_capability() -> str:
    """Return the vector instructions that torch uses on this processor, such as "AVX2", or "unknown".

    The bits of a result depend on these instructions. The environment variable ATEN_CPU_CAPABILITY overrides
    torch's choice.
    """
    says = getattr(torch.backends, "cpu", None)  # since torch 2.1
    if says is not None:
        return str(says.get_cpu_capability())
    found = re.search(r"CPU capability usage: (.+)", torch.__config__.show())
    return found[1].strip() if found else "unknown"


def available(device: str) -> int:
    """Return the approximate number of bytes of memory that this process may still use on a device."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # otherwise, memory that torch caches counts as used
        return int(torch.cuda.mem_get_info(torch.device(device).index)[0])
    if device.startswith("xpu"):
        torch.xpu.empty_cache()
        whole = int(torch.xpu.get_device_properties(device).total_memory)
        return whole - int(torch.xpu.memory_allocated(device))
    if device.startswith("mps"):  # the memory of the CPU, of which Metal uses a part
        torch.mps.empty_cache()
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    free: list[float] = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    free.append(process_limit())
    try:
        words = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free.append(int(words["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError):  # not Linux: count all memory as free
        return int(min(free))
    try:  # the limit of the container
        group = Path("/sys/fs/cgroup")
        free.append(
            int((group / "memory.max").read_text(encoding="utf-8")) - int((group / "memory.current").read_text())
        )
    except (OSError, ValueError):  # no limit
        return int(min(free))
    return int(min(free))


def process_limit() -> float:
    """Return this process's limit on memory (RLIMIT_DATA) in bytes; infinity without a limit."""
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def memory_growth(call: Callable[[], object], device: str) -> int | None:
    """Return the largest growth of memory during a call, in bytes; None if no counter is available.

    On CUDA, torch counts the memory of its tensors. On a CPU, Linux counts the resident memory of the process.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
        call()
        return int(torch.cuda.max_memory_allocated(device)) - before
    if not device.startswith("cpu"):
        return None
    try:
        with suppress(OSError, AttributeError):  # memory that was freed, but stays resident, would hide the growth
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc_pid_clear_refs(5)
        before, _ = _resident("VmRSS"), _resident("VmHWM")
    except OSError:
        return None
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
