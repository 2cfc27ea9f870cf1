"""Calls for which a linear cross-entropy must raise an error.

Most calls are bad inputs of a cross-entropy. In the other calls, an argument of the linear layer is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from crossent.cases.bad_inputs import BAD_INPUTS, VALUE_OR_RUNTIME_ERROR, BadInput
from crossent.cases.operation import LINEAR_CROSS_ENTROPY


def _right() -> dict[str, Any]:
    """Return the arguments of a correct call."""
    return {
        "input": torch.zeros((3, 2), dtype=torch.float32),
        "linear_weight": torch.zeros((4, 2), dtype=torch.float32),
        "target": torch.tensor([0, 1, 2]),
    }


def _with(name: str, *sizes: int, dtype: torch.dtype = torch.float32) -> Callable[[], dict[str, Any]]:
    return lambda: {name: torch.zeros(sizes, dtype=dtype)}


# The bad inputs of a cross-entropy that are correct calls of F.linear_cross_entropy: its default is ignore_index=None.
_RIGHT_HERE = ("ignore_index_that_is_none",)
_INHERITED = (
    replace(bad, id=f"linear_{bad.id}", operation=LINEAR_CROSS_ENTROPY, right=_right)
    for bad in BAD_INPUTS
    if bad.id not in _RIGHT_HERE and "input" not in bad.make()
)


def _own(id: str, kind: str, make: Callable[[], dict[str, Any]]) -> BadInput:
    return BadInput(f"linear_{id}", kind, make, VALUE_OR_RUNTIME_ERROR, operation=LINEAR_CROSS_ENTROPY, right=_right)


LINEAR_BAD_INPUTS = (
    *_INHERITED,
    _own("input_of_another_width", "size_errors", _with("input", 3, 3)),
    _own("input_of_the_width_of_the_logits", "size_errors", _with("input", 3, 4)),
    _own("weight_of_another_width", "size_errors", _with("linear_weight", 4, 3)),
    _own("weight_transposed", "size_errors", _with("linear_weight", 2, 4)),
    _own("bias_too_short", "size_errors", _with("linear_bias", 3)),
    _own("bias_too_long", "size_errors", _with("linear_bias", 5)),
    _own("bias_for_each_row", "size_errors", _with("linear_bias", 3, 5)),
    _own("input_of_another_dtype", "dtype_errors", _with("input", 3, 2, dtype=torch.float64)),
    _own("input_of_half_precision", "dtype_errors", _with("input", 3, 2, dtype=torch.float16)),
    _own("input_of_integers", "dtype_errors", _with("input", 3, 2, dtype=torch.int64)),
    _own("linear_weight_of_another_dtype", "dtype_errors", _with("linear_weight", 4, 2, dtype=torch.float64)),
    _own("linear_weight_of_integers", "dtype_errors", _with("linear_weight", 4, 2, dtype=torch.int64)),
    _own("bias_of_another_dtype", "dtype_errors", _with("linear_bias", 4, dtype=torch.float64)),
)
