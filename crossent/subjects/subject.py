"""Subject: one loss function under test, with its promise about its arithmetic and the features that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from crossent.cases.axes import HALF_DTYPES
from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.numerics.bounds.contracts import Grade, Promise
from crossent.subjects.features import FEATURES

Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Subject:
    """One loss function under test.

    Attributes:
        loss: a function of input and target by position, and of the options by keyword.
        not_applicable: a function that returns why the subject cannot take some inputs, or None.
        dtype: the dtype of the loss; None for the dtype that torch returns for the same arguments.
        promise: the promise of the subject about its arithmetic, from which the error bounds follow.
        compiled: whether torch.compile compiles the loss, which may then sum the rows in any order.
        not_transformed: why checks do not transform the loss, with torch.compile or vmap for example; "" if they do.
        grades: the grade that the subject must reach, by dtype; "A" for a dtype that is missing.
        source: the description from which :func:`crossent.subjects.loader.load` loads the subject; "" for a callable.
        lacks: the features that the subject lacks, with the reasons.
        contract: the name of the contract in the report.
        chunks: the keywords of a linear cross-entropy that set how many rows or classes the loss computes at a time.
        ranks: the number of ranks; 0 for a loss in one process.
        split: for a loss on several ranks, a key of `SPLITS` in :mod:`crossent.subjects.ranks.protocol`; otherwise "".
        normalization: "tokens" for a loss on ranks that divides by the number of kept rows of the batch; otherwise "".
    """

    name: str
    loss: Callable[..., Tensor]
    differentiable: bool = True
    not_applicable: Callable[[Inputs], str | None] = lambda inputs: None
    dtype: torch.dtype | None = None
    promise: Promise = "kernel"
    compiled: bool = False
    not_transformed: str = ""
    grades: Mapping[str, Grade] = field(default_factory=dict)
    source: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    contract: str = "kernel"
    operation: Operation = CROSS_ENTROPY
    chunks: tuple[str, ...] = ()
    ranks: int = 0
    split: str = ""
    normalization: str = ""

    def lacking(self, reasons: Mapping[str, str]) -> Subject:
        """Return a copy of the subject that also lacks the features in `reasons`, a mapping from feature to reason."""
        lacks = {**reasons, **self.lacks}
        return replace(
            self,
            lacks=lacks,
            differentiable=self.differentiable and "gradient" not in lacks,
            not_applicable=partial(_not_applicable, self.not_applicable, reasons),
        )

    def grade(self, dtype: str) -> Grade:
        """Return the grade, "A" or "B", that the subject must reach in this dtype."""
        return self.grades.get(dtype, "A")

    def result_dtype(self, implied: torch.dtype) -> torch.dtype:
        """Return the dtype that the loss must have. `implied` is the dtype that torch returns for the same call."""
        if "half_result" in self.lacks and implied in HALF_DTYPES:
            return torch.float32
        return self.dtype or implied

    @property
    def dtype_name(self) -> str | None:
        """The name of `dtype`, such as "float64", or None."""
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")


def _not_applicable(own: Callable[[Inputs], str | None], lacks: Mapping[str, str], inputs: Inputs) -> str | None:
    reasons = (reason for name, reason in lacks.items() if FEATURES[name].needs(inputs))
    return next(reasons, None) or own(inputs)
