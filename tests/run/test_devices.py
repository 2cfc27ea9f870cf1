"""Runs on a simulated GPU: a device that becomes unusable, a device without float64, and reads of a device."""

import re

import pytest
import torch
from support.checks import SINGLE
from support.running import run

import crossent
from crossent.cases import inputs
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.machine import environment, require_device
from crossent.run import parallel, pytest_checks
from crossent.run.settings import Settings
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.trials.trial import Question

PLAIN = Case("float32")
ASSERT = "CUDA error: device-side assert triggered"
SOME = ["float32-7x5-normal-int64-mean", "float32-7x5-normal-int64-sum", "float32-7x5-normal-int64-none-rows"]


class Device:
    """A simulated device: after a call with the reduction "sum", each use raises an error."""

    def __init__(self, raises=ASSERT):
        self.lost, self.calls, self.raises = "", [], raises

    def loss(self, input, target, reduction="mean", **options):
        self.calls.append(reduction)
        if self.lost:
            raise RuntimeError(self.lost)
        if reduction == "sum":
            self.lost = ASSERT
            if self.raises:
                raise RuntimeError(self.raises)
        return crossent.formula(input, target, reduction=reduction, **options)


@pytest.fixture
def gpu(monkeypatch):
    made = Device()
    monkeypatch.setattr(parallel, "lost", lambda device: made.lost)
    return made


def check(device, cases):
    def other(input, target, **options):
        if device.lost:
            raise RuntimeError(device.lost)
        return crossent.formula(input, target, **options)

    return crossent.check(device.loss, other, cases=cases, checks=["loss", "gradient"], dtypes="float32", level="quick")


def test_a_call_that_makes_the_device_unusable_ends_the_run_with_one_finding(gpu):
    """The other subject and the remaining cases get no verdict, since each verdict would be false."""
    report = check(gpu, SOME)
    (finding,) = report.findings
    assert (finding.subject, finding.check, finding.kind) == ("loss", "call", "crashed")
    assert finding.case == SOME[1]
    assert finding.message == f"the call made cpu unusable: {ASSERT}"
    assert SOME[1] not in report.subjects[1].outcomes
    assert (report.stopped, report.planned, report.ok) == (True, 3, False)
    assert "STOPPED EARLY" in report.summary
    for part in report.subjects:
        assert [finding.case for finding in part.findings if finding.case != SOME[1]] == []


def test_a_soak_after_which_the_device_is_unusable_is_incomplete_though_nobody_interrupted_it(gpu):
    report = crossent.soak(gpu.loss, cases=40, dtypes="float32", device="cpu")
    assert not report.complete
    assert re.match(r"INCOMPLETE after \d+ of 40 calls, with 1 finding$", report.summary)


def test_an_error_in_the_judge_after_the_loss_of_the_device_is_a_finding(gpu, monkeypatch):
    def judge(*arguments):
        gpu.lost = ASSERT
        raise RuntimeError(ASSERT)

    monkeypatch.setattr(parallel, "judge_case", judge)
    report = check(gpu, SOME)
    assert [finding.message for finding in report.findings] == [f"the call made cpu unusable: {ASSERT}"]
    assert report.stopped


def test_an_error_in_the_judge_with_a_device_that_works_still_ends_the_program(gpu, monkeypatch):
    def judge(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(parallel, "judge_case", judge)
    with pytest.raises(RuntimeError, match="a bug"):
        check(gpu, SOME)


def test_a_bad_call_that_raises_the_right_error_may_make_the_device_unusable(gpu):
    """The call is a finding, although the error that it raises is the right error."""
    bad = next(one for one in BAD_INPUTS if one.id == "weight_too_short")

    def loss(input, target, weight=None, **options):
        if weight is not None and len(weight) < input.shape[1]:
            gpu.lost = ASSERT
            raise RuntimeError(ASSERT)
        return crossent.formula(input, target, weight, **options)

    (finding,) = run(loss, bad).findings
    assert (finding.check, finding.kind) == ("errors", "crashed")


def test_a_test_of_a_call_that_makes_the_device_unusable_fails_for_each_check(gpu):
    """The verdict has only the check `call`. A test of any other check must not pass for lack of a result."""
    settings = Settings(level="quick", dtypes="float32", cases=SOME[:2])
    tests = list(pytest_checks.tests_of(gpu.loss, settings))
    messages = {}
    for test in tests:
        try:
            test()
        except AssertionError as error:
            messages[test.id] = str(error)
    lost = {test.id for test in tests if test.run.case.id.endswith(SOME[1])}
    assert len(lost) > 5
    assert {test.id for test in tests} - lost
    assert lost <= messages.keys()
    assert all(f"the call made cpu unusable: {ASSERT}" in messages[name] for name in lost)
    report = pytest_checks.report_of_records(test.record for test in tests)
    assert [finding.check for finding in report.subjects[0].findings if finding.case.endswith(SOME[1])] == ["call"]


# --- A device without float64 ---------------------------------------------------------------------------------------


def test_on_a_device_without_float64_its_cases_are_skipped_with_the_reason(monkeypatch):
    reason = "needs float64, which the device mps does not have"
    monkeypatch.setattr(inputs, "lacks_float64", lambda device: reason)
    built = []
    build = Case.build
    monkeypatch.setattr(Question, "inputs", property(lambda one: built.append(one.case) or build(one.case)))
    cases = ["float64-7x5-normal-int64-mean", "float32-7x5-normal-int64-mean", "float32-7x5-normal-other_float-mean"]
    report = crossent.check("formula", cases=[*cases, "weight_of_another_dtype", "weight_too_short"], level="quick")
    (part,) = report.subjects
    assert part.not_applicable == {reason: 3}
    assert sorted(case.rpartition("/")[2] for case in part.outcomes) == [cases[1], "weight_too_short"]
    assert {case.dtype for case in built} == {"float32"}
    assert report.findings == []


# --- Reads of a device ----------------------------------------------------------------------------------------------


def test_the_exact_values_need_nothing_from_the_device(monkeypatch):
    """The judge reads nothing from the device: a read would wait, and after a device-side assert it would fail."""
    monkeypatch.setattr(Question, "inputs", property(lambda question: pytest.fail("reads the device")))
    question = Question(PLAIN, "cuda:0")
    assert question.exact.loss.hi.shape == (1, 1)
    assert question.exact_along is not None
    assert question.inputs_on_cpu.digest == PLAIN.build().digest


def test_a_device_without_an_index_is_the_device_of_its_tensors(monkeypatch):
    """With --device cuda, results on cuda:0 are on the right device, although torch says that cuda:0 is not cuda."""
    assert torch.device("cuda") != torch.device("cuda:0")
    build = Case.build
    monkeypatch.setattr(Case, "build", lambda case, device="cpu": build(case))
    monkeypatch.setattr(parallel, "lost", lambda device: "")
    monkeypatch.setattr("support.running.environment", lambda device: environment("cpu"))
    report = run(FORM_SUBJECTS["formula"], PLAIN, SINGLE, "cuda")
    assert report.findings == []
    assert report.ran == 1


def test_a_run_on_a_cpu_does_not_wake_cuda(monkeypatch):
    """A CUDA context takes half a gigabyte in each worker, and a process with a context cannot be forked."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("wakes CUDA"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("cpu")
    assert environment("cpu")["device"] == "cpu"
    assert crossent.check("formula", "torch", cases=SOME, level="quick", dtypes="float32").ran == 9
