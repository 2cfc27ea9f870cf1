"""The messages between the judge, which runs the checks, and an isolated process, which calls the subject.

A request is a pickle of an act and its arguments, since the judge can be trusted. A reply comes from a process that the
subject may have changed. So a reply is not a pickle, but a header in JSON and the bytes of the tensors. The reader
executes no code of a reply, and checks each size before it allocates memory.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import socket
import time
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.checks.refusals import Reaction
from crossent.trials.act import NotRun, Performed, Raised
from crossent.trials.call import Call, Result
from crossent.trials.memory import memory
from crossent.words import LONGEST_TEXT, cut, one_line, said

_LENGTH = 8  # the bytes of the number that says how long a message or a header is
_MOST_HEADER = 2**20  # the most bytes of a header; the texts of exceptions are cut at a few thousand characters
_MOST_STATE = 100  # the most names of changed state that are read from a reply; crossent.state has some forty
# The limit of the bytes in a reply, for each byte of the tensors in the request. The largest reply has ten calls with
# three results each, in a dtype four times as wide as the dtype of the inputs.
_REPLIES_PER_REQUEST = 120
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_CLASSES = {one.__name__: one for one in (Raised, NotRun, Result, Call, Inputs, Reaction)}


class DamagedError(Exception):
    """A reply is malformed, too large, or has a value that the act cannot return.

    In a finding, a message of :func:`receive` or :func:`read_reply` follows the words "its process sent".
    """


def send(stream: socket.socket, message: bytes, until: float = math.inf) -> None:
    """Send a message before the deadline `until`, a time of `time.monotonic`.

    Raises:
        TimeoutError: the deadline has passed.
        OSError: the other process has ended.
    """
    stream.settimeout(_left(until))
    stream.sendall(len(message).to_bytes(_LENGTH, "big") + message)


def receive(stream: socket.socket, most: float = math.inf, until: float = math.inf) -> bytes:
    """Return the next message, of at most `most` bytes, before the deadline `until`.

    Raises:
        TimeoutError: the deadline has passed.
        EOFError, OSError: the other process has ended.
        DamagedError: the message is too large.
    """
    length = int.from_bytes(_exactly(stream, _LENGTH, until), "big")
    if length > most:
        raise DamagedError(f"a reply of {length} bytes, but the limit is {most:.0f} bytes")
    return _exactly(stream, length, until)


def _exactly(stream: socket.socket, count: int, until: float) -> bytes:
    received = bytearray()  # grows with the bytes that arrive: the announced length may be wrong
    while len(received) < count:
        stream.settimeout(_left(until))
        more = stream.recv(min(count - len(received), 2**20))
        if not more:
            raise EOFError
        received += more
    return bytes(received)


def _left(until: float) -> float | None:
    if until == math.inf:
        return None
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def most_of_reply(arguments: tuple[Any, ...]) -> int:
    """Return the largest allowed size of a reply to these arguments, in bytes."""
    return _MOST_HEADER + _REPLIES_PER_REQUEST * sum(memory(one).numel() for one in tensors_in(arguments))


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in a value, which may consist of nested dataclasses, mappings, tuples and lists."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        return tensors_in([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, Mapping):
        return tensors_in(list(value.values()))
    return [tensor for one in value for tensor in tensors_in(one)] if isinstance(value, (tuple, list)) else []


def write(value: Any) -> bytes:
    """Return a pickle of a value, with the whole storage of each tensor."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def read(content: bytes, known: Mapping[tuple[str, str], Any]) -> Any:
    """Return the value of a pickle. `known` has the objects that the pickle may use, by module and name.

    Raises:
        pickle.UnpicklingError: the pickle uses another object.
    """
    return _Unpickler(io.BytesIO(content), lambda *name: known.get(name)).load()


class _Pickler(pickle.Pickler):
    """A pickler that writes the whole storage of each tensor. A storage that tensors share is written once."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self._storages: dict[int, torch.UntypedStorage] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor, (None if value.is_meta else self._storage_of(value), *_form(value))
        if isinstance(value, torch.UntypedStorage):
            return _storage, (_raw(value), str(value.device))
        return NotImplemented

    def _storage_of(self, tensor: Tensor) -> torch.UntypedStorage:
        storage = tensor.untyped_storage()
        # the same object for a shared storage, since pickle writes each object once
        return self._storages.setdefault(storage.data_ptr(), storage) if storage.data_ptr() else storage


class _Unpickler(pickle.Unpickler):
    """An unpickler that uses only objects of `find(module, name)`, which returns None for a forbidden name."""

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"a message must not use {module}.{name}")
        return found


_Form = tuple[str, tuple[int, ...], tuple[int, ...], int, str]  # dtype, shape, strides, offset, device


def _form(tensor: Tensor) -> _Form:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset()), str(tensor.device)


def _raw(storage: torch.UntypedStorage) -> bytes:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).cpu().numpy().tobytes()


def _storage(raw: bytes, device: str) -> torch.UntypedStorage:
    stored = torch.empty(len(raw), dtype=torch.uint8)  # torch allocates this memory, so the data are aligned
    if raw:
        stored.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return stored.to(device).untyped_storage()


def _tensor(
    storage: torch.UntypedStorage | None,
    dtype: str,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int,
    device: str,
) -> Tensor:
    of: torch.dtype = getattr(torch, dtype)
    if storage is None:
        return torch.empty_strided(shape, stride, dtype=of, device="meta")
    return torch.empty(0, dtype=of, device=device).set_(storage, offset, shape, stride)


def write_reply(performed: Performed[Any], most: int) -> bytes:
    """Return the bytes of a reply with the outcome of an act.

    Raises:
        DamagedError: the value has a tensor of more than `most` bytes.
    """
    raw: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.numel() * value.element_size() > most:
                size = f"shape {tuple(value.shape)} and {value.numel() * value.element_size()} bytes"
                raise DamagedError(f"a result has {size}; expected at most {most} bytes")
            value = value.detach().resolve_neg()  # the memory of a lazily negated view has the opposite signs
            content = None if value.is_meta else _raw(value.untyped_storage())
            raw.append(content or b"")
            return {"tensor": [None if content is None else len(content), *_form(value)]}
        if is_dataclass(value) and not isinstance(value, type):
            parts = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
            return {"class": type(value).__name__, "fields": parts}
        if isinstance(value, Mapping):
            return {"mapping": {name: plain(one) for name, one in value.items()}}
        if isinstance(value, (tuple, list)):
            return {type(value).__name__: [plain(one) for one in value]}
        return value

    header = {"value": plain(performed.value), "raised": plain(performed.raised), "state": performed.changed_state}
    header["ended"] = [performed.ended, performed.how]
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(_LENGTH, "big"), text, *raw])


def read_reply(content: bytes, act: Callable[..., Any], arguments: tuple[Any, ...], most: int) -> Performed[Any]:
    """Return the outcome of `act(loss, *arguments)` from the reply `content`.

    `most` is the largest allowed size of a tensor, in bytes.

    Raises:
        DamagedError: the reply is malformed, or has a value that `act` cannot return.
    """
    try:
        length = int.from_bytes(content[:_LENGTH], "big")
        header = json.loads(content[_LENGTH : _LENGTH + length])
        devices = {str(tensor.device) for tensor in tensors_in(arguments)}
        reader = _Reader(content[_LENGTH + length :], devices, most)
        value, raised = reader.value(header["value"]), reader.value(header["raised"])
        state = tuple(reader.value(name) for name in header["state"][:_MOST_STATE])
        ended, how = (str(reader.value(text)) for text in header["ended"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise DamagedError(f"a malformed reply: {said(error)}") from None
    if ended in ("crashed", "hung") and value is None and raised is None:
        return Performed(ended=ended, how=one_line(how), changed_state=state)  # a rank of the subject has ended
    returns = _return_type(act) | NotRun if raised is None else None
    if not (_is_a(value, returns) and _is_a(raised, Raised | None) and _is_a(state, tuple[str, ...])):
        raise DamagedError("a reply with a value of the wrong type")
    return Performed(value, raised, changed_state=state)


class _Reader:
    """A reader of the values in the header of a reply.

    `raw` has the data of the tensors, in the order of the header. Each tensor must be on one of the `devices`, and have
    at most `most` bytes.
    """

    def __init__(self, raw: bytes, devices: set[str], most: int) -> None:
        self._raw, self._devices, self._most, self._at = raw, devices, most, 0

    def value(self, written: Any) -> Any:
        if isinstance(written, str):
            return written[:LONGEST_TEXT]
        if not isinstance(written, dict):
            return None if isinstance(written, list) else written
        ((kind, content),) = ((k, v) for k, v in written.items() if k != "fields")
        if kind == "tensor":
            return self._tensor(*content)
        if kind == "class":
            return _CLASSES[content](**{str(name): self.value(one) for name, one in written["fields"].items()})
        if kind == "mapping":
            return {name: self.value(one) for name, one in content.items()}
        return {"tuple": tuple, "list": list}[kind](self.value(one) for one in content)

    def _tensor(self, length: int | None, dtype: str, shape: Any, stride: Any, offset: int, device: str) -> Tensor:
        numbers = [offset, *shape, *stride, 0 if length is None else length]
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers) or len(shape) != len(stride):
            raise DamagedError("a reply with a tensor of impossible sizes")
        size = torch.empty(0, dtype=_DTYPES[dtype]).element_size()
        if math.prod(shape) * size > self._most:
            raise DamagedError(f"a reply with a tensor of {math.prod(shape) * size} bytes; allowed are {self._most}")
        if length is None:
            if "meta" not in self._devices:
                raise DamagedError("a reply with a tensor on the meta device, which has no data")
            return _tensor(None, dtype, tuple(shape), tuple(stride), offset, "meta")
        last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        if device not in self._devices:
            expected = ", ".join(sorted(self._devices))
            got = f"a reply with a tensor on {cut(str(device))}"
            raise DamagedError(f"{got}; expected the device of an input, {expected}")
        if math.prod(shape) and (last + 1) * size > length:
            raise DamagedError("a reply with a tensor that is larger than its memory")
        raw = self._raw[self._at : self._at + length]
        if len(raw) != length:
            raise DamagedError("a reply with incomplete data of a tensor")
        self._at += length
        return _tensor(_storage(raw, device), dtype, tuple(shape), tuple(stride), offset, device)


@cache
def _return_type(act: Callable[..., Any]) -> Any:
    return _hints(act)["return"]


@cache
def _hints(of: Any) -> dict[str, Any]:
    return typing.get_type_hints(of)


def _is_a(value: Any, type_: Any) -> bool:
    """Return whether a value has the type `type_`, and each element and attribute has its declared type."""
    origin, inner = get_origin(type_), get_args(type_)
    if type_ is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, one) for one in inner)
    if origin is tuple and inner[1:] != (...,):
        return type(value) is tuple and len(value) == len(inner) and all(map(_is_a, value, inner))
    if origin in (tuple, list):
        return type(value) is origin and all(_is_a(one, inner[0]) for one in value)
    if origin is dict:
        return type(value) is dict and all(_is_a(one, inner[0]) and _is_a(v, inner[1]) for one, v in value.items())
    if type_ is None or type_ is type(None):
        return value is None
    if type(value) is not type_:
        return False
    return not is_dataclass(type_) or all(_is_a(getattr(value, name), of) for name, of in _hints(type_).items())
