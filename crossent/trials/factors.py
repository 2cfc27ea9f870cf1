"""Lines of a message that may point to the bug behind a wrong number: a factor, a narrower dtype, or an infinity."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import permutations

import numpy as np

from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY
from crossent.numerics.formats import FORMATS
from crossent.subjects.features import is_dense
from crossent.trials.difference import Difference

# The largest ratio of the error bound to the number for which a factor is named. With a larger bound, one of about
# fifty factors may fit by chance.
_NARROW = 2.0**-10


def factor_of(difference: Difference, inputs: Inputs) -> str:
    """Return a line that names the factor between a wrong number and the exact value, or "".

    For example::

        The number is the exact value times 0.7: kept rows / rows

    For a factor f, let b be the error bound times `max(1, |f|)`. The factor fits if three conditions hold:
    `|wrong number - f · exact value| <= b`, `|f · exact value - exact value| > 2 b`, and
    `b <= _NARROW · |wrong number|`.
    """
    got, exact, bound = difference.got, difference.exact, difference.bound
    if not all(map(math.isfinite, (got, exact, bound))) or got == 0 or exact == 0:
        return ""
    fits: dict[str, float] = {}
    for words, factor in _factors(inputs):
        allowed = bound * max(1.0, abs(factor))
        differs = abs(exact * factor - exact) > 2 * allowed
        if differs and abs(got - exact * factor) <= allowed <= _NARROW * abs(got):
            fits[words] = factor
    if not fits:
        return ""
    factor = next(iter(fits.values()))
    return f"\nThe number is the exact value times {factor:.6g}: {' or '.join(fits)}"


def narrower_dtype_of(difference: Difference) -> str:
    """Return a line that names the least precise dtype that represents a wrong number exactly, or "".

    For example::

        The number is representable in float16: a step may be computed in float16

    The dtype must be less precise than the dtype of the result. The number must also be near the exact value.
    """
    got, exact, own = difference.got, difference.exact, FORMATS[difference.dtype]
    if not (math.isfinite(got) and math.isfinite(exact)) or got == 0:
        return ""
    for name, narrow in sorted(FORMATS.items(), key=lambda one: one[1].precision):
        # half of the bits of the narrow dtype agree
        near = abs(got - exact) <= math.sqrt(narrow.unit_roundoff) * abs(exact)
        if near and narrow.precision < own.precision and narrow.nearest(np.array([got]))[0] == got:
            return f"\nThe number is representable in {name}: a step may be computed in {name}"
    return ""


def infinity_of(difference: Difference, inputs: Inputs) -> str:
    """Return a line that names the numbers that may make the loss of a cross-entropy infinite, or "".

    Examples::

        In float32, the smallest probability of a row, at most exp(-140.6), rounds to 0
        In float32, exp(97.5), of the largest logit, is inf
        In float16, the largest sum of exp(x - max x) of a row, 65520, is inf
    """
    infinite = difference.of == "loss" and difference.got == math.inf and math.isfinite(difference.exact)
    if not infinite or inputs.operation is not CROSS_ENTROPY or not inputs.input.numel():
        return ""
    logits, dtype = inputs.input.double(), str(inputs.input.dtype).removeprefix("torch.")
    narrow, largest, lines = FORMATS[dtype], float(logits.max()), []
    axis = min(1, logits.dim() - 1)
    if inputs.options.get("reduction") == "none" and inputs.options.get("weight") is None:
        least = math.log(narrow.smallest_subnormal) - math.log(2)
        most = _most_of_smallest_log_p(difference.exact, inputs, axis)
        lines += [f"the smallest probability of a row, at most exp({most:.4g}), rounds to 0"] * (most < least)
        lines += [f"exp({largest:.4g}), of the largest logit, is inf"] * (largest > math.log(narrow.largest))
    total = float((logits - logits.amax(axis, keepdim=True)).exp().sum(axis).max())
    overflows = math.isinf(narrow.nearest(np.array([total]))[0])
    lines += [f"the largest sum of exp(x - max x) of a row, {total:.6g}, is inf"] * overflows
    return f"\nIn {dtype}, {' and '.join(lines)}" if lines else ""


def _most_of_smallest_log_p(loss: float, inputs: Inputs, axis: int) -> float:
    """Return an upper bound of the smallest `log p` in a row with this loss, where p is the softmax.

    The loss is the sum of `-q log p` over the classes, where q is the target probability after label smoothing. Let s
    be the largest sum of the target probabilities of a row, or 1 for class indices. The sum of the q is at most
    `max(1, s)`. So the smallest `log p` is at most `-loss / max(1, s)`. If a target probability is negative, return 0.
    """
    if not is_dense(inputs):
        return -loss
    target = inputs.target.double()
    # with a negative probability, the bound does not hold
    return -loss / max(1.0, float(target.sum(axis).max())) if (target >= 0).all() else 0.0


def _factors(inputs: Inputs) -> Iterator[tuple[str, float]]:
    """Yield the factors by which a bug may multiply a loss or a gradient, as pairs (name, factor)."""
    sizes = {words: number for words, number in _sizes(inputs).items() if number != 0}
    for one, two in permutations(sizes, 2):
        yield f"{_operand(one)} / {_operand(two)}", sizes[one] / sizes[two]
    for words, number in sizes.items():
        yield words, number
        yield f"1 / {_operand(words)}", 1 / number
    yield from (("wrong sign", -1.0), ("doubled", 2.0), ("halved", 0.5))
    yield from (("log 2", math.log(2)), ("1 / log 2", 1 / math.log(2)))


def _operand(words: str) -> str:
    return f"({words})" if " - " in words else words


def _sizes(inputs: Inputs) -> dict[str, float]:
    """Return the numbers from which factors are formed, by their names, such as "kept rows"."""
    first, target, options = inputs.input, inputs.target, inputs.options
    width, classes = first.shape[min(1, first.dim() - 1)], inputs.classes
    sizes = {}
    if is_dense(inputs):
        sizes["sum of the probabilities"] = float(target.double().sum())
    else:
        index = target.long()
        kept = index != options.get("ignore_index", -100)
        sizes["kept rows"] = float(kept.sum())
        if (weight := options.get("weight")) is not None:
            sizes["sum of weight over kept rows"] = float(weight.double()[index[kept]].sum())
    sizes["rows"] = first.numel() / width if width else 0.0
    sizes |= {"batch size": float(first.shape[0]) if first.dim() > 1 else 1.0, "classes": float(classes)}
    smoothing = options.get("label_smoothing", 0.0)
    return sizes | ({"1 - label_smoothing": 1 - smoothing} if 0 < smoothing < 1 else {})
