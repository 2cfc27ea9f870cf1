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
    """An equation: each number of the first result of a subject is a weighted sum of numbers of the other results.

    Attributes:
        inputs: the inputs of the call that returns the first result, then the inputs of each other call.
        terms: a function that returns the terms of the sum. The arguments are a part of the result ("loss", …) and the
            index of a number of the first result. By default, the equation says that two results are equal. None
            says that two results must differ.
    """

    inputs: tuple[Inputs, ...]
    terms: Callable[[str, Index], EquationTerms] | None = lambda part, index: ((1, 1.0, index),)


# The gradients of the weight and the bias of a linear layer, which are sums over the rows.
OF_LAYER = ("weight_gradient", "bias_gradient")
# A function that takes a case and its inputs, and returns the equations that a check tests, by the name of the call.
Equations = Callable[[Case, Inputs], Mapping[str, Equation]]


def part_shapes(given: Inputs) -> Shapes:
    """Return the shapes of the loss and of each gradient of a call, by name."""
    shapes = {"loss": given.upstream.shape, **{name: leaf.shape for name, leaf in given.leaves.items()}}
    return {name: tuple(shape) for name, shape in shapes.items()}


def equal_to(change: Callable[[Inputs], Inputs]) -> Equations:
    """Return a function that returns one equation: the inputs of a case and `change(inputs)` have equal results."""
    return lambda case, given: {"": Equation((given, change(given)))}


def of_shifted_logits(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return the equations: adding a number to all logits of a row, or to the whole bias, keeps the result."""
    return {call: Equation(inputs) for call, inputs in changes.shifted(given).items()}


def of_reversed_rows(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return an equation for each dimension of the rows: flipped inputs flip each part with this dimension."""

    def along(axis: int) -> Equation:
        def terms(part: str, index: Index) -> EquationTerms:
            if part in OF_LAYER:
                return ((1, 1.0, index),)
            of_rows = max(0, axis - 1) if part == "loss" else axis  # the loss has no class dimension
            return ((1, 1.0, _reverse(index, part_shapes(given)[part], of_rows)),)

        return Equation((given, changes.reverse_rows(given, axis)), terms)

    return {f"reversed along dimension {axis}": along(axis) for axis in changes.rows_axes(given)}


def of_reversed_classes(case: Case, given: Inputs) -> dict[str, Equation]:
    """Return the equation: flipped classes keep the loss, and flip each gradient with a class dimension."""

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

    If every split of the batch would divide by 0, return no equation.
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

    A call without one option must give a different result. A call with neutral options, such as a weight of ones, must
    give an equal result.
    """
    equations = {call: Equation((given, without), None) for call, without in options.without_each_option(given).items()}
    if off := options.with_neutral_options(given, case.ignored):
        other, passed = off
        chosen = replace(other, options={name: other.options[name] for name in passed})
        equations["with neutral options"] = Equation((given, chosen))
    return equations
