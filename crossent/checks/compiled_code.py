"""Checks of compiled code: a traced graph, and code made of it, for fixed sizes and for any."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from packaging.version import Version
from torch import Tensor

from crossent.cases.axes import DENSE_TARGETS, INDEX_TARGETS
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.contracts import FUNCTIONS, Contract
from crossent.subjects.compiler import INDUCTOR, TRACER, compile_loss, unusable
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun, Raised
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Check, Cost, Found, check
from crossent.trials.difference import Difference, compare
from crossent.trials.exact import Exact
from crossent.trials.memory import poison
from crossent.trials.trial import NotRunError, Problem, Question, RefusedError, Trial, misshapen


def evaluate_compiled(
    loss: Loss, gradients: Gradients, backend: str, dynamic: bool, calls: Sequence[Inputs]
) -> list[Result | Raised] | NotRun:
    """The act of some calls of a compiled loss, in memory full of NaN; none comes after one that raised."""
    if reason := unusable(backend, calls[0].logits.device.type):
        return NotRun(reason)
    made: list[Result | Raised] = []
    with compile_loss(loss, backend, dynamic=dynamic) as of_graph:
        for inputs in calls:
            poison(inputs)
            try:
                made.append(evaluate(of_graph, inputs, gradients).copy())
            except Exception as error:
                return [*made, Raised.of(error)]
    return made


def refused_when_compiled(raised: Raised, where: str) -> RefusedError:
    """That a compiled loss raised; the message has the error that was the first, since Dynamo's says there was one."""
    message = raised.message
    if raised.first not in message:  # of the last one a few words: there may be addresses in the rest
        message = f"{textwrap.shorten(message, 80, placeholder=' …')} ({raised.first})"
    return RefusedError(raised, f"{message}{where}")


def compare_compiled(trial: Trial, backend: str, got: Result, exact: Exact) -> list[Difference]:
    """The differences of a result of compiled code under what the subject promises, as far as the compiler keeps it."""
    own = trial.contract(exact.logits_dtype, len(exact.terms.logits))
    return compare(promised(own, backend, got.loss.device.type), got, exact)


def promised(own: Contract, backend: str, device: str) -> Contract:
    """What compiled code promises of a subject that promises `own`.

    On a CPU that is the subject's own contract. Decompositions are made of torch's operations, as the forms are. The
    code that is made for a CPU adds, multiplies and divides as IEEE 754 has it (torch passes the compiler
    `-fno-unsafe-math-optimizations`); its exp and log are the vector library's, and the C library's for what is left of
    a vector, each within one unit in the last place (tests/numerics/test_assumptions.py). Where steps are fused it
    leaves out roundings to half precision that separate kernels make, and makes none of its own, which any contract
    allows. Sums of half precision are taken in float32 in any order: over at most 2^13 rows that errs by
    `2^13 · 2^-24 Σ|t|`, no more than a single addition in float16, of which every contract of grade B allows one.

    The code for a CUDA device is Triton's: its exp, log and division are approximate, and a softmax may be taken in
    blocks.
    """
    if backend == TRACER or device == "cpu":
        return own
    return replace(own, functions=FUNCTIONS["fast", own.compute.name], fused=True)


def _has_indices(case: Case) -> bool:
    return case.target == "int64"


def _has_probabilities(case: Case) -> bool:
    return case.target in DENSE_TARGETS


def compiled(backend: str, dynamic: bool, trial: Trial) -> Found:
    """Compiled, it gives the loss and its gradients: pytorch#95794, #121173, #155247, #182399.

    It is called twice: in memory full of NaN, since what is never set is found so (Liger-Kernel#1338); and what is
    compiled for any size, on a larger batch of other numbers.
    """
    other = Question(larger(trial.case), trial.question.device) if dynamic else trial.question
    asked = (trial.question, ""), (other, f" on {other.case.id}" if dynamic else " called again")
    calls = [question.fresh() for question, _ in asked]
    made = trial.perform(evaluate_compiled, trial.gradients, backend, dynamic, calls)
    for (question, where), got in zip(asked, made, strict=False):
        if isinstance(got, Raised):
            raise refused_when_compiled(got, where)
        if problem := misshapen(trial, got.loss, question.exact):
            yield replace(problem, message=f"{problem.message}{where}")
            return
        for found in compare_compiled(trial, backend, got, question.exact):
            yield replace(found, of=f"{found.of}{where}")


def _compiled(
    name: str, backend: str, cost: Cost, sentence: str, *, dynamic: bool, sample: Callable[[Case], bool]
) -> Check:
    body = partial(compiled, backend, dynamic)
    return check("compile", name=name, cost=cost, transforms=True, sample=sample, sentence=sentence)(body)


trace = _compiled(
    "trace",
    TRACER,
    Cost.STRUCTURE,
    "As the graph that torch.compile makes, before it is code, it gives the loss and its gradients.",
    dynamic=False,
    sample=_has_indices,
)
trace_dynamic = _compiled(
    "trace_dynamic",
    TRACER,
    Cost.CODE,
    "So does one graph for all sizes, on two of them.",
    dynamic=True,
    sample=_has_indices,
)
fixed_code = _compiled(
    "compile",
    INDUCTOR,
    Cost.CODE,
    "Compiled, it gives the loss and its gradients: pytorch#95794, #121173, #155247, #182399.",
    dynamic=False,
    sample=_has_indices,
)
dynamic_code = _compiled(
    "compile_dynamic",
    INDUCTOR,
    Cost.CODE,
    "So does code that is compiled once for all sizes, on two of them.",
    dynamic=True,
    sample=_has_probabilities,
)


@check(
    "compile",
    cost=Cost.CODE,
    transforms=True,
    applies=lambda case: case.target in INDEX_TARGETS and case.rows > 0,
    sample=_has_indices,
)
def compiled_error(trial: Trial) -> Iterator[Problem]:
    """Compiled code does not let a class pass that is none: pytorch#135546, where -1 counted from the end."""
    inputs = trial.question.fresh()
    if inputs.logits.is_cuda:
        raise NotRunError("would be left with a device that is of no more use")
    wrong = no_classes(inputs)
    made = trial.perform(answers_of_compiled, trial.gradients, INDUCTOR, inputs, wrong)
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
) -> list[Tensor | Raised] | NotRun:
    """The act of some calls of a compiled loss, each with another class at the end of the target."""
    if reason := unusable(backend, inputs.logits.device.type):
        return NotRun(reason)
    made: list[Tensor | Raised] = []
    with compile_loss(loss, backend, dynamic=False) as of_graph:
        try:
            evaluate(of_graph, inputs.copy(), gradients)
        except Exception:  # or any error would do
            return NotRun("waits for a right compile")
        if reason := _why_no_error():
            return NotRun(reason)
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


def larger(case: Case) -> Case:
    """The same choices in other numbers, for four more samples; or for four more classes, where there is one.

    Sizes that are equal stay so: torch takes them for one, and compiles anew where they are not.
    """
    sizes = tuple(size + 4 if size == case.sizes[0] else size for size in case.sizes)
    return replace(case, sizes=sizes, seed=case.seed + 1)
