"""The exact values of a call, and its arguments as rows, from which `numerics.bounds` computes error bounds.

In the shapes, R is the number of rows, and C the number of classes. Logits (N, C, d1, …) have `R = N · d1 · …` rows. A
linear cross-entropy has `R = N` rows, hidden states of H numbers, and V classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.numerics.bounds.call import effective_contract
from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.derivatives import DerivativeBounds
from crossent.numerics.bounds.linear import LinearBounds, LinearTerms
from crossent.numerics.bounds.linear_contracts import LinearContract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.bounds.unbounded import Reason, unbounded
from crossent.numerics.formats import FORMATS, Array
from crossent.numerics.linear_call import LinearCall
from crossent.numerics.oracle.answer import answer
from crossent.numerics.oracle.arguments import Arguments
from crossent.numerics.oracle.arithmetic import Ball
from crossent.numerics.oracle.linear import linear_answer

AnyContract = Contract | LinearContract


class LinearResultBounds:
    """The error bounds of a linear cross-entropy under a contract.

    Each bound has the name of its exact value in :class:`Exact`, such as `gradient`.
    `terms` has the arguments of the cross-entropy of the logits, as rows.
    """

    def __init__(self, linear_terms: LinearTerms, contract: LinearContract) -> None:
        self._bounds, self._linear_terms = LinearBounds(linear_terms, contract), linear_terms
        self.terms, self.contract = linear_terms.rows, contract

    @property
    def loss(self) -> Array:
        """The bound of the loss: (R,), or () for the reductions "mean" and "sum"."""
        return self._bounds.loss

    @property
    def gradient(self) -> Array:
        """The bound of the gradient of the input, (N, H)."""
        return self._bounds.grad_input

    @property
    def weight_gradient(self) -> Array:
        """The bound of the gradient of `linear_weight`, (V, H)."""
        return self._bounds.grad_weight

    @property
    def bias_gradient(self) -> Array:
        """The bound of the gradient of `linear_bias`, (1, V)."""
        return self._bounds.grad_bias[None]

    def vacuous_results(self, name: str) -> list[Array]:
        """Return a list of one wrong result, the gradient `name` without the softmax. For the loss, return [].

        If this wrong gradient is within the bounds, passing is no evidence.
        """
        if name == "loss":
            return []
        hidden, weight = self._linear_terms.input, self._linear_terms.weight
        of_target = self._bounds.of_logits.vacuous_results("gradient")
        with np.errstate(all="ignore"):
            made = {
                "gradient": lambda d: d @ weight,
                "weight_gradient": lambda d: d.T @ hidden,
                "bias_gradient": lambda d: d.sum(0, keepdims=True),
            }
            return [made[name](d) for d in of_target]

    def without_bound(self, name: str) -> dict[Reason, NDArray[np.bool_]]:
        """Return, for each reason, a mask of the infinite bounds of the result `name` that have this reason."""
        overflow: Reason = "an intermediate may overflow"
        infinite, rows = np.isinf(getattr(self, name)), Bounds(self.terms, self.contract.loss)
        if rows.may_divide_by_zero:
            return {"the denominator may be zero": infinite}
        # Where the bound for exact logits is infinite, the bound for inexact logits is infinite for the same reason.
        reasons = unbounded(rows, "loss") if name == "loss" else {}
        other = [where for reason, where in reasons.items() if reason != overflow]
        return {**reasons, overflow: np.logical_and.reduce([infinite, *map(np.logical_not, other)])}


@dataclass(frozen=True)
class Exact:
    """The exact values of a case, and its arguments, from which the error bounds follow. A missing gradient is None.

    Attributes:
        shape, dtype: the shape and the dtype of the loss.
        logits_dtype: the name of the dtype of the logits, or of the hidden states of a linear cross-entropy.
        loss: the loss, (R, 1); (1, 1) for the reductions "mean" and "sum".
        gradient: the gradient of the input: (R, C) for logits, (N, H) for hidden states.
        target_gradient: the gradient of the target probabilities, (R, C).
        terms: the arguments of the cross-entropy of the logits, as rows of float64 numbers.
        weight_gradient, bias_gradient: the gradients of `linear_weight`, (V, H), and `linear_bias`, (1, V).
        linear_terms: the arguments of a linear cross-entropy; None for a cross-entropy of logits.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    logits_dtype: str
    loss: Ball
    gradient: Ball
    target_gradient: Ball | None
    terms: Terms
    weight_gradient: Ball | None = None
    bias_gradient: Ball | None = None
    linear_terms: LinearTerms | None = None
    _bounds: dict[Contract, Bounds] = field(default_factory=dict)
    _linear_bounds: dict[LinearContract, LinearResultBounds] = field(default_factory=dict)

    @overload
    def bounds(self, contract: Contract) -> Bounds: ...

    @overload
    def bounds(self, contract: LinearContract) -> LinearResultBounds: ...

    def bounds(self, contract: AnyContract) -> Bounds | LinearResultBounds:
        """Return an object with the error bounds under a contract. Subjects with the same contract share the object."""
        if isinstance(contract, LinearContract):
            assert self.linear_terms is not None
            linear = self.effective_contract(contract)
            if linear not in self._linear_bounds:
                self._linear_bounds[linear] = LinearResultBounds(self.linear_terms, linear)
            return self._linear_bounds[linear]
        contract = self.effective_contract(contract)
        if contract not in self._bounds:
            like = (known for other, known in self._bounds.items() if other.in_any_order == contract.in_any_order)
            self._bounds[contract] = Bounds(self.terms, contract, next(like, None))
        return self._bounds[contract]

    @overload
    def effective_contract(self, contract: Contract) -> Contract: ...

    @overload
    def effective_contract(self, contract: LinearContract) -> LinearContract: ...

    def effective_contract(self, contract: AnyContract) -> AnyContract:
        """Return the contract, with a fixed value in each field that does not change the bounds of this case.

        Contracts that differ only in these fields become equal, so they share their bounds.
        """
        if isinstance(contract, LinearContract):
            return replace(contract, loss=replace(contract.loss, grade="A"))
        return effective_contract(contract, self.terms)

    def at(self, inputs: Inputs) -> Exact:
        """Return the same exact values with the error bounds of other inputs."""
        linear = None if self.linear_terms is None else _linear_terms_of(inputs)
        terms, dtype = terms_of(inputs) if linear is None else linear.rows, name_of(inputs.input)
        return replace(self, terms=terms, logits_dtype=dtype, linear_terms=linear, _bounds={}, _linear_bounds={})


@dataclass(frozen=True)
class ExactAlong:
    """The exact derivatives of the loss and of the gradient along a direction of the logits.

    Attributes:
        tangent: the derivative of the loss, (R, 1); (1, 1) for the reductions "mean" and "sum".
        second: the derivative of the gradient, (R, C).
        direction: the direction, (R, C).
        terms: the arguments as rows of float64 numbers.
    """

    tangent: Ball
    second: Ball
    direction: Array
    terms: Terms
    _bounds: dict[Contract, DerivativeBounds] = field(default_factory=dict)

    def bounds(self, contract: Contract) -> DerivativeBounds:
        """Return the error bounds under a contract."""
        contract = effective_contract(contract, self.terms)
        if contract not in self._bounds:
            self._bounds[contract] = DerivativeBounds(self.terms, contract, self.direction)
        return self._bounds[contract]


def solve_along(inputs: Inputs, direction: Tensor) -> ExactAlong:
    """Return the exact derivatives of a case along a direction, a tensor with the shape of the logits."""
    terms, along = terms_of(inputs), rows_of(direction)
    exact = answer(_arguments(inputs, terms))
    return ExactAlong(_column(exact.tangent(along)), exact.second(along), along, terms)


def solve(inputs: Inputs) -> Exact:
    """Return the exact values of a case."""
    if inputs.operation is LINEAR_CROSS_ENTROPY:
        return _solve_linear(inputs)
    terms = terms_of(inputs)
    exact = answer(_arguments(inputs, terms))
    blocks = list(exact.gradients())
    columns = terms.logits.shape[1:]
    gradient = Ball.joined([of_logits for _, of_logits, _ in blocks], columns)
    target_gradient = None
    if terms.probabilities is not None:
        target_gradient = Ball.joined([of_target for _, _, of_target in blocks if of_target is not None], columns)
    loss, shape, dtype = _column(exact.loss), tuple(inputs.upstream.shape), loss_dtype(inputs)
    return Exact(shape, dtype, name_of(inputs.input), loss, gradient, target_gradient, terms)


def _solve_linear(inputs: Inputs) -> Exact:
    exact, terms = linear_answer(_linear_call(inputs)), _linear_terms_of(inputs)
    bias = exact.grad_bias
    return Exact(
        tuple(inputs.upstream.shape),
        loss_dtype(inputs),
        name_of(inputs.input),
        _column(exact.loss),
        exact.grad_input,
        None,
        terms.rows,
        exact.grad_weight,
        None if bias is None else Ball(bias.hi[None], bias.lo[None], bias.radius[None]),
        terms,
    )


def _linear_terms_of(inputs: Inputs) -> LinearTerms:
    return LinearTerms.of(_linear_call(inputs), FORMATS.get(name_of(inputs.target)))


def _linear_call(inputs: Inputs) -> LinearCall:
    """Return the arguments of a linear cross-entropy for the oracle."""
    tensors = {name: value for name, value in inputs.options.items() if isinstance(value, Tensor)}
    narrow = np.float64 if torch.float64 in (inputs.input.dtype, inputs.target.dtype) else np.float32
    dense, upstream = inputs.target.is_floating_point(), inputs.upstream.cpu().double()

    def numbers(tensor: Tensor) -> Array:
        return np.asarray(tensor.detach().cpu().double().numpy().astype(narrow))

    return LinearCall(
        numbers(inputs.input),
        index=None if dense else _indices(inputs.target),
        probabilities=numbers(inputs.target) if dense else None,
        **{name: numbers(tensor) for name, tensor in tensors.items()},
        ignore_index=inputs.options.get("ignore_index", -100),
        reduction=inputs.options["reduction"],
        label_smoothing=inputs.options["label_smoothing"],
        upstream=upstream.numpy() if upstream.dim() else upstream.item(),
    )


def loss_dtype(inputs: Inputs) -> torch.dtype:
    """Return the dtype that torch gives the loss of these inputs."""
    dtype = inputs.input.dtype
    return torch.promote_types(dtype, inputs.target.dtype) if inputs.target.is_floating_point() else dtype


def _column(numbers: Ball) -> Ball:
    """Return the numbers as a column, (R, 1)."""
    return Ball(*(np.reshape(getattr(numbers, name), (-1, 1)) for name in ("hi", "lo", "radius")))


def _arguments(inputs: Inputs, terms: Terms) -> Arguments:
    """Return the arguments of a case for the oracle."""
    # float32 represents every float16 and bfloat16 number. With float32 arrays, the oracle can compute in float64.
    narrow = np.float64 if torch.float64 in (inputs.input.dtype, inputs.target.dtype) else np.float32
    given = {"probabilities": terms.probabilities, "weight": terms.weight}
    return Arguments(
        terms.logits.astype(narrow),
        index=None if inputs.target.is_floating_point() else _indices(inputs.target),
        **{name: None if array is None else array.astype(narrow) for name, array in given.items()},
        ignore_index=inputs.options.get("ignore_index", -100),
        reduction=terms.reduction,
        label_smoothing=inputs.options["label_smoothing"],
        upstream=terms.upstream if terms.reduction == "none" else inputs.upstream.cpu().double().item(),
    )


def terms_of(inputs: Inputs) -> Terms:
    """Return the arguments of a case as rows of float64 numbers. All numbers are exact, except `Terms.log_sum`."""
    logits = rows_of(inputs.input)
    options = inputs.options
    index = probabilities = None
    kept = np.ones(len(logits), bool)
    if inputs.target.is_floating_point():
        probabilities = rows_of(inputs.target)
    else:
        index = _indices(inputs.target)
        kept = index != options.get("ignore_index", -100)
        index = np.where(kept, index, 0)
    upstream = inputs.upstream.cpu().double().numpy().reshape(-1)
    return Terms(
        logits=logits,
        log_sum=_log_sum(logits),
        index=index,
        kept=kept,
        probabilities=probabilities,
        weight=options["weight"].cpu().double().numpy() if "weight" in options else None,
        label_smoothing=options["label_smoothing"],
        reduction=options["reduction"],
        upstream=np.broadcast_to(upstream, (len(logits),)),
        target_format=FORMATS.get(name_of(inputs.target)),
    )


def _log_sum(logits: Array) -> Array:
    """Return `log Σ exp(x - max x)` of each row."""
    if logits.size == 0:
        return np.zeros(len(logits))
    with np.errstate(invalid="ignore", over="ignore"):  # a difference may overflow to -inf, whose exponential is 0
        at = np.arange(len(logits)), logits.argmax(1)
        exponentials = np.exp(logits - logits[at][:, None])
    # the largest term is 1: `log1p` of the other terms loses no digits
    exponentials[at] = np.where(np.isnan(exponentials[at]), np.nan, 0.0)
    return np.asarray(np.log1p(exponentials.sum(1)))


def rows_of(tensor: Tensor) -> Array:
    """Return a tensor of shape (C), (N, C) or (N, C, d1, …) as an (R, C) array of float64 numbers."""
    classes = tensor.shape[min(1, tensor.dim() - 1)]
    last = tensor.movedim(1, -1) if tensor.dim() > 1 else tensor
    # contiguous: otherwise, the order in which numpy adds a row depends on the layout
    return np.ascontiguousarray(last.reshape(-1, classes).detach().resolve_neg().cpu().double().numpy())


def _indices(target: Tensor) -> NDArray[np.int64]:
    """Return the class indices, (R,)."""
    return np.asarray(target.long().cpu()).reshape(-1)


def name_of(tensor: Tensor) -> str:
    """Return the name of the dtype of a tensor, such as "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
