"""The intermediates of a cross-entropy, each with the error bound that a contract allows.

The intermediates are softmax and its logarithm, the coefficients `w_c q_c` of the target, and the denominator of a
mean. This module writes them once, with the operations of :mod:`crossent.numerics.bounds.rounding`. The error bounds of
the loss, of the gradients and of their derivatives use them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.rounding import Held
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FLOAT32, Array, Format, either


def softmax(t: Terms, c: Contract) -> tuple[Held, Held, Held]:
    """Return `log p`, (R, C), `p`, (R, C), and the log-sum-exp `m + log s`, (R,).

    An implementation may compute `p` as the exponential of `log p`, or as a quotient; a kernel also as a product with
    `1/s`. The largest error counts.

    `m` is the maximum of a row and `s = Σ exp(x - m)`. A fused kernel may subtract `m + log s` from the logits. This
    adds one rounding, of `u |m + log s|`, and :func:`offset` says how large `|m|` may count.
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
    if c.keeps_logsumexp:
        logsumexp = c.keep(logsumexp)
    if c.fused:
        taken = Held(log_probs.value, logsumexp.error[:, None], None)
        log_probs = wider(log_probs, taken.rounded(c.compute))
    quotient = exponentials.over(column(exact), c.compute, f.division_ulps)
    if c.fused:
        inverse = Held.exactly(1.0, c.storage).over(column(exact), c.compute, f.division_ulps)
        quotient = wider(quotient, exponentials.times(inverse, c.compute))
    if c.of_probability:
        log_probs = wider(log_probs, logarithm(quotient, log_probs, c))
    log_probs = c.keep(log_probs)
    by_exp = log_probs.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    return log_probs, wider(by_exp, quotient), logsumexp


def logarithm(probs: Held, log_probs: Held, c: Contract) -> Held:
    """Return `log p` computed from a computed probability: the error is `-log(1 - e/p)`, and that of the logarithm.

    Where p is near underflow, the implementation must not take the logarithm of p, and the error of `p` does not count.
    """
    u = c.compute.unit_roundoff
    ratio = either(probs.value < 8 * c.compute.smallest_normal, 0.0, probs.error / probs.value)
    moved = -np.log1p(-np.minimum(ratio, 1 - 2.0**-52))
    size = either(~np.isfinite(log_probs.value), 0.0, np.abs(log_probs.value)) + moved
    return Held(log_probs.value, moved + 2 * c.functions.log_ulps * u * size, c.compute)


def in_blocks(shifted: Held, logits: Array, c: Contract) -> Held:
    """Return the exponentials as terms of a sum in blocks, where each block is shifted by the largest logit so far.

    If a later block has a larger logit, the sum so far is scaled by `exp(before - after)`: one exponential and one
    product, with the relative error `(2 ulps + 1) u`. The shifts of a term add up to `x - max`, and the roundings of
    the shifts add up to at most `u |x - max|`. Blocks and order decide how often a term is scaled. The largest logit
    grows at each scaling, so a term is scaled at most once for each different logit above its own.
    """
    u, f = c.compute.unit_roundoff, c.functions
    size = either(np.isinf(shifted.value), 0.0, np.abs(shifted.value))
    moved = Held(shifted.value, np.maximum(shifted.error, u * size), c.compute)
    terms = moved.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    order = np.argsort(-logits, axis=1)
    grows = np.diff(np.take_along_axis(logits, order, 1), axis=1) != 0
    above = np.zeros(logits.shape)
    np.put_along_axis(above, order, np.cumsum(np.pad(grows, ((0, 0), (min(1, logits.shape[1]), 0))), 1), 1)
    scaled = np.expm1(above * (2 * f.exp_ulps + 1) * u)
    return Held(terms.value, terms.error + terms.largest * scaled, c.compute)


def offset(logits: Array, c: Contract) -> Array:
    """Return the largest logit of each row, (R,), as far as its magnitude may cost precision.

    With `contract.offset`, the result is the largest logit itself. A common offset may then cost precision: where every
    logit is 1e8, `1e8 + log C` rounds to 1e8 (pytorch#38839). Otherwise the magnitude is at most `max - min`, as if the
    row were shifted to reach or span zero. Cross-entropy does not change under this shift.
    """
    largest = logits.max(1, initial=-np.inf)
    if c.offset:
        return np.asarray(largest)
    least = np.where(np.isneginf(logits), np.inf, logits).min(1, initial=np.inf)  # -inf does not widen the row
    return np.asarray(np.clip(largest, least - largest, largest - least))


def parts(t: Terms, c: Contract) -> tuple[Held, Held]:
    """Return the coefficients of the target and the uniform coefficients without smoothing, `w_c t_c` and `w_c`."""
    target = coefficients(replace(t, label_smoothing=0.0), c)
    uniform = np.ones_like(t.logits) if t.weight is None else np.broadcast_to(t.weight, t.logits.shape)
    return target, Held.exactly(uniform, c.storage)


def coefficients(t: Terms, c: Contract) -> Held:
    """Return the coefficients `w_c q_c`, (R, C). Each product and sum is rounded; the factors may have any order."""
    rows, classes = t.logits.shape
    if t.probabilities is not None:
        q = Held.exactly(t.probabilities, None).rounded(c.compute)  # a target of another dtype may be converted first
    else:
        assert t.index is not None
        hot = np.zeros((rows, classes))
        hot[np.arange(rows), t.index] = 1.0
        q = Held.exactly(hot, c.storage)
    if t.smooths:
        narrow = smoothing_format(t, c)
        rest = unsmoothed_share(t, c)
        q = c.keep(c.keep(q.times(rest, narrow)).plus(constant(t.label_smoothing / classes, narrow, c), narrow))
    if t.weight is not None:
        q = c.keep(q.times(Held.exactly(t.weight, c.storage), c.compute, known=False))
    return q


def smoothing_format(t: Terms, c: Contract) -> Format:
    """Return the format in which the target is smoothed.

    torch smooths float32 class probabilities in float32, also with float64 logits. Probabilities in half precision need
    no rule: :meth:`Contract.keep` already rounds intermediates to half precision.
    """
    return FLOAT32 if c.in_target_format and t.target_format is FLOAT32 else c.compute


def unsmoothed_share(t: Terms, c: Contract) -> Held:
    """Return `1 - ε`.

    A kernel takes `ε` as a number in compute. The rounding error of `ε`, `u ε`, is then an error of `1 - ε`. Where `ε`
    is near one, this error is many roundings of `1 - ε`.
    """
    narrow = smoothing_format(t, c)
    share = constant(1 - t.label_smoothing, narrow, c)
    if not c.fused:
        return share
    # 1 - 1 is exactly 0.
    of_smoothing = np.where(np.equal(t.label_smoothing, 1), 0.0, narrow.unit_roundoff * t.label_smoothing)
    return Held(share.value, share.error + of_smoothing, share.format)


def constant(value: Array | float, format: Format, c: Contract) -> Held:
    """Return a number computed from the options, such as `1 - ε`.

    `ε` may be rounded when the implementation reads it, and the number once more when the number is used. The number is
    stored as other intermediates are.
    """
    return c.keep(Held(np.asarray(value), np.asarray(2 * format.unit_roundoff * np.abs(value)), None))


def denominator(t: Terms, c: Contract) -> Held | None:
    """Return the denominator of a mean for each call, (B,), or None for other reductions.

    The denominator is the total weight of the kept rows' true classes, summed in the order of the losses. Without class
    weights, and with class probabilities, the denominator is the number of kept rows.
    """
    if t.reduction != "mean":
        return None
    if t.index is None or t.weight is None:
        count = t.by_call(t.kept.astype(np.float64)).sum(-1)
        return c.keep(Held.exactly(count, None).rounded(c.compute))
    weights = np.where(t.kept, t.of_target(np.broadcast_to(t.weight, t.logits.shape)), 0.0)
    return c.keep(Held.exactly(t.by_call(weights), c.storage).sum(c.stored or c.compute, c.row_order))


def wider(a: Held, b: Held) -> Held:
    """Return `a` with the larger of the two errors; an implementation may compute `a` or `b` for the same number."""
    return Held(a.value, np.maximum(a.error, b.error), a.format)


def column(held: Held) -> Held:
    """Return a number for each row, (R,), as a column, (R, 1)."""
    return Held(held.value[..., None], held.error[..., None], held.format)
