"""Make text for messages: printable and short text of users and exceptions, numbers, options and shell words."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence

# Limits in characters. The message of an exception may contain a whole tensor.
LONGEST_TEXT = 10_000
LONGEST_LINE = 500
# The limit of one value that a message repeats.
LONGEST_VALUE = 200
# The first words of the reason why a check or a case is not applicable, if the user declared a missing feature. The
# name of the feature follows.
DECLARED = "is declared without "


def said(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message, as one printable line."""
    return one_line(f"{type(error).__name__}: {text_of(error).partition(chr(10))[0]}".removesuffix(": "))


def name_of_class(error: type[BaseException]) -> str:
    """Return the full name of an exception class, with its module."""
    return f"{error.__module__}.{error.__qualname__}"


def text_of(error: BaseException) -> str:
    """Return the message of an exception, cut after `LONGEST_TEXT` characters."""
    try:
        return str(error).strip()[:LONGEST_TEXT]
    except Exception as another:
        return f"the message cannot be shown, because str() raises {type(another).__name__}"


def printable(text: str) -> str:
    """Return a text with unprintable characters escaped, so that the text cannot control a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def quoted(value: object) -> str:
    """Return the repr of a value, made printable and cut after `LONGEST_VALUE` characters.

    If the value cannot be printed, return a phrase with its type.
    """
    try:
        return cut(repr(value))
    except Exception:  # an int with more digits than Python prints, a deep list, or an object whose repr raises
        return f"a value of type {cut(type(value).__name__)} that cannot be printed"


def cut(text: str) -> str:
    """Return the start of a text, made printable, in at most `LONGEST_VALUE` characters.

    The number of missing characters follows: "… (12 more characters)".
    """
    parts: list[str] = []
    length = 0
    for char in text[:LONGEST_VALUE]:
        part = printable(char)
        length += len(part)
        if length > LONGEST_VALUE:
            break
        parts.append(part)
    left, shown = len(text) - len(parts), "".join(parts)
    return f"{shown}… ({counted(left, 'more character')})" if left else shown


def as_options(**options: str | Sequence[str]) -> str:
    """Return options as a message names them, for the command and for Python.

    >>> as_options(without=["weight"])
    "--without weight, in Python without=['weight']"
    """
    words = (f"--{name} {value if isinstance(value, str) else ' '.join(value)}" for name, value in options.items())
    return f"{' '.join(words)}, in Python {', '.join(f'{name}={value!r}' for name, value in options.items())}"


def counted(count: int, noun: str) -> str:
    """Return a number and a noun, in the plural if needed.

    >>> counted(1, "finding"), counted(2243, "finding")
    ('1 finding', '2,243 findings')
    """
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time in seconds as text.

    >>> duration(9.87), duration(119.7)
    ('9.9 s', '2 min 0 s')
    """
    tenths = round(seconds, 1)
    return f"{round(seconds) // 60} min {round(seconds) % 60} s" if tenths >= 60 else f"{tenths:.1f} s"


def shell_word(text: str) -> str:
    """Return a text as one word of a shell command, for bash and zsh."""
    if text.isprintable():
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in plain) + "'"


def name_of_signal(number: int) -> str:
    """Return the name of a signal, such as "SIGSEGV" for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def one_line(text: str) -> str:
    """Return a text as one printable line of at most `LONGEST_LINE` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names, and the number of further names: "a, b and 2 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
