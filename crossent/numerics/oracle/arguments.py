"""The arguments of one call as numpy arrays, laid out as rows, and the exact denominator of a mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flint
import numpy as np
from numpy.typing import NDArray

from crossent.numerics.oracle.arithmetic import Ball, BallArithmetic, Mask

# The precision, in bits, in which a sum of up to 2^63 float64 numbers is exact: the bits of this sum range from 2^-1074
# to 2^1087.
EXACT_BITS = 2300


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call, laid out as `R` rows of `C` classes.

    Attributes:
        logits: (R, C), which may contain inf and NaN. float64 for a float64 tensor, float32 for narrower dtypes.
        index: (R,), int64, the true classes.
        probabilities: (R, C), any finite numbers, in place of `index`.
        weight: (C,), the class weights, which are finite and have any sign.
        ignore_index: Rows with this index have the loss 0 and do not count in the mean.
        label_smoothing: From 0 to 1. The exact value uses this float64 number without rounding.
        upstream: The upstream gradient of the result: (R,) for the reduction "none", otherwise a number.

    Raises:
        ValueError: An argument has a wrong shape, dtype or value.
        IndexError: An index is outside `[0, C)` and is not `ignore_index`.
    """

    logits: NDArray[Any]
    index: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    weight: NDArray[Any] | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    upstream: NDArray[Any] | float = 1.0

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ValueError(f"logits: got shape {self.logits.shape}; allowed is (R, C)")
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction: got {self.reduction!r}; allowed are 'none', 'mean' and 'sum'")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}; allowed is 0 to 1")
        if (self.index is None) == (self.probabilities is None):
            got = "neither" if self.index is None else "both"
            raise ValueError(f"index and probabilities: got {got}; allowed is exactly one of them")
        if self.probabilities is not None and self.ignore_index >= 0:
            raise ValueError(f"ignore_index: got {self.ignore_index} with probabilities; allowed is a negative integer")
        rows, classes = self.logits.shape
        shapes = {"index": (rows,), "probabilities": (rows, classes), "weight": (classes,)}
        shapes["upstream"] = (rows,) if self.reduction == "none" else ()
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"{name}: got shape {np.shape(value)}; allowed is {shape}")
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name}: got inf or NaN; allowed are finite numbers")
        for name in ("logits", "probabilities", "weight"):
            value = getattr(self, name)
            if value is not None and value.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name}: got {value.dtype}; allowed are float32 and float64")
        if self.index is not None and self.index.dtype != np.int64:
            raise ValueError(f"index: got {self.index.dtype}; allowed is int64")
        if self.index is not None:
            outside = self.index[self.kept & ((self.index < 0) | (self.index >= classes))]
            if outside.size:
                allowed = f"allowed are the classes 0 to {classes - 1} and ignore_index, {self.ignore_index}"
                if not classes:
                    allowed = f"the logits have no classes, so only ignore_index, {self.ignore_index}, is allowed"
                raise IndexError(f"index: got {outside[0]}; {allowed}")

    @cached_property
    def kept(self) -> Mask:
        """The mask of the kept rows, (R,): False where the class index is `ignore_index`."""
        return np.ones(len(self.logits), bool) if self.index is None else self.index != self.ignore_index

    @cached_property
    def float64_suffices(self) -> bool:
        """Whether :class:`crossent.numerics.oracle.formula.Formula` proves the error in float64 for this call."""
        arrays = (self.logits, self.probabilities, self.weight)
        narrow = all(array is None or array.dtype == np.float32 for array in arrays)
        return narrow and bool((np.abs(np.asarray(self.upstream, np.float64)) <= 2.0**128).all())


@dataclass(frozen=True)
class Denominator:
    """The exact denominator of a mean, or 1 for the other reductions.

    The denominator of a mean is the number of kept rows. With class indices and class weights, the denominator is the
    total weight of the kept rows' true classes. A denominator of 0 makes the mean NaN:

    * No row is kept, or every weight in the sum is 0. torch computes 0/0, so NaN is exact, with the radius 0.
    * Weights of both signs cancel. torch's result depends on rounding, so there is no exact value. The NaN has the
      radius inf.

    Attributes:
        value: The exact denominator, or 1 in place of 0.
        ball: The exact denominator as a ball.
        nan_radius: The radius of the NaN if the denominator is 0, otherwise None.
    """

    value: flint.arb
    ball: Ball
    nan_radius: float | None

    @classmethod
    def of(cls, arguments: Arguments) -> Denominator:
        """Return the denominator of a call."""
        exactly, nan_radius = BallArithmetic(EXACT_BITS), None
        with exactly.context():
            value = np.array(flint.arb(1), object)
            if arguments.reduction == "mean":
                kept = arguments.kept
                value = np.array(flint.arb(int(kept.sum())), object)
                if arguments.index is not None and arguments.weight is not None:
                    classes, counts = np.unique(arguments.index[kept], return_counts=True)
                    weights = arguments.weight[classes]
                    value = exactly.total(exactly.numbers(weights) * counts)
                    nan_radius = np.inf if weights.any() else 0.0
            ball = exactly.ball(value)
        if value == 0:
            return cls(flint.arb(1), ball, nan_radius or 0.0)
        return cls(value.item(), ball, None)
