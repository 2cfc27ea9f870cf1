"""Checks of relations between calls: a known change of the inputs causes a known change of the result.

:mod:`crossent.trials.agreement` compares the results: they must be equal up to the sum of their error bounds. Only
`two_backwards` compares bits.
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
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FORMATS, Array
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.subject import Loss
from crossent.trials.agreement import (
    RESULT_PARTS,
    PartBalls,
    compare_results,
    exact_for,
    further_call,
    plus,
    times,
    with_radius,
)
from crossent.trials.call import Result
from crossent.trials.check import EVERY_OPERATION, Cost, check
from crossent.trials.difference import Difference
from crossent.trials.exact import name_of, rows_of
from crossent.trials.trial import NotRunError, Problem, Trial


def _has_layout(case: Case) -> bool:
    # A case with `spread` has an upstream gradient with a stride of 0 or 2.
    spread = case.reduction == "none" and case.upstream not in ("rows", "rows_large") and case.rows > 1
    plain = ("contiguous", "target_contiguous", "weight_contiguous")
    return (case.layout, case.target_layout, case.weight_layout) != plain or spread


@check(cost=Cost.CALLS, versus="other", applies=_has_layout, operations=EVERY_OPERATION)
def layout(trial: Trial) -> Iterator[Difference]:
    """Strided logits, target, weight and upstream gradient give the same result as contiguous copies, up to rounding.

    pytorch#67167: a kernel read a strided target as if it were contiguous. unsloth#10713: the same with logits.
    """
    yield from compare_results(trial, with_radius(trial, further_call(trial, contiguous(trial.question.fresh()))))


def contiguous(given: Inputs) -> Inputs:
    """Return the inputs with a contiguous copy of each tensor."""
    return _each(given, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.rows > 0)
def shift(trial: Trial) -> Iterator[Difference]:
    """Adding a constant to all logits, or a different constant to each row, gives the same result up to rounding.

    pytorch#38839: in `m + log Σ_k exp(x_k - m)`, a large maximum `m` absorbs the digits of the logarithm. The check
    first rounds the logits, so that adding the constant is exact.
    """
    ways = shifted(trial.question.fresh())
    if not ways:
        raise NotRunError("receives logits that cannot be shifted exactly in their dtype")
    for way, (before, after) in ways.items():
        of_before, of_after = exact_for(trial, f"not {way}", before), exact_for(trial, way, after)
        moved = with_radius(trial, further_call(trial, after), of_after)
        yield from compare_results(trial, moved, further_call(trial, before), of_before, way=way)


def shifted(given: Inputs) -> dict[str, tuple[Inputs, Inputs]]:
    """Return, for each kind of shift, two inputs: with rounded logits, and with rounded and shifted logits.

    The result is empty if no row can be shifted exactly in the dtype of the logits.
    """
    logits, dtype = rows_of(given.input), name_of(given.input)
    ways = {"shifted": True, "shifted row by row": False}
    moves = {way: shiftable(logits, dtype, common=common) for way, common in ways.items()}
    if not any(by.any() for _, by in moves.values()):
        return {}

    def with_logits(rows: Array) -> Inputs:
        return replace(given, input=_tensor(rows, given.input))

    return {way: (with_logits(rounded), with_logits(rounded + by[:, None])) for way, (rounded, by) in moves.items()}


def shiftable(logits: Array, dtype: str, *, common: bool) -> tuple[Array, Array]:
    """Return the logits, (R, C), rounded so that a shift is exact, and the shift of each row, (R,).

    If no exact shift of a row is possible, its shift is 0 and its logits stay as they are.

    Let the magnitudes of the finite logits be below `2^e`, and the shift be `2^s` or `-2^s` with `s >= e`. The function
    rounds the logits to multiples of `δ = 2^(s+1-p)`, where `p` is the precision of the dtype in bits. Then the logits,
    and their sums with the shift, are multiples of δ up to `2^(s+1) = 2^p δ`. The dtype represents these numbers
    exactly if its range includes them. `s = e + p/2` leaves half of the bits to the logits and half to the shift. The
    range of the dtype may require a smaller `s`.

    Args:
        logits: the logits, (R, C).
        dtype: the name of their dtype.
        common: whether all rows have the same shift.
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
    """Reversing the rows, along the batch or along a further dimension, only reverses the result, up to rounding.

    The check reverses one dimension at a time: a kernel that confuses two dimensions could pass if both were reversed.
    """
    inputs = trial.question.inputs
    dim = inputs.input.dim()
    for axis in rows_axes(inputs):
        reversed_rows = rows_turned(trial.question.fresh(), axis)
        back = _mapped(partial(_reverse_rows, axis=axis, dim=dim), further_call(trial, reversed_rows))
        yield from compare_results(trial, with_radius(trial, back), way=f"reversed along dimension {axis}")


def rows_axes(given: Inputs) -> list[int]:
    """Return the dimensions of batched logits that have a size above 1, except the class dimension."""
    return [axis for axis, size in enumerate(given.input.shape) if axis != 1 and size > 1]


def rows_turned(given: Inputs, axis: int) -> Inputs:
    """Return the inputs with the rows reversed along a dimension of the logits.

    The targets and the upstream gradient are reversed with the rows.
    """
    dim = given.input.dim()
    tensors = given.input, given.target, given.upstream
    logits, target, upstream = (_reverse_rows(tensor, axis, dim) for tensor in tensors)
    return Inputs(logits, target, given.options, upstream)


def _reverse_rows(tensor: Tensor, axis: int, dim: int) -> Tensor:
    return tensor.flip(axis if tensor.dim() == dim else max(0, axis - 1)) if tensor.dim() else tensor


@check(cost=Cost.CALLS, versus="other", applies=lambda case: case.classes > 1)
def classes_permuted(trial: Trial) -> Iterator[Difference]:
    """Reversing the classes, with weights and targets, keeps the loss and reverses the gradients, up to rounding."""
    dim = trial.question.inputs.input.dim()

    def turned(tensor: Tensor) -> Tensor:
        return tensor.flip(min(1, dim - 1)) if tensor.dim() == dim else tensor

    reversed_classes = classes_turned(trial.question.fresh())
    yield from compare_results(trial, with_radius(trial, _mapped(turned, further_call(trial, reversed_classes))))


def classes_turned(given: Inputs) -> Inputs:
    """Return the inputs with the classes reversed: logits, weights, targets, and an ignore_index that is a class."""
    axis, options = min(1, given.input.dim() - 1), dict(given.options)
    if "weight" in options:
        options["weight"] = options["weight"].flip(0)
    if given.target.is_floating_point():
        return replace(given, input=given.input.flip(axis), target=given.target.flip(axis), options=options)
    last, ignore_index = given.input.shape[axis] - 1, options.get("ignore_index", -100)
    index = given.target.long()  # as uint8, -100 would be 156
    turned = last - index
    if 0 <= ignore_index <= last:
        options["ignore_index"] = last - ignore_index
    else:
        turned = torch.where(index == ignore_index, index, turned)
    return replace(given, input=given.input.flip(axis), target=turned.to(given.target.dtype), options=options)


@check(cost=Cost.CALLS, versus="other", applies=lambda case: len(case.sizes) > 1 and case.sizes[0] > 1)
def split(trial: Trial) -> Iterator[Difference]:
    """Two unequal parts of a batch, computed separately, combine to the result of the whole batch up to rounding.

    The size of the first part is the nearest to a third of the batch for which no denominator of a mean is 0. A batch
    of two has equal parts. The check concatenates the gradients of the parts and, under "none", their losses. Under
    "sum", the check adds the losses.

    Under "mean", the loss is `L = (D₁L₁ + D₂L₂)/D`, where `L₁` and `L₂` are the losses of the parts, `D₁` and `D₂` are
    their denominators, and `D` is the sum of the denominators. The check then multiplies the gradient of part `i` by
    `D_i/D`. pytorch#185167: a mean was an average of averages. Automodel#3803: a mean was a sum of averages.
    """
    parts: list[PartBalls] = []
    for name, (share, part) in zip(
        ("first part", "second part"), parted(trial.question.fresh(), trial.question.exact.terms), strict=True
    ):
        result = with_radius(trial, further_call(trial, part), exact_for(trial, name, part))
        parts.append({name: times(share, ball) for name, ball in result.items()})
    first, second = parts
    whole = {name: Ball.joined([first[name], second[name]]) for name in first}
    if trial.case.reduction != "none":
        whole["loss"] = plus(first["loss"], second["loss"])
    yield from compare_results(trial, whole)


def parted(given: Inputs, terms: Terms) -> list[tuple[Fraction, Inputs]]:
    """Return two parts of a batch. Each part is a pair: a factor for the results of the part, and its inputs.

    Raises:
        NotRunError: under "mean", the denominator of a part or of the batch is 0, wherever the batch is split.
    """
    at, shares = _choose_parts(terms, len(given.input))
    parts = []
    for rows, share in zip((slice(at), slice(at, None)), shares, strict=True):
        upstream = given.upstream[rows] if given.upstream.dim() else given.upstream
        part = replace(given, input=given.input[rows], target=given.target[rows], upstream=upstream)
        parts.append((share, part))
    return parts


def _choose_parts(terms: Terms, size: int) -> tuple[int, tuple[Fraction, Fraction]]:
    """Return the size of the first of two parts of a batch of `size` samples, and a factor for each part.

    Under "mean" and "sum", the loss of the batch is the sum of the losses of the parts, each times its factor.

    Raises:
        NotRunError: see :func:`parted`.
    """
    for at in sorted(range(1, size), key=lambda at: abs(3 * at - size)):
        if terms.reduction != "mean":
            return at, (Fraction(1), Fraction(1))
        row = at * len(terms.kept) // size
        first, second = _denominator(terms, slice(row)), _denominator(terms, slice(row, None))
        if first and second and first + second:
            return at, (first / (first + second), second / (first + second))
    raise NotRunError("would divide by 0 in one part, wherever the batch is split")


def _denominator(terms: Terms, rows: slice) -> Fraction:
    """Return the exact denominator of the mean of some rows."""
    kept = terms.kept[rows]
    if terms.index is None or terms.weight is None:
        return Fraction(int(kept.sum()))
    counts = np.bincount(terms.index[rows][kept], minlength=len(terms.weight)).tolist()
    return sum((count * Fraction(w) for count, w in zip(counts, terms.weight.tolist(), strict=True)), Fraction())


@check(
    cost=Cost.CALLS,
    versus="other",
    applies=lambda case: case.dtype in ("float16", "bfloat16"),
    operations=EVERY_OPERATION,
)
def widened(trial: Trial) -> Iterator[Difference]:
    """Half-precision inputs, and the same inputs converted to float32, give the same result up to rounding.

    TransformerEngine#3193: a gradient was stored in the bfloat16 memory of the logits before the loss was final.
    """
    widened_inputs = wide(trial.question.fresh())
    result = further_call(trial, widened_inputs)
    yield from compare_results(trial, with_radius(trial, result, exact_for(trial, "widened", widened_inputs)))


def wide(given: Inputs) -> Inputs:
    """Return the inputs with float16 and bfloat16 tensors converted to float32, which is exact."""
    return _each(given, lambda tensor: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)


@check("gradient", "repeatable", "retain_graph", dense_needs=["target_gradient"], cost=Cost.CALLS, versus="other")
def two_backwards(trial: Trial) -> Iterator[Problem]:
    """A graph can be differentiated twice, and two losses of the same logits do not change each other's results.

    Liger-Kernel#272 and #343: a loss stored its gradient in the logits, and scaled the gradient there in the backward
    pass.
    """
    other = of_other_classes(trial.question.fresh())
    alone = further_call(trial, other)
    first, second, again = trial.perform(backwards, trial.question.fresh(), other.copy())
    if again.digest != first.digest:
        yield Problem("not_repeated", "a second backward pass through the same graph gives a different gradient")
    elif (first.digest, second.digest) != (trial.got.digest, alone.digest):
        yield Problem("disturbed", "two losses of the same logits have different bits than each loss computed alone")


def backwards(loss: Loss, inputs: Inputs, other: Inputs) -> tuple[Result, Result, Result]:
    """Compute two losses of the same logits, run backward for each, then twice more for the first loss.

    This is an act: it runs in the process of the subject.

    The first of the two further passes has -2 times the upstream gradient, and the function drops its gradients.

    Args:
        loss: the subject.
        inputs: the inputs of the first loss.
        other: the inputs of the second loss, except the logits.

    Returns:
        The results of the first loss, of the second loss, and again of the first loss.
    """
    logits, dense = inputs.input.detach().requires_grad_(), inputs.target.is_floating_point()
    targets = [given.target.detach().requires_grad_(dense) for given in (inputs, other)]
    first, second = (
        loss(logits, target, **given.options) for target, given in zip(targets, (inputs, other), strict=True)
    )

    def backward(value: Tensor, target: Tensor, upstream: Tensor) -> Result:
        leaves = [logits, target] if dense else [logits]
        gradients = torch.autograd.grad(value, leaves, upstream.to(value.dtype), retain_graph=True)
        return Result(value.detach(), *gradients).copy()  # a copy, since a later pass may write into these gradients

    results = backward(first, targets[0], inputs.upstream), backward(second, targets[1], inputs.upstream)
    # The factor -2 finds a loss that scales a stored gradient in place. An upstream gradient of 1 would hide this bug.
    backward(first, targets[0], -2 * inputs.upstream)
    return *results, backward(first, targets[0], inputs.upstream)


def of_other_classes(given: Inputs) -> Inputs:
    """Return the inputs with the target and the options of :func:`classes_turned`, but with unchanged logits."""
    turned = classes_turned(given)
    return replace(given, target=turned.target, options=turned.options)


def _each(given: Inputs, by: Callable[[Tensor], Tensor]) -> Inputs:
    options = {name: by(value) if isinstance(value, Tensor) else value for name, value in given.options.items()}
    return Inputs(by(given.input), by(given.target), options, by(given.upstream))


def _mapped(by: Callable[[Tensor], Tensor], result: Result) -> Result:
    parts = ((name, getattr(result, name)) for name in RESULT_PARTS)
    return replace(result, **{name: by(part) for name, part in parts if part is not None})


def _tensor(rows: Array, like: Tensor) -> Tensor:
    """Return (R, C) numbers as a tensor with the shape, dtype and device of `like`: the inverse of :func:`rows_of`."""
    if like.dim() > 1:
        shape = like.shape[0], *like.shape[2:], like.shape[1]
        made = torch.from_numpy(rows.reshape(shape)).movedim(-1, 1)
    else:
        made = torch.from_numpy(rows.reshape(like.shape))
    return made.to(like.dtype).contiguous().to(like.device)
