"""Checks of calls in unusual circumstances: without gradients, in other threads, in modes of torch.

The checks compare results with exact values, not with the bits of the first call. If no gradient is required, an
implementation may run other code, with other rounding.
"""

from __future__ import annotations

import functools
import multiprocessing
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY
from crossent.machine import forks_with_threads
from crossent.subjects.subject import Loss, Subject
from crossent.trials.call import Gradients, Result, as_loss, digest_of, evaluate, in_words
from crossent.trials.check import EVERY_OPERATION, Cost, Found, check
from crossent.trials.difference import Difference
from crossent.trials.memory import describe_attribute_change, describe_change, record_arguments
from crossent.trials.trial import NotRunError, Problem, Question, Trial, misshapen
from crossent.words import counted

# The calls for which torch records no graph, by name: the context manager of the call, and whether the tensors that can
# have a gradient have requires_grad=True. These tensors are created inside the context, because inference mode marks
# tensors when they are created.
UNRECORDED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], bool]] = {
    "under no_grad": (torch.no_grad, True),
    "under inference_mode": (torch.inference_mode, False),
    "without requires_grad": (nullcontext, False),
}

# The names of the calls in threads: first one thread, then two threads at the same time.
THREADS = ("in a thread", "in the first of two threads", "in the second of two threads")


def _leaf(logits: Tensor) -> Tensor:
    return logits.detach().requires_grad_()


def _with_hook(logits: Tensor) -> Tensor:
    leaf = _leaf(logits)
    leaf.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]  # this hook changes nothing
    return leaf


def _negated(logits: Tensor) -> Tensor:
    return torch._neg_view(-logits.detach()).requires_grad_()


def _with_gradient(logits: Tensor) -> Tensor:
    leaf = _leaf(logits)
    leaf.grad = torch.ones_like(leaf)  # as after the first part of a batch whose gradients are added up
    return leaf


@contextmanager
def _other_default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if before == torch.float64 else torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _more_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():  # for an operation without a deterministic kernel, which this check accepts
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@dataclass(frozen=True)
class Circumstance:
    """An unusual kind of call, such as a call with a Parameter as logits.

    Attributes:
        leaf: a function that takes an argument, such as the logits, and returns a leaf with the same values.
        mode: a function that returns a context manager, in which the forward and the backward pass run.
        create_graph: whether the backward pass runs with `create_graph=True`.
        weighted: whether the class weights require a gradient, which torch allows only with target probabilities.
        negated: whether the caller negates the loss in place before the backward pass. `loss /= steps` changes it too,
            but the result of a negation is exact.
        nan_in_ignored: whether the upstream gradient is NaN in ignored rows, whose gradient must still be 0.
        needs: the feature that a subject needs for this call, or "".
    """

    leaf: Callable[[Tensor], Tensor] = _leaf
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext
    create_graph: bool = False
    weighted: bool = False
    negated: bool = False
    nan_in_ignored: bool = False
    needs: str = ""


MORE_THREADS = "with another number of threads"
# The circumstances, by the name of the call: a phrase that messages contain.
CIRCUMSTANCES = {
    "of a Parameter": Circumstance(lambda logits: torch.nn.Parameter(logits.detach())),
    "with a hook": Circumstance(_with_hook),
    "with a .grad": Circumstance(_with_gradient),
    "of a lazily negated view": Circumstance(_negated, needs="strided"),
    "under create_graph": Circumstance(create_graph=True, needs="double_backward"),
    "with a weight that requires a gradient": Circumstance(weighted=True, needs="target_gradient"),
    "with the loss negated in place": Circumstance(negated=True),
    "with an upstream gradient of NaN in ignored rows": Circumstance(nan_in_ignored=True),
    "under anomaly detection": Circumstance(mode=lambda: torch.autograd.set_detect_anomaly(True, check_nan=False)),
    "with another default dtype": Circumstance(mode=_other_default_dtype),
    "with deterministic algorithms": Circumstance(mode=_deterministic_algorithms),
    MORE_THREADS: Circumstance(mode=_more_threads),
}


@check(
    "gradient",
    other_needs={"target_gradient": lambda inputs: "target_gradient" in inputs.leaves},
    cost=Cost.STRUCTURE,
    transforms=True,
    operations=EVERY_OPERATION,
)
def circumstances(trial: Trial) -> Found:
    """The result is exact in unusual calls, such as a call with a Parameter or a hook, and in modes of torch.

    In the last two calls, the upstream gradient is NaN, and then inf. Each element of a gradient must be NaN, and then
    NaN or infinite, unless the element is 0 in the first call. torch.amp.GradScaler skips a step only if a gradient is
    not finite. Its scale of 65536, the upstream gradient, is inf in float16.
    """
    question = trial.question
    for way in circumstances_of(trial.case, trial.subject):
        if way == MORE_THREADS and may_be_forked(trial) and not forks_with_threads():
            continue  # a forked process lacks the threads of its parent, and the call could wait for them forever
        got = trial.evaluate(question.fresh(), evaluate_in_circumstance, way)
        if problem := misshapen(trial, got.loss, question.exact, way=way):
            yield problem
            return
        yield from _named(trial.compare(got, question.exact), way)
    yield from _check_not_finite(trial)


def may_be_forked(trial: Trial) -> bool:
    """Return whether the subject runs in an isolated process or in a worker process, which may be forked."""
    return trial.host.isolated or multiprocessing.parent_process() is not None


def _check_not_finite(trial: Trial) -> Iterator[Problem]:
    for value in (torch.nan, torch.inf):
        inputs, way = trial.question.fresh(), f"with an upstream gradient of {'NaN' if value != value else 'inf'}"
        got = trial.evaluate(replace(inputs, upstream=torch.full_like(inputs.upstream, value)))
        if problem := misshapen(trial, got.loss, trial.question.exact, way=way):
            yield problem
            return
        for name, usual in trial.got.parts.items():
            if name != "loss" and (said := _hides(usual, got.parts[name], value)):
                yield Problem("wrong", f"{in_words(f'{name} {way}', trial.case.operation)}: {said}")


def _hides(usual: Tensor, found: Tensor, value: float) -> str:
    """Return what is wrong in a gradient with the upstream gradient `value`, NaN or inf, or "".

    `usual` is the gradient with the upstream gradient of the case.
    """
    is_nan = value != value
    lost = int(((usual != 0) & ~(found.isnan() if is_nan else ~found.isfinite())).sum())
    said = f"{counted(lost, 'element')} without NaN" if is_nan else counted(lost, "finite element")
    due = f"expected {'NaN' if is_nan else 'inf or NaN'} in each element that is not 0"
    return f"got {said}, of {int((usual != 0).sum()):,}; {due} with the upstream gradient of the case" if lost else ""


def circumstances_of(case: Case, subject: Subject) -> tuple[str, ...]:
    """Return the names of the `CIRCUMSTANCES` that apply to a case and a subject."""
    is_soft = case.target in DENSE_TARGETS and case.operation is CROSS_ENTROPY
    soft_weight = is_soft and case.weight != "unweighted"
    ignores = case.ignored != "kept" and case.reduction == "none"
    ways = {way: one for way, one in CIRCUMSTANCES.items() if soft_weight or not one.weighted}
    ways = {way: one for way, one in ways.items() if ignores or not one.nan_in_ignored}
    return tuple(way for way, one in ways.items() if one.needs not in subject.lacks)


def evaluate_in_circumstance(loss: Loss, inputs: Inputs, gradients: Gradients, way: str) -> Result:
    """Act: make the call `CIRCUMSTANCES[way]`, and return the loss and the gradients."""
    circumstance = CIRCUMSTANCES[way]
    given, leaves = inputs.requiring(gradients)
    made = {name: one if name == "target_gradient" else circumstance.leaf(one) for name, one in leaves.items()}
    given = given.with_leaves(made)
    if circumstance.weighted:
        given.options["weight"].requires_grad_()
    with circumstance.mode():
        value = as_loss(loss(given.input, given.target, **given.options))
        if value.shape != inputs.upstream.shape:
            return Result(value.detach())
        upstream, kept = inputs.upstream.to(value.dtype), value.detach()
        if circumstance.nan_in_ignored:
            ignored = inputs.target.long() == inputs.options.get("ignore_index", -100)
            upstream = upstream.masked_fill(ignored, torch.nan)
        if circumstance.negated:
            kept = kept.clone()
            try:
                found = torch.autograd.grad(value.neg_(), list(made.values()), -upstream)
            except RuntimeError:  # torch refuses the change, so the caller notices it
                return evaluate(loss, inputs, gradients)
        else:
            found = torch.autograd.grad(value, list(made.values()), upstream, create_graph=circumstance.create_graph)
    return Result(kept, **{name: one.detach() for name, one in zip(made, found, strict=True)})


@check(cost=Cost.CALLS, operations=EVERY_OPERATION)
def no_grad(trial: Trial) -> Found:
    """Under no_grad, under inference_mode and without requires_grad, the loss is exact and requires no gradient.

    The call must also leave its arguments unchanged, and a later call must not overwrite its loss.
    """
    question, others = trial.question, trial.question.others
    for way in UNRECORDED:
        made = trial.perform(evaluate_unrecorded, question.fresh(), others.copy(), way)
        loss, requires_grad, given, mark, overwritten = made
        if problem := misshapen(trial, loss, question.exact, way=way):
            yield problem
            return
        if requires_grad:
            yield Problem("wrong", f"loss, {way}: got requires_grad=True; expected requires_grad=False")
            return
        changed = describe_change(given, question.inputs)
        if "arguments" not in trial.subject.lacks and (change := f"the call {changed}" if changed else mark):
            yield Problem("changed_input", f"{way}: {change}")
            return
        if overwritten and "repeatable" not in trial.subject.lacks:
            yield Problem("not_repeated", f"loss, {way}: a later call writes into the result of the first call")
            return
        yield from _named(trial.compare(Result(loss), question.exact), way)


def evaluate_unrecorded(loss: Loss, inputs: Inputs, others: Inputs, way: str) -> tuple[Tensor, bool, Inputs, str, bool]:
    """Act: make the call `UNRECORDED[way]`, for which torch records no graph, and then this call with `others`.

    Returns:
        The loss, its requires_grad and the inputs after the first call. A sentence about a changed attribute, or "".
        Whether the call with `others` wrote into the loss.
    """
    mode, required = UNRECORDED[way]

    def called(inputs: Inputs) -> Tensor:
        return as_loss(loss(inputs.input, inputs.target, **inputs.options))

    with mode():
        given, later = (made.requiring(made.leaves if required else ())[0] for made in (inputs.copy(), others.copy()))
        tensors = record_arguments({"input": given.input, "target": given.target, **given.options})
        value = called(given)
        change, kept = describe_attribute_change(tensors), value.detach().clone()
        with suppress(Exception):  # this call only has to change memory
            called(later)
        overwritten = digest_of(Result(value.detach())) != digest_of(Result(kept))
    return kept, value.requires_grad, given, change, overwritten


@check(cost=Cost.STRUCTURE, operations=EVERY_OPERATION)
def threads(trial: Trial) -> Found:
    """The result is exact in another thread, and in two threads that run at the same time with different inputs.

    The two threads both finish the forward pass before either runs backward. If a subject keeps data for the backward
    pass in a global variable, one call then uses the data of the other call.
    """
    question, other = trial.question, _other(trial.question)
    for questions, ways in (((question,), THREADS[:1]), ((question, other), THREADS[1:])):
        if reason := trial.subject.not_applicable(questions[-1].inputs):  # other random numbers may need a feature
            raise NotRunError(reason)
        results = trial.perform(evaluate_in_threads, [each.fresh() for each in questions], trial.gradients)
        for way, of_thread, got in zip(ways, questions, results, strict=True):
            if problem := misshapen(trial, got.loss, of_thread.exact, way=way):
                yield problem
                return
            yield from _named(trial.compare(got, of_thread.exact), way)


def evaluate_in_threads(loss: Loss, inputs: Sequence[Inputs], gradients: Gradients) -> list[Result]:
    """Act: call the subject in parallel threads, one for each of `inputs`, and return the results."""
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


@functools.lru_cache(maxsize=1)  # one entry is enough: all subjects run on a case before the next case starts
def _other(question: Question) -> Question:
    return Question(question.case.seeded(question.case.seed + 1), question.device)


def _named(differences: list[Difference], way: str) -> list[Difference]:
    return [replace(difference, of=f"{difference.of} {way}") for difference in differences]
