"""The error bounds of the loss and of the gradients, for an implementation that keeps a contract.

This module writes the formula once, with the operations of :mod:`crossent.numerics.bounds.rounding`. Together with a
contract, the formula gives an error bound for each row's loss, for the reduced loss and for each element of the
gradients.

    log p_c = (x_c - max x) - log Σ exp(x - max x)
    loss    = -Σ_c w_c q_c log p_c,     q = (1 - ε)·target + ε/C
    gradient of x_c      =  g/D (p_c Σ_k w_k q_k - w_c q_c)
    gradient of target_c = -g/D (1 - ε) w_c log p_c

Here `x` is a row of logits over C classes, `p` is its softmax, `w` are the class weights, and `ε` is the label
smoothing. `g` is the upstream gradient, and `D` is the denominator of a mean, or 1 for the other reductions. In shapes,
R is the number of rows and B the number of calls.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from crossent.numerics.bounds.call import CallBounds
from crossent.numerics.bounds.inexact_logits import unshifted_of_inexact
from crossent.numerics.bounds.intermediates import (
    coefficients,
    column,
    constant,
    offset,
    parts,
    smoothing_format,
    unsmoothed_share,
    wider,
)
from crossent.numerics.bounds.rounding import Computed, safe
from crossent.numerics.formats import Array


class Bounds(CallBounds):
    """The error bounds of the loss and of the gradients of a call, or of several stacked calls, under one contract.

    A bound is infinite where the contract promises nothing.
    """

    # Cached properties leave the computation to methods, since mutmut (`nox -s mutate`) changes no decorated functions.

    def _unshifted(self) -> Computed:
        """Return the losses of the rows, (R,), for a kernel that does not subtract the maximum from the logits.

        The kernel computes `Σ_c w_c q_c · logsumexp(x) - Σ_c w_c q_c x_c`. The error must not grow with a common offset
        of the logits, unless the contract has `offset`. So the error is computed for rows that are shifted until their
        maximum is :func:`offset`. If the logits have an error, only the `error` of the result has a meaning. With
        smoothing, the kernel may multiply a sum by `ε/C` last. The error is infinite if this sum may overflow.
        """
        c, t = self.contract, self.terms
        if t.logits_error is not None:
            rows = unshifted_of_inexact(t, c, self._softmax[2])
        else:
            shifted = t.logits + (offset(t.logits, c) - t.logits.max(1))[:, None]
            q = coefficients(t, replace(c, stored=None))  # such kernels keep the coefficients in `compute`
            logits = q.times(Computed.exactly(shifted, c.storage), c.compute).sum(c.compute)
            rows = q.sum(c.compute).times(self._softmax[2], c.compute).minus(logits, c.compute)
        if not t.smooths:
            return rows
        # The kernel may multiply by ε/C last: `Σ w_c · logsumexp` or `Σ w_c x_c` may overflow.
        weights = float(t.logits.shape[1]) if t.weight is None else np.abs(t.weight).sum(-1)
        largest = np.abs(t.logits).max(1) + np.abs(t.log_sum)
        return rows.unless(c.compute.overflows(weights * largest))

    @cached_property
    def loss(self) -> Array:
        """The bound of each row's loss, (R,), for reduction "none"; otherwise the bound of the reduced loss, ().

        Stacked calls have one bound for each reduced loss, (B,).
        """
        with np.errstate(all="ignore"):
            return self._loss()

    def _loss(self) -> Array:
        """Return the bounds that :attr:`loss` caches."""
        rows, sizes = self._weighted_sums(-self._log_probs)
        if self._dense and self.contract.fused:
            rows = wider(rows, self._unshifted())
        return self._reduced(rows, sizes, self._log_sizes)  # an infinite log p is not an overflow: its size is 0

    def _weighted_sums(self, values: Computed) -> tuple[Computed, Array]:
        """Return the sum of each row, `Σ_c w_c q_c values_c`, and the sum of the magnitudes of its terms, both (R,).

        `values` are (R, C), such as `-log p` for the loss.
        """
        c = self.contract
        if not self._dense:
            rows = self._of_target(self._coefficients).times(self._of_target(values), c.compute, known=not c.fused)
            return rows, rows.largest
        products = c.keep(self._coefficients.times(values, c.compute))
        return products.sum(c.compute), products.largest.sum(1)

    def _reduced(self, rows: Computed, sizes: Array, magnitudes: Array) -> Array:
        """Return the bound of `Σ_c w_c q_c values_c` for each row, (R,); with a reduction, of the sum or mean, ().

        Stacked calls have one bound for each sum or mean, (B,).

        With smoothing, an implementation may sum two parts of a row separately: the part of the target and the uniform
        part (:func:`parts`). If weights have both signs, the parts may cancel. So the error of a sum over rows depends
        on `sizes`, not on the magnitudes of the rows' own sums. An implementation may also multiply by `ε/C` last,
        after all sums and after the division by D. The bound is infinite if the sum without the factor `ε/C`, or a
        partial product of a row (:meth:`_partial_products`), may overflow.

        Args:
            rows: `Σ_c w_c q_c values_c`, (R,).
            sizes: The sum of the magnitudes of each row's terms, (R,).
            magnitudes: The magnitudes of `values_c`, (R, C).
        """
        c, t = self.contract, self.terms
        narrow, unscaled = c.stored or c.compute, self._partial_products(magnitudes)
        if self._dense:
            unscaled = unscaled.sum(1) if t.smooths else unscaled.max(1)
        rows = c.keep(rows.unless(narrow.overflows(unscaled))).where(t.kept)
        if t.reduction == "none":
            return safe(rows.rounded(c.storage).error)
        sizes, unscaled = np.where(t.kept, sizes, 0.0), np.where(t.kept, unscaled, 0.0)
        total = c.keep(self._sum_of_rows(rows, narrow, sizes))
        least_divisor = np.ones(1)
        if self._denominator is not None:
            # An implementation may divide each row before the sum, or divide the sum: the larger error counts.
            divisor = self._denominator
            least_divisor = np.abs(divisor.value) - divisor.error
            first = self._divided(rows, self._of_rows(divisor))
            first = self._sum_of_rows(first, c.compute, sizes / t.by_row(least_divisor))
            total = wider(self._divided(total, divisor), first)
        if self._dense and t.smooths:
            unscaled = t.of_lines([line.sum(-1) for line in t.lines(unscaled)])
            total = total.unless(narrow.overflows(unscaled / np.minimum(least_divisor, 1.0)))
        bound = safe(total.rounded(c.storage).error)
        return bound.reshape(()) if t.lengths is None else bound

    @cached_property
    def gradient(self) -> Array:
        """The bound of each element of the gradient of the logits, (R, C)."""
        like = self._like
        with np.errstate(all="ignore"):
            if isinstance(like, Bounds) and self._divides_as(like):
                return like.gradient
            return self._gradient()

    def _gradient(self) -> Array:
        """Return the bound of the gradient of the logits, `s (p_c Σ_k v_k - v_c)` with `v = w q` and `s = g/D`, (R, C).

        With smoothing, an implementation may add the three terms softmax, one-hot and uniform in any order. The second
        addition is one more rounding of each term. For class probabilities, the bound has this rounding without
        smoothing too.

        With smoothing, a kernel may also compute the part of the target and the uniform part separately, and add the
        two parts (:func:`parts`). The larger error of both computations counts. If the kernel multiplies by `s` after
        this addition, one rounding of the sum replaces a rounding of each part. So the error is not larger.
        """
        c, t = self.contract, self.terms
        scale = column(self._scale())
        gradient, sizes = self._gradient_with(self._coefficients, scale, hot=not self._dense)
        if self._dense:
            once = (c.stored or c.compute).unit_roundoff * sizes
            gradient = Computed(gradient.value, gradient.error + once, c.compute)
        if t.smooths and c.fused:
            of_target, uniform = parts(t, c)
            share = scale.times(unsmoothed_share(t, c), c.compute)
            spread = scale.times(constant(t.label_smoothing / t.logits.shape[1], c.compute, c), c.compute)
            target_part, _ = self._gradient_with(of_target, c.keep(share), hot=t.index is not None)
            uniform_part, _ = self._gradient_with(uniform, c.keep(spread))
            gradient = wider(gradient, target_part.plus(uniform_part, c.compute))
        return safe(gradient.where(t.kept[:, None]).rounded(c.storage).error)

    def _gradient_with(self, coefficients: Computed, scale: Computed, *, hot: bool = False) -> tuple[Computed, Array]:
        """Return the gradient `s (p_c Σ_k v_k - v_c)`, (R, C), and the sum of the magnitudes of its two terms, (R, C).

        `v` are the coefficients. The scale `s` is a product of `m` factors. The error covers every order of the
        operations that the contract allows. An implementation may multiply both terms by a factor before the
        subtraction, or multiply the difference after the subtraction. Let `a` of the factors come before the
        subtraction. Each of them causes a rounding error of both terms. The subtraction and each later factor cause a
        rounding error of the gradient `d`. The rounding errors are:

            u (a |s p_c Σ v| + a |s v_c| + (1 + m - a) |d|)

        This sum is linear in `a`, so its largest value is at an end: all factors come before the subtraction, or none.
        If only the true class has a nonzero v (`hot` is True), v is one more factor, and `m` counts v too. For `a ≥ 1`,
        the term `s v` then has one rounding less, and the error of the true class increases with `a`:

            u (a s v p + (a - 1) s v + (1 + m - a) s v (1 - p)) = u s v (m + (2a - 1 - m) p)

        For `a = 0`, as in `s v (p - 1)`, the error is `u (1 + m) s v (1 - p)`. So again the larger error of the two
        ends counts. Automatic differentiation multiplies by v before the subtraction. A kernel, or an implementation
        whose contract has `keeps_probs`, may multiply by v afterwards. A fused multiply-add leaves a rounding out.

        Before the subtraction, an implementation may multiply the sum over k by `s`, or multiply each term of the sum.
        The larger error of the two counts: if the terms cancel, their rounding errors do not cancel.

        A `p` without an error is 0 or 1, and multiplying by 0 or 1 is exact. So if no factor of a product has an error,
        the position of `p` among the factors does not change the rounding error.
        """
        c, t = self.contract, self.terms
        scaled = self._scaled(coefficients, scale)
        total, of_scaled = (self._of_target(v) if hot else v.sum(c.compute) for v in (coefficients, scaled))
        factor = column(c.keep(of_scaled))
        softmax = self._probs.times(column(c.keep(total)), c.compute).times(scale, c.compute)
        # Autograd stores the gradient of log p, sums this gradient over the classes, and multiplies the sum by p.
        softmax = wider(softmax, self._probs.times(factor, c.compute))
        if c.fused:
            softmax = self._multiplied_in_any_order(
                softmax, [*self._scale_factors(), column(total).largest, self._probs.largest]
            )
        before = softmax.minus(scaled, c.compute)
        if hot and (c.fused or c.keeps_probs):
            is_hot = np.arange(t.logits.shape[1]) == np.asarray(t.index)[:, None]
            minus_one = self._probs.minus(Computed.exactly(1.0, None), c.compute)
            difference = Computed.chosen(is_hot, minus_one, self._probs)
            if c.keeps_probs:
                difference = c.keep(difference)
            after = difference.times(factor, c.compute)
        else:
            difference = self._probs.times(column(total), c.compute).minus(coefficients, c.compute)
            after = difference.times(scale, c.compute)
        if c.fused:
            after = self._multiplied_in_any_order(
                after, [*self._scale_factors(), column(total).largest, difference.largest]
            )
        return wider(before, after), softmax.largest + scaled.largest

    def _partial_products(self, sizes: Array) -> Array:
        """Return the largest partial product of each term `w_c q_c values_c`, and at least 1, (R, C).

        `sizes` has the magnitudes of `values_c`, (R, C). With the target `t_c` before smoothing, an implementation may
        compute `(1 - ε) t_c w_c values_c` and `ε/C w_c values_c`, and may multiply in any order. A partial product is
        largest if the factors below one come last, such as `1 - ε` and `ε/C`. For class indices without smoothing,
        only the true class has a term, and the result is (R,).
        """
        t = self.terms
        sizes = np.maximum(sizes, 1.0)
        if t.probabilities is not None:
            sizes = sizes * np.maximum(np.abs(t.probabilities), 1.0)
        if t.weight is not None:
            sizes = sizes * np.maximum(np.abs(t.weight), 1.0)
        return sizes if self._dense else t.of_target(sizes)

    def _scaled(self, coefficients: Computed, scale: Computed) -> Computed:
        """Return the coefficients `w_c q_c` multiplied by the scale `s = g/D`, (R, C).

        An implementation may multiply in any order, and may store partial products. `coefficients` may also be one of
        the two :func:`parts` of the coefficients. `1 - ε` or `ε/C` is then a factor of `scale`.
        """
        t = self.terms
        factors = self._scale_factors()
        if t.weight is not None:
            factors.append(np.abs(np.atleast_2d(t.weight)))
        if t.probabilities is not None:
            factors.append(np.abs(t.probabilities))
        if t.smooths:
            factors.append(np.ones((1, 1)))  # 1 - ε and ε/C are at most one
        product = self.contract.keep(coefficients.times(scale, self.contract.compute))
        return self._multiplied_in_any_order(product, factors, products=2 if t.smooths else 1)

    @cached_property
    def target_gradient(self) -> Array:
        """The error bound of each element of the target's gradient `-g/D · (1 - ε) w_c log p_c`, (R, C)."""
        like = self._like
        with np.errstate(all="ignore"):
            if isinstance(like, Bounds) and self._divides_as(like):
                return like.target_gradient
            return self._target_gradient()

    def _target_gradient(self) -> Array:
        """Return the bound of the target's gradient, `-g/D · (1 - ε) w_c log p_c`, (R, C).

        An implementation may multiply the factors in any order: see :meth:`_multiplied_in_any_order`.
        """
        c, t = self.contract, self.terms
        factors = [*self._scale_factors(), self._log_sizes]
        product = c.keep(column(self._scale()).times(-self._log_probs, c.compute))
        if t.weight is not None:
            factors.append(np.abs(np.atleast_2d(t.weight)))
            product = c.keep(product.times(Computed.exactly(t.weight, c.storage), c.compute))
        if t.smooths:
            factors.append(np.ones((1, 1)))  # 1 - ε is at most one
            narrow, share = smoothing_format(t, c), unsmoothed_share(t, c)
            product = c.keep(product.rounded(narrow).times(share, narrow))
        return safe(self._multiplied_in_any_order(product, factors).rounded(c.storage).error)

    def vacuous_results(self, name: str) -> list[Array]:
        """Return a list with one wrong gradient if `name` is "gradient"; an empty list for any other result.

        The wrong gradient leaves out the softmax: `-g/D · w_c q_c`, (R, C). If the wrong gradient is within the bounds,
        passing a comparison does not show that an implementation is right.
        """
        if name != "gradient":
            return []
        with np.errstate(all="ignore"):
            divisor = 1.0 if self._denominator is None else self.terms.by_row(self._denominator.value)
            scale = self.terms.upstream / divisor
            return [np.where(self.terms.kept[:, None], -scale[:, None] * self._coefficients.value, 0.0)]
