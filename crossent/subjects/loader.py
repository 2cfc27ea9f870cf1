"""Loading: a subject by its name, or by where it is; or why it cannot be had, in one line."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from crossent.numerics.bounds.contracts import Grade
from crossent.subjects.builtin import BY_NAME, NAMED
from crossent.subjects.callables import as_subject
from crossent.subjects.compiler import COMPILE_SUFFIX, as_compiled
from crossent.subjects.features import require_features
from crossent.subjects.subject import Subject
from crossent.words import one_line, said

_ALLOWED = f"{', '.join(NAMED)}, package.module:NAME and path/to/file.py:NAME, each also with {COMPILE_SUFFIX}"


def load(
    subject: str | Callable[..., Any], *, without: Iterable[str] = (), grade: str = "A", device: str = "cpu"
) -> tuple[Subject, ...]:
    """A subject, or those that a name stands for.

    Args:
        subject: a form's name; `torch`; `package.module:NAME` or `path/to/file.py:NAME`, where the name may have dots;
            each of them with `+compile`; or what :func:`crossent.subjects.callables.as_subject` takes.
        without: features that it does without, as declared.
        grade: what it must reach in half precision, where it is somebody's own.
        device: that it is for: code that is made for a CUDA device has approximate functions.

    Raises:
        ValueError: a description of something that cannot be had, a feature or a grade that is none; in one line.
        TypeError: neither a description nor a callable that is called as it should be.
    """
    declared = {name: f"is declared without {name}" for name in require_features(without)}
    if grade not in ("A", "B"):
        raise ValueError(f"grade: got {grade!r}; allowed are A and B")
    if isinstance(subject, str):
        found = [_described(description, device) for description in _each(subject)]
    else:
        try:
            found = [as_subject(subject)]
        except TypeError as error:
            raise TypeError(f"subject: got {one_line(str(error))}") from None
    halves: dict[str, Grade] = {"float16": "B", "bfloat16": "B"} if grade == "B" else {}
    return tuple(
        (one if one.promise in ("eager", "torch") else replace(one, grades=halves)).lacking(declared) for one in found
    )


def _each(description: str) -> list[str]:
    """The descriptions of single subjects: `torch` is two, and compiled those that torch compiles."""
    base = description.removesuffix(COMPILE_SUFFIX)
    if base not in NAMED:
        return [description]
    names = [one.name for one in NAMED[base] if base == description or not one.not_transformed]
    if not names:
        raise ValueError(f"subject: got {description!r}; {base} {NAMED[base][0].not_transformed}, and is not compiled")
    return [name + description.removeprefix(base) for name in names]


def _described(description: str, device: str) -> Subject:
    base = description.removesuffix(COMPILE_SUFFIX)
    group = NAMED.get(base, ())
    subject = next((one for one in group if one.name == base), None) or BY_NAME.get(base)
    if subject is None:
        try:
            found, source = _found(base)
            subject = as_subject(found, base.rpartition(":")[2].rpartition(".")[2], source)
        except (ValueError, TypeError) as error:
            # What the file raised is the cause, and is no part of the line.
            because = error.__cause__
            reason = f"that is {error}" if isinstance(error, TypeError) else str(error)
            raise ValueError(f"subject: got {description!r}; {one_line(reason)}") from because
    return subject if base == description else as_compiled(subject, device)


def _found(description: str) -> tuple[object, str]:
    """What is described, and a description that holds in another folder.

    Raises:
        ValueError: it cannot be had.
    """
    place, colon, attribute = description.rpartition(":")
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    if not colon or not place:
        if description.endswith(".py"):
            raise ValueError(f"which name in it? As in {description}:NAME")
        near = get_close_matches(description, NAMED, n=1)
        raise ValueError(f"{f'did you mean {near[0]}? ' if near else ''}allowed are {_ALLOWED}")
    if not attribute:
        raise ValueError(f"which name in it? As in {place}:NAME")
    if is_file:
        path = Path(place).resolve()
        with _importing(str(path.parent), place, path):
            module, source = _of_file(path), f"{path}:{attribute}"
    elif not all(name.isidentifier() for name in place.split(".")):
        raise ValueError(f"{place!r} is no module's name, nor a file's; allowed are {_ALLOWED}")
    else:
        with _importing(os.getcwd(), place, None):
            module, source = importlib.import_module(place), description
    found: object = module
    for at, name in enumerate(names := attribute.split(".")):
        try:
            found = getattr(found, name)
        except Exception as error:  # whatever somebody's own raises
            where = ".".join([Path(place).name if is_file else place, *names[:at]])
            if not isinstance(error, AttributeError):
                raise ValueError(f"{name!r} of {where} raises {said(error)}") from error
            raise ValueError(f"{where} has no {name!r}{_nearest(name, found)}") from None
    return found, source


def _nearest(name: str, of: object) -> str:
    public = [one for one in dir(of) if not one.startswith("_")]
    if near := get_close_matches(name, public, n=3):
        return f"; did you mean {' or '.join(near)}?"
    callables = [one for one in public if callable(getattr(of, one, None))]
    return f"; it has {', '.join(callables[:5])}{', …' if len(callables) > 5 else ''}" if callables else ""


class _Nowhere(io.TextIOBase):
    """Takes what a module prints while it is loaded: stdout is the report's."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def _importing(folder: str, place: str, path: Path | None) -> Iterator[None]:
    """With a folder first where modules are looked for, as Python has it for a script; not where that fails.

    Raises:
        ValueError: a module, or what it imports, raised.
    """
    before = list(sys.path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with redirect_stdout(_Nowhere()):
            yield
    except BaseException as error:
        sys.path[:] = before
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(_why_not(error, place, path)) from error


def _of_file(path: Path) -> ModuleType:
    """A file as the module of its name; where that is another module's, under a name of its own."""
    if not path.exists():
        raise FileNotFoundError("there is no such file")
    if path.is_dir() or path.suffix != ".py":
        raise IsADirectoryError("it is a folder" if path.is_dir() else "it is no .py file")
    own = f"{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{zlib.crc32(str(path).encode()):08x}"
    for name in (path.stem, own):
        if _file_of(sys.modules.get(name)) == path:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(own if _is_taken(path) else path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("Python has no loader for it")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _is_taken(path: Path) -> bool:
    """Whether a file's name is that of a module that would be hidden."""
    name = path.stem
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        return True
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return spec is None or spec.origin is None or Path(spec.origin).resolve() != path
    return True


def _why_not(error: BaseException, place: str, path: Path | None) -> str:
    """What came of an import, and where, in one line."""
    if isinstance(error, FileNotFoundError | IsADirectoryError) and error.errno is None:
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r}; of a file, path/to/file.py:NAME"
    if isinstance(error, SyntaxError):
        at = f"{Path(error.filename).name}, line {error.lineno}" if error.filename else place
        return f"{at}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = [frame for frame in frames if Path(frame.filename) == path] or frames
    own = [frame for frame in own if Path(frame.filename) != Path(__file__)]
    at = f"{Path(own[-1].filename).name}, line {own[-1].lineno}," if own else f"{place}"
    if isinstance(error, SystemExit):
        return f"{at} exits with {error.code!r} while it is loaded"
    return f"{at} raises {said(error)}"
