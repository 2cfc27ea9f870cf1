"""Read the report files that the user names in a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from crossent.options import as_click_errors
from crossent.words import quoted

if TYPE_CHECKING:
    from crossent.report.report import Report
    from crossent.run.soak.report import SoakReport

T = TypeVar("T")


def recorded(path: str, argument: str) -> Report:
    """Return the report in a file that `crossent check --json` wrote.

    `argument` is the argument or option that an error names, such as "OLD".

    Raises:
        ClickException: the file cannot be read, or is not a report.
    """
    from crossent.report.reader import read_report

    return _read(read_report, path, argument)


def recorded_shard(path: str, argument: str) -> Report | SoakReport:
    """Return the report in a file that `crossent check --json` or `crossent soak --json` wrote.

    The report may be of one shard. `argument` is the argument that an error names, such as "REPORT".
    """
    from crossent.run.soak.document import read_either

    return _read(read_either, path, argument)


def _read(read: Callable[[str], T], path: str, argument: str) -> T:
    with as_click_errors():
        try:
            return read(path)
        except OSError as error:
            raise unreadable(path, argument, error) from None
        except ValueError as error:
            raise ValueError(f"{argument}: {error}") from None


def unreadable(path: str, argument: str, error: OSError) -> ValueError:
    """Return the error for a report file that cannot be read. The message names `argument`, such as "OLD"."""
    reason = f"this file cannot be read: {error.strerror}"
    return ValueError(f"{argument}: got {quoted(path)}; {reason}; give a report that crossent wrote with --json")
