"""The benchmarks: ratios, peak memory, missing peers, and forms that are slower than in another commit."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import compare, growth, hot_path, linear, memory, paired, peers, tables, verifier
from benchmarks.readme import README, RESULTS, part
from benchmarks.turns import Hot, Side
from crossent.forms import LINEAR_FORMS

CALLS = [Hot("torch", "float32", 1, (2, 2)), Hot("formula", "float32", 1, (2, 2))]


@pytest.fixture
def clock(monkeypatch):
    """Return a fake clock, which only the calls of a test advance. Its `switches` counts context switches."""

    class Clock:
        now = 0.0
        switches = 0

        def takes(self, seconds, slower=0.0, switches=lambda: 0):
            """Return a call that takes `seconds`; each second of the clock adds the share `slower` to this time."""

            def call():
                self.now += seconds * (1 + slower * self.now)
                self.switches += switches()

            return call

    made = Clock()
    monkeypatch.setattr(paired.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(paired, "_switches", lambda: made.switches)
    monkeypatch.setattr(paired, "_waited", lambda: None)
    return made


def test_a_turn_lasts_as_long_as_its_calls():
    """The intervals are nested and have one clock, so the result does not depend on other work of the machine."""
    spun = []

    def spin(seconds=0.001):
        start = paired.time.perf_counter()
        while (took := paired.time.perf_counter() - start) < seconds:
            pass
        spun.append(took)

    start = paired.time.perf_counter()
    turn = paired.turn(spin, 5)
    outside = paired.time.perf_counter() - start
    assert len(spun) == 5
    assert sum(spun) * (1 - 2**-50) <= 5 * turn.seconds <= outside * (1 + 2**-50), "six roundings at most in float64"


def test_a_call_that_takes_twice_as_long_has_a_ratio_of_two(clock):
    calls = {"once": clock.takes(2**-10), "twice": clock.takes(2**-9)}
    rounds = paired.measure(lambda: calls, seconds=1, least=9, most=31)
    assert rounds.ratio("twice", "once") == paired.Spread(2, 2, 2, rounds=31)
    assert rounds.ratio("once", "twice").median == 0.5


def test_a_steady_drift_does_not_change_the_ratio(clock):
    calls = {"once": clock.takes(1, slower=1e-3), "twice": clock.takes(2, slower=1e-3)}
    ratio = paired.measure(lambda: calls, seconds=1000, least=20, most=20).ratio("twice", "once")
    assert ratio.rounds == 20
    assert ratio.lower < 2 < ratio.upper


def test_the_order_of_a_round_is_reversed_in_the_next(clock):
    seen = []

    def fresh():
        seen.append([])
        return {name: lambda name=name: (seen[-1].append(name), clock.takes(1)())[1] for name in "abcd"}

    paired.measure(fresh, seconds=0, least=6, most=6)
    rounds = seen[1:]  # the first calls are the warm-up
    assert all(sorted(of) == list("abcd") for of in rounds)
    assert rounds[1] == rounds[0][::-1]
    assert rounds[3] == rounds[2][::-1]
    assert len({tuple(of) for of in rounds[::2]}) > 1


def test_every_round_has_inputs_of_its_own(clock):
    made = []

    def fresh():
        made.append(object())
        return {"one": clock.takes(1)}

    paired.measure(fresh, seconds=0, least=5, most=5)
    assert len(set(made)) == 6  # five rounds and the warm-up


def test_a_round_is_thrown_out_and_counted_when_another_process_was_running(clock):
    taken = itertools.count(-3)  # three calls of the warm-up and the first turn
    calls = {"one": clock.takes(1), "other": clock.takes(1, switches=lambda: next(taken) in (0, 4))}
    rounds = paired.measure(lambda: calls, seconds=0, least=9, most=9)
    ratio = rounds.ratio("other", "one")
    assert (ratio.rounds, ratio.thrown_out, ratio.disturbed) == (7, 2, False)
    assert rounds.seconds("one").rounds == 9


def test_all_rounds_are_used_and_marked_when_too_few_are_left(clock):
    calls = {"one": clock.takes(1), "other": clock.takes(1, switches=lambda: 1)}
    ratio = paired.measure(lambda: calls, seconds=0, least=9, most=9).ratio("other", "one")
    assert (ratio.rounds, ratio.thrown_out, ratio.disturbed) == (9, 0, True)
    assert str(ratio).endswith("disturbed")


def test_a_context_switch_that_cost_no_time_removes_no_round(clock, monkeypatch):
    waited = itertools.count(0.0, paired.WAITED / 2)
    monkeypatch.setattr(paired, "_waited", lambda: next(waited))
    calls = {"one": clock.takes(1, switches=lambda: 1)}
    assert paired.measure(lambda: calls, seconds=0, least=9, most=9).seconds("one").rounds == 9


def test_a_turn_repeats_a_short_call_until_the_clock_can_measure_it(clock):
    counted = []
    calls = {"short": lambda: (counted.append(1), clock.takes(paired.TURN / 10)())}
    paired.measure(lambda: calls, seconds=0, least=1, most=1)
    assert len(counted) in (2 + 10, 2 + 11)  # and two of the warm-up


def test_a_known_allocation_is_measured():
    assert memory.traced(lambda: torch.empty(1_000_000)) == 4_000_000

    def one_after_the_other():
        for _ in range(3):
            torch.empty(1_000_000)

    assert memory.traced(one_after_the_other) == 4_000_000

    def together():
        return [torch.empty(1_000_000) for _ in range(3)]

    assert memory.traced(together) == 12_000_000


def test_both_ways_of_measuring_memory_see_as_many_buffers_of_the_largest_logits():
    shape = (512, 128256)
    logits, target = torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
    call = peers.forms()["torch"](logits, target, True)
    call()
    if (resident := memory.resident(call)) is None:
        pytest.skip("needs a kernel that reports the peak memory, as Linux does")
    size = logits.numel() * logits.element_size()
    assert round(memory.traced(call) / size, 1) == round(resident / size, 1) == 3.0


def test_the_numbers_of_a_call_are_new_each_time_and_stay_in_pairs():
    fresh = hot_path.Numbers((50, 7), "float32").drawn()
    (first, of_first), (second, of_second) = fresh(), fresh()
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)

    def rows(logits, target):
        return {(*row, label) for row, label in zip(logits.tolist(), target.tolist(), strict=True)}

    assert rows(first, of_first) == rows(second, of_second)


def test_a_missing_peer_is_named_with_its_reason(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    found = peers.peers((4, 3), "cpu")
    assert found["optax"] == "needs pip install jax optax"
    assert found["liger"] == found["quack"] == "needs a CUDA device"
    assert found["linear_cross_entropy"].startswith("needs torch")
    assert peers.peers((4, 3), "cuda")["liger"] == "needs pip install liger-kernel"
    assert peers.peers((4, 3), "cuda")["quack"] == "needs pip install quack-kernels"
    assert peers.peers((4, 3), "cuda")["quack"] == "needs pip install quack-kernels"


def test_a_torch_that_cannot_compile_is_missing_with_its_reason(monkeypatch):
    def old(*arguments, **options):
        raise RuntimeError("Python 3.11+ not yet supported for torch.compile")

    monkeypatch.setattr(torch, "compile", old)
    reason = "needs a torch.compile that works: Python 3.11+ not yet supported for torch.compile"
    assert peers.peers((4, 3), "cpu")["torch.compile"] == reason


def test_a_projection_by_an_identity_that_needs_too_much_memory_is_not_made():
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        reason = peers.peers((512, 128256), "cpu")["linear_cross_entropy"]
        assert reason == "would need an identity matrix of 65.8 GB"


def test_a_peer_that_raises_is_missing_with_its_error_as_the_reason():
    def raises(logits, target):
        raise RuntimeError("no kernel here\nand a long story")

    logits, target = torch.zeros(2, 3), torch.tensor([0, 1])
    assert peers.tried(peers.of_torch(raises), logits, target, True) == "raises RuntimeError: no kernel here"
    assert peers.tried(peers.forms()["formula"], logits, target, True) == ""


@pytest.fixture
def cells(monkeypatch):
    """Return cells of the hot path, as in the files of results, measured on small logits."""
    monkeypatch.setattr(hot_path, "peers", lambda shape, device: {"liger": "needs a CUDA device"})
    measured = hot_path.measure(((32, 10),), ("float32",), seconds=0)
    return json.loads(json.dumps(list(measured)))


def test_a_cell_has_every_form_its_memory_and_the_missing_peers(cells):
    for cell in cells:
        assert {*peers.LOSSES, "sum"} <= set(cell["found"])
        assert cell["found"]["torch"]["ratio_to_torch"]["median"] == 1
        assert all("torch" in cell["found"][name]["extra_memory"] for name in peers.LOSSES)
    forward, both = cells
    assert (forward["missing"], both["missing"]) == ({}, {"liger": "needs a CUDA device"})


def test_a_verdict_has_the_measured_ratio_and_its_target(cells):
    both = cells[1]
    both["found"]["blocked"]["ratio_to_torch"]["median"] = 2.5
    targets = {about.rpartition(": ")[2]: (got, allowed) for about, got, allowed in hot_path.verdicts([both])}
    assert targets == {"time": (2.5, 2.0)}


def test_the_table_has_a_row_for_each_cell(cells):
    machine = {
        "device": "cpu",
        "processor": "a processor",
        "cores": 2,
        "caches": {"L2": "1024K"},
        "torch": "2.13.0",
        "python": "3.11",
        "allocator": "glibc",
        "gigabytes_per_second": {"sum": 1.0, "copy": 1.0, "clone": 1.0},
    }
    fewer = [{**cell, "threads": 0} for cell in cells]
    text = tables.hot_path({"machine": machine, "cells": [*fewer, *cells]})
    parts = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("\n\n")]
    of_lines = [part for part in parts if part]
    assert [len(part) for part in of_lines] == [3, 3, 3]
    assert all(len({line.count("|") for line in part}) == 1 for part in of_lines)
    assert "liger needs a CUDA device" in text


@pytest.mark.parametrize("name", ["hot_path", "linear", "growth", "verifier"])
def test_the_readme_has_the_tables_of_the_results(name):
    path = RESULTS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path.name}, which nox -s benchmarks writes")
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert part(name) == getattr(tables, name)(stored), "nox -s benchmarks writes the table again"
    assert {"processor", "threads", "torch", "python", "allocator"} <= set(stored["machine"])


def test_a_linear_cross_entropy_is_measured_beside_torch_and_the_limits():
    (cell,) = linear.measure(((40, 4, 64),), ("bfloat16",), seconds=0.01)
    names = {*LINEAR_FORMS, "composition", *linear.LIMITS}
    assert names <= set(cell["found"]) <= {*names, "torch", "torch, chunked"}
    assert (cell["gradients"], cell["block"], cell["logits"]) == (4 * 104 * 4, 4 * 40 * 64, 2 * 40 * 64)
    assert cell["found"][linear.FORM]["blocked_over_this"]["median"] == 1
    assert cell["found"]["composition"]["extra_memory"] > 2 * cell["logits"]
    assert linear.share_of_memory(cell) * (cell["gradients"] + cell["block"]) > cell["block"]
    found = list(linear.verdicts([cell]))
    assert [target for *_, target in found] == [linear.TIME] * (len(cell["found"]) - 3) + [linear.MEMORY]
    text = tables.linear({"title": "a processor", "cells": [cell]})
    assert [line.count("| 40×4×64 | bfloat16 |") for line in text.splitlines()].count(1) == 2


def test_linear_blocked_needs_little_more_memory_than_its_gradients_and_a_block():
    """The blocks have the default size, of four million logits."""
    call = linear.makers()[linear.FORM](*linear.drawn((1024, 64, 8192), "bfloat16")())
    call()
    gradients, block = 4 * (1024 + 8192) * 64, 4 * linear.rows_of_block(1024, 8192) * 8192
    assert block == 2**24
    assert gradients + block <= memory.peak(call) <= linear.MEMORY * (gradients + block)


def test_every_part_of_the_verifier_is_timed():
    (of_oracle,) = verifier.oracle((verifier.Workload(5, 3, "float32"),), rounds=1)
    assert of_oracle["seconds_per_million_logits"] > 0
    case = verifier.Case("float32", (5, 3), reduction="mean", weight="weighted")
    parts = {part["part"] for part in verifier.parts((case,), rounds=1)}
    assert parts == {"inputs", "exact value", "call", "bounds", "checks"}


def test_a_command_is_timed_with_its_own_processes():
    (of_help,) = verifier.commands((("--help", 0.15, None),))
    assert (of_help["status"], of_help["cpu_limit"], of_help["limit"]) == (0, 0.15, None)
    assert 0 < of_help["cpu"] < of_help["seconds"] * 2
    (stopped,) = verifier.commands(
        (("check wrong.py:loss --contract torch --level quick --dtype float32 -x", None, 5.0),)
    )
    assert stopped["status"] == 1
    words = next(words for words, *_ in verifier.COMMANDS if words.startswith("check linear.py:loss"))
    (right,) = verifier.commands(((f"{words} --dtype float16 --case linear-*7x5-*", None, None),))
    assert right["status"] == 0


def test_a_run_is_compared_with_its_own_calls_in_a_bare_loop():
    found = verifier.bare(every=400)
    assert found["calls"] > 4 * found["cases"] > 0
    assert found["ratio"] == found["run"] / found["loop"] > 1


def test_the_readme_says_how_long_a_run_takes():
    stored = json.loads((RESULTS / "verifier.json").read_text(encoding="utf-8"))
    assert tables.times(stored) in " ".join(README.read_text(encoding="utf-8").split())


def test_an_exponent_is_the_slope_of_the_logarithms():
    sizes = [10, 100, 1000]
    assert growth.exponent(sizes, [2.0 * n for n in sizes]) == (1.0, 0.0)
    assert growth.exponent(sizes, [3.0 * n**2 for n in sizes]) == (2.0, 0.0)
    assert growth.exponent(sizes, [5.0 for _ in sizes]) == (0.0, 0.0)


def side(name, **seconds):
    """Return a simulated version of crossent, which has only these calls, and reports these seconds for each call."""
    waits = f"""
import sys
seconds = {seconds}
for line in sys.stdin:
    name = line.split()[0]
    print(*[seconds[name], 0] if name in seconds else ["none"], flush=True)
"""
    return Side(name, sys.executable, "", waits)


def quiet(line):
    pass


def test_a_planted_slowdown_is_worse():
    (worse,) = compare.compare(
        side("old", torch=1.0, formula=1.0), side("new", torch=1.01, formula=1.1), calls=CALLS, say=quiet
    )
    assert worse.startswith("formula 2x2 float32: new / old 1.100, where noise alone reaches 1.010")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"torch": 1.0, "formula": 1.0}, {"torch": 1.0, "formula": 1.0}),  # the same code
        ({"torch": 1.0, "formula": 1.0}, {"torch": 1.0, "formula": 0.5}),  # faster
        ({"torch": 1.0, "formula": 1.0}, {"torch": 1.2, "formula": 1.1}),  # torch itself is off by more
        ({"torch": 1.0}, {"torch": 1.0, "formula": 1.0}),  # a form that is new
    ],
)
def test_equal_faster_and_new_forms_are_not_worse(old, new):
    assert compare.compare(side("old", **old), side("new", **new), calls=CALLS, say=quiet) == []


def test_a_form_that_is_slow_in_one_pair_of_processes_only_is_not_worse(tmp_path):
    once = f"""
import pathlib, sys
first = not (kept := pathlib.Path({str(tmp_path / "stored")!r})).exists()
kept.touch()
for line in sys.stdin:
    print(2.0 if first and line.startswith("formula") else 1.0, 0, flush=True)
"""
    new = Side("new", sys.executable, "", once)
    assert compare.compare(side("old", torch=1.0, formula=1.0), new, calls=CALLS, say=quiet) == []


def test_the_exit_status_is_1_when_a_form_is_worse_than_in_a_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "crossent").mkdir()
    (tmp_path / "crossent" / "__init__.py").touch()
    folders = []

    def found(old, new, **how):
        folders.append((old.folder, new.folder))
        return ["formula: slower"]

    monkeypatch.setattr(compare, "compare", found)
    assert compare.run(str(tmp_path)) == 1
    assert folders == [(str(tmp_path), str(compare.ROOT))]
    assert "slower: formula: slower" in capsys.readouterr().out


def test_a_commit_is_checked_out_without_a_change_of_the_working_tree(tmp_path):
    def git(*words):
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    try:
        git("init")
    except OSError:
        pytest.skip("needs git")
    (tmp_path / "crossent").mkdir()
    module = tmp_path / "crossent" / "__init__.py"
    for text in ("old", "new"):
        module.write_text(text, encoding="utf-8")
        git("add", "-A")
        git("commit", "-m", text)
    with compare.checkout("HEAD~1", tmp_path) as folder, open(f"{folder}/crossent/__init__.py") as file:
        assert file.read() == "old"
    assert module.read_text(encoding="utf-8") == "new"
    with pytest.raises(ValueError, match="nonesuch"), compare.checkout("nonesuch", tmp_path):
        raise AssertionError("there is no such commit")
