"""The fork server: a process that forks isolated processes, and ends them.

In a run with a user's function, the judge starts the fork server before the judge computes any exact value. So no
isolated process inherits an exact value.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from crossent.machine import end_threads
from crossent.subjects.confinement import (
    Confined,
    be_killed_first,
    drop_privileges,
    drop_semaphores,
    end_with_parent,
    keep_to_own_limits,
    kill_group,
    scope_signals,
)

_MOST_WRITTEN = 2**30  # the most bytes of one file, so that output without end does not fill the disk
_SECONDS = 10.0  # the time limit of a reply of the fork server; a fork or a kill takes milliseconds
# The function that an isolated process runs. Its arguments are the index of the subject in the run, and two file
# descriptors: of the socket to the judge, and of the file for the output.
Serve = Callable[[int, int, int], None]
# Stands for torch where a function takes the index of a subject. If the process of a subject replies that a call
# cannot run on this machine, the judge repeats the call with torch in another isolated process.
TORCH_INDEX = -1


class ForkServerError(Exception):
    """The fork server has ended, does not reply, or sends a wrong reply.

    The judge must not start another fork server, which would inherit the exact values.
    """


class ForkServer:
    """A process that forks isolated processes, and ends them.

    Each isolated process runs `serve`, and may use at most `memory` bytes.
    """

    def __init__(self, serve: Serve, memory: int) -> None:
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_SECONDS)
        with theirs:
            end_threads()
            self._process = Confined(lambda: _answer(theirs, serve, memory), [theirs.fileno()])

    def start(self, subject: int, stream: socket.socket, output: int) -> int:
        """Fork an isolated process for the subject with this index in the run, and return the process id.

        The process receives requests through `stream`, and prints to the file descriptor `output`.
        """
        process = self._ask(f"start {subject}", stream.fileno(), output)
        if process < 2:
            raise ForkServerError(f"the fork server sent an impossible process id: {process}")
        return process

    def end(self, process: int) -> int:
        """Kill an isolated process and its process group. Return the exit status, which is -N after signal N."""
        return self._ask(f"end {process}")

    def close(self) -> None:
        """End the fork server and its isolated processes."""
        self._control.close()
        self._process.end()

    def _ask(self, request: str, *descriptors: int) -> int:
        try:
            socket.send_fds(self._control, [request.encode()], descriptors)
            reply = self._control.recv(64)
        except OSError as error:  # also a TimeoutError
            raise ForkServerError("the fork server does not reply") from error
        try:
            return int(reply)
        except ValueError:
            raise ForkServerError("the fork server has ended") from None


def _answer(control: socket.socket, serve: Serve, memory: int) -> None:
    """Run the fork server: set its limits, then answer requests until the judge closes `control`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_killed_first()  # before drop_privileges(), so that a subject cannot undo this setting in a run by root
    drop_privileges()
    drop_semaphores()
    # The isolated processes inherit these limits.
    limits = {resource.RLIMIT_DATA: memory, resource.RLIMIT_FSIZE: _MOST_WRITTEN, resource.RLIMIT_CORE: 0}
    for limit, to in limits.items():
        with suppress(ValueError, OSError):  # the limit is already lower
            resource.setrlimit(limit, (to, to))
    ended: dict[int, int] = {}  # the exit status of each process that ended without a request, by process id
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 64, 2)
        if not request:
            return
        word, number = request.decode().split()
        _reap(ended)
        if word == "start":
            reply = _fork(control, partial(serve, int(number), *descriptors))
            ended.pop(reply, None)  # forget an earlier process with the same id
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            reply = ended.pop(process) if (process := int(number)) in ended else _kill(process)
        control.sendall(str(reply).encode())


def _fork(control: socket.socket, run: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)  # a new group: processes that the subject starts are killed together with this process
            end_with_parent()
            scope_signals()
            keep_to_own_limits()
            control.close()
            run()
        finally:
            os._exit(0)
    return child


def _kill(process: int) -> int:
    kill_group(process)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _reap(ended: dict[int, int]) -> None:
    """Put the exit status of each finished child process into `ended`, by process id."""
    with suppress(ChildProcessError):
        while (done := os.waitpid(-1, os.WNOHANG))[0]:
            ended[done[0]] = os.waitstatus_to_exitcode(done[1])
