"""Transforms: the checks that ask whether a subject stays right under torch's transforms of functions.

Right in a plain call and wrong when it is compiled is a class of bugs of its own. Each result is held to the exact
answer, not to the plain one: a subject that is wrong in both would else be right.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.compiler import quiet
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Cost, Found, check
from crossent.trials.exact import Exact, name_of, solve
from crossent.trials.trial import Trial, misshapen
from crossent.words import said

_HALVES = (torch.float16, torch.bfloat16)


@check("gradient", "vmap", dense_needs=["target_gradient"], cost=Cost.STRUCTURE, transforms=True)
def func_grad(trial: Trial) -> Found:
    """torch.func.vjp, on which torch.func.grad and jacrev are built, gives the loss and its gradients."""
    got, expected = trial.perform(evaluate_by_vjp, trial.question.fresh()), trial.question.exact
    if problem := misshapen(trial, got.loss, expected):
        yield problem
        return
    yield from trial.compare(got, expected)


def evaluate_by_vjp(loss: Loss, inputs: Inputs) -> Result:
    """The act of a call under torch.func.vjp. A wrong shape has no gradients, and is for :func:`misshapen` to say."""
    value, pull = torch.func.vjp(*_primals(loss, inputs))[:2]
    if getattr(value, "shape", None) != inputs.upstream.shape:
        return Result(value)
    return Result(value.detach(), *pull(inputs.upstream.to(value.dtype)))


@check(
    "vmap",
    dense_needs=["target_gradient"],
    other_needs={"unbatched": lambda inputs: inputs.logits.dim() == 2},
    applies=lambda case: len(case.sizes) > 1 and case.rows > 0,
    cost=Cost.STRUCTURE,
    transforms=True,
)
def vmap(trial: Trial) -> Found:
    """torch.func.vmap of the loss, and of its gradients, gives each sample's own: pytorch#90916, #105736.

    The samples are the rows of (N, C), and the slices (N, C, d1, …) along the last dimension where there are further
    ones: a call has one dimension fewer. Under every reduction a sample's answer is that of a call with it alone. Of an
    empty batch there is none, and torch's own rules fail there: those of reshape(-1) and of gather with one index.
    """
    inputs, wanted = trial.question.fresh(), trial.question.exact
    axis, each = _samples_axis(inputs), inputs.options["reduction"] == "none"
    losses = trial.perform(losses_by_vmap, inputs)
    if problem := misshapen(trial, losses, wanted if each else replace(wanted, shape=(inputs.logits.shape[axis],))):
        yield problem
        return
    results: list[tuple[Tensor, ...]] = [(losses,)]
    if trial.subject.differentiable:
        results.append(trial.perform(gradients_by_vmap, trial.question.fresh()))
    for at, expected in enumerate(_samples(trial.case, trial.question.device)):
        for result in results:
            for found in trial.compare(Result(*(part.select(axis, at).detach() for part in result)), expected):
                yield replace(found, index=(*found.index, at) if axis else (at, *found.index))


def losses_by_vmap(loss: Loss, inputs: Inputs) -> Tensor:
    """The act of a call under torch.func.vmap."""
    axis = _samples_axis(inputs)

    def of_one(logits: Tensor, target: Tensor) -> Tensor:
        return loss(logits, target, **inputs.options)

    losses: Tensor = torch.func.vmap(of_one, axis, axis)(inputs.logits, inputs.target)
    return losses


def gradients_by_vmap(loss: Loss, inputs: Inputs) -> tuple[Tensor, ...]:
    """The act of a call under torch.func.vjp under vmap: the losses and their gradients."""
    axis = _samples_axis(inputs)

    def of_one(logits: Tensor, target: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        value, pull = torch.func.vjp(*_primals(loss, replace(inputs, logits=logits, target=target)))[:2]
        return value, *pull(upstream.to(value.dtype))

    axes = axis, axis, axis if inputs.options["reduction"] == "none" else None
    made: tuple[Tensor, ...] = torch.func.vmap(of_one, axes, axis)(inputs.logits, inputs.target, inputs.upstream)
    return made


@check("autocast", cost=Cost.STRUCTURE, transforms=True)
def autocast(trial: Trial) -> Found:
    """Under torch.autocast the loss of half precision is computed in float32 and is float32; others stay as they are.

    As torch documents it, whatever half the context is for: cross_entropy_loss is on its lists of operations that
    autocast to float32. A product of matrices instead becomes bfloat16. Gradients have the dtype of what they are of.
    Weights may be of another dtype than what is computed in: Liger-Kernel#501.
    """
    inputs = trial.question.fresh()
    computed = dtype = _widened(inputs.logits)
    if inputs.target.is_floating_point():
        dtype = torch.promote_types(dtype, _widened(inputs.target))
    expected = replace(trial.question.exact, dtype=dtype, logits_dtype=name_of(torch.empty(0, dtype=computed)))
    got = trial.evaluate(inputs, evaluate_in_autocast)
    if problem := misshapen(trial, got.loss, expected):
        yield problem
        return
    yield from trial.compare(got, expected)


def evaluate_in_autocast(loss: Loss, inputs: Inputs, gradients: Gradients) -> Result:
    """The act of a call under torch.autocast, which goes backward outside of it."""

    def cast(*arguments: Any, **options: Any) -> Tensor:
        with torch.autocast(inputs.logits.device.type, dtype=torch.bfloat16):
            return loss(*arguments, **options)

    return evaluate(cast, inputs, gradients)


@check("compile", cost=Cost.STRUCTURE, transforms=True)
def meta(trial: Trial) -> Found:
    """Tensors without data give a loss, and gradients, without data: of the right shape and dtype."""
    got = trial.evaluate(trial.case.build("meta"))
    if problem := misshapen(trial, got.loss, trial.question.exact, torch.device("meta")):
        yield problem


@check("compile", cost=Cost.STRUCTURE, transforms=True)
def export(trial: Trial) -> Found:
    """The program that torch.export.export makes of a module with this loss gives the loss."""
    loss, expected = trial.perform(evaluate_exported, trial.question.fresh()), trial.question.exact
    if problem := misshapen(trial, loss, expected):
        yield problem
        return
    yield from trial.compare(Result(loss), expected)


def evaluate_exported(loss: Loss, inputs: Inputs) -> Tensor | NotRun:
    """The act of a call of what torch.export.export makes."""
    if reason := _why_no_export():
        return NotRun(reason)
    tensors = {name: option for name, option in inputs.options.items() if isinstance(option, Tensor)}
    numbers = {name: option for name, option in inputs.options.items() if name not in tensors}
    arguments = inputs.logits, inputs.target, *tensors.values()
    with quiet():
        return _exported(_Module(loss, tuple(tensors), numbers), arguments)(*arguments)


def _primals(loss: Loss, inputs: Inputs) -> tuple[Any, ...]:
    """The loss as a function of what it has gradients of, and these."""

    def of_both(logits: Tensor, target: Tensor = inputs.target) -> Tensor:
        return loss(logits, target, **inputs.options)

    return of_both, inputs.logits, *([inputs.target] if inputs.target.is_floating_point() else [])


def _samples_axis(inputs: Inputs) -> int:
    return 0 if inputs.logits.dim() == 2 else -1


@functools.lru_cache(maxsize=1)  # every subject is asked about a case before the next one comes
def _samples(case: Case, device: str) -> tuple[Exact, ...]:
    """The exact answer to a call with each sample alone."""
    inputs = case.build(device)
    axis = _samples_axis(inputs)

    def sample(at: int) -> Inputs:
        upstream = inputs.upstream.select(axis, at) if case.reduction == "none" else inputs.upstream
        return Inputs(inputs.logits.select(axis, at), inputs.target.select(axis, at), inputs.options, upstream)

    return tuple(solve(sample(at)) for at in range(inputs.logits.shape[axis]))


def _widened(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in _HALVES else tensor.dtype


class _Module(torch.nn.Module):
    """A loss, its options, and the names of those that are tensors: arguments, as logits and target are."""

    def __init__(self, loss: Loss, names: tuple[str, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.loss, self.names, self.options = loss, names, options

    def forward(self, logits: Tensor, target: Tensor, *tensors: Tensor) -> Tensor:
        return self.loss(logits, target, **self.options, **dict(zip(self.names, tensors, strict=True)))


def _exported(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> Loss:
    from torch.export import export

    program = export(module, arguments)
    made: Loss = program.module()
    return made


@functools.cache
def _why_no_export() -> str:
    try:
        with quiet():
            _exported(_Module(torch.add, (), {}), (torch.ones(2), torch.ones(2)))
    except Exception as error:  # there is none before torch 2.1, and none for a Python that is too new
        return f"waits for a torch.export that works: {said(error)}"
    return ""
