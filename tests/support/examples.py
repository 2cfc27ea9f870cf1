"""The examples of a page: the files that it shows, its Python code and what that prints, and its shell commands."""

import contextlib
import io
import re


def blocks(page, language):
    """Return the blocks of a language, each with a name that tells the page and the line."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)
    return [(f"{page.name}:{text.count(chr(10), 0, block.start(1)) + 1}", block[1]) for block in found]


def commands(page):
    """Return the shell commands of a page, without comments; a backslash joins a command to its next line."""
    lines = [line for _, block in blocks(page, "sh") for line in re.sub(r"\\\n *", "", block).splitlines()]
    return [line.split("  # ")[0].strip() for line in lines]


def file_of(source):
    """Return the name of the file that a block shows, if its first line is a comment with the name; otherwise None."""
    named = re.match(r"# ([\w/]+\.\w+)\n", source)
    return named and named[1]


def printed(source, name="example", names=None, *, errors=False):
    """Run code and return the lines that it prints. With `errors`, an exception ends the code and is the last line."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(source, name, "exec"), {"__name__": "example"} if names is None else names)
        except Exception as error:
            if not errors:
                raise
            print(f"{type(error).__name__}: {error}")
    return out.getvalue().splitlines()


def require_said(source, name="example", names=None):
    """Run code, and require that each line that it prints is the comment behind its `print`. `…` stands for anything.

    Raises:
        AssertionError: another line, or another number of lines.
    """
    lines, said = printed(source, name, names), re.findall(r"^ *print\(.*\)  # (.+)$", source, re.M)
    assert len(lines) == len(said), name
    for line, comment in zip(lines, said, strict=True):
        assert re.fullmatch(".+".join(map(re.escape, comment.split("…"))), line), f"{name}: {line!r} is not {comment!r}"
