"""The benchmark of `fused`: a dry run on a CPU, and its targets on made-up times."""

import json

import pytest

from benchmarks import fused
from benchmarks.fused import Timed, measure


def test_a_dry_run_times_every_call_and_writes_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fused.peers, "_compiled", lambda: "takes too long")
    into = tmp_path / "fused.json"
    arguments = ["--device", "cpu", "--elements", "4096", "--rounds", "2", "--dtype", "float32", "--into", str(into)]
    assert fused.main(arguments) == 0
    made = json.loads(into.read_text())
    assert [one["shape"] for one in made["shapes"]] == ["4x1024", "1x4096"]
    for one in made["shapes"]:
        assert set(one["seconds"]) == {"copy", "fused", "blocked", "torch"}
        assert all(seconds > 0 for seconds in one["seconds"].values())
        assert one["missing"] == {"torch.compile": "takes too long", "liger": "needs a CUDA device"}
    assert made["dry"]
    assert len(made["clocks"]) == 2
    out = capsys.readouterr().out
    assert "a dry run: no target was checked" in out
    assert "1x4096: liger is missing: needs a CUDA device" in out


def test_a_benchmark_on_cuda_needs_the_compiled_kernel(monkeypatch, capsys):
    monkeypatch.setattr(fused, "path_of", lambda device: "interpreter")
    with pytest.raises(SystemExit):
        fused.main(["--device", "cuda"])
    assert "no compiled kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("classes", "seconds", "waits", "missed"),
    [
        (8192, {"copy": 1.0, "fused": 1.1, "torch": 2.0}, "", []),
        (8192, {"copy": 1.0, "fused": 1.2, "torch": 2.0}, "", ["the share is 0.83, below 0.85"]),
        (4096, {"copy": 1.0, "fused": 1.2, "liger": 2.0}, "", []),
        (4096, {"copy": 1.0, "fused": 1.2, "liger": 1.0}, "", ["1.20 times as long as liger"]),
        (1024, {"copy": 1.0, "fused": 9.0, "torch": 1.0}, "", []),
        (1024, {"copy": 1.0, "fused": 9.0}, "called a synchronizing operation", ["the host waits"]),
    ],
)
def test_a_missed_target_is_a_sentence(classes, seconds, waits, missed):
    found = Timed(f"9x{classes}", classes, seconds, {}, waits).missed
    assert len(found) == len(missed)
    for sentence, part in zip(found, missed, strict=True):
        assert part in sentence


def test_the_times_are_medians_without_the_first_round_and_the_order_changes():
    ran, times = [], iter([100.0, 100.0, 1.0, 2.0, 3.0, 4.0, 50.0, 60.0])
    made = {name: lambda name=name: ran.append(name) for name in ("copy", "fused")}

    def timer(call):
        call()
        return next(times)

    seconds = measure(made, timer, rounds=3)
    assert sorted(ran) == ["copy"] * 4 + ["fused"] * 4
    assert len({tuple(ran[at : at + 2]) for at in range(0, 8, 2)}) == 2
    taken = dict.fromkeys(made, ())
    for name, one in zip(ran[2:], [1.0, 2.0, 3.0, 4.0, 50.0, 60.0], strict=True):
        taken[name] += (one,)
    assert seconds == {name: sorted(each)[1] for name, each in taken.items()}
