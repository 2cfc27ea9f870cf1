"""The ranks of a torchrun job: the first process runs the checks, and the other processes run ranks.

The tests start real jobs.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import faulty_ranks

from crossent.report.reader import read_report
from crossent.subjects.ranks import job
from crossent.subjects.ranks.job import join_job
from crossent.subjects.ranks.protocol import can_start_ranks

pytestmark = pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
SUPPORT = Path(faulty_ranks.__file__)
JOB = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-id", "of-a-test"]
JOB += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
SELECTED = ["--check", "loss", "--case", "float32-7x5-normal-int64-mean", "--no-cache", "--jobs", "1"]


def torchrun(folder, *words):
    """Run `crossent check` as a job of two processes. Return its status, its output and the processes that are left.

    `words` are the arguments of the command. Every process of the job runs in `folder`.
    """
    mark = f"{folder}{os.getpid()}"
    own = {"CROSSENT_TEST": mark, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)}
    how = {"capture_output": True, "text": True, "cwd": folder, "env": {**os.environ, **own}, "timeout": 240}
    made = subprocess.run([*JOB, "-m", "crossent", "check", *words, *SELECTED], **how, check=False)
    until = time.monotonic() + 10
    while (left := _running(mark.encode())) and time.monotonic() < until:
        time.sleep(0.05)
    return made.returncode, made.stdout + made.stderr, left


def _running(mark):
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() and "Z" not in (process / "stat").read_text().split()[2]:
                found.append(process)
        except OSError:
            pass
    return found


# The ranks that torchrun starts have the run id of the job, "of-a-test". The ranks that crossent's own launcher starts
# have another run id, so `of_a_job` raises if such a rank runs as rank 1.
OF_A_JOB = """
import os

def of_a_job(*arguments):
    if dist.get_rank() == 1 and os.environ["TORCHELASTIC_RUN_ID"] != "of-a-test":
        raise ValueError("this rank is not of the job")
    return right(*arguments)

def ends_its_server(*arguments):
    if dist.get_rank() == 1:
        keeper = os.getppid()
        server = open(f"/proc/{keeper}/stat").read().rpartition(")")[2].split()[1]
        os.kill(int(server), signal.SIGKILL)
    return right(*arguments)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(SUPPORT.read_text(encoding="utf-8") + OF_A_JOB, encoding="utf-8")
    return tmp_path


def test_the_ranks_of_a_job_run_the_loss_and_a_fault_is_a_finding(folder):
    losses = ["mine.py:of_a_job", "mine.py:ends", "mine.py:raises"]
    status, output, left = torchrun(folder, *losses, "--ranks", "2", "--json", "report.json", "--seed", "0")
    assert "FAILED: 2 findings" in output, output
    assert status == 1
    right, ends, raises = read_report(folder / "report.json").subjects
    assert right.findings == []
    assert right.outcomes
    assert "rank 1 ended with exit status 3" in ends.findings[0].message
    assert "rank 1 raised ValueError: no such shard" in raises.findings[0].message
    assert left == []


def test_a_job_of_another_size_is_an_error_of_one_line(folder):
    status, output, left = torchrun(folder, "mine.py:right", "--ranks", "3")
    assert "--ranks: got 3, but the number of processes of the torchrun job is 2" in output
    assert "exitcode  : 2" in output  # the exit status of the judge; torchrun itself exits with 0 or 1
    assert status == 1
    assert left == []


@pytest.mark.parametrize(("size", "ranks"), [("2", None), ("2", 3), ("1", 2)])
def test_a_job_in_which_every_process_would_judge_is_an_error(monkeypatch, size, ranks):
    for name, value in {"TORCHELASTIC_RUN_ID": "one", "RANK": "0", "WORLD_SIZE": size}.items():
        monkeypatch.setenv(name, value)
    given = "no number" if ranks is None else ranks
    advice = f"the number of processes of the torchrun job is {size}; give --ranks {size}$"
    with pytest.raises(ValueError, match=f"^ranks: got {given}, but {advice}"):
        join_job(ranks)


def test_a_job_of_one_process_needs_no_ranks(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "one", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    join_job(None)


def test_a_process_of_a_job_that_does_not_start_is_named(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "one", "RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as first, socket.socket() as second:
        addresses = {}
        for at, listener in enumerate((first, second), 1):
            listener.bind(("127.0.0.1", 0))
            addresses[f"server{at}"] = {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": ""}
        first.listen()  # and the second process does not listen
        store = SimpleNamespace(get=lambda name: json.dumps(addresses[name]))
        monkeypatch.setattr(job, "_join_store", lambda rank: store)
        monkeypatch.setattr(job, "_controls", controls := [])
        wrong = (
            "^ranks: process 2 of the torchrun job does not start [(]ConnectionRefusedError: .*[)]; see the output of"
        )
        with pytest.raises(ValueError, match=f"{wrong} process 2$"):
            join_job(3)
    for one in controls:
        one.close()


def test_a_job_ends_with_a_line_if_one_of_its_processes_ends(folder):
    before = time.monotonic()
    status, output, left = torchrun(folder, "mine.py:ends_its_server", "--ranks", "2")
    assert "process 1 of the torchrun job ended" in output or "Signal 9 (SIGKILL)" in output, output
    assert status == 1
    assert left == []
    assert time.monotonic() - before < 120


@pytest.mark.parametrize(
    "request_line", [b"{}\n", b"1\n", b'{"token": 1}\n', b'{"token": "other"}\n', b"[" * 60_000 + b"\n"]
)
def test_a_request_without_the_token_does_not_end_the_server(request_line):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as stream,
    ):
        stream.sendall(request_line)
        assert job._accept(listener, "token") is None


def test_the_line_names_every_process_that_ended(monkeypatch, capsys):
    pairs = [socket.socketpair() for _ in range(3)]
    monkeypatch.setattr(job, "_controls", [ours for ours, _ in pairs])
    statuses = []
    for _, theirs in pairs[1:]:
        theirs.close()
    with monkeypatch.context() as patched:
        patched.setattr(os, "_exit", statuses.append)
        job._watch()
    assert statuses == [2]
    line = "crossent: process 2 and process 3 of the torchrun job ended; start the job again\n"
    assert capsys.readouterr().err == line
    for pair in pairs:
        for one in pair:
            one.close()
