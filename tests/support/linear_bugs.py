"""Bugs that published linear cross-entropies had. Each bug changes one step of a right implementation in chunks.

The right implementation computes on chunks of four rows, in float32, or in float64 for inputs in float64. It rounds
each result once.
"""

from __future__ import annotations

import numpy as np

from crossent.numerics.formats import FORMATS, Format
from crossent.numerics.linear_call import LinearCall

CHUNK = 4
TF32 = Format("TF32", 11, -126, 2.0**127)


class Chunked:
    """A right implementation. A bug overrides one method, or one of these attributes.

    Attributes:
        last_chunk: Whether the last chunk counts.
    """

    last_chunk = True

    def __init__(self, call: LinearCall, dtype: str) -> None:
        self.call, self.storage = call, FORMATS[dtype]
        self.compute = np.float64 if dtype == "float64" else np.float32
        self.kept = call.kept
        self.y = np.zeros(call.rows, np.int64) if call.index is None else np.where(self.kept, call.index, 0)
        self.weight = np.ones(call.classes, self.compute)
        if call.weight is not None:
            self.weight = call.weight.astype(self.compute)
        self.h, self.w = (self.operand(a.astype(self.compute)) for a in (call.input, call.linear_weight))
        self.b = np.zeros(call.classes, self.compute)
        if call.linear_bias is not None:
            self.b = call.linear_bias.astype(self.compute)
        self.g = np.broadcast_to(call.upstream, call.rows).astype(self.compute)

    def run(self) -> dict[str, np.ndarray]:
        """Return the results by name, as float64 arrays."""
        call, c = self.call, self.compute
        with np.errstate(all="ignore"):
            grad_h, self.grad_w = np.zeros(call.input.shape, c), np.zeros(self.w.shape, c)
            self.grad_b, self.losses = np.zeros(call.classes, c), np.zeros(call.rows, c)
            self.divisor = self.total_weight() if call.reduction == "mean" else c(1)
            chunks = [slice(i, min(i + CHUNK, call.rows)) for i in range(0, call.rows, CHUNK)]
            self.chunks = len(chunks)
            for rows in chunks if self.last_chunk or len(chunks) < 2 else chunks[:-1]:
                z = self.logits(rows)
                x = z - z.max(1, keepdims=True)
                log_p = (x - self.log_sum(x)[:, None])[:, : call.classes]
                v = self.coefficients(rows)
                self.losses[rows] = np.where(self.kept[rows], self.row_losses(v, log_p, z), 0)
                d = self.slope(self.softmax(log_p), v, rows) * np.where(self.kept_d(rows), self.scale(rows), 0)[:, None]
                d = self.stored_slope(d.astype(c))
                grad_h[rows] = self.rows_gradient(d, rows, v, log_p)
                self.add(d, rows)
            results = {"loss": self.loss(), "grad_input": grad_h, "grad_weight": self.grad_w, "grad_bias": self.grad_b}
            return {name: self.narrow(self.finished(name, value)) for name, value in results.items()}

    def narrow(self, values, format=None):
        return (format or self.storage).nearest(np.asarray(values, np.float64))

    def in_dtype(self, values):
        return self.narrow(values).astype(self.compute)

    def operand(self, values):
        return values

    def total_weight(self):
        return self.weight[self.y][self.kept].sum(dtype=self.compute)

    def logits(self, rows):
        return self.h[rows] @ self.w.T + self.b

    def log_sum(self, x):
        return np.log(np.exp(x).sum(1))

    def softmax(self, log_p):
        return np.exp(log_p)

    def smoothing(self):
        return self.call.label_smoothing

    def targets(self, rows):
        return self.y[rows]

    def coefficients(self, rows):
        if self.call.index is None:
            q = self.call.probabilities[rows].astype(self.compute)
        else:
            q = (np.arange(self.call.classes) == self.targets(rows)[:, None]).astype(self.compute)
        eps = self.compute(self.smoothing())
        return (q * (1 - eps) + eps / self.compute(self.call.classes)) * self.weight

    def row_losses(self, v, log_p, z):
        return -np.where(v == 0, 0, v * log_p).sum(1)

    def kept_d(self, rows):
        return self.kept[rows]

    def slope(self, p, v, rows):
        return p * v.sum(1, keepdims=True) - v

    def scale(self, rows):
        return self.g[rows] / self.divisor

    def stored_slope(self, d):
        return d

    def rows_gradient(self, d, rows, v, log_p):
        return d @ self.w

    def add(self, d, rows):
        self.grad_w, self.grad_b = self.grad_w + d.T @ self.h[rows], self.grad_b + d.sum(0)

    def loss(self):
        if self.call.reduction == "none":
            return self.losses
        return self.losses.sum(dtype=self.compute) / self.divisor

    def finished(self, name, value):
        return value


def _scaled_by_chunk(self, rows):
    weight = np.where(self.kept[rows], self.weight[self.y[rows]], 0).sum()
    return self.g[rows] / (weight if self.call.reduction == "mean" else 1)


class AccumulatesTheWeightGradientInTheDtype(Chunked):  # Liger#1391, axolotl#1601
    def add(self, d, rows):
        self.grad_w = self.in_dtype(self.grad_w + d.T @ self.h[rows])
        self.grad_b = self.in_dtype(self.grad_b + d.sum(0))


class AccumulatesTheLossInTheDtype(Chunked):
    def loss(self):
        if self.call.reduction == "none":
            return self.losses
        total = self.compute(0)
        for start in range(0, len(self.losses), CHUNK):
            total = self.in_dtype(total + (self.losses[start : start + CHUNK] / self.divisor).sum())
        return total


class CountsIgnoredRowsInTheMean(Chunked):
    def total_weight(self):
        return self.weight[self.y].sum(dtype=self.compute)


class DropsTheBias(Chunked):  # Liger#144, trl#7065
    def logits(self, rows):
        return self.h[rows] @ self.w.T


class ReturnsNoBiasGradient(Chunked):
    def finished(self, name, value):
        return 0 * value if name == "grad_bias" else value


class MeansTheMeansOfChunks(Chunked):
    def scale(self, rows):
        return _scaled_by_chunk(self, rows) / (self.chunks if self.call.reduction == "mean" else 1)


class SumsTheMeansOfChunks(Chunked):
    scale = _scaled_by_chunk


class DropsSmallGradients(Chunked):  # cut-cross-entropy#14
    def slope(self, p, v, rows):
        return np.where((p < 2.0**-12) & (v == 0), 0, super().slope(p, v, rows))


class DropsTilesOfSmallGradients(Chunked):
    def slope(self, p, v, rows):
        d = super().slope(p, v, rows)
        for start in range(0, d.shape[1], 8):
            tile = slice(start, start + 8)
            if ((p[:, tile] < 2.0**-12) & (v[:, tile] == 0)).all():
                d[:, tile] = 0
        return d


class MultipliesByTheUpstreamOfRow0(Chunked):  # Liger#968
    def scale(self, rows):
        return self.g[:1] / self.divisor * np.ones(len(self.g[rows]), self.compute)


class IgnoresTheUpstream(Chunked):
    def scale(self, rows):
        return np.ones(len(self.g[rows]), self.compute) / self.divisor


class GivesIgnoredRowsAGradient(Chunked):
    def kept_d(self, rows):
        return np.ones_like(self.kept[rows])


class DropsTheLastChunk(Chunked):
    last_chunk = False


class TakesTheLogarithmOfTheSumInTheDtype(Chunked):
    def log_sum(self, x):
        return self.in_dtype(np.log(self.in_dtype(np.exp(x).sum(1))))


class KeepsTheLogitsInTheDtype(Chunked):
    def logits(self, rows):
        return self.in_dtype(super().logits(rows))


class KeepsTheSlopeInTheDtype(Chunked):
    def stored_slope(self, d):
        return self.in_dtype(d)


class KeepsTheTotalWeightInTheDtype(Chunked):
    def total_weight(self):
        return self.in_dtype(super().total_weight())


class ForgetsTheClassWeightInTheGradient(Chunked):
    def slope(self, p, v, rows):
        q = v / self.weight
        return p * q.sum(1, keepdims=True) - q


class CountsAPaddedClass(Chunked):
    def logits(self, rows):
        z = super().logits(rows)
        return np.concatenate([z, np.zeros((len(z), 1), z.dtype)], 1)


class LeavesASoftcapOn(Chunked):
    def logits(self, rows):
        return (30 * np.tanh(super().logits(rows) / 30)).astype(self.compute)


class LeavesAZLossOn(Chunked):
    def row_losses(self, v, log_p, z):
        largest = z.max(1)
        lse = largest + np.log(np.exp(z - largest[:, None]).sum(1))
        return super().row_losses(v, log_p, z) + self.compute(1e-4) * lse**2


class ShiftsTheTargetsByOne(Chunked):
    def targets(self, rows):
        return np.roll(self.y, 1)[rows]


class CutsTheOperandsToTf32(Chunked):
    def operand(self, values):
        return self.narrow(values, TF32).astype(self.compute) if self.compute is np.float32 else values


class DropsTheLabelSmoothing(Chunked):  # Liger#243
    def smoothing(self):
        return 0.0


class TakesTheBiasGradientOfTheLastChunk(Chunked):
    def add(self, d, rows):
        super().add(d, rows)
        self.grad_b = d.sum(0)


class LeavesTheTargetOutOfTheInputGradient(Chunked):
    def rows_gradient(self, d, rows, v, log_p):
        scale = np.where(self.kept[rows], self.scale(rows), 0)[:, None]
        return (self.softmax(log_p) * v.sum(1, keepdims=True) * scale).astype(self.compute) @ self.w


class AddsTilesOfTheInputGradientInTheDtype(Chunked):  # cut-cross-entropy#18
    def rows_gradient(self, d, rows, v, log_p):
        total = np.zeros((len(d), self.w.shape[1]), self.compute)
        for start in range(0, d.shape[1], 8):
            total = self.in_dtype(total + d[:, start : start + 8] @ self.w[start : start + 8])
        return total


class ScalesAfterARounding(Chunked):
    def finished(self, name, value):
        g = self.g[0] if len(self.g) else self.compute(1)
        if name == "loss" or self.call.reduction == "none" or g == 0:
            return value
        return self.in_dtype(value / g) * g


class SubtractsOneFromARoundedProbability(Chunked):  # Liger#1329, Liger#1419
    def slope(self, p, v, rows):
        return self.in_dtype(p * v.sum(1, keepdims=True)) - v


class DividesByTheRowsAndNotTheirWeight(Chunked):
    def total_weight(self):
        return self.compute(self.kept.sum())


BUGS = [bug for bug in list(globals().values()) if isinstance(bug, type) and issubclass(bug, Chunked)][1:]
