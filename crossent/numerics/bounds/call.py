"""The numbers that all error bounds of a call share: the intermediates, and the factor `g/D` of the gradients.

Here `g` is the upstream gradient, and `D` is the denominator of a mean. Without a mean, the factor is `g`.
:meth:`CallBounds.of_calls` computes several calls of the same structure together. In shapes, R is the number of rows, C
of classes and B of calls.
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
    """The error bounds of the intermediates of a call, or of several calls of one structure, under one contract.

    Args:
        terms: The arguments of the call or of the stacked calls.
        contract: The promises of the implementation about its arithmetic.
        like: Optional bounds of the same call under a contract that differs only in the order of sums over rows. Both
            objects share the intermediates that do not depend on this order.
    """

    def __init__(self, terms: Terms, contract: Contract, like: CallBounds | None = None) -> None:
        self.terms, self.contract, self._like = terms, contract, like
        self._dense = terms.index is None or terms.smooths  # whether a row needs the numbers of all classes

    @classmethod
    def of_calls(cls, calls: Sequence[Self], names: Iterable[str]) -> None:
        """Compute the bounds of many calls together, and store them in the objects of the calls.

        All calls must have the same contract and the same :attr:`Terms.structure`. The stored bounds have the same bits
        as bounds computed for each call alone. So a report does not depend on how a run is divided among processes. For
        a single call, this method does nothing: the object computes a bound when the bound is first read.

        Args:
            calls: One object for each call.
            names: The names of the properties to compute, such as "loss" and "gradient".
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
        """Return one object whose rows are the rows of all calls, one call after another."""
        return type(self)(stack_calls([call.terms for call in calls]), self.contract)

    @cached_property
    def _softmax(self) -> tuple[Computed, Computed, Computed]:
        """The intermediates `log p`, `p`, and the log-sum-exp of each row: see :func:`softmax`.

        For logits with an error, see :func:`softmax_of_inexact`.
        """
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
        """The log-probabilities `log p`, (R, C)."""
        return self._softmax[0]

    @property
    def _probs(self) -> Computed:
        """The probabilities `p`, (R, C)."""
        return self._softmax[1]

    @cached_property
    def _log_sizes(self) -> Array:
        """The largest magnitudes that the computed `log p` can have, (R, C); 0 where `log p` is infinite or NaN."""
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
        """Return whether both objects have denominators with the same values and error bounds, or both have none."""
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
        """Return the bounds of some rows of a single call, under a contract that differs only in its `storage`.

        Use the returned object only for bounds that belong to one row: the gradients, and the loss for reduction
        "none". Small arrays stay in the cache of a processor, so the bounds of many rows take less time in parts.
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
        """Return the sum of each row's numbers over the classes: (R, C) becomes (R,).

        For class indices without smoothing, only the true class has a coefficient. Then return the number of the true
        class.
        """
        return numbers.sum(self.contract.compute) if self._dense else self._of_target(numbers)

    def _scale_factors(self) -> list[Array]:
        """Return the magnitudes of the factors of `g/D`, each (R, 1).

        The first factor is the upstream gradient `g`. For a mean, the second is the largest possible `1/|D|`, where `D`
        is the denominator.
        """
        factors = [np.abs(self.terms.upstream[:, None])]
        if self._denominator is not None:
            factors.append(1 / self.terms.by_row(np.abs(self._denominator.value) - self._denominator.error)[:, None])
        return factors

    def _multiplied_in_any_order(self, product: Computed, factors: list[Array], products: int = 1) -> Computed:
        """Return the product with an additional error: in some order, a partial product may underflow or overflow.

        Every order has the same number of roundings with a relative error, so only these two make an order worse. If
        the factors below one come last, a partial product may overflow although the product does not. The error is then
        infinite. This holds for products that are 0 too, since 0 times infinity is NaN. The exception is a call with
        class indices and without smoothing, whose zeros are no products.

        The error of an underflow is absolute: :attr:`Format.largest_underflow_error`, multiplied by the factors that
        remain. In the worst order, the largest factors remain. After the first multiplication, all factors but two
        remain. `product` already has the error of the last multiplication, so the method adds the error of every
        earlier multiplication.

        A partial product does not underflow if the whole product is above twice the smallest normal number times the
        remaining factors. With smoothing, `product` is a sum of two products. The size of the sum says nothing about
        the two products, so both may underflow.

        Args:
            product: The product or the sum of two products, (R, C), with its relative rounding errors.
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
        """Return `numbers` divided by `divisor`, the denominator of the mean.

        A kernel may multiply by the reciprocal of `divisor` instead. So for a kernel, the error is the larger
        of two errors: the error of the quotient, and the error of this product.
        """
        c = self.contract
        divided = numbers.over(divisor, c.compute, c.functions.division_ulps, known=False)
        if not c.fused:
            return divided
        inverse = c.keep(Computed.exactly(1.0, c.storage).over(divisor, c.compute, c.functions.division_ulps))
        return wider(divided, numbers.times(inverse, c.compute, known=False))

    def _sum_of_rows(self, rows: Computed, format: Format, sizes: Array) -> Computed:
        """Return the sum of the numbers of each call's rows: (R,) becomes (B,).

        The error covers the worst order that the contract allows. `format` and `sizes`, (R,), are the arguments of
        :meth:`Computed.sum`.
        """
        return sum_of_calls(self.terms, rows, format, self.contract.row_order, sizes)

    def _of_rows(self, calls: Computed) -> Computed:
        """Repeat the number of each call for every row of the call: (B,) becomes (R,)."""
        return Computed(self.terms.by_row(calls.value), self.terms.by_row(calls.error), calls.format)

    def _of_target(self, numbers: Computed) -> Computed:
        """Return the element of `numbers`, (R, C), for the true class of each row. The result is (R,)."""
        return Computed(self.terms.of_target(numbers.value), self.terms.of_target(numbers.error), numbers.format)


def _descending(factors: list[Array], count: int) -> list[Array]:
    """Return at most `count` arrays: the largest factor of each element, the second largest, and so on.

    The shapes of the factors broadcast. numpy's sort would need arrays of the full broadcast shape. This function
    begins with the factors that have the fewest elements, so most of its arrays stay small.
    """
    largest: list[Array] = []
    for factor in sorted(factors, key=np.size):
        for at, other in enumerate(largest):
            largest[at], factor = np.maximum(other, factor), np.minimum(other, factor)
        if len(largest) < count:
            largest.append(factor)
    return largest


def parts_of(numbers: Array) -> list[slice]:
    """Return slices that divide the rows of an array into parts, each of one row or of at most 2^16 numbers.

    An array without rows has one empty part.
    """
    step = max(1, 2**16 // max(1, numbers.shape[1]))
    return [slice(start, start + step) for start in range(0, max(1, len(numbers)), step)]


def _joined(parts: Sequence[Computed]) -> Computed:
    """Return the rows of all parts, one after another. All parts have the same format."""
    if len(parts) == 1:
        return parts[0]
    value, error = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "error"))
    return Computed(value, error, parts[0].format)


def effective_contract(contract: Contract, terms: Terms) -> Contract:
    """Return the contract with a fixed value for each field that does not change the bounds of this call.

    Such fields may be `grade`, `row_order` and `in_target_format`. `grade` never changes the bounds, and the other two
    change the bounds of some calls only. Two contracts that differ only in these fields often become equal. crossent
    then computes their bounds once.
    """
    rows, depth = len(terms.logits), contract.row_order.depth
    any_order = terms.reduction == "none" or (depth is not None and depth >= rows - 1)
    narrow = contract.in_target_format and terms.target_format is FLOAT32 and terms.smooths
    return _effective_contract(contract, any_order, narrow and contract.compute.precision > FLOAT32.precision)


@cache
def _effective_contract(contract: Contract, any_order: bool, in_target_format: bool) -> Contract:
    """Return a copy of the contract with grade "A" and the given `in_target_format`.

    If `any_order` is True, the copy allows every order of the sum over rows.
    """
    row_order = ANY_ORDER if any_order else contract.row_order
    return replace(contract, grade="A", row_order=row_order, in_target_format=in_target_format)
