"""A subject: a cross-entropy under test, what it promises about its arithmetic and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.numerics.bounds.contracts import Grade, Promise
from crossent.subjects.features import FEATURES

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Subject:
    """One cross-entropy under test.

    Attributes:
        name: what the report calls it.
        loss: a callable with the signature of `F.cross_entropy`.
        differentiable: whether its result has a gradient.
        not_applicable: why a case does not apply to it, or None where it does.
        dtype: of its results, where that is not the one that the logits call for.
        promise: about its arithmetic; somebody's kernel unless it says otherwise.
        not_transformed: why it is not transformed (compiled, vmapped, …), or "" where it is.
        grades: the grade that it must reach for a dtype, where that is not A.
        source: what :func:`crossent.subjects.loader.load` finds it by in another process; "" of a plain callable.
        lacks: the features that it does without, each with the reason.
    """

    name: str
    loss: Callable[..., Tensor]
    differentiable: bool = True
    not_applicable: Callable[[Inputs], str | None] = lambda inputs: None
    dtype: torch.dtype | None = None
    promise: Promise = "kernel"
    not_transformed: str = ""
    grades: Mapping[str, Grade] = field(default_factory=dict)
    source: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)

    def lacking(self, reasons: Mapping[str, str]) -> Subject:
        """The same without these features, each of which has a reason."""
        lacks = {**reasons, **self.lacks}
        return replace(
            self,
            lacks=lacks,
            differentiable=self.differentiable and "gradient" not in lacks,
            not_applicable=partial(_not_applicable, self.not_applicable, reasons),
        )

    def grade(self, dtype: str) -> Grade:
        """The grade that it must reach."""
        return self.grades.get(dtype, "A")

    @property
    def dtype_name(self) -> str | None:
        """`dtype` in a word."""
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")


def _not_applicable(own: Callable[[Inputs], str | None], lacks: Mapping[str, str], inputs: Inputs) -> str | None:
    reasons = (reason for name, reason in lacks.items() if FEATURES[name].needs(inputs))
    return next(reasons, None) or own(inputs)
