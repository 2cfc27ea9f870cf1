"""Test the covering arrays of a linear cross-entropy: each possible pair or triple of choices occurs.

The tests count the combinations independently of the search that made the arrays.
"""

import itertools

import pytest

from crossent.cases.axes import CLASS_LIMITS, DTYPES, ROW_LIMITS, size_range
from crossent.cases.case import Case
from crossent.cases.grid import count_combinations, sized_triples
from crossent.cases.linear.case import HIDDEN_LIMITS, LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.cases.linear.grid import LINEAR_ARRAYS, LINEAR_CHOICES, linear_grid, linear_numbers
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.choices import LEVELS
from crossent.run.plan import plan

HIDING = {"row_size": "no rows", "class_size": "1 class", "ignored": "ignored_all", "upstream": "zero"}


def uncovered(name):
    """Return the combinations of choices that no case of an array covers, and the number of all other combinations.

    A case does not cover a combination if a choice on another axis makes all gradients zeros, empty or NaN.
    """
    array, covered = LINEAR_ARRAYS[name], 0
    cases = [
        (case, {axis for axis, word in HIDING.items() if getattr(case, axis) == word})
        for case in linear_grid(array=name)
    ]
    missing = []
    for axes in itertools.combinations(array.choices, array.strength):
        together = {tuple(getattr(case, axis) for axis in axes) for case, hiding in cases if hiding <= set(axes)}
        covered += len(together)
        every = itertools.product(*(array.choices[axis] for axis in axes))
        missing += [dict(zip(axes, choices, strict=True)) for choices in every if choices not in together]
    return missing, covered


def possible(chosen, array):
    """Return whether a case can have these choices, by trying all choices on the other axes."""
    if array.forbids(chosen):
        return False
    left = [axis for axis in array.choices if axis not in chosen]
    if not left:
        return True
    others = [choice for choice in array.choices[left[0]] if choice != HIDING.get(left[0])]
    return any(possible({**chosen, left[0]: choice}, array) for choice in others)


@pytest.mark.parametrize("name", LINEAR_ARRAYS)
def test_an_array_covers_every_possible_combination_of_choices(name, figure):
    array = LINEAR_ARRAYS[name]
    missing, covered = uncovered(name)
    figure(f"linear {name}: {len(list(linear_grid(array=name)))} cases cover {covered} combinations of choices")
    assert [chosen for chosen in missing if possible(chosen, array)] == []
    assert covered > (1000 if name == "pairs" else 30_000)


def first_number(size):
    """Return the first number of a size range that a case has, such as 257 for "257 to 1024 classes"."""
    known = {"no rows": 0, "16385 to 65535 classes": 32000}
    return known[size] if size in known else int(size.split()[0])


# For each axis, the choice with which the most combinations on other axes are possible.
EASY = {
    **{"dtype": "float32", "row_size": "1 row", "class_size": "2 classes", "hidden_size": "1 hidden unit"},
    **{"target": "int64", "reduction": "none", "ignored": "kept", "upstream": "one"},
    **{"layout": "contiguous", "linear_layout": "linear_contiguous"},
}


def why_impossible(given):
    """Return the reason why no case can have these choices, or None.

    The function knows what each choice means, and does not use the constraints of the arrays.
    """
    of_chunks = given.get("ignored") == "ignored_first_chunk"
    chosen = {**EASY, **({"row_size": "129 to 1024 rows"} if of_chunks else {}), **given}
    rows, classes, hidden = (first_number(chosen[size]) for size in ("row_size", "class_size", "hidden_size"))
    logits, factors = rows * classes, (rows + classes) * hidden
    reasons = {
        "no row after the first chunk": of_chunks and rows < 129,
        "the only row is ignored": chosen["ignored"] in ("ignored_first", "ignored_16th")
        and given.get("row_size") == "1 row",
        "probabilities have no index": chosen["target"] != "int64" and chosen["ignored"] != "kept",
        "one loss, one upstream gradient": chosen["reduction"] != "none" and chosen["upstream"] in ("rows", "stride0"),
        "not in one storage": chosen["linear_layout"] == "linear_tied" and chosen["layout"] != "contiguous",
        "255 is a class": chosen["ignored"] in ("ignored", "ignored_all") and classes > 255,
        "nothing to compute": rows == 0 and classes > 255,
        "too large": logits > (96_000 if rows <= 3 else 34_000) or factors > 300_000,
        "slow": chosen["dtype"] == "float64" and (logits > 2_100 or logits * hidden > 75_000),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def test_the_pairs_that_no_case_has_have_a_reason_and_no_other_pair_has_one():
    missing, _ = uncovered("pairs")
    for axes in itertools.combinations(LINEAR_CHOICES, 2):
        for choices in itertools.product(*(LINEAR_CHOICES[axis] for axis in axes)):
            chosen = dict(zip(axes, choices, strict=True))
            reason = why_impossible(chosen)
            assert (chosen in missing) == (reason is not None), (chosen, reason)


def test_the_cases_are_valid_and_have_the_choices_of_the_array():
    for name, array in LINEAR_ARRAYS.items():
        cases = list(linear_grid(array=name))
        assert len({case.id for case in cases}) == len(cases)
        for case in cases:
            assert case.invalid is None
            assert LinearCase.of(case.id) == case
            assert all(getattr(case, axis) in words for axis, words in array.choices.items()), case.id
            numbers = linear_numbers(case.dtype, case.class_size, case.row_size, case.hidden_size)
            assert (case.classes, case.rows, case.hidden) in numbers


def test_the_numbers_of_the_size_ranges_occur():
    cases = list(linear_grid(array="triples"))
    array = LINEAR_ARRAYS["triples"]
    every = [
        numbers
        for ranges in itertools.product(*(array.choices[axis] for axis in array.size_axes))
        for numbers in linear_numbers(*ranges)
    ]
    for at, name in enumerate(("classes", "rows", "hidden")):
        assert {getattr(case, name) for case in cases} == {numbers[at] for numbers in every}, name


@pytest.mark.parametrize(
    ("name", "limits", "of"),
    [
        ("class_size", CLASS_LIMITS, "classes"),
        ("row_size", ROW_LIMITS, "rows"),
        ("hidden_size", HIDDEN_LIMITS, "hidden units"),
    ],
)
def test_the_size_ranges_are_those_of_their_numbers(name, limits, of):
    assert set(LINEAR_CHOICES[name]) <= {size_range(limit + more, limits, of) for limit in limits for more in (0, 1)}


def test_pairs_have_a_vocabulary_of_32000_classes_in_each_other_dtype():
    wide = [case for case in linear_grid(array="pairs") if case.classes == 32000]
    assert {case.dtype for case in wide} == set(DTYPES) - {"float64"}
    assert min(case.rows for case in wide) == 1
    assert max(case.rows for case in wide) > 1


def test_a_dtype_has_its_own_cases_and_no_others():
    whole = list(linear_grid())
    assert [case for case in whole if case.dtype == "bfloat16"] == list(linear_grid(["bfloat16"]))
    assert {case.seed for case in linear_grid(seed=3)} == {3}


@pytest.mark.parametrize("axis", LinearCase.axes)
def test_every_choice_on_an_axis_is_in_an_edge_or_an_array(axis):
    cases = [*linear_edges(), *linear_grid(array="pairs")]
    assert {getattr(case, axis) for case in cases} == set(LinearCase.axes[axis])


def test_combinations_of_three_are_counted_on_the_axes_of_the_operation():
    """A bias is an option of a linear case, and a number of rows counts as its size range."""
    one, two = LinearCase("float32", (7, 5)), LinearCase("float32", (8, 5))
    assert count_combinations([one]) == count_combinations([one, two]) == 15 * 14 * 13 / 6
    assert (
        count_combinations([one, LinearCase("float32", (7, 5), bias="bias")]) == count_combinations([one]) + 14 * 13 / 2
    )
    assert ("2 to 16 rows", "bias no_bias", "float32") in sized_triples(one)
    assert set(LinearCase.counted) == set(LINEAR_CHOICES)


def test_a_lower_level_runs_no_more_than_a_higher_one_and_every_check_runs():
    planned = {level: plan(level, tuple(DTYPES), 0, LINEAR_CROSS_ENTROPY) for level in LEVELS}
    for lower, higher in itertools.pairwise(LEVELS):
        for case, checks in planned[lower].items():
            assert set(checks) <= set(planned[higher][case]), case.id
        assert len(planned[lower]) < len(planned[higher])
    for level in LEVELS:
        cases = [case for case in planned[level] if isinstance(case, Case)]
        assert all(case.operation is LINEAR_CROSS_ENTROPY for case in cases)
        assert len({case.id for case in cases}) == len(cases)
