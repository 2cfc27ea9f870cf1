"""Checks: one property of a subject on a case.

Here, that its loss and its gradient are the exact ones, within the bound that its contract allows. The exact answer is
the oracle's, not torch's: bfloat16 logits with p = 0.999 give torch a loss of exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.arithmetic import Ball
from crossent.bounds import Bounds, Contract, Grade, Promise, Terms, contract
from crossent.cases import Inputs
from crossent.oracle import Arguments, answer
from crossent.rounding import FORMATS, Array, Format

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Result:
    """What a cross-entropy gave for one case."""

    loss: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class Expected:
    """What a case should give, and what the bounds are made of.

    Attributes:
        shape: of the loss.
        dtype: of the loss.
        loss: (R, 1), or (1, 1) where the reduction leaves one number.
        gradient: (R, C).
        terms: the case as rows of float64 numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    loss: Ball
    gradient: Ball
    terms: Terms
    _bounds: dict[Contract, Bounds] = field(default_factory=dict)

    def bounds(self, contract: Contract) -> Bounds:
        """What the contract allows: made once for all subjects that promise it."""
        if contract not in self._bounds:
            self._bounds[contract] = Bounds(self.terms, contract)
        return self._bounds[contract]


@dataclass(frozen=True)
class Difference:
    """How far one result is from the exact one: the worst element, its index, and the bound there.

    Attributes:
        error: 0 for equal infinities and for two NaN, infinite for NaN against a number.
        ratio: error ÷ bound, so 1 is the limit.
        ulp: the error in units of the result's last place at the expected value.
        judged: how many elements have a bound.
        not_judged: how many have none, for each reason.
        vacuous: whether zeros, a constant, or the gradient without its softmax would pass too: no evidence.
    """

    check: str
    index: tuple[int, ...]
    got: float
    expected: float
    bound: float
    error: float
    ratio: float
    ulp: float
    judged: int
    not_judged: dict[str, int]
    vacuous: bool

    def __str__(self) -> str:
        where = f" at index {self.index}" if self.index else ""
        return (
            f"got {self.got!r}, exact is {self.expected!r}{where}: "
            f"difference {self.error:.3g}, allowed {self.bound:.3g}"
        )


def evaluate(loss: Loss, inputs: Inputs, *, gradient: bool = True) -> Result:
    """The loss and, where wanted, the gradient of the logits under the case's upstream gradient."""
    logits = inputs.logits.detach().requires_grad_(gradient)  # the same memory: :func:`changed` sees a write
    value = loss(logits, inputs.target, **inputs.options)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise TypeError(f"the loss is a {type(value).__name__}; wanted is a dense torch.Tensor")
    if gradient and not value.requires_grad:
        raise TypeError("the loss is cut off from the logits: it has no gradient")
    if not gradient or value.shape != inputs.upstream.shape:  # a wrong shape is for :func:`misshapen` to say
        return Result(value.detach(), None)
    (of_logits,) = torch.autograd.grad(value, logits, inputs.upstream.to(value.dtype))
    return Result(value.detach(), of_logits)


def expect(inputs: Inputs) -> Expected:
    """The exact answer to a case."""
    terms = terms_of(inputs)
    # float32 holds what half precision holds, and tells the oracle that float64 is enough for it.
    narrow = np.float64 if inputs.logits.dtype == torch.float64 else np.float32
    given = {"probabilities": terms.probabilities, "weight": terms.weight}
    exact = answer(
        Arguments(
            terms.logits.astype(narrow),
            index=None if inputs.target.is_floating_point() else _indices(inputs.target),
            **{name: None if array is None else array.astype(narrow) for name, array in given.items()},
            ignore_index=inputs.options.get("ignore_index", -100),
            reduction=terms.reduction,
            label_smoothing=terms.label_smoothing,
            upstream=terms.upstream if terms.reduction == "none" else inputs.upstream.double().item(),
        )
    )
    dtype = inputs.logits.dtype
    if inputs.target.is_floating_point():
        dtype = torch.promote_types(dtype, inputs.target.dtype)
    blocks = [gradient for _, gradient, _ in exact.gradients()]
    empty = np.empty((0, terms.logits.shape[1]))
    gradient = Ball(*(np.concatenate([empty, *(getattr(b, name) for b in blocks)]) for name in ("hi", "lo", "radius")))
    loss = Ball(*(np.reshape(getattr(exact.loss, name), (-1, 1)) for name in ("hi", "lo", "radius")))
    shape = tuple(inputs.upstream.shape)
    return Expected(shape, dtype, loss, gradient, terms)


def changed(after: Inputs, before: Inputs) -> str | None:
    """Which argument no longer holds what it was given, or None."""
    none = torch.empty(0)
    for name, one, two in (
        ("input", after.logits, before.logits),
        ("target", after.target, before.target),
        ("weight", after.options.get("weight", none), before.options.get("weight", none)),
    ):
        if not bool(((one == two) | (one.isnan() & two.isnan())).all()):
            return name
    return None


def misshapen(got: Result, expected: Expected, dtype: torch.dtype | None = None) -> str | None:
    """What is wrong with the shape or the dtype of the loss, or None: looked at before its numbers.

    `dtype` is that of a subject whose results have their own, whatever the logits'.
    """
    dtype = dtype or expected.dtype
    if tuple(got.loss.shape) == expected.shape and got.loss.dtype == dtype:
        return None
    return f"got {got.loss.dtype} {tuple(got.loss.shape)}; expected {dtype} {expected.shape}"


def compare(got: Result, expected: Expected, grade: Grade = "A", promise: Promise = "eager") -> list[Difference]:
    """The worst difference of the loss and, where there is one, of the gradient, under the contract of a grade.

    The result must have passed :func:`misshapen`.
    """
    rows = len(expected.terms.logits)
    return compare_under(
        contract(promise, grade, _name(got.loss), device=got.loss.device.type, rows=rows), got, expected
    )


def compare_under(promised: Contract, got: Result, expected: Expected) -> list[Difference]:
    """The same under a contract."""
    loss = got.loss.reshape(-1, 1).double().cpu().numpy()
    differences = [_worst("loss", loss, expected.loss, expected.bounds(promised), promised.storage)]
    if got.gradient is not None:
        # A gradient has the dtype of the logits, also where the loss has a wider one.
        promised = replace(promised, storage=FORMATS[_name(got.gradient)])
        gradient = _rows(got.gradient)
        bounds = expected.bounds(promised)
        differences.append(_worst("gradient", gradient, expected.gradient, bounds, promised.storage))
    return differences


def reached(got: Result, expected: Expected, promise: Promise = "eager") -> Grade:
    """The grade that a result reaches: that of the tightest contract that it keeps."""
    for grade in ("A", "B"):
        if all(difference.ratio <= 1 for difference in compare(got, expected, grade, promise)):
            return grade
    return "F"


def terms_of(inputs: Inputs) -> Terms:
    """A case as rows of float64 numbers, which hold all of its values exactly."""
    logits = _rows(inputs.logits)
    options = inputs.options
    index = probabilities = None
    kept = np.ones(len(logits), bool)
    if inputs.target.is_floating_point():
        probabilities = _rows(inputs.target)
    else:
        index = _indices(inputs.target)
        kept = index != options.get("ignore_index", -100)
        index = np.where(kept, index, 0)
    upstream = inputs.upstream.double().cpu().numpy().reshape(-1)
    return Terms(
        logits=logits,
        log_sum=_log_sum(logits),
        index=index,
        kept=kept,
        probabilities=probabilities,
        weight=options["weight"].double().cpu().numpy() if "weight" in options else None,
        label_smoothing=options["label_smoothing"],
        reduction=options["reduction"],
        upstream=np.broadcast_to(upstream, (len(logits),)),
    )


def _log_sum(logits: Array) -> Array:
    """`log Σ exp(x - max x)`: the largest term is one, and log1p of the others keeps every digit of a small one."""
    if logits.size == 0:
        return np.zeros(len(logits))
    with np.errstate(invalid="ignore"):
        at = np.arange(len(logits)), logits.argmax(1)
        exponentials = np.exp(logits - logits[at][:, None])
    exponentials[at] = np.where(np.isnan(exponentials[at]), np.nan, 0.0)
    return np.asarray(np.log1p(exponentials.sum(1)))


def _rows(tensor: Tensor) -> Array:
    """(…, C, …) to (R, C), in float64."""
    classes = tensor.shape[min(1, tensor.dim() - 1)]
    last = tensor.movedim(1, -1) if tensor.dim() > 1 else tensor
    rows: Array = last.reshape(-1, classes).detach().double().cpu().numpy()
    return rows


def _indices(target: Tensor) -> NDArray[np.int64]:
    indices: NDArray[np.int64] = target.long().cpu().numpy().reshape(-1)
    return indices


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _worst(check: Literal["loss", "gradient"], got: Array, exact: Ball, bounds: Bounds, storage: Format) -> Difference:
    """The element with the largest ratio; a bound is no excuse where the answer is NaN or infinite."""
    if got.size == 0:
        return Difference(check, (), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, {}, vacuous=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = exact.distance(got)
        special = ~np.isfinite(exact.hi)
        bound = getattr(bounds, check).reshape(got.shape)
        allowed = np.where(special, 0.0, bound) + exact.radius
        ratio = np.where(error > 0, np.where(np.isinf(allowed), 0.0, error / allowed), 0.0)
        answers = [np.zeros_like(got)]
        if got.size > 1 and not special.all():
            answers.append(np.full_like(got, np.median(exact.hi[~special])))
        if check == "gradient":
            answers.append(bounds.target_term)
        vacuous = any((exact.distance(answer) <= allowed).all() for answer in answers)
    at = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return Difference(
        check,
        index=tuple(map(int, at)),
        got=float(got[at]),
        expected=float(exact.hi[at]),
        bound=float(allowed[at]),
        error=float(error[at]),
        ratio=float(ratio[at]),
        ulp=float(error[at]) / storage.last_place(float(exact.hi[at])),
        judged=int(np.isfinite(allowed).sum()),
        not_judged=_not_judged(check, allowed, exact, bounds),
        vacuous=vacuous,
    )


def _not_judged(check: Literal["loss", "gradient"], allowed: Array, exact: Ball, bounds: Bounds) -> dict[str, int]:
    if not np.isinf(allowed).any():
        return {}
    unknown = np.isinf(exact.radius)
    counts = {"no exact answer": int(unknown.sum())}
    for reason, where in bounds.open(check).items():
        counts[reason] = int((where.reshape(allowed.shape) & np.isinf(allowed) & ~unknown).sum())
    return {reason: count for reason, count in counts.items() if count}
