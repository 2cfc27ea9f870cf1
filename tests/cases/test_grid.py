"""Test the covering arrays: every possible pair or triple of choices occurs.

The tests count the combinations independently of the search that made the arrays.
"""

import itertools

import pytest

from crossent.cases.axes import (
    AXES,
    CLASS_LIMITS,
    CLASS_SIZES,
    DTYPES,
    ROW_LIMITS,
    ROW_SIZES,
    size_range,
    why_forbidden,
)
from crossent.cases.case import Case
from crossent.cases.grid import (
    _SIZES,
    ARRAYS,
    SIZE_AXES,
    SIZE_CONSTRAINTS,
    TRANSFORMED,
    WIDEST,
    each_choice,
    grid,
    numbers_of,
    sized_triples,
    sizes_of,
)
from crossent.run.plan import plan


def possible(picked, choices, left=None):
    """Return whether a case can have the choices `picked`, by trying all choices on the other axes.

    `choices` are the choices on each axis. `left` are the axes that have no choice yet.
    """
    rules = [rule for rule in SIZE_CONSTRAINTS if set(rule.axes) <= picked.keys()]
    if any(rule.forbids(*(picked[axis] for axis in rule.axes)) for rule in rules):
        return False
    if set(SIZE_AXES) <= picked.keys():
        classes, rows = numbers_of(picked["class_size"], picked["row_size"])[0]
        picked = {**picked, "sizes": sizes_of(classes, rows, picked["dimensions"])}
    if why_forbidden(picked):
        return False
    left = [axis for axis in choices if axis not in picked] if left is None else left
    if not left:
        return True
    return any(possible({**picked, left[0]: choice}, choices, left[1:]) for choice in choices[left[0]])


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_covers_every_possible_combination_of_choices(name, figure):
    array = ARRAYS[name]
    strength, choices_of = array.strength, array.choices
    cases = list(grid(array=name))
    assert all(case.invalid is None for case in cases)
    covered = valid = 0
    for axes in array.combined:
        together = {tuple(getattr(case, axis) for axis in axes) for case in cases}
        for choices in itertools.product(*(choices_of[axis] for axis in axes)):
            if choices in together:
                covered += 1
                valid += 1
            elif possible(dict(zip(axes, choices, strict=True)), choices_of):
                valid += 1
    share = f"{100 * covered / valid:.2f} %"
    figure(
        f"{name}: {len(cases)} cases cover {covered} of {valid} possible combinations of {strength} choices, {share}"
    )
    assert covered == valid > 100


def test_the_arrays_combine_every_set_of_axes_that_they_should():
    for name in ("pairs", "triples", "transformed", "sizes"):
        array = ARRAYS[name]
        assert array.combined == list(itertools.combinations(array.choices, array.strength))
    combined = ARRAYS["size_triples"].combined
    assert all({"class_size", "row_size"} & set(axes) for axes in combined)
    others = [axis for axis in ARRAYS["size_triples"].choices if axis not in ("class_size", "row_size")]
    pairs = list(itertools.combinations(others, 2))
    assert {frozenset(axes) for axes in combined} == {
        *(frozenset((size, *pair)) for size in ("class_size", "row_size") for pair in pairs),
        *(frozenset(("class_size", "row_size", other)) for other in others),
    }


def test_the_arrays_have_the_sizes_of_the_grid():
    for case in grid():
        assert case.sizes in _SIZES


def test_each_number_of_a_class_of_sizes_occurs():
    cases = list(grid(array="size_triples"))
    for words, number in ((CLASS_SIZES, "classes"), (ROW_SIZES, "rows")):
        chosen = {size for word, numbers in words.items() if word != WIDEST for size in numbers}
        assert {getattr(case, number) for case in cases} == chosen


@pytest.mark.parametrize(
    ("words", "limits", "of"), [(CLASS_SIZES, CLASS_LIMITS, "classes"), (ROW_SIZES, ROW_LIMITS, "rows")]
)
def test_a_class_of_sizes_contains_its_numbers_and_ends_at_a_limit(words, limits, of):
    for word, numbers in words.items():
        assert {size_range(number, limits, of) for number in numbers} == {word}
    ends = [size_range(number, limits, of) for limit in limits for number in (limit, limit + 1)]
    assert list(dict.fromkeys(ends)) == [*(["no rows"] if of == "rows" else []), *words]


def test_sizes_have_the_numbers_of_classes_and_rows_that_they_are_made_of():
    for classes, rows, dimensions in itertools.product((1, 521, 32000), (1, 2, 17, 130, 4100), (2, 3, 4)):
        case = Case("float32", sizes_of(classes, rows, dimensions))
        assert (case.classes, case.rows, case.dimensions) == (classes, rows, dimensions)
    assert sizes_of(521, 1, 1) == (521,)


# Kernels may take another code path at these sizes, and on this path may lack one of the options of `WITH`.
WIDE_OR_TALL = {
    "more than 257 classes": lambda case: case.classes > 257,
    "more than 4096 classes": lambda case: case.classes > 4096,
    "more than 128 rows": lambda case: case.rows > 128,
    "more than 1024 rows": lambda case: case.rows > 1024,
}
WITH = {
    "a weight": lambda case: case.weight != "unweighted",
    "ignored rows": lambda case: case.ignored != "kept",
    "label_smoothing": lambda case: case.label_smoothing > 0,
    "probabilities": lambda case: case.target not in ("int64", "uint8"),
    "sum": lambda case: case.reduction == "sum",
    "none": lambda case: case.reduction == "none",
    "further dimensions": lambda case: case.dimensions > 2,
}


@pytest.mark.parametrize("size", WIDE_OR_TALL)
@pytest.mark.parametrize("option", WITH)
def test_each_option_occurs_with_a_wide_row_and_with_many_rows(size, option):
    """Level normal has each combination in every dtype. Level quick has the largest sizes in at least one dtype."""
    for name, limits in (("sizes", ("257", "128 ")), ("size_triples", ("",))):
        dtypes = {
            case.dtype
            for case in grid(array=name)
            if case.class_size != WIDEST and WIDE_OR_TALL[size](case) and WITH[option](case)
        }
        assert dtypes == set(DTYPES) if any(limit in size for limit in limits) else dtypes, name


def test_the_combinations_of_size_option_and_dtype_are_counted(figure):
    case = Case.of("float32-2x300-flat-int64-sum")
    assert len(sized_triples(case)) == 2 * (len(ARRAYS["sizes"].option_axes) + 1)
    assert ("257 to 1024 classes", "reduction sum", "float32") in sized_triples(case)
    assert ("2 to 16 rows", "weight unweighted", "float32") in sized_triples(case)
    counts = {name: {triple for case in grid(array=name) for triple in sized_triples(case)} for name in ARRAYS}
    figure("; ".join(f"{name}: {len(triples)} of size, option and dtype" for name, triples in counts.items()))
    assert len(counts["sizes"]) > 1500 > len(counts["pairs"])


def test_a_dtype_has_its_own_cases_and_no_others():
    whole = list(grid())
    assert [case for case in whole if case.dtype == "bfloat16"] == list(grid(["bfloat16"]))


def test_few_cases_have_each_choice_and_the_choices_of_other_cases_need_no_case():
    cases = list(grid(array="transformed"))
    some = each_choice(cases)
    assert len(some) == len(set(some)) < len(cases) / 4
    for axis in TRANSFORMED:
        assert {getattr(case, axis) for case in some} == {getattr(case, axis) for case in cases}
    assert sum(case.rows == 0 for case in some) == 1  # the choice of sizes (0, 5) needs one case
    assert each_choice(cases, some) == []
    assert each_choice(cases, some[1:])[0] == some[0]


# These kinds of logits are about rounding. Only the soak test has cases with them.
ONLY_IN_THE_SOAK = {"scales", "extreme", "pair", "ramp", "ascending", "biased", "offsets"}


@pytest.fixture(scope="module")
def thorough():
    return [case for case in plan("thorough", tuple(DTYPES), 0) if isinstance(case, Case)]


@pytest.mark.parametrize("axis", AXES)
def test_every_choice_on_an_axis_is_in_a_case_of_a_level(axis, thorough):
    missing = set(AXES[axis]) - {getattr(case, axis) for case in thorough}
    assert missing == (ONLY_IN_THE_SOAK if axis == "values" else set()), (
        f"{axis}: no case has these choices; add them to the choices of the arrays in crossent/cases/grid.py, or to an "
        "edge, then run `nox -s cover`"
    )


@pytest.mark.parametrize(
    ("axis", "where"),
    [
        ("target", "_probabilities"),
        ("weight", "_weight"),
        ("ignored", "_ignored_rows"),
        ("upstream", "_upstream"),
        ("layout", "laid_out"),
    ],
)
def test_a_choice_that_no_code_builds_is_an_error_that_names_the_function(axis, where, monkeypatch):
    monkeypatch.setitem(AXES, axis, (*AXES[axis], "forgotten"))
    with pytest.raises(
        ValueError, match=rf"^{axis}: got 'forgotten', which no code builds; add 'forgotten' to {where}$"
    ):
        Case("float32", (7, 5), **{axis: "forgotten"}).build()


def test_ids_are_unique():
    for name in ARRAYS:
        ids = [case.id for case in grid(array=name)]
        assert len(ids) == len(set(ids))
