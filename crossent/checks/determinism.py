"""Checks of determinism: identical bits in ten calls, and an exact result on a new CUDA stream.

A sum by atomic additions may give different bits from call to call. On CUDA, torch computes such sums over the rows of
logits of shape `(N, C, d1, …)` (pytorch#17350, pytorch#46024, pytorch#71367).
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
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.difference import Difference
from crossent.trials.memory import memory, poison, tensors_of
from crossent.trials.trial import NotRunError, Problem, RefusedError, Trial

CALLS = 10  # enough: with the bug pytorch#17350, most pairs of calls give different bits
# The delay of a stream, in clock cycles of the GPU: some milliseconds, in which the CPU starts all kernels of a call.
CYCLES = 2**23


@check("repeatable", cost=Cost.STRUCTURE, operations=EVERY_OPERATION)
def deterministic(trial: Trial) -> Iterator[Problem]:
    """Under `torch.use_deterministic_algorithms(True)`, ten calls give identical bits.

    The check is skipped if torch has no deterministic kernel for an operation.
    """
    try:
        results = trial.perform(evaluate_often, trial.question.fresh(), trial.gradients)
    except RefusedError as refusal:
        if missing := _without_kernel(refusal.raised):
            raise NotRunError(missing) from None
        raise
    for call, first, other in zip(range(2, CALLS + 1), [results[0]] * (CALLS - 1), results[1:], strict=True):
        if other.digest != first.digest:
            said = f"call {call} of {CALLS} with the same arguments gives other bits than the first call"
            yield Problem("not_repeated", said)
            return


def evaluate_often(loss: Loss, inputs: Inputs, gradients: Gradients) -> list[Result]:
    """Act: call the subject ten times under `torch.use_deterministic_algorithms(True)`, and return the results."""
    results = []
    with _deterministic_algorithms():
        for _ in range(CALLS):
            poison(inputs)
            results.append(evaluate(loss, inputs.copy(), gradients).copy())
    return results


@check(cost=Cost.STRUCTURE)
def stream(trial: Trial) -> Iterator[Difference]:
    """On a CUDA stream other than the default stream, the call gives the exact loss and gradients.

    The check makes the call on a new stream. The arguments are zeros until this stream writes their values, some
    milliseconds later. A kernel that runs on another stream, and does not wait, computes from the zeros. After the
    call, the default stream fills freed memory with NaN, while the new stream may still compute. A subject that frees
    memory too early, without `record_stream`, computes from the NaN.
    """
    device = torch.device(trial.question.device)
    if device.type != "cuda":
        raise NotRunError("needs a CUDA device, since the check uses CUDA streams")
    got = trial.perform(evaluate_on_a_stream, trial.question.fresh(), trial.gradients)
    yield from trial.compare(got, trial.question.exact)


def evaluate_on_a_stream(loss: Loss, inputs: Inputs, gradients: Gradients) -> Result | NotRun:
    """Act: call the subject on a new CUDA stream, where a delayed copy fills the arguments, and return the result."""
    sleep = getattr(torch.cuda, "_sleep", None)
    if sleep is None:
        return NotRun("needs a torch with torch.cuda._sleep, which delays a stream")
    device = inputs.input.device
    late = [memory(tensor) for tensor in tensors_of(inputs).values()]
    values = [raw.clone() for raw in late]
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch annotates Stream only in part
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        # The first call on a stream may compile kernels, load them, or allocate memory, which takes longer than the
        # delay. The arguments would then have their values before the kernels read them.
        evaluate(loss, inputs.copy(), gradients)
    side.synchronize()
    for raw in late:
        raw.zero_()  # zeros are valid class indices too
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
    """Return the reason to skip the check, or "" if the exception is not about a missing deterministic kernel."""
    message = raised.text if raised.is_a(RuntimeError) else ""
    if "deterministic" not in message or "use_deterministic_algorithms" not in message:
        return ""
    if "CUBLAS_WORKSPACE_CONFIG" in message:
        return (
            "needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8, without which cuBLAS is not deterministic"
        )
    operation = re.match(r"\s*([\w:.]+) does not have a deterministic implementation", message)
    if operation is None:
        return "uses an operation that has no deterministic kernel in torch"
    return f"uses {operation[1]}, which has no deterministic kernel in torch"
