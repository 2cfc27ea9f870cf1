"""The session on a GPU, without a GPU: its processes, its limits, its results, and a dry run of each step on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.readme import ROOT

from benchmarks.cuda import __main__ as command
from benchmarks.cuda import devices, processes, results, wheels
from benchmarks.cuda.devices import Device, NoDeviceError
from benchmarks.cuda.processes import Command, Part
from benchmarks.cuda.session import ENDED, NOTHING_RAN, PASSED, UNFINISHED, WRONG_USE, Session, status_of
from benchmarks.cuda.steps import STEPS, Step, in_parts

DEVICE = Device("cuda:0", "a test", {"torch": "1", "cores": 2})
# A process that ignores interrupts, and leaves its group, as a subject of crossent could.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[1]], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""


def python(code, *words, **options):
    return Command((sys.executable, "-c", code, *words), **options)


def step(name, *commands, seconds=5.0, **options):
    facts = options.pop("facts", {})
    return Step(name, "a test", seconds, (("part", commands),), lambda parts, folder: dict(facts), **options)


def session(into, seconds=600.0, **options):
    lines = []
    made = Session(DEVICE, into, seconds, say=lines.append, **options)
    return made, lines


def outcome(into, name):
    return json.loads((into / f"cuda-{name}.json").read_text())["outcome"]


def running(word):
    """Return the processes with this word in their command, without zombies."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = line.read_bytes().split(b"\0")
        except OSError:
            continue
        if word.encode() in words and int(line.parent.name) != os.getpid():
            found.append(int(line.parent.name))
    return found


# --- The processes of a step ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a session adopts orphans")
def test_at_its_limit_a_step_leaves_no_process(tmp_path, monkeypatch):
    """The session runs in another process, since it adopts orphans of all its children."""
    word = str(tmp_path)
    code = f"""
import sys
from pathlib import Path
from benchmarks.cuda import processes
from benchmarks.cuda.processes import Command, Part
processes.GRACE = 0.5
processes.adopt_orphans()
part = Part("part", [Command((sys.executable, "-c", {STUBBORN!r}, {word!r}))])
late = Part("late", [Command((sys.executable, "-c", ""))])
processes.run([part, late], Path({word!r}), 3.0, 1, {{}}, Path.cwd())
print(part.outcome, part.status, late.outcome)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"out of time {-signal.SIGKILL} out of time\n", done.stderr
    assert "ready" in (tmp_path / "part.log").read_text()
    assert running(word) == []


def test_a_part_stops_at_the_first_command_that_does_not_pass(tmp_path):
    def run(*statuses):
        part = Part(
            "part", [python(f"import sys; sys.exit({status})", ends={0: "passed", 1: "failed"}) for status in statuses]
        )
        processes.run([part], tmp_path, 60.0, 1, dict(os.environ), tmp_path)
        return part.outcome, part.status

    assert run(0, 0) == ("passed", 0)
    assert run(0, 1, 0) == ("failed", 1)
    assert run(2, 0) == ("broken", 2)


def test_parts_run_at_the_same_time(tmp_path):
    """Each of two parts waits for a file that the other part writes."""
    code = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""
    parts = [Part(one, [python(code, one, other)]) for one, other in (("a", "b"), ("b", "a"))]
    processes.run(parts, tmp_path, 60.0, 2, dict(os.environ), tmp_path)
    assert [part.outcome for part in parts] == ["passed", "passed"]


# --- Limits, results, and a second call -----------------------------------------------------------------------------


def test_a_second_call_runs_only_what_has_not_ended(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    count = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).open('a').write('x')"
    steps = [
        step("right", python(count, str(marks / "right"))),
        step("wrong", python(f"{count}; sys.exit(1)", str(marks / "wrong"))),
        step("slow", python(f"{count}; time.sleep(60)", str(marks / "slow")), seconds=2.0),
        step("late", python(count, str(marks / "late")), seconds=30.0),
    ]

    def counts():
        return {mark.name: len(mark.read_text()) for mark in marks.iterdir()}

    into = tmp_path / "results"
    first, lines = session(into, 20.0)
    assert first.run(steps) == 1
    assert {name: outcome(into, name) for name in ("right", "wrong", "slow", "late")} == {
        "right": "passed",
        "wrong": "failed",
        "slow": "out of time",
        "late": "skipped",
    }
    assert "needs 30 s" in json.loads((into / "cuda-late.json").read_text())["reason"]
    assert counts() == {"right": 1, "wrong": 1, "slow": 1}
    short, _ = session(into, 7.0)
    short.run(steps)  # no time for anything: the result of `slow` is kept
    assert outcome(into, "slow") == "out of time"
    assert counts() == {"right": 1, "wrong": 1, "slow": 1}
    second, lines = session(into)
    assert second.run(steps) == 1
    assert counts() == {"right": 1, "wrong": 1, "slow": 2, "late": 1}
    third, lines = session(into, again=["right"])
    third.run(steps[:2])
    assert counts()["right"] == 2
    assert "    failed in an earlier call; --again wrong runs it again" in lines


@pytest.mark.parametrize("change", [{"torch": "2"}, {"name": "another GPU"}])
def test_a_result_of_another_torch_or_device_has_not_ended(tmp_path, change):
    steps = [step("right", python(""))]
    session(tmp_path)[0].run(steps)
    other = Device("cuda:0", change.get("name", DEVICE.name), DEVICE.facts | change)
    lines = []
    Session(other, tmp_path, 600.0, say=lines.append).run(steps)
    assert not any("earlier call" in line for line in lines)


def test_a_step_gets_no_more_time_than_is_left(tmp_path):
    """A step starts only if at least `least` seconds are left, besides the 6 s that the session keeps for its end."""
    made, lines = session(tmp_path, 16.0)
    made.run([step("long", python("import time; time.sleep(0.1)"), seconds=100.0, least=5.0)])
    assert lines[1].startswith("    at most 10 s of the 10 s left")
    assert outcome(tmp_path, "long") == "passed"


def test_a_step_whose_packages_are_missing_says_how_to_bring_them(tmp_path):
    made, lines = session(tmp_path)
    assert made.run([step("needs", python(""), packages=("no-such-package",))]) == UNFINISHED
    assert "needs no-such-package" in lines[1]
    assert "pip install --no-index --find-links wheelhouse" in lines[1]


def test_the_facts_of_a_step_may_fail_it(tmp_path):
    made, _ = session(tmp_path)
    assert made.run([step("facts", python(""), facts={"failed": True})]) == 1
    assert outcome(tmp_path, "facts") == "failed"


def test_the_files_of_a_session_name_no_path_of_this_machine(tmp_path):
    made, _ = session(tmp_path)
    made.run([step("paths", python("", str(tmp_path / "cuda-logs" / "paths" / "x.json"), str(ROOT / "crossent")))])
    text = (tmp_path / "cuda-paths.json").read_text()
    assert str(tmp_path) not in text
    assert str(ROOT) not in text
    assert '"python -c  cuda-logs/paths/x.json ./crossent"' in text


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ({"passed": 3}, PASSED),
        ({"passed": 3, "not possible": 1}, PASSED),
        ({"passed": 3, "failed": 1, "waits": 1}, 1),
        ({"passed": 3, "broken": 1}, 1),
        ({"passed": 3, "out of time": 1}, UNFINISHED),
        ({"passed": 3, "waits": 1}, UNFINISHED),
        ({"not possible": 1}, NOTHING_RAN),
    ],
)
def test_the_exit_status_is_the_worst_outcome(outcomes, status):
    assert status_of(outcomes) == status


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_ctrl_c_leaves_no_process_and_keeps_the_results(tmp_path):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a shell ignore SIGINT
    words = [sys.executable, "-m", "benchmarks.cuda", "--pretend", "--into", str(tmp_path)]
    words += ["--step", "against_torch", "--step", "isolation"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # wait for the second step
            if "isolation" in line and "logs:" in line:
                break
        log = tmp_path / "pretended-logs" / "isolation" / "asserting.log"
        end = time.monotonic() + 60
        while not log.exists() and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 130
    assert "interrupted; the results are in" in rest
    kept = {path.stem: json.loads(path.read_text())["outcome"] for path in tmp_path.glob("*.json")}
    assert kept == {"pretended-against_torch": "passed", "pretended-isolation": "interrupted"}
    here = str(tmp_path / "pretended-logs" / "isolation" / "asserting.json")
    assert running(here) == []


# --- The dry run ----------------------------------------------------------------------------------------------------


def test_a_dry_run_executes_each_step_or_says_why_not(tmp_path):
    words = [sys.executable, "-m", "benchmarks.cuda", "--pretend", "--into", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == PASSED, done.stdout + done.stderr
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {*found} == {f"pretended-{one.name}.json" for one in STEPS}
    for name, one in found.items():
        assert one["pretended"] is True, name
        assert one["device"]["use"] == "cpu"
        assert "pretended" in one["device"]["name"]
        assert one["outcome"] in ("passed", "skipped"), name
        assert bool(one.get("reason")) == (one["outcome"] == "skipped")
    assert [name for name, one in found.items() if one["outcome"] == "skipped"] in ([], ["pretended-fused.json"])
    facts = {name.removeprefix("pretended-").removesuffix(".json"): one.get("facts", {}) for name, one in found.items()}
    assert facts["against_torch"]["tests"]["passed"] > 0
    assert {one["path"] for one in facts["exp_and_log"]["errors"]} >= {"torch.exp", "torch.log"}
    assert {one["path"] for one in facts["every_float32"]["errors"]} >= {"torch.exp", "log_softmax, last dimension"}
    assert facts["quick"]["subjects"]["torch"]["ran"] > 0
    assert facts["linear"]["subjects"]["linear_blocked"]["ran"] > 0
    assert facts["large"]["worst"]["large"]["share"] > 0
    assert facts["determinism"]["tests"]["passed"] > 0
    assert facts["isolation"]["spoiled"] == []
    assert facts["isolation"]["findings_in_all"] > 0
    assert facts["cpu_and_device"]["float32"]["cases"]["torch"]
    assert {"torch", "blocked"} <= facts["hot_path"]["cells"][0]["found"].keys()


def test_a_dry_run_does_not_write_among_the_measured_results(capsys):
    for words in (["--pretend", "--into", str(command.RESULTS)], ["--pretend", "--device", "cuda:0"]):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == WRONG_USE
    assert "the folder of measured results" in capsys.readouterr().err


def test_the_results_of_a_dry_run_do_not_count_as_ended_on_a_gpu(tmp_path):
    steps = [step("right", python(""))]
    Session(devices.pretended(), tmp_path, 600.0, say=lambda line: None).run(steps)
    made, lines = session(tmp_path)
    made.run(steps)
    assert not any("earlier call" in line for line in lines)
    assert {path.name for path in tmp_path.glob("*.json")} == {"pretended-right.json", "cuda-right.json"}


def test_an_unknown_step_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--step", "nonsense"])
    assert ended.value.code == WRONG_USE
    assert "choose from exp_and_log, against_torch" in capsys.readouterr().err


def test_the_outcomes_of_a_step_are_those_of_its_parts():
    assert set(ENDED) == {"passed", "failed", "broken"}


# --- The devices ----------------------------------------------------------------------------------------------------


def seen(*names, **facts):
    return {"torch": "2.13.0", "devices": [{"device": name, "name": f"the {name}"} for name in names], **facts}


def test_a_session_takes_the_first_device_and_names_the_others():
    device, others = devices.find(None, seen("cuda:0", "cuda:1", "xpu:0", cuda="13.0"))
    assert (device.use, others) == ("cuda:0", ["cuda:1", "xpu:0"])
    assert str(device) == "cuda:0, the cuda:0, torch 2.13.0, cuda 13.0"


@pytest.mark.parametrize(
    ("wanted", "use"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("xpu", "xpu:0"), ("mps", "mps")]
)
def test_a_session_takes_the_device_that_is_wanted(wanted, use):
    assert devices.find(wanted, seen("cuda:0", "cuda:1", "xpu:0", "mps"))[0].use == use


def test_rocm_is_shown_as_hip_on_a_device_that_torch_calls_cuda():
    device, _ = devices.find(None, seen("cuda:0", hip="6.4", cuda=None))
    assert "hip 6.4" in str(device)
    assert "cuda None" not in str(device)


def test_without_a_gpu_a_session_says_so():
    with pytest.raises(NoDeviceError, match="sees no GPU; for a dry run on a CPU, add --pretend"):
        devices.find(None, seen())
    with pytest.raises(NoDeviceError, match=r"got 'cuda:3'; torch 2\.13\.0 sees cuda:0"):
        devices.find("cuda:3", seen("cuda:0"))


def test_a_device_for_one_process_runs_the_parts_in_turn():
    assert Device("cuda:0", "a test", {"compute_mode": "Exclusive_Process"}).one_process
    assert not Device("cuda:0", "a test", {"compute_mode": "Default"}).one_process


# --- The facts ------------------------------------------------------------------------------------------------------


def finding(case, subject="torch", expected=None):
    return {"id": f"{subject}:loss:{case}", "kind": "wrong", "message": "off", "expected": expected, "ratio": 2.0}


def report(*findings, subject="torch", planned=None):
    counts = {"ran": 5, "failed": len(findings), "expected": 0, "not_applicable": 0}
    worst = {"ratio": 0.5, "ulp": 1.0, "case": "case"}
    checks = {"loss": {"float32": {"worst": worst}}, "call": {"float32": {"worst": None}}}
    part = {
        "name": subject,
        "counts": counts,
        "checks": checks,
        "not_run": {"stream": {"why": 3}},
        "findings": [*findings],
    }
    return {"planned": planned, "subjects": [part]}


def test_the_facts_of_checks_add_up_the_parts(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        results, "_known_on_cpu", lambda paths: asked.append(paths) or {"torch:loss:new": "as on a CPU"}
    )
    (tmp_path / "a.json").write_text(json.dumps(report(finding("new"), finding("old", expected="known"))))
    (tmp_path / "b.json").write_text(json.dumps(report(subject="formula", planned=9)))
    facts = results.of_checks([Part(name, []) for name in "abc"], tmp_path)
    assert facts["findings_in_all"] == 1
    assert facts["findings"][0]["known_on_cpu"] == "as on a CPU"
    assert facts["known_failures"] == {"known": 1}
    assert facts["worst"]["loss"] == {"share": 0.5, "subject": "torch", "case": "case"}
    assert facts["not_run"] == {"stream: why": 6}
    assert facts["unfinished"] == {"b": 9}
    assert facts["without_report"] == ["c"]
    assert len(asked) == 1


def test_a_finding_on_another_case_fails_the_step_of_isolation(tmp_path):
    for cases, failed in ((["x-sum"], False), (["x-sum", "x-mean"], True), ([], True)):
        findings = [finding(case, "loss") for case in cases]
        (tmp_path / "part.json").write_text(json.dumps(report(*findings, subject="loss")))
        assert results.of_isolation([Part("part", [])], tmp_path)["failed"] is failed


def test_known_failures_on_a_cpu_are_named(tmp_path):
    """The report has a finding that torch has on a CPU, but names the device cuda, for which the list has no entry."""
    path = tmp_path / "report.json"
    words = ["check", "torch", "--level", "quick", "--case", "half_sure/*", "--json", str(path)]
    subprocess.run([sys.executable, "-m", "crossent", *words], cwd=ROOT, check=True, capture_output=True, timeout=120)
    document = json.loads(path.read_text())
    document["environment"]["device"] = "cuda:0"
    for subject in document["subjects"]:
        for one in subject["findings"]:
            one["expected"] = None
    path.write_text(json.dumps(document))
    found = results._known_on_cpu([path])
    reason = found["torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA"]
    assert "rounds the sum of a row's exponentials to half precision" in reason


def test_a_check_is_divided_so_that_no_part_is_left_out():
    names = [name for name, _ in in_parts("--level", "quick")]
    assert sorted(names) == sorted(f"{group}-{dtype}" for group in ("forms", "torch") for dtype in wide_and_narrow())


def wide_and_narrow():
    return ("bfloat16", "float16", "float32", "float64")


# --- The wheelhouse -------------------------------------------------------------------------------------------------


def test_the_wheelhouse_has_what_the_package_needs_and_no_torch():
    names = [wheels.name_of(one) for one in wheels.requirements()]
    assert {"python-flint", "pebble", "click", "rich", "jinja2", "packaging", "pytest", "hypothesis"} <= {*names}
    assert not {*names} & {*wheels.ON_THE_MACHINE}


def test_missing_packages_are_named(monkeypatch):
    assert wheels.missing(("pytest",)) == []
    monkeypatch.setattr(wheels, "_installed", lambda name: name != "pebble")
    assert wheels.missing() == ["pebble"]


def test_the_wheels_are_for_another_python_and_for_linux(tmp_path, monkeypatch):
    commands = []

    def download(command, **options):
        commands.append(command)
        for name in ("click-8-py3-none-any.whl", "numpy-2-cp312-cp312-manylinux_2_28_x86_64.whl"):
            (tmp_path / name).touch()

    monkeypatch.setattr(wheels.subprocess, "run", download)
    assert [wheel.name for wheel in wheels.collect(tmp_path, "3.12", ["click>=8"])] == ["click-8-py3-none-any.whl"]
    (words,) = commands
    assert words[words.index("--only-binary") :][:2] == ["--only-binary", ":all:"]
    assert words[words.index("--python-version") :][:2] == ["--python-version", "3.12"]
    assert "manylinux_2_28_x86_64" in words
    assert (tmp_path / wheels.LIST).read_text() == "click>=8\n"


def test_a_missing_wheel_fails_the_wheelhouse(monkeypatch, capsys, tmp_path):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(wheels.subprocess, "run", fails)
    assert wheels.main(["--into", str(tmp_path)]) == 1
    assert "pip failed with status 1" in capsys.readouterr().err
