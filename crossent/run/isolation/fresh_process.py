"""A fresh process for one call that may make its device unusable.

A class index out of range triggers a device-side assert on CUDA. Afterwards no call on that device works in the same
process. So a new Python process, which gets the loss as a pickle, makes the call.

In this module, an act is a function that calls a loss, and a host runs an act (:mod:`crossent.trials.act`).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from crossent.run.isolation import wire
from crossent.run.isolation.process import status_in_words
from crossent.subjects.subject import Loss
from crossent.trials.act import NotRun, Performed, perform
from crossent.words import said

T = TypeVar("T")
# The time limit, in seconds, for a new process to import torch and the subject, and to initialize a device. This takes
# long if other programs use the device.
_STARTING = 300.0
SECONDS = 60.0  # the time limit of a call, which computes with a few numbers
# With -m, Python would import this module twice. __import__ defines no name in the main module of the new process.
# There pickle looks for the functions of the caller's main module, and must not find anything else.
_CODE = "__import__('crossent.run.isolation.fresh_process', fromlist=['main']).main(__import__('sys').argv[1])"
_REQUEST, _STARTED, _REPLY = "request", "started", "reply"  # the names of files in a folder that both processes use


@dataclass(frozen=True)
class FreshProcess:
    """Runs each act, a function that calls the loss, in a new process. This process must be able to import the loss."""

    loss: Loss
    device: str = "cpu"
    seconds: float = SECONDS
    isolated: bool = True
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` in a new process, and return the outcome.

        The process is started by `subprocess`, since `multiprocessing` would import the caller's main module again,
        which may be a script that starts a run.
        """
        try:
            most = wire.most_of_reply(arguments)
            request = pickle.dumps((self.loss, act, arguments, self.device, most))
        except Exception as error:  # pickle raises PicklingError, AttributeError, TypeError, …
            return Performed(NotRun(f"cannot be sent to a separate process: {said(error)}"))  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory(prefix="crossent-") as folder:
            Path(folder, _REQUEST).write_bytes(request)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CODE, folder],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # CUDA writes a line for each thread that asserts
            )
            try:
                late = _wait(process, Path(folder, _STARTED), self.seconds)
            finally:
                process.kill()
                status = process.wait()
            reply = Path(folder, _REPLY)
            if reply.exists():
                try:
                    performed: Performed[T] = wire.read_reply(reply.read_bytes(), act, arguments, most)
                except wire.DamagedError as damage:
                    return Performed(ended="crashed", how=f"its process sent {damage}")
                return performed
        if late:
            return Performed(ended="hung", how=late)
        return Performed(ended="crashed", how=f"its process ended: {status_in_words(status)}")


def _wait(process: subprocess.Popen[bytes], started: Path, seconds: float) -> str:
    """Wait until the process ends, and return "". If the process exceeds a time limit, return a sentence about it.

    Args:
        process: the process.
        started: the file that the process creates when the process is ready for the call.
        seconds: the time limit of the call, from the creation of the file.
    """
    end, late = time.monotonic() + _STARTING, f"its process did not start within {_STARTING:g} s"
    running = False
    while process.poll() is None:
        if not running and started.exists():
            end, late, running = time.monotonic() + seconds, f"the call did not return within {seconds:g} s", True
        if time.monotonic() > end:
            return late
        time.sleep(0.02)
    return ""


def main(folder: str) -> None:
    """Read a function and its arguments from a folder, call the function, and write the reply to the folder.

    The new process runs this function.
    """
    performed: Performed[Any]
    most = 0
    try:
        loss, act, arguments, device, most = pickle.loads(Path(folder, _REQUEST).read_bytes())
    except Exception as error:  # an import may raise anything; the caller's main module is not imported
        performed = Performed(NotRun(f"cannot be sent to a separate process: {said(error)}"))
    else:
        torch.empty(1, device=device).zero_()  # initializes the device
        Path(folder, _STARTED).touch()
        performed = perform(act, loss, *arguments)
    whole = Path(folder, "whole")  # renamed when complete, so that the caller never reads a part of the reply
    whole.write_bytes(wire.write_reply(performed, most))
    whole.rename(Path(folder, _REPLY))
    os._exit(0)  # a normal exit would wait for the device, which may be unusable
