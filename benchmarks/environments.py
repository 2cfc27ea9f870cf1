"""Environments for `nox -s upgrade`: one for each torch, how far pip is with it, and the report of a check in it.

This needs Python alone; it must start where no torch is.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import venv
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.turns import ALONE

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".nox" / "upgrade"
REPORTS = "reports"  # a folder beside the environments
SUBJECTS = ("torch", "formula", "log_softmax_nll", "one_hot", "blocked")
NEEDED = ("python-flint>=0.7", "click>=8.1", "rich>=13.4", "pebble>=5", "jinja2>=3.1", "packaging>=22", "setuptools")
MADE = "crossent-upgrade"  # a file in an environment that is whole
LARGE = 50  # MB, of which a download is worth a line


class CannotError(Exception):
    """An environment that cannot be made, or a run that cannot; in one line."""


@dataclass(frozen=True)
class Environment:
    """One torch, and what is asked of it: some subjects, or torch and the forms, at a level, for the nth time."""

    spec: str
    python: Path
    level: str
    subjects: tuple[str, ...] = ()
    nth: int = 1

    @property
    def name(self) -> str:
        """Its own among those of a run."""
        return slug(self.spec) + (f"-run{self.nth}" if self.nth > 1 else "")

    @property
    def asked(self) -> str:
        """The part of a file's name that says what was asked."""
        capability = os.environ.get("ATEN_CPU_CAPABILITY", "")  # with which torch gives other bits
        return "-".join([self.level, *map(slug, self.subjects), *([slug(capability)] if capability else [])])

    @property
    def report(self) -> Path:
        """Where its report is kept."""
        return PLACE / REPORTS / f"{self.name}-{self.asked}.json"

    def command(self, *arguments: str) -> list[str]:
        """What runs crossent of this repository in it."""
        return [str(self.python), "-m", "crossent", *arguments]

    @property
    def variables(self) -> dict[str, str]:
        """Of its processes."""
        return {**os.environ, **ALONE, "PYTHONPATH": str(ROOT)}


def slug(spec: str) -> str:
    """A folder's name for a version.

    >>> slug("torch>=2.14,<3")
    'torch_2.14_3'

    Of a path it is that of its last part, and a checksum of all of it: many an environment is called `.venv`.

    Raises:
        CannotError: there is none, or it is that of what is kept beside environments, which would be cleared for one.
    """
    name = re.sub(r"[^\w.+-]+", "_", spec.rstrip("/").rpartition("/")[2]).strip(".")
    if not name or name == REPORTS:
        raise CannotError(f"{spec!r}: no version")
    return f"{name}-{zlib.crc32(os.path.abspath(spec).encode()):08x}" if os.path.exists(spec) else name


def requirements(spec: str) -> list[str]:
    """What pip is asked for: before torch 2.3 its tensors are no arrays of numpy 2.

    >>> requirements("2.0.1")
    ['torch==2.0.1', 'numpy<2']
    >>> requirements("torch>=2.14")
    ['torch>=2.14', 'numpy>=1.24']
    """
    if not re.fullmatch(r"\d+(\.\w+)*(\+\w+)?", spec):
        return [spec, "numpy>=1.24"]
    major, minor = (*map(int, re.findall(r"\d+", spec)[:2]), 0)[:2]
    return [f"torch=={spec}", "numpy<2" if (major, minor) < (2, 3) else "numpy>=1.24"]


def environment(spec: str, level: str, reuse: bool, subjects: tuple[str, ...] = (), nth: int = 1) -> Environment:
    """The environment of a version, made where it is not there as a whole."""
    if (found := Path(spec) / "bin" / "python").exists():
        return Environment(spec, found.absolute(), level, subjects, nth)
    if spec.endswith(".whl") and "://" not in spec and not os.path.exists(spec):
        raise CannotError(f"{spec}: no such file")
    place = PLACE / slug(spec)
    made = Environment(spec, place / "bin" / "python", level, subjects, nth)
    if (reuse or nth > 1) and (place / MADE).exists():
        say(f"{spec}: {place} is there")
        return made
    say(f"{spec}: making an environment in {place}")
    what = f"{spec}: no environment of Python {'.'.join(map(str, sys.version_info[:2]))}"
    try:
        venv.create(place, clear=True, with_pip=True)
        pip = [str(made.python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
        follow([*pip, *requirements(spec), *NEEDED], f"{spec}: pip", what)
        follow([*pip, "--no-deps", "-e", str(ROOT)], f"{spec}: pip", what)
        (place / MADE).write_text(f"{spec}\n", encoding="utf-8")
    except subprocess.CalledProcessError as error:  # venv's own
        raise CannotError(f"{what}: venv has no pip: {error}") from None
    finally:
        if not (place / MADE).exists():
            shutil.rmtree(place, ignore_errors=True)
    return made


def follow(
    command: list[str],
    doing: str,
    what: str,
    *,
    allowed: tuple[int, ...] = (0,),
    env: dict[str, str] | None = None,
    bar: bool = False,
) -> None:
    """Run a command, and show what goes on: a line at each step, and one each half minute.

    A `bar` is the command's own, on stderr: nothing else is shown where that is a terminal.

    Raises:
        CannotError: it ended otherwise than is allowed; with what it said.
    """
    bar = bar and sys.stderr.isatty()
    lines: list[str] = []
    begun = shown = time.monotonic()
    now = ""  # what pip is at
    with started(command, env, None if bar else subprocess.STDOUT) as (process, coming):
        while (line := next_of(coming, 1.0)) is not None:
            lines += [line] if line else []
            new = step(line)
            now = new or now
            if not bar and (new or time.monotonic() > shown + 30):
                shown = time.monotonic()
                seconds = int(shown - begun)
                say(f"{doing}: {now}{', ' if now else ''}{seconds // 60}:{seconds % 60:02}")
        process.wait()
    if process.returncode not in allowed:
        said = "" if bar else reason(lines)
        raise CannotError(f"{what}: {said or f'exit status {process.returncode}'}")


def step(line: str) -> str:
    """What a line of pip's says that is worth one here, or "".

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
    """Why a command failed, by what it said: pip goes on with advice, and says in other lines what was in the way."""
    errors = [line.removeprefix("ERROR: ").rstrip(".") for line in lines if line.startswith("ERROR: ")][:1]
    more = [line for line in lines if line.startswith("The user requested (constraint)")]
    if cut := [line for line in lines if "Retry(total=0" in line and "connection broken by " in line]:
        said = cut[-1].partition("connection broken by ")[2]
        more = [f"no connection: {re.sub('<[^>]*>: ', '', said)}"]
    return "; ".join([*(errors or lines[-1:]), *more])


@contextlib.contextmanager
def started(
    command: list[str], env: dict[str, str] | None, stderr: int | None
) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[str | None]]]:
    """A process, and the lines that it prints as they come, None behind them; it ends with the block."""
    coming: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True, errors="replace", env=env
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            coming.put(line.strip())
        coming.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield process, coming
    finally:
        # At an interrupt from the keyboard it has had its own, and puts away what it has begun.
        for end in (lambda: None, process.terminate, process.kill):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        reader.join(5)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()


def next_of(coming: queue.Queue[str | None], seconds: float) -> str | None:
    """The next line, "" where none has come by then, None where none will."""
    try:
        return coming.get(timeout=seconds)
    except queue.Empty:
        return ""


def checked(of: Environment, reuse: bool) -> None:
    """Make its report, unless one is there that is to be used again."""
    if reuse and of.report.exists():
        if of.report.stat().st_mtime > max(path.stat().st_mtime for path in (ROOT / "crossent").glob("*.*")):
            say(f"{of.spec}: {of.report} is there")
            return
        say(f"{of.spec}: {of.report} is older than crossent's code")
    of.report.parent.mkdir(parents=True, exist_ok=True)
    subjects = of.subjects or SUBJECTS
    say(f"{of.spec}: crossent check {' '.join(subjects)} --level {of.level}")
    unfinished = of.report.with_suffix(".part")  # an interrupted check writes what it has
    try:
        command = of.command("check", *subjects, "--level", of.level, "--json", str(unfinished))
        doing, what = f"{of.spec}: crossent check", f"{of.spec}: no report"
        follow(command, doing, what, allowed=(0, 1), env=of.variables, bar=True)
        os.replace(unfinished, of.report)
    finally:
        unfinished.unlink(missing_ok=True)


def say(line: str) -> None:
    """Show how far it is."""
    print(f"upgrade: {line}", flush=True)
