"""Compilers: a subject as torch compiles it, why that cannot be here, and what its code is held to."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from crossent.acts import Raised, Waits, said
from crossent.cases import Inputs
from crossent.contracts import FUNCTIONS, Contract, contract
from crossent.differences import Difference, compare_under
from crossent.expected import Expected
from crossent.memory import poison
from crossent.results import Gradients, Loss, Result, evaluate
from crossent.state import restore, snapshot
from crossent.trials import RefusedError, Trial

# Dynamo, AOTAutograd and the decompositions, whose operations run in torch's own kernels; and the same with code made.
TRACER, CODE = "aot_eager_decomp_partition", "inductor"


def evaluate_compiled(
    loss: Loss, gradients: Gradients, backend: str, dynamic: bool, calls: Sequence[Inputs]
) -> list[Result | Raised] | Waits:
    """The act of some calls of a compiled loss, in memory full of NaN; none comes after one that raised."""
    if reason := unusable(backend, calls[0].logits.device.type):
        return Waits(reason)
    made: list[Result | Raised] = []
    with compiled(loss, backend, dynamic=dynamic) as of_graph:
        for inputs in calls:
            poison(inputs)
            try:
                made.append(evaluate(of_graph, inputs, gradients).copy())
            except Exception as error:
                return [*made, Raised.of(error)]
    return made


@contextmanager
def compiled(loss: Loss, backend: str, *, dynamic: bool) -> Iterator[Loss]:
    """A loss as it is compiled when it is called: one graph, for the sizes that it sees or for any.

    Nothing is known of what was compiled before, which would count towards torch's limit of graphs, nor is anything
    left: what others have compiled is compiled again at their next call.
    """

    def call(*arguments: Any, **options: Any) -> Any:  # in no file of torch's, which Dynamo would skip
        return loss(*arguments, **options)

    limit = sys.getrecursionlimit()  # which is raised by torch._inductor
    torch._dynamo.reset()
    try:
        with quiet():
            yield torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)
    finally:
        torch._dynamo.reset()
        sys.setrecursionlimit(limit)


def refusal(raised: Raised, where: str) -> RefusedError:
    """That a compiled loss raised; the message has the error that was the first, since Dynamo's says there was one."""
    message = raised.message
    if raised.first not in message:  # of the last one a few words: there may be addresses in the rest
        message = f"{textwrap.shorten(message, 80, placeholder=' …')} ({raised.first})"
    return RefusedError(raised, f"{message}{where}")


def unusable(backend: str, device: str) -> str:
    """Why torch cannot compile for a type of device here, or ""."""
    import torch._dynamo  # takes a second, which only who compiles should wait

    # Or what was given to torch.compile would come back, and be right.
    if getattr(torch._dynamo.config, "disable", False) or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "waits for torch.compile, which is disabled"
    if backend == CODE and device == "cpu":
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        if shutil.which(os.environ.get("CXX", usual)) is None:
            return "waits for a C++ compiler"
    return _fails(backend, device)


@functools.cache
def _fails(backend: str, device: str) -> str:
    """Why torch compiles nothing, or "": "Python 3.11+ not yet supported for torch.compile", in torch 2.0.1."""
    before = snapshot()
    try:
        with quiet():
            torch.compile(torch.sin, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        return f"waits for a torch.compile that works: {said(error)}"
    finally:
        restore(before)
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's own modules warn of and log: of a refusal, the error says enough. Others are heard."""
    named = logging.root.manager.loggerDict.items()
    loggers = [one for name, one in named if name.split(".")[0] == "torch" and isinstance(one, logging.Logger)]
    heard = [logger for logger in loggers if not logger.disabled]
    for logger in heard:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\b")
            yield
    finally:
        for logger in heard:
            logger.disabled = False


def compare(trial: Trial, backend: str, got: Result, expected: Expected) -> list[Difference]:
    """The differences of a result of compiled code under what the subject promises, as far as the compiler keeps it."""
    device = got.loss.device.type
    dtype = trial.subject.dtype_name or expected.logits_dtype
    rows = len(expected.terms.logits)
    own = contract(trial.subject.promise, trial.wanted, dtype, device=device, rows=rows)
    return compare_under(promised(own, backend, device), got, expected)


def promised(own: Contract, backend: str, device: str) -> Contract:
    """What compiled code promises of a subject that promises `own`.

    On a CPU that is the subject's own contract. Decompositions are made of torch's operations, as the forms are. The
    code that is made for a CPU adds, multiplies and divides as IEEE 754 has it (torch passes the compiler
    `-fno-unsafe-math-optimizations`); its exp and log are the vector library's, and the C library's for what is left of
    a vector, each within one unit in the last place (tests/test_assumptions.py measures them). Where steps are fused it
    leaves out roundings to half precision that separate kernels make, and makes none of its own, which any contract
    allows. Sums of half precision are taken in float32 in any order: over at most 2^13 rows that errs by
    `2^13 · 2^-24 Σ|t|`, no more than a single addition in float16, of which every contract of grade B allows one.

    The code for a CUDA device is Triton's: its exp, log and division are approximate, and a softmax may be taken in
    blocks.
    """
    if backend == TRACER or device == "cpu":
        return own
    return replace(own, functions=FUNCTIONS["fast", own.compute.name], fused=True)
