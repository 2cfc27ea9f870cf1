"""Bad inputs: calls that a cross-entropy must refuse, and the errors that are allowed to say so.

What torch's documentation forbids is refused by torch with the class of error that stands here, unless it is a finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.cases import Inputs

SIZES = (ValueError, RuntimeError)


@dataclass(frozen=True)
class BadInput:
    """One call that must raise.

    Attributes:
        id: what is wrong with it.
        raises: the errors that are allowed.
        poisons: whether CUDA answers with a device-side assert, after which the process is of no more use.
    """

    id: str
    make: Callable[[], dict[str, Any]]
    raises: tuple[type[Exception], ...] = (RuntimeError,)
    poisons: bool = False

    dtype = "float32"

    def build(self, device: str = "cpu") -> Inputs:
        """The arguments: a call that is right, but for one of them."""
        right: dict[str, Any] = {"logits": torch.zeros(3, 4), "target": torch.tensor([0, 1, 2])}
        given = {**right, **self.make()}
        placed = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
        logits, target = placed.pop("logits"), placed.pop("target")
        options = {"reduction": "mean", "label_smoothing": 0.0, **placed}
        return Inputs(logits, target, options, torch.ones((), device=device))


def _target(*classes: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": torch.tensor(classes)}


def _of_dtype(dtype: torch.dtype) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": torch.tensor([0, 1, 2]).to(dtype)}


def _option(**options: Any) -> Callable[[], dict[str, Any]]:
    return lambda: options


BAD_INPUTS = (
    BadInput("class_beyond_the_last", _target(0, 1, 4), (IndexError,), poisons=True),
    BadInput("class_negative", _target(0, -1, 2), (IndexError,), poisons=True),
    BadInput("class_negative_other_than_ignore_index", _target(0, -99, 2), (IndexError,), poisons=True),
    BadInput("class_huge", _target(0, 2**32, 2), (IndexError,), poisons=True),
    BadInput("target_int8", _of_dtype(torch.int8)),
    BadInput("target_int16", _of_dtype(torch.int16)),
    BadInput("target_int32", _of_dtype(torch.int32)),
    BadInput("target_bool", _of_dtype(torch.bool)),
    BadInput("target_of_another_batch", _target(0, 1), SIZES),
    BadInput("target_with_a_dimension_too_many", lambda: {"target": torch.zeros(3, 1, dtype=torch.int64)}),
    BadInput(
        "target_of_another_size", lambda: {"logits": torch.zeros(2, 4, 3), "target": torch.zeros(2, 4).long()}, SIZES
    ),
    BadInput("an_index_for_each_logit", lambda: {"target": torch.zeros(3, 4, dtype=torch.int64)}),
    BadInput("probabilities_of_another_width", lambda: {"target": torch.zeros(3, 5)}, SIZES),
    BadInput("probabilities_with_ignore_index", lambda: {"target": torch.zeros(3, 4), "ignore_index": 1}),
    BadInput("weight_too_short", lambda: {"weight": torch.ones(3)}),
    BadInput("weight_of_another_dtype", lambda: {"weight": torch.ones(4, dtype=torch.float64)}),
    BadInput("weight_with_a_dimension_too_many", lambda: {"weight": torch.ones(3, 4)}),
    BadInput("reduction_unknown", _option(reduction="average"), (ValueError,)),
    BadInput("label_smoothing_above_one", _option(label_smoothing=1.5), SIZES),
    BadInput("label_smoothing_negative", _option(label_smoothing=-0.1), SIZES),
    BadInput("label_smoothing_nan", _option(label_smoothing=math.nan), SIZES),
)
