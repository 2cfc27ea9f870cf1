"""Axes: what can be chosen for a case, and what cannot stand together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from crossent.cases.values import VALUES
from crossent.numerics.formats import FORMATS

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
INDEX_TARGETS = {"int64": torch.int64, "uint8": torch.uint8}
# Probabilities that add up to one, in the logits' dtype and in another; one class with all of it, in floats; numbers of
# either sign that add up to anything.
DENSE_TARGETS = ("probabilities", "other_float", "hard", "unnormalised")
OTHER_FLOAT = {"float16": "float32", "bfloat16": "float64", "float32": "float64", "float64": "float32"}
# What `ignore_index` is, and how many rows have it. 255 is no class, but fits into uint8.
IGNORED = {
    "kept": -100,
    "ignored": 255,
    "ignored_default": -100,
    "ignored_class": 1,
    "ignored_huge": 2**32,
    "ignored_first": -100,  # row 0; Liger-Kernel#678
    "ignored_16th": -100,  # rows 0, 16, 32, …: torch's blocks of rows end there
    "ignored_all": 255,
    "ignored_minus_one": -1,
    "ignored_zero": 0,  # a class, and false
}
# How a tensor lies in memory: as it is read; backwards; with the class axis last, as channels_last has it; a window of
# a wider one; every second element; one element into its storage; the same entry for the whole batch.
LAYOUTS = ("contiguous", "transposed", "class_last", "window", "strided", "offset", "expanded")
# The choices that there are, for each attribute of a case that is one of a few words. All words differ, so an id needs
# no more than the word. The first of a list is the usual one.
AXES: dict[str, tuple[str, ...]] = {
    "dtype": tuple(DTYPES),
    "values": tuple(VALUES),
    "target": (*INDEX_TARGETS, *DENSE_TARGETS),
    "reduction": ("mean", "sum", "none"),
    "weight": ("unweighted", "weighted", "weight_decades", "weight_zeros", "weight_negative"),
    "ignored": tuple(IGNORED),
    # The upstream gradient: 1, one number, a number for each row, one number at every row with stride 0, 0; a number
    # for each row at every second place in memory; one for each that may be large or small.
    "upstream": ("one", "scalar", "rows", "stride0", "zero", "rows_strided", "rows_large"),
    "layout": LAYOUTS,
    "target_layout": tuple(f"target_{layout}" for layout in LAYOUTS if layout != "window"),
    "weight_layout": tuple(f"weight_{layout}" for layout in ("contiguous", "window", "strided", "offset")),
}
OF_ROWS = ("rows", "stride0", "rows_strided", "rows_large")  # upstream gradients that need a loss for each row


@dataclass(frozen=True)
class Constraint:
    """What cannot stand together: `axes` are the attributes of a case that `forbids` looks at."""

    reason: str
    axes: tuple[str, ...]
    forbids: Callable[..., bool]


def _classes(sizes: tuple[int, ...]) -> int:
    return sizes[min(1, len(sizes) - 1)]


CONSTRAINTS = (
    Constraint(
        "class probabilities have no ignored rows",
        ("target", "ignored"),
        lambda target, ignored: target in DENSE_TARGETS and ignored != "kept",
    ),
    Constraint(
        "uint8 holds 0 to 255",
        ("target", "ignored"),
        lambda target, ignored: target == "uint8" and ignored != "kept" and IGNORED[ignored] not in range(256),
    ),
    Constraint(
        "uint8 holds 0 to 255",
        ("target", "sizes"),
        lambda target, sizes: target == "uint8" and _classes(sizes) > 256,
    ),
    Constraint(
        "255 is a class",
        ("ignored", "sizes"),
        lambda ignored, sizes: ignored in ("ignored", "ignored_all") and _classes(sizes) > 255,
    ),
    Constraint(
        "a reduced loss has one upstream gradient",
        ("reduction", "upstream"),
        lambda reduction, upstream: reduction != "none" and upstream in OF_ROWS,
    ),
    Constraint(
        "the values are about ignored rows",
        ("values", "ignored"),
        lambda values, ignored: VALUES[values].ignored_only and ignored == "kept",
    ),
    Constraint(
        "the values overflow the dtype",
        ("values", "dtype"),
        lambda values, dtype: VALUES[values].largest > FORMATS[dtype].largest,
    ),
    Constraint(
        "one axis lies in memory in one way",
        ("layout", "sizes"),
        lambda layout, sizes: (
            layout in ("transposed", "class_last") and len(sizes) < (2 if layout == "transposed" else 3)
        ),
    ),
    Constraint(
        "one axis lies in memory in one way",
        ("target_layout", "sizes", "target"),
        lambda layout, sizes, target: (
            layout in ("target_transposed", "target_class_last")
            and len(sizes) - (target in INDEX_TARGETS) < (2 if layout == "target_transposed" else 3)
        ),
    ),
    Constraint(
        "no batch to repeat an entry of",
        ("layout", "sizes"),
        lambda layout, sizes: layout == "expanded" and (len(sizes) < 2 or sizes[0] == 0),
    ),
    Constraint(
        "no batch to repeat an entry of",
        ("target_layout", "sizes"),
        lambda layout, sizes: layout == "target_expanded" and (len(sizes) < 2 or sizes[0] == 0),
    ),
    Constraint(
        "the same entry everywhere ignores all rows or none",
        ("target_layout", "ignored"),
        lambda layout, ignored: layout == "target_expanded" and ignored not in ("kept", "ignored_all"),
    ),
)


def broken(choices: Mapping[str, Any]) -> str | None:
    """The reason of a constraint that these choices break, all of a case's or some of them, or None."""
    for constraint in CONSTRAINTS:
        chosen = [choices[axis] for axis in constraint.axes if axis in choices]
        if len(chosen) == len(constraint.axes) and constraint.forbids(*chosen):
            return constraint.reason
    return None
