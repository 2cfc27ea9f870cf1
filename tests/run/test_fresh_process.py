"""Fresh processes: a bad call that ends its process or blocks its device becomes a finding."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support import refusers
from support.running import run

import crossent
from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.checks.refusals import Reaction, call_badly, judge_reaction, react
from crossent.report.findings import Verdict
from crossent.run import parallel
from crossent.run.isolation import fresh_process
from crossent.run.isolation.fresh_process import FreshProcess
from crossent.subjects.subject import Subject
from crossent.trials.act import Here, Performed, Raised
from crossent.trials.trial import NotRunError

BY_ID = {bad_input.id: bad_input for bad_input in BAD_INPUTS}
BEYOND, SHORT_WEIGHT = BY_ID["class_beyond_the_last"], BY_ID["weight_too_short"]
SUBJECTS = {
    "right": crossent.formula,
    "writes": refusers.writes_and_accepts,
    "exits": refusers.exits,
    "segfaults": refusers.segfaults,
    "hangs": refusers.hangs,
}


def problems(loss):
    found = judge_reaction(react(FreshProcess(loss, seconds=1), BEYOND, "cpu"), BEYOND.allowed("cpu"))
    return {problem.kind: problem.message for problem in found.values() if problem}


@pytest.fixture(scope="module")
def reactions():
    """Return the problems of each subject. All subjects run at the same time, because a process takes long to start."""
    with ThreadPoolExecutor(4) as pool:
        runs = {name: pool.submit(problems, loss) for name, loss in SUBJECTS.items()}
        return {name: run.result() for name, run in runs.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("right", {}),
        (
            "writes",
            {
                "accepted": "the call returned 0.0; should have raised IndexError",
                "changed_input": "the call wrote into target",
            },
        ),
        ("exits", {"crashed": "its process ended: exit status 0; should have raised IndexError"}),
        ("segfaults", {"crashed": "its process ended: SIGSEGV; should have raised IndexError"}),
        ("hangs", {"hung": "the call did not return within 1 s; should have raised IndexError"}),
    ],
)
def test_a_fresh_process_reports_the_effects_of_the_call(reactions, name, expected):
    assert reactions[name] == expected


def test_processes_that_one_process_forks_report_the_same(reactions, monkeypatch):
    """One new Python forks a process for each call. These processes report the same problems as new Pythons."""
    started, popen = [], fresh_process.subprocess.Popen
    monkeypatch.setattr(fresh_process, "SECONDS", 1.0)
    monkeypatch.setattr(fresh_process.subprocess, "Popen", lambda *of, **more: started.append(of) or popen(*of, **more))
    calls = [(BEYOND.id, "cpu")] * len(SUBJECTS)
    made = fresh_process.perform_each(list(SUBJECTS.values()), call_badly, calls, "cpu", 4)
    assert len(started) == 1
    for name, outcome in zip(SUBJECTS, made, strict=True):
        found = judge_reaction(react(fresh_process.PastCall(outcome), BEYOND, "cpu"), BEYOND.allowed("cpu"))
        assert {problem.kind: problem.message for problem in found.values() if problem} == reactions[name], name


def test_a_subject_that_cannot_be_sent_does_not_keep_others_from_their_calls():
    losses = [lambda *arguments, **options: None, crossent.formula]
    lost, right = fresh_process.perform_each(losses, call_badly, [(BEYOND.id, "cpu")] * 2, "cpu", 2)
    said = "cannot be sent to a new process, because pickle raised "
    advice = "; define the loss at the top level of a module that a new process can import"
    assert lost.value.reason.startswith(said)
    assert lost.value.reason.endswith(advice)
    assert right.value.raised.is_a(IndexError)


def test_calls_have_their_own_process_if_the_process_that_forks_has_ended(monkeypatch):
    monkeypatch.setattr(fresh_process, "_CODE", fresh_process._CODE.replace("{function}(", "{function}_of_nothing("))
    asked = []
    monkeypatch.setattr(FreshProcess, "perform", lambda self, act, *of: asked.append(of) or Performed(1))
    calls = [(BEYOND.id, "cpu"), (SHORT_WEIGHT.id, "cpu")]
    made = fresh_process.perform_each([crossent.formula] * 2, call_badly, calls, "cpu", 2)
    assert (made, asked) == ([Performed(1)] * 2, calls)


def is_running(process):
    """Return whether a process runs. A process that has ended, but has not been waited for, does not run."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_call_that_hangs_ends_with_the_process_that_forks(tmp_path, monkeypatch):
    def end_once_called(folder, *words):
        process = start(folder, *words)
        while not started.exists():
            time.sleep(0.05)
        process.kill()
        return process

    start, started = fresh_process._start, tmp_path / "started"
    monkeypatch.setattr(fresh_process, "_start", end_once_called)
    monkeypatch.setattr(FreshProcess, "perform", lambda self, act, *of: Performed(1))
    monkeypatch.setenv("CROSSENT_STARTED", str(started))
    assert fresh_process.perform_each([refusers.hangs_after_a_note], call_badly, [(BEYOND.id, "cpu")], "cpu", 1)
    end = time.monotonic() + 10
    while is_running(process := int(started.read_text())):
        assert time.monotonic() < end, f"the process {process} is still running"
        time.sleep(0.05)


def test_a_run_starts_one_process_for_all_calls_that_would_poison_a_device(monkeypatch):
    """All thirty calls share one new Python. Thirty new Pythons, one after another, would take minutes on a GPU."""
    monkeypatch.setattr(BadInput, "asserts", lambda self, device: self.poisons)
    started, popen = [], fresh_process.subprocess.Popen
    monkeypatch.setattr(fresh_process.subprocess, "Popen", lambda *of, **more: started.append(of) or popen(*of, **more))
    ids = [bad.id for bad in BAD_INPUTS if bad.poisons]
    report = crossent.check("formula", "one_hot", level="quick", dtypes="float32", cases=ids)
    assert len(ids) == 15
    assert [len(part.outcomes) for part in report.subjects] == [15, 15]
    assert report.findings == []
    assert len([words for (words,) in started if words[0] == sys.executable]) == 1


def test_a_process_that_does_not_start_is_ended(monkeypatch):
    monkeypatch.setattr(fresh_process, "_STARTING", 0.05)
    performed = FreshProcess(crossent.formula).perform(call_badly, BEYOND.id, "cpu")
    said = "its process needed more than 0.05 s to import torch and the subject and to initialize the device"
    assert performed == Performed(ended="hung", how=said)


def test_a_subject_that_cannot_be_sent_is_not_applicable_and_counted(monkeypatch):
    monkeypatch.setattr(BadInput, "asserts", lambda self, device: True)
    report = run(lambda *arguments, **options: None, BEYOND)
    (reason,) = report.subjects[0].not_applicable
    assert reason.startswith("cannot be sent to a new process, because pickle raised ")
    assert "lambda" in reason
    assert not report.ran


def test_a_function_of_the_script_that_runs_cannot_be_sent(monkeypatch):
    def main(*arguments, **options):  # the module of the other process must not have this name
        raise IndexError

    main.__module__, main.__qualname__ = "__main__", "main"
    monkeypatch.setattr(sys.modules["__main__"], "main", main, raising=False)
    said = r"cannot be sent to a new process, because loading the loss there raised AttributeError: .*main.*; define "
    with pytest.raises(NotRunError, match=said):
        problems(main)


def test_only_a_call_that_would_poison_a_device_has_a_fresh_process(monkeypatch):
    hosts = []

    def recorded(bad, subject, host, device):
        hosts.append(type(host))
        return Verdict(bad.id, not_applicable="is not judged here")

    monkeypatch.setattr(parallel, "judge_bad_input", recorded)
    monkeypatch.setattr(parallel, "lost", lambda device: "")
    for bad_input in (BEYOND, SHORT_WEIGHT):
        for device in ("cpu", "cuda", "cuda:1"):
            subject = Subject("mine", crossent.formula)
            list(parallel.judge_each(bad_input, (), [subject], [Here(subject.loss)], device))
    assert hosts == [Here, FreshProcess, FreshProcess, Here, Here, Here]


@pytest.mark.parametrize(
    ("raised", "kinds"),
    [
        (RuntimeError, []),
        (getattr(torch, "AcceleratorError", RuntimeError), []),  # since torch 2.8
        (IndexError, []),  # a subject that checks the target first raises this error
        (ValueError, ["wrong"]),
    ],
    ids=["RuntimeError", "AcceleratorError", "IndexError", "ValueError"],
)
def test_a_device_side_assert_is_a_runtime_error(raised, kinds):
    names = tuple(f"{error.__module__}.{error.__qualname__}" for error in raised.__mro__)
    reaction = Reaction(Raised("CUDA error", classes=names))
    found = judge_reaction(reaction, BEYOND.allowed("cuda"))
    assert [problem.kind for problem in found.values() if problem] == kinds
    assert (judge_reaction(reaction, BEYOND.allowed("cpu"))["errors"] is None) == (raised is IndexError)
