"""Functions that change the inputs with a known effect on the result, and functions that undo this effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FORMATS, Array
from crossent.numerics.oracle.arithmetic import Ball
from crossent.trials.agreement import PartBalls, plus
from crossent.trials.call import Result
from crossent.trials.exact import name_of, rows_of
from crossent.trials.trial import NotRunError

_OF_CLASSES = ("linear_weight", "linear_bias")  # the tensors of a linear layer, with one entry for each class
_ONE_SHIFT = "with one shift for all rows"


def contiguous(given: Inputs) -> Inputs:
    """Return the inputs with a contiguous copy of each tensor."""
    return _each(given, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))


def wide(given: Inputs) -> Inputs:
    """Return the inputs with float16 and bfloat16 tensors converted to float32."""
    return _each(given, lambda tensor: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor)


def shifted(given: Inputs) -> dict[str, tuple[Inputs, Inputs]]:
    """Return a dict from the name of each shift to a pair: inputs with rounded logits, and the same inputs shifted.

    One shift adds the same constant to all logits. The other adds positive and negative constants in turn, one to each
    row. A row that cannot be shifted exactly stays unchanged. If no row can be shifted, the dict is empty.

    For a linear cross-entropy, the dict has only the first shift. The bias is then rounded and shifted.
    """
    if given.operation is LINEAR_CROSS_ENTROPY:
        return _shifted_bias(given)
    logits, dtype = rows_of(given.input), name_of(given.input)
    ways = {_ONE_SHIFT: True, "with a shift for each row": False}
    moves = {way: shiftable(logits, dtype, common=common) for way, common in ways.items()}
    if not any(by.any() for _, by in moves.values()):
        return {}

    def with_logits(rows: Array) -> Inputs:
        return replace(given, input=_tensor(rows, given.input))

    return {way: (with_logits(rounded), with_logits(rounded + by[:, None])) for way, (rounded, by) in moves.items()}


def _shifted_bias(given: Inputs) -> dict[str, tuple[Inputs, Inputs]]:
    bias = given.options["linear_bias"]
    (rounded,), (by,) = shiftable(rows_of(bias), name_of(bias), common=True)

    def with_bias(numbers: Array) -> Inputs:
        return replace(given, options={**given.options, "linear_bias": _tensor(numbers[None], bias)})

    return {_ONE_SHIFT: (with_bias(rounded), with_bias(rounded + by))} if by else {}


def shiftable(logits: Array, dtype: str, *, common: bool) -> tuple[Array, Array]:
    """Return the logits, (R, C), rounded so that a shift is exact, and the shift of each row, (R,).

    Let the magnitudes of the finite logits of a row, or of all rows if `common`, be below `2^e`. Let the shift be `2^s`
    or `-2^s` with `s >= e`. The function rounds the logits to multiples of `δ = 2^(s+1-p)`, where `p` is the precision
    of the dtype in bits. Then the logits, and their sums with the shift, are multiples of δ up to `2^(s+1) = 2^p δ`.
    The dtype represents these numbers exactly.

    `s = e + p//2` leaves half of the bits to the logits and half to the shift. The range of the dtype may require a
    smaller `s`. If this `s` is below `e`, the shift is 0, and the logits of the row are unchanged. If `common`, all
    rows have the same shift.
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


def rows_axes(given: Inputs) -> list[int]:
    """Return the dimensions of a batched `input` whose size is above 1, except dimension 1 (classes or hidden size)."""
    return [axis for axis, size in enumerate(given.input.shape) if axis != 1 and size > 1]


def reverse_rows(given: Inputs, axis: int) -> Inputs:
    """Return the inputs with the rows of `input`, target and upstream gradient reversed along the dimension `axis`."""
    dim = given.input.dim()
    tensors = given.input, given.target, given.upstream
    logits, target, upstream = (_flip_rows(tensor, axis, dim) for tensor in tensors)
    return Inputs(logits, target, given.options, upstream)


def restore_rows(result: Result, axis: int, dim: int) -> Result:
    """Return the result of a call with reversed rows, with the rows in their original order.

    `axis` is the reversed dimension of an `input` with `dim` dimensions.
    """
    by_row = ("loss", "gradient", "target_gradient")
    return _mapped(lambda name, tensor: _flip_rows(tensor, axis, dim) if name in by_row else tensor, result)


def _flip_rows(tensor: Tensor, axis: int, dim: int) -> Tensor:
    """Return a tensor with its rows reversed.

    `axis` is the dimension to reverse in `input`, which has `dim` dimensions. The tensor may lack the classes.
    """
    # a tensor without classes lacks dimension 1 of the logits
    return tensor.flip(axis if tensor.dim() == dim else max(0, axis - 1)) if tensor.dim() else tensor


def reverse_classes(given: Inputs) -> Inputs:
    """Return the inputs with the classes reversed in logits or linear layer, class weights, target and ignore_index."""
    axis, options = min(1, given.input.dim() - 1), dict(given.options)
    options |= {name: options[name].flip(0) for name in ("weight", *_OF_CLASSES) if name in options}
    logits = given.input if given.operation is LINEAR_CROSS_ENTROPY else given.input.flip(axis)
    if given.target.is_floating_point():
        return replace(given, input=logits, target=given.target.flip(axis), options=options)
    last, ignore_index = given.classes - 1, options.get("ignore_index", -100)
    index = given.target.long()  # as uint8, -100 would be 156
    reversed_index = last - index
    if 0 <= ignore_index <= last:
        options["ignore_index"] = last - ignore_index
    else:
        reversed_index = torch.where(index == ignore_index, index, reversed_index)
    return replace(given, input=logits, target=reversed_index.to(given.target.dtype), options=options)


def restore_classes(result: Result, given: Inputs) -> Result:
    """Return the result of a call with reversed classes, with the classes in their original order.

    `given` are the inputs with the classes in this order.
    """
    dim = given.input.dim()

    def flipped(name: str, tensor: Tensor) -> Tensor:
        if given.operation is LINEAR_CROSS_ENTROPY:
            return tensor.flip(0) if name in ("weight_gradient", "bias_gradient") else tensor
        return tensor.flip(min(1, dim - 1)) if tensor.dim() == dim else tensor

    return _mapped(flipped, result)


def with_reversed_targets(given: Inputs) -> Inputs:
    """Return the inputs with reversed classes in target and options, but with the same logits and linear layer."""
    changed = reverse_classes(given)
    unchanged = {name: given.options[name] for name in _OF_CLASSES if name in given.options}
    return replace(given, target=changed.target, options={**changed.options, **unchanged})


def split_batch(given: Inputs, terms: Terms) -> list[tuple[Fraction, Inputs]]:
    """Split a batch in two, and return a factor and the inputs of each part.

    The caller multiplies the results of a part by the factor, and passes the products to :func:`join_parts`.

    Raises:
        NotRunError: wherever the batch is split, a mean would divide by 0.
    """
    at, shares = _choose_parts(terms, len(given.input))
    parts = []
    for rows, share in zip((slice(at), slice(at, None)), shares, strict=True):
        upstream = given.upstream[rows] if given.upstream.dim() else given.upstream
        part = replace(given, input=given.input[rows], target=given.target[rows], upstream=upstream)
        parts.append((share, part))
    return parts


def join_parts(parts: Sequence[PartBalls], reduction: str) -> PartBalls:
    """Return the result of a batch from the results of its parts, which the caller has multiplied by their factors."""
    first, second = parts
    sums = ("weight_gradient", "bias_gradient", *(["loss"] if reduction != "none" else []))
    return {
        name: plus(first[name], second[name]) if name in sums else Ball.joined([first[name], second[name]])
        for name in first
    }


def _choose_parts(terms: Terms, size: int) -> tuple[int, tuple[Fraction, Fraction]]:
    """Return the size of the first part of a batch, about a third, and the factors of both parts."""
    for at in sorted(range(1, size), key=lambda at: abs(3 * at - size)):
        if terms.reduction != "mean":
            return at, (Fraction(1), Fraction(1))
        row = at * len(terms.kept) // size
        first, second = _denominator(terms, slice(row)), _denominator(terms, slice(row, None))
        if first and second and first + second:
            return at, (first / (first + second), second / (first + second))
    raise NotRunError("would divide by 0, wherever the batch is split")


def _denominator(terms: Terms, rows: slice) -> Fraction:
    """Return the exact denominator of the mean over the rows."""
    kept = terms.kept[rows]
    if terms.index is None or terms.weight is None:
        return Fraction(int(kept.sum()))
    classes, counts = np.unique(terms.index[rows][kept], return_counts=True)
    weights = terms.weight[classes].tolist()
    return sum((count * Fraction(w) for count, w in zip(counts.tolist(), weights, strict=True)), Fraction())


def _each(given: Inputs, by: Callable[[Tensor], Tensor]) -> Inputs:
    options = {name: by(value) if isinstance(value, Tensor) else value for name, value in given.options.items()}
    return Inputs(by(given.input), by(given.target), options, by(given.upstream))


def _mapped(by: Callable[[str, Tensor], Tensor], result: Result) -> Result:
    return replace(result, **{name: by(name, part) for name, part in result.parts.items()})


def _tensor(rows: Array, like: Tensor) -> Tensor:
    """Return `rows`, (R, C), as a tensor with the shape, dtype and device of `like`: the inverse of :func:`rows_of`."""
    if like.dim() > 1:
        shape = like.shape[0], *like.shape[2:], like.shape[1]
        made = torch.from_numpy(rows.reshape(shape)).movedim(-1, 1)
    else:
        made = torch.from_numpy(rows.reshape(like.shape))
    return made.to(like.dtype).contiguous().to(like.device)
