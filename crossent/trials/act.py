"""Acts and hosts: an act is a function that calls a subject; a host runs acts in the process of the subject.

An act is a module-level function `act(loss, *arguments)`, which returns data that can be sent between processes.
Acts can run in an isolated process, because they get no exact values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from crossent.state import restore, snapshot
from crossent.subjects.compiler import without_limits
from crossent.subjects.ranks.protocol import RankEndedError
from crossent.subjects.subject import Loss
from crossent.words import name_of_class, said, text_of

T = TypeVar("T")


@dataclass(frozen=True)
class NotRun:
    """The return value of an act that cannot run on this machine.

    `reason` is a phrase that follows the name of the subject, such as "needs a GPU".
    """

    reason: str


@dataclass(frozen=True)
class Raised:
    """The description of an exception, in strings that can be sent from another process.

    Attributes:
        message: the class of the exception and the first line of its message.
        first: such a message about the exception that began the chain of `__cause__` and `__context__`.
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
        first, seen = error, {id(error)}  # a chain may be a circle
        while (before := first.__cause__ or first.__context__) is not None and id(before) not in seen:
            first = before
            seen.add(id(before))
        return Raised(said(error), said(first), text_of(error), tuple(map(name_of_class, type(error).__mro__)))

    def is_a(self, *errors: type[BaseException]) -> bool:
        """Return whether the exception is an instance of one of these classes."""
        return bool(set(map(name_of_class, errors)) & set(self.classes))


@dataclass(frozen=True)
class Performed(Generic[T]):
    """The outcome of an act: a value, an exception, or the end of the process.

    Attributes:
        ended: "" if every process replied. "crashed" if the process of the subject or of a rank ended. "hung" if such a
            process did not reply in time.
        how: a description of the crash or of the exceeded time limit.
        changed_state: the names of the parts of the global state that the act changed and crossent restored.
    """

    value: T | None = None
    raised: Raised | None = None
    ended: str = ""
    how: str = ""
    changed_state: tuple[str, ...] = ()


class Host(Protocol):
    """An object that runs acts in the process of a subject."""

    @property
    def isolated(self) -> bool:
        """Whether the subject runs in another process, whose replies crossent does not trust."""
        ...

    @property
    def not_run(self) -> str:
        """The reason why the host no longer calls the subject, or ""."""
        ...

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` in the process of the subject, and return the outcome."""
        ...


@dataclass(frozen=True)
class Here:
    """The host of a subject that runs in this process."""

    loss: Loss
    isolated: bool = False
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)`, and return the outcome."""
        return perform(act, self.loss, *arguments)


def perform(act: Callable[..., T], loss: Loss, *arguments: Any) -> Performed[T]:
    """Call `act(loss, *arguments)`, restore the global state, and return the outcome."""
    before = snapshot()
    try:
        with without_limits():
            performed = Performed(act(loss, *arguments))
    except KeyboardInterrupt:
        raise
    except RankEndedError as error:
        performed = Performed(ended=error.kind, how=str(error))
    except BaseException as error:  # any exception of a subject becomes a finding, even SystemExit
        performed = Performed(raised=Raised.of(error))
    finally:
        changed = restore(before)
    if (take := getattr(loss, "take_changed_state", None)) is not None:  # a loss whose ranks are other processes
        changed = list(dict.fromkeys([*changed, *take()]))
    return replace(performed, changed_state=tuple(changed))
