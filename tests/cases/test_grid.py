"""The covering arrays of the grid: every pair and triple of options occurs. The tests count them independently."""

import itertools

import pytest

from crossent.cases.axes import broken
from crossent.cases.grid import _SIZES, ARRAYS, CHOICES, grid


def possible(picked, choices, left=None):
    """Whether some case has these choices: tried out, choice by choice."""
    if broken(picked):
        return False
    left = [axis for axis in choices if axis not in picked] if left is None else left
    if not left:
        return True
    return any(possible({**picked, left[0]: choice}, choices, left[1:]) for choice in choices[left[0]])


@pytest.mark.parametrize("name", ARRAYS)
def test_all_choices_meet_that_can(name, figure):
    strength, choices_of = ARRAYS[name].strength, ARRAYS[name].choices
    met = list(grid(array=name))
    assert all(case.invalid is None for case in met)
    covered = valid = 0
    for axes in itertools.combinations(CHOICES, strength):
        together = {tuple(getattr(case, axis) for axis in axes) for case in met}
        for choices in itertools.product(*(choices_of[axis] for axis in axes)):
            if choices in together:
                covered += 1
                valid += 1
            elif possible(dict(zip(axes, choices, strict=True)), choices_of):
                valid += 1
    share = f"{100 * covered / valid:.2f} %"
    figure(f"{name}: {len(met)} cases cover {covered} of {valid} sets of {strength} choices that can meet, {share}")
    assert covered == valid > 100


def test_the_arrays_are_of_these_choices():
    for case in grid():
        assert case.sizes in _SIZES


def test_a_dtype_has_its_own_cases_and_no_others():
    whole = list(grid())
    assert [case for case in whole if case.dtype == "bfloat16"] == list(grid(["bfloat16"]))


def test_ids_are_unique():
    for name in ARRAYS:
        ids = [case.id for case in grid(array=name)]
        assert len(ids) == len(set(ids))
