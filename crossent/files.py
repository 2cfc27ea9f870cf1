"""Write files in one step, and print an error for each file that cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from crossent.words import cut


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text to a file in one step: a reader sees the old content or the complete new content.

    If the path is a stream (see :func:`is_stream`), append the text.

    Raises:
        OSError: the text cannot be written. A file keeps its old content; a stream may have got a part of the text.
    """
    content = text.encode("utf-8", "backslashreplace")  # a lone surrogate becomes an escape, as in JSON
    if is_stream(path):
        with open(path, "ab") as stream:  # append, because /dev/stdout may be a file with content
            stream.write(content)
        return
    target = Path(path).resolve()  # write to the target of a symbolic link, so that the link is kept
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            mode = target.stat().st_mode & 0o777
        else:  # mkstemp makes a file that only its owner can read
            mask = os.umask(0)
            os.umask(mask)
            mode = 0o666 & ~mask
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether the path is a device, a pipe, or an existing file in /dev or /proc, such as /dev/stdout."""
    exists = os.path.exists(path) and not os.path.isdir(path)
    return exists and (not os.path.isfile(path) or os.path.abspath(path).startswith(("/dev/", "/proc/")))


def write_all(files: Mapping[str, str], by: Mapping[str, Callable[[str], None]]) -> bool:
    """Write the files, print an error for each failure, and return whether all files were written.

    Args:
        files: the path of each file; the key is an option, such as "--json".
        by: for each option, the function that writes a file to a path.
    """
    written = True
    for option, path in files.items():
        try:
            by[option](path)
        except OSError as error:
            click.echo(f"crossent: {option}: {cut(path)} cannot be written: {error.strerror}", err=True)
            written = False
    return written
