"""The code that all forms on tensors share: it checks the arguments of a call and lays them out as rows of logits.

A form in :mod:`crossent.forms.textbook` starts with :func:`lay_out` and ends with :meth:`Rows.reduce`. Between these
two calls, the form is only its formula. To *widen* rows is to convert half precision to float32, and to smooth class
probabilities (:meth:`Rows.widened`). The other forms start with :func:`arrange`, which does not widen the rows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossent.forms.validation import HALVES, check_dtypes, check_options, check_target


@dataclass  # not frozen: Dynamo of torch 2.2 and older cannot build objects of a class with its own __setattr__
class Rows:
    """The arguments of one call, laid out as rows.

    In shapes, `...` stands for the batch and every further dimension, and `C` for the classes.

    Attributes:
        logits: (..., C), in float32 or float64. Before :meth:`widened`, in the caller's dtype.
        index: (...), int64, the true class of each row, and 0 on ignored rows. None for class probabilities.
        kept: (...), bool, False on ignored rows. None means that no row is ignored.
        probabilities: (..., C), the smoothed class probabilities. Before :meth:`widened`, without smoothing. None for
            class indices.
        weight: (C,), the class weights; or None.
        target_weight: (...), the weight of each row's true class, and 0 on ignored rows. None means that each row
            counts 1 in the mean.
        label_smoothing: `ε`, from 0 to 1.
        reduction: "none", "mean" or "sum".
        dtype: The dtype of the result.
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
        """Whether the loss of a row has a term for every class, not only for the true class."""
        return self.index is None or self.label_smoothing > 0

    @property
    def compute(self) -> torch.dtype:
        """The dtype of all computation: float32 for a result in half precision, otherwise the dtype of the result."""
        return torch.float32 if self.dtype in HALVES else self.dtype

    @property
    def divisor(self) -> Tensor | int:
        """The divisor of `mean`: the sum of `target_weight`, or the number of rows.

        A sum of 0 becomes NaN, so that the result and its derivatives are NaN.
        """
        if self.target_weight is None:
            return math.prod(self.logits.shape[:-1])
        weight = self.target_weight.sum()
        return torch.where(weight == 0, torch.nan, weight)  # with smoothing, x/0 could be infinite instead of NaN

    def widened(self) -> Rows:
        """Return these rows in the dtype of the computation, with the class probabilities smoothed."""
        probabilities = self.probabilities
        if probabilities is not None:
            probabilities = _smooth(probabilities.to(self.compute), self.label_smoothing)
        return self._with(self.logits.to(self.compute), self.index, self.kept, probabilities, self.target_weight)

    def blocks(self, most: int, *others: Tensor | float) -> Iterator[tuple[Any, ...]]:
        """Yield tuples: a block of at most `most` rows, then the same rows of each element of `others`.

        An element of `others` that is a single number is the same in all tuples.
        """
        count = math.prod(self.logits.shape[:-1])
        if count <= most:
            yield self, *others
            return
        length = len(self.logits)
        step = most // (count // length)  # how many entries of the first dimension make a block
        step = step and math.ceil(length / math.ceil(length / step))  # blocks of nearly the same length
        tensors = self.logits, self.index, self.kept, self.probabilities, self.target_weight, *others
        pieces = (
            (torch.split(tensor, step) if step else tensor.unbind())
            if isinstance(tensor, Tensor) and tensor.dim() > 0
            else itertools.repeat(tensor)
            for tensor in tensors
        )
        for logits, index, kept, probabilities, target_weight, *rest in zip(*pieces, strict=False):
            block = self._with(logits, index, kept, probabilities, target_weight)
            if step:
                yield block, *rest
            else:  # one entry of the first dimension has more than `most` rows
                yield from block.blocks(most, *rest)

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
        """Return the element of `values`, (..., C), for the true class of each row."""
        assert self.index is not None
        return values.gather(-1, self.index.unsqueeze(-1)).squeeze(-1)

    def weigh(self, values: Tensor) -> Tensor:
        """Return `values`, (...), times the weight of each row's true class."""
        return values if self.target_weight is None else self.target_weight * values

    def weighted(self, values: Tensor) -> Tensor:
        """Return `values`, (..., C), times the class weights."""
        return values if self.weight is None else self.weight * values

    def expect(self, values: Tensor) -> Tensor:
        """Return `Σ_c w_c q_c values_c` for each row, with the class weights `w` and the smoothed target `q`."""
        if self.probabilities is not None:
            return self.weighted(self.probabilities * values).sum(-1)
        uniform = self.weighted(values).sum(-1) * (self.label_smoothing / values.shape[-1])
        if self.label_smoothing == 1:  # q is uniform, and a term 0 · inf of the true class would be NaN
            return uniform
        return (1 - self.label_smoothing) * self.weigh(self.pick(values)) + uniform

    def smoothed_target(self) -> Tensor:
        """Return the smoothed target of widened rows as a dense tensor, (..., C)."""
        if self.probabilities is not None:
            return self.probabilities
        assert self.index is not None
        hot = torch.zeros_like(self.logits).scatter(-1, self.index.unsqueeze(-1), 1.0)
        return _smooth(hot, self.label_smoothing)

    def reduce(self, losses: Tensor) -> Tensor:
        """Set the losses of ignored rows to 0, apply the reduction, and round once to the dtype of the result."""
        if self.kept is not None:
            losses = torch.where(self.kept, losses, 0.0)  # a product with 0 would keep the NaN of an ignored row
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
    """Check the arguments of a form, which :func:`crossent.formula` documents, and return them as widened rows."""
    return arrange(input, target, weight, ignore_index, reduction, label_smoothing).widened()


def arrange(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    *,
    eager: bool = False,
) -> Rows:
    """Check the arguments of a form, and return them as :class:`Rows` that are not widened.

    With `eager=True`, later steps are faster if no row is ignored. Pass `eager=True` only in eager mode, on a CPU, for
    a `target` that is not empty.
    """
    ignore_index, label_smoothing = check_options(input, target, weight, ignore_index, reduction, label_smoothing)
    has_probabilities = target.shape == input.shape
    check_target(input, target, has_probabilities, ignore_index)
    dtype = check_dtypes(input, target if has_probabilities else None, weight)
    compute = torch.float32 if dtype in HALVES else dtype

    logits = input
    class_weight = None if weight is None else weight.to(compute)
    if input.dim() > 2:
        logits = logits.movedim(1, -1)
    if has_probabilities:
        if target.dim() > 2:
            target = target.movedim(1, -1)
    elif input.dim() == 1:
        target = target.reshape(())
    classes = input.shape[min(1, input.dim() - 1)]
    if classes == 0:
        # Without classes the loss is an empty sum, 0. One class with logit 0 has the same loss, and the row then has
        # a maximum.
        logits = logits.sum(-1, keepdim=True)
        target = target.sum(-1, keepdim=True) if has_probabilities else target
        class_weight = None

    if has_probabilities:
        return Rows(logits, None, None, target, class_weight, None, label_smoothing, reduction, dtype)

    index = target.to(torch.int64)  # before the comparison: in uint8, -100 is 156
    if eager and _all_kept(index, classes, ignore_index):
        target_weight = None if class_weight is None else _look_up(class_weight, index, classes, ignore_index)
        return Rows(logits, index, None, None, class_weight, target_weight, label_smoothing, reduction, dtype)
    kept = index != ignore_index
    index = torch.where(kept, index if classes else 1, 0)  # without classes, every kept target is out of range
    if compiling():  # some versions of torch compile a gather that takes -1 for the last class (pytorch#135546)
        index = torch.where(index < 0, 2**62, index)
    ones = _look_up(logits.new_ones(logits.shape[-1], dtype=compute), index, classes, ignore_index)
    kept = kept & (ones > 0)  # ones > 0 is always True, but a compiler cannot remove a look-up that the result needs
    if class_weight is None:
        target_weight = kept.to(compute)
    else:
        target_weight = torch.where(kept, _look_up(class_weight, index, classes, ignore_index), 0.0)
    return Rows(logits, index, kept, None, class_weight, target_weight, label_smoothing, reduction, dtype)


def _all_kept(index: Tensor, classes: int, ignore_index: int) -> bool:
    """Return whether the least and the greatest target prove that every target is a class and no row is ignored."""
    lowest, highest = (int(number) for number in index.aminmax())
    return lowest >= 0 and highest < classes and not lowest <= ignore_index <= highest


def _smooth(probabilities: Tensor, label_smoothing: float) -> Tensor:
    if label_smoothing == 0:
        return probabilities
    return (1 - label_smoothing) * probabilities + label_smoothing / probabilities.shape[-1]


def _look_up(table: Tensor, index: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Return the entry of `table`, (C,), for each row's true class. Raise IndexError for a class out of range."""
    # `gather` also checks the range under vmap, in compiled code (pytorch#135546) and, by an assert, on CUDA.
    try:
        return table.gather(0, index.reshape(-1)).reshape(index.shape)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        if not classes:  # `arrange` has replaced the classes
            got = f"got a class, but input has no classes; allowed is only ignore_index, {ignore_index}"
            raise IndexError(f"target: {got}") from None
        found = re.search(r"index (-?\d+) is out of bounds", str(error))
        raise IndexError(
            f"target: got {f'class {found[1]}' if found else 'a class'}, which is out of bounds; "
            f"allowed are the classes 0 to {classes - 1} and ignore_index, {ignore_index}"
        ) from None


# torch's tracers replace this call by True. The oldest versions of torch that can compile lack the function.
compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)
