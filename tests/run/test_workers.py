"""The worker processes: a part whose worker ends or stops has a result, and other parts go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from crossent.machine import can_fork, forks_with_threads
from crossent.run import workers as module
from crossent.run.order import Part
from crossent.run.workers import Ended, alive, result, workers

pytestmark = pytest.mark.skipif(not can_fork(), reason="needs a system that forks")


def run_part(part):
    """Stop or end the process, run for long or raise, as the number in `part.cases` says. Return the number."""
    (number,) = part.cases
    if number == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    if number == 1:
        os._exit(3)
    if number == 2:  # runs longer than the parent waits for a sign of life
        for _ in range(30):
            alive()
            time.sleep(0.1)
    if number == 3:
        raise KeyboardInterrupt
    if number == 4:
        compute_in_two_threads()
    return number


def compute_in_two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(2**20).exp()  # torch divides so many elements among threads
    torch.set_num_threads(before)


def run(monkeypatch, *numbers, jobs=1):
    monkeypatch.setattr(module, "_GRACE", 1.0)
    with workers(run_part, jobs, 0.5) as pool:
        futures = {pool.submit(Part([one], [0], True), None): Part([one], [0], True) for one in numbers}
        return {futures[future].cases[0]: result(future) for future in pool.ended(futures, lambda running: None)}


def test_a_worker_that_was_stopped_is_replaced(monkeypatch):
    started = time.monotonic()
    results = run(monkeypatch, 0, 5)
    assert results == {0: Ended("hung", "the worker process stopped responding, and was killed"), 5: 5}
    assert time.monotonic() - started < 20


@pytest.mark.skipif(not forks_with_threads(), reason="needs an OpenMP that can end its threads before a fork")
def test_a_worker_computes_in_threads_though_its_parent_has_done_so(monkeypatch):
    compute_in_two_threads()
    assert run(monkeypatch, 4, 5) == {4: 4, 5: 5}


def test_a_worker_that_calls_alive_is_not_replaced(monkeypatch):
    assert run(monkeypatch, 2, 5) == {2: 2, 5: 5}


def test_a_worker_that_ends_is_replaced(monkeypatch):
    results = run(monkeypatch, 1, 3, 5)
    assert results[1] == Ended("crashed", "the worker process ended: exit status 3")
    assert results[3] == Ended("crashed", "the worker process ended: exit status 130")
    assert results[5] == 5


KILLED = """
import os, time
from crossent.run.order import Part
from crossent.run.workers import workers

def share(part):
    print(os.getpid(), flush=True)
    time.sleep(60)

with workers(share, 1, 60.0) as pool:
    pool.submit(Part([0], [0], True), None)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, where a child can end with its parent")
def test_a_worker_ends_with_a_killed_command_in_the_middle_of_a_call():
    command = subprocess.Popen([sys.executable, "-c", KILLED], stderr=subprocess.PIPE, text=True)
    with command:
        worker = int(command.stderr.readline())  # a worker leaves stdout to the report
        command.kill()
    status = Path(f"/proc/{worker}/status")
    until = time.monotonic() + 2
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    assert not status.exists() or "zombie" in status.read_text()
