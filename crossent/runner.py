"""The runner: every case on every subject, in this process or in several."""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from random import SystemRandom
from typing import Any

import numpy as np
import torch

from crossent import expected_findings as lists
from crossent.actors import Actor, Nursery, NurseryError
from crossent.acts import Host
from crossent.apart import Elsewhere, load_apart
from crossent.axes import DTYPES
from crossent.bad_inputs import BadInput
from crossent.cases import Case
from crossent.findings import SubjectReport
from crossent.grid import met
from crossent.judge import end_case, run_case
from crossent.large import available
from crossent.levels import CHECKS, LEVELS, Checks, plan
from crossent.loading import COMPILED as BY_COMPILER
from crossent.loading import load
from crossent.report import Report
from crossent.results import Loss
from crossent.subjects import BY_NAME, NAMED, Subject
from crossent.transforms import COMPILED, TRANSFORMS
from crossent.workers import Ended, can_fork, workers

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Plan = Mapping[Case | BadInput, Checks]


def check(
    *subjects: str | Callable[..., torch.Tensor],
    device: str = "cpu",
    dtypes: str | Iterable[str] = tuple(DTYPES),
    level: str = "normal",
    seed: int | str = 0,
    without: str | Iterable[str] = (),
    grade: str = "A",
    expected_findings: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    progress: Progress = iter,
) -> Report:
    """Hold subjects to the exact answer over the built-in cases: loss and gradients, within rounding, and errors.

    Args:
        subjects: forms by name, `torch`, `package.module:NAME` or `path/to/file.py:NAME`, each also with `+compile`;
            callables with the signature of `F.cross_entropy`, classes with the constructor of `nn.CrossEntropyLoss`;
            when none, every form and torch.
        device: where the tensors are put, "cpu" or "cuda:0".
        dtypes: of the logits.
        level: how much of all that can be asked: "quick", "normal" or "thorough".
        seed: another seed makes other numbers for the same options; "random" is one that nobody knows before.
        without: features that the subjects do without, as `crossent list features` names them.
        grade: what a callable must reach in half precision: "A", float32 inside and one rounding, or "B", the
            precision of the dtype inside.
        expected_findings: a file of what is known to be wrong, written as `torch_findings.toml` is.
        jobs: how many processes share the cases, so that a subject may end one; None for this process alone, as it is
            on CUDA, and on a system that cannot fork.
        timeout: seconds for a case in one of several processes, after which its subject is said to hang.
        progress: wraps the sequence of what is done one after another, to show how far the run is.

    Raises:
        ValueError: a subject that cannot be had, an unknown dtype, level, feature or grade, a seed below 0, fewer than
            one job, a time-out that is not positive, or a file of expected findings that is none.
        TypeError: a subject that is neither a name nor is called as one.
        RuntimeError: a device that is not here.

    Example:
        >>> import crossent
        >>> report = crossent.check("formula", dtypes=["float32"], level="quick")
        >>> report.ok
        True
    """
    chosen = dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes)  # each once, in the given order
    unknown = [dtype for dtype in chosen if dtype not in DTYPES]
    if unknown:
        raise ValueError(f"dtypes: got {unknown[0]!r}; allowed are {', '.join(DTYPES)}")
    if level not in LEVELS:
        raise ValueError(f"level: got {level!r}; allowed are {', '.join(LEVELS)}")
    if isinstance(seed, str):
        if seed != "random":
            raise ValueError(f"seed: got {seed!r}; allowed are 0 or more, and random")
        seed = SystemRandom().randrange(2**32)
    if seed < 0:
        raise ValueError(f"seed: got {seed}; allowed are 0 or more, and random")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: got {jobs}; allowed is 1 or more")
    if not timeout > 0:
        raise ValueError(f"timeout: got {timeout}; allowed is more than 0 seconds")
    named = dict.fromkeys(subjects) or NAMED
    require_device(device)
    shared = jobs is not None and device == "cpu" and can_fork()
    without = list(without)
    each = (
        load_apart(one, timeout, without=without, grade=grade)
        if shared and isinstance(one, str) and one.removesuffix(BY_COMPILER) not in {**NAMED, **BY_NAME}
        else load(one, without=without, grade=grade, device=device)
        for one in named
    )
    loaded = _of_names_of_their_own(itertools.chain.from_iterable(each))
    planned = plan(level, tuple(chosen), seed)
    known = known_findings(expected_findings, loaded, device, seed)
    parts = [SubjectReport(subject.name, order=(*CHECKS, "errors")) for subject in loaded]
    report = Report(environment(device), parts, level=level, seed=seed)
    try:
        if jobs is not None and shared:
            _share(planned, loaded, report, jobs, timeout, progress)
        else:
            _run(planned, loaded, report, device, progress)
    except KeyboardInterrupt:
        report.planned = len(planned)
        raise Interrupted(_finished(report, loaded, planned, known)) from None
    return _finished(report, loaded, planned, known)


class Interrupted(KeyboardInterrupt):  # as the interrupt that it is
    """A run was interrupted; `report` has what had been done."""

    def __init__(self, report: Report) -> None:
        super().__init__("interrupted")
        self.report = report


def _finished(report: Report, loaded: Sequence[Subject], planned: Plan, known: tuple[Known, Known]) -> Report:
    """The report with what is said of all of it."""
    for subject, part in zip(loaded, report.subjects, strict=True):
        if not _is_named(subject):
            part.findings = [replace(finding, named=False) for finding in part.findings]
    mark(report, known, shipped(loaded))
    asked = {check.name for checks in planned.values() for check in checks}
    report.left_out = [name for name in CHECKS if name not in asked]
    report.triples = met(case for case in planned if isinstance(case, Case))
    return report


Known = list[lists.ExpectedFinding]


def known_findings(
    path: str | os.PathLike[str] | None, subjects: Sequence[Subject] | None, device: str, seed: int = 0
) -> tuple[Known, Known]:
    """What is known to be wrong: of torch itself, and what a file says of these subjects, or of any.

    Raises:
        ValueError: the file is none, or cannot be read, or has an entry that can match nothing.
    """
    if path is None:
        return lists.shipped(), []
    try:
        own = lists.load(os.fspath(path))
        here = [entry for entry in own if entry.applies(str(torch.__version__), device)]
        names = None if subjects is None else [subject.name for subject in subjects]
        lists.require_about(here, names, (*CHECKS, "errors"), partial(_ids, seed))
    except OSError as error:
        raise ValueError(f"expected findings: {os.fspath(path)}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"expected findings: {error}") from None
    return lists.shipped(), own


@cache
def _ids(seed: int) -> list[str]:
    """Those of all cases that a run with this seed, or without one, may have."""
    return list({case.id: None for at in {0, seed} for case in plan("thorough", tuple(DTYPES), at)})


def shipped(subjects: Iterable[Subject]) -> list[str]:
    """The names of those that are crossent's own, and of what torch.compile makes of them."""
    return [subject.name for subject in subjects if subject.source.removesuffix(BY_COMPILER) in BY_NAME]


def mark(report: Report, known: tuple[Known, Known], own: Collection[str]) -> None:
    """Mark what is known to be wrong: of torch, only with the subjects of these names."""
    of_torch, of_all = known
    lists.expect(report, of_torch, own)
    lists.expect(report, of_all)


def _is_named(subject: Subject) -> bool:
    """Whether it is one that its name stands for, with or without some features."""
    return subject.source == subject.name and subject.name in BY_NAME


def _loss_of(subject: Subject) -> Loss:
    """A subject's loss in this process."""
    return subject.loss.here() if isinstance(subject.loss, Elsewhere) else subject.loss


def _of_names_of_their_own(subjects: Iterable[Subject]) -> list[Subject]:
    """The subjects, with a number behind a name that one before has: every lambda is called the same."""
    seen: Counter[str] = Counter()
    made = []
    for subject in subjects:
        seen[subject.name] += 1
        number = seen[subject.name]
        made.append(subject if number == 1 else replace(subject, name=f"{subject.name}#{number}"))
    return made


def _run(
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


@dataclass(frozen=True)
class Part:
    """Which cases, on which subjects, and whether these live apart from the judge: in actors."""

    cases: Sequence[int]
    subjects: Sequence[int]
    apart: bool


def _share(
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
    actors: list[Actor] = []  # of each process
    most = available("cpu") // jobs

    def work(part: Part) -> Report:
        if not actors:  # before anything is judged
            with ambient():  # which the actors are in from then on
                nursery = Nursery([partial(_loss_of, subject) for subject in loaded], most)
            actors.extend(Actor(nursery, at, seconds) for at in range(len(loaded)))
        made = Report(report.environment, [SubjectReport(loaded[subject].name) for subject in part.subjects])
        of = {cases[at]: planned[cases[at]] for at in part.cases}
        hosts = [actors[subject] for subject in part.subjects] if part.apart else ()
        try:
            _run(of, [loaded[subject] for subject in part.subjects], made, "cpu", hosts=hosts)
        except NurseryError:  # a subject has ended more than itself
            os._exit(1)
        return made

    apart = not all(map(_is_named, loaded))
    order = list(range(len(cases)))
    if apart:
        SystemRandom().shuffle(order)
    count, every = min(jobs * PARTS, len(cases)), range(len(loaded))
    try:
        with workers(work, jobs) as pool:
            parts = [Part(order[at::count], every, apart) for at in range(count)]
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


@contextmanager
def ambient() -> Iterator[None]:
    """The state of torch that a run is made in, whatever the caller's is: gradients on, no autocast, one thread.

    The grid's tensors are tiny: on a busy machine a pool of threads made the run three times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):  # torch warns of the other
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        torch.set_num_threads(threads)


def require_device(device: str) -> None:
    """Raise RuntimeError, in one line, where torch cannot put a tensor on the device."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RuntimeError(f"device: got {device!r}; allowed are cpu, cuda and cuda:N")
    try:
        torch.zeros(1, device=device).item()  # a meta tensor has no value
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # torch goes on to list its backends
        raise RuntimeError(f"device: got {device!r}; {reason}") from None


def environment(device: str) -> dict[str, str]:
    """What a reader must know to repeat the run."""
    says = getattr(torch.backends, "cpu", None)  # since torch 2.1
    found = {
        "crossent": version("crossent"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": says.get_cpu_capability() if says else "unknown",
        "threads": str(torch.get_num_threads()),
        "device": device,
    }
    return {**found, "device_name": torch.cuda.get_device_name(device)} if device.startswith("cuda") else found


def device_name(device: str) -> str:
    """The device, with the model's name where it is a CUDA device."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
