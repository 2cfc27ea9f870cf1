"""`crossent check --dask`: a scheduler and two workers as real processes, which talk over TCP."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec

import pytest
from support.error_lines import error_line
from support.examples import commands
from support.processes import COMMAND, in_session, start, wait_until
from support.readme import ROOT

from crossent.cli import WRONG_USE, main

needs_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs Dask: pip install 'crossent[dask]'")
needs_ps = pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
WRONG = """
import crossent

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    loss = crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss * 1.01 if label_smoothing else loss
"""
CHOSEN = ["wrong.py:loss", "torch", "--seed", "4", "--level", "quick", "--dtype", "float32", "--case", "*7x5*"]


@pytest.fixture
def cluster(tmp_path):
    """Start a scheduler and two workers of one thread; yield the address and the processes of the workers."""
    (tmp_path / "wrong.py").write_text(WRONG)
    file = str(tmp_path / "scheduler.json")
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "tcp://127.0.0.1", "--port", "0"]
    scheduler = start([*command, "--no-dashboard", "--scheduler-file", file], tmp_path)
    processes = [scheduler]
    try:
        wait_until(lambda: os.path.exists(file))
        for _ in range(2):
            command = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", file, "--no-nanny"]
            worker = start([*command, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"], tmp_path)
            processes.append(worker)
        with open(file, encoding="utf-8") as stream:
            yield json.load(stream)["address"], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def command_of(worker):
    """Return the ids of the processes that a worker has started."""
    return [pid for pid in in_session(worker.pid) if pid != worker.pid]


@pytest.mark.parametrize("lost", [False, True], ids=["all workers live", "a worker is killed"])
@needs_dask
@needs_ps
def test_a_run_on_dask_has_the_bytes_and_the_text_of_one_process(cluster, tmp_path, lost):
    address, workers = cluster
    options = ["--no-cache", "--dask", address, "--shards", "8", "--json", "dask.json"]
    process = start([*COMMAND, "check", *CHOSEN, *options], tmp_path)
    victim = workers[0]
    wait_until(lambda: command_of(victim))
    if lost:
        victim.kill()
    out, err = process.communicate(timeout=600)
    one = start([*COMMAND, "check", *CHOSEN, "--no-cache", "--json", "one.json"], tmp_path)
    text, _ = one.communicate(timeout=300)
    assert process.returncode == one.returncode == 1, err
    assert (tmp_path / "dask.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert out.splitlines()[:-1] == text.splitlines()[:-1]
    assert err == ""
    wait_until(lambda: not command_of(victim), 60)


@needs_dask
@needs_ps
def test_an_interrupt_ends_the_commands_of_the_workers_and_leaves_no_file(cluster, tmp_path):
    address, workers = cluster
    arguments = ["wrong.py:loss", "--seed", "4", "--no-cache", "--dask", address, "--shards", "4", "--jobs", "2"]
    process = start([*COMMAND, "check", *arguments], tmp_path)
    wait_until(lambda: all(len(command_of(worker)) > 2 for worker in workers))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "crossent: interrupted"
    wait_until(lambda: not any(map(command_of, workers)), 60)
    assert in_session(process.pid) == {}
    assert [file.name for file in (tmp_path / "tmp").iterdir() if not file.name.startswith("dask-")] == []


@needs_dask
def test_an_address_without_a_scheduler_is_wrong_use():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run(
        [*COMMAND, "check", "formula", "--dask", address], capture_output=True, text=True, check=False
    )
    assert done.returncode == WRONG_USE
    assert f"--dask: got '{address}'; cannot connect to a scheduler there: " in error_line(done.stderr)


def test_without_the_package_the_error_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["check", "formula", "--dask", "tcp://127.0.0.1:1"]) == WRONG_USE
    assert "--dask: the package 'distributed' is missing; run pip install 'crossent[dask]'" in error_line(
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--dask", "tcp://127.0.0.1:1", "--shard", "1/2"), "--dask runs every shard: leave out --shard"),
        (("--dask", "tcp://127.0.0.1:1", "-x"), "-x ends a run early, and a shard must be complete"),
        (("--dask", "tcp://127.0.0.1:1", "--last-failed"), "--last-failed chooses other cases on each machine"),
        (("--shards", "8"), "--shards is the number of shards on Dask: add --dask ADDRESS, or use --shard I/N"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_use(capsys, arguments, reason):
    assert main(["check", "formula", *arguments]) == WRONG_USE
    assert reason in error_line(capsys.readouterr().err)


@needs_dask
@needs_ps
def test_the_commands_of_the_page_run(tmp_path):
    """The commands of docs/scale.md start a scheduler, a worker and a run: here on a free port, and on a few cases."""
    scheduler, worker, check = commands(ROOT / "docs" / "scale.md")[-3:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "mine.py").write_text(WRONG)
    started = []
    try:
        for command in (scheduler, worker):
            program, *words = shlex.split(command.replace("8786", port))
            assert program == "dask"
            started.append(start([sys.executable, "-m", "dask", *words, "--no-dashboard"], tmp_path))
        program, *words = shlex.split(check.replace("8786", port))
        assert program == "crossent"
        wait_until(lambda: len(in_session(started[1].pid)) > 1)  # the worker's own process
        few = ["--level", "quick", "--dtype", "float32", "--case", "float32-7x5-*", "--check", "loss", "--shards", "2"]
        process = start([*COMMAND, *words, *few, "--no-cache"], tmp_path)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (1, "")
        assert out.splitlines()[-1].startswith("FAILED: ")
    finally:
        for one in started:
            os.killpg(one.pid, signal.SIGKILL)
            one.communicate()
