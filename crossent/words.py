"""Text from outside, made harmless and short: printable, in one line, an exception in a line."""

from __future__ import annotations

import shlex


def said(error: BaseException) -> str:
    """An exception's class and its first line, whatever it is."""
    return one_line(f"{type(error).__name__}: {text_of(error).partition(chr(10))[0]}".removesuffix(": "))


def name_of_class(error: type[BaseException]) -> str:
    """A class with its module."""
    return f"{error.__module__}.{error.__qualname__}"


def text_of(error: BaseException) -> str:
    """What an exception says, as far as it can be had."""
    try:
        return str(error).strip()[:LONGEST_TEXT]
    except Exception as another:
        return f"and its message raises {type(another).__name__}"


LONGEST_TEXT = 10_000  # characters: there may be a tensor in it


LONGEST_LINE = 500  # of what others say: an exception may hold a whole tensor


def printable(text: str) -> str:
    """A text that does nothing to a terminal: its control characters are written out."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def word(text: str) -> str:
    """A text as one word of a shell; where it could do something to a terminal, in the notation of bash and zsh."""
    if text.isprintable():
        return shlex.quote(text)
    plain = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in plain) + "'"


def one_line(text: str) -> str:
    """What somebody else says, in one line that is not too long."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"
