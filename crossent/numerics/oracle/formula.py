r"""The formula of cross-entropy and its derivatives, written once for float64 and for the ball arithmetic of flint.

A row has the logits `x` over `C` classes, with `p = softmax(x)` and `lp = log p`. The other symbols are:

    w    the class weights
    ε    the label smoothing
    t    the class probabilities, or the one-hot vector of the class index
    q    (1 - ε)·t + ε/C, the smoothed target
    v    w·q
    s    upstream gradient / denominator; the denominator is the divisor of a mean, or 1 for other reductions

`loss` is the loss of one row. The gradients are derivatives of the whole call's result, so they have the factor `s`:

    loss = -Σ_c v_c lp_c        ∂/∂x_c = s·(p_c Σ_k v_k - v_c)        ∂/∂t_c = -s·(1 - ε)·w_c·lp_c

The code computes `lp = a - log S` from `a = x - max x` and `S = Σ_c exp(a_c)`.

A direction `u` of the logits has the mean `m = Σ_c p_c u_c`. The tangent is the derivative of the row's loss along `u`.
The Hessian-vector product `second` is the derivative of the logits' gradient along `u`:

    tangent = Σ_c v_c (m - u_c)        second_c = s·Σ_k v_k·p_c·(u_c - m)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flint
import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import Array
from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, BallArithmetic, Elements, Float64Arithmetic, Mask

# The error radius in float64 is `ROUNDINGS·2^-53·size + UNDERFLOW`, with SECOND_ROUNDINGS for second derivatives. The
# docstring of Formula has the proof.
ROUNDINGS, SECOND_ROUNDINGS = 28, 41
UNDERFLOW = 2.0**-200


@dataclass(frozen=True, eq=False)
class FiniteRows:
    """A block of `r` rows of `C >= 1` classes, in which the largest logit of each row is finite.

    A logit of -inf has probability 0. The module `special_values` replaces the results that such a logit makes infinite
    or NaN.

    Attributes:
        logits: (r, C), float64.
        kept: (r,), False on ignored rows.
        index: (r,), the true classes, and 0 on ignored rows.
        probabilities: (r, C), the class probabilities, in place of `index`.
        weight: (C,), the class weights.
        upstream: (r,), the upstream gradient of each row. For "mean" and "sum", all rows have the same number.
        denominator: The `value` of the call's `Denominator`.
    """

    logits: Array
    kept: Mask
    index: NDArray[Any] | None
    probabilities: NDArray[Any] | None
    weight: NDArray[Any] | None
    label_smoothing: float
    upstream: NDArray[Any]
    denominator: flint.arb

    @property
    def dense(self) -> bool:
        """Whether the loss of a row has a term for every class, not only for the true class."""
        return self.index is None or self.label_smoothing > 0

    @property
    def at_true_class(self) -> tuple[Any, Any]:
        """The numpy index of each row's true class in an array (r, C). The call must have class indices."""
        return np.arange(len(self.logits)), self.index


class Formula:
    r"""The losses and gradients of a block of rows, and their derivatives along a direction.

    The module's docstring defines the symbols. In ball arithmetic, every result is a ball that contains the exact
    value. In float64, the error of a result is at most `28·2^-53·size + 2^-200`, with 41 in place of 28 for a second
    derivative. The bounds have three conditions. Logits, class probabilities and class weights are float32 numbers. The
    upstream gradient has a magnitude of at most 2^128. The direction has magnitudes below 2^128.

    The size of a result is the sum of the magnitudes of its terms:

    * a loss: `Σ |v_c lp_c|`;
    * an element of the gradient: `|s|·(p_c Σ|v_k| + |v_c|)`;
    * a tangent: `Σ |v_c| (M + |u_c|)`, with `M = Σ p_c |u_c|`;
    * a second derivative: `|s|·Σ|v_k|·p_c (|u_c| + M)`;
    * a result of one term: its magnitude. Each element of the target's gradient has one term. If only the true class of
      a row has a term, the loss of the row and each element of its gradient have one term.

    With label smoothing, `|v_c|` in a size stands for `|w_c|·((1 - ε)|t_c| + ε/C)`.

    Proof. The number after a quantity is its relative error in units of 2^-53. For example, "`S`: 7" means that the
    computed S has a relative error of at most `7·2^-53`. The errors of factors and divisors add up, and each operation
    adds 1. exp and log1p have the error 4, which is 2 ulp (`EXP_LOG_ULP`). The additions of a sum
    (:func:`compensated_sum`) add 1.01, which most lines below count as 1. Write g for the upstream gradient, and D for
    the denominator.

    * `x - max x` equals the pair `a + l` of two_sum exactly, with `|l| <= 2^-53 |a|`. The code computes
      `e = exp(a)·(1 + l)`: 4 from exp and 1 from the addition of the product, together 5. The factor `1 + l` differs
      from `exp(l)` by about `l²/2 < 2^-87`, since `|a| < 709` where exp does not underflow. For the largest logit,
      `e = 1` exactly.
    * `rest`, the sum of `e` without the class of the largest logit: 5 + 1.01, about 6. `S = 1 + rest`: 6 + 1 = 7.
    * `log S = log1p(rest)`: 6 + 4 = 10, also where `log S` is small, since `rest/(1 + rest) <= log1p(rest)`.
    * `-lp = log S - a`. Both terms have the same sign, so the larger error counts: 10 for `log S`, or 1 for `a`,
      because the code leaves `l` out here. The difference: 10 + 1 = 11.
    * If only the true class has a term, `v` is the weight of this class, an input: 0. The loss `v·(-lp)`:
      0 + 11 + 1 = 12.
    * Otherwise `v` has the four operations `1 - ε`, `·t`, `+ ε/C` and `·w`: 4. `Σ v`: 4 + 1 = 5. The loss is
      `log S·Σ v - Σ v a`. For each class, `v_c log S` and `-v_c a_c` have the same sign, so their errors are relative
      to the size of the loss. `log S·Σ v`: 10 + 5 + 1 = 16. `Σ v a`: 4 + 1 + 1 + 1 = 7. The loss: 16 + 1 = 17.
    * `s = g/D`: 2 from D and 1 from the division, together 3. The gradient is `s·Σv/S·e - s·v`. The first term has 3
      from s, 5 from `Σ v`, 7 from S, 5 from `e`, and 3 operations: 23. The second term: 3 + 4 + 1 = 8. The difference:
      23 + 1 = 24.
    * If only the true class y has a term, the gradient of the logit of y is `-s·w/S·(S - e_y)`. If y has the largest
      logit, `S - e_y` is `rest`: 6. If not, `e_y <= 1 <= S - e_y`, hence `S <= 2·(S - e_y)` and `rest <= S - e_y`. Then
      `S - e_y` has 6 from `rest`, 2 from the addition in S, 5 from `e_y`, and 1 from the subtraction: 14. The whole
      product has 14, 3 from s, 7 from S, and 3 operations: 27. The hundredths that the sums above leave out make 27.2.
      The gradient of any other logit, `s·w/S·e`: 3 + 7 + 5 + 3 = 18.
    * The gradient of the target, `s·(1 - ε)·w·(-lp)`: 3 + 1 + 11 + 3 = 18.
    * The mean m has an error relative to M. `e·u`: 6. Their sum: 7. The division by S: 7 + 7 + 1 = 15.
    * The tangent. If only the true class has a term, the tangent is `v·(m - u)`: 15 + 2 = 17. Otherwise the tangent is
      `m Σ v - Σ v u`. `m Σ v`: 15 + 5 + 1 = 21. `Σ v u`: 4 + 1 + 1 = 6. The difference: 21 + 1 = 22.
    * The second derivative `s·Σv/S·e·(u - m)`. `s·Σv/S·e`: 23, as above. `u - m`: 15 + 1 = 16. The product:
      23 + 16 + 1 = 40.

    The largest numbers are 27.2 and, for a second derivative, 40. The terms of order 2^-106 fit between 27.2 and 28,
    and between 40 and 41.

    Underflow. An operation that underflows has an error of at most 2^-1022. One result takes at most `16 C²`
    operations, with C up to 2^30, so the result contains at most 2^64 of these errors. Each error is multiplied at most
    by three factors below 2^130: `|w|`, `|t|`, and `|lp|` or `|u|`. The other two factors are `|g| <= 2^128`, and
    `1/|D| <= 2^149`, since D is a multiple of the smallest float32 number. The errors together are below 2^-290, and
    UNDERFLOW is 2^-200.

    Overflow. No result exceeds 2^(64 + 3·130 + 277), so nothing overflows. ∎
    """

    def __init__(self, rows: FiniteRows, arithmetic: Float64Arithmetic | BallArithmetic) -> None:
        self.rows, self.arithmetic = rows, arithmetic
        self.top = rows.logits.argmax(1)  # the class of the largest logit of each row
        top = np.arange(len(self.top)), self.top
        with arithmetic.context():
            # `a`, exp(a), the sum of exp(a) without the largest logit, `S` and `log S` of the docstrings
            self.shifted, self.exps = arithmetic.shifted_exp(rows.logits, rows.logits[top][:, None])
            self.exps[top] = 0
            self.rest = arithmetic.total(self.exps)
            self.exps[top] = 1
            self.partition, self.log_partition = 1 + self.rest, np.log1p(self.rest)
            self.smoothing = arithmetic.numbers(np.array([rows.label_smoothing]))

    @property
    def neg_log_probs(self) -> Elements:
        """The negative log-probabilities `-lp`, (r, C)."""
        return np.asarray(self.log_partition[:, None] - self.shifted)

    @cached_property
    def scale(self) -> Elements:
        """The factor `s` of each row, (r,)."""
        return np.asarray(self.arithmetic.numbers(self.rows.upstream) / self.arithmetic.number(self.rows.denominator))

    @cached_property
    def coefficients(self) -> Elements:
        """The coefficients `v = w·q`, (r, C); or (r,) if only the true class has a term. Ignored rows have 0."""
        return self._coefficients(self.rows.probabilities)

    @cached_property
    def magnitudes(self) -> Elements:
        """The numbers `|w|·((1 - ε)|t| + ε/C)` in the sizes of results, in the shape of :attr:`coefficients`."""
        t = self.rows.probabilities  # a negative t and ε/C can cancel in a coefficient
        return np.abs(self.coefficients if t is None or (t >= 0).all() else self._coefficients(np.abs(t)))

    def _coefficients(self, t: NDArray[Any] | None) -> Elements:
        """Return the coefficients `v` for the class probabilities `t`, or for the class indices if `t` is None."""
        rows, numbers = self.rows, self.arithmetic.numbers
        uniform = self.smoothing / rows.logits.shape[1]
        if t is not None:
            if rows.label_smoothing == 0:
                return self._weigh(numbers(t))
            return self._weigh(t.astype(np.float64) * (1 - self.smoothing) + uniform)
        weights = np.where(rows.kept, numbers(np.ones(1) if rows.weight is None else rows.weight[rows.index]), 0)
        if not rows.dense:
            return weights
        v = np.where(rows.kept[:, None], self._weigh(np.repeat(uniform, rows.logits.shape[1])), 0)
        v[rows.at_true_class] += (1 - self.smoothing) * weights
        return v

    def _weigh(self, values: Elements) -> Elements:
        weight = self.rows.weight
        return values if weight is None else np.asarray(self.arithmetic.numbers(weight) * values)

    @cached_property
    def total_coefficients(self) -> Elements:
        """The sum `Σ v` of the coefficients of each row, (r,), for dense rows (:attr:`FiniteRows.dense`)."""
        return self.arithmetic.total(self.coefficients)

    def losses(self) -> Elements:
        """Return the loss of each row, (r,): `-Σ v lp = log S·Σ v - Σ v a`."""
        if self.rows.dense:
            weighted_shifts = self.arithmetic.total(self.coefficients * self.shifted)
            return np.asarray(self.log_partition * self.total_coefficients - weighted_shifts)
        return np.asarray(self.coefficients * (self.log_partition - self.shifted[self.rows.at_true_class]))

    def gradient(self) -> Elements:
        """Return the gradient of the logits, (r, C): `s·(p Σ v - v)`."""
        if self.rows.dense:
            factor = self.scale * self.total_coefficients / self.partition
            return np.asarray(factor[:, None] * self.exps - self.scale[:, None] * self.coefficients)
        factor = self.scale * self.coefficients / self.partition
        gradient = np.asarray(factor[:, None] * self.exps)
        others = np.where(self.top == self.rows.index, self.rest, self.partition - self.exps[self.rows.at_true_class])
        gradient[self.rows.at_true_class] = -factor * others
        return gradient

    def target_gradient(self) -> Elements:
        """Return the gradient of the class probabilities `t`, (r, C): `-s·(1 - ε)·w·lp`."""
        return np.asarray(self._weigh((self.scale * (1 - self.smoothing))[:, None]) * self.neg_log_probs)

    def tangents(self, direction: Array) -> Elements:
        """Return the tangent of each row's loss, (r,), along a direction `u`, (r, C): `Σ v (m - u)`."""
        u, mean = self.arithmetic.numbers(direction), self._mean(direction)
        if self.rows.dense:
            return np.asarray(mean * self.total_coefficients - self.arithmetic.total(self.coefficients * u))
        return np.asarray(self.coefficients * (mean - u[self.rows.at_true_class]))

    def second(self, direction: Array) -> Elements:
        """Return the derivative of the gradient along a direction `u`, both (r, C): `s·(Σ v)·p·(u - m)`."""
        total = self.total_coefficients if self.rows.dense else self.coefficients
        factor = self.scale * total / self.partition
        deviation = self.arithmetic.numbers(direction) - self._mean(direction)[:, None]
        return np.asarray(factor[:, None] * self.exps * deviation)

    def _mean(self, direction: Array) -> Elements:
        """Return the mean of a direction `u` for each row, (r,): `m = Σ p u`."""
        return np.asarray(self.arithmetic.total(self.exps * self.arithmetic.numbers(direction)) / self.partition)

    def loss_sizes(self) -> Array:
        """Return the size of each loss, (r,): the sum of the magnitudes of its terms."""
        return np.asarray((self.magnitudes * self.neg_log_probs).sum(1)) if self.rows.dense else np.abs(self.losses())

    def gradient_sizes(self) -> Array:
        """Return the size of each element of the gradient, (r, C)."""
        if not self.rows.dense:
            return np.abs(self.gradient())
        factor = self.magnitudes.sum(1) / self.partition
        return np.asarray(np.abs(self.scale)[:, None] * (factor[:, None] * self.exps + self.magnitudes))

    def target_gradient_sizes(self) -> Array:
        """Return the size of each element of the target's gradient, (r, C)."""
        return np.abs(self.target_gradient())

    def tangent_sizes(self, direction: Array) -> Array:
        """Return the size of each tangent, (r,)."""
        u, mean = np.abs(direction), self._mean(np.abs(direction))
        if self.rows.dense:
            return np.asarray((self.magnitudes * (mean[:, None] + u)).sum(1))
        return np.asarray(np.abs(self.coefficients) * (mean + u[self.rows.at_true_class]))

    def second_sizes(self, direction: Array) -> Array:
        """Return the size of each element of :meth:`second`, (r, C)."""
        total = self.magnitudes.sum(1) if self.rows.dense else np.abs(self.coefficients)
        factor = np.abs(self.scale) * total / self.partition
        return np.asarray(factor[:, None] * self.exps * (np.abs(direction) + self._mean(np.abs(direction))[:, None]))


def float64_radius(size: Array, roundings: int = ROUNDINGS) -> Array:
    """Return the error radius that :class:`Formula` proves for results in float64: `roundings·2^-53·size + 2^-200`.

    For second derivatives, `roundings` is `SECOND_ROUNDINGS`.
    """
    return roundings * UNIT_ROUNDOFF * size + UNDERFLOW
