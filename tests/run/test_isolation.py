"""Isolated processes: nothing that a subject does in its process makes the subject pass or ends the run."""

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import hostile
from support.checks import SINGLE
from support.running import CASES, check_on, run_isolated

import crossent
from crossent.machine import can_fork
from crossent.run.isolation.process import _MOST_PRINTED, status_in_words
from crossent.subjects.confinement import _PRLIMIT
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject

pytestmark = pytest.mark.skipif(not can_fork(), reason="needs a system that forks")


@pytest.mark.parametrize(
    ("loss", "expected"), hostile.HOSTILE.items(), ids=lambda one: getattr(one, "__qualname__", None)
)
def test_a_hostile_subject_has_its_finding(loss, expected):
    (subject,) = load(loss)
    report = run_isolated(subject, seconds=1.0 if "hung" in expected else 60.0)
    assert {f"{finding.check} {finding.kind}" for finding in report.findings} & set(expected.split("|")), report
    assert set(report.subjects[0].outcomes) | set(report.subjects[0].not_applicable) >= {CASES[0].id}
    assert not Path("/tmp/crossent-was-here").exists()
    assert torch.equal(torch.ones(1), torch.ones(1))
    assert not torch.equal(torch.ones(1), torch.zeros(1))  # torch is not patched in this process


@pytest.mark.parametrize("name", hostile.RIGHT)
def test_right_code_passes(name):
    subject = Subject(name, hostile.RIGHT[name])
    assert run_isolated(subject).findings == []


def test_a_subject_that_ends_the_fork_server_has_a_finding_and_the_run_goes_on():
    options = {"level": "quick", "dtypes": ["float32"], "jobs": 1, "timeout": 5}
    report = check_on(CASES[:2], bad_inputs=False)(hostile.kills_its_parent, hostile.right, **options)
    wrong, right = report.subjects
    # In a PID namespace the signal does not arrive, and the subject hangs. Landlock refuses the signal with an error.
    assert {finding.kind for finding in wrong.findings} in ({"crashed"}, {"hung"}, {"refused"})
    assert set(wrong.outcomes) == set(right.outcomes) == {case.id for case in CASES[:2]}
    assert not right.findings


PATCHES = """
import torch
from crossent.numerics.oracle import answer
from crossent.trials import difference, trial
torch.allclose = torch.equal = lambda *arguments, **options: True
difference.compare = trial.compare = lambda *arguments, **options: []
answer.answer = None
print("x" * 100_000)

def loss(input, target, **options):
    axis = min(1, input.dim() - 1)
    loss = input.sum(axis) * 0
    return loss if options["reduction"] == "none" else loss.sum()
"""


def test_the_import_of_a_file_does_not_change_the_judge(tmp_path, capfd):
    (tmp_path / "patches.py").write_text(PATCHES, encoding="utf-8")
    description = f"{tmp_path / 'patches.py'}:loss"
    report = check_on(CASES, bad_inputs=False)(description, level="quick", dtypes=["float32"], jobs=1)
    assert {finding.case for finding in report.findings} == {case.id for case in CASES}
    assert capfd.readouterr().out == ""
    assert not torch.equal(torch.ones(1), torch.zeros(1))


SENDS_NO_JSON = """
import contextlib, os
for descriptor in range(3, 64):
    with contextlib.suppress(OSError):
        os.write(descriptor, b'{garbage')
os._exit(0)
"""
SENDS_NO_NAME = """
import contextlib, os
for descriptor in range(3, 64):
    with contextlib.suppress(OSError):
        os.write(descriptor, b'{"subjects": [{}]}')
os._exit(0)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os._exit(0)", "this subject ended; import the subject in Python to see why"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the process that loads this subject ended"),
        (SENDS_NO_JSON, "the process that loads this subject sent wrong data (b'{garbage"),
        (
            SENDS_NO_NAME,
            "the process that loads this subject sent wrong data (KeyError: 'name'); look at the code that runs when",
        ),
        ("while True: pass", "loading took over 1 s; choose a larger --timeout, or timeout in Python"),
        ("import sys; sys.exit(3)", "line 1, exits with 3 while it is loaded"),
        ("1 / 0", "line 1, raises ZeroDivisionError: division by zero"),
        ("loss = 3", "it is an object of type int, which is not callable; allowed are a callable"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_an_error_of_one_line(tmp_path, code, said):
    (tmp_path / "bad.py").write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match=r"^subject: got ") as raised:
        crossent.check(f"{tmp_path / 'bad.py'}:loss", jobs=1, timeout=1 if "while" in code else 60)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


LOOKS = """
from support import hostile
from support.running import CASES, run_isolated
from crossent.subjects.subject import Subject
subject = Subject("looks", hostile.looks_for_the_exact_value)
kinds = {(finding.check, finding.kind) for finding in run_isolated(subject).findings}
assert ("loss", "wrong") in kinds, kinds
"""


BEFORE_TRITON = """
import sys
import crossent
for name in ("triton", "torch._dynamo"):
    assert name not in sys.modules, f"{name} is imported before this file"
loss = crossent.formula
"""


def test_a_file_can_configure_triton_before_anything_imports_it(tmp_path, monkeypatch):
    """No compiler of torch imports Triton before the file. Otherwise Liger's kernels fail in Triton's interpreter."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('no Triton here')", encoding="utf-8")
    (tmp_path / "mine.py").write_text(BEFORE_TRITON, encoding="utf-8")
    # In a fresh process, since this process has imported the compilers.
    checked = [sys.executable, "-m", "crossent", "check", "mine.py:loss", "--level", "quick", "--dtype", "float32"]
    case = "float32-7x5-normal-int64-none-ignored_minus_one-rows"
    chosen = ["--case", case, "--check", "trace", "--check", "loss", "--no-cache"]  # torch 2.0 cannot trace
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(crossent.__file__).parents[1])]))
    ran = subprocess.run([*checked, *chosen], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 call checked" in ran.stdout


def test_there_is_no_exact_value_in_the_memory_of_a_subject():
    """A loss that searches its memory finds no exact value. A fresh process has no exact values of other tests."""
    subprocess.run([sys.executable, "-c", LOOKS], cwd=Path(__file__).parents[1], check=True, timeout=120)


def test_a_subject_that_ends_its_process_on_one_case_runs_on_the_others():
    def loss(input, target, **options):
        if len(input) == 257:
            os._exit(3)
        return hostile.right(input, target, **options)

    (finding,) = run_isolated(Subject("mine", loss)).findings
    assert (finding.case, finding.kind) == (CASES[2].id, "crashed")
    assert finding.message == "its process ended: exit status 3"


@pytest.mark.parametrize("name", ["summarize", "check"])
def test_an_exception_of_crossent_is_not_called_a_damaged_reply_alone(monkeypatch, name):
    """A bug of crossent in a check, or between the checks, must not read as a fault of the subject."""

    def fail(*_):
        raise AssertionError("a bug")

    if name == "check":
        checks = [replace(check, body=fail) if check.name == "loss" else check for check in SINGLE]
    else:
        checks = SINGLE
        monkeypatch.setattr("crossent.run.judge._summarize_found", fail)
    (finding,) = run_isolated(Subject("mine", hostile.right), cases=CASES[:1], checks=checks).findings
    assert finding.kind == "crashed"
    start = "crossent has a bug, or its process returned a damaged reply: AssertionError: a bug (crossent/"
    assert finding.message.startswith(start)


def test_an_exit_status_is_described_even_if_its_signal_has_no_name():
    assert [status_in_words(status) for status in (0, -11, -40)] == ["exit status 0", "SIGSEGV", "signal 40"]


def test_the_output_of_a_process_that_crashed_counts_on_no_other_case():
    def loss(input, target, **options):
        if len(input) == 257:
            os.write(1, bytes(_MOST_PRINTED + 1))
            os._exit(3)
        return hostile.right(input, target, **options)

    findings = run_isolated(Subject("mine", loss)).findings
    assert [(finding.case, finding.kind) for finding in findings] == [(CASES[2].id, "crashed")]


def test_a_result_too_large_to_be_right_has_no_exception_of_crossent_in_its_finding():
    def loss(input, target, **options):
        return input.sum().expand(2**33)

    (finding,) = run_isolated(Subject("mine", loss), cases=CASES[:1]).findings
    assert finding.message.startswith(f"a result has shape ({2**33},) and {2**35} bytes; expected at most ")


def test_the_calls_of_a_case_share_the_time_limit():
    """Each act alone would return in time, but all acts together take too long. The next case has its own limit."""

    def loss(input, target, **options):
        time.sleep(2.2 if len(input) == 7 else 0.0)
        return hostile.right(input, target, **options)

    findings = run_isolated(Subject("mine", loss), seconds=8.0, cases=CASES[:3:2]).findings
    found = [(finding.case, finding.check, finding.kind, finding.message) for finding in findings]
    said = (
        "the calls of this case took more than 8 s together, the limit that --timeout sets, in Python timeout=SECONDS"
    )
    assert found == [(CASES[0].id, "repeat", "hung", said)]


def test_temporary_files_of_a_subject_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def loss(input, target, **options):
        (Path(tempfile.mkdtemp()) / "kept").write_text(os.environ["TMPDIR"])
        raise RuntimeError(tempfile.gettempdir())

    before = os.environ.get("TMPDIR")
    report = run_isolated(Subject("mine", loss), cases=CASES[:1])
    assert str(tmp_path) in report.findings[0].message
    assert list(tmp_path.iterdir()) == []
    assert os.environ.get("TMPDIR") == before


@pytest.mark.skipif(
    not Path("/proc/self/oom_score_adj").exists(), reason="needs Linux, where a process can ask to be ended first"
)
def test_a_subject_has_limits_of_its_own():
    def loss(input, target, **options):
        first_to_end = Path("/proc/self/oom_score_adj").read_text().strip()
        raise RuntimeError(f"{first_to_end} {resource.getrlimit(resource.RLIMIT_FSIZE)}")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    report = run_isolated(Subject("mine", loss), cases=CASES[:1])
    assert report.findings[0].message == f"RuntimeError: 1000 ({2**30}, {2**30})"
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _PRLIMIT,
    reason="needs Linux, on a processor whose number of the system call prlimit is known",
)
def test_a_subject_has_no_access_to_the_limits_of_the_judge():
    def loss(input, target, **options):
        resource.getrlimit(resource.RLIMIT_NOFILE)  # its own
        limits = resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)
        raise RuntimeError(f"{limits} are those of another process")

    report = run_isolated(Subject("mine", loss), cases=CASES[:1])
    assert report.findings[0].message == "PermissionError: [Errno 1] Operation not permitted"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, where a child can end with its parent")
def test_an_isolated_process_ends_with_its_judge(tmp_path):
    """The process ends when the judge exits during a call, although the judge does not end the process."""
    number_file = tmp_path / "number"
    code = f"""
import os, threading, time
from pathlib import Path
from crossent.cases.case import Case
from crossent.run.isolation.fork_server import ForkServer
from crossent.run.isolation.process import IsolatedProcess, perform_acts
from crossent.trials.call import make_call
def loss(*arguments, **options):
    Path({str(number_file)!r}).write_text(os.readlink("/proc/self"))  # its number outside of its PID namespace
    time.sleep(1000)
def end():
    while not Path({str(number_file)!r}).exists():
        time.sleep(0.05)
    time.sleep(0.2)
    os._exit(0)
server = ForkServer(lambda _, *descriptors: perform_acts(*descriptors, lambda: loss), 2**33)
threading.Thread(target=end).start()
IsolatedProcess(server, 0, 1000.0).perform(make_call, Case("float32").build(), ())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    status = Path(f"/proc/{int(number_file.read_text())}/status")
    for _ in range(100):
        if not status.exists() or "zombie" in status.read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the isolated process still runs")
