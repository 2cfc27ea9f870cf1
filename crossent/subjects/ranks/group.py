"""Start the ranks of a subject, send requests to all ranks, wait for the replies, and end the ranks after a fault."""

from __future__ import annotations

import os
import secrets
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from crossent.subjects.ranks.job import is_here, servers, start_rank
from crossent.subjects.ranks.launcher import Launcher
from crossent.subjects.ranks.messages import DamagedMessageError, pack, receive, unpack
from crossent.subjects.ranks.protocol import RankEndedError, RanksDifferError
from crossent.subjects.ranks.rank import Place, collective_limit
from crossent.words import name_of_signal, one_line

# The time limit of the start: the import of the user's file, and the first messages between the ranks.
_SECONDS_TO_START = 180.0
# A rank counts as blocked if it sleeps for this long while each other rank sleeps too, or has replied. A rank that
# computes, or that waits for a processor of a busy machine, does not sleep.
_SECONDS_ASLEEP = 10.0
_SECONDS_AFTER_A_FAULT = 1.0  # the same limit, if another rank has raised or ended
_PATIENCE = 4  # the longest extra time for ranks that get no processor, in time limits of a request
_LOOK = 0.1  # seconds between two looks at the ranks
_BUSY = 0.02  # seconds of processor time per second that the threads of gloo use while a rank waits


@dataclass
class _Rank:
    """The data of the calling process about one rank."""

    stream: socket.socket  # the socket to the rank
    process: int = 0  # the id of its process in /proc; 0 if /proc does not have the process
    reply: dict[str, Any] | None = None  # the reply to the current request
    ended: str = ""  # "ended", or "sent" and a description of a damaged message; "" for a rank without such a fault
    status: int | None = None  # its exit status, which only the keeper of a torchrun job sends (see `job`)


class Ranks:
    """The ranks of one subject. A request starts the ranks if they do not run.

    Args:
        load: a function that returns the user's class or function. Each rank calls `load`.
        count: the number of ranks.
        description: a description from which a new Python process can load the same object; "" if there is none.
        seconds: the time limit of a request.
        backend: the backend of torch.distributed. None stands for "nccl" on CUDA with a device for each rank, otherwise
            for "gloo".
    """

    def __init__(
        self, load: Callable[[], Any], count: int, *, description: str, seconds: float, backend: str | None = None
    ) -> None:
        self._load, self.count, self._description = load, count, description
        self._seconds, self._backend = seconds, backend
        self._launcher: Launcher | None = None
        self._end_launcher = weakref.finalize(self, int)  # does nothing; `_start` replaces it by `Launcher.close`
        self._ranks: list[_Rank] = []
        self._device = ""  # the device for which the ranks were started
        self._lock = threading.Lock()  # the requests of several threads must reach all ranks in one order
        self._changed_state: list[str] = []

    def take_changed_state(self) -> list[str]:
        """Return the names of the parts of the global state that the user's code has changed since the last call.

        The ranks have already restored these parts.
        """
        changed, self._changed_state = self._changed_state, []
        return changed

    def ask(self, request: Mapping[str, Any], device: str = "cpu") -> list[dict[str, Any]]:
        """Send a request to all ranks, and return their replies. If no ranks for tensors on `device` run, start them.

        :mod:`crossent.subjects.ranks.rank` describes requests and replies.

        Raises:
            RankEndedError: a rank ended or did not reply in time, or no ranks could be started.
            RanksDifferError: some ranks raised an exception, and others did not.
            TypeError: a new Python process cannot load the user's class or function.
            Exception: all ranks raised an exception. The error is builtin, and has the message of a rank's exception.
        """
        with self._lock:
            if device != self._device or not self._ranks or not self._launcher or self._launcher.owner != os.getpid():
                self._start(device)
            content = pack(dict(request))
            for rank in self._ranks:
                rank.reply = None
                try:
                    rank.stream.settimeout(self._seconds)
                    rank.stream.sendall(content)
                except TimeoutError:
                    pass  # the rank has no reply, and `_replies` says so
                except OSError:
                    rank.ended = "ended"
            return self._replies(self._seconds, strict=True)

    def close(self) -> None:
        """End the ranks and the launcher."""
        with self._lock:
            self._close_streams()
            self._end_launcher()
            self._launcher = None

    def _close_streams(self) -> None:
        for rank in self._ranks:
            rank.stream.close()
        self._ranks = []

    def _start(self, device: str) -> None:
        """Start new ranks for tensors on `device`, and wait until all ranks have joined the group."""
        if self._launcher is None or self._launcher.owner != os.getpid():
            self._launcher = Launcher(self._load, self._description)
            self._end_launcher.detach()
            self._end_launcher = weakref.finalize(self, self._launcher.close)
        self._close_streams()
        self._device = device
        nccl = device != "cpu" and torch.cuda.device_count() >= self.count
        backend = self._backend or ("nccl" if nccl else "gloo")
        others = servers()[: self.count - 1]  # the other processes of a torchrun job, which run all ranks but the first
        store = f"crossent/{secrets.token_hex(8)}" if others else ""
        limit = collective_limit((1 + _PATIENCE) * self._seconds)  # so long that `_replies` finds a blocked rank first
        places = [Place(rank, self.count, backend, device, store, limit) for rank in range(self.count)]
        pairs = [socket.socketpair() for _ in range(self.count - len(others))]
        self._ranks = [_Rank(ours) for ours, _ in pairs]
        reason = "the process that starts the ranks has ended, or did not reply in time"
        try:
            self._launcher.start(places[: len(pairs)], [theirs for _, theirs in pairs])
            for server, place in zip(others, places[len(pairs) :], strict=True):
                reason = f"process {place.rank} of the torchrun job cannot be reached, so its rank does not start"
                self._ranks.append(_Rank(start_rank(server, place, self._description)))
        except (OSError, EOFError):
            self._close_streams()
            self._end_launcher()
            self._launcher = None
            raise RankEndedError("crashed", reason) from None
        finally:
            for _, theirs in pairs:
                theirs.close()
        here = [True] * len(pairs) + [is_here(server) for server in others]
        for rank, reply, sees in zip(self._ranks, self._replies(_SECONDS_TO_START, strict=False), here, strict=True):
            rank.process = int(reply.get("process", 0)) if sees else 0

    def _replies(self, seconds: float, strict: bool) -> list[dict[str, Any]]:
        """Wait up to `seconds` for the replies of all ranks, and return the replies.

        With `strict`, the wait is shorter if all ranks without a reply sleep, and longer if they get no processor.
        """
        watch = _Watch(self._ranks)
        until = time.monotonic() + seconds
        while silent := [rank for rank in self._ranks if rank.reply is None and not rank.ended]:
            ready = select.select([rank.stream for rank in silent], [], [], _LOOK)[0]
            for rank in silent:
                if rank.stream in ready:
                    self._read(rank, until + _PATIENCE * seconds)
            over = time.monotonic() - until
            if over > 0 and not (strict and over < _PATIENCE * seconds and watch.starved(silent, seconds)):
                break
            fault = any(rank.ended or "raised" in (rank.reply or ()) for rank in self._ranks)
            limit = _SECONDS_AFTER_A_FAULT if fault else _SECONDS_ASLEEP
            if strict and not ready and watch.seconds_asleep(silent) > limit:
                break
        return self._checked(seconds, strict)

    def _read(self, rank: _Rank, until: float) -> None:
        try:
            reply = unpack(receive(rank.stream, until))
            if "ended" in reply:
                rank.ended, rank.status = "ended", reply["ended"]
            else:
                rank.reply = reply
                self._changed_state += reply.get("state", ())
        except (EOFError, ConnectionError):
            rank.ended = "ended"
        except (TimeoutError, DamagedMessageError) as error:
            rank.ended = f"sent {error}" if isinstance(error, DamagedMessageError) else ""

    def _checked(self, seconds: float, strict: bool) -> list[dict[str, Any]]:
        """Return the replies of all ranks, or raise an error that says what each rank did.

        The error names the time limit `seconds`, and with `strict` also the limit for sleeping ranks.
        """
        replies = [rank.reply for rank in self._ranks]
        raised = {at: one["raised"] for at, one in enumerate(replies) if one is not None and "raised" in one}
        ended = [at for at, rank in enumerate(self._ranks) if rank.ended]
        silent = [at for at, one in enumerate(replies) if one is None and at not in ended]
        if not raised and not ended and not silent:
            return [one for one in replies if one is not None]
        alike = len(raised) == self.count and len({str(one) for one in raised.values()}) == 1
        if alike and "process" not in (replies[0] or ()):  # a request, not the start: the ranks go on
            raise _exception(next(iter(raised.values())))
        statuses, how = self._end(ended)
        own = {at: one for at, one in raised.items() if not _is_consequence(one)}
        if not own and not ended and not silent:
            own = raised  # no other rank explains these exceptions
        said = [f"rank {at} raised {_exception_line(one)}" for at, one in own.items()]
        if len(raised) == self.count:
            raise _exception(next(iter(own.values())), f" ({'; '.join(said)})" if not alike else "")
        said += [f"rank {at} {_ending(how[at], statuses[at])}" for at in ended]
        asleep = f", or asleep for {_SECONDS_ASLEEP:g} s" if strict else ""
        limit = f"did not return (no result in {seconds:g} s{asleep})"
        said += [f"rank {at} {'waits' if own or ended else limit}" for at in silent]
        returned = set(range(self.count)) - {*raised, *ended, *silent}
        said += [f"rank {at} returned" for at in sorted(returned)]
        text = "; ".join(said)
        if ended:
            raise RankEndedError("crashed", text)
        if silent and not own:
            raise RankEndedError("hung", text)
        raise RanksDifferError(text)

    def _end(self, ended: Sequence[int]) -> tuple[list[int | None], list[str]]:
        """End all ranks. Return the exit status of each rank, None if unknown, and `_Rank.ended` of each rank.

        `ended` has the numbers of the ranks that have ended already, or sent a damaged message.
        """
        how = [rank.ended for rank in self._ranks]
        statuses = [rank.status for rank in self._ranks]
        assert self._launcher is not None
        own = len(self._ranks) - len(servers()[: self.count - 1])  # the ranks of the launcher are the first
        try:
            statuses[:own] = self._launcher.end([at for at in ended if at < own]) or statuses[:own]
        except (OSError, EOFError, ValueError):
            self._end_launcher()
            self._launcher = None
        self._close_streams()
        return statuses, how


class _Watch:
    """The processor times of the ranks, which show how long a rank sleeps, and whether a rank gets a processor."""

    def __init__(self, ranks: Sequence[_Rank]) -> None:
        self._since = time.monotonic()
        self._used = {rank.process: _processor_time(rank.process) for rank in ranks}
        self._first = dict(self._used)

    def starved(self, silent: Sequence[_Rank], seconds: float) -> bool:
        """Return whether the ranks in `silent` have not replied in `seconds` because they get no processor."""
        if time.monotonic() - self._since > _SECONDS_AFTER_A_FAULT:
            return False  # all ranks sleep
        for rank in silent:
            before, now = self._first.get(rank.process), _processor_time(rank.process)
            if before is None or now is None or now[1] - before[1] > seconds / 2:
                return False
        return True

    def seconds_asleep(self, silent: Sequence[_Rank]) -> float:
        """Return for how many seconds all ranks in `silent` have slept."""
        now = time.monotonic()
        for rank in silent:
            before, after = self._used.get(rank.process), _processor_time(rank.process)
            worked = before is None or after is None or after[1] - before[1] > 0.05 + _BUSY * (now - self._since)
            if worked or (after is not None and after[0] != "S"):
                self._since = now
                self._used = {one.process: _processor_time(one.process) for one in silent}
                return 0.0
        return now - self._since


def _processor_time(process: int) -> tuple[str, float] | None:
    """Return the state of a process, "S" if all threads sleep, and the processor time of the process in seconds.

    Return None if /proc does not have the process.
    """
    if not process:
        return None
    try:
        threads = [_stat(one / "stat") for one in Path(f"/proc/{process}/task").iterdir()]
        words = _stat(Path(f"/proc/{process}/stat"))
    except OSError:  # not Linux, or the process or a thread has just ended
        return None
    # The thread that calls gloo sleeps even while a thread of gloo computes, or waits for a processor.
    awake = [one[0] for one in threads if one[0] != "S"]
    return (awake or ["S"])[0], (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _stat(file: Path) -> list[str]:
    """Return the words after the name of the process in a stat file of /proc."""
    return file.read_text().rpartition(")")[2].split()  # the name may have spaces


def _is_consequence(raised: Mapping[str, Any]) -> bool:
    """Return whether an exception only says that another rank ended or is silent."""
    return any(words in raised["message"] for words in ("Connection closed", "Connection reset", "Timed out waiting"))


def _exception_line(raised: Mapping[str, Any]) -> str:
    name = raised["classes"][0].rpartition(".")[2]
    first = str(raised["message"]).partition("\n")[0]
    return one_line(f"{name}: {first}".removesuffix(": "))


def _ending(ended: str, status: int | None) -> str:
    if status is None:
        return ended
    if status >= 0:
        return f"ended with exit status {status}"
    return f"ended with {name_of_signal(-status)}"


_BUILTIN: dict[str, type[Exception]] = {
    f"builtins.{one.__name__}": one
    for one in (ValueError, IndexError, KeyError, TypeError, RuntimeError, NotImplementedError, AssertionError)
}
_BUILTIN |= {"builtins.ZeroDivisionError": ZeroDivisionError, "builtins.AttributeError": AttributeError}


def _exception(raised: Mapping[str, Any], more: str = "") -> Exception:
    """Return a builtin exception for an exception that a rank raised, with the same message and then `more`.

    If no class of the exception is in `_BUILTIN`, return a RuntimeError whose message names the class.
    """
    kind = next((_BUILTIN[name] for name in raised["classes"] if name in _BUILTIN), None)
    text = str(raised["message"]) if kind is not None else _exception_line(raised)
    with suppress(TypeError):
        return (kind or RuntimeError)(f"{text}{more}")
    return RuntimeError(f"{text}{more}")
