"""The checks of size: huge inputs, and the memory of a linear cross-entropy.

A huge input repeats the batch of a small case. Each repetition is a tile, and the check `large` computes the exact
values of a single tile.

A kernel that counts elements in 32 bits reads or writes a wrong element, `2^31` or `2^32` elements away from the right
element. The number of elements of a tile has an odd prime factor, so this number does not divide the distance. The
wrong element therefore has another position within its tile, and nearly always another value.
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
from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.machine import available, memory_growth, process_limit
from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import Computed, safe
from crossent.numerics.bounds.unbounded import Reason
from crossent.numerics.formats import FORMATS
from crossent.numerics.oracle.arithmetic import Ball
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import NotRun
from crossent.trials.call import Gradients, Result, dtype_and_shape, evaluate
from crossent.trials.check import Cost, check
from crossent.trials.difference import Difference, allow_zero, difference, largest_errors, not_judged
from crossent.trials.exact import name_of, rows_of, solve
from crossent.trials.trial import NotRunError, Problem, Trial
from crossent.words import as_options

TILE_BLOCK = 2**24  # elements to copy or compare at once; far below 2^31, where torch itself could be wrong
GIB = 2**30
MEMORY_ROWS, MEMORY_CLASSES = 2**13, 2**12  # the sizes of the check `memory`: in float32, the logits take 128 MiB


def tiled(case: Case, device: str = "cpu") -> Inputs:
    """Return the inputs of a case, repeated `case.tiled` times."""
    tile = case.build(device)
    upstream = tile.upstream
    if upstream.dim():
        shape = (case.tiled * len(upstream), *upstream.shape[1:])
        constant = case.upstream != "rows"
        upstream = upstream.flatten()[0].expand(shape) if constant else _repeat(upstream, case.tiled)
    return Inputs(_repeat(tile.input, case.tiled), _repeat(tile.target, case.tiled), tile.options, upstream)


def needed_bytes(case: Case, subject: Subject) -> int:
    """Return the number of bytes that the check `large` needs for a subject on a case.

    torch keeps three tensors as large as the logits: the gradient, the log-probabilities and their gradient. The
    function assumes that a kernel needs no more. By our measurements, a form under the contract "eager" keeps up to
    five such tensors in the dtype of its arithmetic.
    """
    size = _bytes(DTYPES[case.dtype])
    rows = case.rows * case.tiled
    logits = rows * case.classes
    inputs = logits * size + rows * (8 + size)
    widest = max(4, size if subject.dtype is None else _bytes(subject.dtype))
    work = logits * 5 * widest + rows * 32 if subject.promise == "eager" else logits * 3 * size + rows * 16
    copy = logits * size if case.layout == "class_last" else 0  # a subject may first make the logits contiguous
    compared = 8 * TILE_BLOCK * 8  # the comparison: eight float64 tensors of one block
    return inputs + work + copy + rows * size + compared


def _bytes(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8  # torch 2.0 has no itemsize


def _is_plain(case: Case) -> bool:
    return case.seeded(0) == LinearCase(case.dtype) and case.dtype in ("float32", "bfloat16")


@check("gradient", "memory", cost=Cost.STRUCTURE, applies=_is_plain, operations=(LINEAR_CROSS_ENTROPY,))
def memory(trial: Trial) -> Iterator[Problem]:
    """A call with 2^25 logits, and its backward pass, takes less memory than all logits together.

    A function that stores the logits usually takes at least three times their memory.
    """
    case, device = trial.case, trial.question.device
    most = MEMORY_ROWS * MEMORY_CLASSES * _bytes(DTYPES[case.dtype])
    need = 8 * most
    # The judge measures the free memory, since the subject's process and torch's would measure different amounts.
    if (have := available(device)) < need:
        raise NotRunError(_too_little(need, have, device))
    grown = trial.perform(measure_memory, trial.question.fresh(), trial.gradients, device, need)
    if grown >= most:
        said = f"memory: got {grown / 2**20:.0f} MiB for a call with {MEMORY_ROWS} rows and {MEMORY_CLASSES} classes"
        due = f"expected less than the {most / 2**20:.0f} MiB of all its logits in {case.dtype}"
        yield Problem("wrong", f"{said}; {due}\nIf this is intended, declare it: {as_options(without=['memory'])}")


def measure_memory(loss: Loss, inputs: Inputs, gradients: Gradients, device: str, need: int) -> int | NotRun:
    """Act: return the growth of the memory, in bytes, during a call with 2^25 logits and its backward pass.

    The act returns NotRun if a process may not use `need` bytes, or if this machine cannot measure the memory.
    """
    if need > (limit := process_limit()):
        return NotRun(f"needs {need / GIB:.1f} GiB of memory, and a process of this run may use {limit / GIB:.1f} GiB")
    many = with_many_logits(inputs)
    grown = memory_growth(lambda: evaluate(loss, many, gradients), device)
    needed = "needs CUDA, or a CPU under Linux with a writable /proc/self/clear_refs, to measure the memory of a call"
    return NotRun(needed) if grown is None else grown


def _too_little(need: int, have: int, device: str) -> str:
    return f"needs {need / GIB:.1f} GiB of free memory on {device}, which has {have / GIB:.1f} GiB"


def with_many_logits(inputs: Inputs) -> Inputs:
    """Return the inputs with repeated rows and classes: `MEMORY_ROWS` rows and `MEMORY_CLASSES` classes.

    `inputs` must have no bias and no class weights.
    """

    def repeated(tensor: Tensor, count: int) -> Tensor:
        times = -(-count // len(tensor))
        return tensor.repeat(times, *[1] * (tensor.dim() - 1))[:count].contiguous()

    weight = repeated(inputs.options["linear_weight"], MEMORY_CLASSES)
    options = {**inputs.options, "linear_weight": weight}
    return Inputs(repeated(inputs.input, MEMORY_ROWS), repeated(inputs.target, MEMORY_ROWS), options, inputs.upstream)


@check("large", cost=Cost.TILES, applies=lambda case: case.tiled > 1)
def large(trial: Trial) -> Iterator[Difference | Problem]:
    """A small batch, repeated to many rows or to more than 2^31 elements, gives the exact loss and gradient."""
    case, device = trial.case, trial.question.device
    if trial.host.isolated:
        raise NotRunError("runs in an isolated process, which cannot return results of this size")
    need = needed_bytes(case, trial.subject)
    got = trial.perform(evaluate_tiled, case, device, trial.gradients, need)
    expected = trial.question.exact
    shape = (case.tiled * expected.shape[0], *expected.shape[1:]) if expected.shape else ()
    dtype = trial.subject.result_dtype(expected.dtype)
    if (got.loss.dtype, tuple(got.loss.shape)) != (dtype, shape):
        made = dtype_and_shape(got.loss.dtype, got.loss.shape)
        yield Problem("wrong", f"loss: got {made}; expected {dtype_and_shape(dtype, shape)}")
        return
    promised = trial.contract(case.dtype, case.rows * case.tiled)
    if case.reduction == "none":
        yield _compare_tiles("loss", got.loss, expected.loss, expected.bounds(_storing(promised, got.loss)), case.tiled)
    else:
        yield _compare_reduced(trial, got.loss, _storing(promised, got.loss))
    # The gradient of a mean is divided by the number of kept rows of all tiles, but the exact gradient only by those of
    # one tile.
    if got.gradient is not None and case.reduction != "mean":
        bounds = expected.bounds(_storing(promised, got.gradient))
        tile = rows_of(got.gradient[: len(got.gradient) // case.tiled])
        exact = allow_zero(expected.gradient, expected.terms.kept, tile)
        yield _compare_tiles("gradient", got.gradient, exact, bounds, case.tiled)


def _storing(promised: Contract, tensor: Tensor) -> Contract:
    return promised.storing(FORMATS[name_of(tensor)])


def evaluate_tiled(loss: Loss, case: Case, device: str, gradients: Gradients, need: int) -> Result | NotRun:
    """Act: return the result for all tiles of a case, or NotRun.

    NotRun means that the device lacks `need` bytes of free memory, or runs out of memory.
    """
    have = available(device)
    if need > have:
        return NotRun(_too_little(need, have, device))
    try:
        return evaluate(loss, tiled(case, device), gradients)
    except Exception as error:
        # On a CPU and on MPS, torch raises a RuntimeError with one of these words in its message.
        no_memory = any(words in str(error) for words in ("allocate memory", "out of memory"))
        if no_memory or isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
            return NotRun(f"ran out of memory on {device}")
        raise


def _repeat(tile: Tensor, times: int) -> Tensor:
    """Return `times` copies of a tile along the first axis, with the strides of the tile."""
    whole = torch.empty_strided(
        (times * len(tile), *tile.shape[1:]), tile.stride(), dtype=tile.dtype, device=tile.device
    )
    many = _tiles_at_once(tile.numel())  # in blocks, without a second large tensor
    block = tile.repeat(min(many, times), *[1] * (tile.dim() - 1))
    for start in range(0, len(whole), len(block)):
        part = whole[start : start + len(block)]
        part.copy_(block[: len(part)])
    return whole


def _tiles_at_once(elements: int) -> int:
    return max(1, TILE_BLOCK // max(elements, 1))


def _compare_tiles(name: str, got: Tensor, exact: Ball, bounds: Bounds, times: int) -> Difference:
    """Compare each tile with the exact values and bounds of one tile. Return the difference at the worst element."""
    allowed, vacuous = largest_errors(name, exact, bounds)
    arrays = exact.hi, exact.lo, allowed
    hi, lo, limit = (torch.from_numpy(np.ascontiguousarray(array)).flatten().to(got.device) for array in arrays)
    many, length = _tiles_at_once(hi.numel()), len(got) // times
    worst, place, mismatched = -1.0, 0, 0
    for start in range(0, times, many):
        part = got[start * length : (start + many) * length]
        part = part.movedim(1, -1) if name == "gradient" else part
        values = part.reshape(-1, hi.numel()).double()
        error = ((values - hi) - lo).abs()
        same = (values == hi) | (values.isnan() & hi.isnan())
        error = torch.where(error.isnan(), torch.where(same, 0.0, torch.inf), error)
        ratio = torch.where((error > 0) & ~limit.isinf(), error / limit, 0.0)
        mismatched += int((ratio > 1).sum())
        at = int(ratio.argmax())
        if (largest := ratio.flatten()[at].item()) > worst:
            worst, place = largest, start * hi.numel() + at
    tile, at = divmod(place, hi.numel())
    row, column = divmod(at, exact.hi.shape[1])
    first, *further = np.unravel_index(row, (length, *_further_sizes(got, name)))
    index = (tile * length + int(first), *([column] if name == "gradient" else []), *map(int, further))
    in_tile = row, column
    value = Ball(*(np.reshape(array[in_tile], (1, 1)) for array in (exact.hi, exact.lo, exact.radius)))
    bound = np.reshape(allowed[in_tile], (1, 1))
    found = difference(name, name_of(got), np.array([[got[index].item()]]), value, bound)
    left = {reason: count * times for reason, count in not_judged(name, allowed, exact, bounds).items()}
    return replace(found, index=index, elements=got.numel(), mismatched=mismatched, not_judged=left, vacuous=vacuous)


def _further_sizes(got: Tensor, name: str) -> tuple[int, ...]:
    """Return the sizes `(d1, …)` of a "loss" `(N, d1, …)` or of a "gradient" `(N, C, d1, …)`."""
    return tuple(got.shape[2:] if name == "gradient" else got.shape[1:])


def _compare_reduced(trial: Trial, got: Tensor, promised: Contract) -> Difference:
    """Return the difference of `got`, a mean or a sum over all tiles, from its exact value.

    The exact mean is the mean of one tile. The exact sum is the sum of one tile, multiplied by the number of tiles.
    """
    exact, times = trial.question.exact.loss, float(trial.case.tiled)
    if trial.case.reduction == "sum":  # 2^-51 covers the rounding errors of these products
        exact = Ball(exact.hi * times, exact.lo * times, exact.radius * times + 2.0**-51 * np.abs(exact.hi * times))
    bound, reason = _bound_of_sum(trial, promised)
    allowed = np.where(np.isfinite(exact.hi), bound, 0.0) + exact.radius
    found = difference("loss", name_of(got), np.array([[got.item()]]), exact, allowed)
    left: dict[str, int] = {reason: 1} if np.isinf(allowed).any() else {}
    zeros = bool((exact.distance(np.zeros((1, 1))) <= allowed).all())
    return replace(found, index=(), vacuous=zeros, not_judged=left)


def _bound_of_sum(trial: Trial, promised: Contract) -> tuple[float, Reason]:
    """Return the error bound of the mean or sum over all tiles, and the reason to report if the bound is infinite.

    The loss `l` of a row has an error of at most `e`, the error bound for the reduction "none". At most `h - 1`
    additions round this loss (`Contract.row_order`). A subject that divides before it adds rounds the loss once more.

    Each of these `h` roundings has unit roundoff `u`. They add an error of at most `(|l| + e)·h u/(1 - h u)` for each
    row. The bound is infinite if `h u` is 1/2 or more. A mean has two more roundings: of the divisor (the number of
    kept rows), and of the quotient. Last, the subject rounds the result to its dtype.
    """
    tile = trial.question.inputs_on_cpu
    ones = torch.ones_like(tile.target).double()
    expected = solve(replace(tile, options={**tile.options, "reduction": "none"}, upstream=ones))
    stored, times = promised.stored or promised.compute, float(trial.case.tiled)
    count = float(expected.terms.kept.sum() * times)
    depth = count - 1 if promised.row_order.depth is None else promised.row_order.depth
    roundings = (max(depth, 0) + 1) * stored.unit_roundoff
    with np.errstate(all="ignore"):
        losses = expected.loss.hi[:, 0]
        errors = expected.bounds(promised).loss + expected.loss.radius[:, 0]
        size = (np.abs(losses) + errors).sum() * times
        once = size * roundings / (1 - roundings) if roundings < 0.5 else np.inf
        total = promised.keep(Computed(losses.sum() * times, errors.sum() * times + once, stored))
        if trial.case.reduction == "mean":
            divisor = promised.keep(Computed.exactly(count, None).rounded(promised.compute))
            total = total.over(divisor, promised.compute, promised.functions.division_ulps)
        bound = float(safe(total.rounded(promised.storage).error))
    too_many: Reason = "a sum has too many terms for the precision of its format"
    return bound, too_many if roundings >= 0.5 else "an intermediate may overflow"
