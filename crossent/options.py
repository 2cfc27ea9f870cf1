"""The options of a command: their types, the files that they name, and errors in one line.

This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from crossent.choices import CHECK_NAMES
from crossent.files import is_stream

if TYPE_CHECKING:
    from crossent.report.report import Report


class _Allowed:
    """A type of click whose error says what was given and what is allowed, in the words of `crossent.check`."""

    @property
    def allowed(self) -> str:
        """What is allowed, with its verb."""
        if isinstance(self, click.Choice):
            return f"are {', '.join(self.choices)}"
        assert isinstance(self, (click.IntRange, click.FloatRange))
        if self.max is not None:
            return f"are {self.min} to {self.max}"
        return f"is more than {self.min}" if self.min_open else f"is {self.min} or more"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return the value as click does."""
        try:
            return super().convert(value, parameter, context)  # type: ignore[misc]
        except click.BadParameter:
            raise click.BadParameter(f"got {value!r}; allowed {self.allowed}", context, parameter) from None


class Word(_Allowed, click.Choice):  # type: ignore[type-arg]  # which click 8.1 does not have
    """One of several words."""


class Whole(_Allowed, click.IntRange):
    """A whole number in a range."""


class Positive(_Allowed, click.FloatRange):
    """A number above 0."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)


# numpy and torch both accept seeds of 32 bits.
SEED_OPTION = Whole(0, 2**32 - 1)


class Seed(click.ParamType):  # type: ignore[type-arg]
    """A number, or the word "random"."""

    name = "integer or random"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        """Return the number, or the word."""
        if value == "random":
            return "random"
        try:
            return int(SEED_OPTION.convert(value, parameter, context))
        except click.BadParameter as error:
            self.fail(f"{error.message}, and random", parameter, context)


class Row(click.ParamType):  # type: ignore[type-arg]
    """A row of numbers, separated by commas."""

    name = "row"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers."""
        try:
            return tuple(float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"got {value!r}; allowed are numbers separated by commas, as in 3,1,-3", parameter, context)


def chosen_files(json_file: str | None, html_file: str | None) -> dict[str, str]:
    """Return the files to be written, by option. Raise BadParameter if one cannot be written."""
    files = {option: path for option, path in (("--json", json_file), ("--html", html_file)) if path is not None}
    for option, path in files.items():
        _writable(path, option)
    if len(files) == 2 and not is_stream(path) and len(set(map(os.path.realpath, files.values()))) == 1:
        raise click.BadParameter(f"got {path!r}, which is also the file of --json", param_hint="--html")
    return files


def _writable(path: str, option: str) -> None:
    """Raise BadParameter before the run if its report could not be written after it."""
    file = os.path.realpath(path)
    folder = os.path.dirname(file)
    if not path or os.path.isdir(file):  # click checks names that exist; "" is no name
        raise click.BadParameter(f"got {path!r}; it is not the name of a file", param_hint=option)
    if not os.path.isdir(folder):
        raise click.BadParameter(f"got {path!r}; the folder {folder!r} does not exist", param_hint=option)
    # A file is replaced as a whole, so its folder must be writable too.
    needed = [path] if is_stream(path) else [folder, file] if os.path.exists(file) else [folder]
    if not all(os.access(place, os.W_OK) for place in needed):
        raise click.BadParameter(f"got {path!r}; it cannot be written", param_hint=option)


def write(files: Mapping[str, str], by: Mapping[str, Callable[[str], None]]) -> bool:
    """Write the files. Print a line for each that cannot be written, and return whether all could."""
    written = True
    for option, path in files.items():
        try:
            by[option](path)
        except OSError as error:
            click.echo(f"crossent: {path} cannot be written: {error.strerror}", err=True)
            written = False
    return written


@contextmanager
def one_line() -> Iterator[None]:
    """Turn the errors that the package raises for bad input into one line of wrong use.

    `level: got 'quik'` becomes `--level: got 'quik'`, if the command has this option.
    """
    try:
        yield
    except (ValueError, IndexError, TypeError, RuntimeError, MemoryError) as error:
        raise click.UsageError(_with_dashes(str(error))) from None


def _with_dashes(message: str) -> str:
    """Return a message of the package, with the option in place of the Python argument that the message begins with."""
    name, colon, rest = message.partition(":")
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context and colon else ():
        option = max(parameter.opts, key=len)
        if option.startswith("--") and name in (parameter.name, option[2:]):
            return f"{option}:{rest}"
    return message


def message_of(error: click.ClickException) -> str:
    """Return the message of an error of click. If a value is wrong, the message begins with its option."""
    if type(error) is not click.BadParameter:
        return error.format_message()
    option = error.param_hint or ""
    if error.param is not None:
        named = isinstance(error.param, click.Option)
        option = max(error.param.opts, key=len) if named else str(error.param.name).upper()
    return f"{option}: {error.message}" if option else error.message


_PART = (
    click.option(
        "--check",
        "checks",
        metavar="NAME",
        multiple=True,
        type=Word(CHECK_NAMES),
        help="Run this check only; see `crossent list checks`. `call` and `result` run with it. Repeatable.",
    ),
    click.option(
        "--case",
        "cases",
        metavar="ID_OR_PATTERN",
        multiple=True,
        help="Run this case only. A full id runs at any level; a pattern such as '*smooth0.1*' selects from the "
        "level, with or without the seed. Repeatable.",
    ),
    click.option(
        "--last-failed",
        is_flag=True,
        help="Run only the checks and cases that failed in the last run on these subjects in this folder; run "
        "everything if none failed.",
    ),
    click.option("-x", "--exitfirst", is_flag=True, help="Stop at the first finding: --max-findings 1."),
    click.option(
        "--max-findings",
        metavar="N",
        type=Whole(1),
        help="Stop after this many findings. Known failures do not count.",
    ),
    click.option("--no-cache", is_flag=True, help="Do not write findings to .crossent_cache for --last-failed."),
)


def part_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a part of a run."""
    for option in reversed(_PART):
        command = option(command)
    return command


def chosen_part(
    subjects: Sequence[str],
    checks: tuple[str, ...],
    cases: tuple[str, ...],
    last_failed: bool,
    exitfirst: bool,
    max_findings: int | None,
) -> dict[str, Any]:
    """Return the arguments of `crossent.check` for a part of a run. Say so if nothing failed in the last run.

    Raises:
        UsageError: two options contradict each other.
    """
    if exitfirst and max_findings is not None:
        raise click.UsageError("-x is --max-findings 1: give one of the two")
    if last_failed and (checks or cases):
        raise click.UsageError("--last-failed names its checks and cases: give it without --check and --case")
    chosen: dict[str, Any] = {"checks": checks, "cases": cases, "max_findings": 1 if exitfirst else max_findings}
    if last_failed:
        from crossent.report.last_findings import last_failed as failed_in_last_run

        chosen["cases"] = failed_in_last_run(subjects)
        if not chosen["cases"]:
            click.echo("crossent: no finding of the last run on these subjects is kept: everything runs", err=True)
    return chosen


def recorded(path: str) -> Report:
    """Read a report, or say in one line why that fails."""
    from crossent.report.reader import read_report

    with one_line():
        try:
            return read_report(path)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
