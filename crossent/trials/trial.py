"""Trials: one subject on one case, and what a check of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.contracts import Grade
from crossent.numerics.formats import Array
from crossent.subjects.subject import Subject
from crossent.trials.act import Here, Host, NotRun, Raised
from crossent.trials.call import BOTH_GRADIENTS, Call, Gradients, Result, evaluate, make_call
from crossent.trials.difference import Difference, bounds_under, compare, contract_of
from crossent.trials.exact import Exact, ExactAlong, solve, solve_along

T = TypeVar("T")


class RefusedError(Exception):
    """The subject raised; the message is what it said."""

    def __init__(self, raised: Raised, message: str = "") -> None:
        super().__init__(message or raised.message)
        self.raised = raised


class EndedError(Exception):
    """The subject ended its process, or was ended for taking too long; the message is how."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(how)
        self.kind = kind


class NotRunError(Exception):
    """A check cannot run here; the message is why, and goes on after the name of the subject: "waits for …"."""


@dataclass(frozen=True)
class Problem:
    """What is wrong, where it is no number that is too far off.

    Attributes:
        kind: as in a `Finding`.
        message: in one line or a few.
        of: the result that it is about, where a check looks at several; as in a `Finding`.
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
    def exact(self) -> Exact:
        """The exact answer and its bounds."""
        return solve(self.inputs)

    @cached_property
    def exact_along(self) -> ExactAlong:
        """The exact derivatives along the case's direction and their bounds."""
        return solve_along(self.inputs, self.case.direction(self.device))


@dataclass(eq=False)
class Trial:
    """One subject on one case: what it was given and what came, each made once and looked at by every check."""

    question: Question
    subject: Subject
    host: Host | None = None  # where it lives; here unless given
    changed_state: list[str] = field(default_factory=list)  # global state that it left changed, and that was set back

    @property
    def case(self) -> Case:
        """The case."""
        return self.question.case

    @cached_property
    def first_call(self) -> Call:
        """The first call.

        Raises:
            RefusedError: the subject raised.
            EndedError: it ended its process.
        """
        return self.perform(make_call, self.question.fresh(), self.gradients)

    @property
    def got(self) -> Result:
        """The result of the first call. It raises what that does."""
        return self.first_call.result

    def evaluate(self, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
        """What the subject gives for these inputs; by another act, `act(loss, inputs, gradient, *arguments)`.

        Raises:
            RefusedError: it raised.
            EndedError: it ended its process.
        """
        return self.perform(act, inputs, self.gradients, *arguments)

    @property
    def gradients(self) -> Gradients:
        """Those that are asked of the subject."""
        lacks = {} if self.subject.differentiable else BOTH_GRADIENTS
        return tuple(name for name in BOTH_GRADIENTS if name not in lacks and name not in self.subject.lacks)

    def perform(self, act: Callable[..., T | NotRun], *arguments: Any) -> T:
        """What an act gives back that calls the subject: :mod:`crossent.trials.act`.

        Raises:
            RefusedError: it raised.
            EndedError: it ended its process.
            NotRunError: it cannot be performed here.
        """
        host = self.host or Here(self.subject.loss)
        performed = host.perform(act, *arguments)
        self.changed_state += performed.changed_state
        if performed.raised is not None:
            raise RefusedError(performed.raised)
        if performed.ended:
            raise EndedError(performed.ended, performed.how)
        if isinstance(performed.value, NotRun):
            raise NotRunError(performed.value.reason)
        return performed.value  # type: ignore[return-value]  # a value, where there is neither of these

    @property
    def wanted(self) -> Grade:
        """The grade that the subject must reach: A or B."""
        return self._wanted_in(self.case.dtype)

    def _wanted_in(self, dtype: str) -> Grade:
        return "A" if (self.case.grade or self.subject.grade(dtype)) == "A" else "B"

    def compare(self, got: Result, expected: Exact) -> list[Difference]:
        """The differences of a result under the contract that the subject is held to."""
        return compare(got, expected, self.wanted, self.subject.promise, self.subject.dtype_name)

    def bounds(self, got: Result, expected: Exact) -> dict[str, Array]:
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
        return {difference.of: difference for difference in self.compare(self.got, self.question.exact)}


@dataclass(frozen=True)
class Check:
    """One property of a subject on a case.

    Attributes:
        name: what the report calls it.
        run: yields what is wrong, and each number that was measured, right or wrong. It may raise the errors above.
        applies: whether the check says anything about such a case.
        not_run: why it does not run on a subject, as it goes on after its name, or "".
        versus: what a number is compared with: the exact one, or another result of the subject.
        asks: what it asks, in a sentence; that of `run` unless given.
    """

    name: str
    run: Callable[[Trial], Iterable[Difference | Problem]]
    applies: Callable[[Case], bool] = lambda case: True
    not_run: Callable[[Subject], str] = lambda subject: ""
    versus: str = "exact"
    asks: str = ""

    @property
    def sentence(self) -> str:
        """What it asks."""
        return self.asks or (self.run.__doc__ or "").strip().partition("\n")[0]


def misshapen(trial: Trial, loss: object, expected: Exact, device: torch.device | None = None) -> Problem | None:
    """What is wrong with a loss of the subject before its numbers are looked at: its kind, shape, dtype and device."""
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"got a {type(loss).__name__}; expected a dense torch.Tensor")
    wanted = trial.subject.dtype or expected.dtype, expected.shape, device or torch.device(trial.question.device)
    if (loss.dtype, tuple(loss.shape), loss.device) == wanted:
        return None
    return Problem("wrong", f"got {_words(loss)}; expected {wanted[0]} {wanted[1]}{_on(wanted[2])}")


def no_gradient(subject: Subject) -> str:
    """Why a check of gradients does not run on a subject, or ""."""
    return "" if subject.differentiable else "has no gradient to compare"


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}{_on(tensor.device)}"


def _on(device: torch.device) -> str:
    return "" if device.type == "cpu" else f" on {device}"
