"""Cases of a linear cross-entropy at limits: ends of chunks, cancelling dot products, unusual options and layouts.

Some functions compute chunks of rows or classes. Their bugs show in three places: at the end of a chunk, in a chunk of
ignored rows, and in a sum over many chunks in a format with few bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from crossent.cases.axes import DTYPES
from crossent.cases.linear.case import LinearCase


def _case(
    sizes: tuple[int, int], values: str = "normal", target: str = "int64", reduction: str = "mean", **more: object
) -> LinearCase:
    return LinearCase("float32", sizes, values, target, reduction, **more)  # type: ignore[arg-type]


# Cases in every dtype.
_SMALL = (
    # A plain call; all options at once; small integers, whose logits are exact in every format.
    _case((7, 5)),
    _case((7, 5), "normal", "int64", "sum", bias="bias"),
    _case(
        *((7, 5), "confident", "int64", "none"),
        weight="weighted",
        ignored="ignored_first",
        label_smoothing=0.1,
        upstream="rows",
        bias="bias",
    ),
    _case((7, 5), "integers", ignored="ignored", bias="bias"),
    # Hidden states of one number, of three numbers, and of as many numbers as there are classes.
    _case((1, 2), hidden=1),
    _case((17, 3), reduction="sum", ignored="ignored_default", bias="bias", hidden=3),
    _case((17, 17), "flat", reduction="none", upstream="rows", hidden=17),
    # More hidden units than one block of a GPU has threads, as in most language models.
    _case((2, 3), reduction="none", upstream="rows", bias="bias", hidden=4099),
    # Class probabilities.
    _case((7, 5), target="probabilities", weight="weighted", bias="bias"),
    _case((7, 5), target="hard", reduction="sum", label_smoothing=0.1),
    # No rows, one row, one class, and only ignored rows.
    _case((0, 5), bias="bias"),
    _case((0, 5), reduction="sum"),
    _case((1, 5), bias="bias"),
    _case((7, 1), reduction="none", upstream="rows", bias="bias"),
    _case((7, 5), ignored="ignored_all", bias="bias"),
    _case((7, 5), reduction="sum", ignored="ignored_all", bias="bias"),
    # Dot products that lose digits, and logits far from zero.
    _case((17, 3), "cancelling", reduction="sum", bias="bias_cancelling", hidden=64),
    _case((7, 5), "large", upstream="scalar"),
    _case((7, 5), "common_offset", reduction="none", upstream="rows_large", bias="bias"),
    _case((7, 5), "tiny", weight="weight_zeros"),
    _case((7, 5), weight="weight_all_zeros", bias="bias"),
    _case((17, 3), "decades", upstream="upstream_huge", hidden=31),
    _case((7, 5), "positive", weight="weight_decades", ignored="ignored_class"),
    # Memory layouts, and a weight that shares its storage with the hidden states.
    _case((7, 5), reduction="none", upstream="stride0", layout="transposed", linear_layout="linear_transposed"),
    _case((7, 5), upstream="scalar", layout="strided", linear_layout="linear_strided", target_layout="target_strided"),
    _case((7, 5), reduction="none", upstream="rows_strided", layout="window", linear_layout="linear_window"),
    _case((17, 3), reduction="sum", bias="bias", linear_layout="linear_tied"),
    # Class weights in a part of a larger storage, and values of ignore_index that code may use as a class or a marker.
    _case(
        *((7, 5), "normal", "int64", "sum"),
        weight="weight_balanced",
        ignored="ignored_minus_one",
        weight_layout="weight_strided",
    ),
    _case((7, 5), weight="weight_huge", ignored="ignored_minus_two", weight_layout="weight_window"),
    _case(
        *((7, 5), "normal", "int64", "none"),
        weight="weighted",
        ignored="ignored_zero",
        upstream="rows",
        weight_layout="weight_offset",
    ),
    # An upstream gradient of 0.
    _case((7, 5), upstream="zero", bias="bias"),
)
# Cases in every dtype but float64, whose exact values take long.
_CHUNKS = (
    # Sizes at which blocks of classes and of hidden units end early.
    _case((64, 257), bias="bias", hidden=31),
    _case((33, 129), "confident", reduction="none", upstream="rows", hidden=129),
    # Exponentials overflow if only the largest logit of the first classes is subtracted.
    _case((33, 129), "large", hidden=31),
    # Loss scaling: float16 can store some numbers of the gradient only after the product with the upstream gradient.
    _case((33, 1000), "decades", upstream="upstream_huge", bias="bias"),
    # All rows of the first chunk are ignored, so the denominator counts only the rows of the other chunks.
    _case((257, 100), ignored="ignored_first_chunk", bias="bias"),
    _case((130, 67), reduction="sum", ignored="ignored_16th", hidden=64),
    # A vocabulary of a language model.
    _case((2, 32000), "confident"),
)
# Cases in float32: more classes than 16 bits can count, and more rows than the covering arrays have.
_LARGE = (
    _case((1, 65539), reduction="none", upstream="rows", bias="bias", hidden=2),
    _case((4099, 3), reduction="none", upstream="rows", bias="bias", hidden=2),
)
# Cases in half precision, with enough rows to show the error of a sum over chunks in the dtype.
_MANY_ROWS = (
    _case((4096, 16)),
    _case((1024, 64), reduction="sum", bias="bias"),
    _case((1024, 64), reduction="none", upstream="rows", ignored="ignored_16th"),
    _case((512, 512)),
    # The sum of the log-probabilities of all classes and rows overflows float16.
    _case((8, 1000), label_smoothing=0.1),
)


def linear_edges(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[LinearCase]:
    """Yield the cases of this module with these dtypes and this seed."""
    for dtype in dtypes:
        larger = () if dtype == "float64" else (*_CHUNKS, *(_LARGE if dtype == "float32" else _MANY_ROWS))
        yield from (replace(case, dtype=dtype, seed=seed) for case in (*_SMALL, *larger))
