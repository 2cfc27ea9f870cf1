"""Acts: what is done with a subject where it lives, and what comes of it.

An act is a function of a module here, `act(loss, *arguments)`: it calls the subject, and gives back plain numbers. It
knows neither the case nor its exact answer, so that it can be performed in a process of the subject's own
(:mod:`crossent.run.actors`); what it gives back is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from crossent.state import restore, snapshot
from crossent.subjects.subject import Loss
from crossent.words import name_of_class, said, text_of

T = TypeVar("T")


@dataclass(frozen=True)
class NotRun:
    """What an act gives back where it cannot be performed here: the reason."""

    reason: str


@dataclass(frozen=True)
class Raised:
    """An exception in words, which outlive its process.

    Attributes:
        message: its class and its first line.
        first: the same of the exception that led to it, where another did.
        text: all that it says, as far as that is of use.
        classes: the names of its class and of its bases, with their modules.
    """

    message: str
    first: str = ""
    text: str = ""
    classes: tuple[str, ...] = ()

    @staticmethod
    def of(error: BaseException) -> Raised:
        """What there is to say of an exception."""
        first = error
        while (before := first.__cause__ or first.__context__) is not None and before is not error:
            first = before
        return Raised(said(error), said(first), text_of(error), tuple(map(name_of_class, type(error).__mro__)))

    def is_a(self, *errors: type[BaseException]) -> bool:
        """Whether it is of one of these classes."""
        return bool(set(map(name_of_class, errors)) & set(self.classes))


@dataclass(frozen=True)
class Performed(Generic[T]):
    """What came of an act.

    Attributes:
        value: what it gave back; None where there is an error.
        raised: the exception that ended it.
        ended, how: the kind of finding, "crashed" or "hung", and how, where its process was ended by it.
        changed_state: what of the global state it left changed, and has been set back.
    """

    value: T | None = None
    raised: Raised | None = None
    ended: str = ""
    how: str = ""
    changed_state: tuple[str, ...] = ()


class Host(Protocol):
    """Where a subject lives: in this process, in an isolated one, or in a fresh one for each call."""

    @property
    def isolated(self) -> bool:
        """Whether the subject lives in another process, whose replies are not to be trusted."""
        ...

    @property
    def not_run(self) -> str:
        """Why the subject is called no more, or ""."""
        ...

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)` where the subject lives, and return what it returned, raised or changed."""
        ...


@dataclass(frozen=True)
class Here:
    """The host of a subject in this process."""

    loss: Loss
    isolated: bool = False
    not_run: str = ""

    def perform(self, act: Callable[..., T], *arguments: Any) -> Performed[T]:
        """Call `act(loss, *arguments)`. A KeyboardInterrupt is the user's, and goes on."""
        return perform(act, self.loss, *arguments)


def perform(act: Callable[..., T], loss: Loss, *arguments: Any) -> Performed[T]:
    """Call `act(loss, *arguments)`, catch what it raises, and set back the global state that it changed."""
    before = snapshot()
    try:
        made = Performed(act(loss, *arguments))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a subject raises is a finding, and the run goes on
        made = Performed(raised=Raised.of(error))
    finally:
        changed = restore(before)
    return replace(made, changed_state=tuple(changed))
