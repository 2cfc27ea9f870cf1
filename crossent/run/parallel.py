"""Sharing: the cases of a plan in this process, or in several of which each has a share."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.checks.compiled_code import COMPILED_CODE
from crossent.checks.transforms import TRANSFORMS
from crossent.machine import ambient, available
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run.actors import Actor, Nursery, NurseryError, how
from crossent.run.judge import end_case, run_case
from crossent.run.plan import Checks
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.remote import RemoteLoss
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import Host

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Plan = Mapping[Case | BadInput, Checks]


def run_here(
    planned: Plan,
    loaded: Sequence[Subject],
    report: Report,
    device: str,
    progress: Progress = iter,
    hosts: Sequence[Host | None] = (),
) -> None:
    """Enter the outcome of every case into the report."""
    with ambient():
        for case in progress(list(planned)):
            run_case(case, loaded, report, device, planned[case], hosts)


PARTS_PER_WORKER = 8  # for each process, so that none waits long for another
SUBJECTS_AT_ONCE = 8  # subjects at a time that live in processes of their own: each of them takes memory


@dataclass(frozen=True)
class Part:
    """Which cases, on which subjects, and whether these live apart from the judge: in actors."""

    cases: Sequence[int]
    subjects: Sequence[int]
    apart: bool


def run_shared(
    planned: Plan, loaded: Sequence[Subject], report: Report, jobs: int, seconds: float, progress: Progress
) -> None:
    """The same in several processes, each of which gets every so many cases; the report is in the order of the plan.

    What is no subject of this package lives in an actor, and meets the cases in no order that it could know. Others are
    called where they are judged, which is faster; where one of them ends that process, or keeps it, the part is done
    again, each case on each subject by itself, and apart.
    """
    cases = list(planned)
    asked = {check for checks in planned.values() for check in checks}
    for needed, by in (("torch._dynamo", TRANSFORMS), ("torch._inductor.compile_fx", COMPILED_CODE)):
        if asked & set(by):
            with suppress(ImportError):
                importlib.import_module(needed)  # once, and not in every process
    nurseries: list[Nursery] = []  # of each process, one
    actors: dict[int, Actor] = {}
    most = available("cpu") // jobs

    def hosts(subjects: Sequence[int]) -> list[Actor]:
        if not nurseries:  # before anything is judged of what is not of this package
            with ambient():  # which the actors are in from then on
                nurseries.append(Nursery([partial(_loss_of, subject) for subject in loaded], most))
        for at in actors.keys() - set(subjects):
            actors.pop(at).close()
        actors.update((at, Actor(nurseries[0], at, seconds)) for at in subjects if at not in actors)
        return [actors[at] for at in subjects]

    def work(part: Part) -> Report:
        made = Report(report.environment, [SubjectReport(loaded[subject].name) for subject in part.subjects])
        of = {cases[at]: planned[cases[at]] for at in part.cases}
        try:
            lives = hosts(part.subjects) if part.apart else ()
            run_here(of, [loaded[subject] for subject in part.subjects], made, "cpu", hosts=lives)
        except NurseryError:  # a subject has ended more than itself
            os._exit(1)
        return made

    apart = not all(map(is_named, loaded))
    order = list(range(len(cases)))
    if apart:
        SystemRandom().shuffle(order)
    count, every = min(jobs * PARTS_PER_WORKER, len(cases)), range(len(loaded))
    groups = [every[at : at + SUBJECTS_AT_ONCE] for at in every[::SUBJECTS_AT_ONCE]] if apart else [every]
    try:
        with workers(work, jobs) as pool:
            parts = [Part(order[at::count], group, apart) for group in groups for at in range(count)]
            futures = [(part, pool.submit(part, None if apart else seconds)) for part in parts]
            again: list[Part] = []
            for part, future in progress(futures):
                made = pool.made(future)
                if isinstance(made, Ended):
                    again += [Part([case], [subject], True) for case in part.cases for subject in part.subjects]
                else:
                    report.merge(made, part.subjects)
            for part, future in [(part, pool.submit(part)) for part in again]:
                made = pool.made(future)
                if isinstance(made, Ended):
                    (case,), (subject,) = part.cases, part.subjects
                    end_case(cases[case], report.subjects[subject], made.kind, made.message)
                else:
                    report.merge(made, part.subjects)
    finally:
        report.sort([case.id for case in cases])


def is_named(subject: Subject) -> bool:
    """Whether it is one that its name stands for, with or without some features."""
    return subject.source == subject.name and subject.name in BY_NAME


def _loss_of(subject: Subject) -> Loss:
    """A subject's loss in this process."""
    return subject.loss.here() if isinstance(subject.loss, RemoteLoss) else subject.loss


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
