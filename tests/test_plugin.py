"""Test the plugin in a folder outside this repository: options, ids, summary and exit status."""

import json
import re
from contextlib import suppress
from types import SimpleNamespace

import pytest

import crossent
from crossent import plugin
from crossent.run import pytest_checks
from crossent.run.settings import Settings


def doubled(input, target, weight=None, ignore_index=-100, reduction="mean"):
    return crossent.formula(input, target, weight, ignore_index, reduction) * 2


TESTS = """
import crossent

def doubled(input, target, weight=None, ignore_index=-100, reduction="mean"):
    return crossent.formula(input, target, weight, ignore_index, reduction) * 2

@crossent.parametrize(crossent.formula, dtypes=["float64"], without={"double_backward", "error_classes"})
def test_right(check):
    check()

@crossent.parametrize(doubled, dtypes=["float64"])
def test_wrong(check):
    check()
"""
LINEAR = """
import torch.nn.functional as F

def loss(hidden, weight, target, ignore_index=-100, reduction="mean"):
    return F.cross_entropy(hidden @ weight.T, target, ignore_index=ignore_index, reduction=reduction)
"""
KNOWN = """
[[finding]]
subject = "doubled"
checks = ["loss", "gradient"]
kind = "wrong"
cases = ["*"]
reason = "known to be doubled"
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Return a function that runs pytest in a new process and folder, without this repository's configuration."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(TESTS)

    def run(*arguments, here=False):
        start = pytester.runpytest_inprocess if here else pytester.runpytest_subprocess
        return start("-p", "crossent.plugin", "-p", "no:cacheprovider", *arguments)

    return run


def test_a_test_is_a_check_on_a_case_and_a_finding_is_shown_in_full(run):
    result = run("-k", "wrong and 7x5-normal-int64 and (gradient or loss)", "-rf")
    out = result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^FAILED \S+::test_wrong\[loss\[\S*float64-7x5-normal-int64-\S*\]\]", out, re.M)
    assert "test_right[" not in out
    for said in ("Worst difference", "got  ", "exact  "):
        assert said in out
    assert re.search(r"doubled: loss wrong on \S+, error \d\S* × the error bound$", out, re.M)
    repeated = re.search(r"repeat  pytest '(\S+::test_wrong\[loss\[\S+\]\])'$", out, re.M)
    again = run(repeated[1], here=True)
    again.assert_outcomes(failed=1)
    assert "crossent/run/pytest_checks.py" not in out  # the traceback ends at the call of the check
    assert re.search(r"^crossent: torch \S+, device cpu, seed 0, level QUICK", out, re.M)
    assert "THIS WAS A QUICK RUN" in out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_command_of_a_finding_repeats_the_test_from_a_folder_below_the_root(run, pytester, monkeypatch, workers):
    """pytest names a test by its path from the root, but reads a path from the folder in which it is called."""
    monkeypatch.chdir(pytester.mkdir("below"))
    arguments = "--rootdir=..", f"-n{workers}"
    out = run(*arguments, *pytester.path.glob("test_*.py"), "-k", "wrong and loss and 7x5-normal-int64-none").stdout
    repeated = re.search(r"repeat  pytest '(\S+::test_wrong\[loss\[\S+\]\])'$", out.str(), re.M)
    run(*arguments, repeated[1]).assert_outcomes(failed=1)


def test_a_test_that_does_not_call_check_fails(run, pytester):
    """The test compares nothing, so a wrong loss would pass."""
    options = "crossent.formula, dtypes=['float64'], cases=['*7x5-normal-int64-none*']"
    pytester.makepyfile(f"import crossent\n\n@crossent.parametrize({options})\ndef test_right(check):\n    check")
    result = run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "passed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*the test did not call `check()`"])


def test_workers_run_the_same_tests_and_one_report_is_written(run, pytester):
    ids, counts = [], []
    for more in (["-n", "0"], ["-n", "2"]):
        result = run("-k", "large_offset and (loss or gradient)", "--crossent-json", "report.json", "-v", *more)
        report = json.loads((pytester.path / "report.json").read_text())
        counts.append([(part["name"], part["counts"], sorted(part["cases"])) for part in report["subjects"]])
        ids.append(set(re.findall(r"test_\w+\[\S+\]\]", result.stdout.str())))
        assert "declared: formula may raise any error for bad input" in result.stdout.str()
        assert [part.get("declared") for part in report["subjects"] if part["name"] == "formula"] == [
            ["may raise any error for bad input"]
        ]
    assert ids[0] == ids[1] != set()
    assert sorted(counts[0], key=str) == sorted(counts[1], key=str)


def test_the_summary_says_how_many_tests_were_deselected(run):
    """Otherwise no reader could tell why some results have no evidence."""
    numbers = []
    for more in (["-n", "0"], ["-n", "2"]):
        out = run("-k", "right and large_offset and sign", *more).stdout.str()
        (line,) = (line for line in out.splitlines() if " check ran; " in line)
        assert re.search(r"without findings, but some results have no evidence; [\d,]+ tests deselected$", line), line
        numbers.append(int(line.rpartition("; ")[2].split()[0].replace(",", "")))
    assert numbers[0] == numbers[1] > 1000


def test_a_known_failure_is_an_xfail(run, pytester):
    (pytester.path / "known.toml").write_text(KNOWN)
    result = run(
        "-k",
        "wrong and (loss or gradient) and 7x5-normal-int64",
        "--crossent-expected-findings",
        "known.toml",
        "-rx",
    )
    assert result.ret == pytest.ExitCode.OK
    assert "known to be doubled" in result.stdout.str()
    assert result.parseoutcomes()["xfailed"] > 0


@pytest.mark.parametrize("known_first", [True, False])
def test_a_failure_counts_as_failed_if_it_is_known_to_only_one_of_two_tests(tmp_path, known_first):
    (tmp_path / "known.toml").write_text(KNOWN)
    chosen = {"dtypes": "float64", "level": "quick", "cases": "float64-7x5-normal-int64-mean", "checks": "loss"}
    lists = [tmp_path / "known.toml", None]
    records = []
    for path in lists if known_first else reversed(lists):
        for test in pytest_checks.tests_of(doubled, Settings(**chosen, expected_findings=path)):
            with suppress(AssertionError, pytest.xfail.Exception):
                test()
            records.append(test.record)
    report = pytest_checks.report_of_records(records)
    (part,) = report.subjects
    assert [(finding.check, finding.expected) for finding in part.findings] == [("loss", None)]
    assert (report.failed, part.counts["failed"], part.counts["expected"], report.ok) == (1, 1, 0, False)


def test_the_default_level_is_quick():
    options = SimpleNamespace(getoption=lambda name: None)
    (settings,) = plugin._settings_of(options, {})
    assert settings.level == "quick"


def test_the_command_line_comes_before_the_decorator(run):
    chosen = ["--crossent-dtype", "float16", "--crossent-seed", "7", "--crossent-without", "gradient"]
    result = run("--collect-only", "-q", *chosen, here=True)
    ids = re.findall(r"^\S+::test_right\[(.*)\]$", result.stdout.str(), re.M)
    assert ids
    assert all("float16" in one and "seed7" in one for one in ids if not one.startswith("errors"))


def test_a_subject_of_the_command_line_needs_no_file(run, pytester):
    pytester.mkdir("empty")
    result = run("empty", "--crossent-subject", "formula", "--crossent-dtype", "float64", "-k", "gradient and 7x5")
    assert result.ret == pytest.ExitCode.OK
    assert re.search(r"collected \d+ items / \d+ deselected / \d+ selected", result.stdout.str())
    assert re.search(
        r"^formula: \d+ cases ran, 0 failed, 0 with known failures, 0 not applicable$", result.stdout.str(), re.M
    )


def test_a_linear_cross_entropy_of_the_command_line_needs_its_operation(run, pytester):
    pytester.mkdir("empty")
    pytester.makepyfile(mine=LINEAR)
    chosen = ["--crossent-dtype", "float32", "-k", "linear-float32-7x5-normal-int64-mean-hidden16"]
    result = run("empty", "--crossent-subject", "mine.py:loss", *chosen, here=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "needs --operation linear_cross_entropy" in result.stderr.str()
    chosen += ["--crossent-subject", "linear_formula", "--crossent-operation", "linear_cross_entropy"]
    result = run("empty", "--crossent-subject", "mine.py:loss", *chosen)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str()
    for name in ("loss", "linear_formula"):
        assert re.search(rf"^{name}: 1 case ran, 0 failed, ", result.stdout.str(), re.M)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--crossent-subject", "formulae"], "got 'formulae'; did you mean formula?"),
        (["--crossent-subject", "formula", "--crossent-level", "fast"], "got 'fast'; allowed are quick, normal"),
        (
            ["--crossent-subject", "formula", "--crossent-operation", "softmax"],
            "got 'softmax'; allowed are cross_entropy, linear_cross_entropy",
        ),
        (
            ["--crossent-subject", "formula", "--crossent-operation", "linear_cross_entropy"],
            "got 'linear_cross_entropy', but formula computes cross_entropy",
        ),
        (["--crossent-subject", "formula", "--crossent-dtype", "float8"], "got 'float8'; allowed are float16"),
        (["--crossent-subject", "formula", "--crossent-without", "wings"], "got 'wings'; allowed are float16"),
        (["--crossent-subject", "formula", "--crossent-device", "toaster"], "got 'toaster'; allowed are cpu"),
        (
            ["--crossent-subject", "formula", "--crossent-seed", "-1"],
            "got -1; allowed is a whole number of 0 or more (not the word random",
        ),
        (["--crossent-subject", "formula", "--crossent-contract", "jax"], "got 'jax'; allowed are kernel"),
        (["--crossent-subject", "formula", "--crossent-expected-findings", "no"], "got 'no'; this"),
    ],
)
def test_wrong_use_is_one_line_that_begins_with_the_option(run, arguments, said):
    result = run(*arguments, here=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {arguments[-2]}: {said}" in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


def test_a_green_run_in_which_nothing_ran_has_failed(run, pytester):
    pytester.makepyfile(
        test_skipped="""
        import crossent

        @crossent.parametrize(crossent.formula, dtypes=["float16"], without=["float16", "float32"])
        def test_nothing(check):
            check()
        """
    )
    result = run("test_skipped.py", "-k", "7x5")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (
        "ERROR: 0 checks ran; at least 1 must run: select more tests, or lower --crossent-min-checks"
        in result.stdout.str()
    )
    assert run("test_skipped.py", "-k", "7x5", "--crossent-min-checks", "0").ret == pytest.ExitCode.OK
    assert (
        run("-k", "right and loss and 7x5-normal", "--crossent-min-checks", "100000").ret
        == pytest.ExitCode.TESTS_FAILED
    )


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({}, "seed 0, level QUICK (--crossent-level=normal runs more), unless a test sets its own"),
        ({"--crossent-seed": 3, "--crossent-level": "normal"}, "seed 3, level normal, unless a test sets its own"),
        ({"--crossent-seed": 3, "--crossent-level": "normal", "--crossent-device": ["cpu"]}, "seed 3, level normal"),
    ],
)
def test_the_header_says_that_a_test_may_set_its_own_device_seed_or_level(given, end):
    assert plugin._header(SimpleNamespace(getoption=given.get)).endswith(f", device cpu, {end}")


def test_the_summary_counts_a_single_check_and_names_a_file_that_cannot_be_written(run, pytester):
    pytester.mkdir("empty")
    chosen = ["--crossent-dtype=float64", "--crossent-json=missing/report.json", "-k", ":loss[decimals"]
    result = run("empty", "--crossent-subject=formula", *chosen)
    out = result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^formula: 1 case ran, 0 failed, 0 with known failures, 0 not applicable$", out, re.M)
    assert re.search(r"^1 check ran; ", out, re.M)
    assert "ERROR: --crossent-json: missing/report.json cannot be written: No such file or directory; give a" in out


def test_a_run_that_only_collects_tests_needs_no_checks(run, pytester):
    pytester.mkdir("empty")
    result = run("empty", "--collect-only", "-q", "--crossent-subject=scalar", "--crossent-baseline=r.json", here=True)
    assert result.ret == pytest.ExitCode.OK
    assert "ERROR" not in result.stdout.str()


def test_in_a_project_without_such_tests_the_plugin_prints_nothing_and_imports_no_torch(run, pytester):
    pytester.makepyfile(test_other="import sys\n\ndef test_other():\n    assert 'torch' not in sys.modules\n")
    result = run("test_other.py")
    assert result.ret == pytest.ExitCode.OK
    assert "crossent:" not in result.stdout.str()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "@crossent.parametrize('formulae')\ndef test_it(check): check()",
            "crossent.parametrize: subject: got 'formulae'",
        ),
        ("@crossent.parametrize(crossent.formula)\ndef test_it(): pass", "the test has no argument `check`"),
        (
            "@crossent.parametrize(crossent.formula, levle='quick')\ndef test_it(check): check()",
            "crossent.parametrize: got the option 'levle'; allowed are device, dtypes,",
        ),
        (
            "@crossent.parametrize(crossent.formula, ranks=2)\ndef test_it(check): check()",
            "crossent.parametrize: got the option 'ranks'; allowed are device, dtypes,",
        ),
    ],
)
def test_a_decorator_that_is_wrong_is_an_error_of_collection(run, pytester, code, said):
    pytester.makepyfile(test_bad=f"import crossent\n\n{code}\n")
    result = run("test_bad.py", here=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert said in result.stdout.str()


def test_a_worker_that_crashed_does_not_reset_the_number_of_deselected_checks():
    stash = {plugin.DESELECTED: 0}
    for node in ({"workeroutput": {"crossent_deselected": 7}}, {}):
        plugin.pytest_testnodedown(SimpleNamespace(config=SimpleNamespace(stash=stash), **node))
    assert stash[plugin.DESELECTED] == 7


def test_a_run_fails_if_a_result_changed_since_the_baseline(run, pytester):
    baseline = pytester.path / "baseline.json"
    options = (
        "--crossent-subject=scalar",
        "--crossent-dtype=float64",
        "-n0",
        "-k",
        "not test_right and not test_wrong",
    )
    assert run(*options, f"--crossent-json={baseline}").ret == 0
    same = run(*options, f"--crossent-baseline={baseline}")
    assert same.ret == 0
    assert re.search(r"^\d+ cases in both runs: \d+ same bits$", same.stdout.str(), re.M)
    whole = baseline.read_text(encoding="utf-8")
    baseline.write_text(whole.replace('"raised": ""', '"raised": "KeyError: 3"'), encoding="utf-8")
    changed = run(*options, f"--crossent-baseline={baseline}")
    assert changed.ret == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"^changed behaviour: scalar: call on ", changed.stdout.str(), re.M)
    baseline.write_text("{", encoding="utf-8")
    damaged = run(*options, f"--crossent-baseline={baseline}")
    assert damaged.ret == pytest.ExitCode.TESTS_FAILED
    refused = re.compile(r"^ERROR: --crossent-baseline: \S+baseline.json: not a report of crossent: ", re.M)
    assert refused.search(damaged.stdout.str())
