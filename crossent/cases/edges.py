"""Cases at limits of sizes and number formats, for special code paths in torch, or with results that torch decides.

The name of a case is a GitHub issue, such as `pytorch-55657`, or says what the case tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.corpus import bugs

# Vocabulary sizes of language models. None is a multiple of 1024, a common tile width (verl#2899).
VOCABULARIES = (32000, 50257, 128256, 129920, 151936)


def _powers(exponents: Iterable[int]) -> tuple[int, ...]:
    """Return sizes near the ends of a kernel's blocks: 2^k - 1, 2^k and 2^k + 1 for each exponent k."""
    return tuple(sorted({2**k + by for k in exponents for by in (-1, 0, 1)} - {0}))


def _wide(dtypes: Iterable[str], widths: Iterable[int], rows: int = 4) -> tuple[Case, ...]:
    """Return a case with the values "assorted" for each dtype and each number of classes in `widths`."""
    # The third row is flat, and reveals a narrow accumulator. The others reveal a read beyond the last class.
    return tuple(
        Case(dtype, (rows, width), "assorted", reduction="none", upstream="rows", name="width")
        for dtype in dtypes
        for width in widths
    )


# Choices and sizes that the grid does not have.
_ALONE = (
    # ignore_index=0, which is a class and is false in Python.
    Case("float32", weight="weighted", ignored="ignored_zero", label_smoothing=0.1, name="ignored_zero"),
    Case("bfloat16", (3, 5, 4), reduction="none", ignored="ignored_zero", upstream="rows", name="ignored_zero"),
    Case("float64", (17, 3), "nan_ignored", reduction="sum", ignored="ignored_zero", name="ignored_zero"),
    # A negative ignore_index that is neither the default, -100, nor -1, which in Python is the last class.
    Case("float32", ignored="ignored_minus_two", name="ignored_minus_two"),
    Case(
        *("float64", (3, 5, 4), "normal", "int64", "none", "weighted", "ignored_minus_two"),
        label_smoothing=0.1,
        upstream="rows",
        name="ignored_minus_two",
    ),
    # Numbers that people write, with -0.0.
    *(
        Case(dtype, sizes, "decimals", reduction="none", upstream="rows", name="decimals")
        for dtype, sizes in (("bfloat16", (3, 5, 4)), ("float16", (7, 5)), ("float32", (7, 5)), ("float64", (17, 3)))
    ),
    Case("float32", (17, 3), "decimals", "probabilities", name="decimals"),
    # A label_smoothing close to 0, one close to 1, and one between the values of the grid.
    Case("float32", label_smoothing=0.05, name="smoothing"),
    Case("bfloat16", target="probabilities", reduction="sum", label_smoothing=0.05, name="smoothing"),
    Case("float32", weight="weighted", ignored="ignored_default", label_smoothing=0.001, name="smoothing"),
    Case("float64", (3, 5, 4), target="probabilities", reduction="sum", label_smoothing=0.001, name="smoothing"),
    Case("float64", reduction="none", ignored="ignored", label_smoothing=0.9, upstream="rows", name="smoothing"),
    Case("float32", target="probabilities", weight="weighted", label_smoothing=0.9, name="smoothing"),
    # A strided upstream gradient, or an upstream gradient whose entries differ by orders of magnitude.
    Case("float32", reduction="none", weight="weighted", upstream="rows_strided", name="upstream"),
    Case("float64", (3, 5, 4), target="probabilities", reduction="none", upstream="rows_strided", name="upstream"),
    Case("bfloat16", reduction="none", upstream="rows_large", name="upstream"),
    Case("float32", (3, 5, 4), target="probabilities", reduction="none", upstream="rows_large", name="upstream"),
    # An upstream gradient with a stride of 0 in one dimension: the loss of each row is summed along this dimension.
    Case("float32", (3, 5, 4), reduction="none", upstream="rows_expanded", name="upstream"),
    Case("bfloat16", (2, 5, 3, 2), target="probabilities", reduction="none", upstream="rows_expanded", name="upstream"),
    # The upstream gradient times the weight overflows float16, but the gradient does not.
    Case("float16", (64, 50), "flat", "int64", "none", "weight_decades", upstream="rows_large", name="upstream"),
    # An upstream gradient above 10,000.
    Case("float32", upstream="upstream_huge", name="upstream"),
    Case("float16", (3, 5, 4), reduction="none", upstream="upstream_huge", name="upstream"),
    Case("float64", target="probabilities", reduction="sum", upstream="upstream_huge", name="upstream"),
    # A weighted mean without ignored rows, which also tests a loss that does not support ignored rows.
    *(Case(dtype, weight="weighted", name="weighted_mean") for dtype in DTYPES),
    # Weights that sum to 0, and weights above 10,000.
    Case("float32", reduction="none", weight="weight_balanced", upstream="rows", name="weights"),
    Case("float64", (3, 5, 4), target="probabilities", reduction="sum", weight="weight_balanced", name="weights"),
    Case("float32", weight="weight_huge", label_smoothing=0.1, name="weights"),
    Case("bfloat16", reduction="none", weight="weight_huge", upstream="rows", name="weights"),
    # Weights that are all 0: the mean is 0/0, without and with label_smoothing, and with ignored rows.
    Case("float32", weight="weight_all_zeros", name="weights"),
    Case("bfloat16", (3, 5, 4), "normal", "int64", "mean", "weight_all_zeros", "ignored_default", 0.1, name="weights"),
    # Class probabilities with rows of zeros, as the padding of soft labels. The mean counts these rows too.
    Case("float32", target="padded", name="target"),
    Case("float64", (3, 5, 4), target="padded", weight="weighted", label_smoothing=0.1, name="target"),
    # A batch whose rows all have the same class.
    Case("float32", target_layout="target_expanded", name="target"),
    Case("bfloat16", reduction="none", target_layout="target_expanded", upstream="rows", name="target"),
    # A part of a longer tensor along the last axis. The last axis has the stride 1, but the tensor is not contiguous.
    Case("float32", (2, 5, 3, 2), reduction="none", upstream="rows", layout="cropped", name="cropped"),
    Case("float64", (3, 5, 4), weight="weighted", target_layout="target_cropped", name="cropped"),
    Case("bfloat16", (2, 5, 3, 2), target_layout="target_cropped", layout="cropped", name="cropped"),
    Case("float32", (3, 5, 4), "normal", "probabilities", target_layout="target_cropped", name="cropped"),
    # Weights that are views of a larger tensor.
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
    # Axes of size 1 other than the class axis, or more axes than in the grid.
    Case("float32", (2, 3, 1, 2, 1, 2, 1, 2), reduction="none", weight="weighted", upstream="rows", name="axes"),
    Case("float64", (2, 3, 1, 2, 1, 2, 1, 2), target="probabilities", name="axes"),
    Case("float32", (2, 5, 1), reduction="none", upstream="rows", name="axes"),
    Case("float32", (1, 5, 4), reduction="none", upstream="rows", name="axes"),
    Case("float64", (1, 5), reduction="none", upstream="rows", name="axes"),
    Case("float64", (2, 5, 1), target="probabilities", weight="weighted", name="axes"),
    Case("bfloat16", (1, 5, 4), ignored="ignored_first", name="axes"),
    Case("float32", (2, 3, 2, 1, 2, 3), reduction="none", weight="weighted", upstream="rows", name="axes"),
    Case("float64", (2, 3, 1, 2, 2, 3), target="probabilities", name="axes"),
    # Numbers of rows that bfloat16 or float16 cannot represent, or weights whose sum neither can represent.
    Case("float32", (1001, 3), name="denominator"),
    Case("float32", (1001, 3), weight="weighted", name="denominator"),
    Case("float32", (4001, 2), name="denominator"),
    Case("float64", (1001, 3), weight="weighted", ignored="ignored_default", name="denominator"),
)


def _policy(values: str = "normal", target: str = "int64", reduction: str = "mean", **more: object) -> Case:
    sizes = {"sizes": (6, 4), **more}
    return Case("float32", values=values, target=target, reduction=reduction, name="policy", **sizes)  # type: ignore[arg-type]


# Cases whose result follows a decision of torch and not the formula. `crossent diff` prints the name of the decision
# when the result changes.
POLICIES = {
    "mean over no rows": _policy(sizes=(0, 4)),
    "sum over no rows": _policy(sizes=(0, 4), reduction="sum"),
    "mean over no rows, with class probabilities": _policy(sizes=(0, 4), target="probabilities"),
    "mean over rows that are all ignored": _policy(ignored="ignored_all"),
    "weighted mean over rows that are all ignored": _policy(ignored="ignored_all", weight="weighted"),
    "sum over rows that are all ignored": _policy(ignored="ignored_all", reduction="sum"),
    "unreduced loss of rows that are all ignored": _policy(ignored="ignored_all", reduction="none", upstream="rows"),
    "NaN in an ignored row": _policy("nan_ignored", ignored="ignored_first"),
    "-inf in an ignored row": _policy("inf_ignored", ignored="ignored_first"),
    "a NaN logit": _policy("nan", reduction="sum"),
    "a logit of +inf": _policy("positive_inf", reduction="sum"),
    "a row whose logits are all -inf": _policy("inf_rows", reduction="sum"),
    "-inf on a class that is not the true one": _policy("inf_off_target", reduction="sum"),
    "-inf on the true class": _policy("inf_on_target", reduction="sum"),
    "-inf with label_smoothing": _policy("inf_off_target", reduction="sum", label_smoothing=0.1),
    "-inf on the true class with label_smoothing 1": _policy("inf_on_target", reduction="sum", label_smoothing=1.0),
    "-inf where a class probability is 0": _policy("inf_off_target", target="hard", reduction="sum"),
    "uint8 class indices": _policy(target="uint8"),
    "uint8 class indices with further dimensions": _policy(sizes=(3, 4, 5), target="uint8"),
    "uint8 class indices with weight and label_smoothing": _policy(
        target="uint8", weight="weighted", label_smoothing=0.1
    ),
    "a dense target of numbers with any sign and sum": _policy(target="unnormalised"),
    "probabilities of another dtype": _policy(target="other_float"),
    "an ignore_index that is a class": _policy(ignored="ignored_class"),
    "an ignore_index beyond 32 bits": _policy(ignored="ignored_huge"),
}
POLICY_NAMES = {case.id: name for name, case in POLICIES.items()}
# The cases of level quick. For one subject, these cases together take well below a second.
QUICK = (
    *POLICIES.values(),
    *_ALONE,
    # torch sums the rows in blocks, in half precision. If the last row of a block is ignored, torch extends the block.
    Case("bfloat16", (1000, 10), ignored="ignored_16th", name="half_partial_sums"),
    # The sum of the rows' weights overflows float16.
    Case("float16", (1000, 10), weight="weight_decades", name="weight_overflow"),
    # The sum of exponentials of a row overflows float16.
    Case("float16", (2, 65520), "flat", name="float16_row_sum"),
    # The true class has the probability 0.999. If a loss rounds the sum of exponentials, 1.001, to half precision, the
    # result is 0 in bfloat16, and 2 % too small in float16.
    Case("bfloat16", (4, 2), "sure", name="half_sure", grade="A"),
    Case("float16", (4, 2), "sure", name="half_sure", grade="A"),
    # The sum of all log-probabilities overflows float16. The loss contains this sum times -ε/C, where ε is
    # the label_smoothing.
    Case("float16", (8, 1000), label_smoothing=0.1, name="half_smoothing"),
    *_wide(("bfloat16", "float32"), (*_powers(range(11)), 781)),
    # The 67 positions fill several vectors, but not the last vector. The maxima of neighbouring rows differ much.
    *(Case(dtype, (2, 3, 67), "row_offsets", reduction="none", upstream="rows", name="positions") for dtype in DTYPES),
    # No rows, no positions, one row, as many rows as classes, and N == C == d1; one class, with one row and several.
    Case("float32", (0, 5), weight="weighted", label_smoothing=0.1, name="rows"),
    Case("bfloat16", (0, 5), target="probabilities", reduction="sum", name="rows"),
    Case("float32", (2, 5, 0), reduction="sum", name="rows"),
    Case("float64", (2, 5, 0), name="rows"),
    Case("bfloat16", (2, 5, 0), target="probabilities", reduction="sum", name="rows"),
    Case("float32", (1, 5), weight="weighted", name="rows"),
    Case("bfloat16", (1, 5), target="probabilities", name="rows"),
    Case("float32", (17, 17), ignored="ignored_first", name="rows"),
    Case("float64", (2, 2, 2), reduction="none", upstream="rows", name="rows"),
    Case("float32", (1, 1), name="rows"),
    Case("float32", (17, 1), target="unnormalised", weight="weighted", name="rows"),
)
# The cases that level normal adds to the cases of quick. For one subject, these cases take seconds.
NORMAL = (
    # More than 65504 rows, the largest float16: the denominator of the mean overflows.
    Case("float16", (70000, 2), "flat", name="pytorch-85791"),
    Case("float16", (70000, 3), name="pytorch-85791"),
    Case("float16", (65504, 2), "flat", name="rows"),  # the largest number of rows that float16 holds
    Case("float16", (65520, 2), "flat", name="pytorch-29429"),  # the smallest number of rows that overflows float16
    Case("bfloat16", (65520, 2), "flat", name="rows"),
    Case("float32", (70000, 2), weight="weighted", name="rows"),
    Case("float32", (131_072, 3), ignored="ignored_16th", name="partial_sums"),  # enough rows to see the error
    Case("bfloat16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("bfloat16", (50000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (5000, 10), ignored="ignored_16th", name="half_partial_sums"),
    Case("float16", (50000, 10), name="half_partial_sums"),
    # The denominator of a weighted mean is also a sum of rows in blocks, and scales the gradient too.
    Case("bfloat16", (5000, 10), "normal", "int64", "mean", "weighted", "ignored_16th", name="half_weight_sum"),
    Case("float16", (5000, 10), "normal", "int64", "mean", "weighted", "ignored_16th", name="half_weight_sum"),
    Case("float32", (131_072, 3), "normal", "int64", "mean", "weighted", "ignored_16th", name="partial_weight_sum"),
    Case("float16", (2000, 5), "wide", "probabilities", name="half_partial_sums"),
    # The sum of all log-probabilities overflows float16 in one row, in many rows, by the weights, with more axes,
    # and with class probabilities.
    Case("float16", (1, 8000), "flat", reduction="none", label_smoothing=0.1, upstream="rows", name="half_smoothing"),
    Case("float16", (4000, 10), label_smoothing=0.1, name="half_smoothing"),
    Case("float16", (257, 65), "normal", "int64", "sum", "weighted", "ignored_default", 0.1, name="half_smoothing"),
    Case("float16", (2, 1000, 8), ignored="ignored_class", label_smoothing=0.001, name="half_smoothing"),
    Case("float16", (8, 1000), target="probabilities", label_smoothing=0.1, name="half_smoothing"),
    # The widest flat row whose sum of exponentials does not overflow float16.
    Case("float16", (2, 65519), "flat", name="float16_row_sum"),
    *_wide(("float16", "float64"), (*_powers(range(11)), 781)),
    *_wide(DTYPES, _powers(range(11, 13))),
    *_wide(("float32",), _powers(range(13, 17))),
    *_wide(("bfloat16", "float16", "float64"), (2**13 + 1, 2**15 - 1)),
    *_wide(("bfloat16",), (50257, 129920, 151936), rows=2),
    *_wide(("float32",), (50257,), rows=2),
    *_wide(("float16",), (65519, 65520), rows=2),
)
# The cases that level thorough adds to the cases of normal. For one subject, these cases take minutes, and up to 7 GiB
# of memory.
THOROUGH = (
    *_wide(("bfloat16", "float64"), (*_powers(range(13, 17)), *VOCABULARIES, 65519, 65520)),
    *_wide(("float32",), (*VOCABULARIES, 65519, 65520)),
    # From 65520 classes on, the sum of exponentials of a flat row overflows float16. The cases named float16_row_sum
    # test this sum, so wider cases have two rows, and neither is flat.
    *_wide(("float16",), (*_powers(range(13, 16)), 2**16 - 17)),
    *_wide(("float16",), (2**16 - 1, 2**16, 2**16 + 1, *VOCABULARIES), rows=2),
    # With enough rows, a block that torch extends over ignored rows causes an error in float32 too.
    Case("float32", (4_194_304, 3), ignored="ignored_16th", name="partial_sums"),
    Case("float64", (1_000_000, 2), ignored="ignored_16th", name="partial_sums"),
    Case("float32", (10_000_000, 2), name="rows"),
    Case("bfloat16", (2_000_000, 2), name="rows"),
    Case("float32", (70000, 2), reduction="none", upstream="rows", name="rows"),
)
EDGES = (*QUICK, *NORMAL)
# Sums over millions of rows, in little memory. Each case repeats one small batch.
MANY_ROWS = (
    # 75 million rows (pytorch#55657). Only a contract with a fixed order of summation has a finite bound here.
    Case("float32", (1, 2, 768, 768), tiled=128, name="pytorch-55657"),
    Case("float32", (64, 3), ignored="ignored_16th", tiled=65536, name="partial_sums"),
    Case("bfloat16", (64, 3), ignored="ignored_16th", tiled=1024, name="half_partial_sums"),
)


def edges(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0, level: str = "normal") -> Iterator[Case]:
    """Yield the cases of this module that run at a level, with these dtypes and this seed.

    :func:`large_cases` yields the tiled cases.
    """
    chosen = dict.fromkeys({"quick": QUICK, "normal": EDGES, "thorough": (*EDGES, *THOROUGH)}[level])
    return (case.seeded(seed) for dtype in dtypes for case in chosen if case.dtype == dtype)


def large_cases(dtypes: Sequence[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """Yield the tiled cases (`Case.tiled`) of the corpus and of this module, with these dtypes and this seed."""
    known = [case for bug in bugs() for case in bug.cases if case.tiled > 1]
    return (case.seeded(seed) for case in (*known, *MANY_ROWS) if case.dtype in dtypes)
