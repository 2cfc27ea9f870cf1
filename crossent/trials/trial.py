"""Trials: one subject on one case, and what a check of it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.contracts import Contract, Grade, contract
from crossent.numerics.formats import Array
from crossent.subjects.subject import Subject
from crossent.trials.act import Host, NotRun, Raised
from crossent.trials.call import BOTH_GRADIENTS, Call, Gradients, Result, evaluate, make_call
from crossent.trials.difference import Difference, bounds_of, compare
from crossent.trials.exact import Exact, ExactAlong, solve, solve_along

T = TypeVar("T")


class RefusedError(Exception):
    """The subject raised; the message is what it said."""

    def __init__(self, raised: Raised, message: str = "") -> None:
        super().__init__(message or raised.message)
        self.raised = raised


class MisshapenError(Exception):
    """A further call gave a loss of another shape or dtype than it should."""


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
    host: Host
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
        performed = self.host.perform(act, *arguments)
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

    def contract(self, dtype: str, rows: int, grade: Grade | None = None) -> Contract:
        """Return the contract of the subject for logits of a dtype and so many rows, at the grade to reach."""
        subject = self.subject
        of_dtype = subject.dtype_name or dtype
        return contract(subject.promise, grade or self.wanted, of_dtype, device=self.question.device, rows=rows)

    def compare(self, got: Result, exact: Exact) -> list[Difference]:
        """Compare a result with the exact values, under the contract of the subject."""
        return compare(self.contract(exact.logits_dtype, len(exact.terms.logits)), got, exact)

    def bounds(self, got: Result, exact: Exact) -> dict[str, Array]:
        """Return the bound of each number of a result: (R, 1) or (1, 1) for the loss, (R, C) for a gradient.

        The logits need not be of the case's dtype: the grade is that of their dtype. NaN and inf mean no bound.
        """
        grade = self._wanted_in(exact.logits_dtype)
        promised = self.contract(exact.logits_dtype, len(exact.terms.logits), grade)
        found = {name: getattr(bounds, name) for name, bounds in bounds_of(promised, got, exact).items()}
        return {name: bound.reshape(-1, 1) if name == "loss" else bound for name, bound in found.items()}

    @property
    def grade(self) -> Grade:
        """The grade that the first result reaches: the tightest contract that it keeps, or F."""
        exact = self.question.exact
        for grade in ("A", "B"):
            if grade == self.wanted:
                found = list(self.differences.values())
            else:
                found = compare(self.contract(exact.logits_dtype, len(exact.terms.logits), grade), self.got, exact)
            if all(difference.ratio <= 1 for difference in found):
                return grade
        return "F"

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """Those of the first call, by what they are of: loss, gradient and target_gradient."""
        return {difference.of: difference for difference in self.compare(self.got, self.question.exact)}


def misshapen(trial: Trial, loss: object, expected: Exact, device: torch.device | None = None) -> Problem | None:
    """What is wrong with a loss of the subject before its numbers are looked at: its kind, shape, dtype and device."""
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"got a {type(loss).__name__}; expected a dense torch.Tensor")
    wanted = trial.subject.dtype or expected.dtype, expected.shape, device or torch.device(trial.question.device)
    if (loss.dtype, tuple(loss.shape), loss.device) == wanted:
        return None
    return Problem("wrong", f"got {_words(loss)}; expected {wanted[0]} {wanted[1]}{_on(wanted[2])}")


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}{_on(tensor.device)}"


def _on(device: torch.device) -> str:
    return "" if device.type == "cpu" else f" on {device}"
