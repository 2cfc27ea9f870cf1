"""The error bounds of the loss and of the gradients, for an implementation that keeps a contract.

    log p_c = (x_c - max x) - log Σ exp(x - max x)
    loss    = -Σ_c w_c q_c log p_c,     q = (1 - ε)·target + ε/C
    gradient of x_c      =  g/D (p_c Σ_k w_k q_k - w_c q_c)
    gradient of target_c = -g/D (1 - ε) w_c log p_c

`x` is a row of logits over C classes, `p` its softmax, `w` the class weights, and `ε` the label smoothing. `g` is the
upstream gradient, and `D` the denominator of a mean, or 1 for the other reductions. In shapes, R is the number of rows
and B the number of calls.
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
    """The error bounds of a call, or of stacked calls, under one contract.

    A bound is infinite where the contract promises nothing.
    """

    # Cached properties leave the computation to methods, since mutmut (`nox -s mutate`) changes no decorated functions.

    def _unshifted(self) -> Computed:
        """Return each row's loss, (R,), for a kernel that computes `Σ_c w_c q_c · logsumexp(x) - Σ_c w_c q_c x_c`."""
        c, t = self.contract, self.terms
        if t.logits_error is not None:
            rows = unshifted_of_inexact(t, c, self._softmax[2])  # only the error has a meaning
        else:
            # a common offset of the logits must not increase the error
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
        """The bound of each row's loss, (R,), or of the reduced loss: (), or (B,) for stacked calls."""
        with np.errstate(all="ignore"):
            return self._loss()

    def _loss(self) -> Array:
        rows, sizes = self._weighted_sums(-self._log_probs)
        if self._dense and self.contract.fused:
            rows = wider(rows, self._unshifted())
        return self._reduced(rows, sizes, self._log_sizes)  # an infinite log p is not an overflow: its size is 0

    def _weighted_sums(self, values: Computed) -> tuple[Computed, Array]:
        """Return `Σ_c w_c q_c values_c` of each row, and the sum of the magnitudes of its terms, both (R,)."""
        c = self.contract
        if not self._dense:
            rows = self._of_target(self._coefficients).times(self._of_target(values), c.compute, known=not c.fused)
            return rows, rows.largest
        products = c.keep(self._coefficients.times(values, c.compute))
        return products.sum(c.compute), products.largest.sum(1)

    def _reduced(self, rows: Computed, sizes: Array, magnitudes: Array) -> Array:
        """Return the bound of each row, (R,), or of the sum or mean of the rows: (), or (B,) for stacked calls.

        Args:
            rows: The sum `Σ_c w_c q_c values_c` of each row, (R,), from :meth:`_weighted_sums`.
            sizes: The sum of the magnitudes of each row's terms, (R,).
            magnitudes: The largest magnitudes of `values`, the argument of :meth:`_weighted_sums`, (R, C).
        """
        c, t = self.contract, self.terms
        narrow, unscaled = c.stored or c.compute, self._partial_products(magnitudes)
        if self._dense:
            unscaled = unscaled.sum(1) if t.smooths else unscaled.max(1)
        rows = c.keep(rows.unless(narrow.overflows(unscaled))).where(t.kept)
        if t.reduction == "none":
            return safe(rows.rounded(c.storage).error)
        sizes, unscaled = np.where(t.kept, sizes, 0.0), np.where(t.kept, unscaled, 0.0)
        # the parts of a row may be summed separately, and cancel: hence `sizes`
        total = c.keep(self._sum_of_rows(rows, narrow, sizes))
        least_divisor = np.ones(1)
        if self._denominator is not None:
            # An implementation may divide each row before the sum, or divide the sum: the larger error counts.
            divisor = self._denominator
            least_divisor = np.abs(divisor.value) - divisor.error
            first = self._divided(rows, self._of_rows(divisor))
            first = self._sum_of_rows(first, c.compute, sizes / t.by_row(least_divisor))
            total = wider(self._divided(total, divisor), first)
        if self._dense and t.smooths:  # ε/C may come last
            unscaled = t.of_lines([line.sum(-1) for line in t.lines(unscaled)])
            total = total.unless(narrow.overflows(unscaled / np.minimum(least_divisor, 1.0)))
        bound = safe(total.rounded(c.storage).error)
        return bound.reshape(()) if t.lengths is None else bound

    @cached_property
    def gradient(self) -> Array:
        """The bound of the gradient of the logits, (R, C)."""
        like = self._like
        with np.errstate(all="ignore"):
            if isinstance(like, Bounds) and self._divides_as(like):
                return like.gradient
            return self._gradient()

    def _gradient(self) -> Array:
        """Return the bound of the gradient of the logits, `s (p_c Σ_k v_k - v_c)` with `v = w q` and `s = g/D`, (R, C).

        With smoothing or class probabilities, an implementation may add the three terms softmax, one-hot and uniform in
        any order. The second addition is one more rounding of each term.

        With smoothing, a kernel may also compute a gradient for each of the two :func:`parts`, and add both. If the
        kernel multiplies by `s` afterwards, one rounding of the sum replaces a rounding of each part. So the error is
        not larger.
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
        """Return the gradient `s (p_c Σ_k v_k - v_c)` and the sum of the magnitudes of its two terms, both (R, C).

        `v` are the coefficients. The scale `s` is a product of `m` factors. Suppose that an implementation multiplies
        both terms by `a` of the factors, before the subtraction. Each of these products rounds both terms. The
        subtraction and each later product round the gradient `d`. The rounding errors are

            u (a |s p_c Σ v| + a |s v_c| + (1 + m - a) |d|)

        This sum is linear in `a`, so the largest error is at `a = 0` or `a = m`.

        If only the true class has a nonzero v (`hot`), v is one more of the `m` factors. For `a ≥ 1`, `s v` then has
        one rounding less, and the error of the true class increases with `a`:

            u (a s v p + (a - 1) s v + (1 + m - a) s v (1 - p)) = u s v (m + (2a - 1 - m) p)

        For `a = 0`, as in `s v (p - 1)`, the error is `u (1 + m) s v (1 - p)`. So again, the largest error is
        at `a = 0` or `a = m`.

        Before the subtraction, an implementation may multiply the sum over k by `s`, or each term of the sum: the
        larger error counts.

        A `p` without an error is 0 or 1: multiplying by such a `p` is exact.
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
        """Return the largest magnitude of a partial product of each term `w_c q_c values_c`, or 1 if larger, (R, C).

        `sizes` has the magnitudes of `values_c`, (R, C). For class indices without smoothing, the result has only the
        true classes, (R,).
        """
        t = self.terms
        sizes = np.maximum(sizes, 1.0)  # factors below one, such as ε/C, come last
        if t.probabilities is not None:
            sizes = sizes * np.maximum(np.abs(t.probabilities), 1.0)
        if t.weight is not None:
            sizes = sizes * np.maximum(np.abs(t.weight), 1.0)
        return sizes if self._dense else t.of_target(sizes)

    def _scaled(self, coefficients: Computed, scale: Computed) -> Computed:
        """Return the coefficients, or one of their :func:`parts`, times the scale in any order of factors, (R, C)."""
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
        """The bound of the target's gradient `-g/D · (1 - ε) w_c log p_c`, (R, C)."""
        like = self._like
        with np.errstate(all="ignore"):
            if isinstance(like, Bounds) and self._divides_as(like):
                return like.target_gradient
            return self._target_gradient()

    def _target_gradient(self) -> Array:
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
        """Return a list with the gradient without the softmax, `-g/D · w_c q_c`, if `name` is "gradient"; otherwise [].

        If this wrong gradient is within the bounds, passing a comparison does not show that an implementation is right.
        """
        if name != "gradient":
            return []
        with np.errstate(all="ignore"):
            divisor = 1.0 if self._denominator is None else self.terms.by_row(self._denominator.value)
            scale = self.terms.upstream / divisor
            return [np.where(self.terms.kept[:, None], -scale[:, None] * self._coefficients.value, 0.0)]
