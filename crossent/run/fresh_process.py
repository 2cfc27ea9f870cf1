"""Refusals: what a subject does with a call that it must refuse.

It must raise an error of a class that is allowed, before anything is written: not a bit of an argument has changed, nor
has torch's global state. A call that may end its process, as a class out of range does where CUDA answers with a
device-side assert, is made in a process of its own.
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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.checks.refusals import Reaction, judge_reaction, react, react_by_name
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import Host, Raised
from crossent.trials.trial import NotRunError, Problem
from crossent.words import said

STARTING = 300.0  # for a new process to import torch and the subject, and to wake a device, where the machine is busy
SECONDS = 60.0  # for a call on a few numbers
# Leaves no name in the main module, in which a function of the caller's main module would be looked for. And -c: by the
# time that -m runs this module, the package has imported it already.
CODE = "__import__('crossent.run.fresh_process', fromlist=['main']).main(__import__('sys').argv[1])"


def answered(
    bad_input: BadInput,
    subject: Subject,
    device: str = "cpu",
    *,
    isolated: bool | None = None,
    seconds: float = SECONDS,
    host: Host | None = None,
) -> Reaction:
    """A subject's answer to a bad call.

    Args:
        bad_input: the call, one of `BAD_INPUTS` where it is isolated.
        subject: its loss must be importable where it is isolated: it is pickled.
        device: where the tensors are put.
        isolated: whether the call is made in a process of its own. By default where it would leave this one with a
            device that is of no more use.
        seconds: how long that process may take for the call.
        host: where the subject lives, if not here. Then the call is one of `BAD_INPUTS` too.

    Raises:
        NotRunError: the subject cannot be sent to another process.
    """
    if bad_input.asserts(device) if isolated is None else isolated:
        answer = ask_isolated(subject.loss, bad_input, device, seconds)
    elif host is not None:
        answer = _ask_at(host, bad_input, device)
    else:
        answer = react(subject.loss, bad_input, device)
    if answer.unsent:
        raise NotRunError(f"cannot be sent to a process of its own: {answer.unsent}")
    return answer


def refusal(bad_input: BadInput, subject: Subject, device: str = "cpu", **how: Any) -> dict[str, Problem | None]:
    """What is wrong with a subject's answer to a bad call, or None, by the check that says it; as :func:`answered`."""
    return judge_reaction(answered(bad_input, subject, device, **how), bad_input.allowed(device))


def _ask_at(host: Host, bad_input: BadInput, device: str) -> Reaction:
    performed = host.perform(react_by_name, bad_input.id, device)
    if performed.ended:
        return Reaction(ended=performed.how, hung=performed.ended == "hung")
    if performed.value is None:
        raised = performed.raised or Raised("gave no answer")
        return Reaction(raised.classes, raised.message)
    return performed.value


def ask_isolated(loss: Loss, bad_input: BadInput, device: str = "cpu", seconds: float = SECONDS) -> Reaction:
    """The answer in a process of its own, which may die or hang.

    Not by multiprocessing: it imports the caller's main module anew, which may be a script that starts a run.
    """
    try:
        call = pickle.dumps((loss, bad_input.id, device))
    except Exception as error:  # pickle has no class of error for it: PicklingError, AttributeError, TypeError, …
        return Reaction(unsent=said(error))
    with tempfile.TemporaryDirectory(prefix="crossent-") as folder:
        Path(folder, CALL).write_bytes(call)
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", CODE, folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # CUDA writes a line for each thread that asserts
        )
        try:
            late = _wait(process, Path(folder, STARTED), seconds)
        finally:
            process.kill()
            status = process.wait()
        reply = Path(folder, ANSWER)
        if reply.exists():
            answer = Reaction(**json.loads(reply.read_text(encoding="utf-8")))
            return replace(answer, raised=tuple(answer.raised), changed_state=tuple(answer.changed_state))
    return Reaction(ended=late, hung=True) if late else Reaction(ended=f"its process died: {_status(status)}")


CALL, STARTED, ANSWER = "call", "started", "answer"  # files in the folder that the two processes share


def _wait(process: subprocess.Popen[bytes], started: Path, seconds: float) -> str:
    """Wait for its end, and for no longer than it may take; "" where it came, or how long that was."""
    end, late = time.monotonic() + STARTING, f"its process did not start within {STARTING:g} s"
    running = False
    while process.poll() is None:
        if not running and started.exists():
            end, late, running = time.monotonic() + seconds, f"its process gave no answer within {seconds:g} s", True
        if time.monotonic() > end:
            return late
        time.sleep(0.02)
    return ""


def main(folder: str) -> None:
    """What that process does: make the call that lies in a folder, and leave the answer there."""
    try:
        loss, name, device = pickle.loads(Path(folder, CALL).read_bytes())
    except Exception as error:  # whatever an import may raise: here the caller's main module is another one
        answer = Reaction(unsent=said(error))
    else:
        bad_input = next(one for one in BAD_INPUTS if one.id == name)
        bad_input.build(device)  # which wakes the device
        Path(folder, STARTED).touch()
        answer = react(loss, bad_input, device)
    whole = Path(folder, "whole")  # of the answer's name only when all of it is there
    whole.write_text(json.dumps(asdict(answer)), encoding="utf-8")
    whole.rename(Path(folder, ANSWER))
    os._exit(0)  # without a word to a device that is of no more use


def _status(status: int) -> str:
    names = {-number.value: f" ({number.name})" for number in signal.Signals}
    return f"exit code {status}{names.get(status, '')}"
