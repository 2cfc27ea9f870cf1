"""Circumstances: a subject as programs call it, and not only on leaves that want gradients, in the main thread.

An implementation may take another path where no gradient is wanted, so what it gives is held to the exact answer and
not to its own bits.
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

# How a loss is asked for without its gradient: in which mode, and whether logits and probabilities want one all the
# same. In inference mode all tensors are made there.
UNRECORDED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], bool]] = {
    "under no_grad": (torch.no_grad, True),
    "under inference_mode": (torch.inference_mode, False),
    "without requires_grad": (nullcontext, False),
}

# Whose gradient is wanted: of logits, of probabilities.
ALONE = {"of the logits alone": (True, False), "of the target alone": (False, True)}
THREADS = ("in a thread", "beside another thread", "in the other thread")


@check(cost=Cost.CALLS)
def no_grad(trial: Trial) -> Found:
    """Where no gradient is wanted, under no_grad, inference_mode or by the logits, the loss is right and has none."""
    question = trial.question
    for way in UNRECORDED:
        loss, wants, given, mark = trial.perform(evaluate_unrecorded, question.fresh(), way)
        if problem := misshapen(trial, loss, question.exact):
            yield replace(problem, message=f"{way}: {problem.message}")
            return
        if wants:
            yield Problem("wrong", f"{way}: the loss wants a gradient")
            return
        changed = written(given, question.inputs)
        if change := f"it wrote into {changed}" if changed else mark:
            yield Problem("changed_input", f"{way}: {change}")
            return
        yield from _named(trial.compare(Result(loss), question.exact), way)


def evaluate_unrecorded(loss: Loss, inputs: Inputs, way: str) -> tuple[Tensor, bool, Inputs, str]:
    """The act of a call without gradients: the loss, whether it wants one, and what became of the arguments."""
    mode, wanted = UNRECORDED[way]
    with mode():
        given = _wanting(inputs.copy(), logits=wanted, target=wanted)
        tensors = {"input": given.logits, "target": given.target, **given.options}
        passed = {name: (one, one.requires_grad) for name, one in tensors.items() if isinstance(one, Tensor)}
        value = as_loss(loss(given.logits, given.target, **given.options))
    return value.detach(), value.requires_grad, given, marks(passed)


@check("gradient", cost=Cost.CALLS)
def non_leaf(trial: Trial) -> Found:
    """Logits that an operation has made stay as they were, and give the exact loss and gradients."""
    got, made = trial.perform(evaluate_of_made, trial.question.fresh(), trial.gradients)
    if problem := misshapen(trial, got.loss, trial.question.exact):
        yield problem
        return
    if (bits(made) != bits(trial.question.inputs.logits)).any():
        yield Problem("changed_input", "it wrote into input, which an operation has made")
        return
    yield from trial.compare(got, trial.question.exact)


def evaluate_of_made(loss: Loss, inputs: Inputs, gradients: Gradients) -> tuple[Result, Tensor]:
    """The act of a call on logits that an operation has made: the result, and what became of them."""
    kept: list[Tensor] = []

    def of_made(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        made = input.clone()
        kept.append(made.detach())
        return loss(made, target, **options)

    return evaluate(of_made, inputs, gradients), kept[0]


@check("gradient", dense_needs=["target_gradient"], cost=Cost.CALLS, applies=lambda case: case.target in DENSE_TARGETS)
def alone(trial: Trial) -> Found:
    """Where logits or target probabilities alone want a gradient, `backward` gives it to them and none to the other."""
    for way, (logits, target) in ALONE.items():
        loss, wants, *gradients = trial.perform(backward_alone, trial.question.fresh(), logits, target)
        if problem := misshapen(trial, loss, trial.question.exact):
            yield problem
            return
        if not wants:
            yield Problem("wrong", f"the loss is cut off: there is no gradient {way}")
            return
        wanted, other = gradients if logits else reversed(gradients)
        if wanted is None or other is not None:
            said = "no gradient comes" if wanted is None else "a gradient comes that nobody asked for"
            yield Problem("wrong", f"{said}, where that {way} is wanted")
            return
        got = Result(loss, wanted) if logits else Result(loss, None, wanted)
        yield from _named(trial.compare(got, trial.question.exact), way)


def backward_alone(
    loss: Loss, inputs: Inputs, logits: bool, target: bool
) -> tuple[Tensor, bool, Tensor | None, Tensor | None]:
    """The act of a call where one of the two wants a gradient: the loss, whether it has one, and what came to each.

    A wrong shape has no gradients, and is for :func:`misshapen` to say.
    """
    given = _wanting(inputs, logits=logits, target=target)
    value = as_loss(loss(given.logits, given.target, **given.options))
    if value.requires_grad and value.shape == inputs.upstream.shape:
        value.backward(inputs.upstream.to(value.dtype))  # type: ignore[no-untyped-call]  # as torch leaves it
    return value.detach(), value.requires_grad, given.logits.grad, given.target.grad


@check(cost=Cost.STRUCTURE)
def threads(trial: Trial) -> Found:
    """In another thread the result is right, and so are those of other inputs in two threads at once.

    Both go forward before either goes back: what one call leaves in a place of the module's is the other's.
    """
    question, other = trial.question, _other(trial.question)
    for asked, ways in (((question,), THREADS[:1]), ((question, other), THREADS[1:])):
        results = trial.perform(at_once, [one.fresh() for one in asked], trial.gradients)
        for way, one, got in zip(ways, asked, results, strict=True):
            if problem := misshapen(trial, got.loss, one.exact):
                yield replace(problem, message=f"{way}: {problem.message}")
                return
            yield from _named(trial.compare(got, one.exact), way)


def at_once(loss: Loss, inputs: Sequence[Inputs], gradients: Gradients) -> list[Result]:
    """The act of some calls at once, in a thread each, all of which go forward before any goes back.

    Raises:
        BaseException: what it raised in one of them.
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
        except BaseException as error:  # raised again where they are waited for
            barrier.abort()
            results[at] = error

    running = [threading.Thread(target=work, args=(at,), daemon=True) for at in range(len(inputs))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    # Who waited for one that raised has a broken barrier to tell of, and no more.
    errors = [one for one in results if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        raise error
    return results


@functools.lru_cache(maxsize=1)  # every subject is asked about a case before the next one comes
def _other(question: Question) -> Question:
    """Other numbers for the same choices."""
    return Question(question.case.seeded(question.case.seed + 1), question.device)


def _wanting(given: Inputs, *, logits: bool, target: bool) -> Inputs:
    dense = given.target.is_floating_point()
    return replace(
        given,
        logits=given.logits.detach().requires_grad_(logits),
        target=given.target.detach().requires_grad_(target and dense),
    )


def _named(differences: list[Difference], way: str) -> list[Difference]:
    return [replace(difference, of=f"{difference.of} {way}") for difference in differences]
