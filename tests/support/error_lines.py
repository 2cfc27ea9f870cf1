"""What the command prints to stderr when something is wrong."""

import re


def error_line(err):
    """The error, which is one printable line. After wrong use of the command, another line says how to get help."""
    matched = re.fullmatch(r"(crossent: .+\n)(Try 'crossent( [a-z]+)? --help'\.\n)?", err)
    assert matched is not None, err
    assert matched[1][:-1].isprintable()
    return matched[1]
