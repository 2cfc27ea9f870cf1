"""Repetitions: the forms and torch pass with any numbers. `nox -s repetitions` repeats the run with many seeds."""

from support.subjects import TENSOR_FORMS

import crossent


def pytest_generate_tests(metafunc):
    if "repetition" in metafunc.fixturenames:
        first = (metafunc.config.getoption("--crossent-seed") or 0) + 1
        metafunc.parametrize("repetition", range(first, first + metafunc.config.getoption("--crossent-repetitions")))


def test_the_forms_and_torch_pass_with_every_seed(repetition, request, figure):
    level = request.config.getoption("--crossent-level") or "quick"
    report = crossent.check(*(form.name for form in TENSOR_FORMS), "torch", level=level, seed=repetition)
    figure(f"seed {repetition}, level {level}: {report.summary}")
    assert report.ok, report
