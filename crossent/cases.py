"""Cases: concrete inputs of a cross-entropy, each rebuilt bit for bit from its id.

A case is a choice on each of a few axes; the tables below say what can be chosen, and `INVALID` what cannot stand
together. Whoever makes cases (:mod:`crossent.grid`, :mod:`crossent.edges`, :mod:`crossent.soak`) only chooses.
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

from crossent.rounding import FORMATS
from crossent.values import VALUES, Draw

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
INDEX_TARGETS = {"int64": torch.int64, "uint8": torch.uint8}
# Probabilities that add up to one; one class with all of it, in floats; numbers of either sign that add up to anything.
DENSE_TARGETS = ("probabilities", "hard", "unnormalised")
TARGETS = (*INDEX_TARGETS, *DENSE_TARGETS)
REDUCTIONS = ("none", "mean", "sum")
WEIGHTS = ("unweighted", "weighted", "weight_decades", "weight_zeros", "weight_negative")
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
}
# The upstream gradient: 1, one number, a number for each row, one number at every row with stride 0, 0.
UPSTREAMS = ("one", "scalar", "rows", "stride0", "zero")


@dataclass(frozen=True)
class Inputs:
    """The tensors and options of one case, on one device."""

    logits: Tensor
    target: Tensor
    options: dict[str, Any]
    upstream: Tensor

    @property
    def digest(self) -> str:
        """A checksum of every bit of it: two runs that show the same one saw the same case."""
        checksum = zlib.crc32(repr([(k, v) for k, v in self.options.items() if k != "weight"]).encode())
        for tensor in (self.logits, self.target, self.options.get("weight"), self.upstream):
            if tensor is not None:
                checksum = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), checksum)
                checksum = zlib.crc32(bits(tensor).tobytes(), checksum)
        return f"{checksum:08x}"


@dataclass(frozen=True)
class Case:
    """One concrete input of a cross-entropy; :meth:`build` makes the tensors.

    Attributes:
        dtype: of the logits, the weights and the upstream gradient.
        sizes: of the logits, with the class axis where torch has it: (C), (N, C) or (N, C, d1, …).
        values, target, weight, ignored, upstream: a name from the tables of this module.
        reduction, label_smoothing: the options of that name.
        seed: another one makes other numbers.
        name: of a case that stands for something, as in `pytorch-38839`.
        grade: what every subject must reach on it, where that is more than is asked of it elsewhere.
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
    seed: int = 0
    name: str = field(default="", compare=False)
    grade: str = ""

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
        words += [value for value in (self.weight, self.ignored, self.upstream) if value not in _USUAL]
        # All of its digits, and no exponent: a minus would part the words.
        smoothing = np.format_float_positional(self.label_smoothing, trim="-")
        words += [f"smooth{smoothing}"] if self.label_smoothing else []
        words += [f"grade{self.grade}"] if self.grade else []
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
            options: dict[str, Any] = {axis: word for word in words for axis in _AXES if word in _AXES[axis]}
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
        return next((reason for reason, holds in INVALID.items() if holds(self)), None)

    @property
    def classes(self) -> int:
        """C."""
        return self.sizes[min(1, len(self.sizes) - 1)]

    @property
    def rows(self) -> int:
        """R = N·d1·…·dK; 1 where there is no batch."""
        return int(np.prod((self.sizes[0], *self.sizes[2:]))) if len(self.sizes) > 1 else 1

    def build(self, device: str = "cpu") -> Inputs:
        """The case's inputs: the same bits wherever it is called."""
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
            if dtype is None:  # rounded here, so that torch's conversion has nothing to round
                array, dtype = draw.format.nearest(np.asarray(array)), DTYPES[self.dtype]
            made = torch.from_numpy(np.array(array, order="C")).to(dtype)
            # One NaN for all: which one bfloat16 gets depends on the processor's vectors.
            made = made.where(~made.isnan(), torch.nan) if dtype.is_floating_point else made
            return made.to(device)

        target: Tensor
        if probabilities is None:
            index = np.where(ignored, IGNORED[self.ignored], hot)
            target = tensor(self._shaped(index), INDEX_TARGETS[self.target])
        else:
            target = tensor(self._shaped(probabilities))
        options: dict[str, Any] = {"reduction": self.reduction, "label_smoothing": smoothing}
        if IGNORED[self.ignored] != -100:
            options["ignore_index"] = IGNORED[self.ignored]
        if weight is not None:
            options["weight"] = tensor(weight)
        given = tensor(upstream)
        if self.reduction == "none":
            given = given.expand(self._row_sizes) if given.dim() == 0 else given.reshape(self._row_sizes)
        return Inputs(tensor(self._shaped(logits)), target, options, given)

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
        if self.upstream == "rows":
            return 4 * random.random_sample(self.rows) - 2
        number = 4 * random.random_sample() - 2
        return np.array({"one": 1.0, "zero": 0.0}.get(self.upstream, number))

    def _probabilities(self, draw: Draw) -> Any:
        if self.target == "hard":
            return draw.is_hot.astype(np.float64)
        raw = draw.random.random_sample(draw.shape) ** 2
        if self.target == "unnormalised":
            return 3 * raw - 0.5
        return raw / raw.sum(1, keepdims=True) if draw.classes else raw


def bits(tensor: Tensor) -> Any:
    """The tensor's bits as a numpy array of unsigned integers, of its shape."""
    wide = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    array = tensor.detach().cpu().contiguous().view(wide).numpy()
    return array.view(f"u{tensor.element_size()}")


_AXES = {"weight": WEIGHTS, "ignored": tuple(IGNORED), "upstream": UPSTREAMS}
_NUMBERED = (("smooth", "label_smoothing", float), ("grade", "grade", str), ("seed", "seed", int))
_USUAL = tuple(f.default for f in fields(Case) if f.name in _AXES)

# What cannot stand together, and why.
INVALID: dict[str, Callable[[Case], bool]] = {
    "unknown dtype": lambda case: case.dtype not in DTYPES,
    "unknown values": lambda case: case.values not in VALUES,
    "unknown target": lambda case: case.target not in TARGETS,
    "unknown reduction": lambda case: case.reduction not in REDUCTIONS,
    "unknown grade": lambda case: case.grade not in ("", "A", "B"),
    "a size is negative": lambda case: min(case.sizes, default=-1) < 0,
    "there are no classes": lambda case: case.classes == 0,
    "a name is made of letters, digits, _ and -": lambda case: re.fullmatch(r"[\w-]*", case.name, re.ASCII) is None,
    "label_smoothing is from 0 to 1": lambda case: not 0 <= case.label_smoothing <= 1,
    "class probabilities have no ignored rows": lambda case: case.target in DENSE_TARGETS and case.ignored != "kept",
    "uint8 holds 0 to 255": lambda case: (
        case.target == "uint8"
        and (case.classes > 256 or (case.ignored != "kept" and not 0 <= IGNORED[case.ignored] < 256))
    ),
    "the ignored index would be a class of every row": lambda case: (
        case.ignored in ("ignored", "ignored_all") and case.classes > 255
    ),
    "a reduced loss has one upstream gradient": lambda case: (
        case.reduction != "none" and case.upstream in ("rows", "stride0")
    ),
    "the values are about ignored rows": lambda case: VALUES[case.values].ignored_only and case.ignored == "kept",
    "the values overflow the dtype": lambda case: VALUES[case.values].largest > FORMATS[case.dtype].largest,
}
