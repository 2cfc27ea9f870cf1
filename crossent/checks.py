"""Checks: one property of a subject on a case.

Here, that its loss and its gradient are the exact ones, within the bound that its contract allows. The exact answer is
the oracle's, not torch's: bfloat16 logits with p = 0.999 give torch a loss of exactly 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossent.arithmetic import Ball
from crossent.bounds import Bounds, Contract, Grade, Promise, Terms, contract
from crossent.cases import Inputs, bits
from crossent.oracle import Arguments, answer
from crossent.rounding import FORMATS, Array

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Result:
    """What a cross-entropy gave for one case."""

    loss: Tensor
    gradient: Tensor | None = None
    target_gradient: Tensor | None = None

    @property
    def digest(self) -> str:
        """A checksum of every bit of it, whatever NaN is made of."""
        checksum = 0
        for tensor in (self.loss, self.gradient, self.target_gradient):
            if tensor is not None:
                checksum = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), checksum)
                checksum = zlib.crc32(bits(tensor.where(~tensor.isnan(), torch.nan)).tobytes(), checksum)
        return f"{checksum:08x}"


@dataclass(frozen=True)
class Expected:
    """What a case should give, and what the bounds are made of.

    Attributes:
        shape: of the loss.
        dtype: of the loss.
        logits_dtype: the name of the logits' own.
        loss: (R, 1), or (1, 1) where the reduction leaves one number.
        gradient: (R, C).
        target_gradient: (R, C), or None for index targets.
        terms: the case as rows of float64 numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    logits_dtype: str
    loss: Ball
    gradient: Ball
    target_gradient: Ball | None
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
        check: "loss", "gradient" or "target_gradient".
        dtype: of the result.
        index: of the worst element in the result.
        radius: what the exact answer itself may be off by.
        bound: what rounding allows there, and the radius.
        error: 0 for equal infinities and for two NaN, infinite for NaN against a number.
        ratio: error ÷ bound, so 1 is the limit.
        ulp: the error in units of the result's last place at the exact value.
        elements, mismatched: how many there are, and how many of them are beyond their bound.
        not_judged: how many of them have no bound, for each reason.
        vacuous: whether zeros, a constant, or the gradient without its softmax would pass too: no evidence.
    """

    check: str
    dtype: str
    index: tuple[int, ...]
    got: float
    exact: float
    radius: float
    bound: float
    error: float
    ratio: float
    ulp: float
    elements: int
    mismatched: int
    not_judged: dict[str, int]
    vacuous: bool

    def __str__(self) -> str:
        relative = f"{self.error / abs(self.exact):.3g}" if self.exact else "inf"
        where = f" at index {self.index}" if self.index else ""
        return (
            f"Mismatched elements: {self.mismatched} / {self.elements} ({100 * self.mismatched / self.elements:.1f}%)\n"
            f"Greatest absolute difference: {self.error:.6g}{where} (up to {self.bound:.3g} allowed)\n"
            f"Relative difference there: {relative}, {self.ulp:.3g} ulp"
        )


def evaluate(loss: Loss, inputs: Inputs, *, gradient: bool = True, target_gradient: bool = True) -> Result:
    """The loss and, where wanted, the gradients of logits and target probabilities under the upstream gradient."""
    # The same memory: :func:`changed` sees a write.
    logits = inputs.logits.detach().requires_grad_(gradient)
    dense = gradient and target_gradient and inputs.target.is_floating_point()
    target = inputs.target.detach().requires_grad_(dense)
    value = loss(logits, target, **inputs.options)
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise TypeError(f"the loss is a {type(value).__name__}; wanted is a dense torch.Tensor")
    if value.is_complex():
        raise TypeError(f"the loss is {value.dtype}; wanted is a real number")
    if gradient and not value.requires_grad:
        raise TypeError("the loss is cut off from the logits: it has no gradient")
    if not gradient or value.shape != inputs.upstream.shape:  # a wrong shape is for :func:`misshapen` to say
        return Result(value.detach())
    wanted = [logits, target] if dense else [logits]
    gradients = torch.autograd.grad(value, wanted, inputs.upstream.to(value.dtype), allow_unused=True)
    for name, one in zip(("logits", "target probabilities"), gradients, strict=False):
        if one is None:
            raise TypeError(f"the loss is cut off from the {name}: it has no gradient")
    return Result(value.detach(), *gradients)


def expect(inputs: Inputs) -> Expected:
    """The exact answer to a case."""
    terms = terms_of(inputs)
    # float32 holds what half precision holds, and tells the oracle that float64 is enough for it.
    narrow = np.float64 if torch.float64 in (inputs.logits.dtype, inputs.target.dtype) else np.float32
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
    blocks = list(exact.gradients())
    empty = np.empty((0, terms.logits.shape[1]))

    def joined(balls: list[Ball]) -> Ball:
        return Ball(*(np.concatenate([empty, *(getattr(b, name) for b in balls)]) for name in ("hi", "lo", "radius")))

    gradient = joined([of_logits for _, of_logits, _ in blocks])
    target_gradient = None
    if terms.probabilities is not None:
        target_gradient = joined([of_target for _, _, of_target in blocks if of_target is not None])
    loss = Ball(*(np.reshape(getattr(exact.loss, name), (-1, 1)) for name in ("hi", "lo", "radius")))
    shape = tuple(inputs.upstream.shape)
    return Expected(shape, dtype, _name(inputs.logits), loss, gradient, target_gradient, terms)


def changed(after: Inputs, before: Inputs) -> str | None:
    """Which argument no longer holds what it was given, or None."""
    none = torch.empty(0)
    for name, one, two in (
        ("input", after.logits, before.logits),
        ("target", after.target, before.target),
        ("weight", after.options.get("weight", none), before.options.get("weight", none)),
    ):
        if one.shape != two.shape or not bool(((one == two) | (one.isnan() & two.isnan())).all()):
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


def compare(
    got: Result, expected: Expected, grade: Grade = "A", promise: Promise = "eager", dtype: str | None = None
) -> list[Difference]:
    """The worst difference of the loss and of each gradient that there is, under the contract of a grade.

    The result must have passed :func:`misshapen`. `dtype` is what is computed in, where that is not the logits'.
    """
    device, rows = got.loss.device.type, len(expected.terms.logits)
    dtype = dtype or expected.logits_dtype
    return compare_under(contract(promise, grade, dtype, device=device, rows=rows), got, expected)


def compare_under(promised: Contract, got: Result, expected: Expected) -> list[Difference]:
    """The same under any contract. Each result is stored in its own dtype, which need not be the logits'."""
    differences = []
    for check in ("loss", "gradient", "target_gradient"):
        tensor, exact = getattr(got, check), getattr(expected, check)
        if tensor is not None and exact is not None:
            bounds = expected.bounds(replace(promised, storage=FORMATS[_name(tensor)]))
            differences.append(_worst(check, tensor, exact, bounds))
    return differences


def reached(got: Result, expected: Expected, promise: Promise = "eager", dtype: str | None = None) -> Grade:
    """The grade that a result reaches: that of the tightest contract that it keeps."""
    for grade in ("A", "B"):
        if all(difference.ratio <= 1 for difference in compare(got, expected, grade, promise, dtype)):
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
        target_format=FORMATS.get(_name(inputs.target)),
    )


def _log_sum(logits: Array) -> Array:
    """`log Σ exp(x - max x)`: the largest term is one, and log1p of the others keeps every digit of a small one."""
    if logits.size == 0:
        return np.zeros(len(logits))
    with np.errstate(invalid="ignore", over="ignore"):  # a gap beyond float64 is -inf, and its exponential 0
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


def _worst(check: str, tensor: Tensor, exact: Ball, bounds: Bounds) -> Difference:
    """The element with the largest ratio; a bound is no excuse where the answer is NaN or infinite."""
    storage = FORMATS[_name(tensor)]
    got = tensor.reshape(-1, 1).double().cpu().numpy() if check == "loss" else _rows(tensor)
    if got.size == 0:
        return Difference(check, storage.name, (), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, {}, vacuous=True)
    with np.errstate(all="ignore"):  # a quotient may overflow: an error of 1e308 where 1e-16 is allowed
        error = exact.distance(got)
        special = ~np.isfinite(exact.hi)
        bound = getattr(bounds, check).reshape(got.shape)
        allowed = np.where(special, 0.0, np.where(np.isnan(bound), np.inf, bound)) + exact.radius
        ratio = np.where(error > 0, np.where(np.isinf(allowed), 0.0, error / allowed), 0.0)
        answers = [np.zeros_like(got)]
        if got.size > 1 and not special.all():
            answers.append(np.full_like(got, np.median(exact.hi[~special])))
        if check == "gradient":
            answers.append(bounds.target_term)
        vacuous = any((exact.distance(answer) <= allowed).all() for answer in answers)
    row, column = map(int, np.unravel_index(int(ratio.argmax()), ratio.shape))
    return Difference(
        check,
        storage.name,
        index=_index(tensor, row, column) if check != "loss" else _unravelled(row, tuple(tensor.shape)),
        got=float(got[row, column]),
        exact=float(exact.hi[row, column]),
        radius=float(exact.radius[row, column]),
        bound=float(allowed[row, column]),
        error=float(error[row, column]),
        ratio=float(ratio[row, column]),
        ulp=float(error[row, column]) / storage.last_place(float(exact.hi[row, column])),
        elements=got.size,
        mismatched=int((ratio > 1).sum()),
        not_judged=_not_judged(check, allowed, exact, bounds),
        vacuous=vacuous,
    )


def _not_judged(check: str, allowed: Array, exact: Ball, bounds: Bounds) -> dict[str, int]:
    if not np.isinf(allowed).any():
        return {}
    unknown = np.isinf(exact.radius)
    counts = {"no exact answer": int(unknown.sum())}
    # Which no input should reach: the soak has none of them.
    counts["the bound is not a number"] = int(np.isnan(getattr(bounds, check)).sum())
    for reason, where in bounds.open(check).items():
        counts[reason] = int((where.reshape(allowed.shape) & np.isinf(allowed) & ~unknown).sum())
    return {reason: count for reason, count in counts.items() if count}


def _index(tensor: Tensor, row: int, column: int) -> tuple[int, ...]:
    """Where the element of a row and a class stands in a tensor with the class axis where torch has it."""
    if tensor.dim() == 1:
        return (column,)
    first, *further = _unravelled(row, (tensor.shape[0], *tensor.shape[2:]))
    return first, column, *further


def _unravelled(row: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, np.unravel_index(row, shape)))
