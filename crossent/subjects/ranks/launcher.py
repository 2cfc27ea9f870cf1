"""The launcher: a process that starts the ranks and ends them.

`torch.distributed.elastic.multiprocessing.start_processes`, which also starts the workers of torchrun, forks the
ranks from the launcher. A fork takes milliseconds, since the launcher has already imported torch. The launcher never
uses autograd or CUDA, whose threads and contexts do not survive a fork.

A launcher must know no exact value, since a fork copies the memory to the ranks. An isolated process of
`crossent.run.isolation` knows none, and forks its launcher. Any other process starts its launcher in a new Python
process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from crossent.subjects.confinement import close_all_but, end_with_parent, kill_group
from crossent.subjects.ranks.protocol import MOST_RANKS, may_fork
from crossent.subjects.ranks.rank import Place, run_rank

_SECONDS_TO_END = 5.0  # a killed process ends in milliseconds
_SECONDS_TO_REPLY = 60.0  # the launcher replies in milliseconds, but a busy machine may delay the first reply


class Launcher:
    """An object with which a process starts a launcher, sends requests to the launcher, and ends the launcher.

    The owner is the process that made this object. A fork of the owner may only call :meth:`close`.

    Args:
        load: a function that returns the user's class or function. Each rank calls `load`.
        description: a description from which a new Python process can load the same object; "" if there is none.

    Raises:
        TypeError: the launcher needs a new Python process, and `description` is "".
    """

    def __init__(self, load: Callable[[], Any], description: str) -> None:
        forks = may_fork()
        if not forks and not description:
            given = "a class or function that a new Python process, which starts the ranks, cannot import by its name"
            raise TypeError(f"subject: got {given}; give path/to/file.py:NAME")
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_SECONDS_TO_REPLY)
        self.owner = os.getpid()
        self._python: subprocess.Popen[bytes] | None = None
        with theirs:
            if forks:
                self._process = _fork(theirs, load)
            else:
                self._python = _new_python(theirs, description)
                self._process = self._python.pid

    def start(self, places: Sequence[Place], streams: Sequence[socket.socket]) -> None:
        """Start a rank for each of `places`. `streams` has a socket for the messages of each rank.

        Raises:
            OSError, EOFError: the launcher has ended, or does not reply in time.
        """
        content = json.dumps({"start": [vars(place) for place in places]}).encode()
        self._ask(content, [stream.fileno() for stream in streams])

    def end(self, ended: Sequence[int] = ()) -> list[int | None]:
        """End all ranks, and return their exit statuses: None for a rank that this call had to end.

        `ended` has the numbers of the ranks that have closed their sockets. The launcher waits a short time for the
        processes of these ranks.

        Raises:
            OSError, EOFError: the launcher has ended, or does not reply in time.
        """
        reply = self._ask(json.dumps({"end": list(ended)}).encode(), ())
        statuses: list[int | None] = json.loads(reply)
        return statuses

    def close(self) -> None:
        """End the launcher and its ranks, and remove their folder. In a fork of the owner, only close the socket."""
        if self.owner != os.getpid():
            self._control.close()  # this process is a fork of the owner
            return
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # so that the launcher ends its ranks and removes their folder
        self._control.close()
        until = time.monotonic() + _SECONDS_TO_END
        while self._runs():
            if time.monotonic() > until:
                with suppress(ProcessLookupError):
                    os.kill(self._process, signal.SIGKILL)
            time.sleep(0.002)

    def _runs(self) -> bool:
        if self._python is not None:
            return self._python.poll() is None
        try:
            return os.waitpid(self._process, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def _ask(self, request: bytes, descriptors: Sequence[int]) -> bytes:
        socket.send_fds(self._control, [request], list(descriptors))
        reply = self._control.recv(2**16)
        if not reply:
            raise EOFError("the launcher has ended")
        return reply


def _fork(theirs: socket.socket, load: Callable[[], Any]) -> int:
    # With end_with_parent(), Linux kills the child when the thread that forked it ends, even if the process goes on.
    of_main_thread = threading.current_thread() is threading.main_thread()
    child = os.fork()
    if child == 0:
        try:
            if of_main_thread:
                end_with_parent()
            close_all_but({0, 1, 2, theirs.fileno()})
            _serve(theirs, load)
        finally:
            os._exit(0)
    return child


def _new_python(theirs: socket.socket, description: str) -> subprocess.Popen[bytes]:
    code = f"from crossent.subjects.ranks import launcher; launcher.serve_new({theirs.fileno()}, {description!r})"
    # The new process gets this sys.path, since it may find this package only there. "" is the current directory.
    path = os.pathsep.join(one or os.getcwd() for one in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
    )


def serve_new(control: int, description: str) -> None:
    """Run the launcher in this process, which is a new Python process.

    `control` is the file descriptor of the socket to the owner. `description` names the user's class or function.
    """
    from crossent.subjects.loader import import_object  # which imports the modules of this folder

    _serve(socket.socket(fileno=control), partial(import_object, description))


def _serve(control: socket.socket, load: Callable[[], Any]) -> None:
    """Start and end ranks as requests say, until the owner closes the connection `control`."""
    with suppress(OSError):
        os.setpgid(0, 0)  # so that Ctrl-C reaches the command alone
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the report says how a rank ended
    with suppress(Exception):
        load()  # once, before the ranks are forked; if this fails, each rank reports the error
    with tempfile.TemporaryDirectory(prefix="crossent-ranks-", ignore_cleanup_errors=True) as folder:
        context: Any = None
        group = 0
        while True:
            try:
                content, descriptors, _, _ = socket.recv_fds(control, 2**16, MOST_RANKS)
            except OSError:
                content = b""
            if not content:
                break
            request = json.loads(content)
            if "start" in request:
                group += 1
                places = [Place(**place) for place in request["start"]]
                context = _start(places, descriptors, load, os.path.join(folder, f"group{group}"))
                for descriptor in descriptors:
                    os.close(descriptor)
                control.sendall(b"[]")
            else:
                control.sendall(json.dumps(_end(context, request["end"])).encode())
                context = None
        if context is not None:
            _end(context, ())


def _start(places: Sequence[Place], streams: Sequence[int], load: Callable[[], Any], folder: str) -> Any:
    """Make `folder`, start a rank for each place, and return torch's object for the processes of the ranks."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    os.mkdir(folder)
    here = [Place(**{**vars(place), "store": place.store or os.path.join(folder, "store")}) for place in places]
    return start_processes(
        "crossent",
        _run,
        args={at: (place, stream, load) for at, (place, stream) in enumerate(zip(here, streams, strict=True))},
        envs={at: _environment(place, at, len(here)) for at, place in enumerate(here)},
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        start_method="fork",
    )


def _run(place: Place, stream: int, load: Callable[[], Any]) -> None:
    run_rank(place, stream, load)


def _environment(place: Place, local: int, count: int) -> dict[str, str]:
    """Return the environment variables of a rank, which is number `local` of the `count` ranks of this launcher."""
    words = {
        "RANK": place.rank,
        "WORLD_SIZE": place.ranks,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": count,
        "GROUP_RANK": 0,
        "TORCHELASTIC_RUN_ID": "crossent",
    }
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
    # The loopback interface suffices if all ranks are on this machine.
    alone = loopback and count == place.ranks and "GLOO_SOCKET_IFNAME" not in os.environ
    interface = {"GLOO_SOCKET_IFNAME": loopback} if alone else {}
    return {name: str(value) for name, value in words.items()} | interface


def _end(context: Any, ended: Sequence[int]) -> list[int | None]:
    """Kill all ranks, and return the exit status of each rank before that; None for a rank that still ran.

    First wait a short time for the ranks in `ended` to exit: they closed their connection or sent a wrong message.
    """
    if context is None:
        return []
    processes = list(context.pids().values())
    until = time.monotonic() + _SECONDS_TO_END
    while any(_status(processes[at]) is None for at in ended) and time.monotonic() < until:
        time.sleep(0.002)
    statuses = [_status(process) for process in processes]
    for process in processes:
        kill_group(process)
    context.close(signal.SIGKILL, timeout=_SECONDS_TO_END)
    return statuses


def _status(process: int) -> int | None:
    """Return the exit status of a child process, or minus the number of the signal that ended it; None if unknown."""
    if not hasattr(os, "waitid"):
        return None
    try:
        found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
