"""Cases: concrete inputs of a cross-entropy, each rebuilt bit for bit from its id.

A case is a choice on each of a few axes (:mod:`crossent.cases.axes`). Whoever makes cases (:mod:`crossent.cases.grid`,
:mod:`crossent.cases.edges`, :mod:`crossent.cases.corpus`, :mod:`crossent.SOAK`) only chooses.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossent.cases.axes import AXES, DTYPES, IGNORED, INDEX_TARGETS, OTHER_FLOAT, broken
from crossent.cases.inputs import Inputs, laid_out
from crossent.cases.values import VALUES, Draw
from crossent.numerics.formats import FORMATS


@dataclass(frozen=True)
class Case:
    """One concrete input of a cross-entropy; :meth:`build` makes the tensors.

    Attributes:
        dtype: of the logits, the weights and the upstream gradient.
        sizes: of the logits, with the class axis where torch has it: (C), (N, C) or (N, C, d1, …).
        values, target, weight, ignored, upstream, layout, target_layout, weight_layout: a word from
            `AXES`.
        reduction, label_smoothing: the options of that name.
        seed: another one makes other numbers.
        name: of a case that stands for something, as in `pytorch-38839`.
        grade: what every subject must reach on it, where that is more than is asked of it elsewhere.
        tiled: how often its batch is repeated by :mod:`crossent.checks.large`; all else here is about one tile.
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
        """The same choices with other numbers."""
        return replace(self, seed=seed)

    @property
    def id(self) -> str:
        """The case in words, enough to build it again; what is as usual is left out.

        >>> Case("float32", (3, 5, 4), "wide", reduction="sum", label_smoothing=0.1).id
        'float32-3x5x4-wide-int64-sum-smooth0.1'
        """
        words = [self.dtype, "x".join(map(str, self.sizes)), self.values, self.target, self.reduction]
        words += [word for name in _OPTIONAL if (word := getattr(self, name)) != AXES[name][0]]
        # All of its digits, and no exponent: a minus would part the words.
        smoothing = np.format_float_positional(self.label_smoothing, trim="-")
        words += [f"smooth{smoothing}"] if self.label_smoothing else []
        words += [f"grade{self.grade}"] if self.grade else []
        words += [f"tiled{self.tiled}"] if self.tiled != 1 else []
        words += [f"seed{self.seed}"] if self.seed else []
        return (f"{self.name}/" if self.name else "") + "-".join(words)

    @staticmethod
    def of(id: str) -> Case:
        """The case with this id.

        Raises:
            ValueError: an id that no case has.

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
            raise ValueError(f"case: got {id!r}, which is no case's id{reason}")
        return case

    @property
    def invalid(self) -> str | None:
        """Why its choices cannot stand together, or None."""
        choices = {field.name: getattr(self, field.name) for field in fields(self)}
        for axis, words in AXES.items():
            if choices[axis] not in words:
                return f"{axis} is one of {', '.join(words)}"
        for reason, holds in _PLAIN.items():
            if not holds(self):
                return reason
        return broken(choices)

    @property
    def classes(self) -> int:
        """C."""
        return self.sizes[min(1, len(self.sizes) - 1)]

    @property
    def rows(self) -> int:
        """R = N·d1·…·dK; 1 where there is no batch."""
        return int(np.prod((self.sizes[0], *self.sizes[2:]))) if len(self.sizes) > 1 else 1

    def build(self, device: str = "cpu") -> Inputs:
        """The case's inputs, one tile of them: the same bits wherever it is called."""
        # dtype and upstream gradient are left out of the stream: the same numbers in each dtype.
        sizes, smoothing = tuple(map(int, self.sizes)), float(self.label_smoothing)  # 1 and 1.0 are one choice
        stream = (sizes, self.values, self.target, self.reduction, self.weight, self.ignored, smoothing, self.seed)
        random = np.random.RandomState(zlib.crc32(repr(stream).encode()))
        rows, classes = self.rows, self.classes
        ignored = self._ignored_rows(random)
        hot = random.randint(0, max(classes, 1), size=rows)
        draw = Draw(random, rows, classes, hot, ignored, FORMATS[self.dtype])
        logits = VALUES[self.values].draw(draw)
        weight = self._weight(random)
        probabilities = None if self.target in INDEX_TARGETS else self._probabilities(draw)
        upstream = self._upstream(random)  # the last, since its choices take unlike many numbers

        def tensor(array: Any, dtype: torch.dtype | None = None) -> Tensor:
            if dtype is None:
                dtype = DTYPES[self.dtype]
            if dtype.is_floating_point:  # rounded here, so that torch's conversion has nothing to round
                array = FORMATS[str(dtype).removeprefix("torch.")].nearest(np.asarray(array))
            made = torch.from_numpy(np.array(array, order="C")).to(dtype)
            # One NaN for all: which one bfloat16 gets depends on the processor's vectors.
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
        """One of the logits, along which derivatives are taken: from -2 to 2, with all the bits that the dtype holds.

        One that is rounded to fewer is another direction. Of the logits' sizes and dtype; the same numbers under all
        options, and in each dtype, as it rounds them.
        """
        random = np.random.RandomState(zlib.crc32(repr(("direction", tuple(map(int, self.sizes)), self.seed)).encode()))
        numbers = self._shaped(FORMATS[self.dtype].nearest(4 * random.random_sample((self.rows, self.classes)) - 2))
        return torch.from_numpy(np.array(numbers, order="C")).to(DTYPES[self.dtype]).to(device)

    @property
    def _row_sizes(self) -> tuple[int, ...]:
        return (self.sizes[0], *self.sizes[2:]) if len(self.sizes) > 1 else ()

    def _shaped(self, rows: Any) -> Any:
        """(R, C) to the sizes of the logits, (R,) to those of the rows."""
        if rows.ndim == 1:
            return rows.reshape(self._row_sizes)
        return np.moveaxis(rows.reshape(*self._row_sizes, self.classes), -1, min(1, len(self.sizes) - 1))

    def _ignored_rows(self, random: np.random.RandomState) -> Any:
        some = random.random_sample(self.rows) < 0.4
        at = np.arange(self.rows)
        special = {"kept": at < 0, "ignored_first": at == 0, "ignored_16th": at % 16 == 0, "ignored_all": at >= 0}
        return special.get(self.ignored, some)

    def _weight(self, random: np.random.RandomState) -> Any:
        spread = {"weighted": 4, "weight_decades": 10, "weight_zeros": 2, "weight_negative": 2}
        if self.weight not in spread:
            return None
        k = spread[self.weight]
        weight = np.ldexp(1 + random.random_sample(self.classes), random.randint(-k, k, size=self.classes))
        some = random.random_sample(self.classes) < 0.4
        if self.weight == "weight_zeros":
            return np.where(some, 0.0, weight)
        return np.where(some, -weight, weight) if self.weight == "weight_negative" else weight

    def _upstream(self, random: np.random.RandomState) -> Any:
        if self.upstream in ("rows", "rows_strided"):
            return 4 * random.random_sample(self.rows) - 2
        if self.upstream == "rows_large":
            return np.ldexp(4 * random.random_sample(self.rows) - 2, random.randint(-10, 13, size=self.rows))
        number = 4 * random.random_sample() - 2
        return np.array({"one": 1.0, "zero": 0.0}.get(self.upstream, number))

    def _probabilities(self, draw: Draw) -> Any:
        if self.target == "hard":
            return draw.is_hot.astype(np.float64)
        raw = draw.random.random_sample(draw.shape) ** 2
        if self.target == "unnormalised":
            return 3 * raw - 0.5
        return raw / raw.sum(1, keepdims=True) if draw.classes else raw


_OPTIONAL = ("weight", "ignored", "upstream", "layout", "target_layout", "weight_layout")
_NUMBERED = (
    ("smooth", "label_smoothing", float),
    ("grade", "grade", str),
    ("tiled", "tiled", int),
    ("seed", "seed", int),
)


_PLAIN: dict[str, Callable[[Case], bool]] = {
    "a size is 0 or more": lambda case: min(case.sizes, default=-1) >= 0,
    "there are classes": lambda case: case.classes > 0,
    "label_smoothing is from 0 to 1": lambda case: 0 <= case.label_smoothing <= 1,
    "there is a weight to lay out": lambda case: (
        case.weight != "unweighted" or case.weight_layout == "weight_contiguous"
    ),
    "a grade is A or B": lambda case: case.grade in ("", "A", "B"),
    "tiles are one or more": lambda case: case.tiled > 0,
    "tiles are a batch of class indices, contiguous or with the class axis last": lambda case: (
        case.tiled == 1
        or (
            len(case.sizes) > 1
            and case.target in INDEX_TARGETS
            and case.layout in ("contiguous", "class_last")
            and case.target_layout == "target_contiguous"
        )
    ),
    "tiles have a plain upstream gradient": lambda case: (
        case.tiled == 1 or case.upstream not in ("rows_strided", "rows_large")
    ),
    "tiles are reduced without weight and label_smoothing": lambda case: (
        case.tiled == 1 or case.reduction == "none" or (case.weight == "unweighted" and not case.label_smoothing)
    ),
    "a name is made of letters, digits, _ and -": lambda case: re.fullmatch(r"[\w-]*", case.name, re.ASCII) is not None,
}
