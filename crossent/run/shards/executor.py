"""Run the shards of a run on any `concurrent.futures.Executor`, and merge their reports."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Any

import torch

from crossent.choices import DTYPE_NAMES, MOST_SHARDS, ContractName, DtypeName, GradeName, Level, OperationName
from crossent.files import write_whole
from crossent.report.reader import read_report
from crossent.report.report import Report
from crossent.run.order import Step, Steps
from crossent.run.parallel import Progress
from crossent.run.shards.merge import merged
from crossent.run.shards.task import ShardError, Task
from crossent.words import cut, quoted, said

_SECONDS_TO_END = 30.0  # the time that the commands of running shards have to end after an interrupt


def over(  # noqa: D417  # the text of `device` stands for a dozen arguments
    executor: Executor | Callable[[], Executor],
    *subjects: str,
    shards: int = 8,
    attempts: int = 3,
    device: str = "cpu",
    dtypes: DtypeName | Iterable[DtypeName] = DTYPE_NAMES,
    level: Level = "normal",
    seed: int | str = 0,
    without: str | Iterable[str] = (),
    contract: ContractName | None = None,
    grade: GradeName | None = None,
    expected_findings: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    timeout: float = 300.0,
    checks: str | Iterable[str] = (),
    cases: str | Iterable[str] = (),
    operation: OperationName | None = None,
    ranks: int | None = None,
    progress: Progress = iter,
) -> Report:
    """Check functions in shards that an executor runs, and return the report of the whole run.

    A worker of the executor runs `crossent check` for a shard in a new process, and returns the bytes of a report. This
    function verifies and merges the reports. The merged report equals the report of one run, byte for byte. Each worker
    needs the same versions of crossent, torch and numpy, and the folder in which this function is called.

    If a worker is lost, a command fails or a report is damaged, the shard is sent again. A shard is sent at most
    `attempts` times, the first time included. A process pool of the standard library stops working when one of its
    processes is lost. If `executor` is a function, :func:`crossent.over` then calls the function for a new executor,
    which gets the unfinished shards.

    Args:
        executor: an executor, such as a `ProcessPoolExecutor`, a `ThreadPoolExecutor`, the executor of loky, or the
            result of Dask's `client.get_executor(pure=False)`. A function without arguments that returns a new executor
            is allowed too. An executor from the function is shut down at the end.
        subjects: the functions to check, as strings such as "path/to/file.py:NAME". Each command imports the functions.
        shards: the number of shards, which have about equal cost. Each shard starts Python and imports torch.
        attempts: the most times that a shard is sent to a worker.
        device: the device of the tensors. :func:`crossent.check` explains this argument, and `dtypes`, `level`, `seed`,
            `without`, `contract`, `grade`, `expected_findings`, `timeout`, `checks`, `cases`, `operation` and `ranks`.
        jobs: the number of worker processes of each command.
        progress: a function that wraps an iterable, for a progress bar. Each item stands for a shard.

    Raises:
        ValueError: the command for a shard refuses an argument, or `shards` or `attempts` is out of range. The
            same error says that a worker does not have the folder, or that the workers have different versions.
        TypeError: a subject is not a string, or `cases` is a mapping.
        RuntimeError: a shard failed too often, or the executor cannot go on. The message is one line.
    """
    if callables := [one for one in subjects if not isinstance(one, str)]:
        raise TypeError(f"over: got {quoted(callables[0])}; give the function by name, as in 'path/to/file.py:NAME'")
    if isinstance(cases, Mapping):  # the command has no option for this choice
        raise TypeError("cases: got a mapping; give a list of cases, and give the names of checks in `checks`")
    for name, value, most in (("shards", shards, MOST_SHARDS), ("attempts", attempts, 1000)):
        if not 1 <= value <= most:
            raise ValueError(f"{name}: got {quoted(value)}; allowed are 1 to {most:,}")
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtypes,
        "level": level,
        "seed": SystemRandom().randrange(2**32) if seed == "random" else seed,
        "without": without,
        "contract": contract,
        "grade": grade,
        "expected-findings": expected_findings,
        "jobs": jobs,
        "timeout": timeout,
        "check": checks,
        "case": cases,
        "operation": operation,
        "ranks": ranks,
    }
    with tempfile.TemporaryDirectory(prefix="crossent-shards-") as folder:
        write_whole(alive := os.path.join(folder, "run"), "")
        kept = {name: os.environ[name] for name in ("ATEN_CPU_CAPABILITY",) if name in os.environ}
        # The report says how many threads torch would use here. Dask's workers would change this number to 1.
        variables = {**kept, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        task = Task(_words(options), subjects, os.getcwd(), variables, (alive, socket.gethostname()))
        run = _Run(executor, task, shards, attempts, folder)
        try:
            for _ in progress(Steps(run.steps(), shards, float(shards))):
                pass
        finally:
            os.unlink(alive)  # without this file, commands on this machine end
            run.end()
        return merged([(f"shard {number}/{shards}", run.reports[number]) for number in sorted(run.reports)])


def _words(options: dict[str, Any]) -> list[str]:
    """Return options of `crossent check` as words for a command."""
    words = []
    for name, value in options.items():
        values = [value] if isinstance(value, (str, int, float, os.PathLike)) else value or []
        words += [f"--{name}={os.fspath(one) if isinstance(one, os.PathLike) else one}" for one in values]
    return words


@dataclass
class _Run:
    """The shards of a run on an executor.

    Attributes:
        given: the executor, or a function that makes an executor.
        reports: the verified report of each finished shard, by the number of the shard.
        waiting: for each unfinished future, the number of the shard, the number of the attempt, and the executor.
    """

    given: Executor | Callable[[], Executor]
    task: Task
    count: int
    attempts: int
    folder: str
    reports: dict[int, Report] = field(default_factory=dict)
    waiting: dict[Future[bytes], tuple[int, int, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.makes = not hasattr(self.given, "submit")
        self.executor: Any = self.given() if self.makes else self.given  # type: ignore[operator]

    def steps(self) -> Iterator[Step]:
        """Run all shards, and yield a step for the progress bar after each shard."""
        for number in range(1, self.count + 1):
            self._send(number, 1)
        while self.waiting:
            done, _ = wait(self.waiting, return_when=FIRST_COMPLETED)
            broken: BrokenExecutor | None = None
            failed: list[tuple[int, int, BaseException]] = []
            for future in done:
                number, attempt, executor = self.waiting.pop(future)
                try:
                    self.reports[number] = self._verified(number, future.result())
                except BrokenExecutor as error:
                    # The shards of an executor that is already replaced fail too, one after another.
                    broken = error if executor is self.executor else broken
                    failed.append((number, attempt, error))
                except ShardError as error:
                    if error.final:
                        raise ValueError(error.message) from None
                    failed.append((number, attempt, error))
                except (Exception, KeyboardInterrupt) as error:  # an interrupt of the worker, not of this process
                    failed.append((number, attempt, error))
                else:
                    yield Step(1.0, self.reports[number].findings)
            for number, attempt, cause in failed:
                if attempt == self.attempts:
                    reason = cut(said(cause))
                    times = "" if attempt == 1 else f" {attempt} times, the last time"
                    alone = f"`crossent check --shard {number}/{self.count}` runs this shard alone"
                    raise RuntimeError(f"shard {number}/{self.count} failed{times} with {reason}; {alone}")
            if broken is not None:
                self._renew(broken)
            for number, attempt, _ in failed:
                self._send(number, attempt + 1)

    def _send(self, number: int, attempt: int) -> None:
        try:
            future = self.executor.submit(self.task, number, self.count)
        except BrokenExecutor as error:
            self._renew(error)
            future = self.executor.submit(self.task, number, self.count)
        self.waiting[future] = number, attempt, self.executor

    def _verified(self, number: int, content: bytes) -> Report:
        """Return the report of shard `number` from the bytes that a worker returned."""
        path = os.path.join(self.folder, f"{number}-of-{self.count}.json")
        with open(path, "wb") as file:
            file.write(content)
        try:
            report = read_report(path)
        except ValueError as error:  # its message begins with the path, and ends with advice about files
            reason = str(error).removeprefix(f"{cut(path)}: ").rpartition("; ")[0]
            raise ValueError(f"the worker returned no valid report: {reason}") from None
        os.unlink(path)
        if report.shard is None or (report.shard.number, report.shard.count) != (number, self.count):
            got = f"shard {report.shard}" if report.shard else "a whole run"
            raise ValueError(f"the worker returned a report of {got}")
        return report

    def _renew(self, error: BrokenExecutor) -> None:
        if not self.makes:
            done = f"{len(self.reports)} of {self.count} shards done"
            raise RuntimeError(
                f"the executor is broken ({type(error).__name__}), with {done}; "
                f"give over() a function that makes a new executor"
            ) from None
        self.executor.shutdown(wait=False)
        self.executor = self.given()  # type: ignore[operator]

    def end(self) -> None:
        """Cancel the shards that have not started, and give the running commands `_SECONDS_TO_END` to end."""
        for future in self.waiting:
            future.cancel()
        wait(self.waiting, _SECONDS_TO_END)
        if self.makes:
            self.executor.shutdown(wait=False)
