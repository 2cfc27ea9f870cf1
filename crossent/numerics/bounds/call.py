"""The numbers that all error bounds of a call share: the intermediates, and the factor `g/D` of the gradients.

Here `g` is the upstream gradient, and `D` is the denominator of a mean, or 1 for the other reductions. In shapes, R is
the number of rows, C of classes and B of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Self

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.inexact_logits import softmax_of_inexact
from crossent.numerics.bounds.intermediates import coefficients, denominator, softmax, sum_of_calls, wider
from crossent.numerics.bounds.rounding import ANY_ORDER, Computed
from crossent.numerics.bounds.terms import Terms, stack_calls
from crossent.numerics.formats import FLOAT32, Array, Format, where_any


class CallBounds:
    """The error bounds of the intermediates of one call, or of several calls of one structure, under one contract.

    `like` has bounds of the same call, from which the new object takes softmax and coefficients. The contracts of both
    objects may differ only in `row_order`.
    """

    def __init__(self, terms: Terms, contract: Contract, like: CallBounds | None = None) -> None:
        self.terms, self.contract, self._like = terms, contract, like
        self._dense = terms.index is None or terms.smooths  # whether a row needs the numbers of all classes

    @classmethod
    def of_calls(cls, calls: Sequence[Self], names: Iterable[str]) -> None:
        """Compute the bounds of many calls together, and store them in the objects of the calls.

        All calls must have the same contract and the same :attr:`Terms.structure`. The stored bounds have the same bits
        as bounds computed for each call alone. `names` are the properties to compute, such as "loss".
        For a single call, this method does nothing.
        """
        if len(calls) == 1:
            return
        together = calls[0]._stack(calls)
        ends = np.cumsum([len(call.terms.logits) for call in calls])
        with np.errstate(all="ignore"):
            bounds = {name: getattr(together, name) for name in names}
            coefficients, divisor = together._coefficients, together._denominator
        for at, (call, end) in enumerate(zip(calls, ends, strict=True)):
            rows = slice(end - len(call.terms.logits), end)
            by_call = {name: bound.ndim == 1 and call.terms.reduction != "none" for name, bound in bounds.items()}
            own: dict[str, object] = {name: bounds[name][at if by_call[name] else rows] for name in bounds}
            own["_coefficients"] = coefficients[rows]
            own["_denominator"] = None if divisor is None else divisor[at : at + 1]
            call.__dict__.update(own)  # cached_property stores its value in the same place

    def _stack(self, calls: Sequence[Self]) -> Self:
        return type(self)(stack_calls([call.terms for call in calls]), self.contract)

    @cached_property
    def _softmax(self) -> tuple[Computed, Computed, Computed]:
        """The log-probabilities `log p` and the probabilities `p`, (R, C), and the log-sum-exp of each row, (R,)."""
        if self._like:
            return self._like._softmax
        if self.terms.logits_error is None:
            return softmax(self.terms, self.contract)
        if self.terms.lengths is not None:
            return softmax_of_inexact(self.terms, self.contract)
        found = [softmax_of_inexact(self.terms.part(rows), self.contract) for rows in parts_of(self.terms.logits)]
        log_probs, probs, logsumexp = (_joined(parts) for parts in zip(*found, strict=True))
        return log_probs, probs, logsumexp

    @property
    def _log_probs(self) -> Computed:
        return self._softmax[0]

    @property
    def _probs(self) -> Computed:
        return self._softmax[1]

    @cached_property
    def _log_sizes(self) -> Array:
        """The largest magnitudes of the computed `log p`, (R, C); 0 where `log p` is infinite or NaN."""
        return where_any(~np.isfinite(self._log_probs.value), 0.0, self._log_probs.largest)

    @cached_property
    def _coefficients(self) -> Computed:
        """The products of class weight and smoothed target, `w_c q_c`, (R, C)."""
        return self._like._coefficients if self._like else coefficients(self.terms, self.contract)

    @cached_property
    def _denominator(self) -> Computed | None:
        """The denominator of the mean of each call, (B,), or None for the other reductions."""
        return denominator(self.terms, self.contract)

    def _divides_as(self, other: CallBounds) -> bool:
        """Return whether these bounds and `other` have the same denominator, with the same error bound."""
        a, b = self._denominator, other._denominator
        if a is None or b is None:
            return a is b
        return np.array_equal(a.value, b.value) and np.array_equal(a.error, b.error)

    @property
    def may_divide_by_zero(self) -> bool:
        """Whether the computed denominator of a mean may be zero."""
        divisor = self._denominator
        return divisor is not None and not bool((divisor.error < np.abs(divisor.value)).all())

    def part(self, rows: slice, contract: Contract) -> Self:
        """Return the bounds of some rows of a single call, under a contract that may differ only in `storage`.

        In the returned object, only the bounds of single rows are right: the gradients, and the loss for reduction
        "none".
        """
        some = type(self)(self.terms.part(rows), contract)
        log_probs, probs, logsumexp = self._softmax
        some.__dict__.update(  # cached_property stores its value in the same place
            _softmax=(log_probs[rows], probs[rows], logsumexp[rows]),
            _coefficients=self._coefficients[rows],
            _denominator=self._denominator,
        )
        return some

    def under(self, contract: Contract) -> Self:
        """Return the bounds of the same call under another contract."""
        return type(self)(self.terms, contract)

    def _total(self, numbers: Computed) -> Computed:
        """Return the sum of each row's numbers over the classes: (R, C) becomes (R,)."""
        # Unless `_dense`, only the true class has a coefficient.
        return numbers.sum(self.contract.compute) if self._dense else self._of_target(numbers)

    def _scale_factors(self) -> list[Array]:
        """Return the magnitudes of the factors of `g/D`, each (R, 1): `|g|` and, for a mean, the largest `1/|D|`."""
        factors = [np.abs(self.terms.upstream[:, None])]
        if self._denominator is not None:
            factors.append(1 / self.terms.by_row(np.abs(self._denominator.value) - self._denominator.error)[:, None])
        return factors

    def _multiplied_in_any_order(self, product: Computed, factors: list[Array], products: int = 1) -> Computed:
        """Return `product` with an additional error, for a partial product that may underflow or overflow.

        Every order of the factors has the same number of roundings with a relative error. So only an underflow or an
        overflow makes an order worse.

        If the factors below one come last, a partial product may overflow although the product does not. The error is
        then infinite. This holds for products that are 0 too, since 0 times infinity is NaN.

        An underflow has the error :attr:`Format.largest_underflow_error` times the remaining factors. In the worst
        order, the largest factors remain. After the first multiplication, all factors but two remain. `product` already
        has the error of the last multiplication, so the method adds the error of every earlier multiplication.

        A partial product does not underflow if the whole product is above twice the smallest normal number times the
        remaining factors. The size of a sum of two products says nothing about each product, so both may underflow.

        Args:
            product: One product or, with smoothing, the sum of two products, (R, C), with the relative rounding errors.
            factors: The magnitudes of the factors, which broadcast to (R, C).
            products: The number of products in `product`, 1 or 2.
        """
        narrow = self.contract.stored or self.contract.compute
        remaining = len(factors) - 2
        largest = [np.fmax.reduce(factor, axis=None, initial=1.0) for factor in factors]  # fmax skips rows of NaN
        if narrow.overflows(np.prod(largest)):
            partial = np.ones((1, 1))
            for factor in factors:
                partial = partial * np.maximum(factor, 1.0)
            # Without `_dense`, the zeros of the other classes are not products.
            product = product.unless(narrow.overflows(partial) & (self._dense | (product.largest > 0)))
        # Larger than every limit in the loop below: few calls have so small a product, so most calls return here.
        threshold = narrow.smallest_normal * 2.0**3 * np.prod(largest)
        small = (product.largest > 0) & ((products > 1) | (product.largest < threshold))
        if remaining <= 0 or not small.any():
            return product
        amplified, lost = np.ones((1, 1)), np.zeros(small.shape)
        for factor in _descending(factors, remaining):
            amplified = amplified * factor
            under = (products > 1) | (product.largest < 2 * narrow.smallest_normal * amplified)
            lost += np.where(small & under, products * narrow.largest_underflow_error * amplified, 0.0)
        return Computed(product.value, product.error + lost, product.format)

    def _scale(self) -> Computed:
        """Return the upstream gradient divided by the denominator, `g/D`, (R,); without a mean, return `g`."""
        scale = Computed.exactly(self.terms.upstream, self.contract.storage)
        if self._denominator is None:
            return scale
        return self.contract.keep(self._divided(scale, self._of_rows(self._denominator)))

    def _divided(self, numbers: Computed, divisor: Computed) -> Computed:
        """Return `numbers` divided by `divisor`, the denominator of the mean."""
        c = self.contract
        divided = numbers.over(divisor, c.compute, c.functions.division_ulps, known=False)
        if not c.fused:
            return divided
        # A kernel may multiply by the reciprocal.
        inverse = c.keep(Computed.exactly(1.0, c.storage).over(divisor, c.compute, c.functions.division_ulps))
        return wider(divided, numbers.times(inverse, c.compute, known=False))

    def _sum_of_rows(self, rows: Computed, format: Format, sizes: Array) -> Computed:
        """Return the sum over each call's rows, (B,), computed in `format`.

        In the error, `sizes` replaces smaller magnitudes of `rows`.
        """
        return sum_of_calls(self.terms, rows, format, self.contract.row_order, sizes)

    def _of_rows(self, calls: Computed) -> Computed:
        """Repeat each call's number for the rows of the call: (B,) becomes (R,)."""
        return Computed(self.terms.by_row(calls.value), self.terms.by_row(calls.error), calls.format)

    def _of_target(self, numbers: Computed) -> Computed:
        """Return the element of `numbers` for the true class of each row: (R, C) becomes (R,)."""
        return Computed(self.terms.of_target(numbers.value), self.terms.of_target(numbers.error), numbers.format)


def _descending(factors: list[Array], count: int) -> list[Array]:
    """Return at most `count` arrays: the largest factor of each element, then the second largest, and so on."""
    largest: list[Array] = []
    for factor in sorted(factors, key=np.size):  # small arrays first: np.sort would broadcast all
        for at, other in enumerate(largest):
            largest[at], factor = np.maximum(other, factor), np.minimum(other, factor)
        if len(largest) < count:
            largest.append(factor)
    return largest


def parts_of(numbers: Array) -> list[slice]:
    """Return slices that divide the rows of an array into parts, each of one row or of at most 2^16 numbers.

    Arrays of this size stay in the cache of a processor.
    """
    step = max(1, 2**16 // max(1, numbers.shape[1]))
    return [slice(start, start + step) for start in range(0, max(1, len(numbers)), step)]


def _joined(parts: Sequence[Computed]) -> Computed:
    if len(parts) == 1:
        return parts[0]
    value, error = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "error"))
    return Computed(value, error, parts[0].format)


def effective_contract(contract: Contract, terms: Terms) -> Contract:
    """Return the contract with a fixed value for each field that does not change the bounds of this call.

    Contracts with the same bounds often become equal, and crossent then computes their bounds once.
    """
    rows, depth = len(terms.logits), contract.row_order.depth
    any_order = terms.reduction == "none" or (depth is not None and depth >= rows - 1)
    narrow = contract.in_target_format and terms.target_format is FLOAT32 and terms.smooths
    return _effective_contract(contract, any_order, narrow and contract.compute.precision > FLOAT32.precision)


@cache
def _effective_contract(contract: Contract, any_order: bool, in_target_format: bool) -> Contract:
    row_order = ANY_ORDER if any_order else contract.row_order
    return replace(contract, grade="A", row_order=row_order, in_target_format=in_target_format)
