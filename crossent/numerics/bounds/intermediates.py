"""Intermediates: what every cross-entropy holds on its way, each number with the error that a contract allows.

Softmax and its logarithm, the coefficients `w_c q_c` of the target, and what a mean divides by: written once, in the
algebra of :mod:`crossent.numerics.bounds.rounding`, for loss, gradients and what is derived from these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.rounding import Held
from crossent.numerics.formats import FLOAT32, Array, Format


@dataclass(frozen=True)
class Terms:
    """A call as R rows of C classes, all in float64 and exact, unless said otherwise.

    Attributes:
        logits: (R, C).
        log_sum: (R,), `log Σ exp(x - max x)`, to float64's precision.
        index: (R,), 0 on ignored rows; None for probability targets.
        kept: (R,), False on ignored rows.
        probabilities: (R, C), or None for index targets.
        weight: (C,), or None.
        label_smoothing, reduction: as given.
        upstream: (R,), the upstream gradient of each row, or of the reduced loss.
        target_format: of the probabilities, or None for index targets.
    """

    logits: Array
    log_sum: Array
    index: NDArray[np.int64] | None
    kept: NDArray[np.bool_]
    probabilities: Array | None
    weight: Array | None
    label_smoothing: float
    reduction: str
    upstream: Array
    target_format: Format | None = None


def softmax(t: Terms, c: Contract) -> tuple[Held, Held, Held]:
    """The logarithm of p, and p, (R, C): as the exponential of the former or as a quotient, whichever errs more.

    And `m + log s`, (R,), m the maximum: a fused kernel may take that from x. It rounds once more, by `u |m + log s|`,
    of which :func:`offset` says how much it may.
    """
    f = c.functions
    x = Held.exactly(t.logits, c.storage)
    shifted = x.minus(Held.exactly(t.logits.max(1, keepdims=True, initial=-np.inf), c.storage), c.compute)
    exponentials = shifted.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    exact = (in_blocks(shifted, t.logits, c) if c.fused else exponentials).sum(c.compute)
    log_sum = c.keep(c.keep(exact).log(c.compute, f.log_ulps, t.log_sum, f.log_absolute))
    log_probs = shifted.minus(column(log_sum), c.compute)
    largest = offset(t.logits, c)
    once = c.compute.unit_roundoff * (np.abs(largest) + log_sum.largest)
    logsumexp = Held(largest + log_sum.value, log_sum.error + once, c.compute)
    if c.fused:
        taken = Held(log_probs.value, logsumexp.error[:, None], None)
        log_probs = wider(log_probs, taken.rounded(c.compute))
    quotient = exponentials.over(column(exact), c.compute, f.division_ulps)
    if c.of_probability:
        log_probs = wider(log_probs, logarithm(quotient, log_probs, c))
    log_probs = c.keep(log_probs)
    by_exp = log_probs.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    return log_probs, wider(by_exp, quotient), logsumexp


def logarithm(probs: Held, log_probs: Held, c: Contract) -> Held:
    """`log p` of a probability that is held: `-log(1 - e/p)`, and the logarithm's own error.

    Nothing more than of `log_probs` where p is near underflow, of which no logarithm is taken.
    """
    u = c.compute.unit_roundoff
    ratio = np.where(probs.value < 8 * c.compute.smallest_normal, 0.0, probs.error / probs.value)
    moved = -np.log1p(-np.minimum(ratio, 1 - 2.0**-52))
    size = np.where(np.isfinite(log_probs.value), np.abs(log_probs.value), 0.0) + moved
    return Held(log_probs.value, moved + 2 * c.functions.log_ulps * u * size, c.compute)


def in_blocks(shifted: Held, logits: Array, c: Contract) -> Held:
    """The exponentials as terms of a sum that is taken in blocks, each shifted by the largest logit so far.

    Where a later block has a larger one, the sum up to there is scaled by `exp(before - after)`: an exponential and a
    product, `(2 ulps + 1) u`. The shifts of a term add up to `x - max`, and so do their roundings, to `u |x - max|`.
    How often a term is scaled depends on blocks and order; each time the largest logit grows, so that it is no more
    often than there are different logits above the term's.
    """
    u, f = c.compute.unit_roundoff, c.functions
    size = np.where(np.isinf(shifted.value), 0.0, np.abs(shifted.value))
    moved = Held(shifted.value, np.maximum(shifted.error, u * size), c.compute)
    terms = moved.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    order = np.argsort(-logits, axis=1)
    grows = np.diff(np.take_along_axis(logits, order, 1), axis=1) != 0
    above = np.zeros(logits.shape)
    np.put_along_axis(above, order, np.cumsum(np.pad(grows, ((0, 0), (min(1, logits.shape[1]), 0))), 1), 1)
    scaled = np.expm1(above * (2 * f.exp_ulps + 1) * u)
    return Held(terms.value, terms.error + terms.largest * scaled, c.compute)


def offset(logits: Array, c: Contract) -> Array:
    """What is taken for the largest logit of a row where its magnitude costs precision, (R,).

    As it is, where the contract lets a common offset cost: with every logit 1e8, `1e8 + log C` is 1e8 (pytorch#38839).
    Otherwise no more than `max - min`, as if the row were moved so that it reaches or spans zero: cross-entropy does
    not see the move.
    """
    largest = logits.max(1, initial=-np.inf)
    if c.offset:
        return np.asarray(largest)
    least = np.where(np.isneginf(logits), np.inf, logits).min(1, initial=np.inf)  # -inf is a class that is not there
    return np.asarray(np.clip(largest, least - largest, largest - least))


def coefficients(t: Terms, c: Contract) -> Held:
    """`w_c q_c`, (R, C): each product and sum rounded, in whichever order the factors come."""
    rows, classes = t.logits.shape
    if t.probabilities is not None:
        q = Held.exactly(t.probabilities, None).rounded(c.compute)  # of another dtype, they may be converted first
    else:
        assert t.index is not None
        hot = np.zeros((rows, classes))
        hot[np.arange(rows), t.index] = 1.0
        q = Held.exactly(hot, c.storage)
    if t.label_smoothing:
        narrow = smoothing_format(t, c)
        rest = constant(1 - t.label_smoothing, narrow, c)
        q = c.keep(c.keep(q.times(rest, narrow)).plus(constant(t.label_smoothing / classes, narrow, c), narrow))
    if t.weight is not None:
        q = c.keep(q.times(Held.exactly(t.weight, c.storage), c.compute, known=False))
    return q


def smoothing_format(t: Terms, c: Contract) -> Format:
    """What the target is smoothed in: float32 for float32 probabilities beside float64 logits, where it is torch's.

    In half precision, to keep an intermediate is to round to it.
    """
    return FLOAT32 if c.in_target_format and t.target_format is FLOAT32 else c.compute


def constant(value: float, format: Format, c: Contract) -> Held:
    """A number made of the options: rounded where ε enters, and once more where it is used; and held as others are."""
    return c.keep(Held(np.asarray(value), np.asarray(2 * format.unit_roundoff * abs(value)), None))


def denominator(t: Terms, c: Contract) -> Held | None:
    """What `mean` divides by: the weight of the kept rows, summed as their losses are; or the number of rows."""
    if t.reduction != "mean":
        return None
    if t.index is None or t.weight is None:
        return c.keep(Held.exactly(float(t.kept.sum()), None).rounded(c.compute))
    weights = Held.exactly(np.where(t.kept, t.weight[t.index], 0.0), c.storage)
    return c.keep(weights.sum(c.stored or c.compute, c.row_order))


def wider(a: Held, b: Held) -> Held:
    """The number with the larger of two errors: it may be held in either way."""
    return Held(a.value, np.maximum(a.error, b.error), a.format)


def column(held: Held) -> Held:
    """(R,) as (R, 1)."""
    return Held(held.value[..., None], held.error[..., None], held.format)
