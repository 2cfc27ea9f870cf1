"""The runner: every case on every subject, in this process."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from crossent import checks, expected_findings
from crossent.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases import DTYPES, Case, Inputs, bits
from crossent.checks import Difference, Expected
from crossent.edges import edges
from crossent.grid import grid
from crossent.report import Finding, Measured, Numbers, Outcome, Report, SubjectReport, one_line
from crossent.subjects import NAMED, TORCH, Subject, load

Progress = Callable[[Sequence[Case | BadInput]], Iterable[Case | BadInput]]


def check(
    *subjects: str | Callable[..., torch.Tensor],
    device: str = "cpu",
    dtypes: str | Iterable[str] = tuple(DTYPES),
    seed: int = 0,
    progress: Progress = iter,
) -> Report:
    """Hold subjects to the exact answer over the built-in cases: loss and gradients, within rounding, and errors.

    Args:
        subjects: forms by name, `torch`, or callables with the signature of `F.cross_entropy`; when none, every form
            and torch.
        device: where the tensors are put, "cpu" or "cuda:0".
        dtypes: of the logits.
        seed: another seed makes other numbers for the same options.
        progress: wraps the sequence of cases, to show how far the run is.

    Raises:
        ValueError: a name that is no form's, an unknown dtype, or a seed below 0.
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
    if seed < 0:
        raise ValueError(f"seed: got {seed}; allowed is 0 or more")
    named = dict.fromkeys(subjects) or NAMED
    loaded = list(itertools.chain.from_iterable(map(load, named)))
    require_device(device)
    known = expected_findings.shipped()
    cases = [*grid(tuple(chosen), seed), *edges(tuple(chosen), seed)]
    bad = [bad_input for bad_input in BAD_INPUTS if bad_input.dtype in chosen]
    report = Report(environment(device), [SubjectReport(subject.name) for subject in loaded], seed=seed)
    with ambient():
        for case in progress([*cases, *bad]):
            run_case(case, loaded, report, device)
    expected_findings.expect(report, known)
    return report


def run_case(case: Case | BadInput, subjects: Sequence[Subject], report: Report, device: str) -> None:
    """Judge one case on each subject and enter the outcome into the report."""
    inputs = case.build(device)
    expected = None
    for subject, entry in zip(subjects, report.subjects, strict=True):
        reason = subject.not_applicable(inputs)
        if isinstance(case, BadInput) and case.poisons and inputs.logits.is_cuda:
            reason = "would be left with a device that is of no more use"
        if reason:
            entry.not_applicable[reason] += 1
            continue
        outcome = entry.outcomes[case.id] = Outcome(case.dtype, inputs.digest)
        own = case.build(device)  # a subject that writes into its arguments must not spoil the next one's
        if isinstance(case, BadInput):
            entry.findings += _refusal(case, subject, own, outcome)
        else:
            expected = expected or checks.expect(inputs)
            entry.findings += _judgement(case, subject, inputs, own, expected, outcome)
            if not subject.differentiable:
                entry.not_applicable["has no gradient to compare"] += 1


def _refusal(case: BadInput, subject: Subject, own: Inputs, outcome: Outcome) -> Iterator[Finding]:
    """What is wrong with a subject's answer to a call that it must refuse."""
    allowed = " or ".join(error.__name__ for error in case.raises)
    kind = message = ""
    try:
        got = subject.loss(own.logits, own.target, **own.options)
    except case.raises:
        pass
    except (Exception, SystemExit) as error:
        kind, message = "wrong", f"raised {_said(error)}; allowed is {allowed}"
    else:
        plain = type(got) is Tensor and got.layout == torch.strided and not got.is_meta
        value = f" {got.tolist()}" if plain and got.numel() < 10 else ""
        kind, message = "accepted", f"returned{value}; should have raised {allowed}"
    outcome.checks["errors"] = Measured(failed=bool(kind))
    if kind:
        yield Finding(subject.name, "errors", case.id, kind, message, describe(own))


def _judgement(
    case: Case, subject: Subject, inputs: Inputs, own: Inputs, expected: Expected, outcome: Outcome
) -> Iterator[Finding]:
    """What is wrong with a subject's result for a case."""

    def finding(check: str, kind: str, message: str, numbers: Numbers | None = None, of_torch: str = "") -> Finding:
        return Finding(subject.name, check, case.id, kind, message, describe(inputs), numbers, of_torch)

    try:
        got = checks.evaluate(subject.loss, own, gradient=subject.differentiable)
        outcome.digest = got.digest  # also raises where the result has no bits, as on a meta device
    except (Exception, SystemExit) as error:  # whatever a subject raises is a finding, and the run goes on
        outcome.checks["call"] = Measured(failed=True)
        yield finding("call", "refused", _said(error))
        return
    outcome.checks["call"] = Measured()
    changed, problem = checks.changed(own, inputs), checks.misshapen(got, expected, subject.dtype)
    outcome.checks["arguments"], outcome.checks["result"] = Measured(bool(changed)), Measured(bool(problem))
    if changed:
        yield finding("arguments", "changed_input", f"it wrote into {changed}")
    if problem:
        yield finding("result", "wrong", problem)
        return
    wanted = case.grade or subject.grade(case.dtype)
    differences = checks.compare(got, expected, "A" if wanted == "A" else "B", subject.promise)
    held = all(difference.ratio <= 1 for difference in differences)
    outcome.grade = "A" if held and wanted == "A" else checks.reached(got, expected, subject.promise)
    for difference in differences:
        failed = difference.ratio > 1
        outcome.checks[difference.check] = Measured(
            failed,
            difference.ulp,
            difference.ratio,
            difference.vacuous,
            {"something may overflow on the way to them": difference.not_judged} if difference.not_judged else {},
            difference.elements,
        )
        if failed:
            own_value = "" if subject is TORCH else _of_torch(case, difference, inputs)
            yield finding(difference.check, "wrong", str(difference), _numbers(difference), own_value)


def _numbers(d: Difference) -> Numbers:
    return Numbers(d.index, d.got, _bits(d.got, d.dtype), d.exact, d.radius, d.bound, d.ulp, d.ratio)


def _bits(value: float, dtype: str) -> str:
    tensor = torch.tensor(value, dtype=DTYPES[dtype])
    return f"0x{int(bits(tensor)):0{2 * tensor.element_size()}x}"


def _of_torch(case: Case, difference: Difference, inputs: Inputs) -> str:
    """What torch itself gives at the worst element of somebody else's result."""
    try:
        result = checks.evaluate(TORCH.loss, case.build(str(inputs.logits.device)))
    except Exception as error:
        return f"refuses it: {_said(error)}"
    tensor: Tensor = getattr(result, difference.check)
    value = tensor[difference.index].item()
    off = abs(value - difference.exact) if value != difference.exact else 0.0
    name = str(tensor.dtype).removeprefix("torch.")
    share = f", {off / difference.bound:.3g} of what is allowed" if difference.bound else ""
    return f"{value!r}  ({_bits(value, name)}), off by {off:.3g}{share}"


def describe(inputs: Inputs) -> str:
    """The arguments of a call in words."""

    def of(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    options = [f"{k}={of(v) if isinstance(v, Tensor) else repr(v)}" for k, v in inputs.options.items()]
    return ", ".join([f"logits {of(inputs.logits)}", f"target {of(inputs.target)}", *options])


def _said(error: BaseException) -> str:
    """An exception's first line, whatever it is."""
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception as another:
        said = f"and its message raises {type(another).__name__}"
    return one_line(f"{type(error).__name__}: {said}".removesuffix(": "))


@contextmanager
def ambient() -> Iterator[None]:
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


def environment(device: str) -> dict[str, str]:
    """What a reader must know to repeat the run."""
    cpu = getattr(torch.backends, "cpu", None)  # torch 2.0 has none
    capability = getattr(cpu, "get_cpu_capability", lambda: "unknown")()
    found = {
        "crossent": version("crossent"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_capability": capability,
        "threads": str(torch.get_num_threads()),
        "device": device,
    }
    return {**found, "device_name": torch.cuda.get_device_name(device)} if device.startswith("cuda") else found


def device_name(device: str) -> str:
    """The device, with the model's name where it is a CUDA device."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
