"""Checks of compiled code: graphs that torch.compile traces, and code compiled for fixed or for dynamic sizes."""

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
from crossent.subjects.compiler import INDUCTOR, TRACER, compile_loss, why_cannot_compile
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
    """Act: call the compiled loss with each of the inputs in `calls`, and return the results.

    After an exception, there is no further call, and the exception is the last result. `backend` is `TRACER` or
    `INDUCTOR`. If `dynamic` is True, one graph serves all sizes.
    """
    if reason := why_cannot_compile(backend, calls[0].input.device.type):
        return NotRun(reason)
    made: list[Result | Raised] = []
    with compile_loss(loss, backend, dynamic=dynamic) as compiled_loss:
        for inputs in calls:
            poison(inputs)  # NaN shows elements that the code never writes (Liger-Kernel#1338)
            try:
                made.append(evaluate(compiled_loss, inputs, gradients).copy())
            except Exception as error:
                return [*made, Raised.of(error)]
    return made


def refused_when_compiled(raised: Raised, where: str) -> RefusedError:
    """Return the RefusedError that reports an exception of a compiled loss.

    `where` is a phrase about the call, such as "in a second call", or "" for the first call.
    """
    message = raised.message
    # Dynamo's own exception may say only that another exception was raised.
    if raised.first not in message:  # shortened: a long message may contain memory addresses
        message = f"{textwrap.shorten(message, 80, placeholder=' …')} ({raised.first})"
    return RefusedError(raised, f"{message}, {where}" if where else message)


def compare_compiled(trial: Trial, backend: str, got: Result, exact: Exact) -> list[Difference]:
    """Return the differences of `got` from the exact values, under the contract of code compiled by `backend`."""
    own = trial.contract(exact.logits_dtype, len(exact.terms.logits))
    return compare(contract_of_compiled_code(own, backend, got.loss.device.type), got, exact)


def contract_of_compiled_code(own: Contract, backend: str, device: str) -> Contract:
    """Return the contract of compiled code for a subject with the contract `own`.

    `backend` is `TRACER`, which runs a traced graph, or `INDUCTOR`, which generates code. `device` is the type of the
    device, such as "cuda".

    A traced graph has the contract `own`, since the graph consists of torch's operations.

    Code for a CPU has the contract `own.when_compiled`, since the code may add up the rows in any order. All other
    steps keep to the contract `own`:

    * The code adds, multiplies and divides as IEEE 754 requires: torch passes `-fno-unsafe-math-optimizations`.
    * The vector library and the C library compute exp and log. Their errors are at most one unit in the last place
      (tests/numerics/test_assumptions.py).
    * Fused steps add no rounding, and leave out some roundings to half precision. A contract permits roundings and
      requires none.

    Code for a GPU comes from Triton or Metal, with an approximate exp, log and division, and may compute a softmax in
    blocks. The contract is `own` with `fused=True`, and with the "fast" functions (`FUNCTIONS`) of its compute format.
    """
    if backend == TRACER:
        return own
    if device == "cpu":
        return own.when_compiled
    return replace(own, functions=FUNCTIONS["fast", own.compute.name], fused=True)


def _weighted_indices(case: Case) -> bool:
    return case.target == "int64" and case.weight != "unweighted"


def _weighted_probabilities(case: Case) -> bool:
    return case.target in DENSE_TARGETS and case.weight != "unweighted"


def _ignored_indices(case: Case) -> bool:
    # More dimensions are slower to trace.
    return case.target == "int64" and case.ignored != "kept" and case.dimensions == 2


def compiled(backend: str, dynamic: bool, trial: Trial) -> Found:
    """Check that the compiled subject gives the exact loss and gradients in each of two calls.

    The second call has the same inputs, or larger inputs if `dynamic` is True.
    """
    other = Question(larger(trial.case), trial.question.device) if dynamic else trial.question
    if reason := trial.subject.not_applicable(other.inputs):  # other random numbers may need a feature
        raise NotRunError(reason)
    questions = (trial.question, ""), (other, f"on {other.case.id}" if dynamic else "in a second call")
    calls = [question.fresh() for question, _ in questions]
    made = trial.perform(evaluate_compiled, trial.gradients, backend, dynamic, calls)
    if len(made) < len(calls) and not (made and isinstance(made[-1], Raised)):
        raise ValueError(f"results of the compiled loss: got {len(made)}; expected one for each of {len(calls)} calls")
    for (question, where), got in zip(questions, made, strict=False):
        if isinstance(got, Raised):
            raise refused_when_compiled(got, where)
        if problem := misshapen(trial, got.loss, question.exact, way=where):
            yield problem
            return
        for found in compare_compiled(trial, backend, got, question.exact):
            yield replace(found, of=f"{found.of} {where}".rstrip())


def _declare_check(
    name: str,
    backend: str,
    cost: Cost,
    sentence: str,
    *,
    dynamic: bool,
    sample: Callable[[Case], bool] = lambda case: True,
) -> Check:
    body = partial(compiled, backend, dynamic)
    return check("compile", name=name, cost=cost, transforms=True, sample=sample, sentence=sentence)(body)


trace = _declare_check(
    "trace",
    TRACER,
    Cost.STRUCTURE,
    "The graph traced by torch.compile, run without code generation, gives the exact loss and gradients.",
    dynamic=False,
)
trace_dynamic = _declare_check(
    "trace_dynamic",
    TRACER,
    Cost.CODE,
    "One graph traced by torch.compile for all sizes, run without code generation, gives exact results for two sizes.",
    dynamic=True,
    sample=_ignored_indices,
)
# Published bugs of this kind: pytorch#95794, #121173, #155247, #182399.
fixed_code = _declare_check(  # not `compile`, which is a function of Python
    "compile",
    INDUCTOR,
    Cost.CODE,
    "Code compiled by torch.compile gives the exact loss and gradients.",
    dynamic=False,
    sample=_weighted_indices,
)
dynamic_code = _declare_check(
    "compile_dynamic",
    INDUCTOR,
    Cost.CODE,
    "Code compiled once by torch.compile for all sizes gives the exact loss and gradients for two sizes.",
    dynamic=True,
    sample=_weighted_probabilities,
)


@check(
    "compile",
    cost=Cost.CODE,
    transforms=True,
    applies=lambda case: case.target in INDEX_TARGETS and case.rows > 0,
    sample=_weighted_indices,
)
def compiled_error(trial: Trial) -> Iterator[Problem]:
    """Compiled code raises an error for a class index out of range.

    In pytorch#135546, compiled code took the class index -1 as the last class.
    """
    inputs = trial.question.fresh()
    if inputs.input.device.type in ("cuda", "xpu"):
        raise NotRunError(
            "is not called with a class out of range on a GPU, where the failed assertion makes the device unusable"
        )
    wrong = wrong_classes(inputs)
    if not wrong:
        raise NotRunError("gets a uint8 target, which cannot hold a class out of range")
    made = trial.perform(call_compiled_on_classes, trial.gradients, INDUCTOR, inputs, wrong)
    for index, reaction in zip(wrong, made, strict=True):
        if isinstance(reaction, Raised):
            if not reaction.is_a(IndexError, RuntimeError):
                said = f"the call with class {index} raised {reaction.message}"
                message = f"{said}; should have raised IndexError or RuntimeError"
                yield Problem("wrong", message)
        else:
            value = f" {reaction.tolist()}" if reaction.numel() < 10 else ""
            returned = f"the call with class {index}, outside of 0 to {trial.case.classes - 1}, returned{value}"
            yield Problem("accepted", f"{returned}; should have raised IndexError or RuntimeError")


def call_compiled_on_classes(
    loss: Loss, gradients: Gradients, backend: str, inputs: Inputs, classes: Sequence[int]
) -> list[Tensor | Raised] | NotRun:
    """Act: call a compiled loss once for each class index in `classes`, and return the losses and the exceptions.

    In each call, the class index is the last element of the target. A first call, with the unchanged inputs, must not
    raise an exception.
    """
    if reason := why_cannot_compile(backend, inputs.input.device.type):
        return NotRun(reason)
    made: list[Tensor | Raised] = []
    with compile_loss(loss, backend, dynamic=False) as compiled_loss:
        evaluate(compiled_loss, inputs.copy(), gradients)  # code that raises for right classes too must fail
        if reason := _why_no_error():
            return NotRun(reason)
        for index in classes:
            given = inputs.copy()
            given.target[(-1,) * given.target.dim()] = index
            try:
                made.append(evaluate(compiled_loss, given, gradients).loss)
            except Exception as error:
                made.append(Raised.of(error))
    return made


def _why_no_error() -> str:
    """Return why compiled code must not be called with a class index out of range, or ""."""
    # Code of torch 2.1 reads outside of a tensor; code of torch 2.4 ends the process.
    if Version(torch.__version__).release >= (2, 6):
        return ""
    return "needs torch 2.6 or newer: code compiled by an older torch does not raise for a class index out of range"


def wrong_classes(inputs: Inputs) -> list[int]:
    """Return class indices just out of range that the dtype of the target can hold."""
    classes, dtype = inputs.classes, inputs.target.dtype
    wrong = [index for index in (classes, -1) if torch.iinfo(dtype).min <= index <= torch.iinfo(dtype).max]
    return [index for index in wrong if index != inputs.options.get("ignore_index", -100)]


def larger(case: Case) -> Case:
    """Return the case with another seed. The first size, and each size equal to the first, grows by 4."""
    # torch traces equal sizes as one symbol, and would compile again if they became different.
    sizes = tuple(size + 4 if size == case.sizes[0] else size for size in case.sizes)
    return replace(case, sizes=sizes, seed=case.seed + 1)
