"""Run the processes of a step. A step may run several parts in parallel; each part is a chain of commands.

No process outlives its step. Each command has its own process group, which the session ends. If a process leaves its
group, it becomes a child of the session (:func:`adopt_orphans`), which ends the process too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GRACE = 5.0  # seconds that a command has, after an interrupt, to write its results; then the command is killed
_LOOK = 0.05  # seconds after which the session looks at its processes again
# The outcome for each exit status of `crossent check` and of pytest. Any other status is "broken".
ENDS = {0: "passed", 1: "failed"}
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


@dataclass(frozen=True)
class Command:
    """One command of a part.

    Attributes:
        words: the words of the command, with {python}, {device} and {folder} in place of values.
        small: words that a dry run adds, so that the command takes seconds on a CPU.
        full: words that a session on a GPU adds.
        ends: the outcome for each expected exit status. A part stops at an outcome other than "passed".
    """

    words: tuple[str, ...]
    small: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    ends: Mapping[int, str] = field(default_factory=lambda: ENDS)

    def filled(self, pretended: bool, **values: str) -> Command:
        """Return the command for a session on a GPU, or for a dry run, with the placeholders in {} replaced."""
        words = (*self.words, *(self.small if pretended else self.full))
        for name, value in values.items():
            words = tuple(word.replace(f"{{{name}}}", value) for word in words)
        return Command(words, ends=self.ends)


@dataclass
class Part:
    """A chain of commands that run one after another, and the outcome of the chain.

    Attributes:
        name: the name of the part, which is also the name of its log.
        commands: the commands, with all values filled in.
        outcome: "passed", "failed", "broken" (an unexpected exit status), "out of time" or "interrupted".
        status: the exit status of the last command; negative after a signal.
        seconds: how long the commands took.
    """

    name: str
    commands: Sequence[Command]
    outcome: str = ""
    status: int | None = None
    seconds: float = 0.0


def run(parts: Sequence[Part], folder: Path, limit: float, at_once: int, env: Mapping[str, str], cwd: Path) -> None:
    """Run the parts, at most `at_once` of them at a time, and set their outcomes. The output goes to `folder/NAME.log`.

    After `limit` seconds, or at a KeyboardInterrupt, interrupt all processes. After `GRACE` more seconds, kill them.

    Raises:
        KeyboardInterrupt: the user interrupted the session. The outcome of unfinished parts is "interrupted".
    """
    end = time.monotonic() + limit
    waiting, running = list(parts), dict[int, _Running]()
    why = "out of time"
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                part = waiting.pop(0)
                running[id(part)] = _Running(part, folder, env, cwd)
            for key, one in list(running.items()):
                if one.is_over():
                    del running[key]
            if time.monotonic() > end:
                return
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    finally:
        _stop([one.process for one in running.values()])
        for one in running.values():
            one.close(why)
        for part in parts:  # also a part that was interrupted while its first command started
            part.outcome = part.outcome or why
        end_orphans()


class _Running:
    """A part that is running: the process of its current command, and its log."""

    def __init__(self, part: Part, folder: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.part, self._env, self._cwd = part, env, cwd
        self._log = (folder / f"{part.name}.log").open("ab")
        self._at, self._begun = 0, time.monotonic()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = self.part.commands[self._at].words
        self._log.write(f"$ {' '.join(words)}\n".encode())
        self._log.flush()
        return subprocess.Popen(
            words,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal reaches the session alone, which ends its commands
            preexec_fn=_end_with_parent,
        )

    def is_over(self) -> bool:
        """Start the next command if the current command has ended. Return whether the part is over."""
        if (status := self.process.poll()) is None:
            return False
        outcome = self.part.commands[self._at].ends.get(status, "broken")
        self._at += 1
        if outcome == "passed" and self._at < len(self.part.commands):
            self.process = self._start()
            return False
        self.close(outcome)
        return True

    def close(self, outcome: str) -> None:
        """Set the outcome of the part, and close the log."""
        self.part.outcome, self.part.status = outcome, self.process.poll()
        self.part.seconds = round(time.monotonic() - self._begun, 2)
        self._log.close()


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt the processes and their groups. After `GRACE` seconds, or after a second Ctrl-C, kill them."""
    with contextlib.suppress(KeyboardInterrupt):
        for process in processes:
            _signal(process.pid, signal.SIGINT)
        end = time.monotonic() + GRACE
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(_LOOK)
    for process in processes:
        _signal(process.pid, signal.SIGKILL)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process that was killed
            process.wait(GRACE)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


_adopts = False  # whether this process runs a session, to which all its children belong


def adopt_orphans() -> None:
    """Make this process the parent of each descendant whose own parent ends. Only Linux can do this."""
    global _adopts
    _adopts = True
    _prctl(_SET_CHILD_SUBREAPER, 1)


def end_orphans() -> None:
    """Kill all processes that descend from this process, and wait until they have ended, for `GRACE` seconds at most.

    A session calls this function when no command should be running. The function does nothing outside Linux, or if
    :func:`adopt_orphans` was not called.
    """
    if not _adopts:
        return
    end = time.monotonic() + GRACE  # a driver may hold a process that was killed
    while (children := _children(os.getpid())) and time.monotonic() < end:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        time.sleep(_LOOK)


def _children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            text = status.read_text(encoding="utf-8", errors="replace")
            if int(text.rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _end_with_parent() -> None:
    _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
