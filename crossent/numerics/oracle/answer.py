r"""The exact answer to a case: every loss and every gradient element, each with a proven radius.

The oracle must not trust the torch that it judges: it imports numpy and flint only, and shares no code with the forms.
:mod:`crossent.numerics.oracle.formula` has the formula. It runs in float64 where logits, targets and weights are
float32 (float16 and bfloat16 are, once widened), and otherwise in flint's balls, whose precision is doubled until the
radius is small enough. :mod:`crossent.numerics.oracle.special_values` has what is infinite or NaN, which follows the
contract by rule. Here stand the reduction, and how a call is answered in blocks.

A radius of inf, which claims nothing, is left for numbers beyond float64, for means over weights that cancel to exactly
0, and for the tangent of a mean over no rows.

Source: the page of `torch.nn.CrossEntropyLoss`, and what torch was measured to do where that page is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import flint
import numpy as np

from crossent.numerics.oracle.arguments import EXACT_BITS, Arguments, Denominator
from crossent.numerics.oracle.arithmetic import Array, Ball, Balls
from crossent.numerics.oracle.special_values import RowBlock

BLOCK, BALL_BLOCK = 2**16, 2**12  # logits worked on at once: 0.5 MiB an array of float64, 0.3 MiB one of balls
SAVED = 2**20  # of so many logits the exponentials are kept from loss to gradient: up to 300 MiB where they are balls


@dataclass(frozen=True, eq=False)
class Answer:
    """What a case comes to.

    Attributes:
        losses: (R,), of each row before the reduction, 0 on ignored rows.
        loss: the result: (R,) for "none", otherwise 0-d.
        denominator: 0-d, what a mean divides by; 1 for the other reductions.
        blocks: the rows in blocks, at each call, so that memory stays bounded.
    """

    losses: Ball
    loss: Ball
    denominator: Ball
    blocks: Callable[[], Iterable[RowBlock]]
    _reduced: Callable[[Ball], Ball]
    _shape: tuple[int, ...]

    def gradients(self) -> Iterator[tuple[slice, Ball, Ball | None]]:
        """For each block its rows, its gradient, (r, C), and that of its target probabilities, (r, C) or None."""
        for block in self.blocks():
            yield block.rows, block.gradient(), block.target_gradient()

    def tangent(self, direction: Array) -> Ball:
        """How the loss changes along a direction, (R, C), of finite numbers: (R,) for "none", otherwise 0-d.

        It is finite where a logit of -inf makes the loss infinite, as the gradient is. A mean over no kept rows is NaN
        whatever the logits, and has the gradient 0 by contract: nothing is claimed of its tangent.

        Raises:
            ValueError: a direction of another shape, or with a number that is not below 2^128, as float32's are.
        """
        u = self._checked(direction)
        return self._reduced(_joined([block.tangents(u[block.rows]) for block in self.blocks()]))

    def second(self, direction: Array) -> Ball:
        """(R, C), how the gradient changes along a direction: its product with the matrix of second derivatives.

        Raises:
            ValueError: as :meth:`tangent`.
        """
        u = self._checked(direction)
        return _joined([block.second(u[block.rows]) for block in self.blocks()], u.shape[1:])

    def _checked(self, direction: Array) -> Array:
        if direction.shape != self._shape:
            raise ValueError(f"direction: got shape {direction.shape}; allowed is {self._shape}")
        if not (np.abs(direction) < 2.0**128).all():
            raise ValueError("direction: got a number that is not finite or too large; allowed are those below 2^128")
        return direction


def answer(arguments: Arguments) -> Answer:
    """The exact loss; and the gradient, on demand.

    Every radius is below 2^-73 of the size of the number's terms, or as small as two float64 can express, where inputs
    are float64; with float32 inputs it is what :class:`Formula` proves, about 2^-48 of the size.

    Example:
        >>> exact = answer(Arguments(np.array([[3.0, 1.0, -3.0]]), index=np.array([0])))
        >>> f"{exact.loss.hi} {exact.loss.lo:+.1e}", bool(exact.loss.radius < 1e-32)
        ('0.1291089088298506 -1.4e-17', True)
        >>> [gradient.hi.round(4).tolist() for _, gradient, _ in exact.gradients()]
        [[[-0.1211, 0.1189, 0.0022]]]
    """
    total_rows, classes = arguments.logits.shape
    denominator = Denominator.of(arguments)
    step = max(1, (BLOCK if arguments.exact_in_float64 else BALL_BLOCK) // max(1, classes))

    def made() -> Iterator[RowBlock]:
        for start in range(0, total_rows, step):
            yield RowBlock(arguments, denominator, slice(start, min(start + step, total_rows)))

    saved = list(made()) if arguments.logits.size <= SAVED else None

    def blocks() -> Iterable[RowBlock]:
        return made() if saved is None else saved

    losses = _joined([block.losses() for block in blocks()])

    def reduced(tangents: Ball) -> Ball:
        if arguments.reduction == "mean" and not arguments.kept.any():
            return _scalar(np.nan, np.inf)
        return _reduced(arguments, tangents, denominator)

    loss = _reduced(arguments, losses, denominator)
    return Answer(losses, loss, denominator.ball, blocks, reduced, arguments.logits.shape)


def _joined(balls: list[Ball], columns: tuple[int, ...] = ()) -> Ball:
    """The rows of all blocks in one; each number, or each row of `columns` numbers."""
    empty = np.empty((0, *columns))
    return Ball(*(np.concatenate([empty, *(getattr(b, name) for b in balls)]) for name in ("hi", "lo", "radius")))


def _reduced(arguments: Arguments, losses: Ball, denominator: Denominator) -> Ball:
    """The sum of the losses over the denominator: exact arithmetic on hi and lo, and the sum of the radii."""
    if arguments.reduction == "none":
        return losses
    if denominator.undefined is not None:
        return _scalar(np.nan, denominator.undefined)
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
    # 2^-20 for the roundings of up to 2^30 additions of radii; the rest for the rounding of lo, which never underflows.
    radius = float(losses.radius.sum()) * (1 + 2.0**-20) + 2.0**-53 * abs(lo)
    if hi == radius == 0:  # every loss is exactly 0
        return _scalar(0.0, 0.0)
    exactly = Balls(EXACT_BITS)
    with exactly.context():
        value = (flint.arb(hi) + flint.arb(lo, radius)) / denominator.value
        return exactly.ball(np.array(value, object))


def _scalar(value: float, radius: float) -> Ball:
    return Ball(np.array(value), np.array(0.0), np.array(radius))
