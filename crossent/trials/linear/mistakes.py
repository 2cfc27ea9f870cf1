"""Name the mistake that explains a wrong result of a linear cross-entropy.

For most known mistakes, this module computes the wrong result in float64. The mistake fits if all numbers agree up to
rounding. Another mistake may have the same result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.bounds.linear import LinearTerms
from crossent.numerics.formats import BFLOAT16, FORMATS, Array, Format
from crossent.trials.exact import name_of, rows_of
from crossent.trials.trial import Trial

# The largest number of multiplications (N·H·V) for the logits of a case. Above this number, `mistake_of` returns "",
# because the result of each mistake takes about as many multiplications.
_MOST = 2**26
# The largest ratio of the error bound to a single number for which chunk sizes are tried, as in
# `crossent.trials.factors`. With a larger bound, one of the many sizes may fit by chance.
_NARROW = 2.0**-10
_HALVES = ("float16", "bfloat16")
_TF32 = Format("TF32", 11, -126, 2.0**127)
Mistakes = Iterator[tuple[str, "_Numbers"]]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """The float64 numbers of a call, some of which a mistake may change.

    The shapes have N rows, V classes and hidden states of H numbers.

    Attributes:
        hidden: the hidden states, (N, H).
        weight, bias: the weight and the bias of the linear layer, (V, H) and (V,).
        q: the target probabilities after label smoothing, times the class weights, (N, V).
        counted: whether each row contributes to the loss, (N,).
        factor: the factor of the loss of each row, (N,). Without a mistake: `1 / denominator` for a mean, or 1.
        upstream: the upstream gradient of each row, (N,).
        padded: whether there is an additional class with the logit 0.
        of_target: the factor of the target in the gradient of the logits: 1, or 0 for a gradient without the target.
    """

    hidden: Array
    weight: Array
    bias: Array
    q: Array
    counted: NDArray[np.bool_]
    factor: Array
    upstream: Array
    padded: bool = False
    of_target: float = 1.0

    def log_p(self) -> Array:
        """Return the logarithm of the softmax of each row, (N, V)."""
        logits = self.hidden @ self.weight.T + self.bias
        top = logits.max(1, keepdims=True, initial=0.0 if self.padded else -np.inf)
        total = np.exp(logits - top).sum(1, keepdims=True) + (np.exp(-top) if self.padded else 0.0)
        return np.asarray(logits - top - np.log(total))

    def losses(self) -> Array:
        """Return the loss of each row times its factor, (N, 1)."""
        of_rows = -np.where(self.q == 0, 0.0, self.q * self.log_p()).sum(1)
        return np.where(self.counted, of_rows * self.factor, 0.0)[:, None]

    def logits_gradient(self) -> Array:
        """Return the gradient of the logits, (N, V)."""
        d: Array = np.exp(self.log_p()) * self.q.sum(1, keepdims=True) - self.of_target * self.q
        return np.asarray(np.where(self.counted, self.factor * self.upstream, 0.0)[:, None] * d)

    def matrices(self, of: str) -> tuple[Array, Array]:
        """Return two matrices whose product is the gradient `of`: "weight_gradient" or "bias_gradient"."""
        d = self.logits_gradient()
        return (d.T, self.hidden) if of == "weight_gradient" else (np.ones((1, len(d))), d)

    def result(self, of: str, *, reduced: bool) -> Array:
        """Return the result with the name `of`. If `reduced` is True, the loss is the sum over the rows."""
        if of == "loss":
            return self.losses().sum(0, keepdims=True) if reduced else self.losses()
        if of == "gradient":
            return self.logits_gradient() @ self.weight
        left, right = self.matrices(of)
        return left @ right


def mistake_of(trial: Trial, of: str) -> str:
    """Return a line that names up to two mistakes that explain the wrong result with the name `of`, or "".

    Examples::

        The numbers fit a result without linear_bias
        The numbers fit a result with zeros in the last 4 rows, or a result without the last 4 rows
    """
    exact = trial.question.exact
    tensor = trial.got.parts[of]
    got = tensor.reshape(-1, 1).cpu().double().numpy() if of == "loss" else rows_of(tensor)
    terms = exact.linear_terms
    assert terms is not None
    value, bound = getattr(exact, of), trial.bounds(trial.got, exact)[of]
    allowed = np.where(np.isfinite(bound), bound, np.inf) + value.radius
    reduced = terms.rows.reduction != "none"
    if got.size == 0 or not np.isfinite(got).all() or terms.input.size * len(terms.weight) > _MOST:
        return ""
    storage = FORMATS[name_of(tensor)]
    narrow = got.size > 1 or float(allowed.max()) <= _NARROW * abs(float(got[0, 0]))
    with np.errstate(all="ignore"):
        right = _numbers(terms)
        found = list(_zeros(of, got, value.hi, allowed))
        for mistakes in (_mistakes(right, terms), _of_chunks(right, terms) if narrow else iter(())):
            fitting = (
                words
                for words, changed in mistakes
                if _fits(changed.result(of, reduced=reduced), got, value.hi, allowed, storage)
            )
            # Skip the chunk sizes if another mistake fits. Zeros in the last rows or classes may have a further cause.
            if not found or "zeros in" in found[0]:
                found += islice(fitting, 2 - len(found))
        if not found and reduced and storage.name in _HALVES:
            found += islice(_rounded_sums(of, right, got, value.hi, allowed, storage), 1)
    return f"\nThe numbers fit a result {', or a result '.join(found)}" if found else ""


def _fits(result: Array, got: Array, exact: Array, allowed: Array, storage: Format) -> bool:
    """Return whether `got` fits the result of a mistake, and this result differs from the exact values."""
    # A larger result has larger rounding errors. Where the exact value is 0, the result may have a rounding error too.
    sizes = float(np.abs(result).max()), float(np.abs(exact).max())
    grown = max(1.0, sizes[0] / sizes[1]) if sizes[1] else 1.0
    most = grown * np.where(allowed > 0, allowed, allowed.max()) + 2 * storage.unit_roundoff * np.abs(result)
    differs = np.abs(result - exact) > 2 * most
    return bool((np.abs(got - result) <= most).all() and differs.any())


def _numbers(terms: LinearTerms) -> _Numbers:
    """Return the numbers of a call without a mistake."""
    rows, (n, v) = terms.rows, terms.products.shape
    weight = np.ones(v) if rows.weight is None else rows.weight
    q = rows.probabilities if rows.index is None else _one_hot(rows.index, v)
    assert q is not None
    smooth = rows.label_smoothing
    denominator = np.float64(1)
    if rows.reduction == "mean":
        denominator = (weight[rows.index] if rows.index is not None else np.ones(n))[rows.kept].sum()
    bias = np.zeros(v) if terms.bias is None else terms.bias
    q = (q * (1 - smooth) + smooth / v) * weight
    return _Numbers(terms.input, terms.weight, bias, q, rows.kept, np.full(n, 1 / denominator), rows.upstream)


def _one_hot(index: NDArray[np.int64], classes: int) -> Array:
    made = np.zeros((len(index), classes))
    made[np.arange(len(index)), index] = 1.0
    return made


def _mistakes(right: _Numbers, terms: LinearTerms) -> Mistakes:
    """Yield the mistakes that have no chunk size, as pairs (words, numbers).

    In the message, the words follow "a result". The numbers are `right`, changed by the mistake.
    """
    rows, n = terms.rows, len(right.counted)
    if terms.bias is not None:
        yield "without linear_bias", replace(right, bias=np.zeros_like(right.bias))
    if rows.label_smoothing:
        yield "without label_smoothing", _numbers(replace(terms, rows=replace(rows, label_smoothing=0.0)))
    if rows.weight is not None:
        unweighted = _numbers(replace(terms, rows=replace(rows, weight=None)))
        yield "without weight", unweighted
        if _denominators_differ(unweighted, right):
            yield "without weight, except in the denominator of the mean", replace(unweighted, factor=right.factor)
        yield "whose denominator counts the rows, not their weights", replace(right, factor=unweighted.factor)
    if not rows.kept.all() and rows.index is not None:
        every = np.ones(n, bool)
        of_all = _numbers(replace(terms, rows=replace(rows, kept=every)))  # ignored rows have the class 0
        yield "whose denominator counts ignored rows", replace(of_all, counted=rows.kept)
        as_class_0 = "to which ignored rows contribute, as if they had class 0"
        yield as_class_0, replace(right, counted=every)
        if _denominators_differ(of_all, right):
            yield f"{as_class_0}, and whose denominator includes them", of_all
        classes = right.q.shape[1]
        last = np.where(rows.kept[:, None], right.q, _one_hot(np.full(n, classes - 1), classes))
        yield "to which ignored rows contribute, as if they had the last class", replace(right, counted=every, q=last)
    if rows.index is not None:
        yield "in which each row uses the target of the previous row", replace(right, q=np.roll(right.q, 1, 0))
        yield "in which each row uses the target of the next row", replace(right, q=np.roll(right.q, -1, 0))
    if rows.reduction == "none":
        yield (
            "with the upstream gradient of the first row in every row",
            replace(right, upstream=np.full(n, right.upstream[:1])),
        )
    yield "without the upstream gradient", replace(right, upstream=np.ones(n))
    yield "with an additional class whose logits are 0, as in a padded vocabulary", replace(right, padded=True)
    yield "of the softmax alone, without the target", replace(right, of_target=0.0)
    for narrow in (_TF32, BFLOAT16):
        hidden, weight = narrow.nearest(right.hidden), narrow.nearest(right.weight)
        yield f"with input and linear_weight rounded to {narrow.name}", replace(right, hidden=hidden, weight=weight)


def _denominators_differ(one: _Numbers, other: _Numbers) -> bool:
    return not np.array_equal(one.factor, other.factor)


def _of_chunks(right: _Numbers, terms: LinearTerms) -> Mistakes:
    """Yield the mistakes about chunks of rows, for each chunk size, as pairs (words, numbers)."""
    n, at = len(right.counted), np.arange(len(right.counted))
    for size in _chunk_sizes(n):
        yield f"without the last {_rows(size)}", replace(right, counted=right.counted & (at < n - size))
        yield f"of the last {_rows(size)} alone", replace(right, counted=right.counted & (at >= n - size))
    if terms.rows.reduction != "mean":
        return
    share = np.where(right.counted, 1.0, 0.0)
    if terms.rows.weight is not None and terms.rows.index is not None:
        share = share * terms.rows.weight[terms.rows.index]
    for size in _chunk_sizes(n):
        chunks = at // size
        of_chunk = np.bincount(chunks, share)
        count = len(of_chunk)
        summed = replace(right, factor=1 / of_chunk[chunks])
        yield f"that is the sum of the means of {_chunks_of(size)}", summed
        averaged = replace(summed, factor=summed.factor / count)
        yield f"that is the mean of the means of {_chunks_of(size)}", averaged


def _chunk_sizes(rows: int) -> list[int]:
    """Return the chunk sizes to try: the sizes up to 16, and powers of two, all below `rows`."""
    powers = [2**power for power in range(5, max(5, rows.bit_length()))]
    return [size for size in (*range(1, 17), *powers) if size < rows]


def _chunks_of(size: int) -> str:
    return f"chunks of {'1 row' if size == 1 else f'{size} rows'}"


def _rows(count: int) -> str:
    return "row" if count == 1 else f"{count} rows"


def _rounded_sums(of: str, right: _Numbers, got: Array, exact: Array, allowed: Array, storage: Format) -> Iterator[str]:
    """Yield a phrase for each chunk size that explains `got`.

    A chunk size explains `got` if `got` is the sum over the rows, rounded to its dtype after each chunk of this size.
    More than 90 % of the 64 worst numbers must agree.
    """
    if of == "gradient" or not len(right.counted):
        return
    worst = np.argsort(-(np.abs(got - exact) / allowed).ravel(), kind="stable")[:64]
    numbers, values, most = (array.ravel()[worst] for array in (got, exact, allowed))
    digit = 2 * storage.unit_roundoff * np.abs(numbers)
    # far from the exact value, the last digits may differ: an implementation rounds the terms too
    near = digit * np.minimum(np.floor(np.abs(numbers - values) / (32 * digit)), 2.0)
    n = len(right.counted)
    for last in (False, True):  # divide each term of a mean, or the sum
        denominator = float(1 / right.factor[0]) if last else 1.0
        changed = replace(right, factor=np.ones(n)) if last else right
        if of == "loss":
            of_rows = changed.losses()
        else:
            left, others = changed.matrices(of)
            i, j = np.unravel_index(worst, got.shape)
            of_rows = left[i].T * others[:, j]
        for size in _chunk_sizes(n):
            total = np.zeros(of_rows.shape[1])
            for start in range(0, n, size):
                total = storage.nearest(total + of_rows[start : start + size].sum(0))
            total = storage.nearest(total / denominator)
            is_wrong = (np.minimum(np.abs(total - values), np.abs(numbers - values)) > most).any()
            if is_wrong and np.mean(np.abs(total - numbers) <= near) > 0.9:
                chunk = "row" if size == 1 else f"chunk of {size} rows"
                yield f"whose sum over the rows is rounded to {storage.name} after each {chunk}"


def _zeros(of: str, got: Array, exact: Array, allowed: Array) -> Iterator[str]:
    """Yield a phrase if a gradient is wrongly 0 in its last rows or classes."""
    if of == "loss":
        return
    if of == "bias_gradient":
        got, exact, allowed = got.T, exact.T, allowed.T
    nonzero = np.flatnonzero((got != 0).any(1))
    first = int(nonzero[-1]) + 1 if len(nonzero) else 0
    if (np.abs(exact) > allowed)[first:].any():
        one, several = ("row", "rows") if of == "gradient" else ("class", "classes")
        count = len(got) - first
        in_last = f"with zeros in the last {one if count == 1 else f'{count} {several}'}"
        yield "of zeros" if first == 0 else in_last
