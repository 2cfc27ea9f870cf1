"""Ways: how a result follows from those of other inputs, number by number, as the relations have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.checks import options, relations
from crossent.trials.exact import terms_of
from crossent.trials.trial import NotRunError

Index = tuple[int, ...]
Shapes = Mapping[str, Index]  # of results, by name
Followed = tuple[tuple[int, float, Index], ...]


@dataclass(frozen=True)
class Equation:
    """How a result follows from others.

    Attributes:
        inputs: of the result, and of the others.
        followed: which numbers a number of it is the sum of, by its part and index: of which of the others, what share,
            and the index there. None where the two results must differ.
    """

    inputs: tuple[Inputs, ...]
    followed: Callable[[str, Index], Followed] | None = lambda part, index: ((1, 1.0, index),)


Equations = Callable[[Case, Inputs], Mapping[str, Equation]]


def parts(given: Inputs) -> Shapes:
    """The sizes of loss and gradients."""
    shapes = {"loss": given.upstream.shape, "gradient": given.logits.shape}
    if given.target.is_floating_point():
        shapes["target_gradient"] = given.target.shape
    return {name: tuple(shape) for name, shape in shapes.items()}


def of_the_same(by: Callable[[Inputs], Inputs]) -> Equations:
    """From inputs that are made of the case's own, and give the same."""
    return lambda case, given: {"": Equation((given, by(given)))}


def of_moved_logits(case: Case, given: Inputs) -> dict[str, Equation]:
    """By how they are moved; the result is that of the logits as they were rounded for it."""
    return {way: Equation(inputs) for way, inputs in relations.shifted(given).items()}


def of_turned_rows(case: Case, given: Inputs) -> dict[str, Equation]:
    """By the dimension along which they are turned round."""

    def way(axis: int) -> Equation:
        def followed(part: str, index: Index) -> Followed:
            of_rows = max(0, axis - 1) if part == "loss" else axis  # the loss has no class axis
            return ((1, 1.0, _turned(index, parts(given)[part], of_rows)),)

        return Equation((given, relations.rows_turned(given, axis)), followed)

    return {f"turned along {axis}": way(axis) for axis in relations.rows_axes(given)}


def of_turned_classes(case: Case, given: Inputs) -> dict[str, Equation]:
    """From the classes the other way round."""

    def followed(part: str, index: Index) -> Followed:
        axis = min(1, given.logits.dim() - 1)
        return ((1, 1.0, index if part == "loss" else _turned(index, parts(given)[part], axis)),)

    return {"": Equation((given, relations.classes_turned(given)), followed)}


def _turned(index: Index, shape: Index, axis: int) -> Index:
    return (*index[:axis], shape[axis] - 1 - index[axis], *index[axis + 1 :]) if index else ()


def of_two_parts(case: Case, given: Inputs) -> dict[str, Equation]:
    """From two parts of the batch; none where there are no two that have something to divide by."""
    try:
        parted = relations.parted(given, terms_of(given))
    except NotRunError:
        return {}
    (one, of_one), (other, of_other) = ((float(share), inputs) for share, inputs in parted)
    at = len(of_one.logits)

    def followed(part: str, index: Index) -> Followed:
        if not index:  # a sum, or a mean of means
            return (1, one, ()), (2, other, ())
        row, *further = index
        return ((1, one, index) if row < at else (2, other, (row - at, *further)),)

    return {"": Equation((given, of_one, of_other), followed)}


def of_options(case: Case, given: Inputs) -> dict[str, Equation]:
    """From the inputs without an option, which differ, and with those that are off."""
    ways = {way: Equation((given, without), None) for way, without in options.left_out(given).items()}
    if off := options.turned_off(given, case.ignored):
        other, passed = off
        ways["with options off"] = Equation(
            (given, replace(other, options={name: other.options[name] for name in passed}))
        )
    return ways
