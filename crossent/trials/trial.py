"""One subject on one case: its calls, its results, and their comparison with the exact values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from crossent.cases.axes import HALF_DTYPES
from crossent.cases.case import Case
from crossent.cases.inputs import DENSE, Inputs, class_and_layout
from crossent.numerics.bounds.contracts import Contract, Grade, contract
from crossent.numerics.bounds.linear_contracts import linear_contract_of
from crossent.numerics.formats import Array
from crossent.subjects.contracts import TORCH_CONTRACT
from crossent.subjects.subject import Subject
from crossent.trials.act import Host, NotRun, Raised
from crossent.trials.call import (
    Call,
    Gradients,
    Result,
    digest_of,
    dtype_and_shape,
    evaluate,
    in_words,
    make_call,
    require_gradients,
)
from crossent.trials.difference import Difference, bounds_of, compare
from crossent.trials.exact import AnyContract, Exact, ExactAlong, name_of, solve, solve_along
from crossent.words import as_options

T = TypeVar("T")


class RefusedError(Exception):
    """The subject raised an exception, which the attribute `raised` describes."""

    def __init__(self, raised: Raised, message: str = "") -> None:
        super().__init__(message or raised.message)
        self.raised = raised


class MisshapenError(Exception):
    """A call after the first call returned a loss of the wrong shape or dtype."""


class EndedError(Exception):
    """The subject crashed its process, or exceeded the time limit: `kind` is "crashed" or "hung"."""

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(how)
        self.kind = kind


class NotRunError(Exception):
    """A check cannot run. The message is the reason, such as "needs a CUDA device"."""


@dataclass(frozen=True)
class Problem:
    """A failure other than an exceeded error bound, such as a wrong shape.

    Attributes:
        kind: the `kind` of the :class:`crossent.Finding`, such as "wrong".
        of: the name of the wrong result, such as "second", or "".
    """

    kind: str
    message: str
    of: str = ""


@dataclass(eq=False)
class Question:
    """A case on a device, with its inputs and exact values, which are computed when first read.

    All subjects on the case share the question.
    """

    case: Case
    device: str = "cpu"

    def fresh(self) -> Inputs:
        """Return a copy of the inputs, in new memory."""
        return self.inputs.copy()

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of the case. Pass :meth:`fresh` to a subject, because a subject may change its arguments."""
        return self.case.build(self.device)

    @cached_property
    def inputs_on_cpu(self) -> Inputs:
        """The inputs on the CPU, which remain readable if a call makes the device unusable."""
        return self.inputs if self.device == "cpu" else self.case.build()

    @cached_property
    def others(self) -> Inputs:
        """Inputs with the same shapes and options, but other random numbers."""
        return self.case.seeded(self.case.seed + 1).build(self.device)

    @cached_property
    def exact(self) -> Exact:
        """The exact values of the case."""
        return solve(self.inputs_on_cpu)

    @cached_property
    def exact_along(self) -> ExactAlong:
        """The exact derivatives along the direction of the case."""
        return solve_along(self.inputs_on_cpu, self.case.direction())


@dataclass(eq=False)
class Trial:
    """One subject on one case. All checks share the first call of the subject.

    Attributes:
        host: the object that runs acts in the process of the subject.
        changed_state: the names of the parts of the global state that the subject changed and crossent restored.
    """

    question: Question
    subject: Subject
    host: Host
    changed_state: list[str] = field(default_factory=list)

    @property
    def case(self) -> Case:
        """The case of the question."""
        return self.question.case

    @cached_property
    def first_call(self) -> Call:
        """The first call of the subject, made when first read. May raise the errors of :meth:`perform`."""
        return self.perform(make_call, self.question.fresh(), self.gradients)

    @property
    def got(self) -> Result:
        """The result of the first call. May raise the errors of :meth:`perform`."""
        return self.first_call.result

    @cached_property
    def digest(self) -> str:
        """The checksum of the result of the first call, or "" for a result without data."""
        return digest_of(self.got)

    def evaluate(self, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
        """Return the result of the subject for these inputs. May raise the errors of :meth:`perform`.

        The act makes the call: `act(loss, inputs, gradients, *arguments)`.
        """
        return self.perform(act, inputs, self.gradients, *arguments)

    @property
    def gradients(self) -> Gradients:
        """The names of the gradients that the subject can compute."""
        every = self.question.inputs.operation.gradients if self.subject.differentiable else ()
        return tuple(name for name in every if name not in self.subject.lacks)

    def perform(self, act: Callable[..., T | NotRun], *arguments: Any) -> T:
        """Run an act (:mod:`crossent.trials.act`) in the process of the subject, and return the value of the act.

        Raises:
            RefusedError: the subject raised an exception.
            EndedError: the subject crashed or blocked its process.
            NotRunError: the act cannot run on this machine.
            ValueError: an isolated process sent invalid gradients.
        """
        performed = self.host.perform(act, *arguments)
        self.changed_state += performed.changed_state
        if performed.raised is not None:
            raise RefusedError(performed.raised)
        if performed.ended:
            raise EndedError(performed.ended, performed.how)
        if isinstance(performed.value, NotRun):
            raise NotRunError(performed.value.reason)
        if self.host.isolated:
            require_gradients(performed.value, arguments, self.gradients)
        return performed.value  # type: ignore[return-value]  # not None, since the act returned

    @property
    def wanted(self) -> Grade:
        """The grade that the subject must reach: A or B."""
        return self._wanted_in(self.case.dtype)

    def _wanted_in(self, dtype: str) -> Grade:
        """Return the grade that the subject must reach with logits of this dtype."""
        # A case with a grade shows a known failure of torch. This grade counts only for subjects with torch's contract.
        of_case = self.case.grade if self.subject.contract == TORCH_CONTRACT else None
        return "A" if (of_case or self.subject.grade(dtype)) == "A" else "B"

    def contract(self, dtype: str, rows: int, grade: Grade | None = None) -> Contract:
        """Return the contract of the subject for a dtype of the logits and a number of rows.

        `grade` defaults to the grade that the subject must reach on this case.
        """
        subject = self.subject
        name = subject.dtype_name or dtype
        chosen = grade or self.wanted
        flushes = "subnormal" in subject.lacks
        own = contract(subject.promise, chosen, name, device=self.question.device, rows=rows, flushes=flushes)
        return own.when_compiled if subject.compiled else own

    def promised(self, exact: Exact, grade: Grade | None = None) -> AnyContract:
        """Return the contract of the subject for the operation, dtype of the logits and number of rows of `exact`."""
        dtype, rows = exact.logits_dtype, len(exact.terms.logits)
        if exact.linear_terms is None:
            return self.contract(dtype, rows, grade)
        where = {"device": self.question.device, "rows": rows, "flushes": "subnormal" in self.subject.lacks}
        name = self.subject.dtype_name or dtype
        return linear_contract_of(self.subject.promise, grade or self.wanted, name, **where)

    def compare(self, got: Result, exact: Exact) -> list[Difference]:
        """Return the differences of a result from the exact values, under the contract of the subject.

        Raises:
            ValueError: a gradient has neither the dtype of its argument nor the dtype of the logits of `exact`.
        """
        for name, leaf in self.question.inputs.leaves.items():
            part = got.parts.get(name)
            if part is not None and name_of(part) not in (exact.logits_dtype, name_of(leaf)):
                of = in_words(name, self.case.operation)
                raise ValueError(f"{of}: got {name_of(part)}; expected {name_of(leaf)}")
        return self._compare(self.promised(exact), got, exact)

    def _compare(self, promised: AnyContract, got: Result, exact: Exact) -> list[Difference]:
        return compare(promised, got, exact, zero_mean="nan_mean" in self.subject.lacks)

    def bounds(self, got: Result, exact: Exact) -> dict[str, Array]:
        """Return the error bounds of the loss and the gradients in `got`, by name, in the shapes of the exact values.

        A bound of NaN or inf means that there is no bound.
        """
        # the logits of `exact` may have another dtype than the logits of the case
        grade = self._wanted_in(exact.logits_dtype)
        promised = self.promised(exact, grade)
        found = {name: getattr(bounds, name) for name, bounds in bounds_of(promised, got, exact).items()}
        return {name: bound.reshape(-1, 1) if name == "loss" else bound for name, bound in found.items()}

    @property
    def grade(self) -> Grade:
        """The best grade that the result of the first call reaches: "A", "B", or "F" for neither."""
        exact = self.question.exact
        wanted = self.promised(exact)
        for grade in ("A", "B"):
            promised = self.promised(exact, grade)
            if exact.effective_contract(promised) == exact.effective_contract(wanted):
                found = list(self.differences.values())
            else:
                found = self._compare(promised, self.got, exact)
            if all(difference.ratio <= 1 for difference in found):
                return grade
        return "F"

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The differences of the result of the first call from the exact values, by the name of the result."""
        return {difference.of: difference for difference in self.compare(self.got, self.question.exact)}


def misshapen(
    trial: Trial, loss: object, expected: Exact, device: torch.device | None = None, way: str = ""
) -> Problem | None:
    """Return a problem if a loss has a wrong type, shape, dtype or device.

    `expected` has the right shape and dtype. `device` defaults to the device of the inputs. `way` is the name of the
    call, such as "under no_grad".
    """
    name = in_words(f"loss {way}".rstrip(), trial.case.operation)
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"{name}: got {class_and_layout(loss)}; expected {DENSE}")
    dtype, device = trial.subject.result_dtype(expected.dtype), device or trial.question.inputs.input.device
    if (loss.dtype, tuple(loss.shape), loss.device) == (dtype, expected.shape, device):
        return None
    got, due = dtype_and_shape(loss.dtype, loss.shape), dtype_and_shape(dtype, expected.shape)
    if loss.device != device or device.type != "cpu":
        got, due = f"{got} on {loss.device}", f"{due} on {device}"
    widened = loss.dtype == torch.float32 and dtype in HALF_DTYPES and widens_halves(trial)
    declare = f"\nIf float32 is intended: {as_options(without=['half_result'])}" if widened else ""
    return Problem("wrong", f"{name}: got {got}; expected {due}{declare}")


def widens_halves(trial: Trial) -> bool:
    """Return whether the loss of the first call is float32 instead of float16 or bfloat16, with the right shape."""
    loss, exact = trial.got.loss, trial.question.exact
    return (loss.dtype, tuple(loss.shape)) == (torch.float32, exact.shape) and exact.dtype in HALF_DTYPES
