"""Edges: cases that stand alone, where something ends: a vector, a block, a format, a batch, or torch's own code.

The name of each is that of its issue, or says what breaks. Their numbers are all that counts; how options meet is for
:mod:`crossent.cases.grid`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.corpus import bugs

# Vocabularies of language models; 128256 and 129920 are no multiples of a tile of 1024 (verl#2899).
VOCABULARIES = (32000, 50257, 128256, 129920, 151936)


def _powers(exponents: Iterable[int]) -> tuple[int, ...]:
    """One less than these powers of two, each of them, and one more: where vectors, blocks and tiles end."""
    return tuple(sorted({2**k + by for k in exponents for by in (-1, 0, 1)} - {0}))


def _wide(dtypes: Iterable[str], widths: Iterable[int], rows: int = 4) -> tuple[Case, ...]:
    """Cases of these many classes; four rows are a normal one, a peaked one, a flat one and one far below zero.

    Columns beyond the last class hide from flat rows, and an accumulator that is too short from all others.
    """
    return tuple(
        Case(dtype, (rows, width), "assorted", reduction="none", upstream="rows", name="width")
        for dtype in dtypes
        for width in widths
    )


# Words of an axis, or sizes, that meet no others in the grid.
_ALONE = (
    # A class that is false where Python asks for its truth.
    Case("float32", weight="weighted", ignored="ignored_zero", label_smoothing=0.1, name="ignored_zero"),
    Case("bfloat16", (3, 5, 4), reduction="none", ignored="ignored_zero", upstream="rows", name="ignored_zero"),
    Case("float64", (17, 3), "nan_ignored", reduction="sum", ignored="ignored_zero", name="ignored_zero"),
    # A smoothing that is hardly any, and one that leaves hardly anything of the target.
    Case("float32", weight="weighted", ignored="ignored_default", label_smoothing=0.001, name="smoothing"),
    Case("float64", (3, 5, 4), target="probabilities", reduction="sum", label_smoothing=0.001, name="smoothing"),
    Case("float64", reduction="none", ignored="ignored", label_smoothing=0.9, upstream="rows", name="smoothing"),
    Case("float32", target="probabilities", weight="weighted", label_smoothing=0.9, name="smoothing"),
    # Upstream gradients with memory between them, and over orders of magnitude.
    Case("float32", reduction="none", weight="weighted", upstream="rows_strided", name="upstream"),
    Case("float64", (3, 5, 4), target="probabilities", reduction="none", upstream="rows_strided", name="upstream"),
    Case("bfloat16", reduction="none", upstream="rows_large", name="upstream"),
    Case("float32", (3, 5, 4), target="probabilities", reduction="none", upstream="rows_large", name="upstream"),
    # Weights in memory that they share with others.
    Case("float32", weight="weighted", weight_layout="weight_strided", name="weight_layout"),
    Case("float64", (3, 5, 4), weight="weighted", weight_layout="weight_window", name="weight_layout"),
    Case("bfloat16", reduction="sum", weight="weighted", weight_layout="weight_offset", name="weight_layout"),
    Case(
        *("float32", (7, 5), "normal", "probabilities", "none", "weighted"),
        label_smoothing=0.1,
        upstream="rows",
        weight_layout="weight_strided",
        name="weight_layout",
    ),
    # Axes of one that are not the classes, and one axis more.
    Case("float32", (2, 5, 1), reduction="none", upstream="rows", name="axes"),
    Case("float32", (1, 5, 4), reduction="none", upstream="rows", name="axes"),
    Case("float64", (1, 5), reduction="none", upstream="rows", name="axes"),
    Case("float64", (2, 5, 1), target="probabilities", weight="weighted", name="axes"),
    Case("bfloat16", (1, 5, 4), ignored="ignored_first", name="axes"),
    Case("float32", (2, 3, 2, 1, 2, 3), reduction="none", weight="weighted", upstream="rows", name="axes"),
    Case("float64", (2, 3, 1, 2, 2, 3), target="probabilities", name="axes"),
    # As many rows as bfloat16, and float16, have no number for, and weights whose sum neither has.
    Case("float32", (1001, 3), name="denominator"),
    Case("float32", (1001, 3), weight="weighted", name="denominator"),
    Case("float32", (4001, 2), name="denominator"),
    Case("float64", (1001, 3), weight="weighted", ignored="ignored_default", name="denominator"),
)


def _policy(values: str = "normal", target: str = "int64", reduction: str = "mean", **more: object) -> Case:
    sizes = {"sizes": (6, 4), **more}
    return Case("float32", values=values, target=target, reduction=reduction, name="policy", **sizes)  # type: ignore[arg-type]


# The questions, in the words in which a change of their answers is told.
POLICIES = {
    "mean over no rows": _policy(sizes=(0, 4)),
    "sum over no rows": _policy(sizes=(0, 4), reduction="sum"),
    "mean over probabilities of no rows": _policy(sizes=(0, 4), target="probabilities"),
    "mean over rows that are all ignored": _policy(ignored="ignored_all"),
    "weighted mean over rows that are all ignored": _policy(ignored="ignored_all", weight="weighted"),
    "sum over rows that are all ignored": _policy(ignored="ignored_all", reduction="sum"),
    "rows that are all ignored, unreduced": _policy(ignored="ignored_all", reduction="none", upstream="rows"),
    "NaN in an ignored row": _policy("nan_ignored", ignored="ignored_first"),
    "-inf in an ignored row": _policy("inf_ignored", ignored="ignored_first"),
    "a NaN logit": _policy("nan", reduction="sum"),
    "a logit of +inf": _policy("positive_inf", reduction="sum"),
    "a row of -inf alone": _policy("inf_rows", reduction="sum"),
    "-inf on a class that is not the true one": _policy("inf_off_target", reduction="sum"),
    "-inf on the true class": _policy("inf_on_target", reduction="sum"),
    "-inf with label_smoothing": _policy("inf_off_target", reduction="sum", label_smoothing=0.1),
    "-inf on the true class with label_smoothing 1": _policy("inf_on_target", reduction="sum", label_smoothing=1.0),
    "-inf where a soft target is 0": _policy("inf_off_target", target="hard", reduction="sum"),
    "uint8 class indices": _policy(target="uint8"),
    "uint8 class indices with further dimensions": _policy(sizes=(3, 4, 5), target="uint8"),
    "uint8 class indices with weight and label_smoothing": _policy(
        target="uint8", weight="weighted", label_smoothing=0.1
    ),
    "probabilities that add up to anything": _policy(target="unnormalised"),
    "probabilities of another dtype": _policy(target="other_float"),
    "an ignore_index that is a class": _policy(ignored="ignored_class"),
    "an ignore_index beyond 32 bits": _policy(ignored="ignored_huge"),
}
POLICY_NAMES = {case.id: name for name, case in POLICIES.items()}
# What costs hardly anything.
QUICK = (
    *POLICIES.values(),
    *_ALONE,
    # Sums of rows held in half precision: their block is not closed where the row is ignored that should close it.
    Case("bfloat16", (1000, 10), ignored="ignored_16th", name="half_partial_sums"),
    # A row whose exponentials add up to more than float16 holds.
    Case("float16", (2, 65520), "flat", name="float16_row_sum"),
    # p = 0.999: log p vanishes where the sum 1.001 is rounded to half precision, which is no better than zeros.
    Case("bfloat16", (4, 2), "sure", name="half_sure", grade="A"),
    Case("float16", (4, 2), "sure", name="half_sure", grade="A"),
    *_wide(("bfloat16", "float32"), (*_powers(range(11)), 781)),
    # Vectors of positions and some that are left over, each row with a maximum far from its neighbours'.
    *(Case(dtype, (2, 3, 67), "row_offsets", reduction="none", upstream="rows", name="positions") for dtype in DTYPES),
    # The number of rows: none, one, as many as classes; and one class, of one row and of several.
    Case("float32", (0, 5), weight="weighted", label_smoothing=0.1, name="rows"),
    Case("bfloat16", (0, 5), target="probabilities", reduction="sum", name="rows"),
    Case("float32", (1, 5), weight="weighted", name="rows"),
    Case("bfloat16", (1, 5), target="probabilities", name="rows"),
    Case("float32", (17, 17), ignored="ignored_first", name="rows"),
    Case("float64", (2, 2, 2), reduction="none", upstream="rows", name="rows"),
    Case("float32", (1, 1), name="rows"),
    Case("float32", (17, 1), target="unnormalised", weight="weighted", name="rows"),
)
# What takes seconds, all together.
NORMAL = (
    # The number of rows, beyond float16's 65504: the denominator of the mean overflows.
    Case("float16", (70000, 2), "flat", name="pytorch-85791"),
    Case("float16", (70000, 3), name="pytorch-85791"),
    Case("float16", (65504, 2), "flat", name="rows"),  # the last that fits
    Case("float16", (65520, 2), "flat", name="pytorch-29429"),  # the first that does not
    Case("bfloat16", (65520, 2), "flat", name="rows"),
    Case("float32", (70000, 2), weight="weighted", name="rows"),
    Case("float32", (131_072, 3), ignored="ignored_16th", name="partial_sums"),  # in float32 too, with enough of them
    Case("bfloat16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("bfloat16", (50000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (50000, 10), name="half_partial_sums"),
    # The last row that adds up to what float16 holds.
    Case("float16", (2, 65519), "flat", name="float16_row_sum"),
    *_wide(("float16", "float64"), (*_powers(range(11)), 781)),
    *_wide(DTYPES, _powers(range(11, 13))),
    *_wide(("float32",), _powers(range(13, 17))),
    *_wide(("bfloat16", "float16", "float64"), (2**13 + 1, 2**15 - 1)),
    *_wide(("bfloat16",), (50257, 129920, 151936), rows=2),
    *_wide(("float32",), (50257,), rows=2),
    *_wide(("float16",), (65519, 65520), rows=2),
)
# What takes minutes, and up to 7 GiB of memory.
THOROUGH = (
    *_wide(("bfloat16", "float64"), (*_powers(range(13, 17)), *VOCABULARIES, 65519, 65520)),
    *_wide(("float32",), (*VOCABULARIES, 65519, 65520)),
    # In float16 a flat row is beyond the format from 65520 classes on, which float16_row_sum is about.
    *_wide(("float16",), (*_powers(range(13, 16)), 2**16 - 17)),
    *_wide(("float16",), (2**16 - 1, 2**16, 2**16 + 1, *VOCABULARIES), rows=2),
    # A block of rows that is not closed shows in float32 too, once there are enough of them.
    Case("float32", (4_194_304, 3), ignored="ignored_16th", name="partial_sums"),
    Case("float64", (1_000_000, 2), ignored="ignored_16th", name="partial_sums"),
    Case("float32", (10_000_000, 2), name="rows"),
    Case("bfloat16", (2_000_000, 2), name="rows"),
    Case("float32", (70000, 2), reduction="none", upstream="rows", name="rows"),
)
EDGES = (*QUICK, *NORMAL)
# Sums over millions of rows, in little memory: a block that is not closed shows in float32 too.
MANY_ROWS = (
    # 75 million of them (pytorch#55657). It is judged of who promises more than any order of summation.
    Case("float32", (1, 2, 768, 768), tiled=128, name="pytorch-55657"),
    Case("float32", (64, 3), ignored="ignored_16th", tiled=65536, name="partial_sums"),
    Case("bfloat16", (64, 3), ignored="ignored_16th", tiled=1024, name="half_partial_sums"),
)


def edges(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0, level: str = "normal") -> Iterator[Case]:
    """The edges of these dtypes up to a level, in numbers of their own for each seed.

    quick: well below a second for a subject. normal: seconds. thorough: minutes, and several GiB.

    Example:
        >>> [case.id for case in edges(["float64"], level="quick")][-1]
        'rows/float64-2x2x2-normal-int64-none-rows'
    """
    chosen = dict.fromkeys({"quick": QUICK, "normal": EDGES, "thorough": (*EDGES, *THOROUGH)}[level])
    return (case.seeded(seed) for dtype in dtypes for case in chosen if case.dtype == dtype)


def large_cases(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """The large cases of these dtypes, those of the corpus first, in numbers of their own for each seed."""
    known = [case for bug in bugs() for case in bug.cases if case.tiled > 1]
    return (case.seeded(seed) for case in (*known, *MANY_ROWS) if case.dtype in dtypes)
