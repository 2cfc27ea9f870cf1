"""Mutants of a linear cross-entropy: the checks that a mutant names find the mutant on its case, and right code passes.

`nox -s mutants` writes the totals of benchmarks/README.md, as for the mutants of a cross-entropy.
"""

import functools
import inspect
import re
import runpy

import pytest
import torch
import torch.nn.functional as F
from chunked import CHUNKED_STEPS, right_on_chunks
from linear_every import LINEAR_FILES, LINEAR_MUTANTS
from support.mutants import AGAIN, Figures, found_on_the_first_case, passes_assert_close
from support.readme import README, part
from support.running import run

from crossent.cases.axes import DTYPES
from crossent.cases.ids import BAD_INPUT_OF, case_of
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.checks import checks_of, single
from crossent.forms import linear_blocked, linear_formula
from crossent.run.plan import plan
from crossent.subjects.builtin import REFERENCES
from crossent.subjects.callables import as_subject

CHECKS = checks_of(LINEAR_CROSS_ENTROPY)
# The checks that find no mutant here, with the reasons.
WITHOUT = {"func_grad": "transforms the function, and a chunked function with its gradient by hand lacks transforms"}
ALWAYS = {single.call.name, single.result.name}


def subject_of(loss):
    return as_subject(loss, operation=LINEAR_CROSS_ENTROPY)


def judged(case, checks, *losses):
    """Return the report on a case by these checks, and by `call` and `result`. On a bad input all checks run."""
    chosen = [check for name, check in CHECKS.items() if name in {*ALWAYS, *checks}]
    return run([subject_of(loss) for loss in losses], case_of(case), chosen)


@pytest.mark.parametrize("mutant", LINEAR_MUTANTS, ids=str)
def test_a_mutant_is_killed_by_the_checks_that_it_names(mutant):
    report = judged(mutant.case, mutant.checks, mutant.loss)
    assert {finding.check for finding in report.findings} == set(mutant.checks), "\n\n".join(map(str, report.findings))


@pytest.mark.parametrize("case", sorted({mutant.case for mutant in LINEAR_MUTANTS}))
def test_right_code_survives(case):
    checks = {check for mutant in LINEAR_MUTANTS if mutant.case == case for check in mutant.checks}
    reports = [judged(case, checks, right_on_chunks, linear_blocked), judged(case, checks - {"memory"}, linear_formula)]
    assert all(report.ran > 0 for report in reports)
    assert [str(finding) for report in reports for finding in report.findings] == []


def test_a_mutant_differs_from_right_code_in_one_step():
    """Most mutants replace a step of the right code. The others are functions that call the right code."""
    replaced = [mutant.loss.step for mutant in LINEAR_MUTANTS if hasattr(mutant.loss, "step")]
    assert len(replaced) > len(LINEAR_MUTANTS) / 2
    assert set(replaced) <= CHUNKED_STEPS


def test_the_checks_of_a_mutant_run_on_its_case_at_level_normal():
    planned = plan("normal", tuple(DTYPES), 0, LINEAR_CROSS_ENTROPY)
    for mutant in LINEAR_MUTANTS:
        planned_checks = {check.name for check in planned.get(case_of(mutant.case), ())}
        assert mutant.case in BAD_INPUT_OF or planned_checks >= set(mutant.checks), mutant


def test_every_check_kills_a_mutant():
    assert {check for mutant in LINEAR_MUTANTS for check in mutant.checks} == {*CHECKS, "errors"} - set(WITHOUT)


def test_a_mutant_has_a_unique_name_and_an_issue_or_a_reason():
    assert len({mutant.name for mutant in LINEAR_MUTANTS}) == len(LINEAR_MUTANTS) >= 30
    for mutant in LINEAR_MUTANTS:
        assert bool(mutant.issues) != bool(mutant.own), mutant


def test_a_mutant_takes_the_arguments_of_linear_cross_entropy():
    options = dict.fromkeys(LINEAR_CROSS_ENTROPY.options)
    for mutant in LINEAR_MUTANTS:
        inspect.signature(mutant.loss).bind("input", "linear_weight", "target", **options)


@pytest.mark.parametrize("file", LINEAR_FILES, ids=lambda file: file.__name__)
def test_a_file_of_mutants_is_loaded_by_its_path(file):
    found = runpy.run_path(file.__file__)
    assert all(callable(found[mutant.name]) for mutant in LINEAR_MUTANTS if mutant.loss.__module__ == file.__name__)


# For comparison, the mutants that a usual test finds, as for a cross-entropy.


def plain_calls():
    """Yield input, weight, target and options: first with a bias alone, then with each option."""
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(32, 16), torch.randn(10, 16) / 4, torch.randint(10, (32,))
    bias = {"linear_bias": torch.randn(10)}
    yield hidden, weight, target, bias
    yield hidden, weight, target, {**bias, "weight": torch.rand(10)}
    yield hidden, weight, target.where(target != 3, -100), {**bias, "ignore_index": -100}
    yield hidden, weight, target, {**bias, "label_smoothing": 0.1}
    yield hidden, weight, target, {**bias, "reduction": "sum"}
    yield hidden, weight, target, {**bias, "reduction": "none"}
    yield hidden, weight, torch.rand(32, 10).softmax(1), bias


def backward(loss, *tensors, linear_bias, **options):
    """Return the loss and the gradients of input, weight and bias."""
    *leaves, target, bias = (tensor.clone() for tensor in (*tensors, linear_bias))
    leaves = [leaf.requires_grad_() for leaf in (*leaves, bias)]
    value = loss(leaves[0], leaves[1], target, linear_bias=leaves[2], **options)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)


def composed(input, linear_weight, target, *, linear_bias, **options):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def is_close(loss, *call):
    *tensors, options = call
    return passes_assert_close(lambda: backward(loss, *tensors, **options), backward(composed, *tensors, **options))


def test_assert_close_passes_right_code_on_plain_inputs():
    assert all(is_close(right_on_chunks, *call) and is_close(linear_formula, *call) for call in plain_calls())


def test_the_composition_of_torch_is_the_reference_of_the_operation():
    (call,) = [call for call in plain_calls() if call[3].get("reduction") == "sum"]
    hidden, weight, target, options = call
    expected = REFERENCES[LINEAR_CROSS_ENTROPY].loss(hidden, target, linear_weight=weight, **options)
    assert composed(hidden, weight, target, **options).equal(expected)


FOUND = functools.partial(found_on_the_first_case, LINEAR_CROSS_ENTROPY)
FIGURES = Figures("linear_mutants", LINEAR_MUTANTS, LINEAR_FILES, CHECKS, plain_calls, is_close, FOUND)


@pytest.fixture(scope="module")
def counted(pytestconfig):
    if pytestconfig.getoption("--crossent-write-figures"):
        FIGURES.write()
    return FIGURES.read()


def test_the_figures_are_about_these_mutants_and_none_survives(counted):
    assert list(counted["mutants"]) == [mutant.name for mutant in LINEAR_MUTANTS], AGAIN
    for mutant in LINEAR_MUTANTS:
        assert counted["mutants"][mutant.name]["issues"] == list(mutant.issues), AGAIN
    levels = [found["level"] for found in counted["mutants"].values()]
    assert [name for name, found in counted["mutants"].items() if not found["level"]] == []
    assert levels.count("quick") >= 0.9 * len(levels)


def test_the_readme_has_the_totals_of_the_figures(counted):
    assert part("linear_mutants") == FIGURES.table(counted), AGAIN


def test_the_sentence_in_the_readme_has_the_totals_of_the_figures(counted):
    text = " ".join(README.read_text(encoding="utf-8").split())
    said = re.search(r"also find all (\d+) wrong linear cross-entropies", text)
    assert int(said[1]) == len(counted["mutants"])
