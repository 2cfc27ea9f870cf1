"""Isolated processes: a subject runs in a separate process, which sees inputs and never an exact value.

The judge sends an act to the process and reads a reply. There the subject may raise, exit, crash, hang, print without
end, or change whatever it finds: the process holds nothing that decides a verdict. Isolated processes are forked by a
fork server, which the judge starts before it knows any exact value.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
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

from crossent.run import wire
from crossent.subjects.subject import Loss
from crossent.trials.act import Performed, Raised, perform

T = TypeVar("T")
Load = Callable[[], Loss]
_MOST_PRINTED = 2**20  # bytes in one act
_MOST_HUNG = 3  # acts, after which a subject is called no more: a time-out can be minutes


class ForkServerError(Exception):
    """A fork server and its processes have ended. The judge knows exact values by now, and must not fork another."""


class ForkServer:
    """A process that forks isolated processes, and reports how they ended.

    Args:
        loads: for each subject, a function that loads its loss; called in the isolated process.
        memory: bytes of memory that an isolated process may have.
    """

    def __init__(self, loads: Sequence[Load], memory: int) -> None:
        self._control, theirs = socket.socketpair()
        if os.fork() == 0:
            self._control.close()
            _die_with_parent()
            for limit, to in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
                with suppress(ValueError, OSError):  # the limit is lower already
                    resource.setrlimit(limit, (to, to))
            _serve(theirs, loads)
        theirs.close()

    def start(self, subject: int, stream: socket.socket, output: int) -> int:
        """Fork a process for a subject, which talks on a stream and prints into a file; return its number."""
        try:
            socket.send_fds(self._control, [f"start {subject}".encode()], [stream.fileno(), output])
        except OSError as error:
            raise ForkServerError("the fork server has ended") from error
        return self._reply()

    def status(self, pid: int) -> int:
        """Wait for a process, and return its exit status."""
        try:
            self._control.sendall(f"wait {pid}".encode())
        except OSError as error:
            raise ForkServerError("the fork server has ended") from error
        return self._reply()

    def close(self) -> None:
        """End the fork server and its isolated processes."""
        self._control.close()

    def _reply(self) -> int:
        reply = self._control.recv(64)
        if not reply:
            raise ForkServerError("the fork server has ended")
        return int(reply)


def _serve(control: socket.socket, loads: Sequence[Load]) -> NoReturn:
    """The fork server's loop, until the judge is gone."""
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
            stream, output = descriptors
            _perform_acts(stream, output, loads[int(number)])
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(str(child).encode())


def _perform_acts(stream: int, output: int, load: Load) -> NoReturn:
    """An isolated process's loop: read an act, perform it, reply, until the judge is gone."""
    os.setpgid(0, 0)  # so that processes that the subject starts end with this one
    _die_with_parent()
    faulthandler.disable()  # the report says how the process ended
    stream = os.dup(stream)  # away from descriptors 1 and 2, whatever the caller had closed
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    connection = Connection(os.dup2(stream, 3))
    os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])  # the other processes' pipes
    sys.stdout, sys.stderr = (open(one, "w", errors="replace", closefd=False) for one in (1, 2))  # noqa: SIM115
    known = _own_names()  # as they are now: the subject may change the modules
    loss: Loss | None = None
    while True:
        try:
            request = connection.recv_bytes()
        except EOFError:
            os._exit(0)
        nonce, act, arguments = wire.read(request, known)
        try:
            loss = loss or load()
            performed = perform(act, loss, *arguments)
        except (
            BaseException
        ) as error:  # from the subject's import, or its own KeyboardInterrupt; SIGINT is ignored here
            performed = Performed(raised=Raised.of(error))
        for file in (sys.stdout, sys.stderr):
            with suppress(Exception):
                file.flush()
        connection.send_bytes(wire.write((nonce, performed)))


class IsolatedProcess:
    """The host of a subject in an isolated process. A process that ended is replaced at the next act."""

    isolated = True

    def __init__(self, server: ForkServer, subject: int, seconds: float) -> None:
        self._server, self._subject, self._seconds = server, subject, seconds
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._connection: Connection | None = None
        self._pid = self._hung = 0

    @property
    def not_run(self) -> str:
        """Why the subject is called no more, or ""."""
        return "hung too often to be called again" if self._hung >= _MOST_HUNG else ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` in the isolated process, and return the result, or how the process ended."""
        connection = self._connection = self._connection or self._start()
        nonce = os.urandom(16)  # a reply that was written before the request cannot hold it
        try:
            connection.send_bytes(wire.write((nonce, act, arguments)))
            if not connection.poll(self._seconds):
                self._hung += 1
                self._end()
                return Performed(ended="hung", how=f"the call did not return within {self._seconds:g} s")
            reply = connection.recv_bytes()
        except (EOFError, OSError):
            return Performed(ended="crashed", how=f"its process ended: {status_in_words(self._end())}")
        try:
            echoed, performed = wire.read_reply(reply)
            valid = echoed == nonce and isinstance(performed, Performed)
        except Exception:  # the reply may be anything
            valid = False
        if not valid:
            self._end()
            return Performed(ended="crashed", how="it broke the protocol that its process talks by")
        made: Performed[T] = self._with_output(performed)
        return made

    def _with_output(self, performed: Performed[T]) -> Performed[T]:
        """Count a flood of output as changed state, and empty the file for the next act."""
        printed = os.fstat(self._output.fileno()).st_size
        if printed > _MOST_PRINTED:
            performed = replace(performed, changed_state=(*performed.changed_state, f"the output, by {printed} bytes"))
        if printed:
            os.ftruncate(self._output.fileno(), 0)
            os.lseek(self._output.fileno(), 0, os.SEEK_SET)  # the isolated process shares this position
        return performed

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._end()
        self._output.close()

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        self._pid = self._server.start(self._subject, theirs, self._output.fileno())
        theirs.close()
        return Connection(ours.detach())

    def _end(self) -> int:
        """Kill the process and all that it started, unless it has ended, and return its exit status."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        for kill in (os.killpg, os.kill):  # the process may not have made its group yet
            with suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
        return self._server.status(self._pid)


def status_in_words(status: int) -> str:
    """An exit status in words: "exit status 1", "SIGSEGV"."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _own_names() -> dict[tuple[str, str], Any]:
    """Every name of this package's modules, by module and name."""
    modules = [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == "crossent"]
    return {(name, attribute): value for name, module in modules for attribute, value in list(vars(module).items())}


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
