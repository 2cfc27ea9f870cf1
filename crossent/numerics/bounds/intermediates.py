"""The intermediates of a cross-entropy, each with the error bound that a contract allows.

For a class c, the coefficient is `w_c q_c`, with the class weight `w_c` and the smoothed target `q_c`. In all
functions, `t` has the arguments of a call, and `c` is a contract. `x` is a row of logits, and `u` is the unit roundoff
of a format. In shapes, R is the number of rows, C of classes and B of calls.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.rounding import Computed, Order
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FLOAT32, Array, Format, flushing, where_any


def softmax(t: Terms, c: Contract) -> tuple[Computed, Computed, Computed]:
    """Return the log-probabilities `log p`, the probabilities `p`, both (R, C), and the log-sum-exp of each row, (R,).

    Let `m` be the maximum of a row and `s = Σ exp(x - m)`. An implementation may compute `p` as `exp(log p)` or as
    `exp(x - m) / s`. A kernel may also multiply by `1/s`. The error of `p` is the largest error of these computations.

    A kernel may subtract the rounded log-sum-exp, `m + log s`, from the logits. This rounding adds an error of
    `u |m + log s|`. The bound of this error has the number `o` of :func:`offset` in place of `m`, and the returned
    log-sum-exp is `o + log s`.
    """
    f = c.functions
    x = Computed.exactly(t.logits, c.storage)
    shifted = x.minus(Computed.exactly(t.logits.max(1, keepdims=True, initial=-np.inf), c.storage), c.compute)
    exponentials = shifted.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    total = (exponentials_in_blocks(shifted, t.logits, c) if c.fused else exponentials).sum(c.compute)
    log_sum = c.keep(c.keep(total).log(c.compute, f.log_ulps, t.log_sum, f.log_absolute))
    log_probs = shifted.minus(column(log_sum), c.compute)
    largest = offset(t.logits, c)
    once = c.compute.unit_roundoff * (np.abs(largest) + log_sum.largest)
    logsumexp = Computed(largest + log_sum.value, log_sum.error + once, c.compute)
    if c.keeps_logsumexp:
        logsumexp = c.keep(logsumexp)
    if c.fused:
        subtracted = Computed(log_probs.value, logsumexp.error[:, None], None)
        log_probs = wider(log_probs, subtracted.rounded(c.compute))
    quotient = exponentials.over(column(total), c.compute, f.division_ulps)
    if c.fused:
        inverse = Computed.exactly(1.0, c.storage).over(column(total), c.compute, f.division_ulps)
        quotient = wider(quotient, exponentials.times(inverse, c.compute))
    if c.of_probability:
        log_probs = wider(log_probs, logarithm(quotient, log_probs, c))
    log_probs = c.keep(log_probs)
    by_exp = log_probs.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    if c.keeps_probs:
        by_exp = c.keep(by_exp)
    return log_probs, wider(by_exp, quotient), logsumexp


def logarithm(probs: Computed, log_probs: Computed, c: Contract) -> Computed:
    """Return `log p`, (R, C), for an implementation that computes the logarithm of a computed probability `p`, (R, C).

    If `e` is the error of `p`, the error of `log p` is `-log(1 - e/p)`, plus the error of the logarithm function. The
    values of `log_probs` are the exact `log p`.
    """
    u = c.compute.unit_roundoff
    ratio = where_any(probs.value < 8 * c.compute.smallest_normal, 0.0, probs.error / probs.value)
    of_argument = -np.log1p(-np.minimum(ratio, 1 - 2.0**-52))
    size = where_any(~np.isfinite(log_probs.value), 0.0, np.abs(log_probs.value)) + of_argument
    return Computed(log_probs.value, of_argument + 2 * c.functions.log_ulps * u * size, c.compute)


def exponentials_in_blocks(shifted: Computed, logits: Array, c: Contract) -> Computed:
    """Return the exponentials, (R, C), with the errors that they have if a kernel sums them in blocks of classes.

    The arguments of the exponentials are `shifted`, the logits minus the maximum of their row. A kernel may subtract
    the largest logit so far from the logits of a block. If a later block has a larger logit, the kernel scales the sum
    so far by `exp(before - after)`, for the old and the new largest logit. The scaling has one exponential and one
    product, with the relative error `(2 ulps + 1) u`. Here `ulps` is the error of exp in ulps.

    A term becomes a product of exponentials, whose arguments add up to `x - max`. The rounding errors of the arguments
    add up to at most `u |x - max|`. The largest logit grows at each scaling, so a kernel scales a term at most once for
    each different larger logit.
    """
    u, f = c.compute.unit_roundoff, c.functions
    size = where_any(np.isinf(shifted.value), 0.0, np.abs(shifted.value))
    argument = Computed(shifted.value, np.maximum(shifted.error, u * size), c.compute)
    terms = argument.exp(c.compute, f.exp_ulps, f.exp_per_unit)
    order = np.argsort(-logits, axis=1)
    grows = np.diff(np.take_along_axis(logits, order, 1), axis=1) != 0
    above = np.zeros(logits.shape)
    np.put_along_axis(above, order, np.cumsum(np.pad(grows, ((0, 0), (min(1, logits.shape[1]), 0))), 1), 1)
    scaled = np.expm1(above * (2 * f.exp_ulps + 1) * u)
    return Computed(terms.value, terms.error + terms.largest * scaled, c.compute)


def offset(logits: Array, c: Contract) -> Array:
    """Return, for each row, the number that the error bound of the log-sum-exp uses in place of the maximum, (R,).

    By default, this number is the maximum, clipped to a magnitude of at most `max - min`. Here `min` is the smallest
    logit above -inf. Clipping has the effect of adding a constant to all logits of the row, which does not change the
    cross-entropy.

    If `c.offset` is True, this number is the maximum itself. A common offset may then cost precision. For example, if
    every logit is 1e8, `1e8 + log C` rounds to 1e8 in float32, for a small C (pytorch#38839).
    """
    largest = logits.max(1, initial=-np.inf)
    if c.offset:
        return np.asarray(largest)
    least = np.where(np.isneginf(logits), np.inf, logits).min(1, initial=np.inf)
    return np.asarray(np.clip(largest, least - largest, largest - least))


def parts(t: Terms, c: Contract) -> tuple[Computed, Computed]:
    """Return the two parts of the coefficients: the part of the target and the uniform part, each (R, C).

    The part of the target is the class weight times the target before smoothing. The uniform part is the class weight.
    A coefficient is `1 - ε` times the first part, plus `ε/C` times the second, with the label smoothing `ε`.
    """
    target = coefficients(replace(t, label_smoothing=0.0), c)
    uniform = np.ones_like(t.logits) if t.weight is None else np.broadcast_to(t.weight, t.logits.shape)
    return target, Computed.exactly(uniform, c.storage)


def coefficients(t: Terms, c: Contract) -> Computed:
    """Return the coefficients `w_c q_c`, (R, C), for the class weights `w` and the smoothed target `q`."""
    rows, classes = t.logits.shape
    if t.probabilities is not None:
        # An implementation may convert a target of another dtype first.
        q = Computed.exactly(t.probabilities, None).rounded(c.compute)
    else:
        assert t.index is not None
        hot = np.zeros((rows, classes))
        hot[np.arange(rows), t.index] = 1.0
        q = Computed.exactly(hot, c.storage)
    if t.smooths:
        narrow = smoothing_format(t, c)
        share = unsmoothed_share(t, c)
        q = c.keep(c.keep(q.times(share, narrow)).plus(constant(t.label_smoothing / classes, narrow, c), narrow))
    if t.weight is not None:
        q = c.keep(q.times(Computed.exactly(t.weight, c.storage), c.compute, known=False))
    return q


def smoothing_format(t: Terms, c: Contract) -> Format:
    """Return the format in which an implementation smooths the target, usually `c.compute`.

    With `c.in_target_format`, float32 class probabilities are smoothed in float32.
    """
    if not c.in_target_format or t.target_format is not FLOAT32 or c.compute.precision == FLOAT32.precision:
        return c.compute
    return flushing(FLOAT32) if c.compute.flushes else FLOAT32


def unsmoothed_share(t: Terms, c: Contract) -> Computed:
    """Return `1 - ε`, for the label smoothing `ε`, with its error bound.

    A kernel rounds `ε` first. The rounding error, `u ε`, is much larger than `u (1 - ε)` if `ε` is near one.
    """
    narrow = smoothing_format(t, c)
    share = constant(1 - t.label_smoothing, narrow, c)
    if not c.fused:
        return share
    # If ε is 1, `1 - ε` is exactly 0.
    of_smoothing = np.where(np.equal(t.label_smoothing, 1), 0.0, narrow.unit_roundoff * t.label_smoothing)
    return Computed(share.value, share.error + of_smoothing, share.format)


def constant(value: Array | float, format: Format, c: Contract) -> Computed:
    """Return a number that an implementation computes from an option, such as `ε/C`, with its error bound.

    `value` is the exact number. The error covers two roundings, each of at most `u |value|`: for `ε/C`, the roundings
    of `ε` and of the quotient. For `1 - ε`, :func:`unsmoothed_share` adds the error of rounding `ε`.
    """
    return c.keep(Computed(np.asarray(value), np.asarray(2 * format.unit_roundoff * np.abs(value)), None))


def denominator(t: Terms, c: Contract) -> Computed | None:
    """Return the denominator of a mean for each call, (B,), or None for other reductions.

    The denominator is the number of kept rows. With class indices and class weights, the denominator is the sum of the
    weights of the kept rows' true classes.
    """
    if t.reduction != "mean":
        return None
    if t.index is None or t.weight is None:
        count = t.of_lines([line.sum(-1) for line in t.lines(t.kept.astype(np.float64))])
        return c.keep(Computed.exactly(count, None).rounded(c.compute))
    weights = np.where(t.kept, t.of_target(np.broadcast_to(t.weight, t.logits.shape)), 0.0)
    return c.keep(sum_of_calls(t, Computed.exactly(weights, c.storage), c.stored or c.compute, c.row_order))


def sum_of_calls(t: Terms, rows: Computed, format: Format, order: Order, sizes: Array | None = None) -> Computed:
    """Return the sum over each call's rows: (R,) becomes (B,).

    `format` is the format of the sum, and `order` has the allowed orders. In the error, `sizes`
    replaces smaller magnitudes of `rows`.
    """
    parts = zip(t.lines(rows.value), t.lines(rows.error), strict=True)
    of = [None] * len(t.lines(rows.value)) if sizes is None else t.lines(sizes)
    sums = [
        Computed(value, error, rows.format).sum(format, order, size)
        for (value, error), size in zip(parts, of, strict=True)
    ]
    return Computed(t.of_lines([one.value for one in sums]), t.of_lines([one.error for one in sums]), format)


def wider(a: Computed, b: Computed) -> Computed:
    """Return `a` with the larger error of `a` and `b`, which are two allowed computations of the same number."""
    return Computed(a.value, np.maximum(a.error, b.error), a.format)


def column(numbers: Computed) -> Computed:
    """Return the numbers of the rows, (R,), as a column, (R, 1)."""
    return Computed(numbers.value[..., None], numbers.error[..., None], numbers.format)
