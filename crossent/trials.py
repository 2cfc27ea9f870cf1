"""Trials: one subject on one case, and what a check of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from crossent.cases import Case, Inputs
from crossent.contracts import Grade
from crossent.differences import Difference, bounds_under, compare, contract_of
from crossent.expected import Expected, ExpectedAlong, expect, expect_along
from crossent.findings import one_line
from crossent.results import Loss, Result, evaluate
from crossent.rounding import Array
from crossent.state import restore, snapshot
from crossent.subjects import Subject

T = TypeVar("T")


class RefusedError(Exception):
    """The subject raised; the message is what it said."""


class NotRunError(Exception):
    """A check cannot run here; the message is why."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, where it is no number that is too far off.

    Attributes:
        kind: as in :class:`crossent.findings.Finding`.
        message: in one line or a few.
        of: the result that it is about, where a check looks at several; as in :class:`crossent.findings.Finding`.
    """

    kind: str
    message: str
    of: str = ""


@dataclass(eq=False)
class Question:
    """A case on a device and what it should give: the same for all subjects, which see copies of it."""

    case: Case
    device: str = "cpu"

    def fresh(self) -> Inputs:
        """The inputs in memory of their own, for a subject."""
        return self.inputs.copy()

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs that no subject has seen."""
        return self.case.build(self.device)

    @cached_property
    def others(self) -> Inputs:
        """Other numbers for the same choices, to come between two calls."""
        return self.case.seeded(self.case.seed + 1).build(self.device)

    @cached_property
    def expected(self) -> Expected:
        """The exact answer and its bounds."""
        return expect(self.inputs)

    @cached_property
    def along(self) -> ExpectedAlong:
        """The exact derivatives along the case's direction and their bounds."""
        return expect_along(self.inputs, self.case.direction(self.device))


@dataclass(eq=False)
class Trial:
    """One subject on one case: what it was given and what came, each made once and looked at by every check."""

    question: Question
    subject: Subject
    disturbed: list[str] = field(default_factory=list)  # global state that it left changed, and that was set back

    @property
    def case(self) -> Case:
        """The case."""
        return self.question.case

    @cached_property
    def given(self) -> Inputs:
        """The inputs that the subject gets in its first call."""
        return self.question.fresh()

    @cached_property
    def got(self) -> Result:
        """The result of the first call.

        Raises:
            RefusedError: the subject raised.
        """
        return self.evaluate(self.given)

    def evaluate(self, inputs: Inputs, loss: Loss | None = None) -> Result:
        """What the subject, or another loss that is made of it, gives for these inputs.

        Raises:
            RefusedError: it raised.
        """
        subject = self.subject
        gradients = {"gradient": subject.differentiable, "target_gradient": "target_gradient" not in subject.lacks}
        return self.attempt(lambda: evaluate(loss or subject.loss, inputs, **gradients))

    def attempt(self, call: Callable[[], T]) -> T:
        """What a function that calls the subject returns.

        Raises:
            RefusedError: it raised.
        """
        before = snapshot()
        try:
            return call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever a subject raises is a finding, and the run goes on
            raise RefusedError(said(error)) from error
        finally:
            self.disturbed += restore(before)

    @property
    def wanted(self) -> Grade:
        """The grade that the subject must reach: A or B."""
        return self._wanted_in(self.case.dtype)

    def _wanted_in(self, dtype: str) -> Grade:
        return "A" if (self.case.grade or self.subject.grade(dtype)) == "A" else "B"

    def compare(self, got: Result, expected: Expected) -> list[Difference]:
        """The differences of a result under the contract that the subject is held to."""
        return compare(got, expected, self.wanted, self.subject.promise, self.subject.dtype_name)

    def bounds(self, got: Result, expected: Expected) -> dict[str, Array]:
        """How far each number of a result may be off: (R, 1) or (1, 1) for the loss, (R, C) for a gradient.

        The logits need not be of the case's dtype: the grade is that of theirs. NaN is no bound, as inf is none.
        """
        wanted = self._wanted_in(expected.logits_dtype)
        under = contract_of(got, expected, wanted, self.subject.promise, self.subject.dtype_name)
        found = {name: getattr(bounds, name) for name, bounds in bounds_under(under, got, expected).items()}
        return {name: bound.reshape(-1, 1) if name == "loss" else bound for name, bound in found.items()}

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Those of the first call, by what they are of: loss, gradient and target_gradient."""
        return {difference.check: difference for difference in self.compare(self.got, self.question.expected)}


@dataclass(frozen=True)
class Check:
    """One property of a subject on a case.

    Attributes:
        name: what the report calls it.
        run: yields what is wrong, and each number that was measured, right or wrong. It may raise the errors above.
        about: whether the check says anything about such a case.
        why_not: why it does not run on a subject, or "".
        versus: what a number is compared with: the exact one, or another result of the subject.
        asks: what it asks, in a sentence; that of `run` unless given.
    """

    name: str
    run: Callable[[Trial], Iterable[Difference | Problem]]
    about: Callable[[Case], bool] = lambda case: True
    why_not: Callable[[Subject], str] = lambda subject: ""
    versus: str = "exact"
    asks: str = ""

    @property
    def sentence(self) -> str:
        """What it asks."""
        return self.asks or (self.run.__doc__ or "").strip().partition("\n")[0]


def said(error: BaseException) -> str:
    """An exception's first line, whatever it is."""
    try:
        message = str(error).strip().partition("\n")[0]
    except Exception as another:
        message = f"and its message raises {type(another).__name__}"
    return one_line(f"{type(error).__name__}: {message}".removesuffix(": "))
