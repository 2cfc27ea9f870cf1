"""Acts, and the hosts that perform them.

An act is a module-level function `act(loss, *arguments)` that calls the subject and returns plain data. An act sees
neither the case nor the exact values, so that it can run in an isolated process (:mod:`crossent.run.isolation`). The
process of the checks compares the returned data with the exact values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from crossent.state import restore, snapshot
from crossent.subjects.compiler import without_limits
from crossent.subjects.subject import Loss
from crossent.words import name_of_class, said, text_of

T = TypeVar("T")


@dataclass(frozen=True)
class NotRun:
    """The return value of an act that cannot run on this machine.

    Attributes:
        reason: the reason, as a phrase that follows the name of the subject.
    """

    reason: str


@dataclass(frozen=True)
class Raised:
    """The description of an exception, in strings that can be sent from another process.

    Attributes:
        message: the class and the first line of the exception.
        first: the class and the first line of the exception at the start of the chain of causes.
        text: the whole message, shortened if it is very long.
        classes: the full names of the class and of its base classes.
    """

    message: str
    first: str = ""
    text: str = ""
    classes: tuple[str, ...] = ()

    @staticmethod
    def of(error: BaseException) -> Raised:
        """Return the description of an exception."""
        first = error
        while (before := first.__cause__ or first.__context__) is not None and before is not error:
            first = before
        return Raised(said(error), said(first), text_of(error), tuple(map(name_of_class, type(error).__mro__)))

    def is_a(self, *errors: type[BaseException]) -> bool:
        """Whether the exception is an instance of one of these classes."""
        return bool(set(map(name_of_class, errors)) & set(self.classes))


@dataclass(frozen=True)
class Performed(Generic[T]):
    """The outcome of an act.

    Attributes:
        value: the return value of the act; None if the act did not return.
        raised: the exception that ended the act, if there is one.
        ended: "crashed" or "hung" if the act ended or blocked its process; "" otherwise.
        how: how the process ended, if the act ended or blocked its process.
        changed_state: the names of the global state that the act changed. The state has been restored.
    """

    value: T | None = None
    raised: Raised | None = None
    ended: str = ""
    how: str = ""
    changed_state: tuple[str, ...] = ()


class Host(Protocol):
    """The place where a subject runs: this process, an isolated process, or a fresh process for each call."""

    @property
    def isolated(self) -> bool:
        """Whether the subject runs in another process, whose replies cannot be trusted."""
        ...

    @property
    def not_run(self) -> str:
        """The reason why the subject is no longer called; "" while it is."""
        ...

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` where the subject runs, and return the outcome."""
        ...


@dataclass(frozen=True)
class Here:
    """The host of a subject that runs in this process."""

    loss: Loss
    isolated: bool = False
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)`, and return the outcome. A KeyboardInterrupt propagates."""
        return perform(act, self.loss, *arguments)


def perform(act: Callable[..., T], loss: Loss, *arguments: Any) -> Performed[T]:
    """Call `act(loss, *arguments)`, catch any exception but KeyboardInterrupt, and restore the global state."""
    before = snapshot()
    try:
        with without_limits():
            made = Performed(act(loss, *arguments))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # any exception of a subject, SystemExit too, becomes a finding
        made = Performed(raised=Raised.of(error))
    finally:
        changed = restore(before)
    return replace(made, changed_state=tuple(changed))
