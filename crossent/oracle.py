r"""The exact answer to a case: every loss and every gradient element, each with a proven radius.

The oracle must not trust the torch that it judges: it knows numpy and flint only, and shares no code with the forms.
:mod:`crossent.finite_rows` has the formula. It runs in float64 where logits, targets and weights are float32 (float16
and bfloat16 are, once widened), and otherwise in flint's balls, whose precision is doubled until the radius is small
enough. Here stands what is around the formula: the options, the reduction, and what is infinite or NaN.

That follows the contract by rule, never passes through the formula, and has radius 0. A radius of inf, which claims
nothing, is left for numbers beyond float64, and for means over weights that cancel to exactly 0.

Source: the page of `torch.nn.CrossEntropyLoss`, and what torch was measured to do where that page is silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import flint
import numpy as np
from numpy.typing import NDArray

from crossent.arithmetic import Array, Balls, Float64, Mask, Numbers
from crossent.arithmetic import Ball as Ball
from crossent.finite_rows import ROUNDINGS, SECOND_ROUNDINGS, FiniteRows, Formula, float64_radius

RELATIVE_RADIUS = 2.0**-73  # of the size of a number's terms: 2^-20 of float64's unit roundoff
BITS = 128  # what the balls start with: two machine words, and flint is hardly faster with less
EXACT_BITS = 2300  # sums of up to 2^63 float64 numbers are exact in it: their bits are worth 2^-1074 to 2^1087
BLOCK, BALL_BLOCK = 2**16, 2**12  # logits worked on at once: 0.5 MiB an array of float64, 0.3 MiB one of balls
SAVED = 2**20  # of so many logits the exponentials are kept from loss to gradient: up to 300 MiB where they are balls


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call, laid out as `R` rows of `C` classes.

    Attributes:
        logits: (R, C), float64, or float32 where they were float32, bfloat16 or float16.
        index: (R,), int64, the true classes; None where targets are probabilities.
        probabilities: (R, C), float32 or float64, any finite numbers; None where targets are indices.
        weight: (C,), float32 or float64, finite, of any sign; None for ones.
        ignore_index: rows with this index have loss 0 and do not count. Not used with probabilities.
        reduction: "none", "mean" or "sum".
        label_smoothing: `ε` from 0 to 1, the real number that this float is.
        upstream: the gradient of the result: (R,) for "none", otherwise a number.

    Raises:
        ValueError: sizes, dtypes and options that are not allowed; and weights, probabilities and upstream gradients
            that are not finite, of which the contract says nothing.
        IndexError: an index outside `[0, C)` that is not `ignore_index`.
    """

    logits: NDArray[Any]
    index: NDArray[Any] | None = None
    probabilities: NDArray[Any] | None = None
    weight: NDArray[Any] | None = None
    ignore_index: int = -100
    reduction: str = "mean"
    label_smoothing: float = 0.0
    upstream: NDArray[Any] | float = 1.0

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ValueError(f"logits: got shape {self.logits.shape}; allowed is (R, C)")
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction: got {self.reduction!r}; allowed are 'none', 'mean' and 'sum'")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}; allowed is 0 to 1")
        if (self.index is None) == (self.probabilities is None):
            raise ValueError("target: got both or none of index and probabilities; allowed is one of them")
        if self.probabilities is not None and self.ignore_index >= 0:
            raise ValueError(f"ignore_index: got {self.ignore_index} with probabilities; allowed is a negative one")
        rows, classes = self.logits.shape
        shapes = {"index": (rows,), "probabilities": (rows, classes), "weight": (classes,)}
        shapes["upstream"] = (rows,) if self.reduction == "none" else ()
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"{name}: got shape {np.shape(value)}; allowed is {shape}")
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name}: got a number that is not finite; allowed are finite ones")
        for name in ("logits", "probabilities", "weight"):
            value = getattr(self, name)
            if value is not None and value.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name}: got {value.dtype}; allowed are float32 and float64")
        if self.index is not None and self.index.dtype != np.int64:
            raise ValueError(f"index: got {self.index.dtype}; allowed is int64")
        if self.index is not None and ((self.index < 0) | (self.index >= classes))[self.kept].any():
            raise IndexError(f"index: got a class outside 0 to {classes - 1} that is not ignore_index")

    @cached_property
    def kept(self) -> Mask:
        """(R,): False on ignored rows."""
        return np.ones(len(self.logits), bool) if self.index is None else self.index != self.ignore_index

    @cached_property
    def exact_in_float64(self) -> bool:
        """Whether :class:`Formula`'s proof for float64 holds: all is float32, the upstream gradient within 2^128."""
        arrays = (self.logits, self.probabilities, self.weight)
        narrow = all(array is None or array.dtype == np.float32 for array in arrays)
        return narrow and bool((np.abs(np.asarray(self.upstream, np.float64)) <= 2.0**128).all())


@dataclass(frozen=True, eq=False)
class Answer:
    """What a case comes to.

    Attributes:
        losses: (R,), of each row before the reduction, 0 on ignored rows.
        loss: the result: (R,) for "none", otherwise 0-d.
        denominator: 0-d, what a mean divides by; 1 for the other reductions.
    """

    losses: Ball
    loss: Ball
    denominator: Ball
    _blocks: Callable[[int | None], Iterator[RowBlock]]
    _reduced: Callable[[Ball], Ball]
    _shape: tuple[int, ...]

    def blocks(self, block_rows: int | None = None) -> Iterator[RowBlock]:
        """The rows in blocks of `block_rows`, so that memory stays bounded; by default of the size that is fastest."""
        return self._blocks(block_rows)

    def gradients(self, block_rows: int | None = None) -> Iterator[tuple[slice, Ball, Ball | None]]:
        """For each block its rows, its gradient, (r, C), and that of its target probabilities, (r, C) or None."""
        for block in self.blocks(block_rows):
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


def answer(arguments: Arguments, *, wanted: float | None = None) -> Answer:
    """The exact loss; and the gradient, on demand.

    Args:
        arguments: the call.
        wanted: an absolute radius: every radius is below 2^-20 of it, or as small as two float64 can express. By
            default below 2^-73 of the size of the number's terms. For float64 inputs; with float32 inputs the radius
            is what :class:`Formula` proves, about 2^-48 of the size.

    Example:
        >>> exact = answer(Arguments(np.array([[3.0, 1.0, -3.0]]), index=np.array([0])))
        >>> f"{exact.loss.hi} {exact.loss.lo:+.1e}", bool(exact.loss.radius < 1e-32)
        ('0.1291089088298506 -1.4e-17', True)
        >>> [gradient.hi.round(4).tolist() for _, gradient, _ in exact.gradients()]
        [[[-0.1211, 0.1189, 0.0022]]]
    """
    total_rows, classes = arguments.logits.shape
    denominator = _Denominator.of(arguments)
    if wanted is not None and arguments.reduction != "none":  # the sum of all rows' radii over D
        wanted *= min(1.0, abs(float(denominator.value)) / max(1, total_rows))
    default_rows = max(1, (BLOCK if arguments.exact_in_float64 else BALL_BLOCK) // max(1, classes))

    def blocks(block_rows: int | None = None) -> Iterator[RowBlock]:
        if block_rows is None and saved is not None:
            yield from saved
            return
        step = block_rows or default_rows
        for start in range(0, total_rows, step):
            yield RowBlock(arguments, denominator, wanted, slice(start, min(start + step, total_rows)))

    saved: list[RowBlock] | None = None
    if arguments.logits.size <= SAVED:
        saved = list(blocks())
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


@dataclass(frozen=True)
class _Denominator:
    """What a mean divides by, exactly; or 1, where that is 0 and `undefined` is the radius of the NaN that results.

    0/0 is NaN by contract: no kept rows, or all their weights 0. Where weights of both signs cancel, the contract says
    nothing, and every rounding of their sum gives something else.
    """

    value: flint.arb
    ball: Ball
    undefined: float | None

    @classmethod
    def of(cls, arguments: Arguments) -> _Denominator:
        exactly, undefined = Balls(EXACT_BITS), None
        with exactly.context():
            value = np.array(flint.arb(1), object)
            if arguments.reduction == "mean":
                kept = arguments.kept
                value = np.array(flint.arb(int(kept.sum())), object)
                if arguments.index is not None and arguments.weight is not None:
                    classes, counts = np.unique(arguments.index[kept], return_counts=True)
                    weights = arguments.weight[classes]
                    value = exactly.total(exactly.numbers(weights) * counts)
                    undefined = np.inf if weights.any() else 0.0
            ball = exactly.ball(value)
        if value == 0:
            return cls(flint.arb(1), ball, undefined or 0.0)
        return cls(value.item(), ball, None)


def _reduced(arguments: Arguments, losses: Ball, denominator: _Denominator) -> Ball:
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
    terms = [*losses.hi.tolist(), *losses.lo[losses.lo != 0].tolist()]
    try:
        hi = math.fsum(terms)  # the exact sum, rounded once
        lo = math.fsum([*terms, -hi])
    except OverflowError:
        return _scalar(np.nan, np.inf)
    # 2^-20 for the roundings of up to 2^30 additions of radii; the rest for the rounding of lo.
    radius = float(losses.radius.sum()) * (1 + 2.0**-20) + (2.0**-52 * abs(lo) + 2.0**-1074 if lo else 0.0)
    if hi == radius == 0:  # every loss is exactly 0
        return _scalar(0.0, 0.0)
    exactly = Balls(EXACT_BITS)
    with exactly.context():
        value = (flint.arb(hi) + flint.arb(lo, radius)) / denominator.value
        return exactly.ball(np.array(value, object))


def _scalar(value: float, radius: float) -> Ball:
    return Ball(np.array(value), np.array(0.0), np.array(radius))


class RowBlock:
    """Some rows: their exact gradients, and in float64 what a bound is made of.

    The float64 arrays are as good as :class:`Formula` proves for float32 inputs; with float64 inputs they may overflow
    and underflow besides. A logit of -inf is -inf in `shifted` and `log_probs`. Rows that hold NaN or +inf, or nothing
    but -inf, are broken: NaN in all but `coefficients`.

    Attributes:
        rows: which rows of the call these `r` are.
    """

    def __init__(self, arguments: Arguments, denominator: _Denominator, wanted: float | None, rows: slice) -> None:
        self.rows, self._wanted, self._undefined = rows, wanted, denominator.undefined
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

        def numbers(formula: Formula) -> Numbers:
            return formula.second(u)

        return self._ball(numbers, lambda formula: formula.second_sizes(u), fixed, SECOND_ROUNDINGS)

    def _ball(
        self,
        numbers: Callable[[Formula], Numbers],
        sizes: Callable[[Formula], Array],
        fixed: Callable[[Ball], Ball],
        roundings: int = ROUNDINGS,
    ) -> Ball:
        """The numbers, in as many bits as it takes, with what is infinite, NaN or exactly 0 put in by `fixed`."""
        with self._float64.arithmetic.context():
            size = sizes(self._float64)
            wanted = RELATIVE_RADIUS * size if self._wanted is None else np.full(size.shape, 2.0**-20 * self._wanted)
            rounding = float64_radius(size, roundings)
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
