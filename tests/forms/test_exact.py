"""Compare each form and `nn.CrossEntropyLoss` in float64 with the exact values, on cases of a covering array.

In the array of this test, each pair of choices is together in at least one case. The array of `crossent check` has each
triple of choices.
"""

from dataclasses import replace

import pytest
from support.reference import REFERENCE
from support.running import run

from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.report.expected_findings import torch_list
from crossent.subjects.builtin import FORM_SUBJECTS

KNOWN = torch_list()


def pytest_generate_tests(metafunc):
    # A hook instead of a decorator, because the seed is an option of the run.
    if "case" in metafunc.fixturenames:
        seed = metafunc.config.getoption("--crossent-seed") or 0
        metafunc.parametrize("case", [pytest.param(case, id=case.id) for case in grid(seed=seed, array="pairs")])


def test_every_form_and_torch_have_the_exact_loss_and_gradient(case, device):
    subjects = [*FORM_SUBJECTS.values(), REFERENCE]
    report = run(subjects, case, device=device, known=KNOWN)  # torch in float64 has the known failures of torch
    assert not any(finding.expected for form in report.subjects[:-1] for finding in form.findings)
    assert report.ran  # a report in which no call was checked has no findings either
    assert not report.findings, "\n".join(f"{form.name}: {f}" for form in report.subjects for f in form.findings)


def test_a_case_is_rebuilt_bit_for_bit():
    case = next(grid(["bfloat16"], seed=3))
    once, again = case.build(), replace(case).build()
    assert once.input.equal(again.input)
    assert once.target.equal(again.target)
    assert once.upstream.equal(again.upstream)


def test_another_seed_makes_other_numbers():
    case = Case("float32")
    assert not case.build().input.equal(replace(case, seed=1).build().input)


def test_case_ids_are_unique():
    ids = [case.id for case in grid()]
    assert len(ids) == len(set(ids))
