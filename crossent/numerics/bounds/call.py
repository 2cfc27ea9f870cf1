"""The common part of all error bounds: the intermediates of a call, the scale of its gradients, and stacked calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Self

import numpy as np

from crossent.numerics.bounds.contracts import Contract
from crossent.numerics.bounds.inexact_logits import softmax_of_inexact
from crossent.numerics.bounds.intermediates import coefficients, denominator, softmax, wider
from crossent.numerics.bounds.rounding import ANY_ORDER, Computed
from crossent.numerics.bounds.terms import Terms, stacked
from crossent.numerics.formats import FLOAT32, Array, Format, either


class CallBounds:
    """The error bounds of the intermediates of a call, or of several calls of one structure, under one contract.

    Args:
        terms: The arguments of the call. In shapes, R is the number of rows, C of classes and B of calls.
        contract: The contract.
        like: Optional bounds of the same call under a contract that differs only in the order of sums over rows. Both
            objects share the intermediates that do not depend on this order.
    """

    def __init__(self, terms: Terms, contract: Contract, like: CallBounds | None = None) -> None:
        self.terms, self.contract, self._like = terms, contract, like
        self._dense = terms.index is None or terms.smooths  # a row has a term for every class

    @classmethod
    def of_calls(cls, calls: Sequence[Self], names: Iterable[str]) -> None:
        """Compute bounds for many calls of one structure and one contract together, and store them in the calls.

        A call would compute the same bounds by itself, except that the float64 sums over rows have another order. For a
        single call, this method does nothing: the call computes its bounds when they are read.

        Args:
            calls: The bounds of the calls.
            names: The names of the properties to compute, such as "loss" and "gradient".
        """
        if len(calls) == 1:
            return
        together = calls[0]._stacked(calls)
        ends = np.cumsum([len(call.terms.logits) for call in calls])
        with np.errstate(all="ignore"):
            kept = {name: getattr(together, name) for name in names}
            coefficients, divisor = together._coefficients, together._denominator
        for at, (call, end) in enumerate(zip(calls, ends, strict=True)):
            rows = slice(end - len(call.terms.logits), end)
            by_call = {name: bound.ndim == 1 and call.terms.reduction != "none" for name, bound in kept.items()}
            own: dict[str, object] = {name: kept[name][at if by_call[name] else rows] for name in kept}
            own["_coefficients"] = coefficients[rows]
            own["_denominator"] = None if divisor is None else divisor[at : at + 1]
            call.__dict__.update(own)  # cached_property stores its value in the same place

    def _stacked(self, calls: Sequence[Self]) -> Self:
        return type(self)(stacked([call.terms for call in calls]), self.contract)

    @cached_property
    def _softmax(self) -> tuple[Computed, Computed, Computed]:
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
        return either(~np.isfinite(self._log_probs.value), 0.0, self._log_probs.largest)

    @cached_property
    def _coefficients(self) -> Computed:
        return self._like._coefficients if self._like else coefficients(self.terms, self.contract)

    @cached_property
    def _denominator(self) -> Computed | None:
        return denominator(self.terms, self.contract)

    def _divides_as(self, other: CallBounds) -> bool:
        """Return whether the denominators of both objects have the same bounds."""
        mine, its = self._denominator, other._denominator
        if mine is None or its is None:
            return mine is its
        return np.array_equal(mine.value, its.value) and np.array_equal(mine.error, its.error)

    @property
    def may_divide_by_zero(self) -> bool:
        """Whether the computed denominator of a mean may be zero."""
        divisor = self._denominator
        return divisor is not None and not bool((divisor.error < np.abs(divisor.value)).all())

    def part(self, rows: slice, contract: Contract) -> Self:
        """Return the bounds of some rows of a single call, under a contract that differs only in its `storage`.

        They serve for the bounds of each row: the gradients, and the loss for reduction "none". Small arrays stay in
        the cache of a processor, so the bounds of many rows take less time in parts.
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

    def _total(self, held: Computed) -> Computed:
        """Return the sum of the numbers over the classes, (R,); if only the true class has a term, return this term."""
        return held.sum(self.contract.compute) if self._dense else self._of_target(held)

    def _scale_factors(self) -> list[Array]:
        """Return `|g|` and `1/|D|`, each with a shape that broadcasts to (R, C)."""
        factors = [np.abs(self.terms.upstream[:, None])]
        if self._denominator is not None:
            factors.append(1 / self.terms.by_row(np.abs(self._denominator.value) - self._denominator.error)[:, None])
        return factors

    def _in_any_order(self, product: Computed, factors: list[Array], products: int = 1) -> Computed:
        """Return a product, (R, C), with the errors of underflows if the factors are multiplied in any order.

        Every order has the same number of roundings, and each rounding error is relative. The error of an underflow is
        absolute: `η/2`, multiplied by the remaining factors, where `η` is the smallest subnormal number. After the
        first product, all factors but two remain. If the product is above twice the smallest normal number times the
        remaining factors, the partial product did not underflow. With smoothing, the number is a sum of two products.
        The size of the sum says nothing about the two products, so both may underflow.

        Args:
            product: The product or the sum of products, with its relative rounding errors.
            factors: The magnitudes of the factors, which broadcast to (R, C).
            products: The number of products in `product`, 1 or 2.
        """
        narrow = self.contract.stored or self.contract.compute
        to_come = len(factors) - 2
        most = [np.fmax.reduce(factor, axis=None, initial=1.0) for factor in factors]  # fmax skips rows of NaN
        least = narrow.smallest_normal * 2.0**3 * np.prod(most)
        some = (product.largest > 0) & ((products > 1) | (product.largest < least))
        if to_come <= 0 or not some.any():
            return product
        sizes = np.sort([np.broadcast_to(factor, some.shape)[some] for factor in factors], axis=0)[::-1]
        lost = np.zeros(some.shape)
        for amplified in np.cumprod(sizes, axis=0)[:to_come]:
            under = (products > 1) | (product.largest[some] < 2 * narrow.smallest_normal * amplified)
            lost[some] += np.where(under, products * narrow.underflow * amplified, 0.0)
        return Computed(product.value, product.error + lost, product.format)

    def _scale(self) -> Computed:
        """Return the upstream gradient divided by the denominator, `g/D`, (R,)."""
        scale = Computed.exactly(self.terms.upstream, self.contract.storage)
        if self._denominator is None:
            return scale
        return self.contract.keep(self._divided(scale, self._of_rows(self._denominator)))

    def _divided(self, held: Computed, divisor: Computed) -> Computed:
        """Return a number divided by the denominator D, with the larger error if a kernel may multiply by `1/D`."""
        c = self.contract
        divided = held.over(divisor, c.compute, c.functions.division_ulps, known=False)
        if not c.fused:
            return divided
        inverse = c.keep(Computed.exactly(1.0, c.storage).over(divisor, c.compute, c.functions.division_ulps))
        return wider(divided, held.times(inverse, c.compute, known=False))

    def _sum_of_rows(self, rows: Computed, format: Format, sizes: Array) -> Computed:
        """Return the sum over the rows of each call, (B,), in the order of the contract."""
        t = self.terms
        lines = Computed(t.by_call(rows.value), t.by_call(rows.error), rows.format)
        return lines.sum(format, self.contract.row_order, t.by_call(sizes))

    def _of_rows(self, calls: Computed) -> Computed:
        """Repeat the number of each call for every row of the call: (B,) becomes (R,)."""
        return Computed(self.terms.by_row(calls.value), self.terms.by_row(calls.error), calls.format)

    def _of_target(self, held: Computed) -> Computed:
        """Return the number of each row's true class, (R,), from numbers of all classes, (R, C)."""
        return Computed(self.terms.of_target(held.value), self.terms.of_target(held.error), held.format)


def parts_of(numbers: Array) -> list[slice]:
    """Return slices of the rows, each of at most 2^15 numbers or of one row; at least one slice."""
    step = max(1, 2**15 // max(1, numbers.shape[1]))
    return [slice(start, start + step) for start in range(0, max(1, len(numbers)), step)]


def _joined(parts: Sequence[Computed]) -> Computed:
    """Return the rows of all parts, one after another. All parts have one format."""
    if len(parts) == 1:
        return parts[0]
    value, error = (np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "error"))
    return Computed(value, error, parts[0].format)


def effective(contract: Contract, terms: Terms) -> Contract:
    """Return the contract with fixed values in all fields that do not change the bounds of the call.

    Two contracts with the same bounds become equal, so crossent computes these bounds once.
    """
    rows, depth = len(terms.logits), contract.row_order.depth
    any_order = terms.reduction == "none" or (depth is not None and depth >= rows - 1)
    narrow = contract.in_target_format and terms.target_format is FLOAT32 and terms.smooths
    return _effective(contract, any_order, narrow and contract.compute is not FLOAT32)


@cache
def _effective(contract: Contract, any_order: bool, in_target_format: bool) -> Contract:
    row_order = ANY_ORDER if any_order else contract.row_order
    return replace(contract, grade="A", row_order=row_order, in_target_format=in_target_format)
