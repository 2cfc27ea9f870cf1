"""Read the error that the command prints to stderr."""

import re


def error_line(err):
    """Return the error line of stderr, and assert that it is printable.

    After wrong use of the command, stderr has a second line, which names `--help`.
    """
    matched = re.fullmatch(r"(crossent: .+\n)(Try 'crossent( [a-z]+)? --help'\.\n)?", err)
    assert matched is not None, err
    assert matched[1][:-1].isprintable()
    return matched[1]
