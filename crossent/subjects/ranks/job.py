"""The processes of a torchrun job: the first process runs the checks, and process N starts rank N.

    torchrun --nproc-per-node 2 -m crossent check mine.py:VocabParallel --ranks 2

The first process, the judge, starts rank 0 in the same way as without a job. Each other process is a server, which
listens on a port. A server writes its address to the store of the job, a table that all processes share.

The calling process, which sends requests to the ranks, is the judge or an isolated process of the judge. To start a
rank, the calling process connects to a server. The server forks a keeper, a process that watches one rank, and the
keeper forks the rank. The messages of the rank go through this connection. If the connection closes, the keeper ends
the rank. If the rank ends, the keeper sends the exit status to the calling process.

The judge keeps a control connection to each server open. When the judge ends, the servers end too.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

from crossent.subjects.confinement import close_all_but, end_with_parent, kill_group
from crossent.subjects.ranks.messages import pack
from crossent.subjects.ranks.rank import Place, run_rank
from crossent.words import said

_SERVERS = "CROSSENT_SERVERS"  # the environment variable that tells child processes the addresses of the servers
_SECONDS_TO_START = 180.0  # the time limit until all processes of the job have imported torch
_SECONDS_TO_CONNECT = 60.0
_LOOK = 0.1  # seconds between two looks at a rank
_controls: list[socket.socket] = []  # the control connections, which stay open until this process ends
_store: Any = None  # the store of the job, which this process may host


def join_job(ranks: int | None) -> None:
    """Join the torchrun job in which this process runs, if any.

    The first process connects to all servers, and returns. Any other process serves ranks until the judge ends, and
    then exits. `ranks` is the number of ranks of the run, or None for a run without ranks.

    Raises:
        ValueError: the job does not have `ranks` processes, or a process of the job does not start.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks is None and size == 1:
        return
    if ranks != size:
        if rank:
            time.sleep(_SECONDS_TO_CONNECT)  # torchrun ends this process when the first process has printed its line
            sys.exit(2)
        given, job = "no number" if ranks is None else ranks, f"the number of processes of the torchrun job is {size}"
        raise ValueError(f"ranks: got {given}, but {job}; give --ranks {size}")
    store = _join_store(rank)
    if rank:
        _serve(store, rank)
    addresses = []
    for at in range(1, size):
        try:
            addresses.append(json.loads(store.get(f"server{at}")))
            _controls.append(_connect(addresses[-1], {"control": True}))
        except (RuntimeError, OSError) as error:
            got = f"process {at} of the torchrun job does not start ({said(error)})"
            raise ValueError(f"ranks: {got}; see the output of process {at}") from None
    os.environ[_SERVERS] = json.dumps(addresses)
    threading.Thread(target=_watch, daemon=True).start()


def servers() -> list[dict[str, Any]]:
    """Return the addresses of the servers of the torchrun job; [] without a job.

    An address is a dict with a host, a port, the token that a request must contain, and the id of the machine.
    """
    found: list[dict[str, Any]] = json.loads(os.environ.get(_SERVERS, "[]"))
    return found


def start_rank(server: dict[str, Any], place: Place, description: str) -> socket.socket:
    """Start the rank that `place` describes on a server, and return the connection to the rank.

    `description` names the user's class or function.

    Raises:
        OSError: the server cannot be reached.
    """
    return _connect(server, {"place": vars(place), "description": description})


def is_here(server: dict[str, Any]) -> bool:
    """Return whether the server with this address runs on this machine."""
    return bool(server["machine"] == _machine())


def _join_store(rank: int) -> Any:
    """Return the store of the job. The first process hosts the store if torchrun does not."""
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    global _store
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    wait = timedelta(seconds=_SECONDS_TO_START)
    _store = TCPStore(address, port, is_master=hosts, timeout=wait, wait_for_workers=False)
    return PrefixStore(f"crossent/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", _store)


def _machine() -> str:
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()
    return socket.gethostname()


def _connect(server: dict[str, Any], request: dict[str, Any]) -> socket.socket:
    stream = socket.create_connection((server["host"], server["port"]), timeout=_SECONDS_TO_CONNECT)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(json.dumps({"token": server["token"], **request}).encode() + b"\n")
    return stream


def _watch() -> None:
    """Wait until a server ends. Then print a line, and end this process."""
    ended = select.select(_controls, [], [])[0]
    names = " and ".join(f"process {at}" for at, one in enumerate(_controls, 1) if one in ended)
    sys.stderr.write(f"crossent: {names} of the torchrun job ended; start the job again\n")
    sys.stderr.flush()
    os._exit(2)


def _own_host() -> str:
    """Return the IP address from which this machine reaches MASTER_ADDR; "127.0.0.1" if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # sends nothing
            host: str = probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"
    return host


def _serve(store: Any, rank: int) -> NoReturn:
    """Run ranks for the judge. End this process when the judge ends, or does not connect in time."""
    with socket.socket() as listener:
        listener.bind((host := _own_host(), 0))
        listener.listen()
        address = {"host": host, "port": listener.getsockname()[1], "token": secrets.token_hex(16)}
        store.set(f"server{rank}", json.dumps({**address, "machine": _machine()}))
        control: socket.socket | None = None
        until = time.monotonic() + _SECONDS_TO_START
        while control is not None or time.monotonic() < until:
            ready = select.select([listener, *([control] if control else [])], [], [], _LOOK)[0]
            if control in ready:
                break
            if listener in ready:
                control = _accept(listener, address["token"]) or control
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # reap a keeper that has ended
    sys.exit(0 if control else 1)  # the keepers end with this process


def _accept(listener: socket.socket, token: str) -> socket.socket | None:
    """Accept a connection. Return the connection if it is a control connection, otherwise None.

    If the request is for a rank, fork a keeper. If the request does not have the token, close the connection.
    """
    stream = listener.accept()[0]
    stream.settimeout(_SECONDS_TO_CONNECT)
    try:
        with stream.makefile("rb", buffering=0) as file:
            request = json.loads(file.readline(2**16))
        if not secrets.compare_digest(request["token"], token):
            raise ValueError("a wrong token")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        stream.close()
        return None
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.settimeout(None)
    if "control" in request:
        return stream
    if os.fork() == 0:
        try:
            end_with_parent()
            close_all_but({0, 1, 2, stream.fileno()})
            _keep(stream, Place(**request["place"]), request["description"])
        finally:
            os._exit(0)
    stream.close()
    return None


def _keep(stream: socket.socket, place: Place, description: str) -> None:
    """Fork a rank, and end the rank when the calling process closes the connection `stream`.

    If the rank ends first, send the exit status of the rank.
    """
    from crossent.subjects.loader import import_object  # which imports the modules of this folder

    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.ranks))
    child = os.fork()
    if child == 0:
        run_rank(place, stream.fileno(), partial(import_object, description))
    closed = select.poll()
    closed.register(stream, getattr(select, "POLLRDHUP", 0))
    while not closed.poll(_LOOK * 1000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with suppress(OSError):
                stream.sendall(pack({"ended": os.waitstatus_to_exitcode(status)}))
            return
    kill_group(child)
