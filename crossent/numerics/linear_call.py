"""The arguments of one call of a linear cross-entropy as numpy arrays, for the oracle and the bounds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The results of a call: attributes of both `LinearAnswer` and `LinearBounds`, by which the tests compare the two.
LINEAR_RESULTS = ("loss", "grad_input", "grad_weight", "grad_bias")


@dataclass(frozen=True, eq=False)
class LinearCall:
    """The arguments of one call of `linear_cross_entropy`: `N` hidden states of length `H`, and `V` classes.

    The logits are `input @ linear_weight.T + linear_bias`, (N, V), and the loss is their cross-entropy. A float64
    tensor becomes a float64 array. Tensors of narrower dtypes become float32 arrays.

    Attributes:
        input: (N, H), the hidden states.
        linear_weight: (V, H).
        linear_bias: (V,).
        index: (N,), int64, the true classes.
        probabilities: (N, V), the class probabilities, in place of `index`.
        weight: (V,), the class weights.
        ignore_index: Rows with this index have the loss 0 and do not count in the mean.
        upstream: The upstream gradient of the loss: (N,) for the reduction "none", otherwise a number.

    Raises:
        ValueError: `input`, `linear_weight` or `linear_bias` has a wrong shape or dtype, or contains inf or NaN.
    """

    input: NDArray[Any]
    linear_weight: NDArray[Any]
    linear_bias: NDArray[Any] | None = None
    index: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    weight: NDArray[Any] | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    upstream: NDArray[Any] | float = 1.0

    def __post_init__(self) -> None:
        if self.input.ndim != 2:
            raise ValueError(f"input: got shape {self.input.shape}; allowed is (N, H)")
        if self.linear_weight.ndim != 2 or self.linear_weight.shape[1] != self.features or not self.classes:
            shape = self.linear_weight.shape
            raise ValueError(f"linear_weight: got shape {shape}; allowed is (V, {self.features}) with V at least 1")
        if self.linear_bias is not None and self.linear_bias.shape != (self.classes,):
            raise ValueError(f"linear_bias: got shape {self.linear_bias.shape}; allowed is {(self.classes,)}")
        for name in ("input", "linear_weight", "linear_bias"):
            value = getattr(self, name)
            if value is not None and value.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name}: got {value.dtype}; allowed are float32 and float64")
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name}: got inf or NaN; allowed are finite numbers")

    @property
    def rows(self) -> int:
        """The number of rows, N."""
        return len(self.input)

    @property
    def features(self) -> int:
        """The length of a hidden state, H."""
        return int(self.input.shape[1])

    @property
    def classes(self) -> int:
        """The number of classes, V."""
        return len(self.linear_weight)

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """The mask of the kept rows, (N,): False where the class index is `ignore_index`."""
        return np.ones(self.rows, bool) if self.index is None else np.asarray(self.index != self.ignore_index)
