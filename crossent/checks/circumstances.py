"""Checks of calls in other circumstances: without gradients, on non-leaf logits, and in other threads.

An implementation may use other code if no gradient is required. So the checks compare each result with the exact
values, and not with the bits of the first call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS
from crossent.cases.inputs import Inputs, bits
from crossent.subjects.subject import Loss
from crossent.trials.call import Gradients, Result, as_loss, evaluate
from crossent.trials.check import Cost, Found, check
from crossent.trials.difference import Difference
from crossent.trials.memory import marks, written
from crossent.trials.trial import Problem, Question, Trial, misshapen

# The ways to compute a loss without gradients: the mode, and whether logits and target probabilities have
# requires_grad=True nevertheless. In inference mode, the check also creates the tensors in that mode.
UNRECORDED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], bool]] = {
    "under no_grad": (torch.no_grad, True),
    "under inference_mode": (torch.inference_mode, False),
    "without requires_grad": (nullcontext, False),
}

# For each way to require one gradient alone: whether the logits, and whether the target, require it.
ALONE = {"of the logits alone": (True, False), "of the target alone": (False, True)}
THREADS = ("in a thread", "beside another thread", "in the other thread")


@check(cost=Cost.CALLS)
def no_grad(trial: Trial) -> Found:
    """Under no_grad, under inference_mode and without requires_grad, the loss is exact and requires no gradient."""
    question = trial.question
    for way in UNRECORDED:
        loss, requires_grad, given, mark = trial.perform(evaluate_unrecorded, question.fresh(), way)
        if problem := misshapen(trial, loss, question.exact):
            yield replace(problem, message=f"{way}: {problem.message}")
            return
        if requires_grad:
            yield Problem("wrong", f"{way}: the loss requires a gradient")
            return
        changed = written(given, question.inputs)
        if change := f"the call wrote into {changed}" if changed else mark:
            yield Problem("changed_input", f"{way}: {change}")
            return
        yield from _named(trial.compare(Result(loss), question.exact), way)


def evaluate_unrecorded(loss: Loss, inputs: Inputs, way: str) -> tuple[Tensor, bool, Inputs, str]:
    """Call the subject without gradients, in one of the ways of `UNRECORDED`.

    This is an act: it runs in the process of the subject.

    Returns:
        The loss, its requires_grad, the inputs after the call, and any change of a .grad or requires_grad in words.
    """
    mode, required = UNRECORDED[way]
    with mode():
        given = _requiring(inputs.copy(), logits=required, target=required)
        tensors = {"input": given.logits, "target": given.target, **given.options}
        passed = {name: (each, each.requires_grad) for name, each in tensors.items() if isinstance(each, Tensor)}
        value = as_loss(loss(given.logits, given.target, **given.options))
    return value.detach(), value.requires_grad, given, marks(passed)


@check("gradient", cost=Cost.CALLS)
def non_leaf(trial: Trial) -> Found:
    """Logits that are the output of an operation stay unchanged, and give the exact loss and gradients."""
    got, made = trial.perform(evaluate_of_made, trial.question.fresh(), trial.gradients)
    if problem := misshapen(trial, got.loss, trial.question.exact):
        yield problem
        return
    if (bits(made) != bits(trial.question.inputs.logits)).any():
        yield Problem("changed_input", "the call wrote into input, the output of an operation")
        return
    yield from trial.compare(got, trial.question.exact)


def evaluate_of_made(loss: Loss, inputs: Inputs, gradients: Gradients) -> tuple[Result, Tensor]:
    """Call the subject on logits that are the output of an operation.

    This is an act: it runs in the process of the subject.

    Returns:
        The result, and the logits after the call.
    """
    kept: list[Tensor] = []

    def of_made(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        made = input.clone()
        kept.append(made.detach())
        return loss(made, target, **options)

    return evaluate(of_made, inputs, gradients), kept[0]


@check("gradient", dense_needs=["target_gradient"], cost=Cost.CALLS, applies=lambda case: case.target in DENSE_TARGETS)
def alone(trial: Trial) -> Found:
    """A gradient for the logits alone, or for target probabilities alone, is exact, and the other tensor gets none."""
    for way, (logits, target) in ALONE.items():
        loss, requires_grad, *gradients = trial.perform(backward_alone, trial.question.fresh(), logits, target)
        if problem := misshapen(trial, loss, trial.question.exact):
            yield problem
            return
        if not requires_grad:
            yield Problem("wrong", f"the loss is cut off: there is no gradient {way}")
            return
        required, other = gradients if logits else reversed(gradients)
        if required is None or other is not None:
            name, rest = ("logits", "target") if logits else ("target", "logits")
            said = f"the {name} got no gradient" if required is None else f"the {rest} got a gradient"
            yield Problem("wrong", f"{said}, though a gradient is required for the {name} alone")
            return
        got = Result(loss, required) if logits else Result(loss, None, required)
        yield from _named(trial.compare(got, trial.question.exact), way)


def backward_alone(
    loss: Loss, inputs: Inputs, logits: bool, target: bool
) -> tuple[Tensor, bool, Tensor | None, Tensor | None]:
    """Call the subject and run backward, with a gradient required for the logits alone or for the target alone.

    This is an act: it runs in the process of the subject.

    If the loss has a wrong shape, there is no backward pass: :func:`misshapen` reports the shape.

    Returns:
        The loss, its requires_grad, and the gradients of the logits and of the target.
    """
    given = _requiring(inputs, logits=logits, target=target)
    value = as_loss(loss(given.logits, given.target, **given.options))
    if value.requires_grad and value.shape == inputs.upstream.shape:
        value.backward(inputs.upstream.to(value.dtype))  # type: ignore[no-untyped-call]  # torch has no type for it
    return value.detach(), value.requires_grad, given.logits.grad, given.target.grad


@check(cost=Cost.STRUCTURE)
def threads(trial: Trial) -> Found:
    """The result is exact in another thread, and in two threads that run at the same time with different inputs.

    Both threads finish the forward pass before either runs backward. A subject that keeps data of a call in a global
    variable then mixes up the two calls.
    """
    question, other = trial.question, _other(trial.question)
    for questions, ways in (((question,), THREADS[:1]), ((question, other), THREADS[1:])):
        results = trial.perform(at_once, [each.fresh() for each in questions], trial.gradients)
        for way, of_thread, got in zip(ways, questions, results, strict=True):
            if problem := misshapen(trial, got.loss, of_thread.exact):
                yield replace(problem, message=f"{way}: {problem.message}")
                return
            yield from _named(trial.compare(got, of_thread.exact), way)


def at_once(loss: Loss, inputs: Sequence[Inputs], gradients: Gradients) -> list[Result]:
    """Call the subject in several threads at once, one for each of the inputs, and return the results.

    This is an act: it runs in the process of the subject.

    All threads finish the forward pass before any thread runs backward.

    Raises:
        BaseException: a thread raised this exception.
    """
    barrier = threading.Barrier(len(inputs))
    results: list[Any] = [None] * len(inputs)

    def forward(*arguments: Any, **options: Any) -> Tensor:
        barrier.wait()
        value = loss(*arguments, **options)
        barrier.wait()
        return value

    def work(at: int) -> None:
        try:
            results[at] = evaluate(forward, inputs[at], gradients)
        except BaseException as error:  # raised again below, in the calling thread
            barrier.abort()
            results[at] = error

    running = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(len(inputs))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    # BrokenBarrierError comes last: it only says that another thread raised.
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return results


@functools.lru_cache(maxsize=1)  # all subjects run on a case before the next case starts
def _other(question: Question) -> Question:
    """Return the question of a case that differs in the seed alone, and so in its numbers."""
    return Question(question.case.seeded(question.case.seed + 1), question.device)


def _requiring(given: Inputs, *, logits: bool, target: bool) -> Inputs:
    dense = given.target.is_floating_point()
    return replace(
        given,
        logits=given.logits.detach().requires_grad_(logits),
        target=given.target.detach().requires_grad_(target and dense),
    )


def _named(differences: list[Difference], way: str) -> list[Difference]:
    return [replace(difference, of=f"{difference.of} {way}") for difference in differences]
