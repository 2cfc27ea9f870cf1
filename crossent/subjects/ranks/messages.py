"""The messages between the calling process and the ranks.

A message is a dict of tensors, numbers, strings, None, lists and dicts. `torch.load(weights_only=True)` reads a message
without running code that a rank has sent.
"""

from __future__ import annotations

import io
import math
import socket
import time
from typing import Any

import torch

_LENGTH = 8  # bytes of the number that says the length of a message


class DamagedMessageError(Exception):
    """A message cannot be read, or is not a dict."""


def pack(message: dict[str, Any]) -> bytes:
    """Return a message as bytes: the length of the serialized message, then the serialized message."""
    buffer = io.BytesIO()
    torch.save(message, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    return len(content).to_bytes(_LENGTH, "big") + content


def receive(stream: socket.socket, until: float = math.inf) -> bytes:
    """Return the next message, still serialized. `until` is the time limit, as a value of `time.monotonic`.

    Raises:
        TimeoutError: the whole message does not arrive in time.
        EOFError, OSError: the other process has closed its socket, or has ended.
    """
    return _exactly(stream, int.from_bytes(_exactly(stream, _LENGTH, until), "big"), until)


def unpack(content: bytes) -> dict[str, Any]:
    """Return the message that is serialized in `content`.

    Raises:
        DamagedMessageError: the content cannot be read, or is not a dict.
    """
    try:
        message = torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # damaged bytes can also raise IndexError, KeyError, AssertionError and others
        raise DamagedMessageError(f"a damaged message: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise DamagedMessageError("a message that is not a dict")
    return message


def _exactly(stream: socket.socket, count: int, until: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        left = None if until == math.inf else until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        more = stream.recv(min(count - len(received), 2**20))
        if not more:
            raise EOFError
        received += more
    return bytes(received)
