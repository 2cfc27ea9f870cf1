"""Workers: forked processes in which parts of a run are made, and which a subject may end, or keep for ever."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from crossent.actors import how

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Ended:
    """How a worker ended without a result: `kind` is that of a finding, "crashed" or "hung"."""

    kind: str
    message: str


@dataclass(frozen=True)
class Workers(Generic[Task, Made]):
    """Some processes that work on tasks. One that ends is replaced by another."""

    pool: ProcessPool

    def submit(self, task: Task, seconds: float | None = None) -> Future[Made]:
        """Put a task at the end of the queue, which may take so many seconds, or any number."""
        future: Future[Made] = self.pool.schedule(_forked, args=[task], timeout=seconds)
        return future

    def made(self, future: Future[Made]) -> Made | Ended:
        """What came of a task, once it is done."""
        try:
            return future.result()
        except TimeoutError:
            return Ended("hung", "no answer within the time that it was given")
        except ProcessExpired as death:
            return Ended("crashed", f"its process ended: {how(death.exitcode)}")


def can_fork() -> bool:
    """Whether there can be workers: they are forked, since a subject may be a function that no process could import."""
    return "fork" in multiprocessing.get_all_start_methods()


@contextmanager
def workers(work: Callable[[Task], Made], jobs: int) -> Iterator[Workers[Task, Made]]:
    """Processes that do `work`; whatever happens, none is left running."""
    _FORKED.append(work)
    pool = ProcessPool(jobs, initializer=_start, context=multiprocessing.get_context("fork"))
    try:
        # Python 3.12 warns of threads that are not there in a child, which sets torch to one before it needs any.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            yield Workers(pool)
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # Pebble annotates it in part
        pool.join()
        _FORKED.pop()


# What a forked process finds there: a function that it could not be sent.
_FORKED: list[Callable[[Any], Any]] = []


def _forked(task: Any) -> Any:
    try:
        return _FORKED[-1](task)
    except KeyboardInterrupt:  # a subject's own, since the signal is ignored; to the parent it would be the user's
        os._exit(128 + signal.SIGINT)


def _start() -> None:
    """What a worker does first: leave Ctrl-C to the parent, stdout to the report, and keep its memory.

    Arrays come and go, and a tenth of the time went into new pages for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()  # how it ended is in the report
    # A pool of compilers that the parent has started does not answer to its children.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if (config := sys.modules.get("torch._inductor.config")) is not None:
        config.compile_threads = 1  # type: ignore[attr-defined]
    with suppress(OSError):
        os.dup2(2, 1)
    with suppress(OSError, AttributeError):  # no such function but in glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            mallopt(option, 2**30)
