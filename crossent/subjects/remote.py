"""A user's loss function, whose code the main process never imports: another process loads and describes the function.

An import could change torch, numpy or this package, with which the main process judges results.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.subjects.compiler import COMPILE_SUFFIX, own_compile_cache, why_not_compiled
from crossent.subjects.confinement import (
    Confined,
    drop_privileges,
    end_with_parent,
    keep_to_own_limits,
    scope_signals,
    unreadable,
)
from crossent.subjects.contracts import require_contract, under_contract
from crossent.subjects.features import require_features
from crossent.subjects.loader import load, source_of
from crossent.subjects.ranks.protocol import require_normalization, require_split, why_no_classes
from crossent.subjects.subject import Subject
from crossent.words import one_line, quoted, said

LONGEST = 2**20  # the most bytes that the main process reads from a process that describes a subject
_LONGEST_LINE = 1000  # the most characters of a name or of a reason
_LOOK = "look at the code that runs when the module is imported"  # only this code can disturb the reply


@dataclass(frozen=True)
class RemoteLoss:
    """A user's loss, given by a description. The process that calls this object loads the loss.

    Attributes:
        ranks: the number of ranks of a loss on several ranks; None for other losses.
        timeout: the time limit of a case, in seconds.
    """

    description: str
    operation: Operation = CROSS_ENTROPY
    ranks: int | None = None
    timeout: float = 300.0

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """Load the loss in this process, and call the loss."""
        return self.load_function()(*arguments, **options)

    def load_function(self) -> Callable[..., Tensor]:
        """Load the loss function in this process, and return the function."""
        found = load(self.description, operation=self.operation, ranks=self.ranks, timeout=self.timeout)
        return found[0].loss


def load_remote(
    description: str,
    seconds: float,
    *,
    without: Iterable[str] = (),
    contract: str | None = None,
    grade: str | None = None,
    operation: Operation = CROSS_ENTROPY,
    ranks: int | None = None,
) -> tuple[Subject, ...]:
    """Load the subject of a description in another process, and return a tuple of this subject.

    The other process sends facts about the subject, such as its missing features, but no code. `description` is
    package.module:NAME or path/to/file.py:NAME. With `ranks`, "loss_parallel" is allowed too. Without `ranks`,
    `+compile` may follow. `seconds` is the time limit for loading, and also for each case. `without` has further
    features that the subject lacks.

    Raises:
        ValueError: loading fails, or the contract or the grade is wrong. The message is one line.
    """
    require_contract(contract, grade)
    load_here = partial(load, description, without=without, operation=operation, ranks=ranks, timeout=seconds)
    reply = _reply_of_process(lambda: _describe(load_here), description, seconds)
    if "error" in reply:
        raise ValueError(one_line(str(reply["error"])[:_LONGEST_LINE]))
    try:
        (facts,) = reply["subjects"]  # exactly one, since only a built-in name stands for several subjects
        loss = RemoteLoss(source_of(description), operation, ranks, seconds)
        subject = _subject(facts, loss)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = one_line(said(error))
        wrong = f"sent wrong data ({why}); {_LOOK}"
        raise ValueError(f"subject: got {quoted(description)}; the process that loads this subject {wrong}") from None
    if ranks is not None and contract is None and grade is None:
        from crossent.subjects.ranks.subject import RANK_SUBJECTS, with_rank_promise

        if description in RANK_SUBJECTS:
            return (with_rank_promise(subject),)
    return (under_contract(subject, contract, grade),)


def _describe(load_here: Callable[[], tuple[Subject, ...]]) -> dict[str, Any]:
    try:
        found = load_here()
    except (ValueError, TypeError) as error:
        return {"error": str(error)}
    return {
        "subjects": [
            {
                "name": subject.name,
                "not_transformed": subject.not_transformed,
                "lacks": dict(subject.lacks),
                "chunks": list(subject.chunks),
                "split": subject.split,
                "normalization": subject.normalization,
            }
            for subject in found
        ]
    }


def _subject(facts: Mapping[str, Any], loss: RemoteLoss) -> Subject:
    name, not_transformed = (one_line(str(facts[field])[:_LONGEST_LINE]) for field in ("name", "not_transformed"))
    reasons = {str(feature): one_line(str(reason)[:_LONGEST_LINE]) for feature, reason in facts["lacks"].items()}
    require_features(reasons)
    chunks = tuple(one_line(str(keyword)[:_LONGEST_LINE]) for keyword in facts["chunks"])
    bare = Subject(name, loss, source=loss.description, not_transformed=not_transformed, chunks=chunks)
    split = require_split(facts["split"]) if loss.ranks else ""
    normalization = require_normalization(facts["normalization"]) if loss.ranks else ""
    bare = replace(bare, operation=loss.operation, ranks=loss.ranks or 0, split=split, normalization=normalization)
    if loss.ranks:
        bare = replace(bare, not_applicable=partial(why_no_classes, split, loss.ranks, reasons))
    if loss.description.endswith(COMPILE_SUFFIX):
        bare = replace(bare, not_applicable=partial(why_not_compiled, bare.not_applicable), compiled=True)
    return bare.lacking(reasons)


def _reply_of_process(describe: Callable[[], dict[str, Any]], description: str, seconds: float) -> dict[str, Any]:
    """Return the result of `describe`, called in a new process. `description` is for messages."""
    ours, theirs = os.pipe()

    def load_and_describe() -> None:
        drop_privileges()
        child = os.fork()  # the first process of a PID namespace ignores signals that it sends to itself
        if child == 0:
            try:
                end_with_parent()
                scope_signals()
                keep_to_own_limits()
                os.dup2(2, 1)  # stdout is for the report
                os.write(theirs, json.dumps(describe()).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        os.waitpid(child, 0)

    end, received = time.monotonic() + seconds, b""
    with unreadable(), own_compile_cache():
        process = Confined(load_and_describe, [theirs])
        os.close(theirs)
        try:
            while len(received) < LONGEST:
                if not select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
                    late = f"loading took over {seconds:g} s; choose a larger --timeout, or timeout in Python"
                    raise ValueError(f"subject: got {quoted(description)}; {late}")
                if not (more := os.read(ours, 2**16)):
                    break
                received += more
        finally:
            os.close(ours)
            process.end()
    try:
        reply = json.loads(received)
    except (ValueError, RecursionError):
        reply = None
    if not isinstance(reply, dict):
        ended = "ended; import the subject in Python to see why"
        why = f"sent wrong data ({quoted(received)}); {_LOOK}" if received else ended
        raise ValueError(f"subject: got {quoted(description)}; the process that loads this subject {why}")
    return reply
