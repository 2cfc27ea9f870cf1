"""Relations: what a subject must give for other inputs, going by what it gave for these.

Of each it is known how the two results follow from one another; :mod:`crossent.trials.agreement` says how nearly
they must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import torch
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.intermediates import Terms
from crossent.numerics.formats import FORMATS, Array
from crossent.subjects.subject import Loss
from crossent.trials.agreement import (
    RESULT_PARTS,
    PartBalls,
    compare_results,
    exact_for,
    further_call,
    plus,
    stacked,
    times,
    with_radius,
)
from crossent.trials.call import Result
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference
from crossent.trials.exact import name_of, rows_of
from crossent.trials.trial import NotRunError, Problem, Trial


def _has_layout(case: Case) -> bool:
    spread = case.reduction == "none" and case.upstream not in ("rows", "rows_large") and case.rows > 1
    plain = ("contiguous", "target_contiguous", "weight_contiguous")
    return (case.layout, case.target_layout, case.weight_layout) != plain or spread  # upstream: of stride 0, or 2


@check(cost=Cost.CALLS, versus="other", applies=_has_layout)
def layout(trial: Trial) -> Iterator[Difference]:
    """Contiguous copies of logits, target, weight and upstream gradient give the same as the views of the case.

    pytorch#67167 and unsloth#10713: a target, and logits, that are read as if they were contiguous.
    """
    yield from compare_results(trial, with_radius(trial, further_call(trial, contiguous(trial.question.fresh()))))


def contiguous(given: Inputs) -> Inputs:
    """Copies that lie in memory as they are read."""
    return _each(given, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.rows > 0)
def shift(trial: Trial) -> Iterator[Difference]:
    """Logits that are all moved by a constant give the same: by one for all rows, and by another in each row.

    pytorch#38839: `m + log Σ` drowns what the row is about. The logits are rounded first, so that moving them is exact.
    """
    ways = shifted(trial.question.fresh())
    if not ways:
        raise NotRunError("gets logits that their dtype has no room to shift exactly")
    for way, (before, after) in ways.items():
        of_before, of_after = exact_for(trial, f"not {way}", before), exact_for(trial, way, after)
        moved = with_radius(trial, further_call(trial, after), of_after)
        yield from compare_results(trial, moved, further_call(trial, before), of_before, way=way)


def shifted(given: Inputs) -> dict[str, tuple[Inputs, Inputs]]:
    """Inputs with the rounded logits, and with the same ones moved, by how; none where the dtype has no room."""
    logits, dtype = rows_of(given.logits), name_of(given.logits)
    ways = {"shifted": True, "shifted row by row": False}
    moves = {way: shiftable(logits, dtype, common=common) for way, common in ways.items()}
    if not any(by.any() for _, by in moves.values()):
        return {}

    def of(rows: Array) -> Inputs:
        return replace(given, logits=_tensor(rows, given.logits))

    return {way: (of(rounded), of(rounded + by[:, None])) for way, (rounded, by) in moves.items()}


def shiftable(logits: Array, dtype: str, *, common: bool) -> tuple[Array, Array]:
    """The logits, (R, C), rounded so that a shift is exact, and the shift of each row, (R,); 0 where there is none.

    Magnitudes below `2^e` and a shift of `2^s`, `s >= e`, are rounded to multiples of `δ = 2^(s+1-p)`. Then they and
    their sums with the shift are multiples of δ up to `2^(s+1) = 2^p δ`, which a format of p bits holds as long as it
    reaches so far. `s = e + p/2` gives half of the bits to the logits and half to the shift.
    """
    p = FORMATS[dtype].precision
    size = np.where(np.isfinite(logits), np.abs(logits), 0.0).max(1, initial=1.0)
    if common:
        size = np.broadcast_to(size.max(initial=1.0), size.shape)
    e = np.frexp(size)[1]
    s = np.minimum(e + p // 2, np.frexp(FORMATS[dtype].largest)[1] - 2)
    possible = s >= e
    spacing = np.ldexp(1.0, s + 1 - p)[:, None]
    rounded = np.where(possible[:, None], np.rint(logits / spacing) * spacing, logits)
    signs = 1.0 if common else np.where(np.arange(len(size)) % 2, 1.0, -1.0)
    return rounded, np.where(possible, signs * np.ldexp(1.0, s), 0.0)


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.rows > 1)
def rows_permuted(trial: Trial) -> Iterator[Difference]:
    """Rows that come in another order give the same: turned round along the batch, and along each further dimension.

    One at a time: a kernel that mixes up two dimensions does so as well when both are turned.
    """
    inputs = trial.question.inputs
    dim = inputs.logits.dim()
    for axis in rows_axes(inputs):
        other = rows_turned(trial.question.fresh(), axis)
        back = _mapped(partial(_row_turned, axis=axis, dim=dim), further_call(trial, other))
        yield from compare_results(trial, with_radius(trial, back), way=f"turned along {axis}")


def rows_axes(given: Inputs) -> list[int]:
    """The dimensions of the logits along which there are rows to turn round."""
    return [axis for axis, size in enumerate(given.logits.shape) if axis != 1 and size > 1]


def rows_turned(given: Inputs, axis: int) -> Inputs:
    """The rows turned round along a dimension of the logits, each with its target and its upstream gradient."""
    dim = given.logits.dim()
    logits, target, upstream = (_row_turned(one, axis, dim) for one in (given.logits, given.target, given.upstream))
    return Inputs(logits, target, given.options, upstream)


def _row_turned(tensor: Tensor, axis: int, dim: int) -> Tensor:
    return tensor.flip(axis if tensor.dim() == dim else max(0, axis - 1)) if tensor.dim() else tensor


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.classes > 1)
def classes_permuted(trial: Trial) -> Iterator[Difference]:
    """Classes that come in another order give the same: turned round, and weights and true classes with them."""
    dim = trial.question.inputs.logits.dim()

    def turned(tensor: Tensor) -> Tensor:
        return tensor.flip(min(1, dim - 1)) if tensor.dim() == dim else tensor

    other = classes_turned(trial.question.fresh())
    yield from compare_results(trial, with_radius(trial, _mapped(turned, further_call(trial, other))))


def classes_turned(given: Inputs) -> Inputs:
    """The classes turned round, with weights, targets and an ignore_index that is one of them."""
    axis, options = min(1, given.logits.dim() - 1), dict(given.options)
    if "weight" in options:
        options["weight"] = options["weight"].flip(0)
    if given.target.is_floating_point():
        return replace(given, logits=given.logits.flip(axis), target=given.target.flip(axis), options=options)
    last, ignore_index = given.logits.shape[axis] - 1, options.get("ignore_index", -100)
    index = given.target.long()  # as uint8, -100 would be 156
    turned = last - index
    if 0 <= ignore_index <= last:
        options["ignore_index"] = last - ignore_index
    else:
        turned = torch.where(index == ignore_index, index, turned)
    return replace(given, logits=given.logits.flip(axis), target=turned.to(given.target.dtype), options=options)


@check(cost=Cost.CALLS, versus="other", applies=lambda case: len(case.sizes) > 1 and case.sizes[0] > 1)
def split(trial: Trial) -> Iterator[Difference]:
    """A batch in two uneven parts gives what it gives as a whole: rows one after another, a sum of sums, a mean.

    The mean is that of the parts' means by their denominators, `L = (D₁L₁ + D₂L₂)/D`, and the gradient of a part is
    multiplied by `D_i/D`. pytorch#185167 and Automodel#3803: an average of averages, and a sum of them.
    """
    parts: list[PartBalls] = []
    for name, (share, part) in zip(
        ("one part", "the other"), parted(trial.question.fresh(), trial.question.exact.terms), strict=True
    ):
        result = with_radius(trial, further_call(trial, part), exact_for(trial, name, part))
        parts.append({name: times(share, ball) for name, ball in result.items()})
    one, other = parts
    whole = {name: stacked(one[name], other[name]) for name in one}
    if trial.case.reduction != "none":
        whole["loss"] = plus(one["loss"], other["loss"])
    yield from compare_results(trial, whole)


def parted(given: Inputs, terms: Terms) -> list[tuple[Fraction, Inputs]]:
    """The two parts of a batch, and what their results are multiplied by.

    Raises:
        NotRunError: there are no two that have something to divide by.
    """
    at, shares = _parting(terms, len(given.logits))
    parts = []
    for rows, share in zip((slice(at), slice(at, None)), shares, strict=True):
        upstream = given.upstream[rows] if given.upstream.dim() else given.upstream
        part = replace(given, logits=given.logits[rows], target=given.target[rows], upstream=upstream)
        parts.append((share, part))
    return parts


def _parting(terms: Terms, size: int) -> tuple[int, tuple[Fraction, Fraction]]:
    """Where the batch is parted, at about a third, and what the parts' results are multiplied by."""
    for at in sorted(range(1, size), key=lambda at: abs(3 * at - size)):
        if terms.reduction != "mean":
            return at, (Fraction(1), Fraction(1))
        row = at * len(terms.kept) // size
        one, other = _denominator(terms, slice(row)), _denominator(terms, slice(row, None))
        if one and other and one + other:
            return at, (one / (one + other), other / (one + other))
    raise NotRunError("has nothing to divide by in one of any two parts of the batch")


def _denominator(terms: Terms, rows: slice) -> Fraction:
    """What the mean of some rows divides by, exactly."""
    kept = terms.kept[rows]
    if terms.index is None or terms.weight is None:
        return Fraction(int(kept.sum()))
    counts = np.bincount(terms.index[rows][kept], minlength=len(terms.weight)).tolist()
    return sum((count * Fraction(w) for count, w in zip(counts, terms.weight.tolist(), strict=True)), Fraction())


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.dtype in ("float16", "bfloat16"))
def widened(trial: Trial) -> Iterator[Difference]:
    """Half precision, widened to float32, gives the same.

    TransformerEngine#3193: a gradient that was kept in the bfloat16 memory of the logits before the loss was final.
    """
    other = wide(trial.question.fresh())
    yield from compare_results(
        trial, with_radius(trial, further_call(trial, other), exact_for(trial, "widened", other))
    )


def wide(given: Inputs) -> Inputs:
    """Half precision as float32, which holds the same numbers."""
    return _each(given, lambda tensor: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)


@check("gradient", "repeatable", dense_needs=["target_gradient"], cost=Cost.CALLS, versus="other")
def two_backwards(trial: Trial) -> Iterator[Problem]:
    """A graph can be differentiated twice, and two losses of the same logits do not disturb each other.

    Liger-Kernel#272 and #343: a loss that writes its gradient into the logits, and scales it there when it goes back.
    """
    other = of_other_classes(trial.question.fresh())
    alone = further_call(trial, other)
    one, two, last = trial.perform(backwards, trial.question.fresh(), other.copy())
    if last.digest != one.digest:
        yield Problem("not_repeated", "the same graph, differentiated again, gives another gradient")
    elif (one.digest, two.digest) != (trial.got.digest, alone.digest):
        yield Problem("disturbed", "two losses of the same logits have other bits than each of them alone")


def backwards(loss: Loss, inputs: Inputs, other: Inputs) -> tuple[Result, Result, Result]:
    """The act: two losses of the same logits, one after the other differentiated, and the first of them again."""
    logits, dense = inputs.logits.detach().requires_grad_(), inputs.target.is_floating_point()
    targets = [given.target.detach().requires_grad_(dense) for given in (inputs, other)]
    one, two = (loss(logits, target, **given.options) for target, given in zip(targets, (inputs, other), strict=True))

    def backward(value: Tensor, target: Tensor, upstream: Tensor) -> Result:
        wanted = [logits, target] if dense else [logits]
        gradients = torch.autograd.grad(value, wanted, upstream.to(value.dtype), retain_graph=True)
        return Result(value.detach(), *gradients).copy()  # at once: their memory may be written again

    results = backward(one, targets[0], inputs.upstream), backward(two, targets[1], inputs.upstream)
    backward(one, targets[0], -2 * inputs.upstream)  # what is scaled in place now is seen, where it was by 1 before
    return *results, backward(one, targets[0], inputs.upstream)


def of_other_classes(given: Inputs) -> Inputs:
    """The same logits, with targets and weights of the classes turned round."""
    turned = classes_turned(given)
    return replace(given, target=turned.target, options=turned.options)


def _each(given: Inputs, by: Callable[[Tensor], Tensor]) -> Inputs:
    options = {name: by(value) if isinstance(value, Tensor) else value for name, value in given.options.items()}
    return Inputs(by(given.logits), by(given.target), options, by(given.upstream))


def _mapped(by: Callable[[Tensor], Tensor], result: Result) -> Result:
    parts = ((name, getattr(result, name)) for name in RESULT_PARTS)
    return replace(result, **{name: by(part) for name, part in parts if part is not None})


def _tensor(rows: Array, like: Tensor) -> Tensor:
    """(R, C) as a tensor of another's shape, dtype and device: the inverse of :func:`rows_of`."""
    if like.dim() > 1:
        shape = like.shape[0], *like.shape[2:], like.shape[1]
        made = torch.from_numpy(rows.reshape(shape)).movedim(-1, 1)
    else:
        made = torch.from_numpy(rows.reshape(like.shape))
    return made.to(like.dtype).contiguous().to(like.device)
