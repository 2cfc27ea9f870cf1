"""The runner: every case on every subject, in this process."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from crossent import checks
from crossent.cases import DTYPES, Case
from crossent.grid import grid
from crossent.report import Finding, Report, SubjectReport
from crossent.subjects import FORMS, REFERENCE, Subject, load

Progress = Callable[[Sequence[Case]], Iterable[Case]]


def check(
    *subjects: str | Callable[..., torch.Tensor],
    device: str = "cpu",
    dtypes: str | Iterable[str] = tuple(DTYPES),
    seed: int = 0,
    progress: Progress = iter,
) -> Report:
    """Hold subjects to the exact answer over the built-in grid: loss and gradient, within rounding.

    Args:
        subjects: forms by name, or callables with the signature of `F.cross_entropy`; when none,
            every form, and `nn.CrossEntropyLoss` in float64, to which they are said to be equal.
        device: where the tensors are put, "cpu" or "cuda:0".
        dtypes: of the logits.
        seed: another seed makes other numbers for the same options.
        progress: wraps the sequence of cases, to show how far the run is.

    Raises:
        ValueError: a name that is no form's, or an unknown dtype.
        TypeError: a subject that is neither a name nor callable.
        RuntimeError: a device that is not here.

    Example:
        >>> import crossent
        >>> report = crossent.check("formula", dtypes=["float32"])
        >>> report.ok
        True
    """
    chosen = dict.fromkeys([dtypes] if isinstance(dtypes, str) else dtypes)  # each once, in the given order
    unknown = [dtype for dtype in chosen if dtype not in DTYPES]
    if unknown:
        raise ValueError(f"dtypes: got {unknown[0]!r}; allowed are {', '.join(DTYPES)}")
    loaded = [load(subject) for subject in dict.fromkeys(subjects)] or [*FORMS.values(), REFERENCE]
    require_device(device)
    with _ambient():
        report = Report(environment(device, seed), [SubjectReport(subject.name) for subject in loaded])
        for case in progress(list(grid(tuple(chosen), seed))):
            run_case(case, loaded, report, device)
    return report


def run_case(case: Case, subjects: Sequence[Subject], report: Report, device: str) -> None:
    """Judge one case on each subject and enter the outcome into the report."""
    inputs, expected = case.build(device), None
    for subject, entry in zip(subjects, report.subjects, strict=True):
        reason = subject.not_applicable(inputs)
        if reason:
            entry.not_applicable[reason] += 1
            continue
        expected = expected or checks.expect(inputs)
        entry.cases[case.dtype] += 1
        own = case.build(device)  # a subject that writes into its arguments must not spoil the next one's
        try:
            got = checks.evaluate(subject.loss, own, gradient=subject.differentiable)
        except (Exception, SystemExit) as error:  # whatever a subject raises is a finding, and the run goes on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            entry.findings.append(Finding("call", case.id, "refused", reason))
            continue
        if changed := checks.changed(own, inputs):
            entry.findings.append(Finding("arguments", case.id, "changed_input", f"it wrote into {changed}"))
        if problem := checks.misshapen(got, expected, subject.dtype):
            entry.findings.append(Finding("result", case.id, "wrong", problem))
            continue
        if got.gradient is None:
            entry.not_applicable["has no gradient to compare"] += 1
        wanted = subject.grade(case.dtype)
        differences = checks.compare(got, expected, wanted, subject.promise)
        held = wanted == "A" and all(difference.ratio <= 1 for difference in differences)
        entry.grade(case.dtype, wanted if held else checks.reached(got, expected, subject.promise))
        for d in differences:
            entry.tally(d.check, case.dtype).add(case.id, d.ulp, d.ratio, d.judged, d.not_judged, d.vacuous)
            if d.ratio > 1:
                entry.findings.append(Finding(d.check, case.id, "wrong", str(d)))


@contextmanager
def _ambient() -> Iterator[None]:
    """The state of torch that a run is made in, whatever the caller's is: gradients on, no autocast, one thread.

    The grid's tensors are tiny: on a busy machine a pool of threads made the run three times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
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


def environment(device: str, seed: int) -> dict[str, str]:
    """What a reader must know to repeat the run."""
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "seed": str(seed),
    }


def device_name(device: str) -> str:
    """The device, with the model's name where it is a CUDA device."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
