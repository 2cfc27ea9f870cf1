"""The check of the memory of a linear cross-entropy: a function that stores all logits is found."""

import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.linear_subjects import blocked, composed, subject_of
from support.running import run, run_isolated

from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.checks import large, single
from crossent.forms.linear import linear_blocked
from crossent.machine import memory_growth
from crossent.subjects.callables import as_subject

FIRST = (single.call, single.result)
CASE = LinearCase("float32")


def in_blocks(input, target, *, linear_weight, **options):
    """Call the form with blocks of the size that it chooses."""
    return linear_blocked(input, linear_weight, target, **options)


def skip_unless_measured():
    if memory_growth(lambda: None, "cpu") is None:
        pytest.skip("needs Linux, which resets and measures the peak of resident memory")


def test_the_memory_of_a_tensor_is_measured():
    skip_unless_measured()
    grown = memory_growth(lambda: torch.ones(2**24), "cpu")  # 64 MiB
    assert 60 * 2**20 < grown < 96 * 2**20


def test_memory_that_the_process_has_freed_and_kept_hides_nothing():
    """The growth includes memory that a call takes from freed memory of the process.

    The code runs in a new process, since `mallopt` changes the whole process.
    """
    skip_unless_measured()
    code = """
import ctypes, torch
from crossent.machine import memory_growth
libc = ctypes.CDLL(None)
if not hasattr(libc, "mallopt"):
    print(2**26)
else:
    libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
    del (large := [torch.ones(2**25)])[:]  # 128 MiB, which the process keeps
    print(memory_growth(lambda: torch.ones(2**24), "cpu"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 60 * 2**20 < int(done.stdout) < 96 * 2**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_function_that_stores_all_logits_is_found(dtype):
    skip_unless_measured()
    case = LinearCase(dtype)
    for loss, found in ((composed, True), (in_blocks, False)):
        part = run(subject_of(loss), case, (*FIRST, large.memory)).subjects[0]
        assert "memory" in part.outcomes[case.id].checks
        messages = [finding.message for finding in part.findings]
        assert bool(messages) == found, messages
    (message,) = (one.message for one in run(subject_of(composed), case, (*FIRST, large.memory)).findings)
    assert message.startswith("memory: got ")
    mib = 128 if dtype == "float32" else 64
    assert f"8192 rows and 4096 classes; expected less than the {mib} MiB of all its logits in {dtype}" in message
    assert "If this is intended, declare it: --without memory" in message


def test_a_function_that_stores_the_logits_of_the_forward_pass_alone_is_found():
    skip_unless_measured()

    def keeps(input, target, *, linear_weight, **options):
        keeps.logits = F.linear(input, linear_weight).detach()
        return in_blocks(input, target, linear_weight=linear_weight, **options)

    (finding,) = run(subject_of(keeps), CASE, (*FIRST, large.memory)).findings
    assert finding.check == "memory"


def test_a_subject_that_declares_it_is_not_measured():
    part = run(subject_of(composed).lacking({"memory": "stores all logits"}), CASE, (*FIRST, large.memory)).subjects[0]
    assert part.findings == []
    assert part.outcomes[CASE.id].not_run == {"memory": "stores all logits"}


def stores_all(hidden, weight, target, **options):
    return F.cross_entropy(F.linear(hidden, weight), target, **options)


def stores_all_although_it_has_chunks(hidden, weight, target, chunk_size=64, **options):
    return stores_all(hidden, weight, target, **options)


def stores_all_although_it_says_chunks(hidden, weight, target, **options):
    return stores_all(hidden, weight, target, **options)


stores_all_although_it_says_chunks.chunks = ()


def test_only_a_function_that_says_that_it_works_in_chunks_is_measured():
    skip_unless_measured()
    given = {
        stores_all: [],
        stores_all_although_it_has_chunks: ["memory"],
        stores_all_although_it_says_chunks: ["memory"],
    }
    for loss, failed in given.items():
        part = run(as_subject(loss, operation=LINEAR_CROSS_ENTROPY), CASE, (*FIRST, large.memory)).subjects[0]
        assert [finding.check for finding in part.findings] == failed
        reason = {} if failed else {"memory": "does not say that it works in chunks"}
        assert part.outcomes[CASE.id].not_run == reason


def test_the_check_runs_on_the_plain_case_alone():
    assert [large.memory.applies(case) for case in (CASE, CASE.seeded(5), LinearCase("float32", bias="bias"))] == [
        True,
        True,
        False,
    ]


def test_an_isolated_process_measures_its_own_memory():
    skip_unless_measured()
    for loss, found in ((composed, ["memory"]), (blocked, [])):
        part = run_isolated(subject_of(loss), cases=[CASE], checks=(*FIRST, large.memory)).subjects[0]
        if "memory" in part.outcomes[CASE.id].not_run:
            pytest.skip(part.outcomes[CASE.id].not_run["memory"])
        assert [finding.check for finding in part.findings] == found


def test_an_isolated_process_is_believed_although_the_free_memory_varies(monkeypatch):
    """The judge measures the free memory. Two processes would measure different amounts, and one would seem to lie."""
    monkeypatch.setattr(large, "available", lambda device: random.SystemRandom().randrange(2**29))
    part = run_isolated(subject_of(blocked), cases=[CASE], checks=(*FIRST, large.memory)).subjects[0]
    assert [str(finding) for finding in part.findings] == []
    not_run = part.outcomes[CASE.id].not_run
    assert list(not_run) == ["memory"]
    assert not_run["memory"].startswith("needs 1.0 GiB of free memory on cpu")


def test_a_process_that_may_use_too_little_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr(large, "process_limit", lambda: 2**29)
    part = run(subject_of(blocked), CASE, (*FIRST, large.memory)).subjects[0]
    assert part.findings == []
    said = "needs 1.0 GiB of memory, and a process of this run may use 0.5 GiB"
    assert part.outcomes[CASE.id].not_run == {"memory": said}
