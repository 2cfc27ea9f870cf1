"""The reasons why error bounds are infinite. Numbers with an infinite bound are not judged."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossent.numerics.bounds.loss import Bounds

Reason = Literal[
    "an intermediate may overflow",
    "the denominator may be zero",
    "a sum has too many terms for the precision of its format",
    "a step may multiply zero by infinity",
]


def unbounded(bounds: Bounds, name: str) -> dict[Reason, NDArray[np.bool_]]:
    """Return a mask of the infinite bounds for each reason that occurs.

    Each infinite bound has exactly one reason. `name` is the name of a bound in `bounds`, such as "loss".
    """
    bound = getattr(bounds, name)
    if not np.isinf(bound).any():
        return {}
    c, t = bounds.contract, bounds.terms
    # If a bound is finite in formats of unlimited range, the bound was infinite because of overflow.
    remaining = np.isinf(getattr(bounds.under(c.unlimited), name))
    found: dict[Reason, NDArray[np.bool_]] = {"an intermediate may overflow": np.isinf(bound) & ~remaining}
    rows, classes = t.logits.shape
    depth = rows - 1 if c.row_order.depth is None else min(c.row_order.depth, rows - 1)
    infinite = (np.isinf(t.logits).any(1) & t.kept).reshape(-1, *[1] * (bound.ndim - 1))
    reason: Reason = "an intermediate may overflow"  # the float64 computation of the bound overflowed
    too_many_rows = t.reduction != "none" and depth * (c.stored or c.compute).unit_roundoff >= 0.5
    if too_many_rows or (classes - 1) * c.compute.unit_roundoff >= 0.5:
        reason = "a sum has too many terms for the precision of its format"
    elif bounds.may_divide_by_zero:
        reason = "the denominator may be zero"
    else:
        here = infinite if bound.ndim else infinite.any()
        found["a step may multiply zero by infinity"], remaining = remaining & here, remaining & ~here
    found[reason] = found.get(reason, np.zeros_like(remaining)) | remaining
    return {reason: where for reason, where in found.items() if where.any()}
