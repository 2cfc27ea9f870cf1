"""The runner: one process or several, the report is the same."""

import os

import pytest

import crossent
from crossent.cases import Case

CASES = [
    Case("float32", (3, 5), values, reduction=reduction)
    for values in ("normal", "wide")
    for reduction in ("mean", "sum")
]


@pytest.fixture
def few_cases(monkeypatch):
    for source, made in (("bugs", lambda: ()), ("edges", lambda *_: ()), ("grid", lambda *_: CASES)):
        monkeypatch.setattr(f"crossent.levels.{source}", made)


def off_by_a_percent(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing) * 1.01


@pytest.mark.parametrize("jobs", [2, 3, 50])
def test_several_processes_give_the_report_of_one(few_cases, jobs):
    one, several = (
        crossent.check("formula", off_by_a_percent, level="quick", dtypes="float32", jobs=n).to_json()
        for n in (1, jobs)
    )
    assert one["subjects"][1]["findings"]
    assert several == one


def test_a_local_function_can_be_shared_too(few_cases):
    report = crossent.check(lambda *args, **options: off_by_a_percent(*args, **options), level="quick", jobs=2)
    assert len(report.findings) >= len(CASES)


def test_progress_is_of_what_is_done(few_cases):
    seen = []

    def progress(steps):
        for step in steps:
            yield step
            seen.append(len(steps))

    crossent.check("formula", level="quick", jobs=2, progress=progress)
    assert len(seen) == seen[0] > 1


def test_a_subject_that_ends_its_process_is_one_line(few_cases):
    def ends(input, target, **options):
        os._exit(3)

    with pytest.raises(RuntimeError, match="a subject ended the process that it ran in"):
        crossent.check(ends, level="quick", jobs=2)


def test_fewer_than_one_job_is_refused():
    with pytest.raises(ValueError, match="jobs: got 0; allowed is 1 or more"):
        crossent.check("formula", jobs=0)
