"""Case: one input of a cross-entropy with its options, rebuilt bit for bit from its id.

A case is one choice on each axis of :mod:`crossent.cases.axes`, sizes, a label_smoothing and a seed. The modules
:mod:`crossent.cases.grid`, :mod:`crossent.cases.edges` and :mod:`crossent.cases.corpus` list cases.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossent.cases.axes import (
    AXES,
    CLASS_LIMITS,
    DTYPES,
    IGNORED,
    INDEX_TARGETS,
    OTHER_FLOAT,
    ROW_LIMITS,
    size_class,
    why_forbidden,
)
from crossent.cases.inputs import Inputs, laid_out
from crossent.cases.values import VALUES, Draw
from crossent.numerics.formats import FORMATS
from crossent.words import quoted

# An id may come from a report that anybody wrote, so building its case must not take all memory.
MOST_NUMBERS = 2**26


@dataclass(frozen=True)
class Case:
    """One input of a cross-entropy with its options; :meth:`build` makes the tensors.

    Attributes:
        dtype: the dtype of the logits, the weights and the upstream gradient.
        sizes: the sizes of the logits, with the class axis as in torch: (C), (N, C) or (N, C, d1, …).
        values, target, weight, ignored, upstream, layout, target_layout, weight_layout: each a word of the axis with
            the same name in `AXES`.
        reduction, label_smoothing: the options of `F.cross_entropy`.
        seed: the seed of the random numbers.
        name: the name of a case that stands for a bug or a limit, for example `pytorch-38839`; "" for other cases.
        grade: the grade that a subject under the contract of torch must reach on this case, "A" or "B"; "" for the
            grade that the subject promises.
        tiled: how often :mod:`crossent.checks.large` repeats the batch. All other attributes describe one tile, the
            batch before this repetition.
    """

    dtype: str
    sizes: tuple[int, ...] = (7, 5)
    values: str = "normal"
    target: str = "int64"
    reduction: str = "mean"
    weight: str = "unweighted"
    ignored: str = "kept"
    label_smoothing: float = 0.0
    upstream: str = "one"
    layout: str = "contiguous"
    target_layout: str = "target_contiguous"
    weight_layout: str = "weight_contiguous"
    seed: int = 0
    name: str = field(default="", compare=False)
    grade: str = ""
    tiled: int = 1

    def seeded(self, seed: int) -> Case:
        """Return the case with the same choices and another seed."""
        return replace(self, seed=seed)

    @property
    def id(self) -> str:
        """The choices of the case as words, from which :meth:`of` builds the case again.

        The dtype, sizes, values, target and reduction are always there. Any other choice is left out at its default.

        >>> Case("float32", (3, 5, 4), "wide", reduction="sum", label_smoothing=0.1).id
        'float32-3x5x4-wide-int64-sum-smooth0.1'
        """
        words = [self.dtype, "x".join(map(str, self.sizes)), self.values, self.target, self.reduction]
        words += [word for name in _OPTIONAL if (word := getattr(self, name)) != AXES[name][0]]
        # All digits and no exponent: the minus of an exponent would separate words.
        smoothing = np.format_float_positional(self.label_smoothing, trim="-")
        words += [f"smooth{smoothing}"] if self.label_smoothing else []
        words += [f"grade{self.grade}"] if self.grade else []
        words += [f"tiled{self.tiled}"] if self.tiled != 1 else []
        words += [f"seed{self.seed}"] if self.seed else []
        return (f"{self.name}/" if self.name else "") + "-".join(words)

    @staticmethod
    def of(id: str) -> Case:
        """Return the case with this id.

        Raises:
            ValueError: no case has this id.

        >>> Case.of("float32-3x5x4-wide-int64-sum-smooth0.1").sizes
        (3, 5, 4)
        """
        name, _, recipe = id.rpartition("/")
        try:
            dtype, sizes, values, target, reduction, *words = recipe.split("-")
            options: dict[str, Any] = {axis: word for word in words for axis in _OPTIONAL if word in AXES[axis]}
            for word in words:
                for prefix, field_name, read in _NUMBERED:
                    if word.startswith(prefix):
                        options[field_name] = read(word.removeprefix(prefix))
            case = Case(dtype, tuple(map(int, sizes.split("x"))), values, target, reduction, **options, name=name)
        except (ValueError, TypeError):
            case = None
        if case is None or case.id != id or case.invalid:
            reason = f": {case.invalid}" if case is not None and case.invalid else ""
            raise ValueError(f"case: got {quoted(id)}, which is not the id of a case{reason}")
        return case

    @property
    def invalid(self) -> str | None:
        """Why there is no such case, or None: a choice is unknown, or the choices are impossible together."""
        choices = {field.name: getattr(self, field.name) for field in fields(self)}
        for axis, words in AXES.items():
            if choices[axis] not in words:
                return f"{axis} must be one of {', '.join(words)}"
        for reason, holds in _RULES.items():
            if not holds(self):
                return reason
        return why_forbidden(choices)

    @property
    def classes(self) -> int:
        """The number of classes, C."""
        return self.sizes[min(1, len(self.sizes) - 1)]

    @property
    def rows(self) -> int:
        """The number of rows, R = N·d1·…·dK; 1 for logits without a batch."""
        return int(np.prod((self.sizes[0], *self.sizes[2:]))) if len(self.sizes) > 1 else 1

    @property
    def class_size(self) -> str:
        """The size range of the number of classes, such as "257 to 1024 classes"."""
        return size_class(self.classes, CLASS_LIMITS, "classes")

    @property
    def row_size(self) -> str:
        """The size range of the number of rows, such as "17 to 32 rows"."""
        return size_class(self.rows, ROW_LIMITS, "rows")

    @property
    def dimensions(self) -> int:
        """The number of dimensions of the logits."""
        return len(self.sizes)

    def build(self, device: str = "cpu") -> Inputs:
        """Return the inputs of the case, or one tile of a tiled case. The bits are the same on every machine."""
        # The random stream does not depend on the dtype and the upstream gradient. So before they are rounded, the
        # numbers are the same in each dtype, except for values that scale with the format.
        sizes, smoothing = tuple(map(int, self.sizes)), float(self.label_smoothing)  # 1 and 1.0 are the same choice
        stream = (sizes, self.values, self.target, self.reduction, self.weight, self.ignored, smoothing, self.seed)
        random = np.random.RandomState(zlib.crc32(repr(stream).encode()))
        rows, classes = self.rows, self.classes
        ignored = self._ignored_rows(random)
        hot = random.randint(0, max(classes, 1), size=rows)
        if classes > 1:  # ignore_index must not be the class of a kept row
            hot = np.where(~ignored & (hot == IGNORED[self.ignored]), (hot + 1) % classes, hot)
        draw = Draw(random, rows, classes, hot, ignored, FORMATS[self.dtype])
        logits = VALUES[self.values].draw(draw)
        weight = self._weight(random)
        probabilities = None if self.target in INDEX_TARGETS else self._probabilities(draw)
        upstream = self._upstream(random)  # last, because the choices of this axis draw different amounts of numbers

        def tensor(array: Any, dtype: torch.dtype | None = None) -> Tensor:
            if dtype is None:
                dtype = DTYPES[self.dtype]
            if dtype.is_floating_point:  # round here, so that the conversion in torch is exact
                array = FORMATS[str(dtype).removeprefix("torch.")].nearest(np.asarray(array))
            made = torch.from_numpy(np.array(array, order="C")).to(dtype)
            # Write the same NaN everywhere: the bits of a bfloat16 NaN depend on the processor's vector instructions.
            made = made.where(~made.isnan(), torch.nan) if dtype.is_floating_point else made
            return made.to(device)

        target: Tensor
        if probabilities is None:
            index = np.where(ignored, IGNORED[self.ignored], hot)
            target = tensor(self._shaped(index), INDEX_TARGETS[self.target])
        else:
            of = OTHER_FLOAT[self.dtype] if self.target == "other_float" else self.dtype
            target = tensor(self._shaped(probabilities), DTYPES[of])
        target = laid_out(target, self.target_layout.removeprefix("target_"))
        options: dict[str, Any] = {"reduction": self.reduction, "label_smoothing": smoothing}
        if IGNORED[self.ignored] != -100:
            options["ignore_index"] = IGNORED[self.ignored]
        if weight is not None:
            options["weight"] = laid_out(tensor(weight), self.weight_layout.removeprefix("weight_"))
        given = tensor(upstream)
        if self.reduction == "none":
            given = given.expand(self._row_sizes) if given.dim() == 0 else given.reshape(self._row_sizes)
            given = laid_out(given, "strided") if self.upstream == "rows_strided" else given
        return Inputs(laid_out(tensor(self._shaped(logits)), self.layout), target, options, given)

    def direction(self, device: str = "cpu") -> Tensor:
        """Return the direction along which derivatives are taken: a tensor with the logits' shape and dtype.

        The elements are random numbers from -2 to 2. They depend only on the sizes and the seed, and are rounded to the
        dtype. They use all bits of the dtype, so code that rounds the direction to fewer bits gets another derivative.
        """
        random = np.random.RandomState(zlib.crc32(repr(("direction", tuple(map(int, self.sizes)), self.seed)).encode()))
        numbers = self._shaped(FORMATS[self.dtype].nearest(4 * random.random_sample((self.rows, self.classes)) - 2))
        return torch.from_numpy(np.array(numbers, order="C")).to(DTYPES[self.dtype]).to(device)

    @property
    def _row_sizes(self) -> tuple[int, ...]:
        """The sizes of an unreduced loss: (), (N) or (N, d1, …)."""
        return (self.sizes[0], *self.sizes[2:]) if len(self.sizes) > 1 else ()

    def _shaped(self, rows: Any) -> Any:
        """Return an array (R, C) in the sizes of the logits, or an array (R,) in the sizes of an unreduced loss."""
        if rows.ndim == 1:
            return rows.reshape(self._row_sizes)
        return np.moveaxis(rows.reshape(*self._row_sizes, self.classes), -1, min(1, len(self.sizes) - 1))

    def _ignored_rows(self, random: np.random.RandomState) -> Any:
        """Return a mask of the ignored rows, (R,)."""
        some = _some(random, self.rows)
        at = np.arange(self.rows)
        rows = {"kept": at < 0, "ignored_first": at == 0, "ignored_16th": at % 16 == 0, "ignored_all": at >= 0}
        some_of = [word for word in IGNORED if word not in rows]
        return self._entry({**dict.fromkeys(some_of, some), **rows}, "ignored", "_ignored_rows")

    def _weight(self, random: np.random.RandomState) -> Any:
        spread = {"weighted": 4, "weight_decades": 10, "weight_zeros": 2, "weight_negative": 2, "weight_balanced": 2}
        if self.weight == "unweighted":
            return None
        if self.weight == "weight_huge":
            return 2.0**14 * (1 + random.random_sample(self.classes))
        k = self._entry(spread, "weight", "_weight")
        weight = np.ldexp(1 + random.random_sample(self.classes), random.randint(-k, k, size=self.classes))
        if self.weight == "weight_balanced":  # w, 0, -w: with an even number of classes there is no 0
            half = weight[: self.classes // 2]
            return np.concatenate([half, np.zeros(self.classes % 2), -half])
        some = _some(random, self.classes)
        if self.weight == "weight_zeros":
            return np.where(some, 0.0, weight)
        return np.where(some, -weight, weight) if self.weight == "weight_negative" else weight

    def _upstream(self, random: np.random.RandomState) -> Any:
        if self.upstream in ("rows", "rows_strided"):
            return 4 * random.random_sample(self.rows) - 2
        if self.upstream == "rows_large":
            return np.ldexp(4 * random.random_sample(self.rows) - 2, random.randint(-10, 13, size=self.rows))
        number = 4 * random.random_sample() - 2
        numbers = {"one": 1.0, "zero": 0.0, "scalar": number, "stride0": number}
        numbers["upstream_huge"] = 2.0**14 + 2.0**13 * abs(number)
        return np.array(self._entry(numbers, "upstream", "_upstream"))

    def _probabilities(self, draw: Draw) -> Any:
        if self.target == "hard":
            return draw.is_hot.astype(np.float64)
        raw = draw.random.random_sample(draw.shape) ** 2
        if self.target == "unnormalised":
            return 3 * raw - 0.5
        if self.target not in ("probabilities", "other_float"):
            raise _not_made("target", self.target, "_probabilities")
        return raw / raw.sum(1, keepdims=True) if draw.classes else raw

    def _entry(self, entries: Mapping[str, Any], axis: str, function: str) -> Any:
        """Return the entry for the case's choice on an axis. If there is none, raise the error of :func:`_not_made`."""
        if (word := getattr(self, axis)) not in entries:
            raise _not_made(axis, word, function)
        return entries[word]


def _some(random: np.random.RandomState, count: int) -> Any:
    """Return a random mask, (count,), about 40 % True. A mask of two or more elements has both True and False."""
    chosen = random.random_sample(count) < 0.4
    if count > 1 and chosen.all() == chosen.any():
        chosen[0] = not chosen[0]
    return chosen


def _not_made(axis: str, word: str, function: str) -> ValueError:
    """Return the error for a choice of `AXES` that `function` should build but does not."""
    return ValueError(f"{axis}: got {word!r}, which no code builds; add {word!r} to {function}")


_OPTIONAL = ("weight", "ignored", "upstream", "layout", "target_layout", "weight_layout")
_NUMBERED = (
    ("smooth", "label_smoothing", float),
    ("grade", "grade", str),
    ("tiled", "tiled", int),
    ("seed", "seed", int),
)


# What each case must fulfil, besides the constraints of `crossent.cases.axes`.
_RULES: dict[str, Callable[[Case], bool]] = {
    "sizes must be 0 or more": lambda case: min(case.sizes, default=-1) >= 0,
    f"the logits must have at most {MOST_NUMBERS:,} numbers": lambda case: math.prod(case.sizes) <= MOST_NUMBERS,
    "the number of classes must be 1 or more": lambda case: case.classes > 0,
    "label_smoothing must be from 0 to 1": lambda case: 0 <= case.label_smoothing <= 1,
    "a weight_layout needs a weight": lambda case: (
        case.weight != "unweighted" or case.weight_layout == "weight_contiguous"
    ),
    "the grade must be A or B": lambda case: case.grade in ("", "A", "B"),
    "tiled must be 1 or more": lambda case: case.tiled > 0,
    "tiles need a batch, class indices, and a layout that is contiguous or class_last": lambda case: (
        case.tiled == 1
        or (
            len(case.sizes) > 1
            and case.target in INDEX_TARGETS
            and case.layout in ("contiguous", "class_last")
            and case.target_layout == "target_contiguous"
        )
    ),
    "tiles cannot have the upstream gradients rows_strided and rows_large": lambda case: (
        case.tiled == 1 or case.upstream not in ("rows_strided", "rows_large")
    ),
    "tiles with a reduction cannot have a weight or label_smoothing": lambda case: (
        case.tiled == 1 or case.reduction == "none" or (case.weight == "unweighted" and not case.label_smoothing)
    ),
    "the name may have letters, digits, _ and -": lambda case: re.fullmatch(r"[\w-]*", case.name, re.ASCII) is not None,
}
