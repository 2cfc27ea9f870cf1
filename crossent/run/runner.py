"""The runner: every case on every subject, in this process or in several."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from random import SystemRandom

import torch

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import met
from crossent.checks import CHECKS
from crossent.machine import environment, require_device
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run.parallel import Plan, Progress, can_fork, is_named, run_here, run_shared
from crossent.run.plan import LEVELS, plan
from crossent.run.settings import ExpectedList, expected_lists, mark_expected, own_names
from crossent.subjects.builtin import BY_NAME, NAMED
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.loader import load
from crossent.subjects.remote import load_remote
from crossent.subjects.subject import Subject


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
        load_remote(one, timeout, without=without, grade=grade)
        if shared and isinstance(one, str) and one.removesuffix(COMPILE_SUFFIX) not in {**NAMED, **BY_NAME}
        else load(one, without=without, grade=grade, device=device)
        for one in named
    )
    loaded = _of_names_of_their_own(itertools.chain.from_iterable(each))
    planned = plan(level, tuple(chosen), seed)
    known = expected_lists(expected_findings, loaded, device, seed)
    parts = [SubjectReport(subject.name, order=(*CHECKS, "errors")) for subject in loaded]
    report = Report(environment(device), parts, level=level, seed=seed)
    try:
        if jobs is not None and shared:
            run_shared(planned, loaded, report, jobs, timeout, progress)
        else:
            run_here(planned, loaded, report, device, progress)
    except KeyboardInterrupt:
        report.planned = len(planned)
        raise Interrupted(_finished(report, loaded, planned, known)) from None
    return _finished(report, loaded, planned, known)


class Interrupted(KeyboardInterrupt):  # as the interrupt that it is
    """A run was interrupted; `report` has what had been done."""

    def __init__(self, report: Report) -> None:
        super().__init__("interrupted")
        self.report = report


def _finished(
    report: Report, loaded: Sequence[Subject], planned: Plan, known: tuple[ExpectedList, ExpectedList]
) -> Report:
    """The report with what is said of all of it."""
    for subject, part in zip(loaded, report.subjects, strict=True):
        if not is_named(subject):
            part.findings = [replace(finding, named=False) for finding in part.findings]
    mark_expected(report, known, own_names(loaded))
    asked = {check.name for checks in planned.values() for check in checks}
    report.left_out = [name for name in CHECKS if name not in asked]
    report.triples = met(case for case in planned if isinstance(case, Case))
    return report


def _of_names_of_their_own(subjects: Iterable[Subject]) -> list[Subject]:
    """The subjects, with a number behind a name that one before has: every lambda is called the same."""
    seen: Counter[str] = Counter()
    made = []
    for subject in subjects:
        seen[subject.name] += 1
        number = seen[subject.name]
        made.append(subject if number == 1 else replace(subject, name=f"{subject.name}#{number}"))
    return made
