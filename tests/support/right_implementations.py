"""Random right implementations of cross-entropy, which must all be within the error bounds.

Each implementation computes in float32 or float64 with correctly rounded operations, and rounds the results to the
dtype of the logits once. All choices that IEEE 754 leaves open are random: the order of each product and each sum; the
factors that are multiplied before a difference and after it; fused multiply-adds; blocks of classes; the direction of
the errors of exp and log; whether a mean divides or multiplies by a reciprocal, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.bounds.terms import Terms
from crossent.numerics.formats import FORMATS, Array

Numbers = NDArray[Any]  # float32 or float64


@dataclass(frozen=True)
class Results:
    """The results of an implementation, as float64 numbers.

    Attributes:
        loss: (R,), or (1,) for a reduced loss.
        gradient: (R, C), the gradient of the logits.
        target_gradient: (R, C), or None for class indices.
        tangent: the derivative of the loss along a direction, with the shape of the loss.
        second: (R, C), the derivative of the gradient along a direction.
    """

    loss: Array
    gradient: Array
    target_gradient: Array | None
    tangent: Array
    second: Array


class RightImplementation:
    """A cross-entropy with random choices. A call returns the loss and all derivatives.

    Args:
        seed: The seed of the choices.
        dtype: The dtype of the logits and of the results.
    """

    def __init__(self, seed: int, dtype: str) -> None:
        self._random = draw = np.random.RandomState([seed, 20_000])
        self.seed, self._storage = seed, FORMATS[dtype]
        narrow = dtype != "float64" and draw.randint(4) > 0
        self._compute: Any = np.float32 if narrow else np.float64
        self._fuses = bool(draw.randint(2)) and narrow  # float64 can compute a fused multiply-add of float32 numbers
        self._order = draw.choice(["ascending", "descending", "pairs", "lanes", "blocks", "shuffled"])
        self._lanes = int(draw.choice([2, 4, 8, 32]))
        self._side = draw.choice(["nearest", "down", "up", "either", "far down", "far up"])
        self._log_probs_by = draw.choice(["shift", "logsumexp"])
        self._softmax_by = draw.choice(["quotient", "reciprocal", "log", "logsumexp"])
        self._block = int(draw.choice([0, 0, 1, 3, 16, 1024]))  # classes in a block of an online softmax; 0: no blocks
        self._smooths_by = draw.choice(["coefficients", "parts", "terms"])
        self._smoothed_loss_by = draw.choice(["coefficients", "parts", "logits"])
        self._reciprocal = bool(draw.randint(2))
        self._divides = draw.choice(["rows", "total"])
        self._late = draw.randint(8)  # bits 1, 2, 4: multiply g, 1/D, w after the difference
        self._sum_scaled = bool(draw.randint(2))
        self._second_by = draw.choice(["difference", "products"])

    # The operations. numpy rounds +, -, *, / of float32 and float64 correctly.

    def _in(self, values: Any) -> Numbers:
        return np.asarray(values, dtype=self._compute)

    def _stored(self, values: Numbers) -> Array:
        return self._storage.nearest(np.asarray(values, dtype=np.float64))

    def _fused(self, a: Numbers, b: Numbers, c: Numbers) -> Numbers:
        """Return `a b + c`, fused or with two roundings. A product of two float32 numbers is exact in float64."""
        if not self._fuses:
            return self._in(a * b + c)
        return self._in(a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64))

    def _function(self, of: Callable[..., Any], values: Numbers) -> Numbers:
        """Return exp or log with an error below one ulp, in the direction `_side`.

        "far down" and "far up" add two ulps to the error of exp, and one ulp for log. CUDA's documentation allows both.
        """
        exact = of(values.astype(np.float64))
        if self._compute is np.float64:
            return self._in(exact)
        if self._side.startswith("far"):
            units = (1 if of is np.log else 2) * (1 if self._side == "far up" else -1)
            exact = np.where(exact == np.rint(exact), exact, exact + units * np.spacing(exact.astype(np.float32)))
            return self._in(exact)
        near = exact.astype(np.float32)
        below = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
        above = np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)
        if self._side == "either":
            return self._in(np.where(self._random.randint(2, size=near.shape), below, above))
        return self._in({"nearest": near, "down": below, "up": above}[self._side])

    def _sum(self, terms: Numbers) -> Numbers:
        """Return the sum over the last axis, in the order `_order`."""
        count = terms.shape[-1]
        if self._order == "pairs":
            while terms.shape[-1] > 1:
                odd = terms[..., -1:] if terms.shape[-1] % 2 else terms[..., :0]
                terms = np.concatenate([terms[..., 0:-1:2] + terms[..., 1::2], odd], -1)
            return self._in(terms[..., 0] if count else np.zeros(terms.shape[:-1]))
        if self._order in ("lanes", "blocks") and count:
            each = -(-count // self._lanes)
            zeros = np.zeros((*terms.shape[:-1], each * self._lanes - count), terms.dtype)
            terms = np.concatenate([terms, zeros], -1)
            # An accumulator adds every k-th term ("lanes"), or a block of consecutive terms ("blocks").
            shape = (each, self._lanes) if self._order == "lanes" else (self._lanes, each)
            terms = terms.reshape(*terms.shape[:-1], *shape)
            terms = self._running(terms.swapaxes(-1, -2) if self._order == "lanes" else terms)
        elif self._order == "descending":
            terms = terms[..., ::-1]
        elif self._order == "shuffled":
            terms = terms[..., self._random.permutation(count)]
        return self._running(terms)

    def _running(self, terms: Numbers) -> Numbers:
        """Return the sum over the last axis from left to right."""
        return np.add.accumulate(terms, -1)[..., -1] if terms.shape[-1] else self._in(np.zeros(terms.shape[:-1]))

    def _product(self, factors: Sequence[Numbers]) -> Numbers:
        """Return the product of the factors, in random order."""
        factors = list(factors)
        while len(factors) > 1:
            one = factors.pop(self._random.randint(len(factors)))
            other = factors.pop(self._random.randint(len(factors)))
            factors.append(self._in(one * other))
        return factors[0] if factors else self._in(1.0)

    def _over(self, value: Numbers, divisor: Numbers | None) -> Numbers:
        if divisor is None:
            return value
        return self._in(value * self._in(1 / divisor)) if self._reciprocal else self._in(value / divisor)

    # The formula.

    def __call__(self, t: Terms, direction: Array) -> Results:
        """Return the results of a call. The direction, (R, C), must have numbers of the dtype of the logits."""
        with np.errstate(all="ignore"):
            self._random = np.random.RandomState([self.seed, len(t.logits)])
            return self._results(t, direction)

    def _results(self, t: Terms, direction: Array) -> Results:
        x, rows, classes = self._in(t.logits), *t.logits.shape
        # No contract allows an error that grows with a common offset. So `max + log s` is right only on these rows.
        spans_zero = (x.max(1, keepdims=True) >= 0) & (x.min(1, keepdims=True) <= 0)
        largest, total, exponentials = self._exponentials(x)
        log_sum = self._function(np.log, total)
        logsumexp = self._in(largest + log_sum)
        log_probs = self._in(self._in(x - largest[:, None]) - log_sum[:, None])
        if self._log_probs_by == "logsumexp":
            log_probs = np.where(spans_zero, self._in(x - logsumexp[:, None]), log_probs)
        probs = {
            "quotient": lambda: self._in(exponentials / total[:, None]),
            "reciprocal": lambda: self._in(exponentials * self._in(1 / total)[:, None]),
            "log": lambda: self._function(np.exp, log_probs),
            "logsumexp": lambda: np.where(
                spans_zero,
                self._function(np.exp, self._in(x - logsumexp[:, None])),
                self._function(np.exp, log_probs),
            ),
        }[self._softmax_by]()
        weight = None if t.weight is None else self._in(t.weight)
        hot = np.arange(classes) == (np.full(rows, -1) if t.index is None else t.index)[:, None]
        target = self._in(hot if t.probabilities is None else t.probabilities)
        divisor = self._divisor(t, weight)
        losses = self._losses(t, x, log_probs, logsumexp, target, weight, spans_zero[:, 0])
        upstream = self._in(t.upstream)[:, None]
        gradient = self._gradient(t, probs, target, weight, upstream, divisor)
        kept = t.kept[:, None]
        along = self._in(direction)
        of_target = None
        if t.probabilities is not None:
            factors = [upstream, self._in(-log_probs), *([] if weight is None else [weight])]
            if t.label_smoothing:
                factors.append(self._in(1 - self._in(t.label_smoothing)))
            at = self._random.randint(len(factors))
            factors[at] = self._over(factors[at], divisor)
            of_target = self._stored(self._product(factors))
        tangent, second = self._derivatives(t, probs, target, weight, self._over(upstream, divisor), along)
        return Results(
            self._reduced(t, losses, divisor),
            np.where(kept, self._stored(gradient), 0.0),
            of_target,
            self._reduced(t, tangent, divisor),
            np.where(kept, self._stored(second), 0.0),
        )

    def _exponentials(self, x: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Return the maximum `m` of each row, (R,), the sum `Σ exp(x - m)`, (R,), and `exp(x - m)`, (R, C)."""
        largest = x.max(1, initial=-np.inf)
        exponentials = self._function(np.exp, self._in(x - largest[:, None]))
        if not self._block:
            return largest, self._sum(exponentials), exponentials
        running, total = np.full(len(x), -np.inf, x.dtype), np.zeros(len(x), x.dtype)
        for start in range(0, x.shape[1], max(self._block, -(-x.shape[1] // 64))):
            part = x[:, start : start + max(self._block, -(-x.shape[1] // 64))]
            now = np.maximum(running, part.max(1))
            grown = np.where(now == running, self._in(1), self._function(np.exp, self._in(running - now)))
            terms = self._function(np.exp, self._in(part - now[:, None]))
            terms = np.where(np.isneginf(now)[:, None], self._in(0), terms)
            total = self._fused(total, np.where(np.isneginf(running), self._in(0), grown), self._sum(terms))
            running = now
        return running, np.where(np.isneginf(largest), self._in(np.nan), total), exponentials

    def _divisor(self, t: Terms, weight: Numbers | None) -> Numbers | None:
        if t.reduction != "mean":
            return None
        if t.index is None or weight is None:
            return self._in(t.kept.sum())
        return self._sum(np.where(t.kept, weight[t.index], self._in(0)))

    def _weighted(self, values: Numbers, weight: Numbers | None) -> Numbers:
        return values if weight is None else self._in(values * weight)

    def _coefficients(self, t: Terms, target: Numbers, weight: Numbers | None) -> Numbers:
        """Return the coefficients `w_c q_c`, (R, C), for class weights `w` and the smoothed target `q`."""
        if t.label_smoothing:
            smoothing = self._in(t.label_smoothing)
            uniform = self._in(smoothing / self._in(target.shape[1]))
            target = self._fused(target, self._in(1 - smoothing), uniform)
        return self._weighted(target, weight)

    def _losses(
        self,
        t: Terms,
        x: Numbers,
        log_probs: Numbers,
        logsumexp: Numbers,
        target: Numbers,
        weight: Numbers | None,
        spans_zero: NDArray[np.bool_],
    ) -> Numbers:
        """Return the loss of each row, (R,)."""
        if t.index is not None and not t.label_smoothing:
            at = np.arange(len(x)), t.index
            return self._in(-log_probs[at]) if weight is None else self._in(weight[t.index] * -log_probs[at])
        if not t.label_smoothing or self._smoothed_loss_by == "coefficients":
            return self._sum(self._in(self._coefficients(t, target, weight) * -log_probs))
        smoothing, classes = self._in(t.label_smoothing), self._in(x.shape[1])
        w = self._in(np.ones(x.shape[1])) if weight is None else weight
        if t.index is None:
            sure = self._sum(self._in(self._weighted(target, weight) * -log_probs))
        else:
            sure = self._in(w[t.index] * -log_probs[np.arange(len(x)), t.index])
        spread = self._sum(self._in(w * -log_probs))
        if self._smoothed_loss_by == "logits":
            by_logits = self._in(self._in(self._sum(w) * logsumexp) - self._sum(self._in(w * x)))
            spread = np.where(spans_zero, by_logits, spread)
        spread = self._in(spread * self._in(smoothing / classes))
        return self._fused(sure, self._in(1 - smoothing), spread)

    def _reduced(self, t: Terms, rows: Numbers, divisor: Numbers | None) -> Array:
        rows = np.where(t.kept, rows, self._in(0))
        if t.reduction == "none":
            return self._stored(rows)
        if self._divides == "rows":
            return self._stored(self._sum(self._over(rows, divisor)))[None]
        return self._stored(self._over(self._sum(rows), divisor))[None]

    def _gradient(
        self,
        t: Terms,
        probs: Numbers,
        target: Numbers,
        weight: Numbers | None,
        upstream: Numbers,
        divisor: Numbers | None,
    ) -> Numbers:
        """Return the gradient of the logits, (R, C): `g/D (p_c Σ_k w_k q_k - w_c q_c)`."""
        before, after = [], []
        (after if self._late & 1 else before).append(upstream)
        if divisor is not None:
            side = after if self._late & 2 else before
            if side and self._random.randint(2):
                side[-1] = self._over(side[-1], divisor)
            else:
                side.append(self._over(self._in(1), divisor))
        if not t.label_smoothing or self._smooths_by == "coefficients":
            return self._difference(probs, t.index, self._coefficients(t, target, weight), before, after)
        smoothing, classes = self._in(t.label_smoothing), self._in(probs.shape[1])
        sure, uniform = self._in(1 - smoothing), self._in(smoothing / classes)
        w = self._in(np.ones(probs.shape)) * (self._in(1) if weight is None else weight)
        weighted = self._weighted(target, weight)
        if self._smooths_by == "parts":
            one = self._difference(probs, t.index, weighted, [*before, sure], after)
            two = self._difference(probs, None, w, before, [*after, uniform])
            return self._in(one + two)
        coefficients = self._coefficients(t, target, weight)
        softmax = self._product([probs, self._sum(coefficients)[:, None], *before, *after])
        parts = [
            softmax,
            -self._product([weighted, sure, *before, *after]),
            -self._product([w, uniform, *before, *after]),
        ]
        at = self._random.permutation(3)
        return self._in(self._in(parts[at[0]] + parts[at[1]]) + parts[at[2]])

    def _difference(
        self, probs: Numbers, index: Any, coefficients: Numbers, before: list[Numbers], after: list[Numbers]
    ) -> Numbers:
        """Return `p_c Σ_k v_k - v_c`, (R, C), times all factors.

        `p` are the probabilities and `v` the coefficients. The factors `before` are multiplied into both terms, and the
        factors `after` into the difference.
        """
        before, after = list(before), list(after)
        hot = np.arange(probs.shape[1]) == (np.full(len(probs), -1) if index is None else index)[:, None]
        if index is not None and not coefficients[~hot].any():
            # Only the true class has a coefficient. It is a factor like the others.
            (after if self._late & 4 else before).append(coefficients[np.arange(len(probs)), index][:, None])
            if not before:
                return self._product([self._in(probs - hot), *after])
            one = self._product(before)
            return self._product([self._fused(probs, one, self._in(-one * hot)), *after])
        scale = self._product(before) if before else None
        scaled = coefficients if scale is None else self._in(coefficients * scale)
        if self._sum_scaled or scale is None:
            total = self._sum(scaled)[:, None]
        else:
            total = self._in(self._sum(coefficients)[:, None] * scale)
        return self._product([self._fused(probs, total, -scaled), *after])

    def _derivatives(
        self, t: Terms, probs: Numbers, target: Numbers, weight: Numbers | None, scale: Numbers, along: Numbers
    ) -> tuple[Numbers, Numbers]:
        """Return the tangent of each row's loss, (R,), and the derivative of the gradient, (R, C)."""
        coefficients = self._coefficients(t, target, weight)
        mean = self._sum(self._in(probs * along))[:, None]
        if t.index is not None and not t.label_smoothing:
            v = coefficients[np.arange(len(probs)), t.index]
            tangent = self._in(v * self._in(mean[:, 0] - along[np.arange(len(probs)), t.index]))
            total = v[:, None]
        else:
            total = self._sum(coefficients)[:, None]
            tangent = self._sum(self._in(coefficients * self._in(mean - along)))
        if self._second_by == "difference":
            return tangent, self._product([probs, self._in(along - mean), total, scale])
        factor = self._product([probs, total, scale])
        return tangent, self._in(self._in(factor * along) - self._in(factor * mean))
