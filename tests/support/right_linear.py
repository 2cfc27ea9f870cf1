"""Right implementations of a linear cross-entropy. Each computes the formula with its own order and roundings.

The number of an implementation is the seed of its random choices: the order of every sum, fused multiply-adds, chunks
of rows and of classes, when the bias and the upstream gradient are used, and the errors of exp and log. At grade B, an
implementation rounds the logits and their gradient to the dtype. It computes in float32, or in float64 for float64.
"""

from __future__ import annotations

import numpy as np

from crossent.numerics.bounds.linear_contracts import LinearContract, linear_contract
from crossent.numerics.formats import FORMATS, is_power_of_two
from crossent.numerics.linear_call import LINEAR_RESULTS, LinearCall

ORDERS = ("sequential", "reversed", "ascending", "descending", "pairwise", "blocks", "fused")


class RightLinear:
    """A right implementation of a linear cross-entropy at one grade.

    Args:
        number: The seed of the random choices.
        dtype: The name of the dtype of inputs and results.
        grade: "A" or "B".
        recomputes: Whether the backward pass computes the logits again, in another order.
    """

    def __init__(self, number: int, dtype: str, grade: str = "A", *, recomputes: bool = False) -> None:
        random = np.random.RandomState(number)
        self.grade, self.dtype, self.number, self.recomputes = grade, dtype, number, recomputes
        self.storage = FORMATS[dtype]
        self.compute = np.float64 if dtype == "float64" else np.float32
        self._narrow = grade == "B" and self.storage.precision < 24

        def chosen(*choices):
            return choices[random.randint(len(choices))]

        self._orders = {name: chosen(*ORDERS) for name in ("logits", "again", "sum", *LINEAR_RESULTS)}
        self._block = chosen(2, 3, 8, 32)
        self._row_chunk, self._class_chunk = chosen(1, 3, 1000), chosen(1, 5, 16, 1000)
        self._bias_first, self._bias_apart = chosen(True, False), chosen(True, False)
        self._by_logsumexp, self._divides, self._by_exp = (chosen(True, False) for _ in range(3))
        self._splits, self._scale_late, self._divide_late = chosen(True, False, False), chosen(0, 1, 2), chosen(0, 1)
        self._ulps = chosen(-2.5, 0.0, 2.5), chosen(-1.5, 0.0, 1.5)  # of exp and log, as on CUDA

    @property
    def contract(self) -> LinearContract:
        return linear_contract("kernel", self.grade, self.dtype, recomputes=self.recomputes)

    def __call__(self, call: LinearCall) -> dict[str, np.ndarray]:
        """Return the results by name, as float64 arrays of numbers of the dtype."""
        c = self.compute
        with np.errstate(all="ignore"):
            h, w, g = call.input.astype(c), call.linear_weight.astype(c), np.broadcast_to(call.upstream, call.rows)
            kept, y, g = call.kept, self._true(call), g.astype(c)
            weight = np.ones(call.classes, c) if call.weight is None else call.weight.astype(c)
            divisor = self._divisor(call, weight, y)
            z = self._logits(call, h, w, "logits")
            log_sum, largest = self._log_sum(z)
            v = self._coefficients(call, weight, y)
            losses = np.where(kept, self._losses(call, z, v, largest, log_sum, y), 0).astype(c)
            if call.reduction == "none":
                loss = losses
            elif self._divide_late:
                loss = self._sum(losses, "loss") / divisor
            else:
                loss = self._sum(losses / divisor, "loss")
            late = c(1)
            if call.reduction != "none" and self._scale_late:
                late, g = g[0] if len(g) else late, np.ones_like(g)
            if self.recomputes:
                z = self._logits(call, h, w, "again")
            p = self._probs(z, largest, log_sum)
            scale = np.where(kept, g / divisor, 0).astype(c)[:, None]
            parts = [scale * (p * v.sum(1, keepdims=True, dtype=c)), -scale * v]
            d = [self._kept_narrow((parts[0] + parts[1]).astype(c))] if self._narrow or not self._splits else parts
            results = {"loss": loss}
            results["grad_input"] = self._products(d, w, late, "grad_input")
            results["grad_weight"] = self._products([part.T for part in d], h, late, "grad_weight")
            ones = np.ones((len(h), 1), c)
            results["grad_bias"] = self._products([part.T for part in d], ones, late, "grad_bias")[:, 0]
            return {name: self._rounded(value) for name, value in results.items()}

    def _true(self, call):
        return None if call.index is None else np.where(call.kept, call.index, 0)

    def _rounded(self, values):
        return self.storage.nearest(np.asarray(values, np.float64))

    def _kept_narrow(self, values):
        return self._rounded(values).astype(self.compute) if self._narrow else values

    def _function(self, of, values, ulps):
        """Return exp or log, with an error of at most `ulps`."""
        exact = of(values.astype(np.float64))
        u = np.finfo(self.compute).eps / 2
        away = np.where(exact == 1 if of is np.exp else values == 1, 0.0, ulps * u)
        return (exact * (1 + away)).astype(self.compute)

    def _sum(self, terms, name):
        """Return the sum over the last axis, in the order that was drawn for `name`."""
        order, c = self._orders[name], self.compute
        if terms.shape[-1] == 0:
            return np.zeros(terms.shape[:-1], c)
        if order in ("ascending", "descending"):
            at = np.argsort(np.abs(terms), axis=-1)
            terms = np.take_along_axis(terms, at if order == "ascending" else at[..., ::-1], -1)
        elif order == "reversed":
            terms = terms[..., ::-1]
        elif order == "pairwise":
            while terms.shape[-1] > 1:
                if terms.shape[-1] % 2:
                    terms = np.concatenate([terms, np.zeros_like(terms[..., :1])], -1)
                terms = terms[..., ::2] + terms[..., 1::2]
            return terms[..., 0]
        elif order == "blocks":
            starts = range(0, terms.shape[-1], self._block)
            blocks = [np.cumsum(terms[..., i : i + self._block], -1, dtype=c)[..., -1] for i in starts]
            terms = np.stack(blocks, -1)
        return np.cumsum(terms, -1, dtype=c)[..., -1]

    def _dot(self, a, b, name, first=None):
        """Return `a @ b.T`. If `first` is given, each sum starts with the number of `first` for its row of `b`."""
        c = self.compute
        if self._orders[name] == "fused" and c is np.float32:
            total = np.zeros((len(a), len(b))) if first is None else first + np.zeros((len(a), len(b)))
            for k in range(a.shape[1]):  # the product is exact in float64
                products = a[:, k, None].astype(np.float64) * b[:, k].astype(np.float64)
                total = (total + products).astype(c).astype(np.float64)
            return total.astype(c)
        terms = a[:, None, :] * b[None]
        if first is not None:
            terms = np.concatenate([np.broadcast_to(first[:, None], (*terms.shape[:2], 1)), terms], -1)
        return self._sum(terms.astype(c), name)

    def _logits(self, call, h, w, name):
        bias = None if call.linear_bias is None else call.linear_bias.astype(self.compute)
        if bias is not None and self._bias_first:
            return self._kept_narrow(self._dot(h, w, name, bias))
        z = self._dot(h, w, name)
        if bias is None:
            return self._kept_narrow(z)
        return self._kept_narrow((self._kept_narrow(z) if self._bias_apart else z) + bias)

    def _log_sum(self, z):
        """Return `log Σ exp(z - max)` and the maximum, from chunks of classes, each with its own maximum."""
        largest, total = np.full(len(z), -np.inf, self.compute), np.zeros(len(z), self.compute)
        for start in range(0, z.shape[1], self._class_chunk):
            chunk = z[:, start : start + self._class_chunk]
            new = np.maximum(largest, chunk.max(1))
            scaled = total * self._function(np.exp, largest - new, self._ulps[0]) if start else total
            exps = self._function(np.exp, chunk - new[:, None], self._ulps[0])
            largest, total = new, scaled + self._sum(exps, "sum")
        self._total = total
        return self._function(np.log, total, self._ulps[1]), largest

    def _losses(self, call, z, v, largest, log_sum, y):
        every = np.arange(len(z))
        if self._by_logsumexp:
            lse = largest + log_sum
            if y is not None and not call.label_smoothing:
                return v[every, y] * (lse - z[every, y])
            return self._sum(v, "sum") * lse - self._sum(v * z, "sum")
        log_p = (z - largest[:, None]) - log_sum[:, None]
        if y is not None and not call.label_smoothing:
            return -v[every, y] * log_p[every, y]
        return -self._sum(v * log_p, "sum")

    def _probs(self, z, largest, log_sum):
        shifted = z - largest[:, None]
        if self._by_exp:
            away = z - (largest + log_sum)[:, None] if self._by_logsumexp else shifted - log_sum[:, None]
            return self._function(np.exp, away, self._ulps[0])
        exps = self._function(np.exp, shifted, self._ulps[0])
        return exps / self._total[:, None] if self._divides else exps * (1 / self._total)[:, None]

    def _coefficients(self, call, weight, y):
        c, eps = self.compute, self.compute(call.label_smoothing)
        v = (call.probabilities if y is None else np.arange(call.classes) == y[:, None]).astype(c)
        if call.label_smoothing:
            v = v * (1 - eps) + eps / c(call.classes)
        return v * weight

    def _divisor(self, call, weight, y):
        if call.reduction != "mean":
            return self.compute(1)
        if y is None or call.weight is None:
            return self.compute(call.kept.sum())
        return self._sum(np.where(call.kept, weight[y], 0).astype(self.compute), "sum")

    def _products(self, parts, factor, late, name):
        """Return a gradient: the sum of the products of chunks, times `late`, an upstream gradient or 1."""
        chunk = self._row_chunk if name in ("grad_weight", "grad_bias") else self._class_chunk
        total = None
        for part in parts:
            for start in range(0, max(1, part.shape[1]), chunk):
                some = slice(start, start + chunk)
                product = self._dot(part[:, some], factor[some].T, name)
                total = product if total is None else total + product
        if self._scale_late == 2 and (self._narrow or self.storage.precision >= 24):
            total = self._rounded(total).astype(self.compute)  # and rounded again after the product
        return total if is_power_of_two(np.asarray(late)) and late == 1 else total * late
