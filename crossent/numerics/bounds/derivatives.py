"""The error bounds of derivatives along a direction: the tangent of the loss, and the derivative of the gradient.

Forward-mode differentiation computes the tangent. A second backward pass computes the derivative of the gradient. For a
direction `u` of the logits:

    mean    = Σ_c p_c u_c
    tangent = Σ_c w_c q_c (mean - u_c)                        for each row, reduced like the loss
    second  = g/D Σ_k w_k q_k · p_c (u_c - mean)              the derivative of the gradient of x_c along u

Here `p` is the softmax of a row `x` of logits. `w` are the class weights, and `q` is the smoothed target. `g` is the
upstream gradient, and `D` is the denominator of a mean, or 1 for the other reductions. In shapes, R is the number of
rows, C of classes and B of calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.intermediates import column, wider
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import Computed, safe
from crossent.numerics.bounds.terms import Terms, stack_calls
from crossent.numerics.formats import Array


class DerivativeBounds(Bounds):
    """The error bounds of the derivatives along a direction. A bound is infinite where the contract promises nothing.

    `direction` has the shape of the logits, (R, C). The format `contract.storage` must represent the numbers of
    `direction` exactly.
    """

    def __init__(self, terms: Terms, contract: Contract, direction: Array) -> None:
        super().__init__(terms, contract)
        self.direction = direction
        self._along = Computed.exactly(direction, contract.storage)

    def _stack(self, calls: Sequence[Self]) -> Self:
        direction = np.concatenate([call.direction for call in calls])
        return type(self)(stack_calls([call.terms for call in calls]), self.contract, direction)

    def under(self, contract: Contract) -> Self:
        """Return the bounds of the same call under another contract."""
        return type(self)(self.terms, contract, self.direction)

    @cached_property
    def _kept_probs(self) -> Computed:
        """The probabilities `p`, (R, C), rounded to the contract's format `stored` if there is one."""
        return self.contract.keep(self._probs)  # autograd stores p when it differentiates the gradient

    @cached_property
    def _mean(self) -> Computed:
        """The mean of the direction `u`, weighted by the probabilities, `Σ_c p_c u_c`, (R,).

        An implementation may also divide `Σ_c e_c u_c` by `Σ_c e_c`, with `e_c = exp(x_c - max x)`. The larger error of
        both computations counts.
        """
        c, t, f = self.contract, self.terms, self.contract.functions
        mean = c.keep(c.keep(self._kept_probs.times(self._along, c.compute)).sum(c.compute))
        if c.stored is None:  # the sum has all roundings of the quotient
            return mean
        x = Computed.exactly(t.logits, c.storage)
        shifted = c.keep(
            x.minus(Computed.exactly(t.logits.max(1, keepdims=True, initial=-np.inf), c.storage), c.compute)
        )
        exponentials = c.keep(shifted.exp(c.compute, f.exp_ulps, f.exp_per_unit))
        total = c.keep(c.keep(exponentials.times(self._along, c.compute)).sum(c.compute))
        partition = c.keep(exponentials.sum(c.compute))
        return wider(mean, c.keep(total.over(partition, c.compute, f.division_ulps)))

    @cached_property
    def tangent(self) -> Array:
        """The bound of each row's tangent, (R,), for reduction "none"; otherwise of each call's tangent, () or (B,).

        The bound is the largest bound of three computations:

        * Replace `log p_c` in the formula of the loss by its tangent, `u_c - mean`.
        * Sum `Σ_c w_c q_c · mean` and `Σ_c w_c q_c u_c` separately, as the second backward pass does.
        * In a kernel: multiply the gradient by the direction, and sum over the classes.
        """
        c = self.contract
        with np.errstate(all="ignore"):
            rows, sizes = self._weighted_sums(c.keep(column(self._mean).minus(self._along, c.compute)))
            for way, size in (self._two_sums(), self._gradient_times_direction())[: 1 + c.fused]:
                rows, sizes = wider(rows, way), np.maximum(sizes, size)
            return self._reduced(rows, sizes, np.abs(self.direction) + column(self._mean).largest)

    def _two_sums(self) -> tuple[Computed, Array]:
        """Return `Σ_c w_c q_c · mean - Σ_c w_c q_c u_c`, and the sum of its terms' magnitudes, both (R,)."""
        c = self.contract
        total = c.keep(self._total(self._coefficients))
        products = c.keep(self._coefficients.times(self._along, c.compute))
        scaled = c.keep(total.times(self._mean, c.compute))
        return scaled.minus(self._total(products), c.compute), scaled.largest + products.largest.sum(-1)

    def _gradient_times_direction(self) -> tuple[Computed, Array]:
        """Return `Σ_c (p_c Σ_k w_k q_k - w_c q_c) u_c`, and the sum of its terms' magnitudes, both (R,)."""
        c = self.contract
        total = column(c.keep(self._total(self._coefficients)))
        gradient = c.keep(self._kept_probs.times(total, c.compute).minus(self._coefficients, c.compute))
        terms = c.keep(gradient.times(self._along, c.compute))
        return terms.sum(c.compute), terms.largest.sum(-1)

    @cached_property
    def second(self) -> Array:
        """The bound of each element of the derivative of the gradient along the direction, (R, C).

        The bound is the largest bound of three computations, with `s = g/D Σ_k w_k q_k` and the factors in any order:

        * Multiply `p_c u_c` and `p_c · mean` by `s`, and subtract the second product from the first.
        * Replace the second product by `p_c` times the sum of the first products over the classes, as log-softmax does.
        * Multiply `u_c - mean` by `p_c` and `s`.

        With smoothing, the bound also covers a backward pass that computes two parts and adds them
        (:meth:`_parts_error`).
        """
        c, t = self.contract, self.terms
        with np.errstate(all="ignore"):
            scale = column(self._scale())
            total = c.keep(self._total(self._coefficients)).times(self._scale(), c.compute, known=False)
            factor = column(c.keep(wider(total, self._total(self._scaled(self._coefficients, scale)))))
            scaled = c.keep(self._kept_probs.times(factor, c.compute, known=False))
            with_direction = self._product(scaled.times(self._along, c.compute, known=False), self.direction)
            mean = column(self._mean)
            with_mean = self._product(scaled.times(mean, c.compute, known=False), mean.largest)
            summed = column(c.keep(with_direction.sum(c.compute)))
            with_mean = wider(with_mean, c.keep(self._kept_probs.times(summed, c.compute)))
            second = with_direction.minus(with_mean, c.compute)
            deviation = c.keep(self._along.minus(mean, c.compute))
            second = wider(second, self._product(scaled.times(deviation, c.compute, known=False), deviation.largest))
            if t.smooths:
                once = self._parts_error(np.abs(scale.value), np.abs(factor.value))
                once = once * self._kept_probs.largest * (np.abs(self.direction) + mean.largest)
                second = Computed(second.value, second.error + once, c.compute)
            return safe(second.where(t.kept[:, None]).rounded(c.storage).error)

    def _parts_error(self, scale: Array, factor: Array) -> Array:
        """Return the additional error of `second` for a computation in two parts, divided by `p_c (|u_c| + |mean|)`.

        With smoothing, the backward pass may compute the part of the target and the uniform part
        (`intermediates.parts`) separately, and add them last. The addition is one more rounding.

        Each part has five roundings. The error of `second` counts five roundings of the sum of both parts. If the parts
        cancel, the sum of their magnitudes is larger. So this method adds five roundings of the difference between the
        two magnitudes.

        `scale` is the magnitude of `g/D`, and `factor` is the magnitude of `g/D Σ_k w_k q_k`, both (R, 1).
        """
        t = self.terms
        if t.probabilities is not None:
            hot = np.abs(t.probabilities)
        else:
            assert t.index is not None
            hot = (np.arange(t.logits.shape[1]) == t.index[:, None]).astype(np.float64)
        coefficients = (1 - t.label_smoothing) * hot + t.label_smoothing / t.logits.shape[1]
        if t.weight is not None:
            coefficients = coefficients * np.abs(t.weight)
        parts = scale * coefficients.sum(-1, keepdims=True)
        u = (self.contract.stored or self.contract.compute).unit_roundoff
        return np.asarray(u * (parts + 5 * np.maximum(parts - factor, 0.0)))

    def _product(self, product: Computed, last: Array) -> Computed:
        """Return a product, rounded to `stored` if there is one, with the error of underflow and overflow in any order.

        The factors are `g`, `1/D`, `Σ_k w_k q_k`, `p` and a last factor of magnitude `last`, (R, C) or (R, 1).
        """
        coefficients = self._coefficients.largest.sum(-1, keepdims=True)
        factors = [*self._scale_factors(), coefficients, self._kept_probs.largest, np.abs(last)]
        return self._multiplied_in_any_order(self.contract.keep(product), factors)

    @property
    def upstream_gradient(self) -> Array:
        """The bound of the derivative, with respect to `g`, of the sum of gradient times direction.

        This derivative equals the tangent.
        """
        return self.tangent

    def vacuous_results(self, name: str) -> list[Array]:
        """Return a list with one wrong derivative: the derivative `name` without the terms with `mean`.

        If the bounds allow the wrong derivative, passing a comparison does not show that an implementation is right.
        For "second", the wrong derivative is (R, C). For other names, the shape is (R, 1), or (1, 1) with a reduction.
        """
        with np.errstate(all="ignore"):
            kept, coefficients = self.terms.kept, self._coefficients.value
            if name == "second":
                total = np.where(kept, coefficients.sum(-1) * self._scale().value, 0.0)
                return [total[:, None] * self._kept_probs.value * self.direction]
            rows = np.where(kept, -(coefficients * self.direction).sum(-1), 0.0)
            if self.terms.reduction == "none":
                return [rows[:, None]]
            return [np.reshape(rows.sum() / (1.0 if self._denominator is None else self._denominator.value), (1, 1))]
