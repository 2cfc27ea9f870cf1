"""Actors: subjects in processes of their own, which see what they are called with and nothing else.

A judge is a process that asks an actor for an act, and looks at what comes back. An actor may raise, exit, crash, hang,
print without end, or change whatever it finds in its process: that is its own, and there is no answer in it. Actors are
forked by a nursery, a process that the judge has forked before it knew an answer. They talk by pickles; the judge reads
only the few classes that an act gives back, so that nothing of a subject runs in it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import pickle
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import IO, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.checks.refusals import Reaction
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun, Performed, Raised, perform
from crossent.trials.call import Call, Result
from crossent.trials.memory import memory

T = TypeVar("T")
Load = Callable[[], Loss]
FLOOD = 2**20  # bytes that a subject may print in one act
MOST_HUNG = 3  # acts, after which a subject is not asked again: a time-out is minutes
# What may come back.
CLASSES = (Performed, Raised, NotRun, Result, Call, Inputs, Reaction)


class NurseryError(Exception):
    """A nursery has ended, and with it all actors. This process knows answers, and can make no other."""


class Nursery:
    """A process that forks actors, and tells how they ended.

    Args:
        loads: for each subject, what makes its loss; called in the actor.
        most: bytes of memory that an actor may have.
    """

    def __init__(self, loads: Sequence[Load], most: int) -> None:
        self._control, theirs = socket.socketpair()
        if os.fork() == 0:
            self._control.close()
            _die_with_parent()
            for limit, to in ((resource.RLIMIT_DATA, most), (resource.RLIMIT_CORE, 0)):
                with suppress(ValueError, OSError):  # there is a lower one
                    resource.setrlimit(limit, (to, to))
            _nurse(theirs, loads)
        theirs.close()

    def start(self, subject: int, stream: socket.socket, output: int) -> int:
        """Fork an actor, which talks on one end of a stream and prints into a file; the number of its process."""
        try:
            socket.send_fds(self._control, [f"start {subject}".encode()], [stream.fileno(), output])
        except OSError as error:
            raise NurseryError("it has ended") from error
        return self._answer()

    def status(self, pid: int) -> int:
        """How an actor ended, once it has."""
        try:
            self._control.sendall(f"wait {pid}".encode())
        except OSError as error:
            raise NurseryError("it has ended") from error
        return self._answer()

    def close(self) -> None:
        """End it, and all actors."""
        self._control.close()

    def _answer(self) -> int:
        answer = self._control.recv(64)
        if not answer:
            raise NurseryError("it has ended")
        return int(answer)


def _nurse(control: socket.socket, loads: Sequence[Load]) -> NoReturn:
    """What a nursery does, until the judge is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 64, 2)
        if not request:
            os._exit(0)
        word, number = request.decode().split()
        if word == "wait":
            control.sendall(str(os.waitstatus_to_exitcode(os.waitpid(int(number), 0)[1])).encode())
            continue
        child = os.fork()
        if child == 0:
            control.close()
            talk, output = descriptors
            _act(talk, output, loads[int(number)])
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(str(child).encode())


def _act(talk: int, output: int, load: Load) -> NoReturn:
    """What an actor does: acts, one after another, until the judge is gone."""
    os.setpgid(0, 0)  # so that what it starts ends with it
    _die_with_parent()
    faulthandler.disable()  # how it ended is in the report
    talk = os.dup(talk)  # not one of these, whatever was closed before
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    stream = Connection(os.dup2(talk, 3))
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # the ends of other people's pipes
    sys.stdout, sys.stderr = (open(one, "w", errors="replace", closefd=False) for one in (1, 2))  # noqa: SIM115
    # What is known of this package now, since the subject may change it.
    known = {(name, attribute): value for name, module in _own_modules() for attribute, value in vars(module).items()}
    loss: Loss | None = None
    while True:
        try:
            request = stream.recv_bytes()
        except EOFError:
            os._exit(0)
        nonce, act, arguments = _Unpickler(io.BytesIO(request), lambda *name: known.get(name)).load()
        try:
            loss = loss or load()
            performed = perform(act, loss, *arguments)
        except BaseException as error:  # of its import, or a KeyboardInterrupt that it raises: no user's is heard here
            performed = Performed(raised=Raised.of(error))
        for file in (sys.stdout, sys.stderr):
            with suppress(Exception):
                file.flush()
        stream.send_bytes(_pickled((nonce, performed)))


class Actor:
    """A subject in a process of its own; another one is started where it has ended."""

    def __init__(self, nursery: Nursery, subject: int, seconds: float) -> None:
        self._nursery, self._subject, self._seconds = nursery, subject, seconds
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the actor
        self._stream: Connection | None = None
        self._pid = self._hung = 0

    @property
    def not_run(self) -> str:
        """Why it is not asked any more, or ""."""
        return "hung so often that it is not asked again" if self._hung >= MOST_HUNG else ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Do that with the subject, and say what came of it."""
        stream = self._stream = self._stream or self._start()
        nonce = os.urandom(16)  # what is written before it is asked for cannot have it
        try:
            stream.send_bytes(_pickled((nonce, act, arguments)))
            if not stream.poll(self._seconds):
                self._hung += 1
                self._end()
                return Performed(ended="hung", how=f"no answer within {self._seconds:g} s")
            reply = stream.recv_bytes()
        except (EOFError, OSError):
            return Performed(ended="crashed", how=f"its process ended: {how(self._end())}")
        try:
            echoed, performed = _Unpickler(io.BytesIO(reply), _returnable).load()
            valid = echoed == nonce and isinstance(performed, Performed)
        except Exception:  # whatever it has written there
            valid = False
        if not valid:
            self._end()
            return Performed(ended="crashed", how="it broke the protocol that its process talks by")
        printed = os.fstat(self._output.fileno()).st_size
        if printed > FLOOD:
            performed = replace(performed, changed_state=(*performed.changed_state, f"the output, by {printed} bytes"))
        if printed:
            os.ftruncate(self._output.fileno(), 0)
            os.lseek(self._output.fileno(), 0, os.SEEK_SET)  # which is the actor's place too
        made: Performed[T] = performed
        return made

    def close(self) -> None:
        """End its process."""
        if self._stream is not None:
            self._end()
        self._output.close()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        self._pid = self._nursery.start(self._subject, theirs, self._output.fileno())
        theirs.close()
        return Connection(ours.detach())

    def _end(self) -> int:
        """Kill it, where it has not ended, and what it has started; its exit status."""
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        for kill in (os.killpg, os.kill):  # the group is made by the actor, which may not have come to it
            with suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        return self._nursery.status(self._pid)


def how(status: int) -> str:
    """An exit status in words."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class _Pickler(pickle.Pickler):
    """Sends tensors with all of the memory that they are views of, and nothing else of them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            raw = None if value.is_meta else memory(value).cpu().numpy().tobytes()
            dtype = str(value.dtype).removeprefix("torch.")
            layout = dtype, tuple(value.shape), value.stride(), value.storage_offset(), str(value.device)
            return _tensor, (raw, *layout)
        return NotImplemented


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


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
    """Reads what is sent, and finds no name but those that it is given."""

    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        found = self._find(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not sent")
        return found


_RETURNABLE = {(one.__module__, one.__qualname__): one for one in (*CLASSES, _tensor)}


def _returnable(module: str, name: str) -> Any:
    return _RETURNABLE.get((module, name))


def _own_modules() -> list[tuple[str, Any]]:
    return [(name, module) for name, module in list(sys.modules.items()) if name.partition(".")[0] == "crossent"]


def _die_with_parent() -> None:
    """Where there is such a thing: prctl(PR_SET_PDEATHSIG, SIGKILL) of Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
