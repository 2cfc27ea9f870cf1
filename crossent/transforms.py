"""Transforms: the checks that ask whether a subject stays right under torch's transforms of functions.

Right in a plain call and wrong when it is compiled is a class of bugs of its own. Each result is held to the exact
answer, not to the plain one: a subject that is wrong in both would else be right.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from crossent import compilers
from crossent.acts import Raised, Waits, said
from crossent.axes import INDEX_TARGETS
from crossent.cases import Case, Inputs
from crossent.checks import misshapen
from crossent.differences import Difference
from crossent.expected import Expected, expect, name_of
from crossent.results import Gradients, Loss, Result, evaluate
from crossent.subjects import Subject
from crossent.trials import Check, NotRunError, Problem, Question, Trial

Found = Iterator[Difference | Problem]
HALVES = (torch.float16, torch.bfloat16)


def func_grad(trial: Trial) -> Found:
    """torch.func.vjp, on which torch.func.grad and jacrev are built, gives the loss and its gradients."""
    got, expected = trial.perform(evaluate_by_vjp, trial.question.fresh()), trial.question.expected
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


def vmap(trial: Trial) -> Found:
    """torch.func.vmap of the loss, and of its gradients, gives each sample's own: pytorch#90916, #105736.

    The samples are the rows of (N, C), and the slices (N, C, d1, …) along the last dimension where there are further
    ones: a call has one dimension fewer. Under every reduction a sample's answer is that of a call with it alone. Of an
    empty batch there is none, and torch's own rules fail there: those of reshape(-1) and of gather with one index.
    """
    inputs, wanted = trial.question.fresh(), trial.question.expected
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
    expected = replace(trial.question.expected, dtype=dtype, logits_dtype=name_of(torch.empty(0, dtype=computed)))
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


def meta(trial: Trial) -> Found:
    """Tensors without data give a loss, and gradients, without data: of the right shape and dtype."""
    got = trial.evaluate(trial.case.build("meta"))
    if problem := misshapen(trial, got.loss, trial.question.expected, torch.device("meta")):
        yield problem


def export(trial: Trial) -> Found:
    """The program that torch.export.export makes of a module with this loss gives the loss."""
    loss, expected = trial.perform(evaluate_exported, trial.question.fresh()), trial.question.expected
    if problem := misshapen(trial, loss, expected):
        yield problem
        return
    yield from trial.compare(Result(loss), expected)


def evaluate_exported(loss: Loss, inputs: Inputs) -> Tensor | Waits:
    """The act of a call of what torch.export.export makes."""
    if reason := _why_no_export():
        return Waits(reason)
    tensors = {name: option for name, option in inputs.options.items() if isinstance(option, Tensor)}
    numbers = {name: option for name, option in inputs.options.items() if name not in tensors}
    arguments = inputs.logits, inputs.target, *tensors.values()
    with compilers.quiet():
        return _exported(_Module(loss, tuple(tensors), numbers), arguments)(*arguments)


def compiled(backend: str, dynamic: bool, trial: Trial) -> Found:
    """Compiled, it gives the loss and its gradients: pytorch#95794, #121173, #155247, #182399.

    It is called twice: in memory full of NaN, since what is never set is found so (Liger-Kernel#1338); and what is
    compiled for any size, on a larger batch of other numbers.
    """
    other = Question(larger(trial.case), trial.question.device) if dynamic else trial.question
    asked = (trial.question, ""), (other, f" on {other.case.id}" if dynamic else " called again")
    calls = [question.fresh() for question, _ in asked]
    made = trial.perform(compilers.evaluate_compiled, trial.gradients, backend, dynamic, calls)
    for (question, where), got in zip(asked, made, strict=False):
        if isinstance(got, Raised):
            raise compilers.refusal(got, where)
        if problem := misshapen(trial, got.loss, question.expected):
            yield replace(problem, message=f"{problem.message}{where}")
            return
        for found in compilers.compare(trial, backend, got, question.expected):
            yield replace(found, check=f"{found.check}{where}")


def compiled_error(trial: Trial) -> Iterator[Problem]:
    """Compiled code does not let a class pass that is none: pytorch#135546, where -1 counted from the end."""
    inputs = trial.question.fresh()
    if inputs.logits.is_cuda:
        raise NotRunError("would be left with a device that is of no more use")
    wrong = no_classes(inputs)
    made = trial.perform(answers_of_compiled, trial.gradients, compilers.CODE, inputs, wrong)
    for index, answer in zip(wrong, made, strict=True):
        if isinstance(answer, Raised):
            if not answer.is_a(IndexError, RuntimeError):
                yield Problem("wrong", f"class {index} raised {answer.message}; allowed is IndexError or RuntimeError")
        else:
            value = f" {answer.tolist()}" if answer.numel() < 10 else ""
            returned = f"class {index} of {trial.case.classes} returned{value}"
            yield Problem("accepted", f"{returned}; should have raised IndexError or RuntimeError")


def answers_of_compiled(
    loss: Loss, gradients: Gradients, backend: str, inputs: Inputs, classes: Sequence[int]
) -> list[Tensor | Raised] | Waits:
    """The act of some calls of a compiled loss, each with another class at the end of the target."""
    if reason := compilers.unusable(backend, inputs.logits.device.type):
        return Waits(reason)
    made: list[Tensor | Raised] = []
    with compilers.compiled(loss, backend, dynamic=False) as of_graph:
        try:
            evaluate(of_graph, inputs.copy(), gradients)
        except Exception:  # or any error would do
            return Waits("waits for a right compile")
        if reason := _why_no_error():
            return Waits(reason)
        for index in classes:
            given = inputs.copy()
            given.target[(-1,) * given.target.dim()] = index
            try:
                made.append(evaluate(of_graph, given, gradients).loss)
            except Exception as error:
                made.append(Raised.of(error))
    return made


def _why_no_error() -> str:
    """Why compiled code cannot be given what is no class, or "": 2.1 reads beyond a tensor, 2.4 ends the process."""
    old = Version(torch.__version__).release < (2, 6)
    return "waits for a torch whose compiled code raises, which before 2.6 it does not" if old else ""


def no_classes(inputs: Inputs) -> list[int]:
    """The class after the last one, and the one before the first where the target holds it; none that is ignored."""
    classes = inputs.logits.shape[min(1, inputs.logits.dim() - 1)]
    wrong = (classes, -1) if inputs.target.dtype.is_signed else (classes,)
    return [index for index in wrong if index != inputs.options.get("ignore_index", -100)]


def _primals(loss: Loss, inputs: Inputs) -> tuple[Any, ...]:
    """The loss as a function of what it has gradients of, and these."""

    def of_both(logits: Tensor, target: Tensor = inputs.target) -> Tensor:
        return loss(logits, target, **inputs.options)

    return of_both, inputs.logits, *([inputs.target] if inputs.target.is_floating_point() else [])


def _samples_axis(inputs: Inputs) -> int:
    return 0 if inputs.logits.dim() == 2 else -1


@functools.lru_cache(maxsize=1)  # every subject is asked about a case before the next one comes
def _samples(case: Case, device: str) -> tuple[Expected, ...]:
    """The exact answer to a call with each sample alone."""
    inputs = case.build(device)
    axis = _samples_axis(inputs)

    def sample(at: int) -> Inputs:
        upstream = inputs.upstream.select(axis, at) if case.reduction == "none" else inputs.upstream
        return Inputs(inputs.logits.select(axis, at), inputs.target.select(axis, at), inputs.options, upstream)

    return tuple(expect(sample(at)) for at in range(inputs.logits.shape[axis]))


def _widened(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in HALVES else tensor.dtype


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
        with compilers.quiet():
            _exported(_Module(torch.add, (), {}), (torch.ones(2), torch.ones(2)))
    except Exception as error:  # there is none before torch 2.1, and none for a Python that is too new
        return f"waits for a torch.export that works: {said(error)}"
    return ""


def larger(case: Case) -> Case:
    """The same choices in other numbers, for four more samples; or for four more classes, where there is one.

    Sizes that are equal stay so: torch takes them for one, and compiles anew where they are not.
    """
    sizes = tuple(size + 4 if size == case.sizes[0] else size for size in case.sizes)
    return replace(case, sizes=sizes, seed=case.seed + 1)


def _plain(subject: Subject) -> str:
    return subject.plain


def _no_gradient(subject: Subject) -> str:
    return subject.plain or ("" if subject.differentiable else "has no gradient to compare")


TRANSFORMS = (
    Check("func_grad", func_grad, why_not=_no_gradient),
    Check("vmap", vmap, about=lambda case: len(case.sizes) > 1 and case.rows > 0, why_not=_plain),
    Check("autocast", autocast, why_not=_plain),
    Check("meta", meta, why_not=_plain),
    Check("export", export, why_not=_plain),
    Check(
        "trace",
        partial(compiled, compilers.TRACER, False),
        why_not=_plain,
        asks="As the graph that torch.compile makes, before it is code, it gives the loss and its gradients.",
    ),
    Check(
        "trace_dynamic",
        partial(compiled, compilers.TRACER, True),
        why_not=_plain,
        asks="So does one graph for all sizes, on two of them.",
    ),
)
# Those that take seconds a case.
COMPILED = (
    Check(
        "compile",
        partial(compiled, compilers.CODE, False),
        why_not=_plain,
        asks="Compiled, it gives the loss and its gradients: pytorch#95794, #121173, #155247, #182399.",
    ),
    Check(
        "compile_dynamic",
        partial(compiled, compilers.CODE, True),
        why_not=_plain,
        asks="So does code that is compiled once for all sizes, on two of them.",
    ),
    Check(
        "compiled_error",
        compiled_error,
        about=lambda case: case.target in INDEX_TARGETS and case.rows > 0,
        why_not=_plain,
    ),
)
