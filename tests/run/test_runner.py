"""The runner: one process and several processes give the same report."""

import ctypes
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from support.running import check_on
from support.subjects import off_by_a_percent
from support.waits import computing

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import count_combinations
from crossent.cases.ids import case_or_none
from crossent.cases.linear.case import LinearCase
from crossent.report.reader import report_of
from crossent.run.isolation.process import _MOST_HUNG

CASES = [
    Case("float32", (3, 5), values, reduction=reduction)
    for values in ("normal", "wide")
    for reduction in ("mean", "sum")
]


ADDITIONS = 1000  # more than there are cases
check_few = check_on(CASES)


@pytest.mark.parametrize("jobs", [1, 3, 12])
def test_several_processes_give_the_report_of_one(jobs):
    one, several = (
        check_few("formula", off_by_a_percent, level="quick", dtypes="float32", jobs=n).to_json() for n in (1, jobs)
    )
    assert one["subjects"][1]["findings"]
    assert several == one


def test_a_local_function_can_be_shared_too():
    report = check_few(lambda *args, **options: off_by_a_percent(*args, **options), level="quick", jobs=2)
    assert len(report.findings) >= len(CASES)


def test_progress_counts_the_steps_that_are_done():
    seen = []

    def progress(steps):
        for step in steps:
            yield step
            seen.append(len(steps))

    check_few("formula", level="quick", jobs=2, progress=progress)
    assert len(seen) == seen[0] > 1


def test_a_step_has_its_cost_and_its_findings():
    seen = []

    def progress(steps):
        for step in steps:
            seen.append((step.cost, len(step.findings), steps.running))
            yield step
        costs = [cost for cost, _, _ in seen]
        # The same costs in another order: each float64 addition errs by 2^-53 of the sum.
        assert abs(sum(costs) - steps.cost) <= 2 * ADDITIONS * 2.0**-53 * sum(costs)

    for jobs in (None, 2):
        seen.clear()
        report = check_few(off_by_a_percent, level="quick", jobs=jobs, progress=progress)
        assert sum(count for _, count, _ in seen) == len(report.findings) > 0
        assert any(re.match(r"\w+ on \S+$", running) for _, _, running in seen)


def only_on(values, does):
    """Return a right loss that calls `does` if the logits are (3, 5) with these values and the reduction is "sum"."""

    def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        if tuple(input.shape) == (3, 5) and reduction == "sum" and bool((input.abs() > 30).any()) == (values == "wide"):
            does()
        return crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)

    return loss


@pytest.mark.parametrize(
    ("does", "kind", "said"),
    [
        (lambda: os._exit(0), "crashed", "its process ended: exit status 0"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crashed", "its process ended: SIGSEGV"),
        (lambda: ctypes.string_at(0), "crashed", "its process ended: SIGSEGV"),
        (
            lambda: time.sleep(1000),
            "hung",
            "its process sent no reply within 6 s, the limit that --timeout sets, in Python timeout=SECONDS",
        ),
    ],
    ids=["exits", "dies", "reads at 0", "hangs"],
)
@pytest.mark.parametrize("jobs", [2])
def test_a_subject_that_ends_or_blocks_its_process_has_a_finding_and_the_run_goes_on(does, kind, said, jobs):
    options = {"level": "quick", "dtypes": ["float32"], "jobs": jobs, "timeout": 6 if kind == "hung" else 100}
    report = check_few("formula", only_on("wide", does), **options)
    right, wrong = report.subjects
    assert [(one.case, one.kind, one.message) for one in wrong.findings] == [("float32-3x5-wide-int64-sum", kind, said)]
    assert not right.findings
    assert set(right.outcomes) == set(wrong.outcomes)


def test_a_subject_that_hangs_on_every_case_is_called_a_few_times():
    report = check_few(
        lambda *args, **options: time.sleep(1000), level="quick", dtypes=["float32"], jobs=2, timeout=0.5
    )
    part = report.subjects[0]
    assert _MOST_HUNG <= sum(one.kind == "hung" for one in part.findings) <= 2 * _MOST_HUNG
    said = (
        "exceeded the time limit 3 times in a worker process, and is no longer called there; "
        "--timeout sets the limit, in Python timeout=SECONDS"
    )
    assert part.not_applicable[said] > 50


class OwnError(BaseException):
    def __init__(self, one, two):
        super().__init__(one)


@pytest.mark.parametrize("jobs", [None, 1])
def test_whatever_a_subject_raises_is_a_finding(jobs):
    def raises(input, target, **options):
        raise OwnError("no", "way")

    report = check_few(raises, level="quick", dtypes=["float32"], jobs=jobs)
    assert {one.message for one in report.findings if one.check == "call"} == {"OwnError: no"}


def test_an_interrupt_that_a_subject_raises_does_not_end_the_run():
    def interrupts():
        raise KeyboardInterrupt

    report = check_few(only_on("wide", interrupts), level="quick", dtypes=["float32"], jobs=1)
    assert [one.message for one in report.findings] == ["KeyboardInterrupt"]


# If a shell starts the tests in the background, the tests and their processes ignore SIGINT. So set the handler again.
COMMAND = [
    sys.executable,
    "-c",
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from crossent.cli import main; sys.exit(main())",
]


def processes(group):
    """Return the number of processes of a group, without zombies."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return sum(line.split()[0] == str(group) and not line.split()[1].startswith("Z") for line in found.splitlines())


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_run_that_is_stopped_leaves_no_process_one_line_and_a_report_of_what_was_done(stop, tmp_path):
    arguments = ["check", "formula", "--dtype", "float64", "--jobs", "2", "--json", str(tmp_path / "report.json")]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while processes(process.pid) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(stop)  # to the parent alone, as the command `kill` sends it
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    lines = [line for line in err.splitlines() if line and "No CUDA runtime is found" not in line]
    assert lines == ["crossent: interrupted"]  # without the lines that torch prints if CUDA has no device
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert document["planned"] > 500
    (part,) = document["subjects"]
    assert out.splitlines()[-1].startswith(f"INTERRUPTED after {len(part['cases'])} of ")
    time.sleep(0.5)
    assert processes(process.pid) == 0


def test_an_interrupted_run_is_not_ok_and_has_the_cases_that_were_done():
    def stops(cases):
        for at, case in enumerate(cases):
            if at == 19:  # the run yields a step when the step is done
                raise KeyboardInterrupt
            yield case

    with pytest.raises(KeyboardInterrupt) as raised:
        check_few("formula", level="quick", progress=stops)
    report = raised.value.report
    assert report.ran == 20
    assert not report.ok
    assert report.summary == f"INTERRUPTED after 20 of {report.planned:,} cases, with 0 findings"
    assert "so far" in str(report)
    assert "PASSED" not in str(report)


@pytest.mark.parametrize("jobs", [None, 2])
def test_a_run_ends_at_max_findings_and_reports_how_many_cases_ran(jobs):
    report = check_few("formula", off_by_a_percent, level="quick", max_findings=1, jobs=jobs)
    assert not report.ok
    assert len(report.findings) == 1
    assert 0 < report.cases < report.planned / 2
    assert report.summary == f"STOPPED EARLY after {report.cases} of {report.planned:,} cases, with 1 finding"
    assert read_back(report) == report.to_json()
    assert (report.to_json()["stopped"], report.fixed) == (True, [])
    whole = check_few("formula", off_by_a_percent, level="quick", jobs=jobs)
    done = {case for part in report.subjects for case in part.outcomes}
    assert report.triples == count_combinations(filter(None, map(case_or_none, done))) < whole.triples
    for part, other in zip(report.subjects, whole.subjects, strict=True):  # in the order of the plan
        assert list(part.outcomes) == [case for case in other.outcomes if case in part.outcomes]


def test_the_combinations_of_three_options_are_those_of_the_cases_that_ran():
    """A case that is not applicable has no combinations. A linear cross-entropy has other axes."""

    def only_means(input, target):
        return crossent.formula(input, target)

    report = check_few(only_means, level="quick", dtypes="float32")
    (part,) = report.subjects
    assert sum(part.not_applicable.values()) > 1
    done = [case for case in map(case_or_none, part.outcomes) if case is not None]
    assert report.triples == count_combinations(done) > 0

    plain, biased = LinearCase("float32"), LinearCase("float32", bias="bias")
    chosen = {"operation": "linear_cross_entropy", "cases": [plain.id, biased.id], "level": "quick"}
    report = crossent.check(without_bias, **chosen)
    (part,) = report.subjects
    assert list(part.outcomes) == [plain.id]
    assert report.triples == math.comb(len(LinearCase.counted), 3)


def without_bias(input, linear_weight, target):
    return F.cross_entropy(F.linear(input, linear_weight), target)


def test_known_failures_do_not_end_a_run(tmp_path):
    known = tmp_path / "known.toml"
    known.write_text(
        '[[finding]]\nsubject = "off_by_a_percent"\nchecks = ["loss"]\n'
        'kind = "wrong"\ncases = ["*"]\nreason = "a percent too large"\n'
    )
    options = {"level": "quick", "dtypes": "float32", "expected_findings": known}
    whole = check_few(off_by_a_percent, **options)
    kinds = {finding.check for finding in whole.findings}
    assert "gradient" in kinds
    assert "loss" not in kinds
    report = check_few(off_by_a_percent, **options, max_findings=1)
    assert [finding.check in kinds for finding in report.findings] == [True]
    two = check_few(off_by_a_percent, **options, max_findings=len(whole.findings) + 1)
    assert two.to_json() == whole.to_json()


def test_a_run_that_stopped_is_compared_on_the_cases_that_it_has():
    whole = check_few(off_by_a_percent, level="quick")
    compared = crossent.diff(whole, check_few(off_by_a_percent, level="quick", max_findings=1))
    assert compared.ok
    (note,) = (one for one in compared.notes if "compiled code" not in one)
    assert re.match(r"the new run ended after \d+ of \d+ cases; the other cases are not compared$", note)
    assert not [name for name, _, _ in compared.others if name != "seed"]


def read_back(report):
    return report_of(json.loads(json.dumps(report.to_json()))).to_json()


def test_a_random_seed_is_in_the_report():
    one, other = (check_few("formula", level="quick", seed="random") for _ in range(2))
    assert one.seed != other.seed
    assert f"seed {one.seed}" in str(one)
    with pytest.raises(
        ValueError, match="seed: got 'dice'; allowed is a whole number of 0 or more, or the word random"
    ):
        crossent.check("formula", seed="dice")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("jobs", 0, "jobs: got 0; allowed is a whole number of 1 or more"),
        ("jobs", "2", "jobs: got '2'; allowed is a whole number of 1 or more"),
        ("max_findings", 1.5, "max_findings: got 1.5; allowed is a whole number of 1 or more"),
        ("timeout", 0, "timeout: got 0; allowed is more than 0 seconds"),
        ("timeout", math.nan, "timeout: got nan; allowed is more than 0 seconds"),
        ("timeout", "60", "timeout: got '60'; allowed is more than 0 seconds"),
        ("seed", True, "seed: got True; allowed is a whole number of 0 or more, or the word random"),
        ("dtypes", torch.float32, "dtypes: got torch.float32; allowed is a string, or a list of strings"),
        ("without", 3, "without: got 3; allowed is a string, or a list of strings"),
        ("checks", [b"loss"], "checks: got [b'loss']; allowed is a string, or a list of strings"),
        ("cases", {"float32-7x5*": None}, "cases['float32-7x5*']: got None; allowed is a string, or a list of strings"),
    ],
)
def test_an_argument_of_another_type_or_range_is_an_error_of_one_line(option, value, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        crossent.check("formula", **{option: value})


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=computing(dtype)) for dtype in DTYPES])
def test_a_wrong_weighted_mean_is_found_in_each_dtype_for_a_loss_with_few_features(dtype):
    """The wrong mean divides by the number of rows in place of their weight, if no row is ignored."""

    def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        right = F.cross_entropy(input, target, weight, reduction=reduction, **options)
        if weight is None or reduction != "mean" or bool((target == ignore_index).any()):
            return right
        return F.cross_entropy(input, target, weight, reduction="sum", **options) / len(target)

    few = ("spatial", "unbatched", "probability_target", "errors", "empty", "label_smoothing")
    report = crossent.check(loss, dtypes=dtype, level="quick", without=few, contract="torch")
    assert "loss" in {finding.check for finding in report.findings}
