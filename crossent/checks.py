"""Checks: the properties that a subject must have on a case.

Here are those of a single call, which run on every case; `RELATIONS`, `DERIVATIVES` and `TRANSFORMS` have modules of
their own, and cost more calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from crossent.axes import DENSE_TARGETS
from crossent.cases import Inputs
from crossent.differences import Difference
from crossent.expected import Expected
from crossent.subjects import Subject
from crossent.trials import Check, Problem, RefusedError, Trial

UPSTREAM = "the upstream gradient"  # is no argument, and what a loss goes back from: a view of it may come back


def call(trial: Trial) -> Iterator[Problem]:
    """The subject takes the arguments, and gives tensors that have bits, as a meta device has none."""
    _ = trial.got.digest
    yield from ()


def result(trial: Trial) -> Iterator[Problem]:
    """Shape, dtype and device of the loss are those of the contract."""
    if problem := misshapen(trial, trial.got.loss, trial.question.expected):
        yield problem


def misshapen(trial: Trial, loss: object, expected: Expected, device: torch.device | None = None) -> Problem | None:
    """What is wrong with a loss of the subject before its numbers are looked at: its kind, shape, dtype and device."""
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"got a {type(loss).__name__}; expected a dense torch.Tensor")
    wanted = trial.subject.dtype or expected.dtype, expected.shape, device or trial.given.logits.device
    if (loss.dtype, tuple(loss.shape), loss.device) == wanted:
        return None
    return Problem("wrong", f"got {_words(loss)}; expected {wanted[0]} {wanted[1]}{_on(wanted[2])}")


def arguments(trial: Trial) -> Iterator[Problem]:
    """Not a bit of what is given has changed, nor of memory that it is a view of, nor its .grad; no result is there."""
    got = trial.got
    if name := written(trial.given, trial.question.inputs):
        yield Problem("changed_input", f"it wrote into {name}")
        return
    for name, (argument, wanted_gradient) in trial.passed.items():
        if changed := marked(argument, wanted_gradient):
            yield Problem("changed_input", f"{changed} of {name}")
            return
    given = {name: argument for name, argument in _tensors(trial.given).items() if name != UPSTREAM}
    results = {"loss": got.loss, "gradient": got.gradient, "gradient of the target": got.target_gradient}
    for of, part in results.items():
        for name, argument in given.items():
            if part is not None and part.numel() and _place(part) == _place(argument):
                yield Problem("aliased", f"its {of} shares the memory of {name}")
                return


def written(given: Inputs, before: Inputs) -> str:
    """The first argument that is no longer what it was, or whose memory is not; "" where there is none."""
    for (name, tensor), old in zip(_tensors(given).items(), _tensors(before).values(), strict=True):
        if _view(tensor) != _view(old) or not memory(tensor).equal(memory(old)):
            return name
    return ""


def marked(argument: Tensor, wanted_gradient: bool) -> str:
    """What a call has changed of an argument besides its numbers, or "".

    Its gradient is the caller's: a loss that goes backward by itself adds to it, behind the caller's back.
    """
    if argument.is_leaf and argument.grad is not None:
        return "it set the .grad"
    return "it changed the requires_grad" if argument.requires_grad != wanted_gradient else ""


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
    """A second call gives the same bits, though other data came between and memory is full of NaN."""
    first = trial.got.digest  # before its memory is given back
    with suppress(RefusedError):  # which is for another check to say
        trial.evaluate(trial.question.others.copy())
    inputs = trial.question.fresh()
    poison(inputs)
    if trial.evaluate(inputs).digest != first:
        yield Problem("not_repeated", "a second call with the same arguments gives other bits")


def poison(inputs: Inputs) -> None:
    """Fill with NaN, and give back, memory of the sizes that results will have: pytorch#20406, of what is never set.

    Several pieces of each, all held at a time, since what is given back is what is taken next.
    """
    dtype, device = inputs.logits.dtype, inputs.logits.device
    for shape in (inputs.logits.shape, inputs.upstream.shape, inputs.target.shape):
        held = [torch.full(shape, torch.nan, dtype=dtype, device=device) for _ in range(8)]
        del held


def no_gradient(subject: Subject) -> str:
    """Why a check of gradients does not run on a subject, or ""."""
    return "" if subject.differentiable else "has no gradient to compare"


def _tensors(inputs: Inputs) -> dict[str, Tensor]:
    weight = inputs.options.get("weight")
    tensors = {"input": inputs.logits, "target": inputs.target, UPSTREAM: inputs.upstream}
    return tensors if weight is None else {**tensors, "weight": weight}


def memory(tensor: Tensor) -> Tensor:
    """All bytes of the storage that it is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


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
