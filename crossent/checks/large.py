"""Large: more elements than 31 or 32 bits count, made of a small case whose batch is repeated.

The exact answer and the bounds are those of one tile, so that neither costs more than a small case does. A kernel that
counts elements in 32 bits reads, or writes, what lies `2^31` or `2^32` elements away. The number of elements of a tile
has an odd prime factor, that of its rows, so that it divides no power of two: that is another place of another tile,
which holds another number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.machine import available
from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.loss import Bounds, Reason
from crossent.numerics.bounds.rounding import Held, safe
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import NotRun
from crossent.trials.call import Gradients, Result, evaluate
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference, allowance, difference, not_judged
from crossent.trials.exact import name_of, solve
from crossent.trials.trial import NotRunError, Problem, Trial

TILE_BLOCK = 2**24  # elements copied or judged at once: far from 2^31, where that itself could go wrong
GIB = 2**30


def tiled(case: Case, device: str = "cpu") -> Inputs:
    """The inputs of a case, with all of its tiles: built on the device, in copies of one block."""
    one = case.build(device)
    upstream = one.upstream
    if upstream.dim():
        every = (case.tiled * len(upstream), *upstream.shape[1:])
        stays = case.upstream == "stride0" or case.upstream != "rows"
        upstream = upstream.flatten()[0].expand(every) if stays else _repeated(upstream, case.tiled)
    return Inputs(_repeated(one.logits, case.tiled), _repeated(one.target, case.tiled), one.options, upstream)


def needed(case: Case, subject: Subject) -> int:
    """How many bytes a subject needs for a case: inputs, loss, gradient, and what lies between.

    torch keeps the log-probabilities and has their gradient, both as large as the logits and in their dtype; a kernel
    needs no more. Forms were measured to hold up to five such tensors in what they compute in, with their gradient,
    and some numbers for each row.
    """
    size = _bytes(DTYPES[case.dtype])
    rows = case.rows * case.tiled
    logits = rows * case.classes
    inputs = logits * size + rows * (8 + size)
    widest = max(4, size if subject.dtype is None else _bytes(subject.dtype))
    work = logits * 5 * widest + rows * 32 if subject.promise == "eager" else logits * 3 * size + rows * 16
    copy = logits * size if case.layout == "class_last" else 0
    compared = 8 * TILE_BLOCK * 8  # float64 numbers of a block, a few times over
    return inputs + work + copy + rows * size + compared


def _bytes(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8  # torch 2.0 has no itemsize


@check("large", cost=Cost.TILES, applies=lambda case: case.tiled > 1)
def large(trial: Trial) -> Iterator[Difference | Problem]:
    """Loss and gradient of all tiles are those of one, within its bounds."""
    case, device = trial.case, trial.question.device
    if trial.host.isolated:
        raise NotRunError("lives in a process of its own, from which results of this size are not sent: see README")
    need = needed(case, trial.subject)
    got = trial.perform(evaluate_tiled, case, device, trial.gradients, need)
    expected = trial.question.exact
    shape = (case.tiled * expected.shape[0], *expected.shape[1:]) if expected.shape else ()
    wanted = trial.subject.dtype or expected.dtype, shape
    if (got.loss.dtype, tuple(got.loss.shape)) != wanted:
        yield Problem("wrong", f"got {got.loss.dtype} {tuple(got.loss.shape)}; expected {wanted[0]} {wanted[1]}")
        return
    promised = trial.contract(case.dtype, case.rows * case.tiled)
    if case.reduction == "none":
        yield _of_tiles("loss", got.loss, expected.loss, expected.bounds(_storing(promised, got.loss)), case.tiled)
    else:
        yield _reduced(trial, got.loss, _storing(promised, got.loss))
    if got.gradient is not None and case.reduction != "mean":  # whose bounds are about as many rows as there are
        bounds = expected.bounds(_storing(promised, got.gradient))
        yield _of_tiles("gradient", got.gradient, expected.gradient, bounds, case.tiled)


def _storing(promised: Contract, tensor: Tensor) -> Contract:
    return replace(promised, storage=FORMATS[name_of(tensor)])


def evaluate_tiled(loss: Loss, case: Case, device: str, gradients: Gradients, need: int) -> Result | NotRun:
    """The act of a call with all tiles, where there is the memory for it."""
    have = available(device)
    if need > have:
        return NotRun(f"waits for {need / GIB:.1f} GiB of memory on {device}, which has {have / GIB:.1f}")
    try:
        return evaluate(loss, tiled(case, device), gradients)
    except Exception as error:
        no_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error)
        if no_memory:  # the last is how torch's CPU allocator says it
            return NotRun(f"ran out of memory on {device}")
        raise


def _repeated(tile: Tensor, times: int) -> Tensor:
    """The tile so many times along its first axis, laid out as it is: allocated once, and filled block by block."""
    whole = torch.empty_strided(
        (times * len(tile), *tile.shape[1:]), tile.stride(), dtype=tile.dtype, device=tile.device
    )
    many = _tiles_at_once(tile.numel())
    block = tile.repeat(min(many, times), *[1] * (tile.dim() - 1))
    for start in range(0, len(whole), len(block)):
        part = whole[start : start + len(block)]
        part.copy_(block[: len(part)])
    return whole


def _tiles_at_once(elements: int) -> int:
    return max(1, TILE_BLOCK // max(elements, 1))


def _of_tiles(check: str, got: Tensor, exact: Ball, bounds: Bounds, times: int) -> Difference:
    """The worst element of all tiles, each of which should be the same: compared in float64, where the result lies."""
    allowed, vacuous = allowance(check, exact, bounds)
    hi, lo, limit = (
        torch.from_numpy(np.ascontiguousarray(one)).flatten().to(got.device) for one in (exact.hi, exact.lo, allowed)
    )
    many, length = _tiles_at_once(hi.numel()), len(got) // times
    worst, place, mismatched = -1.0, 0, 0
    for start in range(0, times, many):
        part = got[start * length : (start + many) * length]
        part = part.movedim(1, -1) if check == "gradient" else part
        values = part.reshape(-1, hi.numel()).double()
        error = ((values - hi) - lo).abs()
        same = (values == hi) | (values.isnan() & hi.isnan())
        error = torch.where(error.isnan(), torch.where(same, 0.0, torch.inf), error)
        ratio = torch.where((error > 0) & ~limit.isinf(), error / limit, 0.0)
        mismatched += int((ratio > 1).sum())
        at = int(ratio.argmax())
        if (here := ratio.flatten()[at].item()) > worst:
            worst, place = here, start * hi.numel() + at
    tile, at = divmod(place, hi.numel())
    row, column = divmod(at, exact.hi.shape[1])
    first, *further = np.unravel_index(row, (length, *_rows_beyond(got, check)))
    index = (tile * length + int(first), *([column] if check == "gradient" else []), *map(int, further))
    there = row, column
    of_it = Ball(*(np.reshape(one[there], (1, 1)) for one in (exact.hi, exact.lo, exact.radius)))
    found = difference(check, name_of(got), np.array([[got[index].item()]]), of_it, np.reshape(allowed[there], (1, 1)))
    left = {reason: count * times for reason, count in not_judged(check, allowed, exact, bounds).items()}
    return replace(found, index=index, elements=got.numel(), mismatched=mismatched, not_judged=left, vacuous=vacuous)


def _rows_beyond(got: Tensor, check: str) -> tuple[int, ...]:
    """The sizes of the rows' further dimensions."""
    return tuple(got.shape[2:] if check == "gradient" else got.shape[1:])


def _reduced(trial: Trial, got: Tensor, promised: Contract) -> Difference:
    """The mean of all tiles, which is the mean of one; or their sum, which is so many times the sum of one."""
    exact, times = trial.question.exact.loss, float(trial.case.tiled)
    if trial.case.reduction == "sum":  # 2^-51: for the roundings of these products
        exact = Ball(exact.hi * times, exact.lo * times, exact.radius * times + 2.0**-51 * np.abs(exact.hi * times))
    bound, reason = _bound_of_sum(trial, promised)
    allowed = np.where(np.isfinite(exact.hi), bound, 0.0) + exact.radius
    found = difference("loss", name_of(got), np.array([[got.item()]]), exact, allowed)
    left: dict[str, int] = {reason: 1} if np.isinf(allowed).any() else {}
    zeros = bool((exact.distance(np.zeros((1, 1))) <= allowed).all())
    return replace(found, index=(), vacuous=zeros, not_judged=left)


def _bound_of_sum(trial: Trial, promised: Contract) -> tuple[float, Reason]:
    """What the mean or the sum of all tiles may be off by, and why it may be infinite.

    Each row is off by `e`, as without a reduction. A term that passes through h roundings at most adds
    `(|l| + e)·h u/(1 - h u)`; the mean may divide each term before it is added, which is one rounding more, and divides
    by a number of rows that is rounded too.
    """
    one = trial.question.inputs
    every_row = replace(
        one, options={**one.options, "reduction": "none"}, upstream=torch.ones_like(one.target).double()
    )
    expected = solve(every_row)
    held, times = promised.stored or promised.compute, float(trial.case.tiled)
    count = float(expected.terms.kept.sum() * times)
    depth = count - 1 if promised.row_order.depth is None else promised.row_order.depth
    roundings = (max(depth, 0) + 1) * held.unit_roundoff
    with np.errstate(all="ignore"):
        losses = expected.loss.hi[:, 0]
        errors = expected.bounds(promised).loss + expected.loss.radius[:, 0]
        size = (np.abs(losses) + errors).sum() * times
        once = size * roundings / (1 - roundings) if roundings < 0.5 else np.inf
        total = promised.keep(Held(losses.sum() * times, errors.sum() * times + once, held))
        if trial.case.reduction == "mean":
            divisor = promised.keep(Held.exactly(count, None).rounded(promised.compute))
            total = total.over(divisor, promised.compute, promised.functions.division_ulps)
        bound = float(safe(total.rounded(promised.storage).error))
    short: Reason = "the format is too short for so many terms"
    return bound, short if roundings >= 0.5 else "an intermediate may overflow"
