"""The axes that have words as choices, the size ranges, and the rules that exclude impossible cases.

The choices of the axes `sizes` and `label_smoothing` are in :mod:`crossent.cases.grid`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crossent.cases.values import VALUES
from crossent.choices import DTYPE_NAMES
from crossent.numerics.formats import FORMATS

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_NAMES}
HALF_DTYPES = (torch.float16, torch.bfloat16)
INDEX_TARGETS = {"int64": torch.int64, "uint8": torch.uint8}
# "probabilities" add up to one and have the logits' dtype. "other_float" has probabilities of another dtype, "hard" has
# one-hot rows of floats, and "unnormalised" has numbers of either sign with any sum. "padded" is like "probabilities",
# except that some rows are zeros, as the padding of soft labels.
DENSE_TARGETS = ("probabilities", "other_float", "hard", "unnormalised", "padded")
OTHER_FLOAT = {"float16": "float32", "bfloat16": "float64", "float32": "float64", "float64": "float32"}
# The value of `ignore_index` for each choice. The choice also determines which rows are ignored. 255 is not a class,
# but fits into uint8.
IGNORED = {
    "kept": -100,
    "ignored": 255,
    "ignored_default": -100,
    "ignored_class": 1,
    "ignored_huge": 2**32,
    "ignored_first": -100,  # row 0; Liger-Kernel#678
    "ignored_16th": -100,  # rows 0, 16, 32, …: at these rows, torch ends a block of its sum
    "ignored_all": 255,
    "ignored_minus_one": -1,
    "ignored_minus_two": -2,
    "ignored_zero": 0,  # a class, and false in Python
}
# The memory layouts of a tensor. "transposed" has the axes in reversed order, "class_last" has the class axis last, as
# channels_last does. "window" is a part of a wider tensor, "strided" has every second element of its storage, and
# "offset" starts at the second element of its storage. "expanded" is one entry, expanded to the whole batch. "cropped"
# is a part of a longer tensor along the last axis, as `labels[:, 1:]` or a part of an image.
LAYOUTS = ("contiguous", "transposed", "class_last", "window", "strided", "offset", "expanded", "cropped")
# The choices on each axis whose choices are words. Each axis is an attribute of `Case`. An id always has its dtype,
# values, target and reduction, in this order. On each other axis, the first word is the default, and an id leaves out
# the default. No two of these other axes have a word in common, so an id has the word without the name of the axis.
AXES: dict[str, tuple[str, ...]] = {
    "dtype": tuple(DTYPES),
    "values": tuple(VALUES),
    "target": (*INDEX_TARGETS, *DENSE_TARGETS),
    "reduction": ("mean", "sum", "none"),
    "weight": (
        *("unweighted", "weighted", "weight_decades", "weight_zeros", "weight_negative"),
        # Weights that sum to 0, weights above 10,000, and weights that are all 0.
        *("weight_balanced", "weight_huge", "weight_all_zeros"),
    ),
    "ignored": tuple(IGNORED),
    # The upstream gradient. "scalar" is a random number, and "stride0" is a random number expanded to every row with
    # stride 0. "rows" has a random number for each row, "rows_strided" has these numbers at every second element of the
    # storage, and the numbers of "rows_large" differ by orders of magnitude. "rows_expanded" has random numbers
    # that are expanded along the last dimension, as by `loss.sum(-1)`. "upstream_huge" is a number above 10,000.
    "upstream": (
        *("one", "scalar", "rows", "stride0", "zero", "rows_strided", "rows_large", "rows_expanded", "upstream_huge"),
    ),
    "layout": LAYOUTS,
    "target_layout": tuple(f"target_{layout}" for layout in LAYOUTS if layout != "window"),
    "weight_layout": tuple(f"weight_{layout}" for layout in ("contiguous", "window", "strided", "offset")),
}
# Kernels change their code path with the number of classes and of rows: at the length of a vector, a block, a tile or a
# chunk of the vocabulary. A size range is a range of numbers of classes or rows that ends at one of these limits, or
# lies above all limits.
CLASS_LIMITS = (1, 2, 7, 32, 256, 1024, 4096, 16384, 65535)
ROW_LIMITS = (0, 1, 16, 32, 128, 1024, 4096)


def size_range(number: int, limits: Sequence[int], of: str) -> str:
    """Return the size range of a number of classes, rows or hidden units, as text.

    `limits` has the last number of each range except the highest range, in ascending order. `of` is the word for the
    numbers: "classes", "rows" or "hidden units".

    >>> size_range(521, CLASS_LIMITS, "classes"), size_range(1, ROW_LIMITS, "rows"), size_range(0, ROW_LIMITS, "rows")
    ('257 to 1024 classes', '1 row', 'no rows')
    """
    above = bisect_left(limits, number)
    if above == len(limits):
        return f"more than {limits[-1]} {of}"
    low, high = limits[above - 1] + 1 if above else limits[0], limits[above]
    if low < high:
        return f"{low} to {high} {of}"
    one = {"classes": "1 class", "rows": "1 row", "hidden units": "1 hidden unit"}[of]
    return {0: f"no {of}", 1: one}.get(high, f"{high} {of}")


def by_size_range(numbers: Sequence[int], limits: Sequence[int], of: str) -> dict[str, tuple[int, ...]]:
    """Return a dict from each size range, such as "257 to 1024 classes", to those of `numbers` in this range."""
    found: dict[str, tuple[int, ...]] = {}
    for number in numbers:
        name = size_range(number, limits, of)
        found[name] = (*found.get(name, ()), number)
    return found


# The size range of 33 to 256 classes ends with 255 here: with 256 classes, an ignore_index of 255 would be a class.
CLASS_SIZES = by_size_range(
    (
        *(1, 2, 3, 5, 7, 8, 15, 16, 31, 32, 33, 64, 100, 127, 129, 255),
        *(257, 300, 511, 513, 521, 1000, 1009, 1023, 1024, 1025, 1031, 2047, 2049, 3000, 4096),
        *(4097, 4099, 5000, 8193, 16385, 32000, 50257, 65537, 128256),
    ),
    CLASS_LIMITS,
    "classes",
)
ROW_SIZES = by_size_range(
    (
        *(1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 64, 100, 127, 128, 129, 130, 256, 1000, 1023, 1024),
        *(1025, 1030, 2049, 4095, 4096, 4097, 4100, 6000),
    ),
    ROW_LIMITS,
    "rows",
)
# The most elements of the logits, and of the weight if there are no rows. An id may come from a file that anybody
# wrote. Without this limit, the tensors of the case could take all memory.
MOST_NUMBERS = 2**26
MOST_DIMENSIONS = 25  # some kernels of torch for CUDA have no more, and numpy 1 has at most 32
MOST_TILES = 10**9
SIGNED_WEIGHTS = ("weight_negative", "weight_balanced")
# The upstream gradients that need reduction "none".
OF_ROWS = ("rows", "stride0", "rows_strided", "rows_large", "rows_expanded")


@dataclass(frozen=True)
class Constraint:
    """Impossible combinations of choices on some axes, and the reason.

    Attributes:
        forbids: takes the choices on `axes`, and returns whether their combination is impossible.
    """

    reason: str
    axes: tuple[str, ...]
    forbids: Callable[..., bool]


def _classes(sizes: tuple[int, ...]) -> int:
    return sizes[min(1, len(sizes) - 1)]


CONSTRAINTS = (
    Constraint(
        "a target of class probabilities cannot have ignored rows",
        ("target", "ignored"),
        lambda target, ignored: target in DENSE_TARGETS and ignored != "kept",
    ),
    Constraint(
        "a uint8 target cannot hold this ignore_index; uint8 has 0 to 255",
        ("target", "ignored"),
        lambda target, ignored: target == "uint8" and ignored != "kept" and IGNORED[ignored] not in range(256),
    ),
    Constraint(
        "a uint8 target needs 256 classes or fewer",
        ("target", "sizes"),
        lambda target, sizes: target == "uint8" and _classes(sizes) > 256,
    ),
    Constraint(
        "an ignore_index of 255 must not be a class",
        ("ignored", "sizes"),
        lambda ignored, sizes: ignored in ("ignored", "ignored_all") and _classes(sizes) > 255,
    ),
    Constraint(
        f"the upstream gradients {', '.join(OF_ROWS[:-1])} and {OF_ROWS[-1]} need the reduction none",
        ("reduction", "upstream"),
        lambda reduction, upstream: reduction != "none" and upstream in OF_ROWS,
    ),
    Constraint(
        "the upstream gradient rows_expanded needs 3 dimensions of the logits or more",
        ("upstream", "sizes"),
        lambda upstream, sizes: upstream == "rows_expanded" and len(sizes) < 3,
    ),
    Constraint(
        f"the values {' and '.join(name for name, kind in VALUES.items() if kind.ignored_only)} need ignored rows",
        ("values", "ignored"),
        lambda values, ignored: VALUES[values].ignored_only and ignored == "kept",
    ),
    Constraint(
        "the values overflow the dtype",
        ("values", "dtype"),
        lambda values, dtype: VALUES[values].largest > FORMATS[dtype].largest,
    ),
    Constraint(
        "transposed needs 2 dimensions of the logits or more, and class_last needs 3",
        ("layout", "sizes"),
        lambda layout, sizes: (
            layout in ("transposed", "class_last") and len(sizes) < (2 if layout == "transposed" else 3)
        ),
    ),
    Constraint(
        "target_transposed needs 2 dimensions of the target or more, and target_class_last needs 3",
        ("target_layout", "sizes", "target"),
        lambda layout, sizes, target: (
            layout in ("target_transposed", "target_class_last")
            and len(sizes) - (target in INDEX_TARGETS) < (2 if layout == "target_transposed" else 3)
        ),
    ),
    Constraint(
        "cropped needs 3 dimensions of the logits or more",
        ("layout", "sizes"),
        lambda layout, sizes: layout == "cropped" and len(sizes) < 3,
    ),
    Constraint(
        "target_cropped needs 2 dimensions of class indices or more, and 3 of probabilities",
        ("target_layout", "sizes"),
        lambda layout, sizes: layout == "target_cropped" and len(sizes) < 3,
    ),
    Constraint(
        "an expanded tensor needs a batch of 1 entry or more",
        ("layout", "sizes"),
        lambda layout, sizes: layout == "expanded" and (len(sizes) < 2 or sizes[0] == 0),
    ),
    Constraint(
        "an expanded tensor needs a batch of 1 entry or more",
        ("target_layout", "sizes"),
        lambda layout, sizes: layout == "target_expanded" and (len(sizes) < 2 or sizes[0] == 0),
    ),
    Constraint(
        "an expanded target has all rows ignored or none",
        ("target_layout", "ignored"),
        lambda layout, ignored: layout == "target_expanded" and ignored not in ("kept", "ignored_all"),
    ),
)


def why_forbidden(choices: Mapping[str, Any], constraints: Iterable[Constraint] = CONSTRAINTS) -> str | None:
    """Return the reason why these choices are impossible together, or None.

    A constraint on an axis that `choices` lacks forbids nothing.
    """
    for constraint in constraints:
        chosen = [choices[axis] for axis in constraint.axes if axis in choices]
        if len(chosen) == len(constraint.axes) and constraint.forbids(*chosen):
            return constraint.reason
    return None


# The rules that each case must fulfil besides the constraints, by the message about a case that breaks the rule. Each
# function returns whether a Case fulfils the rule. The type is Any, because this module cannot import Case.
RULES: dict[str, Callable[[Any], bool]] = {
    "sizes must be 0 or more": lambda case: min(case.sizes, default=-1) >= 0,
    f"the logits must have at most {MOST_NUMBERS:,} numbers": lambda case: math.prod(case.sizes) <= MOST_NUMBERS,
    f"the product of the sizes other than 0 must be at most {MOST_NUMBERS:,}": lambda case: (  # the weight's memory
        math.prod(size for size in case.sizes if size) <= MOST_NUMBERS
    ),
    f"the logits must have at most {MOST_DIMENSIONS} dimensions": lambda case: len(case.sizes) <= MOST_DIMENSIONS,
    "the number of classes must be 1 or more": lambda case: case.classes > 0,
    "label_smoothing must be from 0 to 1": lambda case: 0 <= case.label_smoothing <= 1,
    "a weight_layout needs a weight": lambda case: (
        case.weight != "unweighted" or case.weight_layout == "weight_contiguous"
    ),
    "the grade must be A or B": lambda case: case.grade in ("", "A", "B"),
    f"tiled must be from 1 to {MOST_TILES:,}": lambda case: 1 <= case.tiled <= MOST_TILES,
    "tiles need a batch with 1 row or more": lambda case: case.tiled == 1 or (len(case.sizes) > 1 and case.rows > 0),
    "tiles need class indices, layout contiguous or class_last, and target_contiguous": lambda case: (
        case.tiled == 1
        or (
            case.target in INDEX_TARGETS
            and case.layout in ("contiguous", "class_last")
            and case.target_layout == "target_contiguous"
        )
    ),
    "tiles cannot have the upstream gradients rows_strided, rows_large or rows_expanded": lambda case: (
        case.tiled == 1 or case.upstream not in ("rows_strided", "rows_large", "rows_expanded")
    ),
    "tiles with a reduction cannot have a weight or label_smoothing": lambda case: (
        case.tiled == 1 or case.reduction == "none" or (case.weight == "unweighted" and not case.label_smoothing)
    ),
    "the name may have letters, digits, _ and -": lambda case: re.fullmatch(r"[\w-]*", case.name, re.ASCII) is not None,
}
