"""Checks: the properties that a subject must have on a case.

Here are those of a single call, which run on every case; `RELATIONS`, `DERIVATIVES` and `TRANSFORMS` have modules of
their own, and cost more calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from crossent.axes import DENSE_TARGETS
from crossent.differences import Difference
from crossent.expected import Expected
from crossent.memory import written
from crossent.results import Result, called_again
from crossent.subjects import Subject
from crossent.trials import Check, Problem, Trial


def call(trial: Trial) -> Iterator[Problem]:
    """The subject takes the arguments, and gives tensors that have bits, as a meta device has none."""
    if not _digest(trial.got):
        yield Problem("refused", "it gives a loss without bits, as one on a meta device is")


def result(trial: Trial) -> Iterator[Problem]:
    """Shape, dtype and device of the loss are those of the contract."""
    if problem := misshapen(trial, trial.got.loss, trial.question.expected):
        yield problem


def misshapen(trial: Trial, loss: object, expected: Expected, device: torch.device | None = None) -> Problem | None:
    """What is wrong with a loss of the subject before its numbers are looked at: its kind, shape, dtype and device."""
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"got a {type(loss).__name__}; expected a dense torch.Tensor")
    wanted = trial.subject.dtype or expected.dtype, expected.shape, device or torch.device(trial.question.device)
    if (loss.dtype, tuple(loss.shape), loss.device) == wanted:
        return None
    return Problem("wrong", f"got {_words(loss)}; expected {wanted[0]} {wanted[1]}{_on(wanted[2])}")


def arguments(trial: Trial) -> Iterator[Problem]:
    """Not a bit of what is given has changed, nor of memory that it is a view of, nor its .grad; no result is there."""
    first = trial.called
    if name := written(first.given, trial.question.inputs):
        yield Problem("changed_input", f"it wrote into {name}")
    elif first.marked:
        yield Problem("changed_input", first.marked)
    elif first.shared:
        yield Problem("aliased", first.shared)


def state(trial: Trial) -> Iterator[Problem]:
    """The call leaves what is global of torch, numpy and Python as it was."""
    _ = trial.got
    if trial.disturbed:
        yield Problem("changed_state", f"it changed {', '.join(dict.fromkeys(trial.disturbed))}")


def numbers(of: str, trial: Trial) -> Iterator[Difference]:
    """The loss, or a gradient, is the exact one within what rounding allows."""
    if of in trial.differences:
        yield trial.differences[of]


def repeat(trial: Trial) -> Iterator[Problem]:
    """A second call gives the same bits, though other data came between and memory is full of NaN; the first keeps its.

    The inputs are the same bits in other memory.
    """
    question = trial.question
    kept, first, second = trial.perform(called_again, question.fresh(), question.others.copy(), trial.gradients)
    if {_digest(kept), _digest(second)} != {trial.got.digest}:
        yield Problem("not_repeated", "a second call with the same arguments gives other bits")
    elif first.digest != kept.digest:
        yield Problem("not_repeated", "a second call writes into what the first gave")


def no_gradient(subject: Subject) -> str:
    """Why a check of gradients does not run on a subject, or ""."""
    return "" if subject.differentiable else "has no gradient to compare"


def _digest(got: Result) -> str:
    """That of its bits, or "" where it has none."""
    try:
        return got.digest
    except RuntimeError:
        return ""


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}{_on(tensor.device)}"


def _on(device: torch.device) -> str:
    return "" if device.type == "cpu" else f" on {device}"


CALL = Check("call", call)
RESULT = Check("result", result)
# In the order in which they run: where the first does not hold, nothing else can be asked, nor after the second.
SINGLE = (
    CALL,
    RESULT,
    Check("arguments", arguments),
    Check("state", state),
    Check("loss", partial(numbers, "loss"), asks="The loss is the exact one within what rounding allows."),
    Check(
        "gradient",
        partial(numbers, "gradient"),
        why_not=no_gradient,
        asks="The gradient of the logits, under the upstream gradient, is the exact one within what rounding allows.",
    ),
    Check(
        "target_gradient",
        partial(numbers, "target_gradient"),
        about=lambda case: case.target in DENSE_TARGETS,
        why_not=no_gradient,
        asks="The gradient of target probabilities is the exact one within what rounding allows.",
    ),
    Check("repeat", repeat),
)
