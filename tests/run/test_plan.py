"""Levels: every check runs at some level, and a lower level runs no check or case that a higher level leaves out."""

import itertools

import pytest
from support.checks import FAST, SLOW

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.grid import TRANSFORMED, grid
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import (
    CHECKS,
    checks_of,
    circumstances,
    compiled_code,
    derivatives,
    determinism,
    jacobians,
    large,
    leaves,
    options,
    single,
    transforms,
)
from crossent.checks.relations import backward, chunks, two_calls
from crossent.choices import LEVELS
from crossent.run.plan import plan
from crossent.trials.check import Check

MODULES = (
    single,
    circumstances,
    derivatives,
    determinism,
    jacobians,
    large,
    leaves,
    options,
    two_calls,
    chunks,
    backward,
    transforms,
    compiled_code,
)


@pytest.fixture(scope="module")
def planned():
    return {level: plan(level, tuple(DTYPES), 0) for level in LEVELS}


def test_every_check_that_a_module_exports_is_known_by_its_name():
    found = {check.name: check for module in MODULES for check in vars(module).values() if isinstance(check, Check)}
    assert found == CHECKS


def test_every_check_except_large_runs_at_level_normal(planned):
    run = {check.name for single in planned["normal"].values() for check in single}
    every = set(checks_of(CROSS_ENTROPY))
    assert every - run == {"large"}
    assert {check.name for single in planned["thorough"].values() for check in single} == every


def test_a_lower_level_runs_no_more_than_a_higher_one(planned):
    for lower, higher in (("quick", "normal"), ("normal", "thorough")):
        assert planned[lower].keys() <= planned[higher].keys()
        assert len(planned[lower]) < len(planned[higher])


@pytest.mark.parametrize("level", LEVELS)
def test_every_bug_of_the_corpus_has_its_checks_on_its_cases(planned, level):
    """Only level thorough compiles code. Level normal runs `trace` instead, on the first case of a bug."""
    for bug in bugs():
        for case in bug.cases:
            if case.tiled > 1:
                continue
            names = {check.name for check in planned[level][case]} | {
                "errors"
            }  # the check of bad inputs, which run at every level
            graphs = set() if level == "thorough" else {*SLOW, FAST}
            assert names >= set(bug.checks) - graphs, (bug.id, case.id)
            if level != "quick" and set(bug.checks) & set(SLOW) and case is bug.cases[0]:
                assert FAST in names


def cases_of(planned, name):
    return [case for case, checks in planned.items() if name in {check.name for check in checks}]


def test_level_quick_traces_one_graph_of_rows_that_are_ignored_by_minus_one(planned):
    (case,) = cases_of(planned["quick"], "trace")
    assert (case.target, case.ignored) == ("int64", "ignored_minus_one")
    assert not [name for name in (*SLOW, "export") if cases_of(planned["quick"], name)]


@pytest.mark.parametrize("name", ["trace", "export"])
def test_graphs_have_each_choice_at_level_normal_and_each_two_at_level_thorough(planned, name, figure):
    array = list(grid(array="transformed"))
    few, all_of_them = (cases_of(planned[level], name) for level in ("normal", "thorough"))
    for axis, words in TRANSFORMED.items():
        assert {getattr(case, axis) for case in few} >= set(words), axis
    assert len(few) <= 12 < len(array) <= len(all_of_them)
    assert set(all_of_them) >= {*few, *array}

    def pairs(cases):
        axes = list(itertools.combinations(TRANSFORMED, 2))
        return {(pair, *(getattr(case, axis) for axis in pair)) for case in cases for pair in axes}

    possible = pairs(array)
    figure(f"{name}: {len(few)} cases at level normal have {len(pairs(few) & possible)} of {len(possible)} pairs")


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_alone_has_graphs_of_each_choice_of_its_cases(dtype):
    array, planned = list(grid([dtype], array="transformed")), plan("normal", (dtype,), 0)
    for axis in TRANSFORMED:
        assert {getattr(case, axis) for case in cases_of(planned, "export")} == {getattr(case, axis) for case in array}


def test_code_of_dynamic_sizes_is_made_of_a_batch_without_further_dimensions(planned):
    """The logits have two dimensions: each size is a symbol, and torch takes four times as long for four symbols."""
    (case,) = cases_of(planned["normal"], "trace_dynamic")
    assert (case.dimensions, case.target, case.reduction) == (2, "int64", "mean")
    assert case.ignored != "kept"
    (case,) = cases_of(planned["normal"], "compile_dynamic")
    assert (case.dimensions, case.target, case.weight) == (2, "probabilities", "weighted")


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_every_bad_input_and_no_case_twice(planned, level):
    assert set(planned[level]) >= set(BAD_INPUTS)
    ids = [case.id for case in planned[level]]
    assert len(ids) == len(set(ids))


def test_no_other_check_runs_on_large_cases(planned):
    for case, of in planned["thorough"].items():
        if isinstance(case, Case) and case.tiled > 1:
            assert [check.name for check in of] == ["large"]


def test_a_dtype_has_its_own_cases_and_no_others(planned):
    for case in plan("normal", ("bfloat16",), 0):
        assert case.dtype == "bfloat16"
        assert case in planned["normal"]


def test_a_seed_changes_the_numbers_of_every_case_of_the_grid():
    one, other = (set(plan("quick", ("float32",), seed)) for seed in (0, 1))
    assert {case for case in one & other if isinstance(case, Case)} == set()
