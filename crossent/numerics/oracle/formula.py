r"""The formula of cross-entropy on rows of finite numbers: once, for either arithmetic, with the proof for float64.

For a row of logits `x` over `C` classes, with `lp = log softmax(x)`, class weights `w`, the smoothed target
`q = (1 - ε)·t + ε/C` (`t` the class probabilities, or the one-hot of the index), `v = w·q` and
`s = upstream / denominator`,

    loss = -Σ_c v_c lp_c        ∂/∂x_c = s·(p_c Σ_k v_k - v_c)        ∂/∂t_c = -s·(1 - ε)·w_c·lp_c

Along a direction `u`, with its mean `m = Σ_c p_c u_c`, the loss changes by its tangent, and the gradient by the product
of the loss's second derivative and `u`:

    tangent = Σ_c v_c (m - u_c)        second_c = s·Σ_k v_k·p_c·(u_c - m)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flint
import numpy as np
from numpy.typing import NDArray

from crossent.numerics.oracle.arithmetic import UNIT_ROUNDOFF, Array, Balls, Elements, Float64, Mask

ROUNDINGS, SECOND_ROUNDINGS = 28, 41  # proven in Formula, as is
UNDERFLOW = 2.0**-200


@dataclass(frozen=True, eq=False)
class FiniteRows:
    """A block of `r` rows of `C >= 1` classes, none of which holds NaN or +inf, or nothing but -inf.

    A logit of -inf has probability 0. What it makes infinite is left for whoever made the block to see to.

    Attributes:
        logits: (r, C), float64.
        kept: (r,), False on ignored rows.
        index: (r,), the true classes, 0 on ignored rows; or None.
        probabilities: (r, C), or None.
        weight: (C,), or None for ones.
        label_smoothing: `ε`, from 0 to 1.
        upstream: (r,), the gradient of each row's loss before the division.
        denominator: an exact number, not 0.
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
        """Whether every class is a term of the loss, and not the true one alone."""
        return self.index is None or self.label_smoothing > 0

    @property
    def true(self) -> tuple[Any, Any]:
        """Where the true classes are: an index into (r, C)."""
        return np.arange(len(self.logits)), self.index


class Formula:
    r"""Loss and gradients of :class:`FiniteRows`, and how they change along a direction.

    In balls every result contains the exact one. In float64, for inputs that are float32, every result is within
    `28 u·size + 2^-200` of it, `u = 2^-53`, where `size` is the sum of the result's terms without their signs:
    `Σ |v_c lp_c|` for a loss and `|s|·(p_c Σ|v_k| + |v_c|)` for a gradient, in which a smoothed `|v_c|` stands for
    `|w_c|·((1 - ε)|t_c| + ε/C)`; and the result itself where it has one term: the gradient of the target, and both
    loss and gradient where the true class is the only term. With `M = Σ p_c |u_c|` the size of a tangent is
    `Σ |v_c| (M + |u_c|)`. A second derivative is within `41 u·size + 2^-200`, of size `|s|·Σ|v_k|·p_c (|u_c| + M)`.

    Proof. Relative errors in u, of what they stand behind. Terms of order u² fit between the largest, 27.2, and 28, and
    between 40 and 41.

    * `x - max x` is exact as the pair `a + l` of two_sum, `|l| <= u|a|`. `e = exp(a)·(1 + l)`: 4 from exp, 1 from the
      sum (`l²/2 < 2^-87` as `|a| < 709` where exp does not underflow): 5. The largest logit's is 1, exactly.
    * `rest`, the sum of all others: 5 + 1.01 = 6. `S = 1 + rest`: 6 + 1 = 7.
    * `log S = log1p(rest)`: as `rest/(1 + rest) <= log1p(rest)`, 6 + 4 = 10, and none of it is lost where it is small.
      `-lp = log S - a`, both of one sign: 10, or 1 for the missing `l`, + 1 = 11.
    * `v` is the weight, 0, where the true class is the only term, and its loss `v·(-lp)`: 0 + 11 + 1 = 12.
    * Else `v`: `1 - ε`, `·t`, `+ ε/C`, `·w`: 4. `Σ v`: 5. The loss `log S·Σ v - Σ v a`, which are of one sign in every
      term: 10 + 5 + 1 = 16 or 4 + 1 + 1 + 1 = 7, and 1 for the difference: 17.
    * `s = g/D`: D 2, division 1: 3. Of the gradient `s·Σv/S·e`: 3 + 5 + 7 + 5 and 3 operations: 23; `s·v`: 3 + 4 + 1 =
      8; their difference, 1: 24.
    * For one true class `y` it is `-s·w/S·(S - e_y)`. If y is the largest, `S - e_y` is `rest`: 6. If not,
      `e_y <= 1 <= S - e_y`, hence `S <= 2·(S - e_y)` and `rest <= S - e_y`: 6 of `rest`, 2 of S's own addition, 5 of
      `e_y`, 1: 14. With s 3, S 7 and 3 operations: 27.2, and no cancellation.
    * The target's gradient, `s·(1 - ε)·w·(-lp)`: 3 + 1 + 11 and 3 operations: 18.
    * `m`, off by a part of M: `e·u` 6, their sum 7, `/S` 7 + 7 + 1: 15. The tangent `v·(m - u)` of the true class: 15
      and 2 operations, 17; or `m Σ v - Σ v u`: 15 + 5 + 1 = 21 or 4 + 1 + 1 = 6, and 1 for the difference: 22.
    * `second`: `s·Σv/S·e` 23, as above; `u - m` 15 + 1; their product 23 + 16 + 1: 40.

    Underflow loses at most 2^-1022 an operation, which enters one result in at most `16 C² <= 2^64` places. It is
    multiplied there by at most `|w|`, `|t|` and `|lp|` or `|u|`, each below 2^130, by `|g| <= 2^128` and by `1/|D| <=
    2^149`, as D is a multiple of float32's smallest number: less than 2^-290 is left. Nothing overflows:
    2^(64 + 3·130 + 277). ∎
    """

    def __init__(self, rows: FiniteRows, arithmetic: Float64 | Balls) -> None:
        self.rows, self.arithmetic = rows, arithmetic
        self.top = rows.logits.argmax(1)
        top = np.arange(len(self.top)), self.top
        with arithmetic.context():
            self.shifted, self.exps = arithmetic.shifted_exp(rows.logits, rows.logits[top][:, None])
            self.exps[top] = 0
            self.rest = arithmetic.total(self.exps)
            self.exps[top] = 1
            self.partition, self.log_partition = 1 + self.rest, np.log1p(self.rest)
            self.smoothing = arithmetic.numbers(np.array([rows.label_smoothing]))

    @property
    def neg_log_probs(self) -> Elements:
        """(r, C): `-lp`."""
        return np.asarray(self.log_partition[:, None] - self.shifted)

    @cached_property
    def scale(self) -> Elements:
        """(r,): `s`, the upstream gradient over the denominator."""
        return np.asarray(self.arithmetic.numbers(self.rows.upstream) / self.arithmetic.number(self.rows.denominator))

    @cached_property
    def coefficients(self) -> Elements:
        """`v`, (r, C); or (r,), that of the true class, where it is the only term. 0 on ignored rows."""
        return self._coefficients(self.rows.probabilities)

    @cached_property
    def magnitudes(self) -> Elements:
        """`|v|`, in which nothing cancels."""
        t = self.rows.probabilities
        return np.abs(self.coefficients if t is None or (t >= 0).all() else self._coefficients(np.abs(t)))

    def _coefficients(self, t: NDArray[Any] | None) -> Elements:
        rows, numbers = self.rows, self.arithmetic.numbers
        uniform = self.smoothing / rows.logits.shape[1]
        if t is not None:
            if rows.label_smoothing == 0:
                return self._weighted(numbers(t))
            return self._weighted(t.astype(np.float64) * (1 - self.smoothing) + uniform)
        true = np.where(rows.kept, numbers(np.ones(1) if rows.weight is None else rows.weight[rows.index]), 0)
        if not rows.dense:
            return true
        v = np.where(rows.kept[:, None], self._weighted(np.repeat(uniform, rows.logits.shape[1])), 0)
        v[rows.true] += (1 - self.smoothing) * true
        return v

    def _weighted(self, values: Elements) -> Elements:
        """`w_c · values_c`."""
        weight = self.rows.weight
        return values if weight is None else np.asarray(self.arithmetic.numbers(weight) * values)

    @cached_property
    def total_coefficients(self) -> Elements:
        """(r,): `Σ v`, where every class is a term."""
        return self.arithmetic.total(self.coefficients)

    def losses(self) -> Elements:
        """(r,): `-Σ v lp = log S·Σ v - Σ v a`."""
        if self.rows.dense:
            weighted_shifts = self.arithmetic.total(self.coefficients * self.shifted)
            return np.asarray(self.log_partition * self.total_coefficients - weighted_shifts)
        return np.asarray(self.coefficients * (self.log_partition - self.shifted[self.rows.true]))

    def gradient(self) -> Elements:
        """(r, C): `s·(p Σ v - v)`."""
        if self.rows.dense:
            factor = self.scale * self.total_coefficients / self.partition
            return np.asarray(factor[:, None] * self.exps - self.scale[:, None] * self.coefficients)
        factor = self.scale * self.coefficients / self.partition
        gradient = np.asarray(factor[:, None] * self.exps)
        others = np.where(self.top == self.rows.index, self.rest, self.partition - self.exps[self.rows.true])
        gradient[self.rows.true] = -factor * others
        return gradient

    def target_gradient(self) -> Elements:
        """(r, C): `-s·(1 - ε)·w·lp`."""
        return np.asarray(self._weighted((self.scale * (1 - self.smoothing))[:, None]) * self.neg_log_probs)

    def tangents(self, direction: Array) -> Elements:
        """(r,): `Σ v (m - u)`, of a direction `u`, (r, C)."""
        u, mean = self.arithmetic.numbers(direction), self._mean(direction)
        if self.rows.dense:
            return np.asarray(mean * self.total_coefficients - self.arithmetic.total(self.coefficients * u))
        return np.asarray(self.coefficients * (mean - u[self.rows.true]))

    def second(self, direction: Array) -> Elements:
        """(r, C): `s·Σ v·p (u - m)`, of a direction `u`, (r, C)."""
        total = self.total_coefficients if self.rows.dense else self.coefficients
        factor = self.scale * total / self.partition
        away = self.arithmetic.numbers(direction) - self._mean(direction)[:, None]
        return np.asarray(factor[:, None] * self.exps * away)

    def _mean(self, direction: Array) -> Elements:
        """(r,): `m = Σ p u`."""
        return np.asarray(self.arithmetic.total(self.exps * self.arithmetic.numbers(direction)) / self.partition)

    def loss_sizes(self) -> Array:
        """(r,): the terms of each loss without their signs."""
        return np.asarray((self.magnitudes * self.neg_log_probs).sum(1)) if self.rows.dense else np.abs(self.losses())

    def gradient_sizes(self) -> Array:
        """(r, C): the terms of each element of the gradient without their signs."""
        if not self.rows.dense:
            return np.abs(self.gradient())
        factor = self.magnitudes.sum(1) / self.partition
        return np.asarray(np.abs(self.scale)[:, None] * (factor[:, None] * self.exps + self.magnitudes))

    def target_gradient_sizes(self) -> Array:
        """(r, C): the gradient of the target has one term."""
        return np.abs(self.target_gradient())

    def tangent_sizes(self, direction: Array) -> Array:
        """(r,): the terms of each tangent without their signs."""
        u, mean = np.abs(direction), self._mean(np.abs(direction))
        if self.rows.dense:
            return np.asarray((self.magnitudes * (mean[:, None] + u)).sum(1))
        return np.asarray(np.abs(self.coefficients) * (mean + u[self.rows.true]))

    def second_sizes(self, direction: Array) -> Array:
        """(r, C): the terms of each element of the second derivative without their signs."""
        total = self.magnitudes.sum(1) if self.rows.dense else np.abs(self.coefficients)
        factor = np.abs(self.scale) * total / self.partition
        return np.asarray(factor[:, None] * self.exps * (np.abs(direction) + self._mean(np.abs(direction))[:, None]))


def float64_radius(size: Array, roundings: int = ROUNDINGS) -> Array:
    """How far a result of :class:`Formula` in float64 can be off."""
    return roundings * UNIT_ROUNDOFF * size + UNDERFLOW
