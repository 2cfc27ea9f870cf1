"""The softmax, with its error bound, of logits that an implementation computes itself.

An implementation of a linear cross-entropy computes logits `z'` with `|z' - z| ≤ e`, where `z` are the exact logits.
Then the implementation computes the cross-entropy of z'. So the error of `log p_c` has two parts:

    computed log p_c - log p_c(z)  =  (computed log p_c - log p_c(z'))  +  (log p_c(z') - log p_c(z))

The magnitude of the second part is at most :func:`largest_move`.

The first part is the rounding error for the logits z'. In every rule of :mod:`crossent.numerics.bounds.rounding`, the
error grows with the magnitudes of the numbers. So this module applies the rules to magnitudes that are at least as
large as for any z' with `|z' - z| ≤ e`. No logit counts as exact, because the rules leave out some rounding errors of
exact numbers. Let `a = z - max z`, `p = softmax(z)`, `M_c` the largest move of `log p_c`, and `E = max_c e_c`. Then,
for every such z':

* `|z'_c - max z'| ≤ |a_c| + e_c + E`, since the maximum moves by at most E.
* `|log p_c(z')| ≤ |log p_c| + M_c`, and `p_c(z') ≤ w_c` with `w_c = p_c exp(M_c)`. Since `p_c(z') ≤ 1` too, the sum of
  the exponentials uses the smaller of w_c and 1.
* The sum `s' = Σ exp(z'_i - max z')` is at least one. For the class with the largest z', and so the largest
  probability, `log s' = -log p_c(z')`. So `log s' ≤ -log p_top(z') ≤ -log p_top + M_top`, where `top` is the class with
  the largest z.
* Divide the sum by s'. The terms become `p_c(z')`, and the error of the sum becomes relative. The error bound of a sum
  has two parts: the errors of the terms, and a multiple of `Ω(t)` for their sorted magnitudes t (:meth:`Computed.sum`).
  Both parts grow with every term. The bound for big and small terms holds for any choice of the big terms, and grows
  with every term too. So the bound for the terms w_c holds.
* A sum in blocks scales a term at most once for each larger logit that comes later (:func:`exponentials_in_blocks`).
  With the terms t in descending order, the j-th term is scaled at most j-1 times. So the scalings add an error of at
  most `Σ t_j f(j - 1)`, where f(k) is the relative error of k scalings. Since f increases, this sum is the least of the
  sums over all orders of the terms (rearrangement inequality). Each of these sums grows with every term, so the least
  sum grows too. So the bound for the terms w_c holds, although the `p_c(z')` may have another order. ∎

In all functions, `t` has the arguments of a call, and `c` is a contract. In shapes, R is the number of rows and C of
classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.intermediates import coefficients, column, offset
from crossent.numerics.bounds.rounding import Computed
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import Array


def largest_move(t: Terms, c: Contract) -> Array:
    """Return how far `log softmax(z)_c` can move, (R, C), if every logit z_i moves by at most its error `e_i`.

    If z moves by Δ, then `log p_c` moves by `-log(p_c + Σ_{i≠c} p_i exp(Δ_i - Δ_c))`. The sum is largest for
    `Δ_i = e_i` and `Δ_c = -e_c`, and smallest for the opposite signs. With `y_i = e_i + e_c`, and `y_c = 0`, the
    magnitudes of the two moves are `log Σ p_i exp(y_i)` and `-log Σ p_i exp(-y_i)`. The first is at least as large: the
    product of the two sums is at least one (Cauchy-Schwarz). So the largest move is

        log1p(Σ_{i≠c} p_i expm1(e_i + e_c)).

    If `c.recomputes` is True, the logit of `log p_c` and the same logit in `log Σ exp(z_i)` may have different errors.
    The logit then moves by at most e_c, and `log Σ exp(z_i)` by at most `log1p(Σ p_i expm1(e_i))`. The largest move is
    the sum of both.
    """
    assert t.logits_error is not None
    log_p = _log_probs(t)
    p, grown = np.exp(log_p), np.expm1(t.logits_error)
    terms = p * grown
    total = terms.sum(1, keepdims=True)
    if c.recomputes:
        return _with_far_moves(np.asarray(t.logits_error + np.log1p(total)), log_p, t.logits_error, True)
    top = np.arange(len(p)), t.logits.argmax(1)
    # The sums over the other classes. If a class has most of the total, `total - terms` loses digits: the margin covers
    # the loss. For the top class, add the other terms instead.
    others, rest = np.maximum(total - terms, 0) + 2.0**-50 * total, 1 - p
    terms[top], p[top] = 0.0, 0.0
    others[top], rest[top] = terms.sum(1), p.sum(1)
    # expm1(a + b) = exp(b) expm1(a) + expm1(b)
    moves = np.log1p((1 + grown) * others + grown * rest)
    return _with_far_moves(np.asarray(moves), log_p, t.logits_error, False)


def _with_far_moves(moves: Array, log_p: Array, e: Array, recomputes: bool) -> Array:
    """Return `moves`, the result of :func:`largest_move`, computed anew in each row with an error above 300.

    In such a row, `exp(e_i + e_c)` may overflow. So the function computes a log-sum-exp:
    `log(p_c + exp(e_c) Σ_{i≠c} exp(log p_i + e_i))` or, with `recomputes`, `e_c + log Σ exp(log p_i + e_i)`.
    """
    far = e.max(1) > 300  # `exp(e_i + e_c)` may overflow, and a p_i that underflows may become large
    if not far.any():
        return moves
    log_p, e = log_p[far], e[far]
    raised, none = log_p + e, np.full((len(e), 1), -np.inf)
    if recomputes:
        moves[far] = e + np.logaddexp.reduce(raised, axis=1, keepdims=True)
        return moves
    before = np.hstack([none, np.logaddexp.accumulate(raised[:, :-1], axis=1)])
    after = np.hstack([np.logaddexp.accumulate(raised[:, :0:-1], axis=1)[:, ::-1], none])
    moves[far] = np.maximum(np.logaddexp(log_p, e + np.logaddexp(before, after)), 0.0)
    return moves


def _log_probs(t: Terms) -> Array:
    """Return the log-probabilities of the exact logits, (R, C)."""
    return np.asarray(t.logits - t.logits.max(1, keepdims=True) - t.log_sum[:, None])


def softmax_of_inexact(t: Terms, c: Contract) -> tuple[Computed, Computed, Computed]:
    """Return `log p` and `p`, both (R, C), and the log-sum-exp, (R,), of logits with the errors `t.logits_error`.

    The errors of `log p` and of `p` include the effect of the errors of the logits. The `error` of the log-sum-exp is
    the rounding error alone. The `value` of the log-sum-exp is the largest magnitude for any z' with `|z' - z| ≤ e`.
    """
    assert t.logits_error is not None
    f, tiny = c.functions, c.compute.smallest_normal
    largest, most = t.logits.max(1), t.logits_error.max(1)
    top = np.arange(len(largest)), t.logits.argmax(1)
    log_p = _log_probs(t)
    moves = largest_move(t, c)
    p = np.exp(log_p)
    w = np.exp(np.minimum(log_p + moves, 700.0))

    spread = np.abs(t.logits - largest[:, None]) + t.logits_error + most[:, None]
    subtracted = c.compute.rounding_error(spread)
    relative = _exp_error(spread, subtracted, c)
    lost = np.where(np.exp(-spread) < 8 * tiny, tiny, 0.0)  # an exponential near underflow may be flushed to zero
    error = _sum_error(np.minimum(w, 1.0), relative, lost, c)
    exact = Computed(np.ones_like(error), error, c.compute)
    most_log = t.log_sum + moves[top]
    log_sum = c.keep(c.keep(exact).log(c.compute, f.log_ulps, most_log, f.log_absolute))

    size = np.abs(log_p) + moves
    log_error = Computed(size, subtracted + log_sum.error[:, None], None).rounded(c.compute).error
    shift = np.abs(offset(t.logits, c)) + (1 if c.offset else 2) * most
    logsumexp = Computed(shift + most_log, log_sum.error, None).rounded(c.compute)
    if c.keeps_logsumexp:
        logsumexp = c.keep(logsumexp)
    if c.fused:
        taken = Computed(size, np.broadcast_to(logsumexp.error[:, None], size.shape), None).rounded(c.compute)
        log_error = np.maximum(log_error, taken.error)
    log_error = c.keep(Computed(size, log_error, c.compute)).error

    by_exp = w * _exp_error(size, log_error, c) + np.where(np.exp(-size) < 8 * tiny, tiny, 0.0)
    exponentials = Computed(w, w * relative + lost, c.compute)
    p_error = np.maximum(by_exp, exponentials.over(column(exact), c.compute, f.division_ulps).error)
    if c.fused:
        inverse = Computed.exactly(1.0, c.storage).over(column(exact), c.compute, f.division_ulps)
        p_error = np.maximum(p_error, exponentials.times(inverse, c.compute).error)
    of_move = np.where(moves < 1, p * np.expm1(np.minimum(moves, 1.0)), w - p)  # p may underflow where w does not
    log_probs = Computed(log_p, _inf_for_nan(moves + log_error), c.compute)
    return log_probs, Computed(p, _inf_for_nan(of_move + p_error), c.compute), logsumexp


def _exp_error(size: Array, error: Array, c: Contract) -> Array:
    """Return the relative error of each `exp(x)` that does not underflow, by the rules of :meth:`Computed.exp`.

    `size` is the largest magnitude of each argument `x`, and `error` is the error of each argument.
    """
    u = c.compute.unit_roundoff
    argument_error = error + c.functions.exp_per_unit * u * (size + error)
    return np.asarray(np.expm1(argument_error) + 2 * c.functions.exp_ulps * u * np.exp(argument_error))


def _sum_error(w: Array, relative: Array, lost: Array, c: Contract) -> Array:
    """Return the relative error of the sum of the exponentials of each row, (R,).

    For each class, `w` is the largest possible probability, and `relative` is the relative error of the exponential.
    `lost` is the additional error of an exponential near underflow, divided by the sum. All three are (R, C).
    """
    errors = w * relative + lost
    if not c.fused:
        return Computed(w, errors, c.compute).sum(c.compute).error
    terms = np.sort(w + errors, axis=1)[:, ::-1]
    scaled = terms * np.expm1(np.arange(w.shape[1]) * (2 * c.functions.exp_ulps + 1) * c.compute.unit_roundoff)
    return np.asarray(Computed(terms, scaled, c.compute).sum(c.compute).error + errors.sum(1))


def unshifted_of_inexact(t: Terms, c: Contract, logsumexp: Computed) -> Computed:
    """Return the error of `Σ v_c · logsumexp - Σ v_c z_c`, (R,). Only the `error` of the result has a meaning.

    A kernel may compute the loss by this formula, with the coefficients `v_c` (class weight times smoothed target).

    First, this function shifts the logits of each row: their maximum becomes `intermediates.offset`. Then the function
    takes the magnitudes of all numbers, and adds the two sums. So every rounding error is at least as large as for the
    computed logits. The errors of the logits change the exact result by at most `Σ |v_c| M_c`, where `M_c` is
    :func:`largest_move`. `logsumexp` is the third result of :func:`softmax_of_inexact`.
    """
    assert t.logits_error is not None
    q = coefficients(t, replace(c, stored=None))
    shifted = t.logits + (offset(t.logits, c) - t.logits.max(1))[:, None]
    size = np.abs(shifted) + t.logits_error + (0.0 if c.offset else 2 * t.logits_error.max(1, keepdims=True))
    inexact = Computed(size, size * 2.0**-60, None)  # treat no logit as exact
    logits = Computed(np.abs(q.value), q.error, q.format).times(inexact, c.compute).sum(c.compute)
    total = q.sum(c.compute)
    rows = Computed(np.abs(total.value), total.error, c.compute).times(logsumexp, c.compute).plus(logits, c.compute)
    return Computed(rows.value, rows.error + (q.largest * largest_move(t, c)).sum(1), c.compute)


def _inf_for_nan(error: Array) -> Array:
    return np.where(np.isnan(error), np.inf, error)
