"""Shards of a run on several ranks: the merged report equals the report of one run, also with an executor."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import faulty_ranks
from support.error_lines import error_line

import crossent
from crossent.checks import RANK_CHECKS
from crossent.cli import WRONG_USE, main
from crossent.subjects.ranks.protocol import can_start_ranks

pytestmark = pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
WRONG = """

def wrong(local_logits, target, shape, axis, options):
    return right(local_logits, target, shape, axis, options) * (1.01 if options["reduction"] == "mean" else 1.0)
"""
CHOSEN = {"dtypes": "float32", "level": "quick", "seed": 1, "ranks": 2, "cases": "float32-7x5-*int64-*"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Change to a folder with a loss on ranks that is wrong if the reduction is mean."""
    monkeypatch.chdir(tmp_path)
    source = Path(faulty_ranks.__file__).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(source + WRONG, encoding="utf-8")
    return tmp_path


def test_the_merged_report_and_that_of_an_executor_are_those_of_one_run(folder, capsys):
    one = crossent.check("mine.py:wrong", **CHOSEN)
    assert {finding.repeat.split(" --check ")[0] for finding in one.findings} == {
        "crossent check mine.py:wrong --ranks 2"
    }
    document = one.to_json()
    names = {name for case in document["subjects"][0]["cases"].values() for name in case}
    assert names & RANK_CHECKS.keys()  # a shard has the checks of ranks too
    for number in (1, 2):
        shard = crossent.check("mine.py:wrong", **CHOSEN, shard=(number, 2))
        shard.write_json(folder / f"{number}.json")
    assert crossent.merge("2.json", "1.json").to_json() == document
    with ThreadPoolExecutor(1) as executor:
        assert crossent.over(executor, "mine.py:wrong", shards=2, **CHOSEN).to_json() == document
    other = crossent.check("mine.py:wrong", **{**CHOSEN, "ranks": 3}, shard=(2, 2))
    other.write_json(folder / "3.json")
    assert "3.json: got a shard of another run; ranks: '3' here, '2' in 1.json" in refused(capsys, "1.json", "3.json")
    for wrong in ("0", "65", "two", "9" * 5000):
        for number in (1, 2):
            shard = json.loads((folder / f"{number}.json").read_text())
            shard["environment"]["ranks"] = wrong
            (folder / f"damaged{number}.json").write_text(json.dumps(shard))
        assert "ranks: got" in refused(capsys, "damaged1.json", "damaged2.json")


def refused(capsys, *names):
    status = main(["merge", *names])
    assert status == WRONG_USE
    return error_line(capsys.readouterr().err)
