"""What a command shows on stdout, and the files that it writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

import click
from rich.console import Console, RenderableType
from rich.text import Text

from crossent.report.document import is_stream


class Output(Console):
    """Prints tables to the terminal's width and leaves every other line whole, to be searched and copied."""

    NARROWEST = 80  # a table loses digits before it loses a column

    def show(self, parts: Iterable[RenderableType]) -> None:
        """Print one after the other."""
        self.width = max(self.width, self.NARROWEST)
        for part in parts:
            self.print(part, soft_wrap=isinstance(part, Text))
        self.file.flush()

    def on_broken_pipe(self) -> None:
        """Leave it to the command, which knows its exit status."""
        raise BrokenPipeError


def chosen_files(json_file: str | None, html_file: str | None) -> dict[str, str]:
    """The files that are to be written, by option; which can be."""
    files = {option: path for option, path in (("--json", json_file), ("--html", html_file)) if path is not None}
    for option, path in files.items():
        _writable(path, option)
    if len(files) == 2 and not is_stream(path) and len(set(map(os.path.realpath, files.values()))) == 1:
        raise click.BadParameter(f"got {path!r}, which is the file of --json too", param_hint="--html")
    return files


def _writable(path: str, option: str) -> None:
    """Say before the run, and not after it, that its report would have no place."""
    file = os.path.realpath(path)
    folder = os.path.dirname(file)
    if not path or os.path.isdir(file):  # click asks the same of names that are there, and "" is none
        raise click.BadParameter(f"got {path!r}; it is no file's name", param_hint=option)
    if not os.path.isdir(folder):
        raise click.BadParameter(f"got {path!r}; {folder!r} is no folder", param_hint=option)
    # A file is replaced as a whole, which is a matter of its folder too.
    needed = [path] if is_stream(path) else [folder, file] if os.path.exists(file) else [folder]
    if not all(os.access(place, os.W_OK) for place in needed):
        raise click.BadParameter(f"got {path!r}; it cannot be written", param_hint=option)


def write(files: Mapping[str, str], by: Mapping[str, Callable[[str], None]]) -> bool:
    """Whether all could be written; what could not is said."""
    written = True
    for option, path in files.items():
        try:
            by[option](path)
        except OSError as error:
            click.echo(f"crossent: {path} cannot be written: {error.strerror}", err=True)
            written = False
    return written
