"""Differences: how far a result is from the expected one, and how far rounding allows it to be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.formats import FORMATS, Array
from crossent.numerics.oracle.arithmetic import Ball
from crossent.trials.call import Result
from crossent.trials.exact import Exact, name_of, rows_of

# What has a number for each row, or one in all; the others have one for each logit.
BY_ROW = ("loss", "tangent", "upstream_gradient")


@dataclass(frozen=True)
class Difference:
    """How far one result is from the exact one: the worst element, its index, and the bound there.

    Attributes:
        of: what is compared: "loss", "gradient", "target_gradient", or a derivative of these.
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

    of: str
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


def compare(contract: Contract, got: Result, exact: Exact) -> list[Difference]:
    """Return the worst difference of the loss and of each gradient of a result, under a contract.

    The result has the shape and dtype that it should have: see `misshapen` in :mod:`crossent.trials.trial`.
    """
    each = bounds_of(contract, got, exact)
    values = {part: getattr(exact, part) for part in each}
    if "gradient" in values and got.gradient is not None:
        values["gradient"] = _or_zero(values["gradient"], exact.terms.kept, rows_of(got.gradient))
    return [worst(part, getattr(got, part), values[part], bounds) for part, bounds in each.items()]


def bounds_of(contract: Contract, got: Result, exact: Exact) -> dict[str, Bounds]:
    """Return the bounds of each part of a result. A part is stored in its own dtype, which need not be the logits'."""
    found = {}
    for part in ("loss", "gradient", "target_gradient"):
        tensor, value = getattr(got, part), getattr(exact, part)
        if tensor is not None and value is not None:
            found[part] = exact.bounds(replace(contract, storage=FORMATS[name_of(tensor)]))
    return found


def _or_zero(exact: Ball, kept: NDArray[np.bool_], got: Array) -> Ball:
    """The exact gradient, which is 0 in an ignored row without a softmax where that is what came.

    There torch has NaN, and its page says that such a row does not contribute (pytorch#11551): either is right.
    """
    zero = np.reshape(~kept & np.isnan(exact.hi).all(axis=1) & (got == 0).all(axis=1), (-1, 1))
    return Ball(*(np.where(zero, 0.0, part) for part in (exact.hi, exact.lo, exact.radius))) if zero.any() else exact


def worst(check: str, tensor: Tensor, exact: Ball, bounds: Bounds) -> Difference:
    """The element with the largest ratio; a bound is no excuse where the answer is NaN or infinite.

    `check` is an attribute of the bounds.
    """
    by_row = check in BY_ROW
    got = tensor.reshape(-1, 1).double().cpu().numpy() if by_row else rows_of(tensor)
    allowed, vacuous = allowance(check, exact, bounds)
    found = difference(check, name_of(tensor), got, exact, allowed)
    index = (
        (_unravelled(found.index[0], tuple(tensor.shape)) if by_row else _index(tensor, *found.index))
        if got.size
        else ()
    )
    return replace(found, index=index, vacuous=vacuous, not_judged=not_judged(check, allowed, exact, bounds))


def allowance(check: str, exact: Ball, bounds: Bounds) -> tuple[Array, bool]:
    """What each number may be off by, as large as the exact ones; and whether what is no evidence would pass."""
    with np.errstate(all="ignore"):
        special = ~np.isfinite(exact.hi)
        bound = getattr(bounds, check).reshape(exact.hi.shape)
        allowed = np.where(special, 0.0, np.where(np.isnan(bound), np.inf, bound)) + exact.radius
        answers = [np.zeros_like(exact.hi)]
        if exact.hi.size > 1 and not special.all():
            answers.append(np.full_like(exact.hi, np.median(exact.hi[~special])))
        answers += bounds.vacuous_answers(check)
        return allowed, any((exact.distance(answer) <= allowed).all() for answer in answers)


def difference(check: str, dtype: str, got: Array, exact: Ball, allowed: Array) -> Difference:
    """The worst of some numbers, (R, K), that may be off by what is allowed; its index is that row and column."""
    if got.size == 0:
        return Difference(check, dtype, (), 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, {}, vacuous=True)
    with np.errstate(all="ignore"):  # a quotient may overflow: an error of 1e308 where 1e-16 is allowed
        error = exact.distance(got)
        ratio = np.where(error > 0, np.where(np.isinf(allowed), 0.0, error / allowed), 0.0)
    at = row, column = tuple(map(int, np.unravel_index(int(ratio.argmax()), ratio.shape)))
    return Difference(
        check,
        dtype,
        index=(row, column),
        got=float(got[at]),
        exact=float(exact.hi[at]),
        radius=float(exact.radius[at]),
        bound=float(allowed[at]),
        error=float(error[at]),
        ratio=float(ratio[at]),
        ulp=float(error[at]) / FORMATS[dtype].last_place(float(exact.hi[at])),
        elements=got.size,
        mismatched=int((ratio > 1).sum()),
        not_judged={},
        vacuous=False,
    )


def not_judged(check: str, allowed: Array, exact: Ball, bounds: Bounds) -> dict[str, int]:
    """How many numbers have no bound, for each reason."""
    if not np.isinf(allowed).any():
        return {}
    unknown = np.isinf(exact.radius)
    counts = {"there is no exact answer": int(unknown.sum())}
    # Which no input should reach: the soak has none of them.
    counts["the bound is not a number"] = int(np.isnan(getattr(bounds, check)).sum())
    for reason, where in bounds.unbounded(check).items():
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
