"""The messages between processes: acts and arguments to the subject's process, results back, as pickles.

A reply comes from a process in which a subject may have done anything. :func:`read_reply` therefore finds only the few
classes that an act returns, so that nothing of a subject runs in the process that reads.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.checks.refusals import Reaction
from crossent.trials.act import NotRun, Performed, Raised
from crossent.trials.call import Call, Result
from crossent.trials.memory import memory


def write(value: Any) -> bytes:
    """Pickle a value. A tensor takes along the memory that it is a view of, and nothing else of itself."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def read(content: bytes, known: Mapping[tuple[str, str], Any]) -> Any:
    """Read a pickle that may use these names, by module and attribute, and no others."""
    return _Unpickler(io.BytesIO(content), lambda *name: known.get(name)).load()


def read_reply(content: bytes) -> Any:
    """Read the reply of a subject's process. The reply may use only the classes that an act returns."""
    return read(content, _RETURNABLE)


class _Pickler(pickle.Pickler):
    """Sends tensors with all of the memory that they are views of, and nothing else of them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            raw = None if value.is_meta else memory(value).cpu().numpy().tobytes()
            dtype = str(value.dtype).removeprefix("torch.")
            layout = dtype, tuple(value.shape), value.stride(), value.storage_offset(), str(value.device)
            return _tensor, (raw, *layout)
        return NotImplemented


def _tensor(
    raw: bytes | None, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...], offset: int, device: str
) -> Tensor:
    of: torch.dtype = getattr(torch, dtype)
    if raw is None:
        return torch.empty_strided(shape, stride, dtype=of, device="meta")
    stored = torch.empty(len(raw), dtype=torch.uint8)  # aligned as torch aligns it
    if raw:
        stored.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return torch.empty(0, dtype=of, device=device).set_(stored.to(device).untyped_storage(), offset, shape, stride)


class _Unpickler(pickle.Unpickler):
    """Unpickles a message that may use only the given names."""

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not sent")
        return found


_CLASSES = (Performed, Raised, NotRun, Result, Call, Inputs, Reaction)
_RETURNABLE = {(one.__module__, one.__qualname__): one for one in (*_CLASSES, _tensor)}
