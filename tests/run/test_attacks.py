"""Attacks on the command: a wrong function that attacks the run has a finding, in time, and leaves no process or file.

`nox -s hostile` runs all attacks, and the generated replies of `tests/run/test_wire.py`. The tests here run one attack
for each root cause.
"""

import json
import os
import subprocess
import sys

import pytest
from support.attacks import ATTACKS
from support.attacks.running import run

from benchmarks.readme import RESULTS, part

RECORDED = RESULTS / "attacks.json"
SLICE = [
    "replaces_perform",
    "answers_from_the_frames",
    "no_gradient",
    "claims_a_wider_dtype",
    "leaves_out_gradients_of_samples",
    "lacks_everything",
    "writes_the_judge",
    "announces_2_gb",
    "reads_no_request",
    "gradient_beyond_its_memory",
    "daemon",
]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("name", SLICE)
def test_an_attack_ends_with_a_finding_in_time_and_leaves_nothing(name):
    ran = run(ATTACKS[name])
    assert ran.problems == [], ran


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_process_that_ran_before_an_attack_is_neither_counted_nor_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        ran = run(ATTACKS["replaces_perform"])
        assert ran.processes == []
        assert other.poll() is None
        other.kill()


def table():
    """Return a Markdown table: how many attacks of each kind failed, as they should, by the user of the command."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    kinds = list(dict.fromkeys(attack.kind for attack in ATTACKS.values()))
    lines = ["| | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for situation, results in recorded.items():
        counts = [results.get(kind, {}) for kind in kinds]
        cells = [f"{sum(one == 'passed' for one in of.values())} of {len(of)}" for of in counts]
        lines.append(f"| {situation} | {' | '.join(cells)} |")
    bad = {
        f"{name} ({situation}: {problem})"
        for situation, results in recorded.items()
        for of in results.values()
        for name, problem in of.items()
        if problem != "passed"
    }
    lines += ["", f"Not passed: {'; '.join(sorted(bad))}." if bad else "Every attack that ran passed."]
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table_of_the_attacks(request):
    if request.config.getoption("--crossent-write-figures"):
        part("attacks", table())
    assert part("attacks") == table(), "`nox -s figures` writes the table again"


def test_the_recorded_results_are_of_these_attacks():
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    of = {name for results in recorded.values() for one in results.values() for name in one}
    assert of <= ATTACKS.keys(), "`nox -s hostile` writes the results again"
    assert {name for one in recorded["root"].values() for name in one} == ATTACKS.keys()
    assert os.path.getsize(RECORDED) < 10**5
