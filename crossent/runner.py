"""The runner: every case on every subject, in this process or in several."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import multiprocessing
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from crossent import expected_findings
from crossent.axes import DTYPES
from crossent.bad_inputs import BadInput
from crossent.cases import Case
from crossent.findings import SubjectReport
from crossent.grid import met
from crossent.judge import run_case
from crossent.levels import LEVELS, Checks, plan
from crossent.report import Report
from crossent.subjects import NAMED, Subject, load
from crossent.transforms import COMPILED

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Plan = Mapping[Case | BadInput, Checks]


def check(
    *subjects: str | Callable[..., torch.Tensor],
    device: str = "cpu",
    dtypes: str | Iterable[str] = tuple(DTYPES),
    level: str = "normal",
    seed: int = 0,
    jobs: int = 1,
    progress: Progress = iter,
) -> Report:
    """Hold subjects to the exact answer over the built-in cases: loss and gradients, within rounding, and errors.

    Args:
        subjects: forms by name, `torch`, or callables with the signature of `F.cross_entropy`; when none, every form
            and torch.
        device: where the tensors are put, "cpu" or "cuda:0".
        dtypes: of the logits.
        level: how much of all that can be asked: "quick", "normal" or "thorough".
        seed: another seed makes other numbers for the same options.
        jobs: how many processes share the cases, on a CPU of a system that can fork; elsewhere there is one.
        progress: wraps the sequence of what is done one after another, to show how far the run is.

    Raises:
        ValueError: a name that is no form's, an unknown dtype or level, a seed below 0, or fewer than one job.
        TypeError: a subject that is neither a name nor callable.
        RuntimeError: a device that is not here; or a subject that ended one of several processes.

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
    if seed < 0:
        raise ValueError(f"seed: got {seed}; allowed is 0 or more")
    if jobs < 1:
        raise ValueError(f"jobs: got {jobs}; allowed is 1 or more")
    named = dict.fromkeys(subjects) or NAMED
    loaded = list(itertools.chain.from_iterable(map(load, named)))
    require_device(device)
    known = expected_findings.shipped()
    planned = plan(level, tuple(chosen), seed)
    report = Report(environment(device), [SubjectReport(subject.name) for subject in loaded], level=level, seed=seed)
    if jobs > 1 and device == "cpu" and "fork" in multiprocessing.get_all_start_methods():
        _share(planned, loaded, report, jobs, progress)
    else:
        _run(planned, loaded, report, device, progress)
    expected_findings.expect(report, known)
    report.triples = met(case for case in planned if isinstance(case, Case))
    return report


def _run(planned: Plan, loaded: Sequence[Subject], report: Report, device: str, progress: Progress = iter) -> None:
    """Enter the outcome of every case into the report."""
    with ambient():
        for case in progress(list(planned)):
            run_case(case, loaded, report, device, planned[case])


def _share(planned: Plan, loaded: Sequence[Subject], report: Report, jobs: int, progress: Progress) -> None:
    """The same in several processes, each of which gets every so many cases; the report is in the order of the plan.

    They are forked: a subject may be a function that no other process could import.
    """
    cases = list(planned)
    if any(check in COMPILED for checks in planned.values() for check in checks):
        with suppress(ImportError):
            importlib.import_module("torch._inductor.compile_fx")  # once, and not in every process
        pass  # once, and not in every process
    parts = min(jobs * PARTS, len(cases))

    def run_part(at: int) -> Report:
        part = Report(report.environment, [SubjectReport(subject.name) for subject in loaded])
        _run({case: planned[case] for case in cases[at::parts]}, loaded, part, "cpu")
        return part

    _FORKED.append(run_part)
    try:
        # Python 3.12 warns of threads that are not there in a child, which sets torch to one before it needs any.
        forking = multiprocessing.get_context("fork")
        with warnings.catch_warnings(), ProcessPoolExecutor(jobs, forking, initializer=_keep_memory) as pool:
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            done = [pool.submit(_forked, at) for at in range(parts)]
            for one in progress(done):
                report.merge(one.result())
    except BrokenProcessPool:
        raise RuntimeError("jobs: a subject ended the process that it ran in; allowed with it is --jobs 1") from None
    finally:
        _FORKED.pop()
    report.sort([case.id for case in cases])


# What a forked process finds there: a function that it could not be sent.
_FORKED: list[Callable[[int], Report]] = []
PARTS = 8  # for each process, so that none waits long for another


def _keep_memory() -> None:
    """Let the C library keep what is freed: arrays come and go, and a tenth of the time went into pages for them."""
    with suppress(OSError, AttributeError):  # no such function but in glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            mallopt(option, 2**30)


def _forked(at: int) -> Report:
    return _FORKED[-1](at)


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
