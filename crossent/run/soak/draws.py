"""The cases of a soak: random cases, each drawn from its number, its dtype and the seed.

Most cases are small, so that many cases can run. Some have up to 50,000 classes or 5,000 rows, where errors of sums are
large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from crossent.cases.axes import AXES, DTYPES
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.grid import LINEAR_ARRAYS, linear_numbers
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY, Operation

_MOST_CLASSES, _MOST_ROWS = 50_000, 5_000
MOST_CASES = 2**32  # the most cases of a soak: the number of a case has 32 bits, as numpy's RandomState requires
_SEEDS = 2**31 - 1
_LEFT_OUT = ("upstream_huge", "rows_expanded", "padded", "weight_all_zeros")


def draws(
    count: int,
    dtypes: Sequence[str] = tuple(DTYPES),
    seed: int = 0,
    *,
    first: int = 0,
    operation: Operation = CROSS_ENTROPY,
) -> Iterator[Case]:
    """Yield a case for each number from `first` to `first + count - 1` and each dtype.

    Example:
        >>> [case.id for case in draws(1, ["float64"], first=23)]
        ['float64-3-positive_inf-uint8-mean-scalar-smooth0.0001-seed1788372932']
    """
    return (draw(number, dtype, seed, operation) for number in range(first, first + count) for dtype in dtypes)


def draw(number: int, dtype: str, seed: int = 0, operation: Operation = CROSS_ENTROPY) -> Case:
    """Return the case with this number. The case may differ between dtypes."""
    random = np.random.RandomState([seed, number])

    def one_of(table: Iterable[Any]) -> Any:
        choices = tuple(table)
        return choices[random.randint(len(choices))]

    choice = _linear_choice if operation is LINEAR_CROSS_ENTROPY else _choice
    while (case := choice(random, one_of, dtype)) is None or case.invalid:
        pass
    return case


def _choice(random: np.random.RandomState, one_of: Callable[[Iterable[Any]], Any], dtype: str) -> Case:
    """Return a random case of cross_entropy. The choices, drawn with `one_of`, may be impossible together."""

    # Named cases in crossent/cases/edges.py have the choices of _LEFT_OUT: torch overflows in float16 with
    # upstream_huge, above 10,000, and rows_expanded needs three dimensions. With weight_all_zeros, most numbers are 0
    # or NaN, and padded matters only for the mean. Keep the order of the keywords: the random numbers are drawn in
    # this order. A choice that is repeated is drawn more often.
    def drawn(axis: str) -> tuple[str, ...]:
        return tuple(word for word in AXES[axis] if word not in _LEFT_OUT)

    return Case(
        dtype,
        sizes=_sizes(random),
        values=one_of(AXES["values"]),
        target=one_of(("int64", *drawn("target"))),
        reduction=one_of(AXES["reduction"]),
        weight=one_of(("unweighted", *drawn("weight"))),
        ignored=one_of(("kept", "kept", *AXES["ignored"])),
        label_smoothing=one_of((0.0, 0.0, 0.0, 0.1, 1.0, 0.0001, 0.5, 0.999, *[random.randint(1, 1000) / 1000] * 2)),
        upstream=one_of(("scalar", *drawn("upstream"))),
        layout=one_of((*["contiguous"] * 6, *AXES["layout"])),
        target_layout=one_of((*["target_contiguous"] * 6, *AXES["target_layout"])),
        seed=random.randint(_SEEDS),
    )


def _linear_choice(
    random: np.random.RandomState, one_of: Callable[[Iterable[Any]], Any], dtype: str
) -> LinearCase | None:
    """Return a random case of a linear cross-entropy; None if the choices, drawn with `one_of`, are impossible."""
    array = LINEAR_ARRAYS["triples"]
    chosen = {**{axis: one_of(words) for axis, words in array.choices.items()}, "dtype": dtype}
    if array.forbids(chosen):
        return None
    classes, rows, hidden = one_of(linear_numbers(*(chosen[axis] for axis in array.size_axes)))
    options = {axis: chosen[axis] for axis in array.fields}
    return LinearCase(**options, sizes=(rows, classes), hidden=hidden, seed=random.randint(_SEEDS))


def _sizes(random: np.random.RandomState) -> tuple[int, ...]:
    """Return random sizes of logits. Almost nine in ten cases have fewer than 10,000 logits."""
    bits = min(random.randint(1, 20, size=2))
    class_bits = max(random.randint(0, bits + 1, size=2))
    classes = min(_number_near(random, class_bits), _MOST_CLASSES)
    rows = min(_number_near(random, bits - class_bits), _MOST_ROWS)
    family = random.randint(8)
    if family == 0:
        return (classes,)
    if family < 5:
        return (rows, classes)
    if family == 5:
        return (1, classes, rows)
    # Split the rows into two or three dimensions. Rows that the division leaves over are left out.
    first = random.randint(1, 5)
    if family == 6:
        return (first, classes, max(1, rows // first))
    second = random.randint(1, 4)
    return (first, classes, second, max(1, rows // (first * second)))


def _number_near(random: np.random.RandomState, bits: int) -> int:
    """Return a random number of classes or rows from `2^bits - 1` to `2^(bits + 1)`."""
    # Half of the numbers are next to 2^bits, where vectors, blocks and tiles of kernels end.
    near = random.randint(2)
    return max(1, int(2**bits + (random.randint(-1, 2) if near else random.randint(2**bits))))
