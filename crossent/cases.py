"""Cases: concrete inputs of a cross-entropy, each rebuilt bit for bit from its id.

In the grid every triple of options meets: most real bugs sit where weight, ignored rows, smoothing and the reduction
touch (pytorch#73205).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Each shape is one lesson: the class axis, its place among further dimensions, and the sizes that hide bugs.
SHAPES = {
    "C": (5,),
    "NC": (7, 5),
    "NCd": (3, 5, 4),
    "NCdd": (2, 5, 3, 2),
    "NCddd": (2, 3, 2, 2, 3),
    "one_class": (4, 1),
    "square": (5, 5),  # N == C: an index vector must not be taken for a dense row
    "empty": (0, 5),
}
# What the logits look like: scale and common offset. exp overflows without the shift by the maximum where the
# offset is large; wide rows have gaps beyond 100, where every other exponential underflows in float32.
VALUES = {"normal": (3.0, 0.0), "offset": (3.0, 1e4), "wide": (60.0, 0.0)}
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
TARGETS = ("int64", "uint8", "probabilities")
WEIGHTS = ("unweighted", "weighted")
# Which rows are ignored, and the `ignore_index` that does it. 255 is no class but fits into uint8.
IGNORED = {"no_ignored": -100, "ignored": 255, "ignored_class": 1, "all_ignored": 255}
SMOOTHING = (0.0, 0.1, 1.0)
# The upstream gradient: one number, a number for each row, or one number at every row with stride 0.
UPSTREAMS = {"none": ("rows", "stride0"), "mean": ("scalar",), "sum": ("scalar",)}


@dataclass(frozen=True)
class Inputs:
    """The tensors and options of one case, on one device."""

    logits: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor


@dataclass(frozen=True)
class Case:
    """One concrete input of a cross-entropy; :meth:`build` makes the tensors."""

    dtype: str
    shape: str
    values: str
    target: str
    reduction: str
    weight: str
    ignored: str
    label_smoothing: float
    upstream: str
    seed: int = 0

    @property
    def id(self) -> str:
        """The case in words, enough to build it again."""
        return "-".join(
            (
                self.dtype,
                self.shape,
                self.values,
                self.target,
                self.reduction,
                self.weight,
                self.ignored,
                f"smooth{self.label_smoothing:g}",
                self.upstream,
                f"seed{self.seed}",
            )
        )

    def build(self, device: str = "cpu") -> Inputs:
        """The case's inputs. The stream of `RandomState` is frozen by numpy's policy (NEP 19), so the id is enough."""
        # The options but not the dtype enter the stream: one row of options sees the same numbers in each dtype.
        random = np.random.RandomState(zlib.crc32(self.id.removeprefix(self.dtype).encode()))
        dtype = DTYPES[self.dtype]
        shape = SHAPES[self.shape]
        classes = shape[min(1, len(shape) - 1)]
        rows = (shape[0], *shape[2:]) if len(shape) > 1 else ()

        def tensor(values: Any, dtype: torch.dtype = dtype) -> Tensor:
            return torch.from_numpy(np.asarray(values)).to(dtype).to(device)

        scale, offset = VALUES[self.values]
        logits = tensor(scale * random.standard_normal(shape) + offset)
        ignore_index = IGNORED[self.ignored]
        if self.target == "probabilities":
            raw = random.exponential(size=shape)
            target = tensor(raw / raw.sum(axis=min(1, len(shape) - 1), keepdims=True))
        else:
            index = random.randint(0, classes, size=rows)
            if self.ignored in ("ignored", "ignored_class"):
                index = np.where(random.uniform(size=rows) < 0.4, ignore_index, index)
            elif self.ignored == "all_ignored":
                index = np.full(rows, ignore_index)
            target = tensor(index, torch.uint8 if self.target == "uint8" else torch.int64)
        options: dict[str, Any] = {"reduction": self.reduction, "label_smoothing": self.label_smoothing}
        if self.ignored != "no_ignored":
            options["ignore_index"] = ignore_index
        if self.weight == "weighted":
            options["weight"] = tensor(2.0 ** random.uniform(-4, 4, size=classes))
        if self.upstream == "rows":
            upstream = tensor(random.uniform(-2, 2, size=rows))
        else:
            upstream = tensor(random.uniform(-2, 2))
            if self.upstream == "stride0":
                upstream = upstream.expand(rows)
        return Inputs(logits, target, options, upstream)


def grid(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """A third of all valid combinations of the options, over every dtype and shape, and over the values of one shape.

    Those whose places in their lists add up to a multiple of three: whichever three are chosen, an option with three or
    more values is left to make the sum so, and every triple stays, as a test counts.
    """
    shapes = [(shape, "normal") for shape in SHAPES] + [("NC", values) for values in VALUES if values != "normal"]
    ways = [(reduction, upstream) for reduction, upstreams in UPSTREAMS.items() for upstream in upstreams]
    axes: tuple[Sequence[Any], ...] = (shapes, TARGETS, WEIGHTS, tuple(IGNORED), SMOOTHING, ways)
    for dtype in dtypes:
        for places in itertools.product(*(range(len(axis)) for axis in axes)):
            (shape, values), target, weight, ignored, smoothing, (reduction, upstream) = (
                axis[place] for axis, place in zip(axes, places, strict=True)
            )
            if target == "probabilities" and ignored != "no_ignored":
                continue  # class probabilities have no ignore_index
            if sum(places) % 3 == 0:
                yield Case(dtype, shape, values, target, reduction, weight, ignored, smoothing, upstream, seed)
