"""How torch compiles a loss here, or why it cannot; `SUBJECT+compile`."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.state import restore, snapshot
from crossent.subjects.subject import Loss, Subject
from crossent.words import said

# Dynamo, AOTAutograd and the decompositions, whose operations run in torch's own kernels; and the same with code made.
TRACER, INDUCTOR = "aot_eager_decomp_partition", "inductor"


@contextmanager
def compile_loss(loss: Loss, backend: str, *, dynamic: bool) -> Iterator[Loss]:
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


def unusable(backend: str, device: str) -> str:
    """Why torch cannot compile for a type of device here, or ""."""
    import torch._dynamo  # takes a second, which only who compiles should wait

    # Or what was given to torch.compile would come back, and be right.
    if getattr(torch._dynamo.config, "disable", False) or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "waits for torch.compile, which is disabled"
    if backend == INDUCTOR and device == "cpu":
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


COMPILE_SUFFIX = "+compile"


# What is not asked of compiled code: torch makes none for it, or has errors of its own.
_OF_COMPILED = {
    "double_backward": "is compiled, and torch compiles no second derivative",
    "forward_ad": "is compiled, and torch compiles no forward mode",
    "errors": "is compiled, and raises the compiler's errors",
}


def as_compiled(subject: Subject, device: str) -> Subject:
    """A subject's loss as torch.compile makes it, one graph for each kind of call that comes."""
    return replace(
        subject,
        name=f"{subject.name}{COMPILE_SUFFIX}",
        loss=partial(_call_compiled, subject.loss),
        not_applicable=partial(unless_compiled, subject.not_applicable),
        not_transformed="is compiled itself",
        # The code that is made for it is Triton's.
        promise="fast_kernel" if device.startswith("cuda") else subject.promise,
        source=f"{subject.source}{COMPILE_SUFFIX}",
    ).lacking(_OF_COMPILED)


def unless_compiled(own: Callable[[Inputs], str | None], inputs: Inputs) -> str | None:
    """Why compiled code does not apply to inputs: for a reason of its own, or since torch compiles none."""
    return own(inputs) or unusable(INDUCTOR, inputs.logits.device.type) or None


@cache
def _code(loss: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:  # in no file of torch's, which Dynamo would skip
        return loss(*arguments, **options)

    made: Callable[..., Any] = torch.compile(call, backend=INDUCTOR, fullgraph=True)
    return made


# How many graphs torch makes of one function before it runs it as it is, without a word.
_LIMITS = ("cache_size_limit", "accumulated_cache_size_limit", "recompile_limit", "accumulated_recompile_limit")


def _call_compiled(loss: Callable[..., Any], input: Tensor, target: Tensor, **options: Any) -> Any:
    import torch._dynamo  # takes a second, which only who compiles should wait

    config = torch._dynamo.config
    limits = {name: 2**30 for name in _LIMITS if hasattr(config, name)}
    with quiet(), config.patch(limits):
        return _code(loss)(input, target, **options)
