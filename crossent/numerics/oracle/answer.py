r"""The exact value of a call: every loss and every gradient element, each with a proven error radius.

A radius of inf means that the oracle does not know the exact value, for example beyond the range of float64.

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
    """The exact values of a call with `R` rows and `C` classes, each with an error radius.

    Attributes:
        losses: (R,), the loss of each row before the reduction; 0 on ignored rows.
        loss: The result of the call: (R,) for the reduction "none", otherwise 0-d.
        denominator: 0-d, the denominator of a mean; 1 for the other reductions.
        blocks: A function that returns the blocks of rows. Each block computes its own gradients, which saves memory.
    """

    losses: Ball
    loss: Ball
    denominator: Ball
    blocks: Callable[[], Iterable[RowBlock]]
    _reduced: Callable[[Ball], Ball]  # returns the tangent of the result from the tangents of the rows
    _shape: tuple[int, ...]  # of the logits

    def gradients(self) -> Iterator[tuple[slice, Ball, Ball | None]]:
        """Yield the slice, the gradient of the logits and the gradient of the target of each block of rows.

        For a block of `r` rows, both gradients are (r, C). With class indices, the gradient of the target is None.
        """
        for block in self.blocks():
            yield block.rows, block.gradient(), block.target_gradient()

    def tangent(self, direction: Array) -> Ball:
        """Return the tangent: the derivative of the loss along a direction of the logits, (R, C).

        The tangent is (R,) for the reduction "none", otherwise 0-d.

        Raises:
            ValueError: The direction has a wrong shape, or contains inf, NaN or a magnitude of 2^128 or more.
        """
        u = self._check(direction)
        return self._reduced(Ball.joined([block.tangents(u[block.rows]) for block in self.blocks()]))

    def second(self, direction: Array) -> Ball:
        """Return the derivative of the gradient along a direction, both (R, C): a Hessian-vector product.

        Raises:
            ValueError: The direction has a wrong shape, or contains inf, NaN or a magnitude of 2^128 or more.
        """
        u = self._check(direction)
        return Ball.joined([block.second(u[block.rows]) for block in self.blocks()], u.shape[1:])

    def _check(self, direction: Array) -> Array:
        if direction.shape != self._shape:
            raise ValueError(f"direction: got shape {direction.shape}; allowed is {self._shape}")
        wrong = direction[~(np.abs(direction) < 2.0**128)]
        if wrong.size:
            raise ValueError(f"direction: got {wrong[0]}; allowed are finite numbers of a magnitude below 2^128")
        return direction


def answer(arguments: Arguments) -> Answer:
    """Return the exact values of a call.

    The size of a result is the sum of the magnitudes of its terms. With float32 inputs, the radius of a result is about
    2^-48 times the size (proof: :class:`crossent.numerics.oracle.formula.Formula`). With float64 inputs, the radius is
    below 2^-73 times the size, or as small as a pair of float64 numbers allows.

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
        # torch is not consistent: the mean over no kept rows is NaN, but its gradient is 0
        if arguments.reduction == "mean" and not arguments.kept.any():
            return _scalar(np.nan, np.inf)
        return reduce_losses(arguments, tangents, denominator)

    loss = reduce_losses(arguments, losses, denominator)
    return Answer(losses, loss, denominator.ball, blocks, reduced, arguments.logits.shape)


def reduce_losses(arguments: Arguments, losses: Ball, denominator: Denominator) -> Ball:
    """Return the sum or the mean of `losses`, 0-d. For the reduction "none", return `losses` unchanged, (R,).

    `losses` has the losses or the tangents of the rows. The mean is NaN if the denominator is 0.

    The sum is a pair `hi + lo` of float64 numbers: the rounded sum and its rounding error. The radius of the sum is the
    sum of all radii, plus the error of rounding `lo`.
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
    return Ball(np.array(value), np.array(0.0), np.array(radius))
