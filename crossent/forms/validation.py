"""The validation of the arguments of a form, and the error messages.

For tensors, the exceptions have the same classes as in `F.cross_entropy` and `F.linear_cross_entropy`. Each message
names the argument, the given value or its type, and the allowed values. :mod:`crossent.forms.rows` checks the range of
the class indices in a tensor.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int64, torch.uint8)
REDUCTIONS = ("none", "mean", "sum")
_ALLOWED = "float16, bfloat16, float32 and float64"


def as_float(name: str, value: object) -> float:
    """Return the argument `name` as a float; raise TypeError for a value that is no real number, such as a string."""
    try:
        if not hasattr(value, "__float__"):
            raise TypeError
        return float(value)
    except OverflowError:
        raise TypeError(f"{name}: got a number beyond the range of a float; allowed is one in this range") from None
    except (TypeError, ValueError, RuntimeError):  # float() of a tensor raises these
        raise TypeError(f"{name}: got {type(value).__name__}; allowed is a real number") from None


def as_int(name: str, value: object, allowed: str = "an int") -> int:
    """Return the argument `name` as an int; raise TypeError for other values and for a bool.

    `allowed` describes the allowed values in the message.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # raises TypeError for a value without __index__
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: got {type(value).__name__}; allowed is {allowed}") from None


def check_options(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> tuple[int, float]:
    """Check types, options, layouts and devices; return `ignore_index` as an int and `label_smoothing` as a float."""
    for name, value in (("input", input), ("target", target), ("weight", weight)):
        if not isinstance(value, Tensor) and not (name == "weight" and value is None):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed is a torch.Tensor")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}; allowed are 'none', 'mean' and 'sum'")
    if type(ignore_index) is not int:  # Dynamo cannot trace as_int on an int that it traces
        ignore_index = as_int("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: got {ignore_index}; allowed are 64-bit integers")
    if type(label_smoothing) is not float:  # Dynamo cannot trace as_float on a float that it traces
        label_smoothing = as_float("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:  # refuses NaN and negative numbers, which torch accepts
        raise RuntimeError(f"label_smoothing: got {label_smoothing}; allowed is 0 to 1")
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.layout != torch.strided:
            raise NotImplementedError(f"{name}: got layout {tensor.layout}; allowed is a dense tensor")
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name}: got a tensor on {tensor.device}; allowed is {input.device}, the device of input"
            )
    return ignore_index, label_smoothing


def check_linear(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> None:
    """Check the types, sizes, layouts, dtypes and devices of the tensors of the linear layer."""
    for name, value in (("input", input), ("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if not isinstance(value, Tensor) and not (name == "linear_bias" and value is None):
            raise TypeError(f"{name}: got {type(value).__name__}; allowed is a torch.Tensor")
    if input.dim() not in (1, 2):
        raise RuntimeError(f"input: got shape {tuple(input.shape)}; allowed are (H) and (N, H)")
    shape, features = tuple(linear_weight.shape), input.shape[-1]
    if len(shape) < 2 or (len(shape) > 2 and input.dim() == 1) or shape[-1] != features or 0 in shape[:-1]:
        allowed = f"are (C, {features}) and (C, d1, …, dK, {features}) with C, d1, …, dK at least 1"
        allowed = f"is (C, {features}) with C at least 1" if input.dim() == 1 else allowed
        raise RuntimeError(f"linear_weight: got shape {shape}; allowed {allowed}")
    if linear_bias is not None and tuple(linear_bias.shape) != shape[:-1]:
        raise RuntimeError(f"linear_bias: got shape {tuple(linear_bias.shape)}; allowed is {shape[:-1]}")
    for name, value in (("input", input), ("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if value is None:
            continue
        if value.layout != torch.strided:
            raise NotImplementedError(f"{name}: got layout {value.layout}; allowed is a dense tensor")
        if _dtype_under_autocast(value) != _dtype_under_autocast(input):
            raise RuntimeError(f"{name}: got {_name(value.dtype)}; allowed is {_name(input.dtype)}, the dtype of input")
        if value.device != input.device:
            allowed = f"{input.device}, the device of input"
            raise RuntimeError(f"{name}: got a tensor on {value.device}; allowed is {allowed}")


def check_target(input: Tensor, target: Tensor, has_probabilities: bool, ignore_index: int) -> None:
    """Check the target and the dimensions of `input`, and, with class probabilities, also `ignore_index`."""
    if input.dim() == 0:
        # A class index of shape () has the shape of input. For torch, the index is then a probability of a wrong dtype.
        raise (RuntimeError if has_probabilities and not target.dtype.is_floating_point else IndexError)(
            "input: got shape (); allowed are (C), (N, C) and (N, C, d1, …, dK)"
        )
    if has_probabilities:
        if target.dtype not in FLOATS:
            raise RuntimeError(
                f"target: got {_name(target.dtype)} with the shape {tuple(target.shape)} of class probabilities; "
                f"allowed for class probabilities are {_ALLOWED}"
            )
        if ignore_index >= 0:
            raise RuntimeError(
                f"ignore_index: got {ignore_index} with class probabilities; "
                "allowed is a negative int, which has no effect"
            )
        return
    rows = (input.shape[0], *input.shape[2:]) if input.dim() > 1 else ()
    if tuple(target.shape) != rows and not (input.dim() == 1 and tuple(target.shape) == (1,)):
        wrong_batch = target.dim() <= 1 if input.dim() == 1 else target.shape[:1] != input.shape[:1]
        raise (ValueError if wrong_batch else RuntimeError)(
            f"target: got shape {tuple(target.shape)} with logits of shape {tuple(input.shape)}; "
            f"allowed are {rows}{'' if rows else ' and (1,)'} for class indices and {tuple(input.shape)} for class "
            "probabilities"
        )
    if target.dtype not in INDEX_DTYPES:
        raise RuntimeError(f"target: got {_name(target.dtype)}; allowed for class indices are int64 and uint8")


def check_dtypes(input: Tensor, probabilities: Tensor | None, weight: Tensor | None) -> torch.dtype:
    """Check `input` and `weight`, and return the dtype of the result. `probabilities` is None for class indices."""
    classes = input.shape[min(1, input.dim() - 1)]
    if input.dtype not in FLOATS:
        raise NotImplementedError(f"input: got {_name(input.dtype)}; allowed are {_ALLOWED}")
    if input.layout != torch.strided:
        raise NotImplementedError(f"input: got layout {input.layout}; allowed is a dense tensor")
    if weight is not None and tuple(weight.shape) != (classes,):
        raise RuntimeError(f"weight: got shape {tuple(weight.shape)}; allowed is {(classes,)}, a weight for each class")
    dtype = _dtype_under_autocast(input)
    if probabilities is not None:
        dtype = _promote(dtype, _dtype_under_autocast(probabilities))
        if weight is not None:
            if weight.dtype not in FLOATS and (weight.dtype.is_complex or weight.dtype.is_floating_point):
                raise RuntimeError(f"weight: got {_name(weight.dtype)}; allowed are {_ALLOWED}")
            dtype = _promote(dtype, _dtype_under_autocast(weight))
    elif weight is not None and _dtype_under_autocast(weight) != dtype:
        raise RuntimeError(f"weight: got {_name(weight.dtype)}; allowed is {_name(input.dtype)}, the dtype of input")
    return dtype


def check_row(
    input: Sequence[float],
    target: int | Sequence[float],
    weight: Sequence[float] | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> tuple[list[float], int | list[float] | None, list[float], float]:
    """Check the arguments of :func:`crossent.scalar`; return logits, target, weights and `label_smoothing`.

    The returned target is None if the row is ignored.
    """
    x = _numbers("input", input)
    w = [1.0] * len(x) if weight is None else _numbers("weight", weight, len(x))
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}; allowed are 'none', 'mean' and 'sum'")
    label_smoothing = as_float("label_smoothing", label_smoothing)
    ignore_index = as_int("ignore_index", ignore_index)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: got {label_smoothing}; allowed is 0 to 1")
    if isinstance(target, Sequence) and not isinstance(target, str | bytes):
        if ignore_index >= 0:
            allowed = "a negative int, which has no effect"
            raise ValueError(f"ignore_index: got {ignore_index} with class probabilities; allowed is {allowed}")
        return x, _numbers("target", target, len(x)), w, label_smoothing
    if (target := as_int("target", target, "an int or a sequence of class probabilities")) == ignore_index:
        return x, None, w, label_smoothing
    if 0 <= target < len(x):
        return x, target, w, label_smoothing
    raise IndexError(
        f"target: got {target}; allowed are the classes 0 to {len(x) - 1} and ignore_index, {ignore_index}"
    )


def _numbers(name: str, values: Sequence[float], length: int | None = None) -> list[float]:
    """Return the argument `name` as a list of floats, of the length `length`, or by default of any length from 1."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name}: got {type(values).__name__}; allowed is a sequence of numbers")
    numbers = [as_float(f"{name}[{at}]", value) for at, value in enumerate(values)]
    if not numbers or len(numbers) != (length or len(numbers)):
        allowed = f"length {length}" if length else "a length of 1 or more"
        raise ValueError(f"{name}: got length {len(numbers)}; allowed is {allowed}, one number for each class")
    return numbers


def _promote(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    if one == other:
        return one
    if one in FLOATS and other in FLOATS:  # Dynamo of torch 2.1 cannot trace torch.promote_types
        return torch.float64 if torch.float64 in (one, other) else torch.float32
    return torch.promote_types(one, other)


def _dtype_under_autocast(tensor: Tensor) -> torch.dtype:
    """Return the tensor's dtype, but float32 for half precision under autocast, which runs this loss in float32."""
    if tensor.dtype in HALVES and _has_autocast(tensor.device.type):
        return torch.float32
    return tensor.dtype


def _has_autocast(device_type: str) -> bool:
    if device_type == "meta":
        return False
    if device_type == "cpu":
        return torch.is_autocast_cpu_enabled() if _OLD_AUTOCAST else torch.is_autocast_enabled("cpu")
    return torch.is_autocast_enabled() if _OLD_AUTOCAST else torch.is_autocast_enabled(device_type)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context without autocast, so that no matrix product is in half precision."""
    return torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else contextlib.nullcontext()


# Before torch 2.4, each type of device has its own function.
_OLD_AUTOCAST = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
