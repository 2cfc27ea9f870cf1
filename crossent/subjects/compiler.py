"""Compile a loss with torch.compile (`SUBJECT+compile`), or say why torch cannot compile on this machine."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
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
from crossent.words import cut, said

# Two backends of torch.compile. Both run Dynamo, AOTAutograd and the decompositions, which make a graph. TRACER then
# runs the operations of the graph in torch's own kernels; INDUCTOR generates code for the graph.
TRACER, INDUCTOR = "aot_eager_decomp_partition", "inductor"
_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # the variable that tells torch where to keep compiled code


@contextmanager
def compile_loss(loss: Loss, backend: str, *, dynamic: bool) -> Iterator[Loss]:
    """Yield `loss` as a function that torch compiles into one graph at the first call.

    `backend` is `TRACER`, which runs torch's own kernels, or `INDUCTOR`, which generates code. If `dynamic` is True,
    the graph is for any sizes, otherwise for the sizes of the first call. Before and after the `with` block, torch
    drops all compiled graphs of this process.
    """

    def call(*arguments: Any, **options: Any) -> Any:  # defined here, because Dynamo skips functions in torch's files
        return loss(*arguments, **options)

    limit = sys.getrecursionlimit()  # torch._inductor raises this limit
    torch._dynamo.reset()  # torch limits the number of graphs
    try:
        with quiet(), _guards_not_timed():
            yield _compile(call, backend=backend, fullgraph=True, dynamic=dynamic)
    finally:
        torch._dynamo.reset()
        sys.setrecursionlimit(limit)


def _compile(function: Callable[..., Any], backend: str, **options: Any) -> Callable[..., Any]:
    if backend == INDUCTOR:
        importlib.import_module("torch._inductor.codecache")  # takes a second, so only a run that compiles pays for it
    keep_headers_with_code()
    made: Callable[..., Any] = torch.compile(function, backend=backend, **options)
    return made


def keep_headers_with_code() -> None:
    """Let torch write its precompiled C++ headers to the folder in TORCHINDUCTOR_CACHE_DIR, if this variable is set."""
    codecache: Any = sys.modules.get("torch._inductor.codecache")
    # In torch's default folder, a subject of another run could change the headers.
    if _CACHE in os.environ and hasattr(codecache, "_HEADER_DIR"):
        codecache._HEADER_DIR = os.path.join(os.environ[_CACHE], "precompiled_headers")
        codecache._HEADER_LOCK_DIR = os.path.join(codecache._HEADER_DIR, "locks")


@contextmanager
def _guards_not_timed() -> Iterator[None]:
    """Keep torch from timing guards, the conditions under which torch may call a graph again."""
    import torch._dynamo.guards

    guards: Any = torch._dynamo.guards
    timed = getattr(guards, "profile_guard_manager", None)
    if timed is None:
        yield
        return
    # To time guards, torch flushes the processor's caches: a tenth of the compile time of a small graph.
    guards.profile_guard_manager = lambda *arguments: 0.0
    try:
        yield
    finally:
        guards.profile_guard_manager = timed


def why_cannot_compile(backend: str, device: str) -> str:
    """Return why torch cannot compile with a backend for a type of device, such as "cpu"; "" if torch can."""
    import torch._dynamo  # this import takes a second, so only a run that compiles pays for it

    # If torch.compile is disabled, it returns the loss itself, so a check of compiled code would test plain code.
    if getattr(torch._dynamo.config, "disable", False) or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "needs torch.compile, which TORCHDYNAMO_DISABLE=1 or torch._dynamo.config.disable turns off"
    if backend == INDUCTOR and device == "cpu":
        compiler = os.environ.get("CXX", {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++"))
        if shutil.which(compiler) is None:
            return f"needs the C++ compiler {cut(compiler)}, which is not found; install it, or set CXX to another"
    return _why_compile_fails(backend, device)


@functools.cache
def _why_compile_fails(backend: str, device: str) -> str:
    """Compile and call `torch.sin`; return why this fails, or ""."""
    before = snapshot()
    try:
        with quiet():
            _compile(torch.sin, backend=backend)(torch.ones(2, device=device))
    except Exception as error:
        return f"needs a torch.compile that works: {said(error)}"
    finally:
        restore(before)
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and log messages of torch's modules until the `with` block ends."""
    named = logging.root.manager.loggerDict.items()
    loggers = [logger for name, logger in named if name.split(".")[0] == "torch" and isinstance(logger, logging.Logger)]
    enabled = [logger for logger in loggers if not logger.disabled]
    for logger in enabled:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\b")
            yield
    finally:
        for logger in enabled:
            logger.disabled = False


COMPILE_SUFFIX = "+compile"


# Features that compiled code lacks, with the reasons.
_OF_COMPILED = {
    "double_backward": "is compiled, and torch compiles no second derivative",
    "forward_ad": "is compiled, and torch compiles no forward mode",
    "retain_graph": "is compiled, and its backward pass may free tensors that a second backward pass needs",
    "errors": "is compiled, and raises the compiler's errors",
}


def as_compiled(subject: Subject, device: str) -> Subject:
    """Return the subject with its loss compiled by torch.compile, and without the features that compiled code lacks."""
    return replace(
        subject,
        name=f"{subject.name}{COMPILE_SUFFIX}",
        loss=partial(_call_compiled, subject.loss),
        not_applicable=partial(why_not_compiled, subject.not_applicable),
        not_transformed="is already compiled",
        # On a GPU, torch.compile generates code with approximate functions: Triton on CUDA and XPU, Metal on MPS.
        promise=subject.promise if device == "cpu" else "fast_kernel",
        compiled=True,
        source=f"{subject.source}{COMPILE_SUFFIX}",
    ).lacking(_OF_COMPILED)


def why_not_compiled(own: Callable[[Inputs], str | None], inputs: Inputs) -> str | None:
    """Return why a compiled subject cannot take these inputs; None if the subject can.

    `own` returns why the uncompiled subject cannot take inputs, or None.
    """
    return own(inputs) or why_cannot_compile(INDUCTOR, inputs.input.device.type) or None


@cache
def _code(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled loss, which keeps its graphs between calls."""

    def call(*arguments: Any, **options: Any) -> Any:  # defined here, because Dynamo skips functions in torch's files
        return loss(*arguments, **options)

    return _compile(call, backend=INDUCTOR, fullgraph=True)


# The settings that limit the number of graphs of one function. Beyond a limit, torch runs the function uncompiled and
# logs a warning, which `quiet` silences. With `fullgraph=True`, torch raises an error instead.
_LIMITS = ("cache_size_limit", "accumulated_cache_size_limit", "recompile_limit", "accumulated_recompile_limit")


def _call_compiled(loss: Callable[..., Any], input: Tensor, target: Tensor, **options: Any) -> Any:
    import torch._dynamo  # noqa: F401  # takes a second, so only a run that compiles pays for it

    with quiet(), without_limits():
        return _code(loss)(input, target, **options)


@contextmanager
def without_limits() -> Iterator[None]:
    """Let torch.compile make any number of graphs of one function."""
    compiler = sys.modules.get("torch._dynamo")
    if compiler is None or not hasattr(compiler, "config"):
        yield
        return
    # With torch's limit of 8 graphs, `fullgraph=True` would raise an error at the ninth shape.
    with compiler.config.patch({name: 2**30 for name in _LIMITS if hasattr(compiler.config, name)}):
        yield


@contextmanager
def own_compile_cache() -> Iterator[None]:
    """Let torch write compiled code to a new folder, unless TORCHINDUCTOR_CACHE_DIR already names a folder."""
    if _CACHE in os.environ:
        yield
        return
    # In torch's default folder, a subject of an earlier run could have left code for this run.
    os.environ[_CACHE] = folder = _new_folder(tempfile.gettempdir())
    try:
        yield
    finally:
        os.environ.pop(_CACHE, None)
        shutil.rmtree(folder, ignore_errors=True)


def use_new_compile_cache() -> None:
    """Let this process write compiled code to a new folder, and so load no code of other processes."""
    os.environ[_CACHE] = _new_folder(os.environ.get(_CACHE, tempfile.gettempdir()))


def _new_folder(inside: str) -> str:
    """Return the path of a new folder in `inside`; torch creates the folder."""
    # Other processes cannot guess the name, and so cannot write code there beforehand.
    return os.path.join(inside, f"crossent-compile-{secrets.token_hex(16)}")
