"""Case: one input of a cross-entropy with its options, rebuilt bit for bit from its id."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from crossent.cases.axes import (
    AXES,
    CLASS_LIMITS,
    CONSTRAINTS,
    DTYPES,
    IGNORED,
    INDEX_TARGETS,
    OTHER_FLOAT,
    ROW_LIMITS,
    RULES,
    Constraint,
    size_range,
    why_forbidden,
)
from crossent.cases.inputs import UPSTREAM_LAYOUTS, Inputs, laid_out
from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.cases.values import VALUES, Draw
from crossent.numerics.formats import FORMATS
from crossent.words import quoted


@dataclass(frozen=True)
class Case:
    """One input of a cross-entropy with its options; :meth:`build` makes the tensors.

    Attributes:
        dtype: the dtype of the logits, the weights and the upstream gradient.
        sizes: the sizes of the logits: (C), (N, C) or (N, C, d1, …).
        values, target, weight, ignored, upstream, layout, target_layout, weight_layout: each a word of the axis with
            the same name in `AXES`.
        seed: the seed of the random numbers.
        name: the name of a bug or a limit, such as `pytorch-38839`, or "". `==` ignores the name.
        grade: "A" or "B" if the case shows a known failure of torch, otherwise "". A subject with the contract of torch
            must reach this precision grade on the case.
        tiled: how many times :mod:`crossent.checks.large` repeats the batch. All other attributes describe the batch
            before this repetition: one tile.
    """

    operation: ClassVar[Operation] = CROSS_ENTROPY
    # The axes whose choices are words, and the axes among them whose default the id leaves out.
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = AXES
    optional: ClassVar[tuple[str, ...]] = ("weight", "ignored", "upstream", "layout", "target_layout", "weight_layout")
    # The words of an id that have a prefix, such as "seed7": the prefix, the attribute, and the type of its value.
    numbered: ClassVar[tuple[tuple[str, str, Callable[[str], Any]], ...]] = (
        ("smooth", "label_smoothing", float),
        ("grade", "grade", str),
        ("tiled", "tiled", int),
        ("seed", "seed", int),
    )
    prefix: ClassVar[str] = ""  # the beginning of every id, after the name
    ignore_indices: ClassVar[Mapping[str, int]] = IGNORED
    rules: ClassVar[Mapping[str, Callable[[Any], bool]]] = RULES
    constraints: ClassVar[tuple[Constraint, ...]] = CONSTRAINTS
    # The axes whose combinations of choices :func:`crossent.cases.grid.count_combinations` counts.
    counted: ClassVar[tuple[str, ...]] = ("sizes", "label_smoothing", *(one for one in AXES if one != "weight_layout"))

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
        """The name and the choices of the case, as words from which :meth:`of` makes the case again.

        >>> Case("float32", (3, 5, 4), "wide", reduction="sum", label_smoothing=0.1).id
        'float32-3x5x4-wide-int64-sum-smooth0.1'
        """
        words = [self.dtype, "x".join(map(str, self.sizes)), self.values, self.target, self.reduction]
        words += [word for name in self.optional if (word := getattr(self, name)) != self.axes[name][0]]
        # Write all digits and no exponent: the minus sign of an exponent would separate words.
        smoothing = np.format_float_positional(self.label_smoothing, trim="-")
        words += [f"smooth{smoothing}"] if self.label_smoothing else []
        words += self._more_words()
        words += [f"grade{self.grade}"] if self.grade else []
        words += [f"tiled{self.tiled}"] if self.tiled != 1 else []
        words += [f"seed{self.seed}"] if self.seed else []
        return (f"{self.name}/" if self.name else "") + self.prefix + "-".join(words)

    def _more_words(self) -> list[str]:
        """Return further words of the id, for numbers that only a subclass has."""
        return []

    def further_words(self) -> list[str]:
        """Return words for choices that only a subclass has, such as "a linear_bias", for a report."""
        return []

    @classmethod
    def of(cls, id: str) -> Self:
        """Return the case with this id, or raise ValueError."""
        name, _, recipe = id.rpartition("/")
        try:
            dtype, sizes, values, target, reduction, *words = recipe.removeprefix(cls.prefix).split("-")
            options: dict[str, Any] = {axis: word for word in words for axis in cls.optional if word in cls.axes[axis]}
            for word in words:
                for prefix, field_name, read in cls.numbered:
                    if word.startswith(prefix):
                        options[field_name] = read(word.removeprefix(prefix))
            case = cls(dtype, tuple(map(int, sizes.split("x"))), values, target, reduction, **options, name=name)
        except (ValueError, TypeError):
            case = None
        if case is None or case.id != id or case.invalid:
            known = "; `crossent list cases` prints ids" if case is None else f"; did you mean {quoted(case.id)}?"
            reason = f": {case.invalid}" if case is not None and case.invalid else known
            raise ValueError(f"case: got {quoted(id)}, which is not the id of a case{reason}")
        return case

    @property
    def invalid(self) -> str | None:
        """The reason why the case is invalid, or None."""
        choices = {field.name: getattr(self, field.name) for field in fields(self)}
        for axis, words in self.axes.items():
            if choices[axis] not in words:
                return f"{axis} must be one of {', '.join(words)}"
        for reason, holds in self.rules.items():
            if not holds(self):
                return reason
        return why_forbidden(choices, self.constraints)

    @property
    def ignore_index(self) -> int:
        """The value of the option `ignore_index`."""
        return self.ignore_indices[self.ignored]

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
        return size_range(self.classes, CLASS_LIMITS, "classes")

    @property
    def row_size(self) -> str:
        """The size range of the number of rows, such as "17 to 32 rows"."""
        return size_range(self.rows, ROW_LIMITS, "rows")

    @property
    def dimensions(self) -> int:
        """The number of dimensions of the logits."""
        return len(self.sizes)

    def build(self, device: str = "cpu") -> Inputs:
        """Return the inputs on `device`, with the same bits on every machine. A tiled case gives one tile."""
        # The random stream depends on neither the dtype nor the upstream gradient. So each dtype has the same numbers
        # before they are rounded, except for logits that scale with the format.
        random = np.random.RandomState(zlib.crc32(repr(self._seed_choices()).encode()))
        rows, classes = self.rows, self.classes
        ignored = self._ignored_rows(random)
        hot = random.randint(0, max(classes, 1), size=rows)
        if classes > 1:  # ignore_index must not be the class of a kept row
            hot = np.where(~ignored & (hot == self.ignore_index), (hot + 1) % classes, hot)
        draw = Draw(random, rows, classes, hot, ignored, FORMATS[self.dtype])
        drawn = self._drawn(draw)
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
            index = np.where(ignored, self.ignore_index, hot)
            target = tensor(self._shaped(index), INDEX_TARGETS[self.target])
        else:
            of = OTHER_FLOAT[self.dtype] if self.target == "other_float" else self.dtype
            target = tensor(self._shaped(probabilities), DTYPES[of])
        target = laid_out(target, self.target_layout.removeprefix("target_"))
        given = self._placed({name: tensor(array) for name, array in drawn.items()})
        first = given.pop("input")
        options: dict[str, Any] = {
            **given,
            "reduction": self.reduction,
            "label_smoothing": float(self.label_smoothing),
        }
        if self.ignore_index != -100:
            options["ignore_index"] = self.ignore_index
        if weight is not None:
            options["weight"] = laid_out(tensor(weight), self.weight_layout.removeprefix("weight_"))
        of_loss = tensor(upstream)
        if self.reduction == "none":
            of_loss = of_loss.expand(self._row_sizes) if of_loss.dim() == 0 else of_loss.reshape(self._row_sizes)
            of_loss = laid_out(of_loss, UPSTREAM_LAYOUTS.get(self.upstream, "contiguous"))
        return Inputs(first, target, options, of_loss)

    def _seed_choices(self) -> tuple[Any, ...]:
        """Return the choices that determine the random numbers."""
        sizes, smoothing = tuple(map(int, self.sizes)), float(self.label_smoothing)  # 1 and 1.0 are the same choice
        return sizes, self.values, self.target, self.reduction, self.weight, self.ignored, smoothing, self.seed

    def _drawn(self, draw: Draw) -> dict[str, Any]:
        """Return the arguments that determine the logits, as arrays by name."""
        return {"input": self._shaped(VALUES[self.values].draw(draw))}

    def _placed(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors `drawn` in the memory layouts of the case."""
        return {"input": laid_out(drawn["input"], self.layout)}

    def direction(self, device: str = "cpu") -> Tensor:
        """Return random numbers from -2 to 2, one for each logit: the direction in which checks take derivatives."""
        # Most numbers need all bits of the dtype. So code that rounds them to a narrower dtype gets a wrong derivative.
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
        rows["ignored_first_chunk"] = at < 128  # a choice of `LinearCase`
        some_of = [word for word in self.ignore_indices if word not in rows]
        return self._entry({**dict.fromkeys(some_of, some), **rows}, "ignored", "_ignored_rows")

    def _weight(self, random: np.random.RandomState) -> Any:
        spread = {"weighted": 4, "weight_decades": 10, "weight_zeros": 2, "weight_negative": 2, "weight_balanced": 2}
        if self.weight == "unweighted":
            return None
        if self.weight == "weight_huge":
            return 2.0**14 * (1 + random.random_sample(self.classes))
        if self.weight == "weight_all_zeros":
            return np.zeros(self.classes)
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
        if self.upstream in ("rows", *UPSTREAM_LAYOUTS):
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
        if self.target not in ("probabilities", "other_float", "padded"):
            raise _not_made("target", self.target, "_probabilities")
        probabilities = raw / raw.sum(1, keepdims=True) if draw.classes else raw
        if self.target == "padded":
            return np.where(_some(draw.random, draw.rows)[:, None], 0.0, probabilities)
        return probabilities

    def _entry(self, entries: Mapping[str, Any], axis: str, function: str) -> Any:
        """Return the value of `entries` for the choice on `axis`, or raise an error that names `function`."""
        if (word := getattr(self, axis)) not in entries:
            raise _not_made(axis, word, function)
        return entries[word]


def _some(random: np.random.RandomState, count: int) -> Any:
    """Return a random mask, about 40 % True. If `count` > 1, True and False both occur."""
    chosen = random.random_sample(count) < 0.4
    if count > 1 and chosen.all() == chosen.any():
        chosen[0] = not chosen[0]
    return chosen


def _not_made(axis: str, word: str, function: str) -> ValueError:
    """Return the error for the choice `word` on an axis, which the code of `function` does not build."""
    return ValueError(f"{axis}: got {word!r}, which no code builds; add {word!r} to {function}")
