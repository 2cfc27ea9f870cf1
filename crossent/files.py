"""Write files completely or not at all, and read JSON files strictly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from crossent.words import cut, quoted


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text to a file completely or not at all. Append the text to a stream, such as /dev/stdout.

    Raises:
        OSError: the text cannot be written. A file keeps its old content.
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
    if not os.path.exists(path) or os.path.isdir(path):
        return False
    place = os.path.abspath(path)  # /dev/shm has ordinary files
    return not os.path.isfile(path) or (place.startswith(("/dev/", "/proc/")) and not place.startswith("/dev/shm/"))


def say_error(text: str) -> None:
    """Print a line to stderr. If stderr cannot be written, do nothing, so that the command keeps its exit status."""
    with suppress(OSError):
        click.echo(text, err=True)


def write_all(files: Mapping[str, str], by: Mapping[str, Callable[[str], None]]) -> bool:
    """Write the files, print an error for each failure, and return whether all files were written.

    For each option, such as "--json", `files` has the path, and `by` has the function that writes the file.
    """
    written = True
    for option, path in files.items():
        try:
            by[option](path)
        except OSError as error:
            say_error(f"crossent: {option}: {cut(path)} cannot be written: {error.strerror}")
            written = False
    return written


def chosen_files(json_file: str | None, html_file: str | None) -> dict[str, str]:
    """Return a dict from each given option, "--json" or "--html", to the path of its file.

    Raises:
        BadParameter: a file cannot be written, or both options name the same file.
    """
    files = {option: path for option, path in (("--json", json_file), ("--html", html_file)) if path is not None}
    for option, path in files.items():
        _require_writable(path, option)
    if len(files) == 2 and not is_stream(path) and len(set(map(os.path.realpath, files.values()))) == 1:
        raise click.BadParameter(
            f"got {quoted(path)}, which is also the file of --json; choose another file", param_hint="--html"
        )
    return files


def _require_writable(path: str, option: str) -> None:
    """Raise BadParameter, which names `option`, if the file `path` cannot be written."""
    try:
        file = os.path.realpath(path)
        folder = os.path.dirname(file)
        if not path or os.path.isdir(file):  # click accepts "" as a name
            raise click.BadParameter(f"got {quoted(path)}; give the name of a file", param_hint=option)
        if not os.path.isdir(folder):
            reason = f"the folder {quoted(folder)} does not exist; choose another file"
            raise click.BadParameter(f"got {quoted(path)}; {reason}", param_hint=option)
        # A file is replaced as a whole, so its folder must be writable too.
        needed = [path] if is_stream(path) else [folder, file] if os.path.exists(file) else [folder]
        for place in needed:
            if not os.access(place, os.W_OK):
                what = f"the folder {quoted(folder)}" if place == folder else "this file"
                reason = f"{what} is not writable; choose another file"
                raise click.BadParameter(f"got {quoted(path)}; {reason}", param_hint=option)
        if not is_stream(path):  # permissions alone do not say whether a file can be created
            with suppress(FileNotFoundError):
                os.lstat(file)  # the name may be too long
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".crossent."):
                pass
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        reason = getattr(error, "strerror", None) or str(error)
        why = f"this file cannot be written: {reason}; choose another file"
        raise click.BadParameter(f"got {quoted(path)}; {why}", param_hint=option) from None


LARGEST = 2**29  # the most bytes of a JSON file; a report on five subjects at level thorough has a tenth of this size


def strict_json(path: str | os.PathLike[str]) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: the file is too large, not UTF-8 or not JSON, or an object has a key twice.
        RecursionError: the file has too many nested arrays or objects.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)  # a limit, because a device such as /dev/zero has no end
    if len(content) > LARGEST:
        raise ValueError(f"the file has more than {LARGEST:,} bytes, the most that crossent reads")
    return json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict. Raise ValueError for a repeated key."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(max(keys, key=keys.count))} occurs more than once in one object")
    return made


def _no_number(token: str) -> float:
    raise ValueError(f"{token} is not JSON")
