"""The error bounds of the loss and of the gradients, for an implementation that keeps a contract.

This module writes the formula once, with the operations of :mod:`crossent.numerics.bounds.rounding`. Together with a
contract, the formula gives an error bound for each row's loss, for the reduced loss and for each element of the
gradients.

    log p_c = (x_c - max x) - log Σ exp(x - max x)
    loss    = -Σ_c w_c q_c log p_c,     q = (1 - ε)·target + ε/C
    ∂loss/∂x_c = g/D (p_c Σ_k w_k q_k - w_c q_c)
    ∂loss/∂target_c = -g/D (1 - ε) w_c log p_c
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.intermediates import (
    Terms,
    coefficients,
    column,
    constant,
    denominator,
    offset,
    parts,
    smoothing_format,
    softmax,
    unsmoothed_share,
    wider,
)
from crossent.numerics.bounds.rounding import Held, safe
from crossent.numerics.formats import Array

# The reasons for an infinite bound: the contract promises nothing about such a number.
Reason = Literal[
    "an intermediate may overflow",
    "the denominator may be zero",
    "the format is too short for so many terms",
    "zero times infinity",
]


class Bounds:
    """The error bounds of one call under one contract. A bound is infinite where the contract promises nothing."""

    # Each cached property only calls a method: mutmut, which `nox -s mutate` runs, does not mutate decorated functions.

    def __init__(self, terms: Terms, contract: Contract) -> None:
        self.terms, self.contract = terms, contract
        self._dense = terms.index is None or terms.label_smoothing > 0  # a row has a term for every class
        with np.errstate(all="ignore"):
            self._log_probs, self._probs, self._logsumexp = softmax(terms, contract)
            self._log_sizes = np.where(np.isfinite(self._log_probs.value), self._log_probs.largest, 0.0)
            self._coefficients = coefficients(terms, contract)
            self._denominator = denominator(terms, contract)

    def _of_logits(self) -> Held:
        """Return `Σ w_c q_c · logsumexp - Σ w_c q_c x_c`, (R,), as in kernels that smooth with unshifted logits."""
        c, t = self.contract, self.terms
        moved = t.logits + (offset(t.logits, c) - t.logits.max(1))[:, None]
        q = coefficients(t, replace(c, stored=None))  # such kernels keep the coefficients as scalars in compute
        logits = q.times(Held.exactly(moved, c.storage), c.compute).sum(c.compute)
        rows = q.sum(c.compute).times(self._logsumexp, c.compute).minus(logits, c.compute)
        if not t.label_smoothing:
            return rows
        # Such a kernel may multiply by ε/C last, so `Σ w_c · logsumexp` and `Σ w_c x_c` must not overflow.
        weights = float(t.logits.shape[1]) if t.weight is None else np.abs(t.weight).sum()
        largest = np.where(np.isfinite(t.logits), np.abs(t.logits), 0.0).max(1, initial=0.0) + np.abs(t.log_sum)
        return rows.unless(c.compute.overflows(weights * largest))

    @cached_property
    def loss(self) -> Array:
        """The bound of each row's loss, (R,), for reduction "none"; otherwise the bound of the reduced loss, ()."""
        with np.errstate(all="ignore"):
            return self._loss()

    def _loss(self) -> Array:
        rows, sizes = self._expected(-self._log_probs)
        if self._dense and self.contract.fused:
            rows = wider(rows, self._of_logits())
        return self._reduced(rows, sizes, self._log_sizes)  # the sizes are 0 where the loss is infinite: no overflow

    def _expected(self, values: Held) -> tuple[Held, Array]:
        """Return `Σ_c w_c q_c values_c` of each row, (R,), and the sum of the magnitudes of its terms, (R,)."""
        c = self.contract
        if not self._dense:
            rows = self._of_target(self._coefficients).times(self._of_target(values), c.compute, known=not c.fused)
            return rows, rows.largest
        products = c.keep(self._coefficients.times(values, c.compute))
        return products.sum(c.compute), products.largest.sum(-1)

    def _reduced(self, rows: Held, sizes: Array, values: Array) -> Array:
        """Return the bound of `Σ_c w_c q_c values_c` for each row, (R,), or of the reduced number, ().

        Where every class has a term, an implementation may sum two parts of a row separately: the part of the true
        class and the uniform part. The parts cancel where weights have both signs, so the error of a sum over rows
        depends on the sizes of the parts. An implementation may also multiply by `ε/C` last, after all sums and after
        the division by D. The unscaled sum must then not overflow.

        Args:
            rows: `Σ_c w_c q_c values_c`, (R,).
            sizes: The sum of the magnitudes of each row's terms, (R,).
            values: The magnitudes of the values, (R, C).
        """
        c, t = self.contract, self.terms
        held, heads = c.stored or c.compute, self._heads(values)
        unscaled = heads
        if self._dense:
            unscaled = heads.sum(-1) if t.label_smoothing else heads.max(-1)
        rows = c.keep(rows.unless(held.overflows(unscaled))).where(t.kept)
        if t.reduction == "none":
            return safe(rows.rounded(c.storage).error)
        sizes, unscaled = np.where(t.kept, sizes, 0.0), np.where(t.kept, unscaled, 0.0)
        total = c.keep(rows.sum(held, c.row_order, sizes))
        divided = np.ones(())
        if self._denominator is not None:
            # An implementation may divide each row before the sum, or divide the sum: the larger error counts.
            divided = np.abs(self._denominator.value) - self._denominator.error
            first = self._divided(rows, known=True).sum(c.compute, c.row_order, sizes / divided)
            total = wider(self._divided(total, known=True), first)
        if self._dense and t.label_smoothing:
            total = total.unless(held.overflows(unscaled.sum() / np.minimum(divided, 1.0)))
        return safe(total.rounded(c.storage).error)

    @cached_property
    def gradient(self) -> Array:
        """The bound of each element of the gradient of the logits, (R, C)."""
        with np.errstate(all="ignore"):
            return self._gradient()

    def _gradient(self) -> Array:
        """Return the bound of `s (p_c Σ_k v_k - v_c)`, with `v = w q` and `s = g/D`.

        With smoothing, an implementation may add the three terms softmax, one-hot and uniform in any order. This is one
        more rounding of each. A kernel may also compute the part of the target and the uniform part separately, and add
        the two parts. The larger error counts. To scale the sum of the two parts costs no more than to scale each part.
        """
        c, t = self.contract, self.terms
        scale = column(self._scale())
        gradient, sizes = self._part(self._coefficients, scale, hot=not self._dense)
        if self._dense:
            once = (c.stored or c.compute).unit_roundoff * sizes
            gradient = Held(gradient.value, gradient.error + once, c.compute)
        if t.label_smoothing and c.fused:
            of_target, uniform = parts(t, c)
            share = scale.times(unsmoothed_share(t, c), c.compute, known=False)
            spread = scale.times(constant(t.label_smoothing / t.logits.shape[1], c.compute, c), c.compute, known=False)
            one, _ = self._part(of_target, c.keep(share), hot=t.index is not None)
            two, _ = self._part(uniform, c.keep(spread), hot=False)
            gradient = wider(gradient, one.plus(two, c.compute))
        return safe(gradient.where(t.kept[:, None]).rounded(c.storage).error)

    def _part(self, coefficients: Held, scale: Held, *, hot: bool) -> tuple[Held, Array]:
        """Return `s (p_c Σ_k v_k - v_c)`, (R, C), in any association, and the sizes of its two terms, (R, C).

        An implementation may multiply both terms by a factor before the difference, or multiply the difference. With m
        factors, of which `a` come before the difference `d`, the roundings are:

            u (a |s p_c Σ v| + a |s v_c| + (1 + m - a) |d|)

        This is linear in `a`, so its largest value is at an end: every factor comes before the difference, or none.
        Where only the true class has a coefficient v (`hot`), v is a factor too, and the term `s v` has one rounding
        less for `a ≥ 1`. The error of the true class then increases with `a` from 1 on:

            u (a s v p + (a - 1) s v + (1 + m - a) s v (1 - p)) = u s v (m + (2a - 1 - m) p)

        For `a = 0`, as in `s v (p - 1)`, the error is `u (1 + m) s v (1 - p)`. Again the two ends count. Automatic
        differentiation multiplies by v before the difference; a kernel need not. A fused multiply-add leaves a rounding
        out.

        Before the difference, an implementation may scale the sum over k, or scale its terms. The larger error counts:
        where the terms cancel, their roundings do not cancel.
        """
        c, t = self.contract, self.terms
        known = not c.fused  # the factors of a kernel may have any order
        scaled = self._scaled(coefficients, scale)
        total, of_scaled = (self._of_target(v) if hot else v.sum(c.compute) for v in (coefficients, scaled))
        factor = column(c.keep(of_scaled))
        softmax = self._probs.times(column(c.keep(total)), c.compute, known=known).times(scale, c.compute, known=known)
        # As in autograd: the gradient of log p is stored, then summed, then multiplied by p.
        softmax = wider(softmax, self._probs.times(factor, c.compute, known=known))
        if c.fused:
            softmax = self._in_any_order(softmax, [*self._scale_factors(), column(total).largest, self._probs.largest])
        before = softmax.minus(scaled, c.compute)
        if hot and c.fused:
            is_hot = np.arange(t.logits.shape[1]) == np.reshape(np.asarray(t.index), (-1, 1))
            minus_one = self._probs.minus(Held.exactly(1.0, c.compute), c.compute)
            difference = Held.chosen(is_hot, minus_one, self._probs)
            after = difference.times(factor, c.compute, known=False)
        else:
            difference = self._probs.times(column(total), c.compute, known=known).minus(coefficients, c.compute)
            after = difference.times(scale, c.compute, known=known)
        if c.fused:
            after = self._in_any_order(after, [*self._scale_factors(), column(total).largest, difference.largest])
        return wider(before, after), softmax.largest + scaled.largest

    def unbounded(self, check: str) -> dict[Reason, NDArray[np.bool_]]:
        """Return a mask of the infinite bounds for each reason that occurs; `check` names the bound."""
        bound = getattr(self, check)
        if not np.isinf(bound).any():
            return {}
        c, t = self.contract, self.terms
        # A bound that is finite once overflow is ruled out was infinite because of overflow.
        left = np.isinf(getattr(self._under(c.unlimited), check))
        found: dict[Reason, NDArray[np.bool_]] = {"an intermediate may overflow": np.isinf(bound) & ~left}
        rows = len(t.logits)
        depth = rows - 1 if c.row_order.depth is None else min(c.row_order.depth, rows - 1)
        infinite = (np.isinf(t.logits).any(1) & t.kept).reshape(-1, *[1] * (bound.ndim - 1))
        reason: Reason = "an intermediate may overflow"  # of float64, in which the bound itself is computed
        if t.reduction != "none" and depth * (c.stored or c.compute).unit_roundoff >= 0.5:
            reason = "the format is too short for so many terms"
        elif self._denominator is not None and not self._denominator.error < abs(self._denominator.value):
            reason = "the denominator may be zero"
        else:
            here = infinite if bound.ndim else infinite.any()
            found["zero times infinity"], left = left & here, left & ~here
        found[reason] = found.get(reason, np.zeros_like(left)) | left
        return {reason: where for reason, where in found.items() if where.any()}

    def _under(self, contract: Contract) -> Bounds:
        """Return the bounds of the same call under another contract."""
        return Bounds(self.terms, contract)

    def _total(self, held: Held) -> Held:
        """Return the sum over the classes, (R,); where only the true class has a term, that term."""
        return held.sum(self.contract.compute) if self._dense else self._of_target(held)

    def _heads(self, sizes: Array) -> Array:
        """Return the largest partial product of each term, (R, C), or of the true class's term alone, (R,).

        The largest partial product is `|w_c t_c| sizes_c` without the factors below one. `ε/C` is below one.
        """
        t = self.terms
        if t.probabilities is not None:
            sizes = sizes * np.maximum(np.abs(t.probabilities), 1.0)
        if t.weight is not None:
            sizes = sizes * np.maximum(np.abs(t.weight), 1.0)
        return sizes if self._dense else sizes[np.arange(len(sizes)), t.index]

    def _scaled(self, coefficients: Held, scale: Held) -> Held:
        """Return `w_c q_c s`, (R, C). The factors may have any order, and each partial product is stored."""
        t = self.terms
        factors = self._scale_factors()
        if t.weight is not None:
            factors.append(np.abs(t.weight[None]))
        if t.probabilities is not None:
            factors.append(np.abs(t.probabilities))
        if t.label_smoothing:
            factors.append(np.ones((1, 1)))  # 1 - ε and ε/C are at most one
        product = self.contract.keep(coefficients.times(scale, self.contract.compute))
        return self._in_any_order(product, factors, products=2 if t.label_smoothing else 1)

    def _scale_factors(self) -> list[Array]:
        """Return `|g|` and `1/|D|`, each with a shape that broadcasts to (R, C)."""
        factors = [np.abs(self.terms.upstream[:, None])]
        if self._denominator is not None:
            factors.append(1 / (np.abs(self._denominator.value) - self._denominator.error)[..., None, None])
        return factors

    def _in_any_order(self, product: Held, factors: list[Array], products: int = 1) -> Held:
        """Return a product of these factors, (R, C), where an implementation may store any partial product.

        Every order has the same number of roundings, and each rounding error is relative. The error of an underflow is
        absolute: `η/2`, multiplied by the remaining factors. After the first product, all factors but two remain. If
        the product is above twice the smallest normal number times the remaining factors, the partial product did not
        underflow. The size of a sum of two products, as with smoothing, says nothing about the two products, so both
        may underflow.

        Args:
            product: The product or the sum of products, with its relative rounding errors.
            factors: The magnitudes of the factors, which broadcast to (R, C).
            products: The number of products in `product`, 1 or 2.
        """
        held = self.contract.stored or self.contract.compute
        to_come = len(factors) - 2
        least = held.smallest_normal * 2.0**3 * np.prod([np.max(factor, initial=1.0) for factor in factors])
        some = (product.largest > 0) & ((products > 1) | (product.largest < least))
        if to_come <= 0 or not some.any():
            return product
        sizes = np.sort([np.broadcast_to(factor, some.shape)[some] for factor in factors], axis=0)[::-1]
        lost = np.zeros(some.shape)
        for amplified in np.cumprod(sizes, axis=0)[:to_come]:
            under = (products > 1) | (product.largest[some] < 2 * held.smallest_normal * amplified)
            lost[some] += np.where(under, products * held.smallest_subnormal / 2 * amplified, 0.0)
        return Held(product.value, product.error + lost, product.format)

    @cached_property
    def target_gradient(self) -> Array:
        """The bound of each element of the class probabilities' gradient, (R, C): `-g/D · (1 - ε) w_c log p_c`."""
        with np.errstate(all="ignore"):
            return self._target_gradient()

    def _target_gradient(self) -> Array:
        """Return the bound of :attr:`target_gradient`.

        The factors may have any order. A partial product may overflow before a factor below one.
        """
        c, t = self.contract, self.terms
        factors = [*self._scale_factors(), self._log_sizes]
        product = c.keep(column(self._scale()).times(-self._log_probs, c.compute))
        if t.weight is not None:
            factors.append(np.abs(t.weight[None]))
            product = c.keep(product.times(Held.exactly(t.weight, c.storage), c.compute))
        if t.label_smoothing:
            factors.append(np.ones((1, 1)))  # 1 - ε is at most one
            narrow, rest = smoothing_format(t, c), unsmoothed_share(t, c)
            product = c.keep(product.rounded(narrow).times(rest, narrow))
        unscaled = np.ones((1, 1))
        for factor in factors:
            unscaled = unscaled * np.maximum(factor, 1.0)
        product = self._in_any_order(product, factors).unless((c.stored or c.compute).overflows(unscaled))
        return safe(product.rounded(c.storage).error)

    def _scale(self) -> Held:
        """Return `g/D`, (R,)."""
        scale = Held.exactly(self.terms.upstream, self.contract.storage)
        return scale if self._denominator is None else self.contract.keep(self._divided(scale, known=False))

    def _divided(self, held: Held, *, known: bool) -> Held:
        """Return a number divided by D. A kernel may multiply the number by `1/D`: the larger error counts."""
        c, divisor = self.contract, self._denominator
        assert divisor is not None
        divided = held.over(divisor, c.compute, c.functions.division_ulps, known=known)
        if not c.fused:
            return divided
        inverse = c.keep(Held.exactly(1.0, c.storage).over(divisor, c.compute, c.functions.division_ulps))
        return wider(divided, held.times(inverse, c.compute, known=False))

    def vacuous_answers(self, check: str) -> list[Array]:
        """Return results that are wrong but part of the formula: a comparison that they pass is no evidence.

        For the gradient, this is the part of the target alone: `-g/D · w_c q_c`, (R, C).
        """
        if check != "gradient":
            return []
        with np.errstate(all="ignore"):
            scale = self.terms.upstream / (1.0 if self._denominator is None else self._denominator.value)
            return [np.where(self.terms.kept[:, None], -scale[:, None] * self._coefficients.value, 0.0)]

    def _of_target(self, held: Held) -> Held:
        """Return the entry of each row's true class, (R,)."""
        assert self.terms.index is not None
        at = np.arange(len(self.terms.index)), self.terms.index
        return Held(held.value[at], held.error[at], held.format)
