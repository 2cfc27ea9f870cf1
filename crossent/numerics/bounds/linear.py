r"""The error bounds of a linear cross-entropy: its loss, and the gradients of input, weight and bias.

    z = h Wᵀ + b        loss = cross-entropy(z)        d = ∂loss/∂z
    ∂loss/∂h = d W      ∂loss/∂W = dᵀ h                ∂loss/∂b = Σ_n d_n

`h` are the hidden states (the input), `W` and `b` the weight and bias of the linear layer, and `z` the logits. N is the
number of rows, H the length of a hidden state, and V the number of classes. `u` is the unit roundoff of the format of
the computation, and `γ_k = k u/(1 - k u)`.

The steps of the computation:

1. In a dot product of n terms, each term goes through one product and at most n - 1 additions, in any order. A term
   with k roundings is multiplied by `(1 + δ_1)…(1 + δ_k)`, which differs from 1 by at most `γ_k`. So the error is at
   most `γ_k Σ |terms|`, with `k = n` (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2). If
   products are exact, `k = n - 1`. If a contract limits the length of a block, each term goes through fewer additions
   (:meth:`LinearContract.roundings`).
2. A logit is a dot product, with the bias as one more term. A contract may allow rounding the logits to a narrower
   format, before and after the addition of the bias. Let `e` be the error bound of a logit.
3. :mod:`crossent.numerics.bounds.inexact_logits` and :mod:`crossent.numerics.bounds.loss` then bound the error of the
   loss, and the error `η` of d.
4. Each gradient is a dot product of d and a factor, for example W. The error of d changes the dot product by at most
   `η |W|`. The roundings of the dot product add the error of step 1, for terms of at most `(|d| + η) |W|`. If softmax
   and target have separate dot products, the sum of their magnitudes replaces |d|, and one more addition joins the two
   dot products.
5. The upstream gradient, divided by the denominator of a mean, multiplies d (counted in step 3) or the dot product. For
   the dot product, the roundings are not larger, but the factor then multiplies underflow errors too. The dot product
   may also overflow without the factor (`_later_factors`). A multiplication after step 6 counts separately
   (`scales_last`).
6. Each gradient is rounded once to the storage format.

This module computes the logits in float64, with an error of at most `γ_{H+1} (|h| |W|ᵀ + |b|)`, where u belongs to
float64. Let τ be the largest such error in a row. The logits of an implementation differ from the float64 logits by
at most `e + τ`, and the exact logits by at most τ. The error `e + 2 τ` in place of e covers both differences.

Proof. Let p be the softmax of the float64 logits, and e_i the error bound of logit i. First assume that each logit
is computed once. The errors of the logits change `log p_c` by at most `f(e) = log Σ p_i exp(y_i)`, with
`y_i = e_i + e_c` for i ≠ c, and `y_c = 0`. If each e_i grows by τ, f grows by the integral of `2 (1 - q_c)` from 0 to
τ. Here q_c is the term of class c divided by the sum. As e grows, q_c shrinks, so f grows by at least f(τ), its growth
from `e = 0`. Hence `f(e + 2 τ)` is at least the sum of both changes, `f(e + τ) + f(τ)`.

Now assume that an implementation may compute a logit again, for the gradient. Then `f(e) = e_c + log Σ p_i exp(e_i)`.
If each e_i grows by τ, f grows by 2 τ, and `f(τ) = 2 τ`. So the sum of both changes equals `f(e + 2 τ)`.

With `e + 2 τ`, the bounds use magnitudes that are at least as large as for the logits of any implementation. Other
float64 roundings are relative, and :func:`crossent.numerics.bounds.rounding.safe` covers them. ∎
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from crossent.numerics.bounds.call import parts_of
from crossent.numerics.bounds.intermediates import column
from crossent.numerics.bounds.linear_contracts import LinearContract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import Computed, safe
from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FLOAT64, Array, Format, is_power_of_two
from crossent.numerics.linear_call import LinearCall


@dataclass(frozen=True, eq=False)
class LinearTerms:
    """The arguments of a linear cross-entropy in float64, and numbers that all bounds share.

    Attributes:
        products: (N, V), `input @ weight.T`.
        sizes: (N, V), the sum of the magnitudes of each logit's terms, without the bias.
        own_error: (N, 1), `2 τ` in the module's docstring: twice the largest float64 error of a row's logits.
        rows: The arguments of the cross-entropy of the logits, with None for `logits_error`.
    """

    input: Array
    weight: Array
    bias: Array | None
    products: Array
    sizes: Array
    own_error: Array
    rows: Terms

    @staticmethod
    def of(call: LinearCall, target_format: Format | None = None) -> LinearTerms:
        """Return the terms of a call. `target_format` is the format of class probabilities, None for indices."""
        h, w = call.input.astype(np.float64), call.linear_weight.astype(np.float64)
        bias = None if call.linear_bias is None else call.linear_bias.astype(np.float64)
        products, sizes = h @ w.T, np.abs(h) @ np.abs(w).T
        with_bias = sizes if bias is None else sizes + np.abs(bias)
        own_error = 2 * _gamma(call.features + 1, FLOAT64) * with_bias.max(1, keepdims=True)
        logits = products if bias is None else products + bias
        upstream = np.broadcast_to(np.asarray(call.upstream, np.float64), call.rows)
        rows = Terms(
            logits=logits,
            log_sum=_log_sum(logits),
            index=None if call.index is None else np.where(call.kept, call.index, 0),
            kept=call.kept,
            probabilities=None if call.probabilities is None else call.probabilities.astype(np.float64),
            weight=None if call.weight is None else call.weight.astype(np.float64),
            label_smoothing=call.label_smoothing,
            reduction=call.reduction,
            upstream=upstream,
            target_format=target_format,
        )
        return LinearTerms(h, w, bias, products, sizes, own_error, rows)


class LinearBounds:
    """The error bounds of a linear cross-entropy under one contract: infinite where the contract promises nothing."""

    def __init__(self, terms: LinearTerms, contract: LinearContract) -> None:
        self.terms, self.contract = terms, contract

    @cached_property
    def loss(self) -> Array:
        """The bound of each row's loss, (N,), for reduction "none"; otherwise the bound of the reduced loss, ()."""
        return _inf_for_nan(self.of_logits.loss)

    @cached_property
    def grad_input(self) -> Array:
        """The bound of the gradient of the input, (N, H)."""
        w, upstream = self.terms.weight, np.abs(self.terms.rows.upstream)
        with np.errstate(all="ignore"):
            error = self._dot_product_error(len(w)) @ np.abs(w)
            return self._gradient_bound(self._gradient.value @ w, error, w, len(w), upstream[:, None])

    @cached_property
    def grad_weight(self) -> Array:
        """The bound of the gradient of the weight, (V, H)."""
        h = self.terms.input
        with np.errstate(all="ignore"):
            # BLAS computes the transposed product faster.
            value, error = (h.T @ self._gradient.value).T, (np.abs(h).T @ self._dot_product_error(self._kept_count)).T
            return self._gradient_bound(value, error, h, self._kept_count, self._common_upstream)

    @cached_property
    def grad_bias(self) -> Array:
        """The bound of the gradient of the bias, (V,), even for a call without a bias."""
        with np.errstate(all="ignore"):
            value, error = self._gradient.value.sum(0), self._dot_product_error(self._kept_count, products=0).sum(0)
            return self._gradient_bound(value, error, np.ones(1), self._kept_count, self._common_upstream)

    @cached_property
    def logits_error(self) -> Array:
        """The error bound of each logit of an implementation, (N, V), plus the `own_error` of :class:`LinearTerms`."""
        # A method does the computation, since mutmut (`nox -s mutate`) changes no decorated functions.
        with np.errstate(all="ignore"):
            return self._logits_error()

    def _logits_error(self) -> Array:
        t, c = self.terms, self.contract
        size = t.sizes if t.bias is None else t.sizes + np.abs(t.bias)
        features = t.input.shape[1]
        gamma = _gamma(c.roundings(features) + (not c.multiplies_exactly) + (t.bias is not None), c.loss.compute)
        error = gamma * size + self._underflow(features) * (1 + gamma) + t.own_error
        error = error + self._flushed(features, t.input, t.weight)
        error = np.where(c.loss.compute.overflows(size), np.inf, error)
        if c.logits is None:
            return error
        computed = Computed(t.products, error, None).rounded(c.logits)
        if t.bias is not None:
            computed = computed.plus(Computed.exactly(t.bias, c.loss.storage), c.logits)
        return computed.error

    def _underflow(self, terms: int) -> float:
        """Return the largest error that underflows cause in a dot product of `terms` terms."""
        # each product, and each addition in a format that flushes
        return 2 * terms * self.contract.loss.compute.largest_underflow_error

    def _flushed(self, terms: int, *factors: Array) -> float:
        """Return the largest error that treating subnormal operands as 0 causes in a dot product.

        The dot product has `terms` terms and two `factors`. Return 0 unless the storage format flushes.
        """
        storage = self.contract.loss.storage
        if not storage.flushes:
            return 0.0
        sizes = [np.abs(factor) for factor in factors]
        lost = [float(size[size < storage.smallest_normal].max(initial=0.0)) for size in sizes]
        one, other = (float(size.max(initial=0.0)) for size in sizes)
        return terms * (lost[0] * other + lost[1] * one)

    @cached_property
    def of_logits(self) -> Bounds:
        """The bounds of the cross-entropy of the logits, which have the error `logits_error`."""
        terms = replace(self.terms.rows, logits_error=self.logits_error)
        return Bounds(terms, self.contract.loss)

    @property
    def _kept_count(self) -> int:
        """The number of rows that add terms to the gradients of weight and bias."""
        return int(self.terms.rows.kept.sum())

    @cached_property
    def _gradient(self) -> Computed:
        """The gradient d of the logits, (N, V), with its error bound."""
        with np.errstate(all="ignore"):
            of, c = self.of_logits, self.contract
            scale, v = column(of._scale()).value, of._coefficients.value
            d = np.where(self.terms.rows.kept[:, None], scale * (of._probs.value * v.sum(1, keepdims=True) - v), 0.0)
            narrow = c.loss.storing(c.logits_gradient or c.loss.compute)
            parts = [of.part(rows, narrow)._gradient() for rows in parts_of(d)]
            error = _inf_for_nan(np.concatenate(parts))
            if c.logits_gradient is not None and c.scales_last:
                # A later multiplication by the upstream gradient also multiplies the underflow errors of d.
                amplified = np.maximum(np.abs(of.terms.upstream) - 1, 0) * c.logits_gradient.largest_underflow_error
                error = error + np.where(of.terms.kept, amplified, 0.0)[:, None]
            return Computed(d, error, narrow.storage)

    @cached_property
    def _magnitudes(self) -> Array:
        """The largest magnitude of each element of d, (N, V).

        If softmax and target have separate dot products, the magnitudes of both are added.
        """
        if not self.contract.splits:
            return self._gradient.largest
        of = self.of_logits  # separate dot products for softmax and target
        scale, v = column(of._scale()).largest, of._coefficients.largest
        parts = scale * (of._probs.largest * v.sum(1, keepdims=True) + v)
        return np.where(self.terms.rows.kept[:, None], parts, 0.0) + self._gradient.error

    def _dot_product_error(self, terms: int, *, products: int = 1) -> Array:
        """Return the error of each term of a dot product with d, (N, V), divided by the magnitude of the other factor.

        `terms` is the number of terms. `products` is 0 for a sum of elements of d, without products.
        """
        c = self.contract
        roundings = c.roundings(terms) + c.splits + products
        return self._gradient.error + _gamma(roundings, c.loss.compute) * self._magnitudes

    def _gradient_bound(self, value: Array, error: Array, factor: Array, terms: int, upstream: Array | None) -> Array:
        """Return the bound of a gradient, a dot product of d and `factor` with `terms` terms.

        `value` is the gradient, with the error `error` before the rounding to the storage format. `upstream` is the
        magnitude of the upstream gradient that all terms share, or None.
        """
        c, storage, compute = self.contract, self.contract.loss.storage, self.contract.loss.compute
        # An error of 0 means that only ignored rows or zeros contribute: the gradient is exactly 0. An error of NaN (d
        # has no bound, and the factor is 0) becomes an infinite bound.
        some = error != 0
        lost = self._underflow(terms) + self._flushed(terms, factor, self._magnitudes)
        least, most = self._later_factors(upstream)
        largest = (self._magnitudes / least).max(initial=0.0) * np.abs(factor).max(initial=0.0) * terms
        error = np.where(some, error + lost * most if not compute.overflows(largest) else np.inf, 0.0)
        if c.scales_last and upstream is not None:
            unscaled = Computed(value / upstream, error / upstream, None).rounded(storage)
            scaled = unscaled.error * upstream
            # Multiplying by a power of two rounds only where a number underflows.
            once = np.where(np.isinf(unscaled.error), np.inf, error + storage.largest_underflow_error * (upstream + 1))
            scaled = np.where(is_power_of_two(upstream), once, scaled)
            error = np.where(some & (upstream > 0), scaled, error)
        return _inf_for_nan(safe(Computed(value, error, None).rounded(storage).error))

    def _later_factors(self, upstream: Array | None) -> tuple[Array, Array]:
        """Return the least and the largest factor by which an implementation may multiply after the dot product.

        This factor is `upstream`, 1 divided by the denominator, their product, or 1.
        """
        if upstream is None:
            return np.ones(1), np.ones(1)
        # the upstream gradient, 1 / denominator, both or none
        factors = np.where(upstream > 0, upstream, 1.0)
        least, most = np.minimum(factors, 1.0), np.maximum(factors, 1.0)
        divisor = self.of_logits._denominator
        if divisor is not None:
            size = np.abs(divisor.value)
            least = least * np.minimum(1 / (size + divisor.error), 1.0)
            most = most * np.maximum(1 / (size - divisor.error), 1.0)
        return least, most

    @property
    def _common_upstream(self) -> Array | None:
        """The magnitude of the upstream gradient that all rows share, (1,), or None for reduction "none"."""
        rows = self.terms.rows
        return None if rows.reduction == "none" else np.abs(rows.upstream[:1]) if len(rows.upstream) else np.ones(1)


def _gamma(roundings: int, format: Format) -> float:
    """Return `γ_k` for k roundings, or inf if `k u ≥ 1/2`."""
    grown = roundings * format.unit_roundoff
    return grown / (1 - grown) if grown < 0.5 else np.inf


def _log_sum(logits: Array) -> Array:
    """Return `log Σ exp(z - max z)` of each row."""
    # log1p of the sum without its largest term, 1, keeps digits
    every, top = np.arange(len(logits)), logits.argmax(1)
    exponentials = np.exp(logits - logits[every, top][:, None])
    exponentials[every, top] = 0.0
    return np.asarray(np.log1p(exponentials.sum(1)))


def _inf_for_nan(bounds: Array) -> Array:
    """Replace NaN by inf. Numbers with an infinite bound are not judged."""
    return np.where(np.isnan(bounds), np.inf, bounds)
