"""A fresh process for each call that may make a device unusable.

A class index out of range triggers a device-side assert on CUDA and XPU. Afterwards no call on the device works in the
same process. So a new process makes the call.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from crossent.cases.bad_inputs import BadInput
from crossent.checks.refusals import call_badly
from crossent.machine import can_fork, cores
from crossent.run.isolation import wire
from crossent.run.isolation.process import status_in_words
from crossent.run.judge import why_not_called
from crossent.subjects.confinement import end_with_parent
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import Host, NotRun, Performed, perform
from crossent.words import said

T = TypeVar("T")
_CALLS_AT_ONCE = 8  # the most processes that use a device at once: the context of each process takes half a gigabyte
# The time limit, in seconds, for a new process to import torch and the subject, and to initialize a device. The
# initialization takes long if other programs use the device.
_STARTING = 300.0
SECONDS = 60.0  # the time limit of a call, which takes much less time since its tensors are small
# The code by which a new process calls a function of this module. With -m, Python would import this module twice. An
# import statement would define a name in the main module of the new process. But pickle looks there for objects of the
# caller's main module, and could find this name instead.
_CODE = f"__import__('{__name__}', fromlist=['{{function}}']).{{function}}(*__import__('sys').argv[1:])"
_LOOK = 0.02  # the seconds between two looks at a running process
# The end of the message about a loss that pickle cannot send, such as a lambda or a function within a function.
_DEFINE = "define the loss at the top level of a module that a new process can import"
# The names of files in a folder through which this process and a new process exchange data.
_REQUEST, _STARTED, _REPLY, _END = "request", "started", "reply", "end"


@dataclass(frozen=True)
class FreshProcess:
    """A host that runs each act in a new process, which must be able to import `loss`.

    `seconds` is the time limit of a call.
    """

    loss: Loss
    device: str = "cpu"
    seconds: float = SECONDS
    isolated: bool = True
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` in a new process, and return the outcome."""
        try:
            request = _request(self.loss, act, arguments, self.device)
        except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, …
            return _not_sent(error)
        with tempfile.TemporaryDirectory(prefix="crossent-") as folder:
            Path(folder, _REQUEST).write_bytes(request)
            process = _start("main", folder)
            try:
                late = _wait(process, Path(folder), self.seconds)
            finally:
                process.kill()
                status = process.wait()
            return _outcome(Path(folder), act, arguments, late, status)


def _request(loss: Loss, act: Callable[..., T], arguments: tuple[Any, ...], device: str) -> bytes:
    return pickle.dumps((loss, act, arguments, device, wire.most_of_reply(arguments)))


def _not_sent(error: Exception) -> Performed[Any]:
    reason = f"cannot be sent to a new process, because pickle raised {said(error)}"
    return Performed(NotRun(f"{reason}; {_DEFINE}"))


def _start(function: str, *words: str) -> subprocess.Popen[bytes]:
    """Start a Python process that calls the function named `function` of this module with the strings `words`."""
    # multiprocessing would import the caller's main module, which may be a script that starts a run
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _CODE.format(function=function), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # CUDA writes a line for each thread that asserts
    )


class _TimeLimits:
    """The two time limits of a process: `_STARTING` seconds to start, then `seconds` for the call."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._started, self._seconds = folder / _STARTED, seconds  # the process creates this file before its call
        self._end, self._running = time.monotonic() + _STARTING, False
        needed = "to import torch and the subject and to initialize the device"
        self._exceeded = f"its process needed more than {_STARTING:g} s {needed}"

    def exceeded(self) -> str:
        """Return a sentence that names the exceeded time limit, or "" if the process is in time."""
        if not self._running and self._started.exists():
            self._end, self._running = time.monotonic() + self._seconds, True
            self._exceeded = f"the call did not return within {self._seconds:g} s"
        return self._exceeded if time.monotonic() > self._end else ""


def _wait(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> str:
    """Wait for the process to end. Return "", or a sentence that names the exceeded time limit."""
    limits = _TimeLimits(folder, seconds)
    while process.poll() is None:
        if late := limits.exceeded():
            return late
        time.sleep(_LOOK)
    return ""


def _outcome(folder: Path, act: Callable[..., T], arguments: tuple[Any, ...], late: str, status: int) -> Performed[T]:
    """Return the outcome of `act` from the reply in `folder`. Without a reply, return how the process ended.

    `late` names the exceeded time limit, or is "". `status` is the exit status of the process.
    """
    reply = folder / _REPLY
    if reply.exists():
        try:
            return wire.read_reply(reply.read_bytes(), act, arguments, wire.most_of_reply(arguments))
        except wire.DamagedError as damage:
            return Performed(ended="crashed", how=f"its process sent {damage}")
    if late:
        return Performed(ended="hung", how=late)
    return Performed(ended="crashed", how=f"its process ended: {status_in_words(status)}")


@dataclass(frozen=True)
class PastCall:
    """A host that returns the outcome of an earlier call, and calls nothing."""

    performed: Performed[Any]
    isolated: bool = True
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Return the outcome of the earlier call."""
        return self.performed


def perform_each(
    losses: Sequence[Loss], act: Callable[..., T], arguments: Sequence[tuple[Any, ...]], device: str, jobs: int
) -> list[Performed[T]]:
    """Call `act(losses[i], *arguments[i])` for each i in a new process, and return the outcomes in order.

    At most `jobs` calls run at once.
    """
    with tempfile.TemporaryDirectory(prefix="crossent-") as folder:
        folders = [Path(folder, str(at)) for at in range(len(losses))]
        made: dict[int, Performed[T]] = {}
        for at, (loss, given, own) in enumerate(zip(losses, arguments, folders, strict=True)):
            own.mkdir()
            try:
                (own / _REQUEST).write_bytes(_request(loss, act, given, device))
            except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, …
                made[at] = _not_sent(error)
        # This process imports torch once for all calls, and must not use `device` before it forks.
        process = _start("serve", folder, str(jobs), str(SECONDS))
        try:
            process.wait(_STARTING + -(-len(losses) // jobs) * (_STARTING + SECONDS))
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
        for at, (loss, given, own) in enumerate(zip(losses, arguments, folders, strict=True)):
            if at in made:
                continue
            if (end := own / _END).exists():
                late, status = json.loads(end.read_text(encoding="utf-8"))
                made[at] = _outcome(own, act, given, late, status)
            else:  # the forking process ended too early
                made[at] = FreshProcess(loss, device).perform(act, *given)
    return [made[at] for at in range(len(losses))]


def call_ahead(cases: Sequence[BadInput], subjects: Sequence[Subject], device: str) -> dict[str, dict[str, Host]]:
    """Call each subject with each bad input in a new process, and return hosts with the outcomes.

    The keys are the id of the bad input and the name of the subject. A call that was not made has no entry.
    """
    calls = [(bad, one) for bad in cases for one in subjects if not why_not_called(bad, one, bad.build())]
    if len(calls) < 2 or not can_fork():
        return {}
    losses, arguments = [one.loss for _, one in calls], [(bad.id, device) for bad, _ in calls]
    made: dict[str, dict[str, Host]] = {}
    for (bad, one), outcome in zip(
        calls, perform_each(losses, call_badly, arguments, device, min(_CALLS_AT_ONCE, cores())), strict=True
    ):
        made.setdefault(bad.id, {})[one.name] = PastCall(outcome)
    return made


def serve(folder: str, jobs: str, seconds: str) -> None:
    """Fork a process for each request in a folder of `folder`, and write how each process ended into this folder.

    At most `jobs` processes run at once. `seconds` is the time limit of a call.
    """
    waiting = sorted((path.parent for path in Path(folder).glob(f"*/{_REQUEST}")), key=lambda path: int(path.name))
    running: dict[int, tuple[Path, _TimeLimits]] = {}
    while waiting or running:
        while waiting and len(running) < int(jobs):
            own = waiting.pop(0)
            if (child := os.fork()) == 0:
                try:
                    end_with_parent()  # else a call that never returns would outlive the run
                    main(str(own))
                finally:
                    os._exit(1)
            running[child] = own, _TimeLimits(own, float(seconds))
        for child, (own, limits) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and (late := limits.exceeded()):
                os.kill(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
            else:
                late = ""
            if ended:
                del running[child]
                content = json.dumps([late, os.waitstatus_to_exitcode(status)])
                (own / _END).write_text(content, encoding="utf-8")
        time.sleep(_LOOK)


def main(folder: str) -> NoReturn:
    """Read a request from `folder`, call the act, write the reply into `folder`, and end the process."""
    performed: Performed[Any]
    most = 0
    try:
        loss, act, arguments, device, most = pickle.loads(Path(folder, _REQUEST).read_bytes())
    except Exception as error:  # an import may raise anything; the new process does not import the caller's main module
        reason = f"cannot be sent to a new process, because loading the loss there raised {said(error)}"
        performed = Performed(NotRun(f"{reason}; {_DEFINE}"))
    else:
        torch.empty(1, device=device).zero_()  # initializes the device
        Path(folder, _STARTED).touch()
        performed = perform(act, loss, *arguments)
    whole = Path(folder, "whole")  # renamed when complete, so that the caller never reads a part of the reply
    whole.write_bytes(wire.write_reply(performed, most))
    whole.rename(Path(folder, _REPLY))
    os._exit(0)  # a normal exit would wait for the device, which may be unusable
