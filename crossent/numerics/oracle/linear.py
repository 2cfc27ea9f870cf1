r"""The exact loss and gradients of a linear cross-entropy, each number with a proven error radius.

    z = h Wᵀ + b        loss = cross-entropy(z)        d = ∂loss/∂z
    ∂loss/∂h = d W      ∂loss/∂W = dᵀ h                ∂loss/∂b = Σ_n d_n

Here h are the hidden states, W and b are the weight and bias of the linear layer, and z are the logits.
:func:`_in_float64` computes in float64, with the radius of the proof below. Where the proof does not apply,
:func:`_in_balls` computes in the ball arithmetic of flint.

Proof for float64. Write `u = 2^-53` and `γ_n = n u/(1 - n u)`.

* Logits. The product of two float32 numbers is exact in float64. The sum of H products and a bias, in any order, has an
  error of at most `γ_H (Σ|h_k W_ck| + |b_c|)`. (Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd
  ed., section 4.2.) By Cauchy-Schwarz this error is at most `e = γ_{H+1} (‖h‖ max_c ‖W_c‖ + max_c |b_c|)`, with
  Euclidean norms. (`γ_H` would do; the code uses the next larger number.)
* Cross-entropy of the computed logits z'. The proof of :class:`crossent.numerics.oracle.formula.Formula` uses one
  property of float32 logits: magnitudes below 2^128. So the radii of `Formula` hold for z'.
* From z' to the exact z. Every logit changes by at most `e`. In `log p_c = -log Σ_i exp(z_i - z_c)`, the term of class
  c is 1, and every other term changes by a factor of at most `exp(2e)`. So `log p_c` changes by at most
  `log(p_c + (1 - p_c) exp(2e))` if the other terms grow. If they shrink, the change is smaller, since
  `1/(p + (1-p)/x) ≤ p + (1-p) x`, the inequality of the harmonic and the arithmetic mean. With `δ = expm1(2e)`, this
  logarithm is `log1p((1 - p_c) δ) ≤ (1 - p_c) δ`. Hence the loss `-Σ v_c log p_c` changes by at most
  `Σ |v_c| (1 - p_c) δ`. The probability p_c grows or shrinks at most by the factor `1 + (1 - p_c) δ`, so p_c changes by
  at most `p_c (1 - p_c) δ`, and `d_c = s (p_c Σv - v_c)` by at most `|s Σv| p_c (1 - p_c) δ`. (The
  module `formula` defines v and s.)
* Products. Let d' be the computed d, `ρ` its radii, and n the number of terms of a dot product. Write `|A|` for the
  matrix of the magnitudes of A. The computed `d' W` differs from `d W` by at most `ρ |W| + γ_n |d'| |W|`. (The code
  uses `γ_{n+1}`.) The gradients of W and b have the same bound, with h or ones in place of W. The proof assumes that
  numpy's BLAS adds the terms of each dot product, in any order, with or without fused multiply-adds. The proof does not
  cover matrix algorithms that subtract, such as Strassen's.

The radii are computed in float64 too. The factor `1 + 2^-20` covers the rounding errors of the radii for up to 2^30
terms, and 2^-1000 covers products that underflow. ∎
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flint
import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import Array
from crossent.numerics.linear_call import LinearCall
from crossent.numerics.oracle.answer import reduce_losses
from crossent.numerics.oracle.arguments import Arguments, Denominator
from crossent.numerics.oracle.arithmetic import Ball, BallArithmetic, Elements, Float64Arithmetic, gamma
from crossent.numerics.oracle.formula import FiniteRows, Formula, float64_radius
from crossent.numerics.oracle.products import ball_product

# The largest number of logits in a block in float64, an array of 8 MiB, unless a single row is longer. With smaller
# blocks, the weight is read more often.
_BLOCK = 2**20
# The largest absolute radius of a logit in ball arithmetic: the oracle doubles the bits until no radius is larger.
_LOGIT_RADIUS = 2.0**-85
_BITS = 128  # the first precision of ball arithmetic
_MARGIN, _TINY = 1 + 2.0**-20, 2.0**-1000  # for the errors of the radii: see the end of the proof


@dataclass(frozen=True, eq=False)
class LinearAnswer:
    """The exact loss and gradients of a :class:`LinearCall`, each number with an error radius.

    Attributes:
        loss: (N,) for the reduction "none", otherwise 0-d.
        grad_input: (N, H).
        grad_weight: (V, H).
        grad_bias: (V,); None if the call has no bias.
    """

    loss: Ball
    grad_input: Ball
    grad_weight: Ball
    grad_bias: Ball | None


def linear_answer(call: LinearCall, *, in_balls: bool = False) -> LinearAnswer:
    """Return the exact loss and gradients of a call of a linear cross-entropy.

    The hidden state of an ignored row has the gradient 0. If rows are kept but the denominator of the mean is 0,
    the weight, the bias and the other hidden states have the gradient NaN.

    Args:
        call: The arguments.
        in_balls: Use ball arithmetic even if float64 suffices. Ball arithmetic takes about a hundred times as long.

    Raises:
        ValueError: An argument has a wrong shape, dtype or value.
        IndexError: A class index is outside `[0, V)` and is not `ignore_index`.
    """
    zero_logits = np.broadcast_to(np.float32(0), (call.rows, call.classes))  # takes no memory; only the shape counts
    arguments = Arguments(
        zero_logits,
        call.index,
        call.probabilities,
        call.weight,
        call.ignore_index,
        call.reduction,
        call.label_smoothing,
        call.upstream,
    )
    denominator = Denominator.of(arguments)
    narrow = all(a is None or a.dtype == np.float32 for a in (call.input, call.linear_weight, call.linear_bias))
    narrow = narrow and arguments.float64_suffices and not in_balls
    errors = _logit_errors(call) if narrow else np.zeros(0)
    if narrow and (errors <= 2.0**-20).all():
        losses, *gradients = _in_float64(call, arguments, denominator, errors)
    else:
        losses, *gradients = _in_balls(call, arguments, denominator)
    losses = losses.replaced(~arguments.kept | (call.classes == 1), 0.0)
    grad_input, grad_weight, grad_bias = gradients
    grad_input = grad_input.replaced(~arguments.kept[:, None] | (call.classes == 1), 0.0)
    if denominator.nan_radius is not None and arguments.kept.any():
        radius, all_numbers = denominator.nan_radius, np.array(True)
        grad_input = grad_input.replaced(arguments.kept[:, None], np.nan, radius)
        grad_weight = grad_weight.replaced(all_numbers, np.nan, radius)
        grad_bias = grad_bias.replaced(all_numbers, np.nan, radius)
    elif call.classes == 1 or not arguments.kept.any():
        grad_weight, grad_bias = (ball.replaced(np.array(True), 0.0) for ball in (grad_weight, grad_bias))
    loss = reduce_losses(arguments, losses, denominator)
    return LinearAnswer(loss, grad_input, grad_weight, None if call.linear_bias is None else grad_bias)


def _logit_errors(call: LinearCall) -> Array:
    """Return a bound on the float64 errors of each row's logits, (N,). The bound is inf if a logit may reach 2^127."""

    def norms(rows: NDArray[Any]) -> Array:
        squares: Array = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        return np.sqrt(squares)

    bias = 0.0 if call.linear_bias is None else float(np.abs(call.linear_bias).max())
    size = norms(call.input) * norms(call.linear_weight).max() + bias
    errors: Array = np.where(size < 2.0**127, gamma(call.features + 1) * size * _MARGIN, np.inf)
    return errors


def _in_float64(call: LinearCall, arguments: Arguments, denominator: Denominator, errors: Array) -> list[Ball]:
    """Return the losses and the gradients of h, W and b in float64. `errors` bounds the errors of each row's logits."""
    h, w = call.input.astype(np.float64), call.linear_weight.astype(np.float64)
    bias = 0.0 if call.linear_bias is None else call.linear_bias.astype(np.float64)
    size_w = np.abs(w)
    by_row: list[tuple[Ball, Ball]] = []
    grad_w, radius_w = np.zeros(w.T.shape), np.zeros(w.T.shape)  # transposed, which BLAS computes faster
    grad_b, radius_b = np.zeros(len(w)), np.zeros(len(w))
    step = max(1, _BLOCK // call.classes)
    for start in range(0, call.rows, step):
        rows = slice(start, min(start + step, call.rows))
        formula = Formula(_finite_rows(call, arguments, denominator, h[rows] @ w.T + bias, rows), Float64Arithmetic())
        losses, d = _with_logit_errors(formula, np.expm1(2 * errors[rows]) * _MARGIN)
        error_d = d.radius + gamma(call.classes + 1) * np.abs(d.hi)
        by_row.append((losses, _with_radius(d.hi @ w, error_d @ size_w)))
        error_d = d.radius + gamma(call.rows + 1) * np.abs(d.hi)
        grad_w += h[rows].T @ d.hi
        radius_w += np.abs(h[rows]).T @ error_d
        grad_b += d.hi.sum(0)
        radius_b += error_d.sum(0)
    losses = Ball.joined([losses for losses, _ in by_row])
    grad_h = Ball.joined([grad for _, grad in by_row], (call.features,))
    return [losses, grad_h, _with_radius(grad_w.T, radius_w.T), _with_radius(grad_b, radius_b)]


def _with_radius(values: Array, radius: Array) -> Ball:
    """Return the values as a ball with the radius `radius·(1 + 2^-20) + 2^-1000`. `radius` changes in place."""
    radius *= _MARGIN
    radius += _TINY
    return Ball(values, np.broadcast_to(0.0, values.shape), radius)


def _finite_rows(
    call: LinearCall, arguments: Arguments, denominator: Denominator, logits: Array, rows: slice
) -> FiniteRows:
    """Return the rows of a call in the slice `rows`. `logits` has the float64 logits of these rows."""
    kept = arguments.kept[rows]
    return FiniteRows(
        logits=logits,
        kept=kept,
        index=None if call.index is None else np.where(kept, call.index[rows], 0),
        probabilities=None if call.probabilities is None else call.probabilities[rows],
        weight=call.weight,
        label_smoothing=call.label_smoothing,
        upstream=np.broadcast_to(call.upstream, call.rows)[rows],
        denominator=denominator.value,
    )


def _with_logit_errors(formula: Formula, delta: Array) -> tuple[Ball, Ball]:
    """Return the losses, (r,), and the gradient of the logits, (r, V). The radii cover the errors of the logits.

    `delta`, (r,), has the `δ` of this module's proof for each row.
    """
    rows, every = formula.rows, np.arange(len(delta))
    with formula.arithmetic.context():
        p = formula.exps / formula.partition[:, None]
        others = 1 - p
        others[every, formula.top] = formula.rest / formula.partition
        if rows.dense:
            total = np.abs(formula.total_coefficients)
            of_loss = (formula.magnitudes * others).sum(1)
        else:
            total = np.abs(formula.coefficients)
            of_loss = total * others[rows.at_true_class]
        of_gradient = (np.abs(formula.scale) * total * delta)[:, None] * p * others
        losses, gradient = formula.losses(), formula.gradient()
        gradient[~rows.kept] = 0.0
        radius = (float64_radius(formula.gradient_sizes()) + of_gradient) * _MARGIN
        loss_radius = (float64_radius(formula.loss_sizes()) + of_loss * delta) * _MARGIN
    radius = np.where(rows.kept[:, None], radius, 0.0)
    return Ball(losses, np.zeros_like(losses), loss_radius), Ball(gradient, np.zeros_like(gradient), radius)


_EXP = np.frompyfunc(flint.arb.exp, 1, 1)
_LOG1P = np.frompyfunc(flint.arb.log1p, 1, 1)
_RAD = np.frompyfunc(flint.arb.rad, 1, 1)
_WITH_RADIUS = np.frompyfunc(flint.arb, 2, 1)


def _in_balls(call: LinearCall, arguments: Arguments, denominator: Denominator) -> list[Ball]:
    """Return the losses and the gradients of h, W and b, computed in ball arithmetic."""
    bits, zeros = _BITS, np.zeros(call.input.shape)
    h, w = (factor.astype(np.float64) for factor in (call.input, call.linear_weight))
    product = ball_product(Ball(h, zeros, zeros), w.T)
    while True:
        arithmetic = BallArithmetic(bits)
        with arithmetic.context():
            if product is not None and bits == _BITS:
                logits = arithmetic.numbers(product.hi) + np.asarray(_WITH_RADIUS(product.lo, product.radius), object)
            else:
                logits = _product(arithmetic.numbers(h), arithmetic.numbers(w).T)
            if call.linear_bias is not None:
                logits = logits + arithmetic.numbers(call.linear_bias)
            if (np.asarray(_RAD(logits), np.float64) <= _LOGIT_RADIUS).all():
                return _from_logits(call, arguments, denominator, arithmetic, logits)
        bits *= 2


def _from_logits(
    call: LinearCall, arguments: Arguments, denominator: Denominator, arithmetic: BallArithmetic, logits: Elements
) -> list[Ball]:
    """Return the losses and the gradients of h, W and b, from the balls of the logits, (N, V)."""
    every, kept = np.arange(call.rows), arguments.kept
    zero = arithmetic.numbers(np.zeros(1))
    top = every, np.asarray(logits, np.float64).argmax(1)
    shifted = logits - logits[top][:, None]
    shifted[top] = zero[0]
    exps = np.asarray(_EXP(shifted), object)
    below = exps.copy()
    below[top] = zero[0]
    rest = arithmetic.total(below)
    log_sum, p = np.asarray(_LOG1P(rest)), exps / (1 + rest)[:, None]
    scale = arithmetic.numbers(np.broadcast_to(call.upstream, call.rows)) / denominator.value
    scale = np.where(kept, scale, zero)[:, None]
    weight = arithmetic.numbers(np.ones(call.classes) if call.weight is None else call.weight)
    if call.index is None or call.label_smoothing:
        smoothing = flint.arb(call.label_smoothing)
        if call.index is None:
            assert call.probabilities is not None
            hot = arithmetic.numbers(call.probabilities)
        else:
            hot = arithmetic.numbers(np.arange(call.classes) == call.index[:, None])
        v = (hot * (1 - smoothing) + smoothing / call.classes) * weight
        losses, d = arithmetic.total(v * (log_sum[:, None] - shifted)), scale * (p * arithmetic.total(v)[:, None] - v)
    else:  # for the true class, compute `p - 1` as minus the sum of the other probabilities, so that nothing cancels
        at_true_class = every, np.where(kept, call.index, 0)
        v = weight[at_true_class[1]]
        exps[at_true_class] = zero[0]
        losses, d = v * (log_sum - shifted[at_true_class]), p * (scale[:, 0] * v)[:, None]
        d[at_true_class] = -(scale[:, 0] * v * arithmetic.total(exps) / (1 + rest))
    ball = arithmetic.ball(d)
    transposed = Ball(ball.hi.T, ball.lo.T, ball.radius.T)
    factors = call.linear_weight.astype(np.float64), call.input.astype(np.float64)
    products = [ball_product(ball, factors[0]), ball_product(transposed, factors[1])]
    grad_h, grad_w = (
        found if found is not None else arithmetic.ball(_product(terms, arithmetic.numbers(factor)))
        for found, terms, factor in zip(products, (d, d.T), factors, strict=True)
    )
    return [arithmetic.ball(np.asarray(losses, object)), grad_h, grad_w, arithmetic.ball(arithmetic.total(d.T))]


def _product(a: Elements, b: Elements) -> Elements:
    left, right = (flint.arb_mat(len(x), x.shape[1], x.ravel().tolist()) for x in (a, b))
    return np.array((left * right).entries(), object).reshape(len(a), b.shape[1])
