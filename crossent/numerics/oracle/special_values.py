"""Row blocks: the exact numbers of some rows, and what is infinite, NaN or exactly 0 among them.

That follows the contract by rule, never passes through :mod:`crossent.numerics.oracle.formula`, and has radius 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.oracle.arguments import Arguments, Denominator
from crossent.numerics.oracle.arithmetic import Array, Ball, Balls, Elements, Float64, Mask
from crossent.numerics.oracle.formula import ROUNDINGS, SECOND_ROUNDINGS, FiniteRows, Formula, float64_radius

RELATIVE_RADIUS = 2.0**-73  # of the size of a number's terms: 2^-20 of float64's unit roundoff
BITS = 128  # what the balls start with: two machine words, and flint is hardly faster with less


class RowBlock:
    """Some rows: their exact gradients, and in float64 what a bound is made of.

    The float64 arrays are as good as :class:`Formula` proves for float32 inputs; with float64 inputs they may overflow
    and underflow besides. A logit of -inf is -inf in `shifted` and `log_probs`. Rows that hold NaN or +inf, or nothing
    but -inf, are broken: NaN in all but `coefficients`.

    Attributes:
        rows: which rows of the call these `r` are.
    """

    def __init__(self, arguments: Arguments, denominator: Denominator, rows: slice) -> None:
        self.rows, self._undefined = rows, denominator.undefined
        self._in_float64, self._classes = arguments.exact_in_float64, arguments.logits.shape[1]

        widened = self._widened
        logits = np.asarray(widened(arguments.logits[rows]), np.float64)
        kept = arguments.kept[rows]
        self._infinite = np.isneginf(logits)
        self._broken = ~np.isfinite(logits.max(1))
        self._finite = FiniteRows(
            logits=np.where(self._broken[:, None], 0.0, logits) if self._broken.any() else logits,
            kept=kept,
            index=None if arguments.index is None else np.where(kept, arguments.index[rows], 0),
            probabilities=None if arguments.probabilities is None else widened(arguments.probabilities[rows]),
            weight=widened(arguments.weight),
            label_smoothing=arguments.label_smoothing,
            upstream=np.broadcast_to(arguments.upstream, len(arguments.logits))[rows],
            denominator=denominator.value,
        )

    def _widened(self, values: NDArray[Any] | None) -> Any:
        """The values of each class. No classes are an empty sum, and so is one class that has no weight."""
        return values if values is None or self._classes else np.zeros((*values.shape[:-1], 1))

    @cached_property
    def _float64(self) -> Formula:
        return Formula(self._finite, Float64())

    @cached_property
    def _formula(self) -> Formula:
        return self._float64 if self._in_float64 else Formula(self._finite, Balls(BITS))

    @property
    def shifted(self) -> Array:
        """(r, C), `x - max x`."""
        logits = self._finite.logits
        with np.errstate(over="ignore"):
            return self._shown(logits - logits.max(1, keepdims=True))

    @property
    def log_probs(self) -> Array:
        """(r, C), `lp`."""
        return self.shifted - self._float64.log_partition[:, None]

    @property
    def probs(self) -> Array:
        """(r, C), `p`."""
        return self._shown(self._float64.exps / self._float64.partition[:, None])

    @property
    def coefficients(self) -> Array:
        """(r, C), `v = w·q`; 0 on ignored rows."""
        v = self._float64.coefficients
        if not self._finite.dense:
            v = self._one_hot() * v[:, None]
        return np.asarray(v[:, : self._classes])

    @property
    def scale(self) -> Array:
        """(r,), `s`: the upstream gradient over the denominator, which is 1 here where it is 0."""
        return np.asarray(self._float64.scale)

    def losses(self) -> Ball:
        """(r,), of each row before the reduction."""
        kept, infinite, values = self._finite.kept, np.zeros_like(self._infinite), np.zeros(len(self._broken))
        if self._infinite.any():
            infinite = self._infinite & kept[:, None] & (self._finite.dense or self._one_hot())
            with np.errstate(invalid="ignore"):  # 0·inf and inf - inf are NaN by contract
                values = np.where(infinite, self._signs() * np.inf, 0.0).sum(1)

        def fixed(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1), 0.0).replaced(infinite.any(1), values)
            return ball.replaced(self._broken & kept, np.nan)

        return self._ball(Formula.losses, Formula.loss_sizes, fixed)

    def gradient(self) -> Ball:
        """(r, C), with respect to the logits. NaN in broken rows, ignored ones too: torch does it, and the contract."""
        kept = self._finite.kept[:, None]

        def fixed(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1), 0.0)
            if self._infinite.any():  # no probability and no coefficient: nothing to be rounded
                ball = ball.replaced(self._infinite & (self._signs() == 0), 0.0)
            if self._undefined is not None:
                ball = ball.replaced(kept, np.nan, self._undefined)
            return ball.replaced(self._broken[:, None], np.nan)

        return self._ball(Formula.gradient, Formula.gradient_sizes, fixed)

    def target_gradient(self) -> Ball | None:
        """(r, C), with respect to the target probabilities; None for index targets."""
        if self._finite.probabilities is None:
            return None
        sign = np.sign(self._finite.upstream)[:, None] * (self._finite.label_smoothing < 1) * self._weight_signs
        with np.errstate(invalid="ignore"):
            values = sign * np.inf

        def fixed(ball: Ball) -> Ball:
            ball = ball.replaced(np.array(self._classes <= 1), 0.0).replaced(self._infinite, values)
            return ball.replaced(self._broken[:, None], np.nan)

        return self._ball(Formula.target_gradient, Formula.target_gradient_sizes, fixed)

    def tangents(self, direction: Array) -> Ball:
        """(r,), of each row's loss before the reduction, along a direction, (r, C)."""
        kept, u = self._finite.kept, np.asarray(self._widened(direction), np.float64)

        def fixed(ball: Ball) -> Ball:
            return ball.replaced(~kept | (self._classes <= 1), 0.0).replaced(self._broken & kept, np.nan)

        return self._ball(lambda formula: formula.tangents(u), lambda formula: formula.tangent_sizes(u), fixed)

    def second(self, direction: Array) -> Ball:
        """(r, C), of the gradient along a direction, (r, C). NaN where the gradient is."""
        kept, u = self._finite.kept[:, None], np.asarray(self._widened(direction), np.float64)

        def fixed(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1) | self._infinite, 0.0)
            if self._undefined is not None:
                ball = ball.replaced(kept, np.nan, self._undefined)
            return ball.replaced(self._broken[:, None], np.nan)

        def numbers(formula: Formula) -> Elements:
            return formula.second(u)

        return self._ball(numbers, lambda formula: formula.second_sizes(u), fixed, SECOND_ROUNDINGS)

    def _ball(
        self,
        numbers: Callable[[Formula], Elements],
        sizes: Callable[[Formula], Array],
        fixed: Callable[[Ball], Ball],
        roundings: int = ROUNDINGS,
    ) -> Ball:
        """The numbers, in as many bits as it takes, with what is infinite, NaN or exactly 0 put in by `fixed`."""
        with self._float64.arithmetic.context():
            size = sizes(self._float64)
            wanted, rounding = RELATIVE_RADIUS * size, float64_radius(size, roundings)
        while True:
            with self._formula.arithmetic.context():
                ball = fixed(self._formula.arithmetic.ball(numbers(self._formula), rounding))
            if isinstance(self._formula.arithmetic, Float64):
                break
            # What two float64 cannot express is no reason for more bits, nor is a size that overflowed to NaN.
            enough = np.fmax(wanted, np.fmax(2.0**-104 * np.abs(ball.hi), 2.0**-1070))
            if not (np.isfinite(ball.hi) & (ball.radius > enough)).any():
                break
            self._formula = Formula(self._finite, Balls(2 * self._formula.arithmetic.bits))
        return ball if self._classes or ball.hi.ndim == 1 else Ball(*np.empty((3, len(self._broken), 0)))

    def _signs(self) -> Array:
        """(r, C): the sign of each `v_c` at infinite logits, exactly: in float64 it might underflow or cancel to 0."""
        smoothing, t = self._finite.label_smoothing, self._finite.probabilities
        if t is None:
            return self._weight_signs * (self._one_hot() | (smoothing > 0))
        q = np.where(t > 0, 1.0, float(smoothing > 0))
        for r, c in np.argwhere(self._infinite & (t < 0)):
            exact = (1 - Fraction(smoothing)) * Fraction(float(t[r, c])) + Fraction(smoothing) / self._classes
            q[r, c] = (exact > 0) - (exact < 0)
        return np.asarray(self._weight_signs * q)

    @property
    def _weight_signs(self) -> Array:
        """(C,)."""
        weight = self._finite.weight
        return np.ones(self._infinite.shape[1]) if weight is None else np.sign(weight, dtype=np.float64)

    def _one_hot(self) -> Mask:
        """(r, C): True at the true classes."""
        assert self._finite.index is not None
        return np.asarray(np.arange(self._infinite.shape[1]) == self._finite.index[:, None])

    def _shown(self, values: Array) -> Array:
        """The values, NaN in broken rows, without the class that stands for none."""
        return np.where(self._broken[:, None], np.nan, values)[:, : self._classes]
