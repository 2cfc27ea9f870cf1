"""Equations between results of a subject, for scripts of checks in `checks/relations/` and `checks/options.py`.

For example, the loss of a batch is a weighted mean of the losses of two parts of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.checks import options
from crossent.checks.relations import changes
from crossent.trials.exact import terms_of
from crossent.trials.trial import NotRunError

Index = tuple[int, ...]
Shapes = Mapping[str, Index]  # the shapes of the parts of a result, by name
# The terms of a sum. Each term is a factor times a number of a result: the position of this result in
# `Equation.inputs`, the factor, and the index of the number in the result.
EquationTerms = tuple[tuple[int, float, Index], ...]


@dataclass(frozen=True)
class Equation:
    """An equation: each number of the first result of a subject equals a weighted sum of numbers of its other results.

    Attributes:
        inputs: the inputs of the call that returns the first result, then the inputs of each other call.
        terms: a function that takes a part of the result ("loss", "gradient", …) and the index of a number in this part
            of the first result. The function returns the terms of the sum that equals this number. By default, the only
            term is the same number of the second result, so two results must be equal. If `terms` is None, the two
            results must differ instead.
    """

    inputs: tuple[Inputs, ...]
    terms: Callable[[str, Index], EquationTerms] | None = lambda part, index: ((1, 1.0, index),)


# The gradients of the weight and the bias of a linear layer, which are sums over the rows.
OF_LAYER = ("weight_gradient", "bias_gradient")
# A function that takes a case and its inputs, and returns the equations that a check tests, by the name of the call.
Equations = Callable[[Case, Inputs], Mapping[str, Equation]]


def part_shapes(given: Inputs) -> Shapes:
    """Return the shapes of the loss and of each gradient of a call with these inputs, by name."""
    shapes = {"loss": given.upstream.shape, **{name: leaf.shape for name, leaf in given.leaves.items()}}
    return {name: tuple(shape) for name, shape in shapes.items()}


def equal_to(change: Callable[[Inputs], Inputs]) -> Equations:
    """Return a function that returns one equation: the inputs of a case and `change(inputs)` have equal results."""
    return lambda case, given: {"": Equation((given, change(given)))}


def of_shifted_logits(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return the equations: adding a number to all logits of a row, or to the whole bias, does not change the result.

    For logits, there are two equations. One adds the same number to all rows. The other adds one number to each row,
    positive and negative in turn. The logits, or the bias, are rounded first, so that each sum is exact. Return {} if
    no exact shift is possible.
    """
    return {call: Equation(inputs) for call, inputs in changes.shifted(given).items()}


def of_reversed_rows(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return an equation for each dimension of the rows: inputs flipped along the dimension flip the result.

    A dimension of the rows is any dimension of batched logits with a size above 1, except the class dimension. A part
    of the result without this dimension stays the same, such as a mean, or the gradient of the weight of a linear
    layer.
    """

    def along(axis: int) -> Equation:
        def terms(part: str, index: Index) -> EquationTerms:
            if part in OF_LAYER:
                return ((1, 1.0, index),)
            of_rows = max(0, axis - 1) if part == "loss" else axis  # the loss has no class dimension
            return ((1, 1.0, _reverse(index, part_shapes(given)[part], of_rows)),)

        return Equation((given, changes.reverse_rows(given, axis)), terms)

    return {f"reversed along dimension {axis}": along(axis) for axis in changes.rows_axes(given)}


def of_reversed_classes(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return the equation: flipping the classes keeps the loss, and flips the gradients along the class dimension.

    In a linear cross-entropy, the gradients of weight and bias have a class dimension. The gradient of the input has
    no class dimension, and stays the same.
    """

    def terms(part: str, index: Index) -> EquationTerms:
        linear = given.operation is LINEAR_CROSS_ENTROPY
        axis = 0 if linear else min(1, given.input.dim() - 1)
        flipped = part in OF_LAYER if linear else part != "loss"
        return ((1, 1.0, _reverse(index, part_shapes(given)[part], axis) if flipped else index),)

    return {"": Equation((given, changes.reverse_classes(given)), terms)}


def _reverse(index: Index, shape: Index, axis: int) -> Index:
    return (*index[:axis], shape[axis] - 1 - index[axis], *index[axis + 1 :]) if index else ()


def of_two_batches(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return the equation: the result of a batch follows from the results of two parts of the batch.

    Return {} if the batch cannot be split: in every split, the mean of a part or of the batch would divide by 0.
    """
    try:
        batches = changes.split_batch(given, terms_of(given))
    except NotRunError:
        return {}
    (first, of_first), (second, of_second) = ((float(share), inputs) for share, inputs in batches)
    size = len(of_first.input)

    def terms(part: str, index: Index) -> EquationTerms:
        if not index or part in OF_LAYER:  # a sum, or a weighted mean of two means
            return (1, first, index), (2, second, index)
        row, *further = index
        return ((1, first, index) if row < size else (2, second, (row - size, *further)),)

    return {"": Equation((given, of_first, of_second), terms)}


def of_options(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return equations between the result of the case and the results with fewer or more options.

    A call without one option that the case uses, such as a weight, must give a different result. A call with additional
    neutral options, such as a weight of ones, must give an equal result. The call with neutral options leaves out a
    label_smoothing of 0 and the reduction "mean". If this call would have the same options, there is no such equation.
    """
    equations = {call: Equation((given, without), None) for call, without in options.without_each_option(given).items()}
    if off := options.with_neutral_options(given, case.ignored):
        other, passed = off
        chosen = replace(other, options={name: other.options[name] for name in passed})
        equations["with neutral options"] = Equation((given, chosen))
    return equations
