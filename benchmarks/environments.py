"""Make an environment for each version of torch, and run `crossent check` in each, for `nox -s upgrade`.

nox cannot make these environments: a nox session has only one environment, and the versions come from the command line.
This module imports only the standard library, since torch may be missing in the environment that runs the module.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.readme import ROOT
from benchmarks.turns import ALONE

PLACE = ROOT / ".nox" / "upgrade"
REPORTS = "reports"  # a folder beside the environments
SUBJECTS = ("torch", "formula", "log_softmax_nll", "one_hot", "blocked")  # a test compares the names with FORMS
MADE = "crossent-upgrade"  # the file that marks a finished environment
LARGE = 50  # MB; smaller downloads are not printed


class CannotError(Exception):
    """An environment cannot be made, or a command in it fails. The message is one line."""


@dataclass(frozen=True)
class Environment:
    """A Python with one version of torch, and the level and subjects of its report.

    `spec` is the version as the user wrote it. `nth` counts the runs of the same version in one command, from 1.
    """

    spec: str
    python: Path
    level: str
    subjects: tuple[str, ...] = ()
    nth: int = 1

    @property
    def name(self) -> str:
        """The part of the file names that differs between the runs of one command."""
        return slug(self.spec) + (f"-run{self.nth}" if self.nth > 1 else "")

    @property
    def options(self) -> str:
        """The part of a report's file name that depends on level, subjects and processor."""
        capability = os.environ.get("ATEN_CPU_CAPABILITY", "")  # with other instructions, results have other bits
        return "-".join([self.level, *map(slug, self.subjects), *([slug(capability)] if capability else [])])

    @property
    def report(self) -> Path:
        """The path of the report."""
        return PLACE / REPORTS / f"{self.name}-{self.options}.json"

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs this repository's crossent in the environment."""
        return [str(self.python), "-m", "crossent", *arguments]

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of the commands in the environment."""
        return {**os.environ, **ALONE, "PYTHONPATH": str(ROOT)}


def slug(spec: str) -> str:
    """Return the name of the folder for a version, a requirement, a wheel or an environment.

    >>> slug("torch>=2.14,<3")
    'torch_2.14_3'

    For a path, the name has the last part of the path and a checksum of the whole path, since many environments are
    called `.venv`.

    Raises:
        CannotError: the name would be empty, or would be the name of the reports' folder.
    """
    name = re.sub(r"[^\w.+-]+", "_", spec.rstrip("/").rpartition("/")[2]).strip(".")
    if not name or name == REPORTS:
        raise CannotError(
            f"{spec!r}: not a version; give a version such as 2.8.0, a requirement, a wheel or an environment"
        )
    return f"{name}-{zlib.crc32(os.path.abspath(spec).encode()):08x}" if os.path.exists(spec) else name


def requirements(spec: str) -> list[str]:
    """Return pip's requirements for torch and numpy. Before torch 2.3, `Tensor.numpy` fails with numpy 2.

    >>> requirements("2.0.1")
    ['torch==2.0.1', 'numpy<2']
    >>> requirements("torch>=2.14")
    ['torch>=2.14', 'numpy>=1.24']
    """
    if not re.fullmatch(r"\d+(\.\w+)*(\+\w+)?", spec):
        return [spec, "numpy>=1.24"]
    major, minor = (*map(int, re.findall(r"\d+", spec)[:2]), 0)[:2]
    return [f"torch=={spec}", "numpy<2" if (major, minor) < (2, 3) else "numpy>=1.24"]


def other_requirements() -> list[str]:
    """Return crossent's other dependencies, and setuptools, which torch's C++ backend imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*(one for one in project["dependencies"] if not re.match(r"(torch|numpy)\b", one)), "setuptools"]


def environment(spec: str, level: str, reuse: bool, subjects: tuple[str, ...] = (), nth: int = 1) -> Environment:
    """Return the environment of a version of torch.

    If `spec` is the folder of an environment, return this environment. Otherwise make a new environment. With `reuse`,
    or with `nth` above 1, return a finished environment of this version in place of a new one.

    Raises:
        CannotError: the environment cannot be made.
    """
    if (found := Path(spec) / "bin" / "python").exists():
        return Environment(spec, found.absolute(), level, subjects, nth)
    if spec.endswith(".whl") and "://" not in spec and not os.path.exists(spec):
        raise CannotError(f"{spec}: this wheel does not exist; give the path of a wheel")
    place = PLACE / slug(spec)
    made = Environment(spec, place / "bin" / "python", level, subjects, nth)
    if (reuse or nth > 1) and (place / MADE).exists():
        say(f"{spec}: reusing {place}")
        return made
    say(f"{spec}: making an environment in {place}")
    failure = f"{spec}: no environment of Python {'.'.join(map(str, sys.version_info[:2]))}"
    try:
        venv.create(place, clear=True, with_pip=True)
        pip = [str(made.python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
        follow([*pip, *requirements(spec), *other_requirements()], f"{spec}: pip", failure)
        follow([*pip, "--no-deps", "-e", str(ROOT)], f"{spec}: pip", failure)
        (place / MADE).write_text(f"{spec}\n", encoding="utf-8")
    except subprocess.CalledProcessError as error:  # from venv.create
        raise CannotError(f"{failure}: venv has no pip: {error}") from None
    finally:
        if not (place / MADE).exists():
            shutil.rmtree(place, ignore_errors=True)
    return made


def checked(of: Environment, reuse: bool) -> None:
    """Run `crossent check` in an environment, unless `reuse` is true and the report is younger than crossent's code.

    Raises:
        CannotError: the command fails.
    """
    if reuse and of.report.exists():
        code = (path for path in (ROOT / "crossent").rglob("*.*") if "__pycache__" not in path.parts)
        if of.report.stat().st_mtime > max(path.stat().st_mtime for path in code):
            say(f"{of.spec}: reusing {of.report}")
            return
        say(f"{of.spec}: {of.report} is older than crossent's code")
    of.report.parent.mkdir(parents=True, exist_ok=True)
    subjects = of.subjects or SUBJECTS
    say(f"{of.spec}: crossent check {' '.join(subjects)} --level {of.level}")
    unfinished = of.report.with_suffix(".part")  # an interrupted check writes an unfinished report
    try:
        command = of.command("check", *subjects, "--level", of.level, "--json", str(unfinished))
        bar = sys.stderr.isatty()  # the command shows its own progress there
        failure = f"{of.spec}: no report"
        lines = follow(command, f"{of.spec}: crossent check", failure, (0, 1), of.variables, bar)
        if not unfinished.exists():  # after a traceback, Python exits with 1 too
            raise CannotError(f"{failure}: {reason(lines)}")
        os.replace(unfinished, of.report)
    finally:
        unfinished.unlink(missing_ok=True)


def follow(
    command: list[str],
    doing: str,
    failure: str,
    allowed: tuple[int, ...] = (0,),
    env: dict[str, str] | None = None,
    bar: bool = False,
) -> list[str]:
    """Run a command, and return the lines of its output.

    Print each large step of pip, and the time every half minute. With `bar`, print no times, since the command shows a
    progress bar.

    Raises:
        CannotError: the exit status is not in `allowed`. The message has the reason that the command printed.
    """
    begun = shown = time.monotonic()
    steps: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"  # a file, since a full pipe would stop the command
        with log.open("w") as output, started(command, output, None if bar else subprocess.STDOUT, env) as process:
            ended = False
            while not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
                ended = process.poll() is not None
                seen, lines = len(steps), log.read_text(errors="replace").splitlines()
                steps = [short for line in lines if (short := step(line))]
                late = time.monotonic() > shown + 30 and not bar
                for new in steps[seen:] or (steps[-1:] or [""]) * late:
                    shown = time.monotonic()
                    say(f"{doing}: {new}{', ' if new else ''}{int(shown - begun) // 60}:{int(shown - begun) % 60:02}")
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if process.returncode not in allowed:
        raise CannotError(f"{failure}: {reason(lines) or f'exit status {process.returncode}'}")
    return lines


@contextlib.contextmanager
def started(command: list[str], output: Any, stderr: int | None, env: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, and end the process after the `with` block.

    After an interrupt, the process has five seconds to delete unfinished files.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=stderr, env=env)
    try:
        yield process
    finally:
        # First only wait: Ctrl-C in a terminal interrupts the process too.
        for end in (lambda: None, process.terminate, process.kill):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break


def step(line: str) -> str:
    """Return a short text about the large step that a line of pip's output reports, or "".

    >>> step("  Downloading torch-2.8.0-cp311-cp311-manylinux_2_28_x86_64.whl (888.1 MB)")
    'torch-2.8.0 (888.1 MB)'
    >>> step("Installing collected packages: nvidia-cudnn-cu12, torch")
    'installing 2 packages'
    """
    if found := re.match(r"\s*(?:Downloading|Using cached) (?:\S*/)?([^-/]+-[^-]+)\S* \((\d\S*) MB\)", line):
        return f"{found[1]} ({found[2]} MB)" if float(found[2]) >= LARGE else ""
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"installing {count} package{'s' if count > 1 else ''}"
    return ""


def reason(lines: list[str]) -> str:
    """Return the reason why a command failed, from the lines of its output: pip's first error, or the last line."""
    errors = [line.removeprefix("ERROR: ").rstrip(".") for line in lines if line.startswith("ERROR: ")][:1]
    more = [line for line in lines if line.startswith("The user requested (constraint)")]
    if cut := [line for line in lines if "Retry(total=0" in line and "connection broken by " in line]:
        more = [f"no connection: {re.sub('<[^>]*>: ', '', cut[-1].partition('connection broken by ')[2])}"]
    return "; ".join([*(errors or lines[-1:]), *more])


def say(line: str) -> None:
    """Print a line on the progress of the run."""
    print(f"upgrade: {line}", flush=True)
