"""Measure how time and memory grow with the number of rows and of classes, over three decades, and fit exponents.

    python -m benchmarks growth

An exponent is the slope of a straight line through the logarithms, by least squares; 1 is linear. The fixed cost of a
call makes an exponent smaller. Results that outgrow a cache make it larger. torch is measured in the same rounds.
glibc is set to keep freed memory: otherwise each call maps allocations above 32 MB again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks import memory, paired
from benchmarks.hot_path import Numbers
from benchmarks.peers import forms

# The sizes of the axis that grows. The other axis has the size FIXED. So the smallest input has 40 thousand logits,
# which fit a cache, and the largest has 40 million.
SIZES = (160, 500, 1600, 5000, 16000, 50000, 160000)
FIXED = 256
AXES = ("rows", "classes")
# The environment variable that makes glibc keep freed memory. It must be set before the process starts.
KEEPING = {"GLIBC_TUNABLES": f"glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold={2**40}"}


def measure(
    *,
    sizes: tuple[int, ...] = SIZES,
    fixed: int = FIXED,
    dtype: str = "float32",
    device: str = "cpu",
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield a dict for each axis and size: seconds and bytes of the forms and torch, forward and backward.

    The measurement of each size takes `seconds`.
    """
    for axis in AXES:
        for size in sizes:
            shape = (size, fixed) if axis == "rows" else (fixed, size)
            draw = Numbers(shape, dtype, device).drawn()

            def fresh(draw: Any = draw) -> dict[str, paired.Call]:
                logits, target = draw()
                return {name: make(logits, target, True) for name, make in forms().items()}

            wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
            rounds = paired.measure(fresh, seconds=seconds, wait=wait, least=3)
            found = {
                name: {"seconds": asdict(rounds.seconds(name)), "bytes": memory.peak(call, device)}
                for name, call in fresh().items()
            }
            yield {"axis": axis, "size": size, "shape": list(shape), "dtype": dtype, "found": found}


def exponents(points: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return the exponents of seconds and bytes with their standard errors, for each axis and form."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for axis in dict.fromkeys(point["axis"] for point in points):
        of_axis = [point for point in points if point["axis"] == axis]
        sizes = [point["size"] for point in of_axis]
        for name in of_axis[0]["found"]:
            values = {
                "seconds": [point["found"][name]["seconds"]["median"] for point in of_axis],
                "bytes": [point["found"][name]["bytes"] for point in of_axis],
            }
            fits = {kind: list(exponent(sizes, of)) for kind, of in values.items()}
            found.setdefault(axis, {})[name] = fits
    return found


def exponent(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """Return `k` of `value ∝ size^k`, and its standard error, by least squares on the logarithms.

    >>> exponent([1, 10, 100], [3.0, 30.0, 300.0])
    (1.0, 0.0)
    """
    x, y = np.log(sizes), np.log(values)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    freedom = max(1, len(sizes) - 2)
    return round(slope, 4), round(float(np.sqrt(rest @ rest / freedom / (x @ x))), 4)
