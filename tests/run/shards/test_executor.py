"""`crossent.over`: the shards of a run on an executor give the report of one run, whatever happens to its workers."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pytest
from support.processes import COMMAND, INTERRUPTIBLE, in_session, start, wait_until
from support.running import check_on

import crossent
from crossent.cases.case import Case
from crossent.cli import crossent as command_line
from crossent.run.shards import task as tasks

CHOSEN = {"level": "quick", "dtypes": ["float32"], "cases": "*7x5*", "checks": ["loss", "gradient"]}
WRONG = """
import crossent

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    loss = crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss * 1.01 if label_smoothing else loss
"""
check_few = check_on([Case("float32", (3, n), label_smoothing=e) for n in (5, 6) for e in (0.0, 0.1)])
new_pool = partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


@pytest.mark.parametrize("engine", ["threads", "processes", "loky"])
def test_an_executor_gives_the_report_of_one_run(folder, engine):
    """With threads, processes and loky, the report and the commands of its findings equal those of one run."""
    if engine == "loky":
        new = partial(pytest.importorskip("loky", reason="needs loky").ProcessPoolExecutor, 2)
    else:
        new = new_pool if engine == "processes" else partial(ThreadPoolExecutor, 2)
    one = crossent.check("wrong.py:loss", "formula", **CHOSEN, seed=5)
    with new() as executor:
        report = crossent.over(executor, "wrong.py:loss", "formula", **CHOSEN, seed=5, shards=3)
    assert report.findings
    assert report.to_json() == one.to_json()
    assert [finding.command for finding in report.findings] == [finding.command for finding in one.findings]
    assert not report.ok


class Prepared(Executor):
    """An executor that returns prepared bytes for each number of a shard.

    For some numbers, `faults` has the results of the first attempts: other bytes, or errors to raise.
    """

    def __init__(self, shards, faults=None):
        self.shards, self.faults, self.sent, self.task = shards, faults or {}, [], None

    def submit(self, task, number, count):
        future = Future()
        self.sent.append(number)
        self.task = task
        fault = self.faults[number].pop(0) if self.faults.get(number) else self.shards[number]
        if isinstance(fault, bytes):
            future.set_result(fault)
        else:
            future.set_exception(fault)
        return future


@pytest.fixture(scope="module")
def prepared():
    """Return the report of a run, and the bytes of its shards by number."""
    shards = [check_few("formula", level="quick", dtypes="float32", shard=(number, 3)) for number in (1, 2, 3)]
    content = {report.shard.number: json.dumps(report.to_json()).encode() for report in shards}
    return check_few("formula", level="quick", dtypes="float32"), content


LOST = [
    ("a lost worker", lambda content: OSError("the worker is gone")),
    ("a failed command", lambda content: tasks.ShardError("the command ended with signal 9: Killed")),
    ("another shard", lambda content: content[1]),
    ("a part of a report", lambda content: content[2][:-100]),
    ("no report", lambda content: b"\x00"),
    ("nothing", lambda content: b""),
]


@pytest.mark.parametrize("fault", [fault for _, fault in LOST], ids=[name for name, _ in LOST])
def test_a_shard_without_a_report_is_sent_again_and_nothing_counts_twice(prepared, fault):
    one, content = prepared
    executor = Prepared(content, {2: [fault(content), fault(content)]})
    report = crossent.over(executor, "formula", level="quick", dtypes="float32", shards=3)
    assert report.to_json() == one.to_json()
    assert sorted(executor.sent) == [1, 2, 2, 2, 3]


@pytest.mark.parametrize("fault", [fault for _, fault in LOST], ids=[name for name, _ in LOST])
def test_a_shard_that_fails_too_often_is_one_line(prepared, fault):
    content = prepared[1]
    executor = Prepared(content, {2: [fault(content)] * 2})
    with pytest.raises(
        RuntimeError, match=r"^shard 2/3 failed 2 times, the last time with \w+: [^\n]+; `crossent check --shard 2/3` "
    ):
        crossent.over(executor, "formula", shards=3, attempts=2)
    assert sorted(executor.sent) == [1, 2, 2, 3]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"\x00", "not a report of crossent: Expecting value: line 1 column 1 (char 0)"),
        (
            lambda content: content.replace(b'"level"', b'"kevel"'),
            "damaged, or from another version of crossent: the key 'level' is missing",
        ),
    ],
    ids=["no report", "a key"],
)
def test_a_damaged_report_is_an_error_without_the_name_of_a_removed_file(prepared, damage, reason):
    content = prepared[1]
    with pytest.raises(RuntimeError) as raised:
        crossent.over(Prepared(content, {2: [damage(content[2])]}), "formula", shards=3, attempts=1)
    advice = "`crossent check --shard 2/3` runs this shard alone"
    assert (
        str(raised.value)
        == f"shard 2/3 failed with ValueError: the worker returned no valid report: {reason}; {advice}"
    )


def test_an_error_without_a_message_is_named_by_its_class(prepared):
    with pytest.raises(RuntimeError, match=r"^shard 2/3 failed with KeyboardInterrupt; "):
        crossent.over(Prepared(prepared[1], {2: [KeyboardInterrupt()]}), "formula", shards=3, attempts=1)


def test_shards_of_other_versions_are_refused(prepared):
    content = dict(prepared[1])
    other = json.loads(content[3])
    other["environment"]["torch"] = "0.4.0"
    content[3] = json.dumps(other).encode()
    with pytest.raises(ValueError, match=r"^shard 3/3: got a shard of another run; torch: '0.4.0' here"):
        crossent.over(Prepared(content), "formula", shards=3)


def test_a_broken_executor_is_replaced_if_a_function_makes_it(prepared):
    one, content = prepared
    made = []

    def new():
        broken = [BrokenExecutor("a process ended")]
        made.append(Prepared(content, {2: broken, 3: broken} if not made else {}))
        return made[-1]

    assert crossent.over(new, "formula", shards=3).to_json() == one.to_json()
    assert len(made) == 2
    assert sorted(number for executor in made for number in executor.sent) in ([1, 2, 2, 3], [1, 2, 2, 3, 3])
    broken = Prepared(content, {2: [BrokenExecutor("a process ended")]})
    with pytest.raises(RuntimeError, match=r"^the executor is broken \(BrokenExecutor\), with \d of 3 shards done; "):
        crossent.over(broken, "formula", shards=3)


def test_another_error_at_the_same_time_is_not_the_reason_of_a_broken_executor(prepared):
    faults = {number: [OSError("the disk is full")] for number in (1, 2, 3)} | {2: [BrokenExecutor("a process ended")]}
    with pytest.raises(RuntimeError, match=r"^the executor is broken \(BrokenExecutor\), with 0 of 3 shards done; "):
        crossent.over(Prepared(prepared[1], faults), "formula", shards=3)


def test_a_broken_executor_is_replaced_once_although_its_shards_fail_one_after_another(prepared):
    one, content = prepared
    made = []

    class FailsLater(Prepared):
        """An executor whose shard 3 fails only after shard 2 has been sent to another executor."""

        def submit(self, task, number, count):
            if self is made[0] and number == 3:
                self.later = Future()
                return self.later
            if self is not made[0] and not made[0].later.done():
                made[0].later.set_exception(BrokenExecutor("a process ended"))
            return super().submit(task, number, count)

    def new():
        made.append(FailsLater(content, {} if made else {2: [BrokenExecutor("a process ended")]}))
        return made[-1]

    assert crossent.over(new, "formula", level="quick", dtypes="float32", shards=3).to_json() == one.to_json()
    assert len(made) == 2


def test_a_pool_whose_process_is_killed_gives_the_report_of_one_run(folder):
    pools = []

    def new():
        pools.append(new_pool())
        return pools[-1]

    def progress(steps):
        for at, step in enumerate(steps):
            if at == 0:
                os.kill(next(iter(pools[0]._processes)), signal.SIGKILL)
            yield step

    report = crossent.over(new, "formula", **CHOSEN, shards=4, progress=progress)
    assert len(pools) > 1
    assert report.to_json() == crossent.check("formula", **CHOSEN).to_json()


def test_an_error_of_the_command_is_the_error_of_the_run_and_is_not_repeated(folder):
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match=r"^[^\n]+$") as raised:
        crossent.over(executor, "nowhere.py:loss", **CHOSEN, shards=1)
    assert str(raised.value).startswith("subject: got 'nowhere.py:loss'; 'nowhere.py' does not exist")


def test_a_folder_that_a_worker_lacks_is_one_line(tmp_path):
    with pytest.raises(tasks.ShardError, match="has no folder") as raised:
        tasks.Task([], ["formula"], str(tmp_path / "nowhere"))(1, 1)
    assert raised.value.final


def test_arguments_are_checked_before_anything_is_sent():
    executor = Prepared({})
    with pytest.raises(TypeError, match=r"^over: got .*; give the function by name, as in 'path/to/file.py:NAME'"):
        crossent.over(executor, crossent.formula)
    with pytest.raises(TypeError, match=r"^cases: got a mapping; give a list of cases"):
        crossent.over(executor, "formula", cases={"float32-7x5-normal-int64-mean": ["loss"]})
    for name in ("shards", "attempts"):
        with pytest.raises(ValueError, match=rf"^{name}: got '?0'?; allowed are 1 to "):
            crossent.over(executor, "formula", **{name: 0})
    assert executor.sent == []


def test_the_command_of_a_shard_has_every_option(prepared):
    options = {
        "device": "cuda:1",
        "dtypes": ("float16", "float64"),
        "level": "thorough",
        "seed": 7,
        "without": ("vmap", "compile"),
        "contract": "torch",
        "grade": "B",
        "expected_findings": "known.toml",
        "jobs": 3,
        "timeout": 5.5,
        "cases": ("*a b*", "-x"),
        "operation": "cross_entropy",
        "ranks": 2,
    }
    executor = Prepared(prepared[1])
    crossent.over(executor, "formula", shards=3, checks=("loss", "gradient"), **options)
    context = command_line.commands["check"].make_context("check", [*executor.task.options, "--", "formula"])
    assert {name: context.params[name] for name in options} == options
    assert context.params["checks"] == (("loss",), ("gradient",))
    crossent.over(executor, "formula", shards=3, seed="random")
    assert "--seed=random" not in executor.task.options


SCRIPT = """
import crossent, multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

if __name__ == "__main__":
    {signals}
    engine = {engine}
    crossent.over(engine, "wrong.py:loss", level="normal", shards=4, jobs=2)
"""
ENGINES = {
    "threads": "ThreadPoolExecutor(2)",
    "processes": "lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('spawn'))",
}


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("whole", [True, False], ids=["terminal", "process"])
@pytest.mark.parametrize("engine", [*ENGINES, "built-in"])
def test_an_interrupt_leaves_no_process_and_no_file(folder, engine, whole):
    """Two interrupts are tested. Ctrl-C in a terminal reaches every foreground process, and `kill -INT` reaches one."""
    if engine == "built-in":
        command = [*COMMAND, "check", "wrong.py:loss", "--seed", "0", "--jobs", "2", "--no-cache"]
    else:
        (folder / "script.py").write_text(SCRIPT.format(signals=INTERRUPTIBLE, engine=ENGINES[engine]))
        command = [sys.executable, "script.py"]
    process = start(command, folder)
    wait_until(lambda: len(in_session(process.pid)) >= 4 and any((folder / "tmp").iterdir()))
    (os.killpg if whole else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT), out + err
    wait_until(lambda: not in_session(process.pid), 30)
    assert list((folder / "tmp").iterdir()) == []


WORKER = "from crossent.run.shards.task import Task; Task(['--level=normal', '--jobs=2'], ['wrong.py:loss'], '.')(1, 2)"


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_the_command_of_a_killed_worker_ends_and_removes_its_files(folder):
    code = WORKER.replace("'--jobs=2'", "'--jobs=2', '--seed=0'")
    process = start([sys.executable, "-c", code], folder)
    wait_until(lambda: len(in_session(process.pid)) >= 4 and any((folder / "tmp").iterdir()))
    process.kill()
    process.wait()
    wait_until(lambda: not in_session(process.pid), 60)
    process.communicate()
    assert list((folder / "tmp").iterdir()) == []
