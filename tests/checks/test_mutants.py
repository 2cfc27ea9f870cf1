"""Mutants: the checks that a mutant names find the mutant on its case, where correct code passes.

`nox -s mutants` writes the totals of benchmarks/README.md. It also prints which check finds which mutant, and which
mutants `torch.testing.assert_close` finds on plain inputs.
"""

import inspect
import re
import runpy

import pytest
import torch
import torch.nn.functional as F
from denominators import refuses_none
from every import FILES, MUTANTS
from right import right
from support.checks import CALL, RESULT
from support.mutants import AGAIN, Figures, found_on_all_cases, passes_assert_close
from support.readme import README, part
from support.reference import REFERENCE
from support.running import run
from support.waits import older_than

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import checks_of
from crossent.report.expected_findings import mark, torch_list
from crossent.run.plan import plan
from crossent.subjects.builtin import TORCH
from crossent.subjects.subject import Subject
from crossent.trials.call import Result

CHECKS = checks_of(CROSS_ENTROPY)

BAD = {bad.id: bad for bad in BAD_INPUTS}
FORMULA = Subject("formula", crossent.formula)
# The checks that find no mutant here, with the reasons.
WITHOUT = {
    "stream": "runs on CUDA only",
    "compile": "finds what `trace` finds, and errors in the code that torch generates",
    "compile_dynamic": "finds what `trace_dynamic` finds, and errors in the code that torch generates",
}


def case_of(id):
    return BAD[id] if id in BAD else Case.of(id)


def judged(case, checks, *subjects):
    """Return the report on a case by these checks, and by `call` and `result`. On a bad input all checks run."""
    return run(subjects, case, [c for c in CHECKS.values() if c in (CALL, RESULT) or c.name in checks])


def not_run(report):
    """Return the checks that did not run on the subject, each with its reason."""
    return {reason for outcome in report.subjects[0].outcomes.values() for reason in outcome.not_run.items()}


def skip_if_not_wrong_here(mutant):
    """Skip a mutant that is right under this version of torch."""
    if mutant.name == "reads_the_upstream_gradient_under_jacrev" and older_than("2.1"):
        pytest.skip("needs torch 2.1 or newer: torch 2.0 computes this mutant right")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_killed_by_the_checks_that_it_names(mutant):
    skip_if_not_wrong_here(mutant)
    report = judged(case_of(mutant.case), mutant.checks, Subject(mutant.name, mutant.loss))
    if missing := {(check, reason) for check, reason in not_run(report) if check in mutant.checks}:
        missing_here = missing & not_run(judged(case_of(mutant.case), mutant.checks, FORMULA))
        assert missing == missing_here, f"correct code runs {missing - missing_here}"
        pytest.skip("; ".join(reason for _, reason in missing_here))
    assert {finding.check for finding in report.findings} == set(mutant.checks), "\n\n".join(map(str, report.findings))


def test_a_mutant_that_raises_is_found_by_the_check_call():
    report = judged(Case.of("float32-7x5-normal-int64-none"), ("loss",), Subject("refuses_none", refuses_none))
    assert [(finding.check, finding.kind) for finding in report.findings] == [("call", "refused")]
    assert "ValueError: reduction: none" in report.findings[0].message


def rounded_from_float64(input, target, **options):
    """Return torch's loss, computed in float64 and rounded once."""
    dtype = torch.promote_types(input.dtype, target.dtype) if target.is_floating_point() else input.dtype
    return REFERENCE.loss(input, target, **options).to(dtype)


@pytest.mark.parametrize("case", sorted({mutant.case for mutant in MUTANTS}))
def test_right_code_survives(case):
    checks = {check for mutant in MUTANTS if mutant.case == case for check in mutant.checks}
    of_numbers = "is right code whose numbers are compared"
    controls = [FORMULA, TORCH, Subject("right", right, not_transformed=of_numbers)]
    if case not in BAD:  # a conversion to float64 makes some bad inputs good
        controls.append(Subject("rounded", rounded_from_float64, not_transformed=of_numbers))
    report = judged(case_of(case), checks, *controls)
    mark(report, torch_list())
    assert report.ran > 0
    assert [str(finding) for finding in report.findings if finding.expected is None] == []


def test_the_checks_of_a_mutant_run_on_its_case_at_level_normal():
    """Level normal plans all checks of a mutant on its case, except `large`, whose cases need much memory."""
    planned = plan("normal", tuple(DTYPES), 0)
    for mutant in MUTANTS:
        planned_checks = {*(check.name for check in planned.get(case_of(mutant.case), ())), "large"}
        assert mutant.case in BAD or planned_checks >= set(mutant.checks), mutant


def test_every_check_kills_a_mutant():
    assert {check for mutant in MUTANTS for check in mutant.checks} == {*CHECKS, "errors"} - set(WITHOUT)


def test_a_mutant_has_a_unique_name_and_an_issue_or_a_reason():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    for mutant in MUTANTS:
        assert bool(mutant.issues) != bool(mutant.own), mutant


def test_a_mutant_takes_the_arguments_of_cross_entropy():
    options = dict.fromkeys(("weight", "ignore_index", "reduction", "label_smoothing"))
    for mutant in MUTANTS:
        inspect.signature(mutant.loss).bind("input", "target", **options)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__)
def test_a_file_of_mutants_is_loaded_by_its_path(file):
    found = runpy.run_path(file.__file__)
    assert all(callable(found[mutant.name]) for mutant in MUTANTS if mutant.loss.__module__ == file.__name__)


# For comparison, the mutants that a usual test finds: `torch.testing.assert_close` with torch's loss, on one plain
# batch, and on the same batch with one option at a time.


def plain_calls():
    """Yield logits, target and options: first without options, then with each option."""
    torch.manual_seed(0)
    logits, target = torch.randn(32, 10), torch.randint(10, (32,))
    yield logits, target, {}
    yield logits, target, {"weight": torch.rand(10)}
    yield logits, target.where(target != 3, -100), {"ignore_index": -100}
    yield logits, target, {"label_smoothing": 0.1}
    yield logits, target, {"reduction": "sum"}
    yield logits, target, {"reduction": "none"}
    yield logits, torch.rand(32, 10).softmax(1), {}


def backward(loss, logits, target, options):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target.clone(), **options)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    return Result(value.detach(), gradient)


def is_close(loss, logits, target, options):
    wanted = backward(F.cross_entropy, logits, target, options)

    def compute():
        got = backward(loss, logits, target, options)
        return got.loss, got.gradient

    return passes_assert_close(compute, (wanted.loss, wanted.gradient))


def test_assert_close_passes_right_code_on_plain_inputs():
    assert all(is_close(right, *call) and is_close(crossent.formula, *call) for call in plain_calls())


FIGURES = Figures("mutants", MUTANTS, FILES, CHECKS, plain_calls, is_close, found_on_all_cases)


def only_under_transforms():
    """Yield, from the figures, each mutant that only checks with transforms find, with its level and these checks."""
    figures = FIGURES.read()["mutants"]
    for mutant in MUTANTS:
        found = figures.get(mutant.name, {"checks": []})  # a new mutant has no figures yet
        if found["checks"] and all(name in CHECKS and CHECKS[name].transforms for name in found["checks"]):
            yield pytest.param(mutant, found["level"], found["checks"], id=mutant.name)


@pytest.mark.parametrize(("mutant", "level", "names"), list(only_under_transforms()))
def test_a_mutant_that_only_a_transform_shows_is_found_by_the_plan_of_its_level(mutant, level, names):
    """The few graphs that a level traces find each mutant that they found when the figures were written."""
    skip_if_not_wrong_here(mutant)
    reasons = set()
    for case, checks in plan(level, tuple(DTYPES), 0).items():
        if of := [check.name for check in checks if check.name in names]:
            report = judged(case, of, Subject(mutant.name, mutant.loss))
            if any(finding.check in names for finding in report.findings):
                return
            not_run = [outcome.not_run for outcome in report.subjects[0].outcomes.values()]
            reasons |= {of[name] for of in not_run for name in names if name in of}
    if reasons:
        pytest.skip("; ".join(sorted(reasons)))
    raise AssertionError(f"the checks {names} find the mutant on no case of level {level}")


@pytest.fixture(scope="module")
def counted(pytestconfig):
    if pytestconfig.getoption("--crossent-write-figures"):
        FIGURES.write()
    return FIGURES.read()


def test_the_figures_are_about_these_mutants_and_none_survives(counted):
    assert list(counted["mutants"]) == [mutant.name for mutant in MUTANTS], AGAIN
    for mutant in MUTANTS:
        assert counted["mutants"][mutant.name]["issues"] == list(mutant.issues), AGAIN
    assert [name for name, found in counted["mutants"].items() if not found["level"]] == []


def test_the_readme_has_the_totals_of_the_figures(counted):
    assert part("mutants") == FIGURES.table(counted), AGAIN


def test_the_sentence_in_the_readme_has_the_totals_of_the_figures(counted):
    text = " ".join(README.read_text(encoding="utf-8").split())
    said = re.search(
        r"find all (\d+) wrong cross-entropies in .+\. `\S+assert_close` on `randn\(32, 10\)` finds (\d+) ", text
    )
    found = counted["mutants"].values()
    assert [*map(int, said.groups())] == [len(found), sum(one["one batch"] for one in found)]
