"""The arguments of one call, or of several calls of the same structure, as rows of float64 numbers.

:func:`stack_calls` combines calls, since numpy takes little more time for a hundred tiny calls than for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.formats import Array, Format

Entries = TypeVar("Entries", Array, NDArray[np.bool_])


@dataclass(frozen=True)
class Terms:
    """The arguments of a call, or of B stacked calls, as R rows of C classes.

    Attributes:
        logits: (R, C).
        log_sum: (R,), `log Σ exp(x - max x)` of each row `x` of the logits, computed in float64.
        index: (R,), the true classes, and 0 on ignored rows; None for class probabilities.
        kept: (R,), False on ignored rows.
        probabilities: (R, C), the class probabilities; None for class indices.
        weight: (C,), the class weights, or None for ones; (R, C) for stacked calls.
        label_smoothing: A number; (R, 1) for stacked calls.
        upstream: (R,), the upstream gradient of each row. With a reduction, all rows share the gradient of the reduced
            loss.
        target_format: The format of the class probabilities, or None for class indices.
        lengths: The number of rows of each stacked call, or None for a single call.
        logits_error: (R, C), the largest errors of the logits, or None for exact logits.
    """

    logits: Array
    log_sum: Array
    index: NDArray[np.int64] | None
    kept: NDArray[np.bool_]
    probabilities: Array | None
    weight: Array | None
    label_smoothing: float | Array
    reduction: str
    upstream: Array
    target_format: Format | None = None
    lengths: tuple[int, ...] | None = None
    logits_error: Array | None = None

    @property
    def smooths(self) -> bool:
        """Whether `label_smoothing` is above 0."""
        return bool(np.any(self.label_smoothing))

    @property
    def structure(self) -> tuple[object, ...]:
        """The properties that :func:`stack_calls` requires all calls to share."""
        given = (self.index is None, self.weight is None, self.smooths, self.reduction, self.target_format)
        return (self.logits.shape[1], self.logits_error is None, *given)

    def part(self, rows: slice) -> Terms:
        """Return a copy that has only the rows in the slice `rows`. Stacked calls are not allowed."""
        assert self.lengths is None

        def of(numbers: Entries | None) -> Entries | None:
            return None if numbers is None else numbers[rows]

        return replace(
            self,
            logits=self.logits[rows],
            log_sum=self.log_sum[rows],
            index=None if self.index is None else self.index[rows],
            kept=self.kept[rows],
            probabilities=of(self.probabilities),
            upstream=self.upstream[rows],
            logits_error=of(self.logits_error),
        )

    def of_target(self, numbers: Entries) -> Entries:
        """Return the element of `numbers`, (R, C), for the true class of each row, (R,)."""
        assert self.index is not None
        taken: Entries = numbers[np.arange(len(self.index)), self.index]
        return taken

    def lines(self, numbers: Array) -> list[Array]:
        """Group the numbers of the rows, (R,), by the length of their call: (k, L) for k calls with L rows each."""
        if self.lengths is None:
            return [numbers[None]]
        # without padding, numpy adds a call's numbers in the same order, whichever other calls are stacked
        return [numbers[rows] for rows in self._row_indices]

    def of_lines(self, sums: Sequence[Array]) -> Array:
        """Return one number for each call, (B,), in the order of the calls.

        `sums` has one array for each array of :meth:`lines`, such as the sums over the last axis.
        """
        if self.lengths is None:
            return sums[0]
        made = np.empty(len(self.lengths))
        lengths = np.array(self.lengths)
        for length, numbers in zip(np.unique(lengths), sums, strict=True):
            made[lengths == length] = numbers
        return made

    @cached_property
    def _row_indices(self) -> list[NDArray[np.int64]]:
        """The indices of the rows of each call, in the shapes of :meth:`lines`."""
        lengths = np.array(self.lengths)
        starts = np.cumsum(lengths) - lengths
        return [starts[lengths == length][:, None] + np.arange(length) for length in np.unique(lengths)]

    def by_row(self, numbers: Array) -> Array:
        """Repeat the number of each call for every row of the call: (B,) becomes (R,)."""
        return np.repeat(numbers, [len(self.logits)] if self.lengths is None else self.lengths)


def stack_calls(calls: Sequence[Terms]) -> Terms:
    """Return one object with the rows of all calls, which must have the same :attr:`Terms.structure`."""
    first, *others = calls
    if not others:
        return first
    lengths = tuple(len(call.logits) for call in calls)

    def weights(call: Terms) -> Array:
        assert call.weight is not None
        return np.broadcast_to(call.weight, call.logits.shape)

    return Terms(
        logits=np.concatenate([call.logits for call in calls]),
        log_sum=np.concatenate([call.log_sum for call in calls]),
        index=None if first.index is None else np.concatenate([call.index for call in calls if call.index is not None]),
        kept=np.concatenate([call.kept for call in calls]),
        probabilities=None
        if first.probabilities is None
        else np.concatenate([call.probabilities for call in calls if call.probabilities is not None]),
        weight=None if first.weight is None else np.concatenate([weights(call) for call in calls]),
        label_smoothing=np.repeat([float(call.label_smoothing) for call in calls], lengths)[:, None],
        reduction=first.reduction,
        upstream=np.concatenate([call.upstream for call in calls]),
        target_format=first.target_format,
        lengths=lengths,
        logits_error=None
        if first.logits_error is None
        else np.concatenate([call.logits_error for call in calls if call.logits_error is not None]),
    )
