"""Sharing: the cases of a plan in this process, or in several of which each has a share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom
from typing import Any

from crossent.actors import Actor, Nursery, NurseryError
from crossent.acts import Host
from crossent.apart import Elsewhere
from crossent.bad_inputs import BadInput
from crossent.cases import Case
from crossent.environment import ambient
from crossent.findings import SubjectReport
from crossent.judge import end_case, run_case
from crossent.large import available
from crossent.levels import Checks
from crossent.report import Report
from crossent.results import Loss
from crossent.subjects import BY_NAME, Subject
from crossent.transforms import COMPILED, TRANSFORMS
from crossent.workers import Ended, workers

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


PARTS = 8  # for each process, so that none waits long for another
TOGETHER = 8  # subjects at a time that live in processes of their own: each of them takes memory


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
    for needed, by in (("torch._dynamo", TRANSFORMS), ("torch._inductor.compile_fx", COMPILED)):
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
    count, every = min(jobs * PARTS, len(cases)), range(len(loaded))
    groups = [every[at : at + TOGETHER] for at in every[::TOGETHER]] if apart else [every]
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
    return subject.loss.here() if isinstance(subject.loss, Elsewhere) else subject.loss
