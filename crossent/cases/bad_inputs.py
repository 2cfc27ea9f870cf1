"""Bad inputs: calls for which a cross-entropy must raise an error, and the errors that are allowed.

The documentation of torch forbids these calls. torch raises the listed errors, except in its known failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, Operation

VALUE_OR_RUNTIME_ERROR = (ValueError, RuntimeError)
# The kinds of mistakes in a call. Each kind is a feature: a user may declare that a subject lacks its errors.
BAD_INPUT_KINDS = {
    "index_errors": "An error for an index that is neither a class nor ignored.",
    "index_dtype_errors": "An error for class indices whose dtype is neither int64 nor uint8.",
    "dtype_errors": "An error for a wrong dtype of an argument other than class indices.",
    "size_errors": "An error for arguments whose shapes do not fit together.",
    "option_errors": "An error for a wrong value of an option.",
}


@dataclass(frozen=True)
class BadInput:
    """One call for which a subject must raise an error.

    Attributes:
        id: a name that says what is wrong with the call.
        kind: the kind of the mistake, one of `BAD_INPUT_KINDS`.
        make: returns the arguments that differ from a correct call, by name.
        raises: the allowed errors.
        poisons: whether the call causes a device-side assert on CUDA and XPU, after which the process cannot use the
            device.
        dtype: the dtype under which the report counts the call.
        right: returns the arguments of a correct call, by name.
    """

    id: str
    kind: str
    make: Callable[[], dict[str, Any]]
    raises: tuple[type[Exception], ...] = (RuntimeError,)
    poisons: bool = False
    dtype: str = "float32"
    operation: Operation = CROSS_ENTROPY
    right: Callable[[], dict[str, Any]] = lambda: {"input": _zeros(3, 4), "target": torch.tensor([0, 1, 2])}

    def asserts(self, device: str) -> bool:
        """Return whether the call causes a device-side assert on this device."""
        return self.poisons and torch.device(device).type in ("cuda", "xpu")

    def allowed(self, device: str) -> tuple[type[Exception], ...]:
        """Return the errors that are allowed on this device."""
        # The assert raises RuntimeError, or since torch 2.8 its subclass AcceleratorError.
        return (*self.raises, RuntimeError) if self.asserts(device) else self.raises

    def build(self, device: str = "cpu") -> Inputs:
        """Return the arguments of the bad call, on `device`."""
        given = {**self.right(), **self.make()}
        placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
        first, target = placed.pop("input"), placed.pop("target")
        options = {"reduction": "mean", "label_smoothing": 0.0, **placed}
        return Inputs(first, target, options, torch.ones((), device=device))


def _zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(sizes, dtype=dtype)  # an explicit dtype, because a user may change torch's default dtype


def _target(*classes: int, dtype: torch.dtype = torch.int64, **options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": torch.tensor(classes, dtype=dtype), **options}


def _shapes(
    logits: tuple[int, ...], target: tuple[int, ...], dtype: torch.dtype = torch.int64, *, fill: int = 0
) -> Callable[[], dict[str, Any]]:
    return lambda: {"input": _zeros(*logits), "target": torch.full(target, fill, dtype=dtype)}


def _probabilities(*sizes: int, **options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": _zeros(*(sizes or (3, 4))), **options}


def _weight(
    *sizes: int, dtype: torch.dtype = torch.float32, dense: bool = False, **options: Any
) -> Callable[[], dict[str, Any]]:
    target = _probabilities() if dense else dict
    return lambda: {"weight": torch.ones(sizes, dtype=dtype), **target(), **options}


def _logits(dtype: torch.dtype, *, dense: bool = False) -> Callable[[], dict[str, Any]]:
    target = _probabilities() if dense else dict
    return lambda: {"input": _zeros(3, 4, dtype=dtype), **target()}


def _option(**options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: options


def _no_class(id: str, make: Callable[[], dict[str, Any]]) -> BadInput:
    """Return a call whose target has an index that is neither a class nor ignored."""
    return BadInput(f"class_{id}", "index_errors", make, (IndexError,), poisons=True)


def _half(id: str, kind: str, dtype: str, make: Callable[[], dict[str, Any]]) -> BadInput:
    """Return a bad call with logits in `dtype`, float16 or bfloat16."""
    # A loss that converts the logits to float32 before it checks the arguments may miss a wrong dtype.
    logits = {"dtype": DTYPES[dtype]}
    return BadInput(f"{id}_of_{dtype}", kind, lambda: {"input": _zeros(3, 4, **logits), **make()}, dtype=dtype)


_HALVES = ("float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "uint16", "uint32", "uint64")  # uint16 to uint64 exist since torch 2.3

BAD_INPUTS = (
    _no_class("beyond_the_last", _target(0, 1, 4)),
    _no_class("negative", _target(0, -1, 2)),
    _no_class("negative_other_than_ignore_index", _target(0, -99, 2)),
    _no_class("huge", _target(0, 2**32, 2)),
    # torch has a kernel for each reduction. The kernel for "none" accepted any negative class: pytorch#15508.
    _no_class("negative_unreduced", _target(0, -4, 2, reduction="none", ignore_index=255)),
    _no_class("of_the_default_ignore_index", _target(0, -100, 2, ignore_index=1)),
    _no_class("of_uint8_that_equals_ignore_index", _target(0, 156, 2, dtype=torch.uint8)),  # 156 = 256 - 100
    _no_class("smoothed", _target(0, 1, 4, reduction="sum", label_smoothing=0.1)),
    # A loss may read weight[target] before the logit, after the logit, or for all rows at once.
    _no_class("weighted", lambda: {**_target(0, 1, 4)(), **_weight(4)()}),
    _no_class("negative_weighted", lambda: {**_target(0, -1, 2)(), **_weight(4)()}),
    _no_class("weighted_unreduced", lambda: {**_target(0, 1, 4, reduction="none")(), **_weight(4)()}),
    _no_class("weighted_smoothed", lambda: {**_target(0, 1, 4, label_smoothing=0.1)(), **_weight(4)()}),
    _no_class("in_further_dimensions", _shapes((2, 4, 3), (2, 3), fill=4)),
    _no_class("unbatched", _shapes((4,), (), fill=4)),
    _no_class("among_none", _shapes((3, 0), (3,))),
    *(
        BadInput(f"target_{of}", "index_dtype_errors", _target(0, 1, 2, dtype=getattr(torch, of)))
        for of in INTEGERS
        if hasattr(torch, of)
    ),
    BadInput("target_bool", "index_dtype_errors", _shapes((3, 4), (3,), torch.bool)),
    BadInput("target_of_floats_without_classes", "dtype_errors", _shapes((3, 4), (3,), torch.float32)),
    BadInput("probabilities_of_integers", "dtype_errors", _shapes((3, 4), (3, 4), torch.int64)),
    BadInput("probabilities_of_uint8", "dtype_errors", _shapes((3, 4), (3, 4), torch.uint8)),
    BadInput("probabilities_complex", "dtype_errors", _shapes((3, 4), (3, 4), torch.complex64)),
    BadInput("target_of_another_batch", "size_errors", _target(0, 1), VALUE_OR_RUNTIME_ERROR),
    BadInput("target_of_a_batch_of_one", "size_errors", _target(0), VALUE_OR_RUNTIME_ERROR),
    BadInput("target_with_a_dimension_too_many", "size_errors", _shapes((3, 4), (3, 1))),
    BadInput("target_without_a_dimension", "size_errors", _shapes((3, 4), ()), VALUE_OR_RUNTIME_ERROR),
    BadInput("target_of_another_size", "size_errors", _shapes((2, 4, 3), (2, 4)), VALUE_OR_RUNTIME_ERROR),
    BadInput("target_without_further_dimensions", "size_errors", _shapes((2, 4, 3), (2,)), VALUE_OR_RUNTIME_ERROR),
    BadInput("target_batched_of_unbatched_logits", "size_errors", _shapes((4,), (2,)), VALUE_OR_RUNTIME_ERROR),
    BadInput("logits_without_a_dimension", "size_errors", _shapes((), ()), VALUE_OR_RUNTIME_ERROR),
    BadInput("probabilities_of_another_width", "size_errors", _probabilities(3, 5), VALUE_OR_RUNTIME_ERROR),
    BadInput("probabilities_of_another_batch", "size_errors", _probabilities(2, 4), VALUE_OR_RUNTIME_ERROR),
    BadInput("probabilities_of_a_batch_of_one", "size_errors", _probabilities(1, 4), VALUE_OR_RUNTIME_ERROR),
    BadInput(
        "probabilities_with_classes_last",
        "size_errors",
        _shapes((2, 4, 3), (2, 3, 4), torch.float32),
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput(
        "probabilities_of_another_width_unbatched",
        "size_errors",
        _shapes((4,), (3,), torch.float32),
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput("probabilities_with_ignore_index", "option_errors", _probabilities(ignore_index=1)),
    BadInput("probabilities_with_ignore_index_zero", "option_errors", _probabilities(ignore_index=0)),
    BadInput("probabilities_with_ignore_index_255", "option_errors", _probabilities(ignore_index=255)),
    BadInput("weight_too_short", "size_errors", _weight(3), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_too_long", "size_errors", _weight(5), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_of_one", "size_errors", _weight(1), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_without_a_dimension", "size_errors", _weight(), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_with_a_dimension_too_many", "size_errors", _weight(3, 4), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_too_short_smoothed", "size_errors", _weight(3, label_smoothing=0.1), VALUE_OR_RUNTIME_ERROR),
    BadInput(
        "weight_too_short_unbatched",
        "size_errors",
        lambda: {**_shapes((4,), ())(), **_weight(3)()},
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput("weight_too_short_with_probabilities", "size_errors", _weight(3, dense=True), VALUE_OR_RUNTIME_ERROR),
    BadInput("weight_of_one_with_probabilities", "size_errors", _weight(1, dense=True), VALUE_OR_RUNTIME_ERROR),
    BadInput(
        "weight_for_each_row_with_probabilities", "size_errors", _weight(3, 4, dense=True), VALUE_OR_RUNTIME_ERROR
    ),
    BadInput("weight_of_another_dtype", "dtype_errors", _weight(4, dtype=torch.float64)),
    BadInput("weight_of_another_dtype_smoothed", "dtype_errors", _weight(4, dtype=torch.float64, label_smoothing=0.1)),
    BadInput("weight_of_half_precision", "dtype_errors", _weight(4, dtype=torch.float16)),
    BadInput("weight_of_integers", "dtype_errors", _weight(4, dtype=torch.int64)),
    *(_half("weight_of_float32", "dtype_errors", dtype, _weight(4)) for dtype in _HALVES),
    *(_half("target_int32", "index_dtype_errors", dtype, _target(0, 1, 2, dtype=torch.int32)) for dtype in _HALVES),
    BadInput("logits_of_integers", "dtype_errors", _logits(torch.int64)),
    BadInput("logits_bool", "dtype_errors", _logits(torch.bool)),
    BadInput("logits_complex", "dtype_errors", _logits(torch.complex64)),
    BadInput("logits_of_integers_with_probabilities", "dtype_errors", _logits(torch.int64, dense=True)),
    BadInput("logits_complex_with_probabilities", "dtype_errors", _logits(torch.complex64, dense=True)),
    BadInput("reduction_unknown", "option_errors", _option(reduction="average"), (ValueError,)),
    BadInput(
        "reduction_unknown_with_probabilities", "option_errors", _probabilities(reduction="average"), (ValueError,)
    ),
    BadInput("reduction_in_capitals", "option_errors", _option(reduction="Mean"), (ValueError,)),
    BadInput("reduction_empty", "option_errors", _option(reduction=""), (ValueError,)),
    BadInput("reduction_that_is_none", "option_errors", _option(reduction=None), (ValueError,)),
    BadInput("label_smoothing_above_one", "option_errors", _option(label_smoothing=1.5), VALUE_OR_RUNTIME_ERROR),
    BadInput(
        "label_smoothing_above_one_by_an_ulp",
        "option_errors",
        _option(label_smoothing=1 + 2.0**-52),
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput(
        "label_smoothing_above_one_with_probabilities",
        "option_errors",
        _probabilities(label_smoothing=1.5),
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput("label_smoothing_infinite", "option_errors", _option(label_smoothing=math.inf), VALUE_OR_RUNTIME_ERROR),
    BadInput("label_smoothing_negative", "option_errors", _option(label_smoothing=-0.1), VALUE_OR_RUNTIME_ERROR),
    BadInput(
        "label_smoothing_negative_by_little", "option_errors", _option(label_smoothing=-1e-9), VALUE_OR_RUNTIME_ERROR
    ),
    BadInput(
        "label_smoothing_negative_with_probabilities",
        "option_errors",
        _probabilities(label_smoothing=-0.1),
        VALUE_OR_RUNTIME_ERROR,
    ),
    BadInput("label_smoothing_nan", "option_errors", _option(label_smoothing=math.nan), VALUE_OR_RUNTIME_ERROR),
    BadInput("label_smoothing_of_text", "option_errors", _option(label_smoothing="0.1"), (TypeError,)),
    BadInput("ignore_index_of_a_fraction", "option_errors", _option(ignore_index=1.5), (TypeError,)),
    BadInput("ignore_index_that_is_none", "option_errors", _option(ignore_index=None), (TypeError,)),
)
