"""The cases of a soak: each follows from its number, and all choices occur."""

from dataclasses import replace

import pytest

from crossent.cases.axes import DTYPES, IGNORED
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.grid import LINEAR_CHOICES
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.cases.values import VALUES
from crossent.run.soak.draws import draw, draws


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_part_of_a_soak_has_the_cases_of_the_whole_soak(dtype):
    assert list(draws(30, [dtype]))[20:] == list(draws(10, [dtype], first=20))
    assert list(draws(30, [dtype], seed=1)) != list(draws(30, [dtype]))


def test_a_case_is_the_same_in_every_dtype_that_can_hold_it():
    cases = list(draws(200))
    for number in range(200):
        of = {case.dtype: replace(case, dtype="") for case in cases[4 * number : 4 * number + 4]}
        assert of["bfloat16"] == of["float32"] == of["float64"]
        assert of["float16"] == of["float32"] or VALUES[of["float32"].values].largest > 65504


def test_every_case_of_a_soak_is_rebuilt_from_its_id():
    for case in draws(500, ["float16", "float32"]):
        assert Case.of(case.id) == case


def test_a_soak_has_every_choice_and_the_sizes_where_sums_go_wrong():
    cases = list(draws(2000, ["float32"]))
    for axis, table in (("values", VALUES), ("ignored", IGNORED), ("label_smoothing", (0.0, 0.1, 1.0))):
        assert {getattr(case, axis) for case in cases} >= set(table)
    assert {15, 16, 17, 31, 32, 33, 255, 256, 257, 513, 1025, 50_000} <= {case.classes for case in cases}
    assert {1, 5000} <= {case.rows for case in cases}
    assert {1, 2, 3, 4} == {len(case.sizes) for case in cases}


def test_a_case_of_a_linear_cross_entropy_is_rebuilt_from_its_number_and_from_its_id():
    cases = list(draws(50, seed=1, operation=LINEAR_CROSS_ENTROPY))
    assert cases[4 * 20 + 1] == draw(20, "bfloat16", 1, LINEAR_CROSS_ENTROPY)
    assert all(LinearCase.of(case.id) == case for case in cases)
    assert len({case.id for case in cases}) == len(cases)


def test_a_soak_of_a_linear_cross_entropy_has_every_choice():
    cases = list(draws(800, ["float32"], operation=LINEAR_CROSS_ENTROPY))
    for axis in ("values", "target", "reduction", "weight", "ignored", "bias", "linear_layout", "label_smoothing"):
        assert {getattr(case, axis) for case in cases} == set(LINEAR_CHOICES[axis])
    assert {1, 2} < {case.rows for case in cases}
    assert {1, 1024} < {case.hidden for case in cases}
