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
from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.contracts import Contract, Grade, Promise, contract
from crossent.numerics.bounds.linear_contracts import LinearPromise, linear_contract
from crossent.numerics.formats import Array
from crossent.subjects.contracts import TORCH_CONTRACT
from crossent.subjects.subject import Subject
from crossent.trials.act import Host, NotRun, Raised
from crossent.trials.call import Call, Gradients, Result, digest_of, evaluate, make_call
from crossent.trials.difference import Difference, bounds_of, compare
from crossent.trials.exact import AnyContract, Exact, ExactAlong, name_of, solve, solve_along

# The promises of a linear cross-entropy, where they have another name than those of a cross-entropy.
_LINEAR_PROMISES: dict[Promise, LinearPromise] = {"blocked": "eager", "logsumexp": "kernel"}
T = TypeVar("T")
S = TypeVar("S")


class RefusedError(Exception):
    """The subject raised an exception. The message is the class and the first line of that exception."""

    def __init__(self, raised: Raised, message: str = "") -> None:
        super().__init__(message or raised.message)
        self.raised = raised


class MisshapenError(Exception):
    """A further call returned a loss of the wrong shape or dtype."""


class EndedError(Exception):
    """The subject crashed its process, or exceeded the time limit. The message says how the process ended.

    `kind` is "crashed" or "hung".
    """

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(how)
        self.kind = kind


class NotRunError(Exception):
    """A check cannot run: the machine lacks something, or the check does not apply to the subject or the case.

    The message is a phrase that follows the name of the subject, such as "needs a CUDA device".
    """


@dataclass(frozen=True)
class Problem:
    """A failure of a check that is not about an error bound, such as a wrong shape.

    Attributes:
        kind: the kind of the failure, as in :class:`crossent.Finding`.
        message: the description, in one line or a few lines.
        of: the name of the wrong result, such as "second", if the check tests several results; "" otherwise.
    """

    kind: str
    message: str
    of: str = ""


@dataclass(eq=False)
class Question:
    """A case on a device, with its exact values, which are computed when they are first read.

    All subjects share one question. Each call gets a copy of the inputs.
    """

    case: Case
    device: str = "cpu"

    def fresh(self) -> Inputs:
        """Return a copy of the inputs, in new memory, for a subject."""
        return self.inputs.copy()

    @cached_property
    def inputs(self) -> Inputs:
        """The inputs of the case. Pass :meth:`fresh` to a subject, because a subject may change its arguments."""
        return self.case.build(self.device)

    @cached_property
    def others(self) -> Inputs:
        """Inputs with the same shapes and options and other random numbers, for a call between two equal calls."""
        return self.case.seeded(self.case.seed + 1).build(self.device)

    @cached_property
    def exact(self) -> Exact:
        """The exact values and their error bounds."""
        return solve(self.inputs)

    @cached_property
    def exact_along(self) -> ExactAlong:
        """The exact derivatives along the direction of the case, and their error bounds."""
        return solve_along(self.inputs, self.case.direction(self.device))


@dataclass(eq=False)
class Trial:
    """One subject on one case. All checks share the first call of the subject, and its differences.

    Attributes:
        question: the case, with its exact values.
        subject: the subject.
        host: the host on which the subject runs.
        changed_state: the names of the parts of the global state that the subject changed. All are restored.
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
        """The first call of the subject, which is made when this attribute is first read.

        Raises:
            RefusedError: the subject raised an exception.
            EndedError: the subject crashed or blocked its process.
        """
        return self.perform(make_call, self.question.fresh(), self.gradients)

    @property
    def got(self) -> Result:
        """The result of the first call. Reading it raises the same errors as `first_call`."""
        return self.first_call.result

    @cached_property
    def digest(self) -> str:
        """The checksum of the first result, or "" if the result has no data, as on the meta device."""
        return digest_of(self.got)

    def evaluate(self, inputs: Inputs, act: Callable[..., Result] = evaluate, *arguments: Any) -> Result:
        """Return the result of the subject for these inputs.

        Args:
            inputs: the inputs.
            act: the act that makes the call (see `crossent.trials.act`): `act(loss, inputs, gradients, *arguments)`.
            arguments: further arguments of the act.

        Raises:
            RefusedError: the subject raised an exception.
            EndedError: the subject crashed or blocked its process.
        """
        return self.perform(act, inputs, self.gradients, *arguments)

    @property
    def gradients(self) -> Gradients:
        """The names of the gradients that the subject can compute."""
        every = self.question.inputs.operation.gradients if self.subject.differentiable else ()
        return tuple(name for name in every if name not in self.subject.lacks)

    def perform(self, act: Callable[..., T | NotRun], *arguments: Any) -> T:
        """Run an act (:mod:`crossent.trials.act`) where the subject runs, and return the value of the act.

        Raises:
            RefusedError: the subject raised an exception.
            EndedError: the subject crashed or blocked its process.
            NotRunError: the act cannot run on this machine.
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
        # A case with a grade shows a known failure of torch. The grade counts only for subjects with torch's contract.
        of_case = self.case.grade if self.subject.contract == TORCH_CONTRACT else None
        return "A" if (of_case or self.subject.grade(dtype)) == "A" else "B"

    def contract(self, dtype: str, rows: int, grade: Grade | None = None) -> Contract:
        """Return the contract of the subject for a dtype of the logits and a number of rows.

        `grade` defaults to the grade that the subject must reach.
        """
        subject = self.subject
        name = subject.dtype_name or dtype
        chosen = grade or self.wanted
        flushes = "subnormal" in subject.lacks
        return contract(subject.promise, chosen, name, device=self.question.device, rows=rows, flushes=flushes)

    def promised(self, exact: Exact, grade: Grade | None = None) -> AnyContract:
        """Return the contract of the subject for the operation, the dtype and the number of rows of a case."""
        dtype, rows = exact.logits_dtype, len(exact.terms.logits)
        if exact.factors is None:
            return self.contract(dtype, rows, grade)
        promise = _LINEAR_PROMISES.get(self.subject.promise, self.subject.promise)
        name = self.subject.dtype_name or dtype
        where = {"device": self.question.device, "rows": rows, "flushes": "subnormal" in self.subject.lacks}
        recomputes = promise in ("kernel", "fast_kernel")  # such a kernel need not store the logits
        return linear_contract(promise, grade or self.wanted, name, recomputes=recomputes, **where)

    def compare(self, got: Result, exact: Exact) -> list[Difference]:
        """Compare a result with the exact values, under the contract of the subject.

        Raises:
            ValueError: a gradient has another dtype than the tensor it belongs to. Autograd returns no such gradient.
        """
        for name, leaf in self.question.inputs.leaves.items():
            part = got.parts.get(name)
            if part is not None and name_of(part) not in (exact.logits_dtype, name_of(leaf)):
                raise ValueError(f"{name}: got {name_of(part)}; expected {name_of(leaf)}")
        return self._compare(self.promised(exact), got, exact)

    def _compare(self, promised: AnyContract, got: Result, exact: Exact) -> list[Difference]:
        return compare(promised, got, exact, zero_mean="nan_mean" in self.subject.lacks)

    def bounds(self, got: Result, exact: Exact) -> dict[str, Array]:
        """Return the error bound of each number of a result: (R, 1) or (1, 1) for the loss, (R, C) for a gradient.

        The logits of `exact` may have another dtype than the logits of the case. The contract then has the grade that
        the subject must reach in this other dtype. A bound of NaN or inf means that there is no bound.
        """
        grade = self._wanted_in(exact.logits_dtype)
        promised = self.promised(exact, grade)
        found = {name: getattr(bounds, name) for name, bounds in bounds_of(promised, got, exact).items()}
        return {name: bound.reshape(-1, 1) if name == "loss" else bound for name, bound in found.items()}

    @property
    def grade(self) -> Grade:
        """The best grade whose error bounds the first result does not exceed: A, B, or F for neither."""
        exact = self.question.exact
        wanted = self.promised(exact)
        for grade in ("A", "B"):
            promised = self.promised(exact, grade)
            if exact.effective(promised) == exact.effective(wanted):
                found = list(self.differences.values())
            else:
                found = self._compare(promised, self.got, exact)
            if all(difference.ratio <= 1 for difference in found):
                return grade
        return "F"

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """The differences of the first result from the exact values, by name: "loss", "gradient", "target_gradient"."""
        return {difference.of: difference for difference in self.compare(self.got, self.question.exact)}


def require_gradients(value: object, arguments: tuple[object, ...], gradients: Gradients) -> None:
    """Check that each result in the value of an act has all gradients, with the shapes and dtypes of the inputs.

    An isolated process could leave out a gradient. Without this check, crossent would then not compare the gradient.

    Args:
        value: the value of the act.
        arguments: the arguments of the act, which include the inputs of the calls.
        gradients: the names of the gradients that the subject can compute.

    Raises:
        ValueError: a gradient is missing, or has another shape or dtype than the tensor it belongs to.
    """
    given = _each(Inputs, arguments)
    for result in _each(Result, value):
        if given and not any(_has_gradients(result, inputs, gradients) for inputs in given):
            raise ValueError("a gradient is missing, or has another shape or dtype than the tensor it belongs to")


def _each(kind: type[S], value: object) -> list[S]:
    """Return all objects of a class in a value: the value itself, or objects in tuples, lists and :class:`Call`."""
    if isinstance(value, kind):
        return [value]
    if isinstance(value, Call):
        return _each(kind, value.result)
    return [one for part in value for one in _each(kind, part)] if isinstance(value, (tuple, list)) else []


def _has_gradients(result: Result, inputs: Inputs, gradients: Gradients) -> bool:
    """Return whether a result has all gradients, with the shapes and dtypes of these inputs."""
    if result.loss.shape != inputs.upstream.shape:  # `misshapen` reports the wrong shape
        return True
    leaves = inputs.leaves if "gradient" in gradients else {}
    parts = {name: result.parts.get(name) for name in leaves if name in gradients}
    return all(
        part is not None and part.shape == leaves[name].shape and part.dtype == leaves[name].dtype
        for name, part in parts.items()
    )


def misshapen(trial: Trial, loss: object, expected: Exact, device: torch.device | None = None) -> Problem | None:
    """Return the problem with the type, shape, dtype or device of a loss, or None.

    Args:
        trial: the subject on the case.
        loss: the value that the subject returned.
        expected: the exact values, with the shape and the dtype of the loss.
        device: the device on which the loss must be; by default, the device of the question.
    """
    if not isinstance(loss, Tensor) or loss.layout != torch.strided:
        return Problem("wrong", f"got a {type(loss).__name__}; expected a dense torch.Tensor")
    dtype, device = trial.subject.result_dtype(expected.dtype), device or torch.device(trial.question.device)
    if (loss.dtype, tuple(loss.shape), loss.device) == (dtype, expected.shape, device):
        return None
    declare = "\nIf float32 is intended: --without half_result" if widens_halves(trial) else ""
    return Problem("wrong", f"got {_description(loss)}; expected {dtype} {expected.shape}{_on(device)}{declare}")


def widens_halves(trial: Trial) -> bool:
    """Return whether the first loss is float32 instead of float16 or bfloat16, but has the right shape."""
    loss, exact = trial.got.loss, trial.question.exact
    return (loss.dtype, tuple(loss.shape)) == (torch.float32, exact.shape) and exact.dtype in HALF_DTYPES


def _description(tensor: Tensor) -> str:
    """Return the dtype and the shape of a tensor as text, and its device if the device is no CPU."""
    return f"{tensor.dtype} {tuple(tensor.shape)}{_on(tensor.device)}"


def _on(device: torch.device) -> str:
    """Return " on " and the name of a device, or "" for a CPU."""
    return "" if device.type == "cpu" else f" on {device}"
