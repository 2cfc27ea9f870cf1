"""Run the command for one shard in a new process, on a worker of an executor.

The worker itself calls no subject. Otherwise the check `state` might blame the subject for changes by other threads of
the worker. This module imports no other module of crossent, so that a worker need not import torch.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

_LOOK = 0.5  # how often, in seconds, the worker looks whether the run still goes on
_SECONDS_TO_END = 20.0  # the time in which the command must end its own processes and remove its files
_MOST_CHARACTERS = 2000  # the most characters of an error message
# The exit status of `crossent check` for wrong use. The command would fail in the same way on every worker.
_WRONG_USE = 2
# The command for a shard. When the worker ends, even by SIGKILL, the system sends SIGTERM to the command, which then
# removes its files and ends.
_COMMAND = """
import os, sys
parent = int(sys.argv.pop(1))
from crossent.subjects.confinement import end_with_parent
import signal
end_with_parent(signal.SIGTERM)
if os.getppid() != parent:
    sys.exit(130)
from crossent.__main__ import script
sys.exit(script())
"""


class ShardError(Exception):
    """The error of a task that made no report of its shard. If `final` is True, do not run the task again."""

    def __init__(self, message: str, final: bool = False) -> None:
        super().__init__(message, final)
        self.message, self.final = message, final

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Task:
    """A callable that runs `crossent check` for one shard, on a worker of an executor.

    Attributes:
        options: the options of `crossent check`, without --shard and --json.
        subjects: the descriptions of the subjects, such as "torch".
        folder: the folder in which the command runs.
        environment: environment variables, which override the variables of the worker.
        run: the path of a file that exists until the run ends, and the name of the machine that has the file. If the
            worker is on that machine, the task ends the command when the file is missing.
    """

    options: Sequence[str]
    subjects: Sequence[str]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    run: tuple[str, str] = ("", "")

    def __call__(self, number: int, count: int) -> bytes:
        """Run shard `number` of `count`, and return the bytes of its report.

        Raises:
            ShardError: there is no report.
        """
        if not os.path.isdir(self.folder):
            host, missing = socket.gethostname(), f"has no folder {self.folder}, in which the run was started"
            raise ShardError(f"the worker on {host} {missing}; give every worker this folder", True)
        received, sent = os.pipe()
        words = [*self.options, "--shard", f"{number}/{count}", "--json", f"/dev/fd/{sent}", "--quiet"]
        command = [sys.executable, "-c", _COMMAND, str(os.getpid()), "check", *words, "--", *self.subjects]
        environment = {**os.environ, **self.environment}
        try:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[sent],
            )
        except BaseException:
            os.close(received)
            raise
        finally:
            os.close(sent)
        try:
            report, errors = self._read(process, received)
        finally:
            os.close(received)
            _end(process)
        if process.returncode in (0, 1):
            return report
        lines = errors.decode(errors="replace").strip().splitlines() or ["it printed no error"]
        line = next((line for line in lines if line.startswith("crossent: ")), lines[-1])  # torch may print warnings
        line = line.removeprefix("crossent: ")[:_MOST_CHARACTERS]
        how = f"exit status {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
        wrong = process.returncode == _WRONG_USE
        raise ShardError(line if wrong else f"the command ended with {how}: {line}", wrong)

    def _read(self, process: subprocess.Popen[bytes], received: int) -> tuple[bytes, bytes]:
        """Wait until the command ends. Return the report, from the pipe `received`, and the error messages.

        Raises:
            ShardError: the run has ended, or Dask has cancelled the task.
        """
        assert process.stderr is not None
        # A process pool cannot cancel a task in its queue, so this task may start after the end of the run.
        local = self.run[1] == socket.gethostname()
        parts: dict[int, list[bytes]] = {received: [], process.stderr.fileno(): []}
        left = list(parts)
        while left:
            for stream in select.select(left, [], [], _LOOK)[0]:
                content = os.read(stream, 2**16)
                parts[stream].append(content)
                if not content:
                    left.remove(stream)
            if (local and not os.path.exists(self.run[0])) or not _wanted_by_dask():
                raise ShardError("the run has ended", True)
        process.wait()
        report, errors = (b"".join(content) for content in parts.values())
        return report, errors


def _wanted_by_dask() -> bool:
    """Return False if Dask has cancelled the task in this thread."""
    # Dask does not stop a cancelled task that already runs.
    if (distributed := sys.modules.get("distributed")) is None:
        return True
    with suppress(ValueError, AttributeError):  # no task of Dask runs here, or another version of Dask
        worker = distributed.get_worker()
        task = worker.state.tasks.get(worker.get_current_task())
        return task is not None and task.state != "cancelled"
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the command to remove its files and end. Kill the command after `_SECONDS_TO_END`."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()
