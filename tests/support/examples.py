"""The examples of a documentation page: its files, its Python code with the printed lines, and its shell commands."""

import contextlib
import io
import re


def blocks(page, language):
    """Return the code blocks of a language as pairs (name, code). The name is the page and the line: `start.md:12`."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)
    return [(f"{page.name}:{text.count(chr(10), 0, block.start(1)) + 1}", block[1]) for block in found]


def commands(page):
    """Return the shell commands of a page, without comments. A backslash at the end of a line continues the command."""
    lines = [line for _, block in blocks(page, "sh") for line in re.sub(r"\\\n *", "", block).splitlines()]
    return [line.split("  # ")[0].strip() for line in lines]


def file_of(source):
    """Return the name of the file that a block shows, if its first line is a comment with the name; otherwise None."""
    named = re.match(r"# ([\w/]+\.\w+)\n", source)
    return named and named[1]


def printed(source, name="example", names=None, *, errors=False):
    """Run code and return the printed lines. With `errors`, print an exception in place of raising the exception."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(source, name, "exec"), {"__name__": "example"} if names is None else names)
        except Exception as error:
            if not errors:
                raise
            print(f"{type(error).__name__}: {error}")
    return out.getvalue().splitlines()


def assert_prints_its_comments(source, name="example", names=None):
    """Run code, and assert that each `print` prints the comment that follows it. `…` in a comment matches any text.

    Raises:
        AssertionError: a printed line or the number of lines differs.
    """
    lines, comments = printed(source, name, names), re.findall(r"^ *print\(.*\)  # (.+)$", source, re.M)
    assert len(lines) == len(comments), name
    for line, comment in zip(lines, comments, strict=True):
        assert re.fullmatch(".+".join(map(re.escape, comment.split("…"))), line), f"{name}: {line!r} is not {comment!r}"
