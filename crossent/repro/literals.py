"""Write values and texts as Python code for a script."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs, bits
from crossent.words import printable


def assignments(inputs: Inputs, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a script that define the inputs of the case, and then each value of `values` by its name."""
    first = inputs.operation.word("input")
    tensors = {first: inputs.input, "target": inputs.target, "upstream": inputs.upstream}
    tensors |= {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    written: dict[tuple[int, torch.dtype], str] = {}  # the first tensor of each storage and dtype; others are views
    for name, value in tensors.items():
        key = value.untyped_storage().data_ptr(), value.dtype
        if (first_name := written.setdefault(key, name)) != name and key[0]:
            yield f"{name} = {first_name}.as_strided({_view(value)})"
        else:
            yield f"{name} = {_tensor(value)}"
    options = [f"{name}={name if name in tensors else _literal(value)}" for name, value in inputs.options.items()]
    yield f"options = dict({', '.join(options)})"
    yield f"given = {first}, target, options, upstream"
    for name, value in values.items():
        yield f"{name} = {_literal(value, inputs)}"


def docstring(text: str) -> str:
    """Return a text as the content of a docstring in ASCII."""
    lines = "\n".join(map(printable, text.replace("±", "+-").split("\n")))
    escaped = lines.replace("\\", "\\\\").replace('"', '\\"')
    return escaped.encode("ascii", "backslashreplace").decode()


def _tensor(tensor: Tensor) -> str:
    """Return a Python expression that rebuilds a tensor, with its strides, offset and memory."""
    storage = tensor.detach().untyped_storage()
    flat = torch.empty(0, dtype=tensor.dtype).set_(storage)
    packed = base64.b85encode(zlib.compress(bits(flat).tobytes(), 9)).decode()
    return f"tensor({packed!r}, {tensor.dtype}, {_view(tensor)})"


def _view(tensor: Tensor) -> str:
    """Return the shape, strides and offset of a tensor as text, as the arguments of `as_strided`."""
    return f"{tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()}"


def _literal(value: Any, given: Inputs | None = None) -> str:
    """Return a value as a Python expression. If the value is `given`, the inputs of the case, return "given"."""
    if value is given is not None:
        return "given"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Inputs):
        return _literal((value.input, value.target, value.options, value.upstream))
    if isinstance(value, dict):
        return f"dict({', '.join(f'{name}={_literal(one)}' for name, one in value.items())})"
    if isinstance(value, tuple | list):
        items = ", ".join(_literal(one, given) for one in value)
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, type):
        return value.__name__
    special = isinstance(value, float) and not math.isfinite(value)
    return f"float('{value}')" if special else repr(value)
