"""Print what torch and the driver say about the GPUs of this machine, as JSON: `python -m benchmarks.cuda.device`.

This module runs in a new process, because asking torch and the driver may take long, or may end the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
from typing import Any

_OF_DRIVER = ("driver_version", "compute_mode", "clocks.max.sm", "clocks.max.mem", "power.limit", "pcie.link.gen.max")
# The attributes of torch.cuda.get_device_properties that matter for a result or a time. Old torch versions lack some.
_PROPERTIES = ("total_memory", "multi_processor_count", "L2_cache_size", "gcnArchName")


def found() -> dict[str, Any]:
    """Return the version of torch, and for each device its name and its properties; the devices of CUDA come first."""
    import torch

    devices = [_cuda(torch, at) for at in range(torch.cuda.device_count())]
    xpu = getattr(torch, "xpu", None)  # since torch 2.3
    for at in range(xpu.device_count() if xpu is not None and xpu.is_available() else 0):
        devices.append({"device": f"xpu:{at}", "name": str(xpu.get_device_name(at))})
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        devices.append({"device": "mps", "name": platform.processor() or "Apple GPU"})
    return {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,  # with ROCm, torch calls its devices cuda too
        "triton": _version("triton"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": devices,
    }


def _cuda(torch: Any, at: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(at)
    known = {name: getattr(properties, name) for name in _PROPERTIES if hasattr(properties, name)}
    capability = ".".join(map(str, torch.cuda.get_device_capability(at)))
    free = {"free_memory": torch.cuda.mem_get_info(at)[0]}
    return {"device": f"cuda:{at}", "name": properties.name, "capability": capability, **known, **free, **_driver(at)}


def _driver(at: int) -> dict[str, str]:
    """Return properties of a device from nvidia-smi, by name; an empty dict if nvidia-smi is missing or fails."""
    command = ["nvidia-smi", f"--id={at}", f"--query-gpu={','.join(_OF_DRIVER)}", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return dict(zip(_OF_DRIVER, (word.strip() for word in line.strip().split(",")), strict=False))
    return {}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


if __name__ == "__main__":
    json.dump(found(), sys.stdout)
