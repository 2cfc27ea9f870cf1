"""Checks of a subject under torch's transforms: torch.func, autocast, meta tensors, torch.export.

The checks compare results with exact values, since a plain call can be wrong in the same way. Only `meta` compares no
values.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crossent.cases.axes import HALF_DTYPES
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.compiler import quiet
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import EVERY_OPERATION, Cost, Found, check
from crossent.trials.exact import Exact, name_of, solve
from crossent.trials.trial import Trial, misshapen
from crossent.words import said


@check(
    *("gradient", "vmap"),
    other_needs={"target_gradient": lambda inputs: "target_gradient" in inputs.leaves},
    cost=Cost.STRUCTURE,
    transforms=True,
    operations=EVERY_OPERATION,
)
def func_grad(trial: Trial) -> Found:
    """torch.func.vjp, on which torch.func.grad and jacrev are built, gives the exact loss and gradients."""
    got, expected = trial.perform(evaluate_by_vjp, trial.question.fresh()), trial.question.exact
    if problem := misshapen(trial, got.loss, expected):
        yield problem
        return
    yield from trial.compare(got, expected)


def evaluate_by_vjp(loss: Loss, inputs: Inputs) -> Result:
    """Act: call the subject under torch.func.vjp, and return the loss and the gradients."""
    value, pull = torch.func.vjp(*_primals(loss, inputs))[:2]
    if getattr(value, "shape", None) != inputs.upstream.shape:
        return Result(value)  # the check reports the wrong shape
    gradients = pull(inputs.upstream.to(value.dtype))
    return Result(value.detach(), **dict(zip(inputs.leaves, gradients, strict=True)))


@check(
    "vmap",
    dense_needs=["target_gradient"],
    other_needs={"unbatched": lambda inputs: inputs.input.dim() == 2},
    applies=lambda case: len(case.sizes) > 1 and case.rows > 0,
    cost=Cost.STRUCTURE,
    transforms=True,
)
def vmap(trial: Trial) -> Found:
    """Under torch.func.vmap, the loss and the gradients of each sample equal their exact values.

    A sample of logits (N, C) is a row. A sample of logits (N, C, d1, …) is the tensor at an index of the last
    dimension. With every reduction, the result of a sample is the result of a call with that sample alone. The check
    does not apply to an empty batch, for which torch's own vmap fails.
    pytorch#90916, #105736: under vmap, a target of -100 raised an out-of-bounds error.
    """
    inputs, exact = trial.question.fresh(), trial.question.exact
    axis, by_row = _samples_axis(inputs), inputs.options["reduction"] == "none"
    losses = trial.perform(losses_by_vmap, inputs)
    if problem := misshapen(trial, losses, exact if by_row else replace(exact, shape=(inputs.input.shape[axis],))):
        yield problem
        return
    results: list[tuple[Tensor, ...]] = [(losses,)]
    if trial.subject.differentiable:
        results.append(trial.perform(gradients_by_vmap, trial.question.fresh()))
        if len(results[1]) != (due := 3 if inputs.target.is_floating_point() else 2):
            raise ValueError(f"got {len(results[1])} tensors for a loss and its gradients; expected {due}")
    for at, expected in enumerate(_samples(trial.case)):
        for result in results:
            for found in trial.compare(Result(*(part.select(axis, at).detach() for part in result)), expected):
                yield replace(found, index=(*found.index, at) if axis else (at, *found.index))


def losses_by_vmap(loss: Loss, inputs: Inputs) -> Tensor:
    """Act: call the subject under torch.func.vmap, and return the losses of all samples as one tensor."""
    axis = _samples_axis(inputs)

    def loss_of_sample(logits: Tensor, target: Tensor) -> Tensor:
        return loss(logits, target, **inputs.options)

    losses: Tensor = torch.func.vmap(loss_of_sample, axis, axis)(inputs.input, inputs.target)
    return losses


def gradients_by_vmap(loss: Loss, inputs: Inputs) -> tuple[Tensor, ...]:
    """Act: call the subject under torch.func.vjp inside torch.func.vmap, and return losses and gradients."""
    axis = _samples_axis(inputs)

    def gradients_of_sample(logits: Tensor, target: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
        value, pull = torch.func.vjp(*_primals(loss, replace(inputs, input=logits, target=target)))[:2]
        return value, *pull(upstream.to(value.dtype))

    axes = axis, axis, axis if inputs.options["reduction"] == "none" else None
    vmapped = torch.func.vmap(gradients_of_sample, axes, axis)
    made: tuple[Tensor, ...] = vmapped(inputs.input, inputs.target, inputs.upstream)
    return made


@check("autocast", cost=Cost.STRUCTURE, transforms=True)
def autocast(trial: Trial) -> Found:
    """Under torch.autocast, the loss of half-precision inputs is computed in float32 and has this dtype.

    torch documents cross_entropy_loss as an operation that autocasts to float32. Other inputs give a loss of their own
    dtype. Each gradient has the dtype of its argument. A subject that contains a matrix product usually fails, because
    autocast computes matrix products in half precision.
    Liger-Kernel#501: the weights had another dtype than the arithmetic.
    """
    inputs = trial.question.fresh()
    computed = dtype = _widened(inputs.input)
    if inputs.target.is_floating_point():
        dtype = torch.promote_types(dtype, _widened(inputs.target))
    expected = replace(trial.question.exact, dtype=dtype, logits_dtype=name_of(torch.empty(0, dtype=computed)))
    got = trial.evaluate(inputs, evaluate_in_autocast)
    if problem := misshapen(trial, got.loss, expected):
        yield problem
        return
    yield from trial.compare(got, expected)


def evaluate_in_autocast(loss: Loss, inputs: Inputs, gradients: Gradients) -> Result:
    """Act: call the subject under torch.autocast, run backward outside of autocast, and return the result."""

    def cast(*arguments: Any, **options: Any) -> Tensor:
        with torch.autocast(inputs.input.device.type, dtype=_autocast_dtype(inputs.input)):
            return loss(*arguments, **options)

    return evaluate(cast, inputs, gradients)


def _autocast_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype for autocast: float16 for float16 logits if autocast to float16 works, otherwise bfloat16."""
    # `torch.stack` raises for float16 tensors under autocast to bfloat16
    return torch.float16 if logits.dtype == torch.float16 and _casts_to_float16(logits.device) else torch.bfloat16


@functools.cache
def _casts_to_float16(device: torch.device) -> bool:
    """Return whether autocast to float16 works on a device."""
    with warnings.catch_warnings(), suppress(RuntimeError):  # on a CPU, torch 2.0 raises; newer versions may warn
        warnings.simplefilter("ignore")
        with torch.autocast(device.type, dtype=torch.float16):
            one = torch.ones(1, 1, device=device)
            return (one @ one).dtype == torch.float16
    return False


@check("compile", cost=Cost.STRUCTURE, transforms=True)
def meta(trial: Trial) -> Found:
    """On the meta device, without data, forward and backward run, and the loss has the right shape and dtype."""
    got = trial.evaluate(trial.case.build("meta"))
    if problem := misshapen(trial, got.loss, trial.question.exact, torch.device("meta")):
        yield problem


@check("compile", cost=Cost.STRUCTURE, transforms=True)
def export(trial: Trial) -> Found:
    """A module with this loss, exported by torch.export.export, gives the exact loss."""
    loss, expected = trial.perform(evaluate_exported, trial.question.fresh()), trial.question.exact
    if problem := misshapen(trial, loss, expected):
        yield problem
        return
    yield from trial.compare(Result(loss), expected)


def evaluate_exported(loss: Loss, inputs: Inputs) -> Tensor | NotRun:
    """Act: export a module with the loss, call the exported program, and return the loss."""
    if reason := _why_no_export():
        return NotRun(reason)
    tensors = {name: option for name, option in inputs.options.items() if isinstance(option, Tensor)}
    numbers = {name: option for name, option in inputs.options.items() if name not in tensors}
    arguments = inputs.input, inputs.target, *tensors.values()
    with quiet():
        return _export(_Module(loss, tuple(tensors), numbers), arguments)(*arguments)


def _primals(loss: Loss, inputs: Inputs) -> tuple[Any, ...]:
    """Return the arguments for torch.func.vjp: a function that computes the loss from the leaves, and the leaves."""
    leaves = inputs.leaves

    def of_primals(*tensors: Tensor) -> Tensor:
        given = inputs.with_leaves(dict(zip(leaves, tensors, strict=True)))
        return loss(given.input, given.target, **given.options)

    return of_primals, *leaves.values()


def _samples_axis(inputs: Inputs) -> int:
    return 0 if inputs.input.dim() == 2 else -1


@functools.lru_cache(maxsize=1)  # one entry is enough: all subjects run on a case before the next case starts
def _samples(case: Case) -> tuple[Exact, ...]:
    """Return the exact values of a call with each sample alone.

    A sample of logits (N, C) is a row. A sample of logits (N, C, d1, …) is the tensor at an index of the last
    dimension.
    """
    inputs = case.build()
    axis = _samples_axis(inputs)

    def sample(at: int) -> Inputs:
        upstream = inputs.upstream.select(axis, at) if case.reduction == "none" else inputs.upstream
        return Inputs(inputs.input.select(axis, at), inputs.target.select(axis, at), inputs.options, upstream)

    return tuple(solve(sample(at)) for at in range(inputs.input.shape[axis]))


def _widened(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in HALF_DTYPES else tensor.dtype


class _Module(torch.nn.Module):
    """A module that calls a loss. `names` are the names of the options that `forward` takes as tensors."""

    def __init__(self, loss: Loss, names: tuple[str, ...], options: dict[str, Any]) -> None:
        super().__init__()
        self.loss, self.names, self.options = loss, names, options

    def forward(self, logits: Tensor, target: Tensor, *tensors: Tensor) -> Tensor:
        return self.loss(logits, target, **self.options, **dict(zip(self.names, tensors, strict=True)))


def _export(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> Loss:
    from torch.export import export

    program = export(module, arguments)
    made: Loss = program.module()
    return made


@functools.cache
def _why_no_export() -> str:
    try:
        with quiet():
            _export(_Module(torch.add, (), {}), (torch.ones(2), torch.ones(2)))
    except Exception as error:  # torch before 2.1 has no torch.export; older torch may lack it for a newer Python
        return f"needs a torch.export that works: {said(error)}"
    return ""
