"""Start and watch worker processes, and kill a worker that stops responding.

A part is some cases on some subjects, which run in one worker.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from crossent.machine import end_threads
from crossent.run.isolation.process import status_in_words
from crossent.run.order import Part
from crossent.subjects.confinement import end_with_parent

T = TypeVar("T")
LOOK = 0.5  # the seconds between two looks of the parent at its workers
# The seconds that a worker gets in addition to the time limit of a call. Before the call, the worker computes exact
# values and error bounds.
_GRACE = 60.0
_SIGN = struct.Struct("I")  # the format of a sign of life: the number of the part that the worker runs


@dataclass(frozen=True)
class Ended:
    """How a worker ended without a result: the kind of a finding, "crashed" or "hung", and its message."""

    kind: str
    message: str


@dataclass
class Workers(Generic[T]):
    """A pool of worker processes, each of which runs one part at a time.

    A worker regularly gives a sign of life: it writes the number of its part into a pipe (:func:`alive`).

    Attributes:
        pool: the processes.
        patience: the seconds without a sign of life after which :meth:`ended` kills a worker.
        signs: the file descriptor from which the signs of life are read.
        last: the time of the last sign of life of each part, by part number.
        parts: the number of each part, by its future.
    """

    pool: ProcessPool
    patience: float
    signs: int
    last: dict[int, float] = field(default_factory=dict)
    parts: dict[Future[T], int] = field(default_factory=dict)

    def submit(self, part: Part, timeout: float | None) -> Future[T]:
        """Let a worker run a part, and return the future of the result.

        Kill the worker after `timeout` seconds. None stands for no limit.
        """
        number = len(self.parts)
        future: Future[T] = self.pool.schedule(_share, args=[part, number], timeout=timeout)
        self.parts[future] = number
        return future

    def ended(self, futures: Mapping[Future[T], Part], running: Callable[[list[Part]], None]) -> Iterator[Future[T]]:
        """Yield each future when it ends. Meanwhile call `running` with the running parts, and kill silent workers."""
        left = set(futures)
        while left:
            now = [future for future in futures if future in left and future.running()]
            running([futures[future] for future in now])
            done, left = wait(left, LOOK, FIRST_COMPLETED)
            yield from done
            self._end_silent([future for future in now if future in left])

    def _end_silent(self, running: list[Future[T]]) -> None:
        with suppress(BlockingIOError):
            content = os.read(self.signs, 2**16)
            self.last.update((number, time.monotonic()) for (number,) in _SIGN.iter_unpack(content))
        for future in running:
            # before the first sign, the time when this method first finds the part running
            last = self.last.setdefault(self.parts[future], time.monotonic())
            if time.monotonic() - last > self.patience:
                future.cancel()


def result(future: Future[T]) -> T | Ended:
    """Return the result of a part of the run, or how its worker ended without a result.

    If the part raised an exception in the worker, raise this exception.
    """
    try:
        return future.result()
    except TimeoutError:
        return Ended("hung", "the part did not end in time")
    except CancelledError:
        return Ended("hung", "the worker process stopped responding, and was killed")
    except ProcessExpired as death:
        return Ended("crashed", f"the worker process ended: {status_in_words(death.exitcode)}")


@contextmanager
def workers(share: Callable[[Part], T], jobs: int, timeout: float) -> Iterator[Workers[T]]:
    """Yield a pool of forked workers, which call `share` on parts of a run, and end with the `with` block.

    Args:
        share: a function that calls :func:`alive` at least every `timeout` seconds. A worker is killed after
            `timeout` + `_GRACE` seconds without this call.
        jobs: the number of workers.
        timeout: the time limit of one call of a subject, in seconds.
    """
    global _SHARED
    signs, alive_at = os.pipe()
    for descriptor in (signs, alive_at):
        os.set_blocking(descriptor, False)
    _SHARED = _Shared(share, alive_at)
    pool = ProcessPool(jobs, initializer=_start, context=multiprocessing.get_context("fork"))
    try:
        end_threads()
        # Python 3.12 warns of a fork in a process with threads. A worker needs no thread of its parent. torch's threads
        # have ended, and a worker sets torch to one thread before the first call of a subject.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            yield Workers(pool, timeout + _GRACE, signs)
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # Pebble has no annotation for it
        pool.join()
        _SHARED = None
        os.close(signs)
        os.close(alive_at)


@dataclass
class _Shared:
    """The data that a worker inherits when it is forked, since pickle cannot send every function."""

    share: Callable[[Part], Any]
    alive_at: int  # the file descriptor for signs of life
    number: int = 0  # the number of the part that the worker runs


_SHARED: _Shared | None = None


def alive() -> None:
    """Give a sign of life of this worker. Outside the block of :func:`workers`, do nothing."""
    if _SHARED is not None:
        with suppress(BlockingIOError):  # the pipe is full: the parent has enough signs to read
            os.write(_SHARED.alive_at, _SIGN.pack(_SHARED.number))


def _share(part: Part, number: int) -> Any:
    assert _SHARED is not None
    _SHARED.number = number
    try:
        return _SHARED.share(part)
    except KeyboardInterrupt:  # raised by a subject, since a worker ignores Ctrl-C
        os._exit(128 + signal.SIGINT)


def _start() -> None:
    """Prepare this worker: set its signals, its output, torch's compiler and its memory."""
    end_with_parent()  # even during a call of a subject, which may take as long as the time limit
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()  # the report says how a worker ended
    # torch's compiler processes, if the parent has started them, do not work for a forked child.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if (config := sys.modules.get("torch._inductor.config")) is not None:
        config.compile_threads = 1  # type: ignore[attr-defined]
    with suppress(OSError):
        os.dup2(2, 1)
    # Keep freed memory: returning it to the system would take a tenth of the time of a run. Only glibc has mallopt.
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            mallopt(option, 2**30)
