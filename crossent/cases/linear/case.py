"""LinearCase: one input of a linear cross-entropy with its options, rebuilt bit for bit from its id."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crossent.cases.axes import AXES, CONSTRAINTS, IGNORED, MOST_NUMBERS, RULES, Constraint, size_range
from crossent.cases.case import Case
from crossent.cases.inputs import laid_out
from crossent.cases.linear.values import LINEAR_VALUES, LinearDraw
from crossent.cases.operation import LINEAR_CROSS_ENTROPY, Operation
from crossent.cases.values import Draw

_LAYOUTS = ("contiguous", "transposed", "window", "strided", "offset")
HIDDEN_LIMITS = (1, 16, 64, 256, 1024)  # the largest length of a hidden state in each size range
# The axes with the same choices as in `Case`, except that no upstream gradient needs three dimensions.
_INHERITED = ("dtype", "reduction", "weight", "upstream", "weight_layout")


@dataclass(frozen=True)
class LinearCase(Case):
    """One input of a linear cross-entropy: hidden states, a weight, perhaps a bias, a target and options.

    `sizes` is (N, V), for N rows and V classes. `layout` is the memory layout of the hidden states. :class:`Case`
    describes the other inherited attributes.

    Attributes:
        hidden: the length of a hidden state, H.
        bias: "no_bias", "bias" for random numbers, or "bias_cancelling" for a bias that cancels most of each logit of
            the first row.
        linear_layout: the memory layout of `linear_weight`. With "linear_tied", `linear_weight` and the hidden states
            share one storage.
    """

    operation: ClassVar[Operation] = LINEAR_CROSS_ENTROPY
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **{axis: AXES[axis] for axis in _INHERITED},
        "upstream": tuple(word for word in AXES["upstream"] if word != "rows_expanded"),
        "values": tuple(LINEAR_VALUES),
        "target": ("int64", "probabilities", "hard"),
        "ignored": (*IGNORED, "ignored_first_chunk"),
        "layout": _LAYOUTS,
        "target_layout": ("target_contiguous", "target_strided", "target_offset"),
        "bias": ("no_bias", "bias", "bias_cancelling"),
        "linear_layout": (*(f"linear_{layout}" for layout in _LAYOUTS), "linear_tied"),
    }
    optional: ClassVar[tuple[str, ...]] = (*Case.optional, "bias", "linear_layout")
    numbered: ClassVar[tuple[tuple[str, str, Callable[[str], Any]], ...]] = (*Case.numbered, ("hidden", "hidden", int))
    prefix: ClassVar[str] = "linear-"
    ignore_indices: ClassVar[Mapping[str, int]] = {**IGNORED, "ignored_first_chunk": -100}
    rules: ClassVar[Mapping[str, Callable[[Any], bool]]] = {
        **RULES,
        "sizes must be the numbers of rows and classes, such as 7x5": lambda case: len(case.sizes) == 2,
        "hidden must be 1 or more": lambda case: case.hidden > 0,
        f"input and linear_weight together must have at most {MOST_NUMBERS:,} numbers": lambda case: (
            sum(case.sizes) * case.hidden <= MOST_NUMBERS
        ),
        "a linear case is not tiled": lambda case: case.tiled == 1,
    }

    # No constraint is on `values`: each kind of `LINEAR_VALUES` fits every dtype, with and without ignored rows.
    constraints: ClassVar[tuple[Constraint, ...]] = tuple(one for one in CONSTRAINTS if "values" not in one.axes)
    counted: ClassVar[tuple[str, ...]] = (
        *("row_size", "class_size", "hidden_size", "label_smoothing"),
        *(axis for axis in axes if axis != "weight_layout"),
    )

    hidden: int = 16
    bias: str = "no_bias"
    linear_layout: str = "linear_contiguous"

    @property
    def hidden_size(self) -> str:
        """The size range of the length of a hidden state, such as "17 to 64 hidden units"."""
        return size_range(self.hidden, HIDDEN_LIMITS, "hidden units")

    def _more_words(self) -> list[str]:
        return [f"hidden{self.hidden}"]

    def further_words(self) -> list[str]:
        """Return words for `bias`, `linear_layout` and `hidden`, for a report."""
        strided = self.linear_layout not in ("linear_contiguous", "linear_offset", "linear_tied")
        above = [limit for limit in HIDDEN_LIMITS if self.hidden > limit]
        return [
            *["a linear_bias"] * (self.bias != "no_bias"),
            f"{'non-' * strided}contiguous linear_weight",
            *["one storage for input and linear_weight"] * (self.linear_layout == "linear_tied"),
            self.hidden_size,
            *(f"more than {limit} hidden unit{'s' * (limit > 1)}" for limit in above),
        ]

    def _seed_choices(self) -> tuple[Any, ...]:
        return *super()._seed_choices(), "linear", self.hidden, self.bias

    def _drawn(self, draw: Draw) -> dict[str, Any]:
        hidden, weight = LINEAR_VALUES[self.values](LinearDraw(draw, self.hidden))
        drawn = {"input": hidden, "linear_weight": weight}
        if self.bias == "bias":
            drawn["linear_bias"] = LinearDraw(draw, 1).weight()[:, 0]
        elif self.bias == "bias_cancelling":
            # `fsum` rounds once. The order of additions in numpy's sum depends on the processor.
            logits = [math.fsum(terms) for terms in weight * hidden[:1]] if self.rows else [0.0] * self.classes
            drawn["linear_bias"] = -np.rint(16 * np.array(logits)) / 16
        return drawn

    def _placed(self, drawn: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden, weight = drawn["input"], drawn["linear_weight"]
        if self.linear_layout == "linear_tied":
            whole = torch.cat([weight, hidden])
            hidden, weight = whole[self.classes :], whole[: self.classes]
        else:
            weight = laid_out(weight, self.linear_layout.removeprefix("linear_"))
        return drawn | {"input": laid_out(hidden, self.layout), "linear_weight": weight}
