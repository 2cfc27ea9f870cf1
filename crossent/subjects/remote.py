"""Apart: what a file or a module has is found out in a process of its own, and loaded where it is called.

So nothing that it does while it is imported, to torch, to numpy or to this package, is done to the judge.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from crossent.subjects.compiler import COMPILE_SUFFIX, unless_compiled
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject

LONGEST = 2**20  # bytes of what is told


@dataclass(frozen=True)
class RemoteLoss:
    """A loss that is loaded in the process that calls it, and when it does.

    Attributes:
        description: as :func:`crossent.subjects.loader.load` takes it.
    """

    description: str

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """What the loss gives."""
        return self.here()(*arguments, **options)

    def here(self) -> Callable[..., Tensor]:
        """The loss, loaded in this process."""
        return load(self.description)[0].loss


def load_remote(
    description: str, seconds: float, *, without: Iterable[str] = (), grade: str = "A"
) -> tuple[Subject, ...]:
    """What :func:`crossent.subjects.loader.load` makes of a file's or a module's name, with its loss elsewhere.

    Args:
        description: one that is no shipped subject's.
        seconds: how long it may take to be loaded.
        without: features, as there.
        grade: as there.

    Raises:
        ValueError: what `load` raises; or its process ended, or took too long; in one line.
    """
    told = _ask_process(lambda: _describe(description, without, grade), description, seconds)
    if "error" in told:
        raise ValueError(str(told["error"]))
    try:
        return tuple(_subject(facts) for facts in told["subjects"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"subject: got {description!r}; its process says what cannot be: {error}") from None


def _describe(description: str, without: Iterable[str], grade: str) -> dict[str, Any]:
    try:
        found = load(description, without=without, grade=grade)
    except (ValueError, TypeError) as error:
        return {"error": str(error)}
    fields = ("name", "source", "promise", "not_transformed")
    return {
        "subjects": [
            {**{name: getattr(one, name) for name in fields}, "lacks": dict(one.lacks), "grades": dict(one.grades)}
            for one in found
        ]
    }


def _subject(facts: Mapping[str, Any]) -> Subject:
    name, source, promise, not_transformed = (
        str(facts[field]) for field in ("name", "source", "promise", "not_transformed")
    )
    bare = Subject(name, RemoteLoss(source), source=source, not_transformed=not_transformed, grades=facts["grades"])
    if promise != bare.promise:
        raise TypeError(f"the promise {promise!r}")
    if source.endswith(COMPILE_SUFFIX):
        bare = replace(bare, not_applicable=partial(unless_compiled, bare.not_applicable))
    return bare.lacking({str(feature): str(reason) for feature, reason in facts["lacks"].items()})


def _ask_process(tell: Callable[[], dict[str, Any]], description: str, seconds: float) -> dict[str, Any]:
    """What a process says that does it, as JSON.

    Raises:
        ValueError: it says nothing, or not in time.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            os.setpgid(0, 0)  # so that what it starts ends with it
            os.dup2(2, 1)  # stdout is the report's
            os.write(theirs, json.dumps(tell()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    end, said = time.monotonic() + seconds, b""
    try:
        while len(said) < LONGEST:
            if not select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
                raise ValueError(f"subject: got {description!r}; it is not loaded within {seconds:g} s")
            if not (more := os.read(ours, 2**16)):
                break
            said += more
    finally:
        os.close(ours)
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        os.waitpid(child, 0)
    try:
        told = json.loads(said)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ValueError(f"subject: got {description!r}; its process ended while it was loaded")
    return told
