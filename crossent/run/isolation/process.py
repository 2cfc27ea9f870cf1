"""An isolated process: the loop that runs in the process, and the host through which the judge calls the subject."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import IO, Any, NoReturn, TypeVar

from crossent.run.isolation import wire
from crossent.run.isolation.fork_server import TORCH_INDEX, ForkServer
from crossent.subjects.confinement import close_all_but
from crossent.subjects.ranks.protocol import allow_fork
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun, Performed, Raised, perform
from crossent.words import name_of_signal

T = TypeVar("T")
_MOST_PRINTED = 2**20  # the most bytes that a subject may print in one act
_IN_PYTHON = "in Python timeout=SECONDS"  # how a caller of crossent.check sets the limit of --timeout
_LIMIT = f"the limit that --timeout sets, {_IN_PYTHON}"
_MOST_HUNG = 3  # after three acts over the time limit, the subject is no longer called, since each act can take minutes


def perform_acts(stream: int, output: int, load: Callable[[], Loss]) -> NoReturn:
    """Read acts from the judge, call each act with the loss, and send back the outcome.

    Args:
        stream: the file descriptor of the socket to the judge.
        output: the file descriptor of the file for stdout and stderr.
        load: a function that returns the loss.
    """
    faulthandler.disable()  # the report says how the process ended
    allow_fork()  # this process knows no exact value, and neither do ranks that are forked from it
    # Copy the descriptor: if the caller closed stdout or stderr, `stream` may be 1 or 2, which are replaced below.
    stream = os.dup(stream)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    connection = socket.socket(fileno=os.dup2(stream, 3))
    close_all_but({0, 1, 2, 3})  # also closes inherited pipes of other processes
    sys.stdout, sys.stderr = (open(one, "w", errors="replace", closefd=False) for one in (1, 2))  # noqa: SIM115
    known = _own_names()  # read before the subject can change the modules
    loss: Loss | None = None
    while True:
        try:
            content = wire.receive(connection)
        except (EOFError, OSError):
            os._exit(0)
        act, arguments, most = wire.read(content, known)
        try:
            loss = loss or load()
            reply = wire.write_reply(perform(act, loss, *arguments), most)
        except wire.DamagedError as error:  # a result is too large: a finding, but no exception of the subject
            reply = wire.write_reply(Performed(raised=Raised(str(error), str(error), str(error))), most)
        except BaseException as error:  # from the import of the subject, or a KeyboardInterrupt of the act
            reply = wire.write_reply(Performed(raised=Raised.of(error)), most)
        for file in (sys.stdout, sys.stderr):
            with suppress(Exception):
                file.flush()
        wire.send(connection, reply)


class IsolatedProcess:
    """A host that runs acts in an isolated process. If the process has ended, the next act starts a new process.

    Args:
        server: the fork server.
        subject: the index of the subject in the run, or `TORCH_INDEX` for torch.
        timeout: the time limit for all acts of one case together, in seconds.
        alive: a function that tells the main process, before each act, that the judge is alive.
    """

    isolated = True

    def __init__(
        self, server: ForkServer, subject: int, timeout: float, alive: Callable[[], None] = lambda: None
    ) -> None:
        self._server, self._subject, self._timeout, self._alive = server, subject, timeout, alive
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._stream: socket.socket | None = None
        self._pid = self._hung = 0
        self._left = timeout  # the seconds that further acts of this case may take
        self._torch: IsolatedProcess | None = None
        self._confirmed: set[tuple[Any, ...]] = set()

    @property
    def not_run(self) -> str:
        """The reason why the subject is no longer called, or "" if the subject is called."""
        if self._hung < _MOST_HUNG:
            return ""
        times = f"{_MOST_HUNG} times in a worker process"
        return f"exceeded the time limit {times}, and is no longer called there; --timeout sets the limit, {_IN_PYTHON}"

    def start_case(self) -> None:
        """Start a case, whose acts may take `timeout` seconds together."""
        self._left = self._timeout

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` in the isolated process, and return the outcome."""
        started, left = time.monotonic(), self._left
        performed = self._perform(act, arguments, started + left)
        self._left -= time.monotonic() - started
        if performed.ended == "hung" and left < self._timeout:
            how = f"the calls of this case took more than {self._timeout:g} s together, {_LIMIT}"
            performed = replace(performed, how=how)
        return self._confirm(performed, act, arguments)

    def _perform(self, act: Callable[..., T], arguments: tuple[Any, ...], until: float) -> Performed[T]:
        self._alive()
        stream = self._stream = self._stream or self._start()
        most = wire.most_of_reply(arguments)
        try:
            wire.send(stream, wire.write((act, arguments, most)), until)
            performed = wire.read_reply(wire.receive(stream, most, until), act, arguments, most)
        except TimeoutError:
            self._hung += 1
            self._end()
            return Performed(ended="hung", how=f"its process sent no reply within {self._timeout:g} s, {_LIMIT}")
        except (EOFError, OSError):
            return Performed(ended="crashed", how=f"its process ended: {status_in_words(self._end())}")
        except wire.DamagedError as damage:
            self._end()
            return Performed(ended="crashed", how=f"its process sent {damage}")
        return self._take_output(performed)

    def _confirm(
        self, performed: Performed[Any], act: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> Performed[Any]:
        """Return the outcome `performed`, or "crashed" if the process wrongly says that the act cannot run.

        The process is wrong if the same act on torch gives another value.
        """
        if not isinstance(performed.value, NotRun) or self._subject == TORCH_INDEX:
            return performed
        reason = (act, performed.value, *(one for one in arguments if isinstance(one, (str, bool))))
        if reason not in self._confirmed:
            self._end()  # the subject's process must not run at the same time as torch's
            # Not in this process: a compiled act could load code that the subject has left in torch's cache.
            self._torch = self._torch or IsolatedProcess(self._server, TORCH_INDEX, self._timeout, self._alive)
            self._torch.start_case()
            if self._torch.perform(act, *arguments).value != performed.value:
                return Performed(
                    ended="crashed",
                    how=f"its process replied that the check {performed.value.reason}, but torch's process did not",
                )
            self._confirmed.add(reason)
        return performed

    def _take_output(self, performed: Performed[T]) -> Performed[T]:
        """Empty the output file, and return the outcome. A long output is added to the changed state."""
        printed = os.fstat(self._output.fileno()).st_size
        if printed > _MOST_PRINTED:
            performed = replace(
                performed, changed_state=(*performed.changed_state, f"stdout or stderr, by printing {printed} bytes")
            )
        if printed:
            self._empty_output()
        return performed

    def _empty_output(self) -> None:
        os.ftruncate(self._output.fileno(), 0)
        os.lseek(self._output.fileno(), 0, os.SEEK_SET)  # the isolated process shares this position

    def close(self) -> None:
        """End the isolated process and, if there is one, the process of torch."""
        if self._torch is not None:
            self._torch.close()
        if self._stream is not None:
            self._end()
        self._output.close()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._pid = self._server.start(self._subject, theirs, self._output.fileno())
        return ours

    def _end(self) -> int:
        """End the process, and return its exit status."""
        assert self._stream is not None
        self._stream.close()
        self._stream = None
        status = self._server.end(self._pid)
        self._empty_output()  # else the next act would have this output, too
        return status


def status_in_words(status: int) -> str:
    """Return an exit status in words: "exit status 1" for 1, "SIGSEGV" for -11."""
    return name_of_signal(-status) if status < 0 else f"exit status {status}"


def _own_names() -> dict[tuple[str, str], Any]:
    """Return the objects of crossent's modules, which a request may use, by module and name."""
    modules = [(name, module) for name, module in sys.modules.items() if name.partition(".")[0] == "crossent"]
    return {(name, attribute): value for name, module in modules for attribute, value in list(vars(module).items())}
