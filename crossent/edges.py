"""Edges: single cases that bit somebody, each with the name of its issue or of what breaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crossent.cases import DTYPES, Case

EDGES = (
    # The number of rows, beyond float16's 65504: the denominator of the mean overflows.
    Case("float16", (70000, 2), "flat", name="pytorch-85791"),
    Case("float16", (70000, 3), name="pytorch-85791"),
    # Sums of rows held in half precision: their block is not closed where the row is ignored that should close it.
    Case("bfloat16", (1000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("bfloat16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("bfloat16", (50000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (50000, 10), name="half_partial_sums"),
    # A row whose exponentials add up to more than float16 holds, and one with a class less.
    Case("float16", (2, 65520), "flat", name="float16_row_sum"),
    Case("float16", (2, 65519), "flat", name="float16_row_sum"),
    # p = 0.999: log p vanishes where the sum 1.001 is rounded to half precision, which is no better than zeros.
    Case("bfloat16", (4, 2), "sure", name="half_sure", grade="A"),
    Case("float16", (4, 2), "sure", name="half_sure", grade="A"),
)


def edges(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """The edges of these dtypes, in numbers of their own for each seed."""
    return (case.seeded(seed) for dtype in dtypes for case in EDGES if case.dtype == dtype)
