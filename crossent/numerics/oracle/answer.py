r"""The exact value of a call: every loss and every gradient element, each with a proven error radius.

crossent tests torch and the forms against the oracle, so the oracle must depend on neither. Three modules compute the
exact value:

* :mod:`crossent.numerics.oracle.formula` has the formula. The formula runs in float64 if logits, class probabilities
  and class weights are float32, and the magnitude of the upstream gradient is at most 2^128. (float16 and bfloat16
  inputs arrive as float32.) Otherwise the formula runs in the ball arithmetic of flint, whose numbers have an error
  radius. The oracle doubles the precision until the radius is small enough.
* :mod:`crossent.numerics.oracle.special_values` has the rules for results that are infinite, NaN or exactly 0.
* This module computes a call in blocks of rows, and reduces the losses.

A radius of inf means that the oracle does not know the exact value. There are three reasons:

* the number, or a partial sum of the losses in a reduction, is beyond the range of float64;
* the class weights of a mean cancel to exactly 0;
* the number is a tangent (a derivative along a direction of the logits), and the loss is a mean over no kept rows. A
  row is kept if its target is not `ignore_index`.

Sources of the formula and the rules: the documentation of `torch.nn.CrossEntropyLoss`, and measurements of torch where
the documentation says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import flint
import numpy as np

from crossent.numerics.formats import Array
from crossent.numerics.oracle.arguments import EXACT_BITS, Arguments, Denominator
from crossent.numerics.oracle.arithmetic import Ball, BallArithmetic
from crossent.numerics.oracle.special_values import RowBlock

# The largest number of logits in a block, unless a single row is longer. An array of a block takes 0.5 MiB in float64
# (BLOCK), and 0.3 MiB in ball arithmetic (BALL_BLOCK).
BLOCK, BALL_BLOCK = 2**16, 2**12
# If a call has at most this number of logits, the oracle keeps the blocks, so that the gradients use the exponentials
# that the losses computed. The blocks take up to 300 MiB in ball arithmetic.
SAVED = 2**20


@dataclass(frozen=True, eq=False)
class Answer:
    """The exact values of a call to cross-entropy with `R` rows and `C` classes, each with an error radius.

    Attributes:
        losses: (R,), the loss of each row before the reduction, and 0 on ignored rows.
        loss: The result of the call: (R,) for "none", otherwise 0-d.
        denominator: 0-d, the denominator of a mean; 1 for the other reductions.
        blocks: A function that returns the blocks of the call. Each `RowBlock` computes the gradients of its rows, so
            that the gradients of all rows are never in memory together.
    """

    losses: Ball
    loss: Ball
    denominator: Ball
    blocks: Callable[[], Iterable[RowBlock]]
    _reduced: Callable[[Ball], Ball]  # returns the tangent of the result from the tangents of the rows
    _shape: tuple[int, ...]  # of the logits

    def gradients(self) -> Iterator[tuple[slice, Ball, Ball | None]]:
        """Yield, for each block of rows, the slice of rows, the gradient of the logits and the gradient of the target.

        For a block of `r` rows, both gradients are (r, C). With class indices, the gradient of the target is None.
        """
        for block in self.blocks():
            yield block.rows, block.gradient(), block.target_gradient()

    def tangent(self, direction: Array) -> Ball:
        """Return the tangent: the derivative of the loss along a direction of the logits.

        The direction is (R, C). The tangent is (R,) for the reduction "none", otherwise 0-d.

        Where a logit of -inf makes the loss infinite, the tangent is finite, like the gradient of the logits.

        The tangent of a mean over no kept rows has the radius inf, because torch gives no consistent answer: the mean
        is NaN for all logits, but its gradient is 0. If rows are kept but the denominator is 0, the tangent is NaN.

        Raises:
            ValueError: The direction does not have the shape of the logits. Or the direction contains inf, NaN, or a
                magnitude of 2^128 or more, which is beyond the range of float32.
        """
        u = self._check(direction)
        return self._reduced(Ball.joined([block.tangents(u[block.rows]) for block in self.blocks()]))

    def second(self, direction: Array) -> Ball:
        """Return the derivative of the gradient along a direction of the logits: a Hessian-vector product.

        The direction and the product are (R, C).

        Raises:
            ValueError: The direction is invalid, as in :meth:`tangent`.
        """
        u = self._check(direction)
        return Ball.joined([block.second(u[block.rows]) for block in self.blocks()], u.shape[1:])

    def _check(self, direction: Array) -> Array:
        """Return a direction unchanged, or raise the ValueError that :meth:`tangent` documents."""
        if direction.shape != self._shape:
            raise ValueError(f"direction: got shape {direction.shape}; allowed is {self._shape}")
        wrong = direction[~(np.abs(direction) < 2.0**128)]
        if wrong.size:
            raise ValueError(f"direction: got {wrong[0]}; allowed are finite numbers of a magnitude below 2^128")
        return direction


def answer(arguments: Arguments) -> Answer:
    """Return the exact values of a call. The methods of the returned object compute the gradients.

    The error radius of a number is relative to the number's size: the sum of the magnitudes of its terms. With float32
    inputs, the radius is about 2^-48 times the size, as :class:`crossent.numerics.oracle.formula.Formula` proves. With
    float64 inputs, the radius is below 2^-73 times the size, or as small as a pair of float64 numbers allows.

    Example:
        >>> exact = answer(Arguments(np.array([[3.0, 1.0, -3.0]]), index=np.array([0])))
        >>> f"{exact.loss.hi} {exact.loss.lo:+.1e}", bool(exact.loss.radius < 1e-32)
        ('0.1291089088298506 -1.4e-17', True)
        >>> [gradient.hi.round(4).tolist() for _, gradient, _ in exact.gradients()]
        [[[-0.1211, 0.1189, 0.0022]]]
    """
    total_rows, classes = arguments.logits.shape
    denominator = Denominator.of(arguments)
    step = max(1, (BLOCK if arguments.float64_suffices else BALL_BLOCK) // max(1, classes))

    def new_blocks() -> Iterator[RowBlock]:
        for start in range(0, total_rows, step):
            yield RowBlock(arguments, denominator, slice(start, min(start + step, total_rows)))

    saved = list(new_blocks()) if arguments.logits.size <= SAVED else None

    def blocks() -> Iterable[RowBlock]:
        return new_blocks() if saved is None else saved

    losses = Ball.joined([block.losses() for block in blocks()])

    def reduced(tangents: Ball) -> Ball:
        if arguments.reduction == "mean" and not arguments.kept.any():
            return _scalar(np.nan, np.inf)
        return reduce_losses(arguments, tangents, denominator)

    loss = reduce_losses(arguments, losses, denominator)
    return Answer(losses, loss, denominator.ball, blocks, reduced, arguments.logits.shape)


def reduce_losses(arguments: Arguments, losses: Ball, denominator: Denominator) -> Ball:
    """Return the sum or the mean of the losses of the rows, 0-d. For the reduction "none", return the losses, (R,).

    `losses` may also hold the tangents of the rows.

    The value of a ball is `hi + lo`, a pair of float64 numbers. The code computes the sum of all `hi` and `lo` as such
    a pair: the rounded sum, and its rounding error. The rounding error is itself rounded. The error radius of the sum
    is the sum of all radii, plus the error of this second rounding. The sum and its radius are then divided by the
    denominator, and the radius grows by the error of the division.

    If the denominator is 0, the mean is NaN, with the radius :attr:`Denominator.nan_radius`. Otherwise, an infinite or
    NaN loss makes the result infinite or NaN. If the radius of a loss is inf, the radius of the result is inf. If a
    partial sum overflows, the result is NaN with the radius inf.
    """
    if arguments.reduction == "none":
        return losses
    if denominator.nan_radius is not None:
        return _scalar(np.nan, denominator.nan_radius)
    special = losses.hi[~np.isfinite(losses.hi)]
    if special.size:
        with np.errstate(invalid="ignore"):
            value = special.sum() * np.sign(float(denominator.value))
        return _scalar(value, np.inf if np.isinf(losses.radius).any() else 0.0)
    terms = [*losses.hi.tolist(), *losses.lo.tolist()]
    try:
        hi = math.fsum(terms)  # the exact sum, rounded once
        lo = math.fsum([*terms, -hi])
    except OverflowError:
        return _scalar(np.nan, np.inf)
    # 2^-20 covers the roundings of up to 2^30 additions of radii. The last term covers the rounding of `lo`. A
    # term for underflow is not needed, because a sum of float64 numbers is exact where the sum is subnormal.
    radius = float(losses.radius.sum()) * (1 + 2.0**-20) + 2.0**-53 * abs(lo)
    if hi == radius == 0:  # every loss is exactly 0: only a rule, which gives 0, has the radius 0
        return _scalar(0.0, 0.0)
    exactly = BallArithmetic(EXACT_BITS)
    with exactly.context():
        value = (flint.arb(hi) + flint.arb(lo, radius)) / denominator.value
        return exactly.ball(np.array(value, object))


def _scalar(value: float, radius: float) -> Ball:
    """Return a 0-d ball with this value and this radius."""
    return Ball(np.array(value), np.array(0.0), np.array(radius))
