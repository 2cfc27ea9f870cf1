"""The exact values of a block of rows, with the rules for values that are infinite, NaN or exactly 0.

The rules follow torch's documentation, and torch's behaviour where the documentation says nothing. Symbols such as
`v_c` are those of :mod:`crossent.numerics.oracle.formula`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import Array
from crossent.numerics.oracle.arguments import Arguments, Denominator
from crossent.numerics.oracle.arithmetic import Ball, BallArithmetic, Elements, Float64Arithmetic, Mask
from crossent.numerics.oracle.formula import ROUNDINGS, SECOND_ROUNDINGS, FiniteRows, Formula, float64_radius

# In ball arithmetic, the largest radius of a number divided by the number's size: 2^-20 times the unit roundoff of
# float64. The size is the sum of the magnitudes of the number's terms.
RELATIVE_RADIUS = 2.0**-73
BITS = 128  # the first precision of ball arithmetic: two machine words. With fewer bits, flint is hardly faster


class RowBlock:
    """The exact losses and gradients of `r` rows of a call. `rows` is the slice of these rows.

    A row has no finite maximum if a logit is NaN or +inf, or if all logits are -inf. The gradients of such a row are
    NaN. Its loss is NaN too, unless the row is ignored.
    """

    def __init__(self, arguments: Arguments, denominator: Denominator, rows: slice) -> None:
        self.rows, self._nan_radius = rows, denominator.nan_radius
        self._in_float64, self._classes = arguments.float64_suffices, arguments.logits.shape[1]

        with_one_class = self._with_one_class
        logits = np.asarray(with_one_class(arguments.logits[rows]), np.float64)
        kept = arguments.kept[rows]
        self._infinite = np.isneginf(logits)
        self._no_maximum = ~np.isfinite(logits.max(1))
        self._finite_rows = FiniteRows(
            logits=np.where(self._no_maximum[:, None], 0.0, logits) if self._no_maximum.any() else logits,
            kept=kept,
            index=None if arguments.index is None else np.where(kept, arguments.index[rows], 0),
            probabilities=None if arguments.probabilities is None else with_one_class(arguments.probabilities[rows]),
            weight=with_one_class(arguments.weight),
            label_smoothing=arguments.label_smoothing,
            upstream=np.broadcast_to(arguments.upstream, len(arguments.logits))[rows],
            denominator=denominator.value,
        )

    def _with_one_class(self, values: NDArray[Any] | None) -> Any:
        """Return `values`, or zeros for a single class if the call has no classes."""
        # The loss of no classes is an empty sum, and the loss of one class is -log 1: both are 0.
        return values if values is None or self._classes else np.zeros((*values.shape[:-1], 1))

    @cached_property
    def _float64(self) -> Formula:
        """The formula in float64. Even for results in ball arithmetic, this formula computes the sizes."""
        return Formula(self._finite_rows, Float64Arithmetic())

    @cached_property
    def _formula(self) -> Formula:
        """The formula that computes the results. :meth:`_compute` may replace this formula by one with more bits."""
        return self._float64 if self._in_float64 else Formula(self._finite_rows, BallArithmetic(BITS))

    def losses(self) -> Ball:
        """Return the loss of each row before the reduction, (r,).

        The loss of an ignored row is 0. The loss of a kept row is infinite or NaN if the loss has a term for a class
        with a logit of -inf.
        """
        kept, infinite, values = self._finite_rows.kept, np.zeros_like(self._infinite), np.zeros(len(self._no_maximum))
        if self._infinite.any():
            infinite = self._infinite & kept[:, None] & (self._finite_rows.dense or self._one_hot())
            with np.errstate(invalid="ignore"):  # as in torch, 0·inf and inf - inf are NaN
                values = np.where(infinite, self._signs() * np.inf, 0.0).sum(1)

        def with_rules(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1), 0.0).replaced(infinite.any(1), values)
            return ball.replaced(self._no_maximum & kept, np.nan)

        return self._compute(Formula.losses, Formula.loss_sizes, with_rules)

    def gradient(self) -> Ball:
        """Return the gradient of the logits, (r, C).

        The gradient of an ignored row is 0. As in torch, the gradient of a row without a finite maximum is NaN, even if
        the row is ignored.
        """
        kept = self._finite_rows.kept[:, None]

        def with_rules(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1), 0.0)
            if self._infinite.any():  # at a logit of -inf, `p_c` is 0, so the gradient is 0 where `v_c` is exactly 0
                ball = ball.replaced(self._infinite & (self._signs() == 0), 0.0)
            if self._nan_radius is not None:
                ball = ball.replaced(kept, np.nan, self._nan_radius)
            return ball.replaced(self._no_maximum[:, None], np.nan)

        return self._compute(Formula.gradient, Formula.gradient_sizes, with_rules)

    def target_gradient(self) -> Ball | None:
        """Return the gradient of the class probabilities, (r, C), or None for class indices.

        At a logit of -inf, the gradient is infinite or NaN.
        """
        if self._finite_rows.probabilities is None:
            return None
        sign = (
            np.sign(self._finite_rows.upstream)[:, None] * (self._finite_rows.label_smoothing < 1) * self._weight_signs
        )
        with np.errstate(invalid="ignore"):
            values = sign * np.inf

        def with_rules(ball: Ball) -> Ball:
            ball = ball.replaced(np.array(self._classes <= 1), 0.0).replaced(self._infinite, values)
            return ball.replaced(self._no_maximum[:, None], np.nan)

        return self._compute(Formula.target_gradient, Formula.target_gradient_sizes, with_rules)

    def tangents(self, direction: Array) -> Ball:
        """Return the derivative of each row's loss, (r,), along a direction, (r, C), before the reduction."""
        kept, u = self._finite_rows.kept, np.asarray(self._with_one_class(direction), np.float64)

        def with_rules(ball: Ball) -> Ball:
            return ball.replaced(~kept | (self._classes <= 1), 0.0).replaced(self._no_maximum & kept, np.nan)

        return self._compute(lambda formula: formula.tangents(u), lambda formula: formula.tangent_sizes(u), with_rules)

    def second(self, direction: Array) -> Ball:
        """Return the derivative of the gradient along a direction. Both are (r, C)."""
        kept, u = self._finite_rows.kept[:, None], np.asarray(self._with_one_class(direction), np.float64)

        def with_rules(ball: Ball) -> Ball:
            ball = ball.replaced(~kept | (self._classes <= 1) | self._infinite, 0.0)
            if self._nan_radius is not None:
                ball = ball.replaced(kept, np.nan, self._nan_radius)
            return ball.replaced(self._no_maximum[:, None], np.nan)

        def numbers(formula: Formula) -> Elements:
            return formula.second(u)

        return self._compute(numbers, lambda formula: formula.second_sizes(u), with_rules, SECOND_ROUNDINGS)

    def _compute(
        self,
        numbers: Callable[[Formula], Elements],
        sizes: Callable[[Formula], Array],
        with_rules: Callable[[Ball], Ball],
        roundings: int = ROUNDINGS,
    ) -> Ball:
        """Return the results that `numbers` computes, such as the losses, with error radii.

        In ball arithmetic, the method doubles the number of bits until each radius is small relative to the size of its
        result. :class:`Formula` defines this size, and `sizes` computes it. `with_rules` replaces results by infinity,
        NaN or 0. `roundings` is the factor of :func:`float64_radius`.
        """
        with self._float64.arithmetic.context():
            size = sizes(self._float64)
            wanted, rounding = RELATIVE_RADIUS * size, float64_radius(size, roundings)
        while True:
            with self._formula.arithmetic.context():
                ball = with_rules(self._formula.arithmetic.ball(numbers(self._formula), rounding))
            if isinstance(self._formula.arithmetic, Float64Arithmetic):
                break
            # A pair of float64 numbers is not more precise than 2^-104 times the number, or than 2^-1070. fmax ignores
            # a size that overflowed to NaN. If the size overflowed to inf, any radius is small enough.
            enough = np.fmax(wanted, np.fmax(2.0**-104 * np.abs(ball.hi), 2.0**-1070))
            if not (np.isfinite(ball.hi) & (ball.radius > enough)).any():
                break
            self._formula = Formula(self._finite_rows, BallArithmetic(2 * self._formula.arithmetic.bits))
        # For a call without classes, `_with_one_class` added a class, which the gradient must not have.
        return ball if self._classes or ball.hi.ndim == 1 else Ball(*np.empty((3, len(self._no_maximum), 0)))

    def _signs(self) -> Array:
        """Return the sign of each coefficient `v_c`, (r, C). Only the signs at logits of -inf are reliable."""
        # In float64, `v_c` itself could underflow or cancel to 0.
        smoothing, t = self._finite_rows.label_smoothing, self._finite_rows.probabilities
        if t is None:
            return self._weight_signs * (self._one_hot() | (smoothing > 0))
        q = np.where(t > 0, 1.0, float(smoothing > 0))
        for r, c in np.argwhere(self._infinite & (t < 0)):
            exact = (1 - Fraction(smoothing)) * Fraction(float(t[r, c])) + Fraction(smoothing) / self._classes
            q[r, c] = (exact > 0) - (exact < 0)
        return np.asarray(self._weight_signs * q)

    @property
    def _weight_signs(self) -> Array:
        """The sign of each class weight, (C,). Without class weights, every sign is 1."""
        weight = self._finite_rows.weight
        return np.ones(self._infinite.shape[1]) if weight is None else np.sign(weight, dtype=np.float64)

    def _one_hot(self) -> Mask:
        """Return a mask, (r, C), that is True at the true class of each row."""
        assert self._finite_rows.index is not None
        return np.asarray(np.arange(self._infinite.shape[1]) == self._finite_rows.index[:, None])
