"""A call to cross-entropy, checked and laid out as rows: what the forms share.

Every form starts with :func:`lay_out`, which refuses bad arguments, moves the class axis last and widens
half precision to float32, and ends with :meth:`Rows.reduce`, which drops the ignored rows, applies the
reduction and rounds once to the dtype of the result. Between the two a form is only its formula. A form that
takes some rows at a time starts with :func:`arrange` and widens these: :meth:`Rows.part`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossent.forms.validation import HALVES, check_dtypes, check_options, check_target


@dataclass  # not frozen: up to torch 2.2, Dynamo makes no object of a class that has its own __setattr__
class Rows:
    """The rows of one call. `...` stands for the batch and every further dimension, `C` for the classes.

    Attributes:
        logits: (..., C), float32 or float64; as they came until they are widened.
        index: (...), int64, the true class of each row and 0 on ignored rows; None for probability targets.
        kept: (...), bool, False on ignored rows; None for probability targets.
        probabilities: (..., C), `(1 - ε)·target + ε/C`; the target as it came until it is widened; None for index
            targets.
        weight: (C,), or None where every weight is one.
        target_weight: (...), the weight of each row's true class, 0 on ignored rows; None for probability targets.
        label_smoothing: ε, from 0 to 1.
        reduction: "none", "mean" or "sum".
        dtype: dtype of the result.
    """

    logits: Tensor
    index: Tensor | None
    kept: Tensor | None
    probabilities: Tensor | None
    weight: Tensor | None
    target_weight: Tensor | None
    label_smoothing: float
    reduction: str
    dtype: torch.dtype

    @property
    def dense(self) -> bool:
        """Whether every class counts in a row's loss, and not the true one alone."""
        return self.index is None or self.label_smoothing > 0

    @property
    def compute(self) -> torch.dtype:
        """What is computed in: float32 for half precision."""
        return torch.float32 if self.dtype in HALVES else self.dtype

    @property
    def divisor(self) -> Tensor | int:
        """What `mean` divides by: the weight of the kept rows' true classes, NaN where that is 0; or the rows.

        A divisor of NaN, and not a result of NaN that is chosen: its derivatives are NaN too, and not a sure 0.
        """
        if self.target_weight is None:
            return math.prod(self.logits.shape[:-1])
        weight = self.target_weight.sum()
        return torch.where(weight == 0, torch.nan, weight)  # smoothing may have left something to divide

    def widened(self) -> Rows:
        """The same in the dtype that is computed in, and probabilities smoothed."""
        probabilities = self.probabilities
        if probabilities is not None:
            probabilities = _smooth(probabilities.to(self.compute), self.label_smoothing)
        return self._with(self.logits.to(self.compute), self.index, self.kept, probabilities, self.target_weight)

    def part(self, at: tuple[int | slice, ...]) -> Rows:
        """Some of the rows, `at` an index of `...`; all, where that is empty."""
        if at == ():
            return self
        index, kept, probabilities, target_weight = (
            None if one is None else one[at] for one in (self.index, self.kept, self.probabilities, self.target_weight)
        )
        return self._with(self.logits[at], index, kept, probabilities, target_weight)

    def _with(
        self,
        logits: Tensor,
        index: Tensor | None,
        kept: Tensor | None,
        probabilities: Tensor | None,
        target_weight: Tensor | None,
    ) -> Rows:
        options = self.label_smoothing, self.reduction, self.dtype
        return Rows(logits, index, kept, probabilities, self.weight, target_weight, *options)

    def pick(self, values: Tensor) -> Tensor:
        """The entry of each row's true class: (..., C) to (...)."""
        assert self.index is not None
        return values.gather(-1, self.index.unsqueeze(-1)).squeeze(-1)

    def weigh(self, values: Tensor) -> Tensor:
        """`w_y · values`: (...) to (...)."""
        assert self.target_weight is not None
        return self.target_weight * values

    def weighted(self, values: Tensor) -> Tensor:
        """`w_c · values_c`: (..., C) to (..., C)."""
        return values if self.weight is None else self.weight * values

    def expect(self, values: Tensor) -> Tensor:
        """`Σ_c w_c q_c values_c`, with `q` the smoothed target: (..., C) to (...)."""
        if self.probabilities is not None:
            return self.weighted(self.probabilities * values).sum(-1)
        uniform = self.weighted(values).sum(-1) * (self.label_smoothing / values.shape[-1])
        if self.label_smoothing == 1:  # q is uniform; 0 · inf of the true class must not enter
            return uniform
        return (1 - self.label_smoothing) * self.weigh(self.pick(values)) + uniform

    def one_hot(self) -> Tensor:
        """The dense target `q`, (..., C): probabilities, or the smoothed one-hot of the index."""
        if self.probabilities is not None:
            return self.probabilities
        assert self.index is not None
        hot = torch.zeros_like(self.logits).scatter(-1, self.index.unsqueeze(-1), 1.0)
        return _smooth(hot, self.label_smoothing)

    def reduce(self, losses: Tensor) -> Tensor:
        """The result from the loss of each row, (...): 0 on ignored rows, reduced, rounded once.

        `mean` divides by the weight of the kept rows' true classes, and by the number of rows where targets
        are probabilities. Over no rows that is 0/0, NaN.
        """
        if self.kept is not None:
            losses = torch.where(self.kept, losses, 0.0)  # not a product: an ignored row may hold NaN
        if self.reduction != "none":
            losses = losses.sum()
            if self.reduction == "mean":
                losses = losses / self.divisor
        return losses.to(self.dtype)


def lay_out(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Rows:
    """Check the arguments of a form, and lay them out as :class:`Rows` that are widened.

    Raises what `F.cross_entropy` raises: TypeError, ValueError, RuntimeError, NotImplementedError for dtypes
    that are no floats, IndexError for a target outside `[0, C)` that is not ignored. On CUDA that last one is
    a device-side assert, as torch's own is: nothing here makes the host wait for the device.
    """
    return arrange(input, target, weight, ignore_index, reduction, label_smoothing).widened()


def arrange(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Rows:
    """As :func:`lay_out`, with logits and probabilities as they came: views of them."""
    ignore_index, label_smoothing = check_options(input, target, weight, ignore_index, reduction, label_smoothing)
    dense = target.shape == input.shape
    check_target(input, target, dense, ignore_index)
    dtype = check_dtypes(input, target if dense else None, weight)
    compute = torch.float32 if dtype in HALVES else dtype

    logits = input
    class_weight = None if weight is None else weight.to(compute)
    if input.dim() > 1:
        logits = logits.movedim(1, -1)
    if dense:
        if target.dim() > 1:
            target = target.movedim(1, -1)
    elif input.dim() == 1:
        target = target.reshape(())
    classes = input.shape[min(1, input.dim() - 1)]
    if classes == 0:
        # No classes: an empty sum, so a loss of 0. One class with a logit of 0 has that loss too, and a maximum.
        logits = logits.sum(-1, keepdim=True)
        target = target.sum(-1, keepdim=True) if dense else target
        class_weight = None

    if dense:
        return Rows(logits, None, None, target, class_weight, None, label_smoothing, reduction, dtype)

    index = target.to(torch.int64)  # before the comparison: as uint8, -100 would be 156
    kept = index != ignore_index
    index = torch.where(kept, index if classes else 1, 0)  # without classes, no kept row has one
    if compiling():  # and some versions of torch compile a gather that counts -1 from the end (pytorch#135546)
        index = torch.where(index < 0, 2**62, index)
    ones = _look_up(logits.new_ones(logits.shape[-1], dtype=compute), index, classes, ignore_index)
    kept = kept & (ones > 0)  # which each result is made of, so that no compiler drops the look
    if class_weight is None:
        target_weight = kept.to(compute)
    else:
        target_weight = torch.where(kept, _look_up(class_weight, index, classes, ignore_index), 0.0)
    return Rows(logits, index, kept, None, class_weight, target_weight, label_smoothing, reduction, dtype)


def _smooth(probabilities: Tensor, label_smoothing: float) -> Tensor:
    """`(1 - ε)·q + ε/C`."""
    if label_smoothing == 0:
        return probabilities
    return (1 - label_smoothing) * probabilities + label_smoothing / probabilities.shape[-1]


def _look_up(table: Tensor, index: Tensor, classes: int, ignore_index: int) -> Tensor:
    """`table[y]`, and the one place where a target outside `[0, C)` is caught.

    It is the gather that looks: in eager mode, under vmap and in compiled code on CPU alike, and on CUDA
    without a copy to the host. A check in Python could do none of the last three (pytorch#135546).
    """
    try:
        return table.gather(0, index.reshape(-1)).reshape(index.shape)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(
            f"target: {error}; allowed are the classes 0 to {classes - 1} and ignore_index, {ignore_index}"
        ) from None


# Asked of a function that torch's tracers know; the first versions that compile have none.
compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)
