"""The cases of a plan in this process, or in several worker processes of which each takes a share."""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import SystemRandom
from typing import Any

from pebble import ProcessExpired, ProcessPool

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.machine import ambient, available
from crossent.report.findings import Verdict
from crossent.report.report import Report
from crossent.run.fresh_process import FreshProcess
from crossent.run.isolation import ForkServer, ForkServerError, IsolatedProcess, status_in_words
from crossent.run.judge import judge_bad_input, judge_case, judge_ended
from crossent.run.plan import Plan
from crossent.run.settings import Settings, is_named
from crossent.subjects.remote import RemoteLoss
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import Here, Host
from crossent.trials.check import Check, Cost
from crossent.trials.trial import Question

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Placed = tuple[int, Verdict]  # a subject by its place, and the verdict on it

PARTS_PER_WORKER = 8  # so that no worker waits long for another
SUBJECTS_AT_ONCE = 8  # foreign subjects whose isolated processes a worker keeps at a time: each takes memory


def run(planned: Plan, subjects: Sequence[Subject], report: Report, settings: Settings, progress: Progress) -> None:
    """Run the cases of a plan on subjects, and enter the verdicts into a report."""
    if settings.in_workers:
        _run_in_workers(planned, subjects, report, settings, progress)
        return
    hosts = [Here(subject.loss) for subject in subjects]
    with ambient():
        for case in progress(list(planned)):
            for verdict, part in zip(
                judge_each(case, planned[case], subjects, hosts, settings.device), report.subjects, strict=True
            ):
                part.enter(verdict)


def judge_each(
    case: Case | BadInput, checks: Sequence[Check], subjects: Sequence[Subject], hosts: Sequence[Host], device: str
) -> Iterator[Verdict]:
    """Judge each subject on a case: the inputs and the exact value are made once for all of them."""
    fresh: Host
    if isinstance(case, BadInput):
        for subject, host in zip(subjects, hosts, strict=True):
            fresh = FreshProcess(subject.loss, device) if case.asserts(device) else host
            yield judge_bad_input(case, subject, fresh, device)
        return
    question = Question(case, device)
    for subject, host in zip(subjects, hosts, strict=True):
        yield judge_case(question, subject, host, checks)


@dataclass(frozen=True)
class Part:
    """A part of a run: the indices of its cases and subjects, and whether the subjects run in isolated processes."""

    cases: Sequence[int]
    subjects: Sequence[int]
    isolated: bool


@dataclass
class _Work:
    """The work of a run, as every forked worker has it in memory."""

    planned: Plan
    subjects: Sequence[Subject]
    settings: Settings
    server: ForkServer | None = None
    processes: dict[int, IsolatedProcess] = field(default_factory=dict)

    def share(self, part: Part) -> list[Placed]:
        """Judge the cases of a part on its subjects."""
        cases = list(self.planned)
        subjects = [self.subjects[at] for at in part.subjects]
        try:
            hosts = self._isolated(part.subjects) if part.isolated else [Here(subject.loss) for subject in subjects]
            with ambient():
                return [
                    placed
                    for at in part.cases
                    for placed in zip(
                        part.subjects,
                        judge_each(cases[at], self.planned[cases[at]], subjects, hosts, "cpu"),
                        strict=True,
                    )
                ]
        except ForkServerError:  # a subject has ended more than its own process
            os._exit(1)

    def _isolated(self, subjects: Sequence[int]) -> Sequence[Host]:
        """The isolated processes of these subjects; those of others are closed."""
        if self.server is None:  # before the first verdict, so that no isolated process inherits an exact value
            memory = available("cpu") // (self.settings.jobs or 1)
            with ambient():
                self.server = ForkServer([partial(_loss_of, subject) for subject in self.subjects], memory)
        for at in self.processes.keys() - set(subjects):
            self.processes.pop(at).close()
        for at in subjects:
            if at not in self.processes:
                self.processes[at] = IsolatedProcess(self.server, at, self.settings.timeout)
        return [self.processes[at] for at in subjects]


def _run_in_workers(
    planned: Plan, subjects: Sequence[Subject], report: Report, settings: Settings, progress: Progress
) -> None:
    """Share the cases out among worker processes. The report is in the order of the plan.

    If every subject is this package's own, the workers call the subjects themselves, which is faster. A part whose
    worker crashes or hangs runs again, each case on each subject by itself, in an isolated process. Foreign subjects
    always run in isolated processes, and see the cases in random order.
    """
    _import_compilers(planned)
    cases, jobs = list(planned), settings.jobs or 1
    isolated = not all(map(is_named, subjects))
    order, every = list(range(len(cases))), range(len(subjects))
    if isolated:
        SystemRandom().shuffle(order)
    count = min(jobs * PARTS_PER_WORKER, len(cases))
    groups = [every[at : at + SUBJECTS_AT_ONCE] for at in every[::SUBJECTS_AT_ONCE]] if isolated else [every]
    parts = [Part(order[at::count], group, isolated) for group in groups for at in range(count)]

    def enter(verdicts: Sequence[Placed]) -> None:
        for at, verdict in verdicts:
            report.subjects[at].enter(verdict)

    try:
        with _workers(_Work(planned, subjects, settings), jobs) as submit:
            again: list[Part] = []
            futures = [(part, submit(part, None if isolated else settings.timeout)) for part in parts]
            for part, future in progress(futures):
                made = _made(future)
                if isinstance(made, _Ended):
                    again += [Part([case], [subject], True) for case in part.cases for subject in part.subjects]
                else:
                    enter(made)
            for part, future in [(part, submit(part, None)) for part in again]:
                made = _made(future)
                if isinstance(made, _Ended):
                    (case,), (subject,) = part.cases, part.subjects
                    enter([(subject, judge_ended(cases[case], subjects[subject].name, made.kind, made.message))])
                else:
                    enter(made)
    finally:
        report.sort([case.id for case in cases])


def _import_compilers(planned: Plan) -> None:
    """Import torch's compilers once, before the fork, if a check of the plan uses them."""
    checks = {check for checks in planned.values() for check in checks}
    costs = {check.cost for check in checks if "compile" in check.needs}
    if any(check.transforms for check in checks):
        _import("torch._dynamo")
    if Cost.CODE in costs:
        _import("torch._inductor.compile_fx")


def _import(module: str) -> None:
    with suppress(ImportError):
        importlib.import_module(module)


def _loss_of(subject: Subject) -> Loss:
    """The loss of a subject, loaded in this process."""
    return subject.loss.here() if isinstance(subject.loss, RemoteLoss) else subject.loss


@dataclass(frozen=True)
class _Ended:
    """How a worker ended without a result: `kind` is that of a finding, "crashed" or "hung"."""

    kind: str
    message: str


def _made(future: Future[list[Placed]]) -> list[Placed] | _Ended:
    """Wait for a part, and return its verdicts, or how its worker ended."""
    try:
        return future.result()
    except TimeoutError:
        return _Ended("hung", "the call did not return in time")
    except ProcessExpired as death:
        return _Ended("crashed", f"its process ended: {status_in_words(death.exitcode)}")


Submit = Callable[[Part, "float | None"], "Future[list[Placed]]"]


@contextmanager
def _workers(work: _Work, jobs: int) -> Iterator[Submit]:
    """Fork worker processes for the work. A worker that ends is replaced, and all workers end with the block."""
    global _WORK
    _WORK = work
    pool = ProcessPool(jobs, initializer=_start, context=multiprocessing.get_context("fork"))
    try:
        # Python 3.12 warns of a fork among threads; a child has none, and sets torch to one thread before it needs any.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            yield lambda part, seconds: pool.schedule(_share, args=[part], timeout=seconds)
    finally:
        pool.stop()  # type: ignore[no-untyped-call]  # Pebble annotates only a part of it
        pool.join()
        _WORK = None


# A worker finds the work here, since a subject may be a function that cannot be pickled.
_WORK: _Work | None = None


def _share(part: Part) -> list[Placed]:
    assert _WORK is not None
    try:
        return _WORK.share(part)
    except KeyboardInterrupt:  # a subject's own, since the signal is ignored; the parent would take it for the user's
        os._exit(128 + signal.SIGINT)


def _start() -> None:
    """Prepare a worker: leave Ctrl-C to the parent and stdout to the report, and keep freed memory.

    Arrays come and go, and a tenth of the time went into new pages for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()  # the report says how a worker ended
    # A pool of compilers that the parent has started does not answer its children.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if (config := sys.modules.get("torch._inductor.config")) is not None:
        config.compile_threads = 1  # type: ignore[attr-defined]
    with suppress(OSError):
        os.dup2(2, 1)
    with suppress(OSError, AttributeError):  # glibc alone has this function
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            mallopt(option, 2**30)
