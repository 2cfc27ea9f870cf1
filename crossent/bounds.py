"""Bounds: how far from the exact result an implementation may be, from what it promises about its arithmetic.

A contract says in which format an implementation computes, in which orders it may sum and what it stores in between.
The formula stands here once, written in the algebra of :mod:`crossent.rounding`; a contract turns it into a bound for
each row's loss, for the reduced loss and for each element of the gradient.

    log p_c = (x_c - max x) - log Σ exp(x - max x)
    loss    = -Σ_c w_c q_c log p_c,     q = (1 - ε)·target + ε/C
    ∂loss/∂x_c = g/D (p_c Σ_k w_k q_k - w_c q_c)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossent.rounding import ANY_ORDER, FLOAT32, FLOAT64, FORMATS, Array, Format, Held, Order, safe

# What a subject is held to, and what it reaches: A, float32 or better inside; B, the precision of its dtype inside; F,
# neither.
Grade = Literal["A", "B", "F"]


@dataclass(frozen=True)
class Functions:
    """How far exp and log may be off on a device, in units in the last place, and whose word that is.

    `per_unit`: roundings more in exp for each unit of `|x|`, where x is scaled to another base in working precision.
    """

    exp_ulps: float
    log_ulps: float
    source: str
    per_unit: float = 0.0


# What is assumed of exp and log. tests/test_assumptions.py measures it on this machine, every float32 there is.
FUNCTIONS = {
    "cpu": Functions(1.0, 1.0, "SLEEF's documentation of the u10 functions, in which torch's CPU kernels compute"),
    "cuda": Functions(2.0, 1.0, "CUDA C++ Programming Guide, maximum errors of expf and logf; 1 and 1 in float64"),
    "fast": Functions(4.0, 2.0, "PTX ISA: ex2.approx.f32, lg2.approx.f32; and the product with log2 e", per_unit=1.5),
}


@dataclass(frozen=True)
class Contract:
    """What an implementation promises about its arithmetic.

    Attributes:
        grade: what a subject reaches that keeps it.
        storage: the format of the logits, and of the results, which are rounded to it once.
        compute: the format of every intermediate.
        functions: how far its exp and log may be off.
        stored: the precision to which intermediates are rounded as well, or None where they are not. It has float32's
            range: to overflow in a count or in a sum whose mean is small is no matter of precision.
        row_order: in which orders the rows' losses may be summed.
    """

    grade: Grade
    storage: Format
    compute: Format
    functions: Functions
    stored: Format | None = None
    row_order: Order = ANY_ORDER

    @property
    def unlimited(self) -> Contract:
        """The same in formats in which nothing overflows."""
        storage, compute = replace(self.storage, largest=np.inf), replace(self.compute, largest=np.inf)
        stored = None if self.stored is None else replace(self.stored, largest=np.inf)
        return replace(self, storage=storage, compute=compute, stored=stored)

    def keep(self, held: Held) -> Held:
        """An intermediate, as it is held between two steps."""
        return held if self.stored is None else held.rounded(self.stored)


# Why a contract may promise nothing of a number.
Reason = Literal[
    "an intermediate may overflow",
    "the denominator may be zero",
    "the format is too short for so many terms",
    "zero times infinity",
]

# Who promises what:
#   eager       a form made of torch's operations, on the device where it runs
#   torch       nn.CrossEntropyLoss: on a CPU its own order of summation, on CUDA any, in half precision too
#   kernel      somebody's kernel: float32 inside, any order, one rounding; exp and log as good as CUDA's
#   fast_kernel the same with the hardware's approximate exp and log
Promise = Literal["eager", "torch", "kernel", "fast_kernel"]


def contract(promise: Promise, grade: Grade, dtype: str, *, device: str = "cpu", rows: int = 0) -> Contract:
    """What `promise` means for one dtype of logits, at grade A or B.

    Grade A: intermediates in at least float32, any order of summation, one rounding to the result's dtype.

    Grade B: intermediates rounded to the dtype of the logits. torch on a CPU adds up blocks of `2^p` rows,
    `p = max(4, log2(rows)/8)`, then blocks of such sums, in eight levels (aten/src/ATen/native/cpu/LossNLL.cpp). That
    is what it is held to: where a row that should close a block is ignored, the block goes on growing, which is a
    finding. On CUDA, where blocks of rows are added to the result in storage precision as they come, any order.
    """
    storage = FORMATS[dtype]
    kind = {"kernel": "cuda", "fast_kernel": "fast"}.get(promise, "cuda" if device.startswith("cuda") else "cpu")
    wide = Contract("A", storage, FLOAT64 if storage is FLOAT64 else FLOAT32, FUNCTIONS[kind])
    if grade == "A":
        return wide
    if storage.precision >= FLOAT32.precision:
        return replace(wide, grade="B")  # nothing is narrower than what it computes in
    stored = replace(storage, name=f"{dtype} precision", largest=FLOAT32.largest)
    order = ANY_ORDER if kind == "cuda" else Order(_cascade_depth(rows))
    return replace(wide, grade="B", stored=stored, row_order=order)


def _cascade_depth(rows: int) -> int:
    levels, block = 8, 2 ** max(4, rows.bit_length() // 8)
    depth = used = 0
    while rows > 1 and used < levels:
        depth += min(block, rows)
        rows = -(-rows // block)
        used += 1
    return depth + rows + used  # what is left at the top, and the levels' own sum at the end


@dataclass(frozen=True)
class Terms:
    """A call as R rows of C classes, all in float64 and exact, unless said otherwise.

    Attributes:
        logits: (R, C).
        log_sum: (R,), `log Σ exp(x - max x)`, to float64's precision.
        index: (R,), 0 on ignored rows; None for probability targets.
        kept: (R,), False on ignored rows.
        probabilities: (R, C), or None for index targets.
        weight: (C,), or None.
        label_smoothing, reduction: as given.
        upstream: (R,), the upstream gradient of each row, or of the reduced loss.
    """

    logits: Array
    log_sum: Array
    index: NDArray[np.int64] | None
    kept: NDArray[np.bool_]
    probabilities: Array | None
    weight: Array | None
    label_smoothing: float
    reduction: str
    upstream: Array


class Bounds:
    """The bounds of one call under one contract. Infinite where the contract promises nothing."""

    def __init__(self, terms: Terms, contract: Contract) -> None:
        self.terms, self.contract = terms, contract
        with np.errstate(all="ignore"):
            self._log_probs, self._probs = _softmax(terms, contract)
            self._coefficients = _coefficients(terms, contract)
            self._denominator = _denominator(terms, contract)

    @property
    def _dense(self) -> bool:
        return self.terms.index is None or self.terms.label_smoothing > 0

    @cached_property
    def loss(self) -> Array:
        """Of each row's loss, (R,), under reduction "none"; of the one number, (), otherwise.

        With classes for terms, their sum may be taken in parts, the true class's and the uniform one, which cancel
        where weights have both signs: a sum over rows errs by the size of the parts. And `ε/C` may come last, after
        all sums and after the division by D: what is multiplied by it must not overflow.
        """
        c, t = self.contract, self.terms
        held = c.stored or c.compute
        with np.errstate(all="ignore"):
            heads = self._heads()
            if self._dense:
                products = c.keep(self._coefficients.times(-self._log_probs, c.compute))
                rows, sizes = products.sum(c.compute), products.largest.sum(-1)
                unscaled = heads.sum(-1) if t.label_smoothing else heads.max(-1, initial=0.0)
            else:
                rows = self._of_target(self._coefficients).times(-self._of_target(self._log_probs), c.compute)
                sizes, unscaled = rows.largest, heads
            rows = c.keep(rows.unless(held.overflows(unscaled))).where(t.kept)
            if t.reduction == "none":
                return safe(rows.rounded(c.storage).error)
            sizes, unscaled = np.where(t.kept, sizes, 0.0), np.where(t.kept, unscaled, 0.0)
            total = c.keep(rows.sum(held, c.row_order, sizes))
            divided = np.ones(())
            if self._denominator is not None:
                # Rows may be divided before they are summed, or their sum after: the wider of the two.
                divided = np.abs(self._denominator.value) - self._denominator.error
                first = rows.over(self._denominator, c.compute).sum(c.compute, c.row_order, sizes / divided)
                total = _wider(total.over(self._denominator, c.compute), first)
            if self._dense and t.label_smoothing:
                total = total.unless(held.overflows(unscaled.sum() / np.minimum(divided, 1.0)))
            return safe(total.rounded(c.storage).error)

    @cached_property
    def gradient(self) -> Array:
        """Of each element of the gradient, (R, C).

        `p_c Σ_k v_k s - v_c s`, in which the sum may be scaled, or its terms before it: the wider of the two. Where
        terms cancel, the roundings of the latter do not.
        """
        c, t = self.contract, self.terms
        with np.errstate(all="ignore"):
            scale = Held.exactly(t.upstream, c.storage)
            if self._denominator is not None:
                scale = c.keep(scale.over(self._denominator, c.compute))
            scale = _column(scale)
            target = self._scaled(scale)
            total, scaled = self._total(self._coefficients), self._total(target)
            softmax = self._probs.times(_column(c.keep(total)), c.compute).times(scale, c.compute)
            softmax = _wider(softmax, self._probs.times(_column(c.keep(scaled)), c.compute))
            gradient = softmax.minus(target, c.compute)
            if self._dense:
                # The three parts, softmax, one-hot and uniform, are added in any order: one rounding more of each.
                u = (c.stored or c.compute).unit_roundoff
                once = u * (softmax.largest + target.largest)
                gradient = Held(gradient.value, gradient.error + once, c.compute)
            return safe(gradient.where(t.kept[:, None]).rounded(c.storage).error)

    def open(self, check: Literal["loss", "gradient"]) -> dict[Reason, NDArray[np.bool_]]:
        """Where the bound is infinite, for each reason that there is."""
        bound = getattr(self, check)
        if not np.isinf(bound).any():
            return {}
        c, t = self.contract, self.terms
        # What is judged where nothing overflows is not judged because something does.
        left = np.isinf(getattr(Bounds(t, c.unlimited), check))
        found: dict[Reason, NDArray[np.bool_]] = {"an intermediate may overflow": np.isinf(bound) & ~left}
        rows = len(t.logits)
        depth = rows - 1 if c.row_order.depth is None else min(c.row_order.depth, rows - 1)
        infinite = (np.isinf(t.logits).any(1) & t.kept).reshape(-1, *[1] * (bound.ndim - 1))
        reason: Reason = "an intermediate may overflow"  # float64, in which the bound itself is computed
        if t.reduction != "none" and depth * (c.stored or c.compute).unit_roundoff >= 0.5:
            reason = "the format is too short for so many terms"
        elif self._denominator is not None and not self._denominator.error < abs(self._denominator.value):
            reason = "the denominator may be zero"
        else:
            here = infinite if bound.ndim else infinite.any()
            found["zero times infinity"], left = left & here, left & ~here
        found[reason] = found.get(reason, np.zeros_like(left)) | left
        return {reason: where for reason, where in found.items() if where.any()}

    def _total(self, held: Held) -> Held:
        """The sum over the classes, (R,), of what is zero but for the true one, unless all classes are terms."""
        return held.sum(self.contract.compute) if self._dense else self._of_target(held)

    def _heads(self) -> Array:
        """What the loss may hold of each term before all factors are there, (R, C); or (R,), of the true class alone.

        `|w_c t_c log p_c|` without those factors that make it smaller. ε/C is one of them.
        """
        t, sizes = self.terms, self._log_probs.largest
        sizes = np.where(np.isfinite(self._log_probs.value), sizes, 0.0)  # an infinite loss is no overflow
        if t.probabilities is not None:
            sizes = sizes * np.maximum(np.abs(t.probabilities), 1.0)
        if t.weight is not None:
            sizes = sizes * np.maximum(np.abs(t.weight), 1.0)
        return sizes if self._dense else sizes[np.arange(len(sizes)), t.index]

    def _scaled(self, scale: Held) -> Held:
        """`w_c q_c s`, (R, C): the factors in any order, each partial product held.

        There are as many roundings in one order as in another, and each is relative. An underflow is not: its `η/2` is
        multiplied by the factors still to come, all but two of them at first. Where the product is above twice the
        smallest normal number times those factors, the partial one was no underflow; a sum of two products, as under
        smoothing, says nothing of either.
        """
        c, t = self.contract, self.terms
        target = c.keep(self._coefficients.times(scale, c.compute))
        factors = [np.abs(t.upstream[:, None])]
        if self._denominator is not None:
            factors.append(1 / (np.abs(self._denominator.value) - self._denominator.error)[..., None, None])
        if t.weight is not None:
            factors.append(np.abs(t.weight[None]))
        if t.probabilities is not None:
            factors.append(np.abs(t.probabilities))
        if t.label_smoothing:
            factors.append(np.ones((1, 1)))  # 1 - ε and ε/C are less
        to_come, held, products = len(factors) - 2, c.stored or c.compute, 2 if t.label_smoothing else 1
        least = held.smallest_normal * 2.0**3 * np.prod([np.max(factor, initial=1.0) for factor in factors])
        some = (target.largest > 0) & (t.label_smoothing > 0 or target.largest < least)
        if to_come <= 0 or not some.any():
            return target
        sizes = np.sort([np.broadcast_to(factor, some.shape)[some] for factor in factors], axis=0)[::-1]
        lost = np.zeros(some.shape)
        for amplified in np.cumprod(sizes, axis=0)[:to_come]:
            under = t.label_smoothing > 0 or target.largest[some] < 2 * held.smallest_normal * amplified
            lost[some] += np.where(under, products * held.smallest_subnormal / 2 * amplified, 0.0)
        return Held(target.value, target.error + lost, target.format)

    @cached_property
    def target_term(self) -> Array:
        """The part of the gradient that comes from the target alone, `-g/D · w_c q_c`, (R, C)."""
        with np.errstate(all="ignore"):
            scale = self.terms.upstream / (1.0 if self._denominator is None else self._denominator.value)
            return np.asarray(np.where(self.terms.kept[:, None], -scale[:, None] * self._coefficients.value, 0.0))

    def _of_target(self, held: Held) -> Held:
        assert self.terms.index is not None
        at = np.arange(len(self.terms.index)), self.terms.index
        return Held(held.value[at], held.error[at], held.format)


def _softmax(t: Terms, c: Contract) -> tuple[Held, Held]:
    """The logarithm of p, and p, (R, C): as the exponential of the former or as a quotient, whichever errs more."""
    x = Held.exactly(t.logits, c.storage)
    shifted = x.minus(Held.exactly(t.logits.max(1, keepdims=True, initial=-np.inf), c.storage), c.compute)
    exponentials = shifted.exp(c.compute, c.functions.exp_ulps, c.functions.per_unit)
    exact = exponentials.sum(c.compute)
    log_sum = c.keep(c.keep(exact).log(c.compute, c.functions.log_ulps, t.log_sum))
    log_probs = c.keep(shifted.minus(_column(log_sum), c.compute))
    by_exp = log_probs.exp(c.compute, c.functions.exp_ulps, c.functions.per_unit)
    quotient = exponentials.over(_column(exact), c.compute)
    return log_probs, _wider(by_exp, quotient)


def _coefficients(t: Terms, c: Contract) -> Held:
    """`w_c q_c`, (R, C): each product and sum rounded, in whichever order the factors come."""
    rows, classes = t.logits.shape
    if t.probabilities is not None:
        q = Held.exactly(t.probabilities, c.storage)
    else:
        assert t.index is not None
        hot = np.zeros((rows, classes))
        hot[np.arange(rows), t.index] = 1.0
        q = Held.exactly(hot, c.storage)
    if t.label_smoothing:
        rest, uniform = _constant(1 - t.label_smoothing, c), _constant(t.label_smoothing / classes, c)
        q = c.keep(c.keep(q.times(rest, c.compute)).plus(uniform, c.compute))
    if t.weight is not None:
        q = c.keep(q.times(Held.exactly(t.weight, c.storage), c.compute))
    return q


def _constant(value: float, c: Contract) -> Held:
    """A number made of the options: rounded where ε enters, and once more where it is used; and held as others are."""
    return c.keep(Held(np.asarray(value), np.asarray(2 * c.compute.unit_roundoff * abs(value)), None))


def _denominator(t: Terms, c: Contract) -> Held | None:
    """What `mean` divides by: the weight of the kept rows, summed as their losses are; or the number of rows."""
    if t.reduction != "mean":
        return None
    if t.index is None or t.weight is None:
        return c.keep(Held.exactly(float(t.kept.sum()), None).rounded(c.compute))
    weights = Held.exactly(np.where(t.kept, t.weight[t.index], 0.0), c.storage)
    return c.keep(weights.sum(c.stored or c.compute, c.row_order))


def _wider(a: Held, b: Held) -> Held:
    return Held(a.value, np.maximum(a.error, b.error), a.format)


def _column(held: Held) -> Held:
    return Held(held.value[..., None], held.error[..., None], held.format)
