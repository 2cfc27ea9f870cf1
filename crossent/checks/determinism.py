"""Determinism: the same bits whenever and wherever on a device a subject is called.

What sums with atomic additions, as torch does over the rows of `(N, C, d1, …)` on CUDA, gives other bits from call to
call (pytorch#17350, pytorch#46024, pytorch#71367); what starts its work on another stream than the caller's reads
arguments that are not there yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crossent.cases.inputs import Inputs
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun, Raised
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference
from crossent.trials.memory import memory, poison, tensors_of
from crossent.trials.trial import NotRunError, Problem, RefusedError, Trial

CALLS = 10  # what pytorch#17350 shows differs in most pairs of calls
# Some milliseconds, in which the host starts all that a call does on a device.
CYCLES = 2**23


@check("repeatable", cost=Cost.STRUCTURE)
def deterministic(trial: Trial) -> Iterator[Problem]:
    """Under `torch.use_deterministic_algorithms(True)`, ten calls give the same bits.

    Where an operation has no deterministic kernel, torch raises, as it documents: then there is nothing to ask.
    """
    try:
        first, *others = trial.perform(evaluate_often, trial.question.fresh(), trial.gradients)
    except RefusedError as refusal:
        if missing := _without_kernel(refusal.raised):
            raise NotRunError(missing) from None
        raise
    for call, other in enumerate(others, 2):
        if other.digest != first.digest:
            yield Problem("not_repeated", f"call {call} of {CALLS} with the same arguments gives other bits")
            return


def evaluate_often(loss: Loss, inputs: Inputs, gradients: Gradients) -> list[Result]:
    """The act of ten calls under `torch.use_deterministic_algorithms(True)`, in memory full of NaN."""
    results = []
    with _deterministic_algorithms():
        for _ in range(CALLS):
            poison(inputs)
            results.append(evaluate(loss, inputs.copy(), gradients).copy())
    return results


@check(cost=Cost.STRUCTURE)
def stream(trial: Trial) -> Iterator[Difference]:
    """On a stream of the caller's, the result is the exact one: on CUDA only.

    The arguments get their values late on that stream, and are zeros until then; the default stream meanwhile fills
    memory with NaN. Who works on another stream than the current one, without waiting for it, computes from zeros.
    """
    device = torch.device(trial.question.device)
    if device.type != "cuda":
        raise NotRunError("waits for a CUDA device: others have no streams")
    got = trial.perform(evaluate_on_a_stream, trial.question.fresh(), trial.gradients)
    yield from trial.compare(got, trial.question.exact)


def evaluate_on_a_stream(loss: Loss, inputs: Inputs, gradients: Gradients) -> Result | NotRun:
    """The act of a call on a stream of its own, on which its arguments come late."""
    sleep = getattr(torch.cuda, "_sleep", None)
    if sleep is None:
        return NotRun("waits for a torch with torch.cuda._sleep, which makes a stream late")
    device = inputs.logits.device
    late = [memory(tensor) for tensor in tensors_of(inputs).values()]
    values = [raw.clone() for raw in late]
    for raw in late:
        raw.zero_()  # of an index too, where zero is a class
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch annotates it in part
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        sleep(CYCLES)
        for raw, value in zip(late, values, strict=True):
            raw.copy_(value)
        got = evaluate(loss, inputs, gradients)
    poison(inputs)
    side.synchronize()
    return got


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _without_kernel(raised: Raised) -> str:
    """Which operation it says has no deterministic kernel; "" for any other error."""
    message = raised.text if raised.is_a(RuntimeError) else ""
    if "deterministic" not in message or "use_deterministic_algorithms" not in message:
        return ""
    operation = re.match(r"\s*([\w:.]+) does not have a deterministic implementation", message)
    return f"has no deterministic kernel, as torch says of {operation[1] if operation else 'one of its operations'}"
