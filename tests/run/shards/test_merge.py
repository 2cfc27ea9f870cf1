"""Shards: the merged report equals the report of one run, byte for byte. Shards of different runs are refused."""

import copy
import itertools
import json
import os
import re

import pytest
from support.error_lines import error_line
from support.running import check_on
from support.subjects import off_by_a_percent

import crossent
from crossent.cases.case import Case
from crossent.cli import FAILED, NOTHING_RAN, PASSED, WRONG_USE, main
from crossent.report.reader import report_of
from crossent.run.soak.merge import merge

CASES = [
    Case(dtype, (3, classes), label_smoothing=smoothing, reduction=reduction)
    for dtype in ("float32", "float64")
    for classes in (5, 6)
    for smoothing in (0.0, 0.1)
    for reduction in ("mean", "none")
]
WRONG = """
import crossent

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    loss = crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss * 1.01 if label_smoothing else loss
"""
KNOWN = """
[[finding]]
subject = "loss"
checks = ["loss", "gradient"]
kind = "wrong"
cases = ["float32-3x5-*smooth0.1*"]
reason = "a percent too large"

[[finding]]
subject = "loss"
checks = ["loss"]
kind = "wrong"
cases = ["float64-3x6-normal-int64-none-seed1"]
reason = "an old bug"
"""
check_few = check_on(CASES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Let the command run a few cases, in one process, in a folder with a wrong loss."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("crossent.machine.cores", lambda: None)
    monkeypatch.setattr("crossent.run.runner.check", check_few)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "known.toml").write_text(KNOWN)
    return tmp_path


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def without_time(text):
    return re.sub(r", in [\d.]+ (s|min [\d.]+ s)$", "", text.rstrip(), flags=re.M)


@pytest.fixture
def shards(folder, capsys):
    """Write the reports of three shards of a run on the wrong loss, and return their names."""
    return write(capsys, "wrong.py:loss", "--seed", "1", "--level", "quick")


def write(capsys, *arguments, count=3, prefix="s"):
    names = [f"{prefix}{number}.json" for number in range(1, count + 1)]
    for number, name in enumerate(names, 1):
        main(["check", *arguments, "--shard", f"{number}/{count}", "--json", name, "-q"])
    capsys.readouterr()
    return names


@pytest.mark.parametrize(
    "arguments",
    [
        ("wrong.py:loss", "--seed", "1", "--level", "quick"),
        ("wrong.py:loss", "formula", "--seed", "1", "--level", "quick", "--expected-findings", "known.toml"),
        ("wrong.py:loss", "--seed", "1", "--without", "label_smoothing", "errors", "--level", "quick"),
        ("formula", "scalar", "torch", "--level", "quick", "--dtype", "float64"),
        ("formula", "--level", "quick", "--check", "gradient", "--case", "*3x6*", "-vv"),
        ("torch", "--level", "quick", "--check", "compile", "--case", "*3x6*none*"),
    ],
    ids=["findings", "known failures", "declared features", "several subjects", "a part", "nothing to run"],
)
def test_the_merged_report_is_that_of_one_run_byte_for_byte_whatever_the_order(folder, capsys, arguments):
    status, text, error = run(capsys, "check", *arguments, "--json", "one.json", "--html", "one.html")
    if error:
        names = [run(capsys, "check", *arguments, "--shard", f"{number}/3") for number in (1, 2, 3)]
        assert {(status, error) for status, _, error in names} == {(WRONG_USE, error)}
        return
    names = write(capsys, *arguments)
    of_report = [word for word in arguments if word == "-vv"]
    for order in itertools.permutations(names):
        status_of_merge, merged_text, _ = run(capsys, "merge", *order, *of_report, "--json", "all.json")
        assert (folder / "all.json").read_bytes() == (folder / "one.json").read_bytes()
        assert without_time(merged_text) == without_time(text)
        assert status_of_merge == status
    run(capsys, "merge", *names, "--html", "all.html")
    assert (folder / "all.html").read_bytes() == (folder / "one.html").read_bytes()


@pytest.mark.parametrize("level", ["quick", "normal"])
def test_the_cases_of_a_level_are_merged_byte_for_byte(tmp_path, level):
    """A case has the same bits whatever other cases are in the run, in any division and any number of processes."""
    chosen = {"level": level, "dtypes": "float32", "cases": ["*-transposed*", "*-mean-weight_*"]}
    crossent.check("formula", **chosen).write_json(tmp_path / "one.json")
    for number in (1, 2, 3):
        shard = crossent.check("formula", **chosen, shard=(number, 3), jobs=number)
        shard.write_json(tmp_path / f"{number}.json")
    merge(*(tmp_path / f"{number}.json" for number in (3, 1, 2))).write_json(tmp_path / "all.json")
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_reports_in_memory_and_in_files_merge_alike(tmp_path):
    chosen = {"level": "quick", "dtypes": "float32"}
    one = check_few("formula", off_by_a_percent, **chosen)
    shards = [check_few("formula", off_by_a_percent, **chosen, shard=(number, 2)) for number in (1, 2)]
    shards[0].write_json(tmp_path / "1.json")
    for merged in (merge(*shards), merge(tmp_path / "1.json", shards[1])):
        assert merged.to_json() == one.to_json()
        assert without_time(str(merged)) == without_time(str(one))
        assert [finding.command for finding in merged.findings] == [finding.command for finding in one.findings]


def test_a_shard_says_that_it_is_no_verdict_on_the_run(folder, capsys):
    status, text, _ = run(capsys, "check", "formula", "--level", "quick", "--dtype", "float64", "--shard", "1/2")
    assert status == PASSED
    assert re.search(r"^SHARD 1/2: \d+ calls checked without findings; `crossent merge` gives the verdict", text, re.M)
    assert "PASSED:" not in text
    status, text, _ = run(capsys, "check", "wrong.py:loss", "--seed", "0", "--level", "quick", "--shard", "1/1")
    assert status == FAILED
    assert re.search(r"^SHARD 1/1: \d+ findings in \d+ checked calls", text, re.M)


def test_evidence_and_known_failures_are_judged_on_the_whole_run(folder, capsys):
    """A shard passes without evidence, even if it is empty. Only a merged run shows that a known failure is fixed."""
    # On a single class, every loss is 0.
    alone = ("formula", "--level", "quick", "--dtype", "float32", "--case", "float32-7x1-normal-int64-mean")
    assert run(capsys, "check", *alone[:-2])[0] == PASSED
    names = write(capsys, *alone)
    assert all(main(["check", *alone, "--shard", f"{number}/3", "-q"]) == PASSED for number in (1, 2, 3))
    assert sorted(len(json.loads((folder / name).read_text())["subjects"][0]["cases"]) for name in names) == [0, 0, 1]
    # A known failure that is absent from one shard happens in another, so it is not fixed.
    known = ("wrong.py:loss", "--seed", "1", "--level", "quick", "--expected-findings", "known.toml")
    names = write(capsys, *known)
    assert all(json.loads((folder / name).read_text())["mended"] == [] for name in names)
    run(capsys, "merge", *names, "--json", "all.json")
    assert json.loads((folder / "all.json").read_text())["mended"] == ["an old bug"]


def test_a_merged_run_without_evidence_is_not_proven(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("crossent.machine.cores", lambda: None)
    of_zero = [Case("float32", (3, 1), reduction=reduction) for reduction in ("mean", "sum")]
    monkeypatch.setattr("crossent.run.runner.check", check_on(of_zero, bad_inputs=False))
    arguments = ("formula", "--level", "quick", "--dtype", "float32")
    status, text, _ = run(capsys, "check", *arguments)
    assert (status, "NOT PROVEN" in text) == (FAILED, True)
    names = write(capsys, *arguments, count=2)
    assert [main(["check", *arguments, "--shard", shard]) for shard in ("1/2", "2/2")] == [PASSED, PASSED]
    capsys.readouterr()
    status, merged_text, _ = run(capsys, "merge", *names)
    assert (status, without_time(merged_text)) == (FAILED, without_time(text))


def test_a_run_in_which_nothing_ran_is_merged_to_the_same_status(capsys, folder):
    arguments = ("scalar", "--level", "quick", "--dtype", "float32", "--case", "*3x5*")
    status, text, _ = run(capsys, "check", *arguments)
    assert status == NOTHING_RAN
    names = write(capsys, *arguments)
    status, merged_text, _ = run(capsys, "merge", *names)
    assert (status, without_time(merged_text)) == (NOTHING_RAN, without_time(text))


def test_the_number_of_threads_may_differ(folder, capsys, shards):
    change(folder / shards[1], lambda document: document["environment"].update(threads="64"))
    run(capsys, "check", "wrong.py:loss", "--seed", "1", "--level", "quick", "--json", "one.json")
    assert run(capsys, "merge", *shards, "--json", "all.json")[0] == FAILED
    assert (folder / "all.json").read_bytes() == (folder / "one.json").read_bytes()


def test_the_architecture_may_not_differ(folder, capsys, shards):
    for name, architecture in zip(shards, ("x86_64", "aarch64", "x86_64"), strict=True):
        platform = f"Linux-6.1-{architecture}-with-glibc2.36"
        change(folder / name, lambda document, to=platform: document["environment"].update(platform=to))
    values = "platform: 'Linux on aarch64 with glibc2.36' here, 'Linux on x86_64 with glibc2.36' in s1.json"
    assert values in line(capsys, *shards)


def test_the_kernel_may_differ_and_the_c_library_may_not(folder, capsys, shards):
    change(folder / shards[0], lambda document: document["environment"].update(platform="Linux-6.1-x-with-glibc2.36"))
    for name in shards[1:]:
        change(folder / name, lambda document: document["environment"].update(platform="Linux-6.2-x-with-glibc2.36"))
    assert run(capsys, "merge", *shards, "--json", "all.json")[0] == FAILED
    assert "Linux-6.1-x-with-glibc2.36" in (folder / "all.json").read_text()
    change(folder / shards[2], lambda document: document["environment"].update(platform="Linux-6.2-x-with-musl"))
    values = "platform: 'Linux on x with musl' here, 'Linux on x with glibc2.36' in s1.json"
    assert values in line(capsys, *shards)


def change(path, how):
    document = json.loads(path.read_text())
    how(document)
    path.write_text(json.dumps(document))


def line(capsys, *arguments):
    """Return the only line that wrong use of `crossent merge` prints."""
    status, out, err = run(capsys, "merge", *arguments)
    assert (status, out) == (WRONG_USE, "")
    return error_line(err)


def test_a_folder_is_wrong_use_of_the_argument_that_the_help_names(tmp_path, capsys):
    assert f"REPORT: File '{tmp_path}' is a directory" in line(capsys, str(tmp_path))


def test_a_missing_or_doubled_shard_is_wrong_use(shards, capsys):
    assert "shards: 1 of 3 is missing: 2/3; run this shard, or give its report" in line(capsys, shards[0], shards[2])
    assert "shards: 2 of 3 are missing: 1/3, 3/3; run these shards, or give their reports" in line(capsys, shards[1])
    assert "s1.json: got shard 1/3 again, after s1.json; give each shard once" in line(capsys, shards[0], *shards)


@pytest.mark.parametrize("name", ["crossent", "torch", "numpy", "cpu_capability", "python", "device"])
def test_shards_of_other_versions_or_vector_instructions_are_wrong_use(shards, capsys, folder, name):
    other = "cuda" if name == "device" else "0.0.0"

    def differs(document):
        document["environment"][name] = other
        if name == "crossent":
            document["crossent"] = other

    change(folder / shards[1], differs)
    assert f"s2.json: got a shard of another run; {name}: '{other}' here, " in line(capsys, *shards)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--seed", "2"), "seed: 2 here, 1 in s1.json"),
        (("--dtype", "float32"), "dtypes: 'float32' here"),
        (("--without", "label_smoothing"), "without: "),
        (("--contract", "torch"), "contract of loss: 'torch' here, '' in s1.json"),
        (("--check", "loss"), "choice of checks and cases: "),
        (("--expected-findings", "known.toml"), "list of known failures: "),
    ],
)
def test_shards_of_two_runs_are_wrong_use(shards, capsys, folder, arguments, what):
    others = write(capsys, "wrong.py:loss", "--seed", "1", "--level", "quick", *arguments, prefix="other")
    assert f"other2.json: got a shard of another run; {what}" in line(capsys, shards[0], others[1], shards[2])


def test_shards_of_two_levels_are_wrong_use(shards, capsys, folder):
    change(folder / shards[1], lambda document: document.update(level="normal"))
    assert "s2.json: got a shard of another run; level: 'normal' here, 'quick' in s1.json" in line(capsys, *shards)


def test_shards_of_two_divisions_or_of_changed_code_are_wrong_use(shards, capsys, folder):
    others = write(capsys, "wrong.py:loss", "--seed", "1", "--level", "quick", count=2, prefix="other")
    assert "other2.json: got shard 2/2, but s1.json is shard 1/3" in line(capsys, shards[0], others[1], shards[2])
    (folder / "wrong.py").write_text(WRONG + "# fixed")
    others = write(capsys, "wrong.py:loss", "--seed", "1", "--level", "quick", prefix="later")
    assert "later2.json: got a shard of another run; code of loss: " in line(capsys, shards[0], others[1], shards[2])


def test_a_file_that_is_no_report_of_a_shard_is_wrong_use(shards, capsys, folder):
    (folder / "text.json").write_text("no report")
    run(capsys, "check", "wrong.py:loss", "--seed", "1", "--level", "quick", "--json", "one.json")
    assert "text.json: not a report of crossent" in line(capsys, *shards, "text.json")
    assert "one.json: got the report of a whole run" in line(capsys, *shards, "one.json")
    assert "one.json: got the report of a whole run" in line(capsys, "one.json", *shards)


def test_damaged_shards_are_wrong_use(shards, capsys, folder):
    before = json.loads((folder / shards[1]).read_text())

    def with_change(how):
        document = copy.deepcopy(before)
        how(document)
        (folder / shards[1]).write_text(json.dumps(document))
        return line(capsys, *shards)

    def moved(document):
        case = next(iter(document["shard"]["places"]))
        document["shard"]["places"][case] = 0

    def lost(document):
        del document["shard"]["places"][next(iter(document["subjects"][0]["cases"]))]

    def counts_a_case_twice(document):
        (part,) = document["subjects"]
        part["not_applicable"]["it has no gradient"] = 1
        part["counts"]["not_applicable"] += 1

    def moved_onto_another_case(document):
        first, second, *_ = places = document["shard"]["places"]
        places[first] = places[second]

    def counts_fewer_than_0_cases(document):
        (part,) = document["subjects"]
        part["not_applicable"] |= {"one reason": 1, "another reason": -1}

    same_place = r"s2\.json: damaged: the case \S+ has the same place in the plan as a case of"
    assert re.search(rf"{same_place} s1\.json", with_change(moved))
    assert re.search(rf"{same_place} s2\.json", with_change(moved_onto_another_case))
    assert "does not belong to this shard" in with_change(lost)
    assert re.search(
        r"the results of loss count \d cases, but the shard has \d cases", with_change(counts_a_case_twice)
    )
    assert "a reason in `not_applicable` of loss counts fewer than 0" in with_change(counts_fewer_than_0_cases)
    for key in ("number", "count", "planned", "run", "places", "sources", "known"):
        assert "damaged" in with_change(lambda document, key=key: document["shard"].pop(key))
        assert "damaged" in with_change(lambda document, key=key: document["shard"].update({key: [True]}))
    assert "shard" in with_change(lambda document: document["shard"]["run"].update(operation="addition"))
    assert re.search(r"ended early, after \d cases; run", with_change(lambda document: document.update(planned=40)))


def test_a_case_in_two_shards_is_wrong_use():
    first, second = (check_few("formula", checks="loss", shard=(number, 2)) for number in (1, 2))
    of_first, of_second = next(iter(first.shard.places)), next(iter(second.shard.places))
    for of_case in (second.shard.places, second.subjects[0].outcomes):
        of_case[of_first] = of_case.pop(of_second)
    with pytest.raises(ValueError, match=r"^report 2: damaged: the case \S+ is also in report 1; run"):
        merge(first, second)


def test_an_unknown_operation_or_feature_is_named_with_its_place(shards, capsys, folder):
    for name in shards:
        change(folder / name, lambda document: document.update(without=["gravity"]))
    assert "`without` has the feature 'gravity', which crossent does not have" in line(capsys, *shards)
    for name in shards:
        change(folder / name, lambda document: document["shard"]["run"].update(operation="addition"))
    assert "`operation` is 'addition'; allowed are cross_entropy, " in line(capsys, *shards)


def test_every_case_of_the_plan_must_be_in_a_shard(shards, capsys, folder):
    for name in shards:
        change(folder / name, lambda document: document["shard"].update(planned=document["shard"]["planned"] + 1))
    assert re.search(r"shards: damaged: together they have (\d+) of the (\d+) cases", line(capsys, *shards))


@pytest.mark.parametrize(
    "shard", ["0/8", "9/8", "a/b", "2", "2/", "-1/8", "1/0", "1.0/2", "²/3", "1/2/3", "1/100001", "1/9999999"]
)
def test_a_shard_out_of_range_is_wrong_use(shard, capsys):
    status, out, err = run(capsys, "check", "formula", "--shard", shard)
    assert (status, out) == (WRONG_USE, "")
    assert f"--shard: got '{shard}'; allowed are 1/N to N/N, as in 2/8, with N from 1 to 100,000" in error_line(err)


@pytest.mark.parametrize("shard", [(0, 8), (9, 8), (1, 0), (True, 2), (1.0, 2), "1/2", 2, (1, 2, 3)])
def test_a_shard_out_of_range_is_an_error_in_python(shard):
    with pytest.raises(ValueError, match=rf"^shard: got {re.escape(repr(shard))}; allowed are \(1, N\) to \(N, N\)"):
        crossent.check("formula", shard=shard)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("formula", "--seed", "random"), "--seed: got random"),
        (("wrong.py:loss",), "--shard: each shard would draw its own random seed; add --seed NUMBER"),
        (("formula", "--last-failed"), "--last-failed chooses other cases on each machine: leave out"),
        (("formula", "-x"), "-x ends a run early"),
        (("formula", "--max-findings", "3"), "--max-findings ends a run early"),
        (("formula", "--baseline", "s1.json"), "--baseline compares a whole run: leave out --shard"),
    ],
)
def test_options_that_shards_cannot_share_are_wrong_use(shards, capsys, arguments, reason):
    status, out, err = run(capsys, "check", *arguments, "--shard", "1/2")
    assert (status, out) == (WRONG_USE, "")
    assert reason in error_line(err)


def test_a_shard_does_not_replace_the_findings_of_the_last_run(folder, capsys):
    run(capsys, "check", "wrong.py:loss", "--seed", "1", "--level", "quick", "--shard", "1/2")
    assert not os.path.exists(".crossent_cache")


def test_the_report_of_a_shard_is_read_and_compared_but_not_verified(shards, capsys, folder):
    status, _, err = run(capsys, "verify", shards[0], "wrong.py:loss")
    assert (status, "the report is of shard 1/3 alone" in error_line(err)) == (WRONG_USE, True)
    run(capsys, "check", "wrong.py:loss", "--seed", "1", "--level", "quick", "--json", "one.json")
    status, text, _ = run(capsys, "diff", shards[0], "one.json")
    assert (status, "the old run is shard 1/3; only its cases are compared" in text) == (PASSED, True)
    document = json.loads((folder / shards[0]).read_text())
    assert report_of(document).to_json() == document


def test_a_shard_that_ended_after_one_case_is_named_in_the_singular():
    chosen = {"level": "quick", "cases": "float32-7x5-normal-int64-mean", "checks": "loss", "shard": (1, 1)}
    report = crossent.check("formula", **chosen)
    report.planned = 40
    with pytest.raises(ValueError, match="report 1: shard 1/1 ended early, after 1 case; run this shard again"):
        crossent.merge(report)
