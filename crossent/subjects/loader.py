"""Load a subject by its name, by package.module:NAME or by path/to/file.py:NAME. Every error message is one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.subjects.builtin import BY_NAME, EVERY_NAMED, builtin_of, subjects_of
from crossent.subjects.callables import as_subject
from crossent.subjects.compiler import COMPILE_SUFFIX, as_compiled
from crossent.subjects.contracts import require_contract, under_contract
from crossent.subjects.features import require_features
from crossent.subjects.subject import Subject
from crossent.words import DECLARED, cut, one_line, quoted, said

_NAMES = [name for name in EVERY_NAMED if ":" not in name]
_FORMATS = f"package.module:NAME and path/to/file.py:NAME; all except scalar also with {COMPILE_SUFFIX}"
_ALLOWED = f"{', '.join(_NAMES)}, {_FORMATS}"
_WRITE = "write path/to/file.py:NAME"


def load(
    subject: str | Callable[..., Any],
    *,
    without: Iterable[str] = (),
    contract: str | None = None,
    grade: str | None = None,
    device: str = "cpu",
    operation: Operation = CROSS_ENTROPY,
    ranks: int | None = None,
    timeout: float = 300.0,
) -> tuple[Subject, ...]:
    """Return the subjects that a description names, such as two for `torch`, or the subject of a callable.

    Args:
        subject: a description, or a callable for :func:`crossent.subjects.callables.as_subject`. A description is a
            name, such as `formula`, or `package.module:NAME`, or `path/to/file.py:NAME`. Most descriptions
            may end in `+compile`.
        without: the names of the features that the user declares missing.
        contract: the name of a contract. With None, built-in subjects keep their own contracts, and functions of the
            user have "kernel".
        grade: the grade in half precision. None stands for the grade of the contract. Without a contract, the forms and
            torch keep their own grades.
        device: the device that runs the subject.
        operation: the operation that a subject of the user computes.
        ranks: the number of ranks of a loss on several ranks; None for other losses.
        timeout: the time limit of a case on several ranks, in seconds.

    Raises:
        ValueError: the subject cannot be loaded, or an argument is wrong.
        TypeError: the object is neither a description nor a callable that crossent can call as a cross-entropy.

    Example:
        >>> [subject.name for subject in load("torch")]
        ['torch', 'torch_nll']
    """
    declared = {name: f"{DECLARED}{name}" for name in require_features(without)}
    require_contract(contract, grade)
    if ranks is not None:
        from crossent.subjects.ranks.subject import RANK_SUBJECTS, load_on_ranks

        on_ranks = load_on_ranks(subject, ranks, timeout, operation)
        if not (isinstance(subject, str) and subject in RANK_SUBJECTS) or contract is not None or grade is not None:
            on_ranks = under_contract(on_ranks, contract, grade)
        return (on_ranks.lacking(declared),)
    if isinstance(subject, str):
        found = [_load_one(description, device, operation) for description in _each(subject, device)]
    else:
        try:
            found = [as_subject(subject, operation=operation)]
        except TypeError as error:
            raise TypeError(f"subject: got {one_line(str(error))}") from None
    judged = (
        one if contract is None and builtin_of(one) is not None else under_contract(one, contract, grade)
        for one in found
    )
    return tuple(one.lacking(declared) for one in judged)


def _each(description: str, device: str) -> list[str]:
    """Return the descriptions of all subjects that a description names: two for `torch`, one for `torch+compile`."""
    base = description.removesuffix(COMPILE_SUFFIX)
    if base not in EVERY_NAMED:
        return [description]
    group = subjects_of(base, device)
    names = [one.name for one in group if base == description or not one.not_transformed]
    if not names:
        reason = group[0].not_transformed
        raise ValueError(f"subject: got {quoted(description)}; {base} {reason}; leave out {COMPILE_SUFFIX}")
    return [name + description.removeprefix(base) for name in names]


def _load_one(description: str, device: str, operation: Operation) -> Subject:
    base = description.removesuffix(COMPILE_SUFFIX)
    if base == "loss_parallel":
        number = "give the number of ranks: --ranks N, or ranks=N in Python"
        advice = number if base == description else f"leave out {COMPILE_SUFFIX}, and {number}"
        raise ValueError(f"subject: got {quoted(description)}; {base} runs on several ranks; {advice}")
    group = EVERY_NAMED.get(base, ())
    subject = next((one for one in group if one.name == base), None) or BY_NAME.get(base)
    if subject is None:
        try:
            name = base.rpartition(":")[2].rpartition(".")[2]
            subject = as_subject(import_object(base), name, source_of(base), operation)
        except (ValueError, TypeError) as error:
            # The message has one line of the exception of the user's file; the cause is the whole exception.
            reason = f"it is {error}" if isinstance(error, TypeError) else str(error)
            raise ValueError(f"subject: got {quoted(description)}; {one_line(reason)}") from error.__cause__
    return subject if base == description else as_compiled(subject, device)


def import_object(description: str) -> object:
    """Return the object that `package.module:NAME` or `path/to/file.py:NAME` names.

    Raises:
        ValueError: there is no such object, or the module's code raises an exception. The message is the end of a
            sentence that begins, for example, with "subject: got 'NAME'; ".
    """
    place, _, attribute = description.rpartition(":")
    if (place and not attribute) or (not place and attribute.endswith(".py")):
        raise ValueError(f"the name of the function or class is missing; write {cut(place or attribute)}:NAME")
    if not place:
        near = get_close_matches(description, _NAMES, n=1)
        raise ValueError(f"{f'did you mean {near[0]}? ' if near else ''}allowed are {_ALLOWED}")
    if _is_file(place):
        path = _file(place)
        with _importing(str(path.parent), place, path):
            module = _module_of(path)
        return _attribute(module, attribute, path.name)
    if not all(name.isidentifier() for name in place.split(".")):
        raise ValueError(f"{quoted(place)} is neither a module nor a file; allowed are {_ALLOWED}")
    with _importing(os.getcwd(), place):
        importlib.import_module(place)
    return _attribute(place, attribute, place)


def source_of(description: str) -> str:
    """Return the description of a subject, with the full path if the description names a file."""
    place, colon, attribute = description.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if colon and _is_file(place) else description


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _attribute(module: str, attribute: str, where: str) -> object:
    """Return the object `attribute`, such as "Losses.loss", of an imported module. Messages call the module `where`."""
    if not all(name.isidentifier() for name in attribute.split(".")):
        advice = f"write the name of an object in {cut(where)}, such as loss or Losses.loss"
        raise ValueError(f"{quoted(attribute)} is not a Python name; {advice}")
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module may run any code for an attribute
        names = attribute.split(".")
        if not isinstance(error, AttributeError) or error.name not in names:
            raise ValueError(f"reading {quoted(attribute)} from {cut(where)} raises {said(error)}") from error
        near = _nearest(error.obj, names[: names.index(error.name) + 1]) if names.count(error.name) == 1 else ""
        raise ValueError(f"{cut(where)} has no {quoted(attribute)}{near}") from None


def _nearest(lacking: object, names: list[str]) -> str:
    """Return the end of a message about a missing attribute, such as "; did you mean functional.cross_entropy?".

    The object `lacking` lacks the last of `names`. The other names are the path to this object.
    """
    *path, name = names
    public = [one for one in dir(lacking) if not one.startswith("_")]
    if near := get_close_matches(name, public, n=3):
        return f"; did you mean {' or '.join('.'.join([*path, one]) for one in near)}?"
    callables = [one for one in public if _is_callable(lacking, one)]
    listed = f"{', '.join(callables[:5])}{', …' if len(callables) > 5 else ''}"
    return f"; {'.'.join(path) or 'it'} has {listed}" if callables else ""


def _is_callable(of: object, name: str) -> bool:
    try:
        return callable(getattr(of, name))
    except Exception:  # a property may run any code
        return False


@contextmanager
def _importing(folder: str, place: str, path: Path | None = None) -> Iterator[None]:
    """Put a folder first in sys.path, as Python does for a script, for an import in the `with` block.

    Raises:
        ValueError: the import of `place`, whose file is `path`, raises an exception.
    """
    before = list(sys.path)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        # stdout is for the report, so the output of the import is discarded.
        with open(os.devnull, "w", encoding="utf-8", errors="replace") as nowhere, redirect_stdout(nowhere):
            yield
    except BaseException as error:
        sys.path[:] = before
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ValueError(_why_not(error, place, path)) from error


def _file(place: str) -> Path:
    """Return the full path of the Python file `place`.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(place).resolve()
    try:
        is_folder = path.is_dir()
        exists = path.exists()
    except OSError as error:  # the name is too long, or a folder on the way may not be read
        raise ValueError(f"{quoted(place)} cannot be read: {said(error)}") from error
    if not exists:
        raise ValueError(f"{quoted(place)} does not exist; give the path of an existing file")
    if is_folder:
        raise ValueError(f"{quoted(place)} is a folder; {_WRITE}")
    if path.suffix != ".py":
        raise ValueError(f"{quoted(place)} is not a .py file; {_WRITE}")
    return path


def _module_of(path: Path) -> str:
    """Import a file unless it is imported already, and return the name of its module."""
    own = f"_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{zlib.crc32(str(path).encode()):08x}"
    for name in (path.stem, own):
        if _file_of(sys.modules.get(name)) == path:
            return name
    spec = importlib.util.spec_from_file_location(own if _is_taken(path) else path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError("Python has no loader for this file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return spec.name


def _file_of(module: ModuleType | None) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _is_taken(path: Path) -> bool:
    """Return whether a file cannot be imported under its own name, for example because another module has the name."""
    name = path.stem
    if not name.isidentifier() or name in sys.modules or name in sys.stdlib_module_names:
        return True
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(name)
        return spec is None or spec.origin is None or Path(spec.origin).resolve() != path
    return True


def _why_not(error: BaseException, place: str, path: Path | None) -> str:
    """Return a line that says why the import of `place` failed, with the file and the line number if known."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
        return f"there is no module {quoted(error.name)}; for a file, {_WRITE}"
    if isinstance(error, SyntaxError):
        at = f"{cut(Path(error.filename).name)}, line {error.lineno}" if error.filename else cut(place)
        return f"{at}: {type(error).__name__}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    own = [frame for frame in frames if Path(frame.filename) == path] or frames
    own = [frame for frame in own if Path(frame.filename) != Path(__file__)]
    at = f"{cut(Path(own[-1].filename).name)}, line {own[-1].lineno}," if own else cut(place)
    if isinstance(error, SystemExit):
        return f"{at} exits with {quoted(error.code)} while it is loaded"
    return f"{at} raises {said(error)}"
