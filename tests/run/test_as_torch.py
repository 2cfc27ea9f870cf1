"""The contract of torch for any subject: a wrapper of F.cross_entropy passes, and a wrong function is still found."""

import json
import math
import re

import pytest
import torch
from every import MUTANTS
from support.defects import DEFECTS
from support.running import check_on, run
from support.waits import computes

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.edges import edges
from crossent.cases.grid import grid
from crossent.checks import CHECKS
from crossent.cli import FAILED, PASSED, main
from crossent.machine import can_fork
from crossent.report.expected_findings import ExpectedFinding, torch_list
from crossent.report.moves.diff import diff
from crossent.report.moves.rules import Kind
from crossent.report.reader import read_report
from crossent.run.plan import of_cost
from crossent.run.settings import Settings, mark_expected
from crossent.subjects.contracts import under_contract
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject
from crossent.trials.check import Cost

WRAPPER = """
import torch.nn.functional as F

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return F.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
"""
HINT = "The result has torch's bits: judge this subject with --contract torch, in Python with contract='torch'."
HALF = Case.of("bfloat16-7x5-normal-int64-none-ignored_default-rows")
HALF_SURE = Case.of("half_sure/bfloat16-4x2-sure-int64-mean-gradeA")  # a known failure of torch
PLAIN = Case("float32")


def wrapper(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return torch.nn.functional.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def doubled(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return 2 * wrapper(input, target, weight, ignore_index, reduction, label_smoothing)


@pytest.fixture
def few(monkeypatch):
    """Let `crossent check` run a few cases in place of the cases of a level."""
    dtypes = tuple(DTYPES)
    cases = [*list(edges(dtypes, 0, "quick"))[::4], *list(grid(dtypes, 0, "pairs"))[::4], HALF_SURE]
    cases = [case for case in cases if case.rows * case.classes < 10_000]
    monkeypatch.setattr("crossent.run.runner.check", check_on([], more=cases))


@pytest.mark.skipif(not can_fork(), reason="needs a system that forks")
def test_a_wrapper_of_torch_in_a_file_is_judged_as_torch_is(few, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(WRAPPER, encoding="utf-8")
    options = ("--seed", "0", "--jobs", "2", "--json", str(tmp_path / "r.json"))
    status = main(["check", "torch", f"{tmp_path / 'mine.py'}:loss", "--contract", "torch", *options])
    out = capsys.readouterr().out
    assert status == PASSED, out
    assert out.count("declared: loss has the contract torch") == 1
    torchs, _, mine = read_report(tmp_path / "r.json").subjects
    assert (torchs.name, torchs.contract, mine.name, mine.contract) == ("torch", "", "loss", "torch")
    # The reports differ in the name of the subject alone: the wrapper has the same results and known failures.
    known = [{(one.check, one.case, one.expected) for one in part.findings} for part in (torchs, mine)]
    assert known[0] == known[1] != set()
    half = (
        {"float16": "B"} if computes("float16") else {"float16": "A"}
    )  # old versions of torch compute float16 only for an empty batch
    assert mine.grades == torchs.grades == {**half, "bfloat16": "B", "float32": "A", "float64": "A"}
    assert {dtype: outcome.digest for dtype, outcome in mine.outcomes.items()} == {
        dtype: outcome.digest for dtype, outcome in torchs.outcomes.items()
    }


def infinite(input, target, **options):
    return input.sum() * 0 + math.inf


def test_without_the_contract_the_message_says_what_to_do():
    report = run(load(wrapper), HALF)
    assert {finding.check for finding in report.findings} >= {"loss", "gradient"}
    for finding in report.findings:
        assert (HINT in finding.message.splitlines()) == (finding.check in ("loss", "gradient")), finding
    assert HINT in str(report)


@pytest.mark.parametrize(
    ("subject", "case"),
    [
        (load(doubled)[0], HALF),
        (load(doubled, contract="torch")[0], HALF),
        (load(wrapper, contract="torch")[0], HALF_SURE),
        (load("torch")[0], HALF_SURE),
        (load(infinite)[0], Case.of("float16-2x65520-flat-int64-mean")),
    ],
    ids=["another function", "another function as torch", "a wrapper as torch", "torch", "infinite as torch is"],
)
def test_other_findings_do_not_advise_the_contract_of_torch(subject, case):
    report = run(subject, case)
    assert "loss" in {finding.check for finding in report.findings}
    assert "torch's bits" not in str(report)


# Bugs of each kind, on a case in which torch has no known failure.
TRANSFORMS = {name for name, check in CHECKS.items() if check.transforms}
WRONG = [
    mutant
    for mutant in MUTANTS
    if not TRANSFORMS.intersection(mutant.checks)
    and mutant.case not in {bad.id for bad in BAD_INPUTS}
    and Case.of(mutant.case).dtype in ("float32", "float64")  # in half precision, the contract of torch allows more
    and not any(
        known.covers("torch", mutant.case) and {*known.checks, *known.results} & {*mutant.checks}
        for known in torch_list()
    )
][::7]


@pytest.mark.parametrize("mutant", WRONG, ids=lambda mutant: mutant.name)
def test_a_wrong_function_is_found_under_the_contract_of_torch(mutant):
    subject = under_contract(Subject(mutant.name, mutant.loss), "torch", None)
    report = run(subject, mutant.case, [CHECKS[name] for name in dict.fromkeys(("call", "result", *mutant.checks))])
    mark_expected(report, (torch_list(), []), [subject])
    assert {finding.check for finding in report.findings} & set(mutant.checks)


ADVERSARIAL = [
    "float32-31x7-wide-int64-none-rows",
    "float32-200x3-confident-int64-none-rows",
    "float32-64x10-offset-int64-none-rows",
    "float32-16x100-outlier-int64-none-rows",
    "float32-4x1000-outlier-int64-none-rows",
    "float32-64x5-normal-int64-none-weighted-rows-smooth0.1",
    "float32-64x5-normal-int64-mean-weighted-ignored",
]
SUBTLE = [one for one in DEFECTS if "float32" in one.dtypes][::11]


@pytest.mark.parametrize("defect", SUBTLE, ids=str)
def test_an_imprecise_step_is_found_under_the_contract_of_torch(defect):
    subject = under_contract(Subject("mine", defect), "torch", None)
    report = run(subject, ADVERSARIAL)
    mark_expected(report, (torch_list(), []), [subject])
    assert report.findings


CLAIMS = """
import json
import re

encode = json._default_encoder.encode
claims = {"source": "torch", "contract": "torch", "promise": "torch", "grades": {"float16": "B", "bfloat16": "B"}}

def forged(value):
    return {"subjects": [{**one, **claims} for one in value["subjects"]]} if "subjects" in value else value

json._default_encoder.encode = lambda value: encode(forged(value))

def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    import torch
    return torch.nn.functional.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )

loss.contract, loss.promise, loss.grades, loss.source = "torch", "torch", {"bfloat16": "B"}, "torch"
"""


@pytest.mark.skipif(not can_fork(), reason="needs a system that forks")
def test_a_file_cannot_choose_its_contract_its_grade_or_its_source(tmp_path):
    (tmp_path / "claims.py").write_text(CLAIMS, encoding="utf-8")
    description = f"{tmp_path / 'claims.py'}:loss"
    (subject,) = Settings(level="quick", jobs=1).load(description)
    assert (subject.contract, subject.promise, subject.grades) == ("kernel", "kernel", {})
    assert subject.source == description
    report = check_on([HALF], bad_inputs=False)(description, level="quick", dtypes=["bfloat16"], jobs=1)
    assert {finding.check for finding in report.findings} >= {"loss", "gradient"}
    assert report.subjects[0].contract == ""


@pytest.mark.parametrize("name", ["formula", "blocked", "scalar"])
def test_a_form_is_judged_under_the_contract_of_torch(name):
    cases = [Case(dtype, (5,), target=target) for dtype in DTYPES for target in ("int64", "probabilities")]
    report = check_on([*cases, HALF, HALF_SURE])(name, level="quick", contract="torch")
    (part,) = report.subjects
    assert report.findings == []
    assert (part.name, part.contract, part.known) == (name, "torch", {})
    assert report.fixed == []  # a right form does not show that torch is fixed
    assert f"declared: {name} has the contract torch" in str(report)


def torch_like(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)


def test_a_right_function_with_torchs_name_does_not_say_that_torch_is_fixed():
    report = check_on([HALF_SURE], bad_inputs=False)(torch_like, level="quick", dtypes=["bfloat16"], contract="torch")
    assert report.ran == 1
    assert (report.findings, report.fixed) == ([], [])


def test_a_finding_under_another_contract_is_repeated_from_its_report(tmp_path, capsys):
    report = check_on([HALF], bad_inputs=False)("torch", level="quick", dtypes=["bfloat16"], contract="kernel")
    part, _ = report.subjects
    assert part.contract == "kernel"
    finding = next(one for one in report.findings if one.check == "loss")
    assert finding.expected is None
    assert finding.command == f"crossent repro {finding.id} --contract=kernel"
    report.write_json(tmp_path / "r.json")
    assert main(["repro", finding.id, str(tmp_path / "r.json")]) == PASSED
    assert repr(finding.numbers.bound) in capsys.readouterr().out


@pytest.fixture
def two_runs():
    def checked(contract):
        return check_on([HALF, PLAIN], bad_inputs=False)(wrapper, level="quick", contract=contract)

    return checked(None), checked("torch")


def test_a_report_has_its_contract_and_a_diff_says_where_it_changed(two_runs, tmp_path, capsys):
    plain, torchs = two_runs
    assert "contract" not in plain.to_json()["subjects"][0]
    assert torchs.to_json()["subjects"][0]["contract"] == "torch"
    torchs.write_json(tmp_path / "torch.json")
    plain.write_json(tmp_path / "plain.json")
    assert read_report(tmp_path / "torch.json").to_json() == torchs.to_json()
    torchs.write_html(tmp_path / "torch.html")
    assert "under the contract torch" in (tmp_path / "torch.html").read_text(encoding="utf-8")
    assert diff(torchs, torchs).ok
    for old, new, change in (
        (plain, torchs, ("contract of wrapper", "the default", "torch")),
        (torchs, plain, ("contract of wrapper", "torch", "the default")),
    ):
        made = diff(old, new)
        assert change in made.others
        assert {move.kind for move in made.moves} == {Kind.BEHAVIOUR}
        assert {move.check for move in made.moves} >= {"loss", "gradient"}
        assert not made.ok
    assert main(["diff", str(tmp_path / "plain.json"), str(tmp_path / "torch.json")]) == FAILED
    assert "contract of wrapper: the default → torch" in capsys.readouterr().out


@pytest.mark.parametrize(("contract", "more"), [("torch", ()), (None, ()), (None, ("--contract", "torch"))])
def test_a_baseline_gives_a_run_its_contract(tmp_path, monkeypatch, capsys, contract, more):
    (tmp_path / "mine.py").write_text(WRAPPER, encoding="utf-8")
    description = f"{tmp_path / 'mine.py'}:loss"
    few = check_on([HALF, PLAIN], bad_inputs=False)
    monkeypatch.setattr("crossent.run.runner.check", few)
    planned = dict.fromkeys([HALF, PLAIN], of_cost(Cost.CALL))  # the baseline is compared with this plan before the run
    monkeypatch.setattr("crossent.run.settings._plan", lambda *_: planned)
    few(description, level="quick", contract=contract, jobs=1).write_json(tmp_path / "r.json")
    new, options = tmp_path / "new.json", ("--level", "quick", "--jobs", "1", *more)
    status = main(["check", description, "--baseline", str(tmp_path / "r.json"), "--json", str(new), *options])
    assert read_report(new).subjects[0].contract == ("torch" if more else contract or "")
    out = capsys.readouterr().out
    assert ("contract of loss: the default → torch" in out) == bool(more)
    assert status == (PASSED if contract else FAILED)


def test_a_compiled_wrapper_is_judged_under_the_contract_of_torch(tmp_path):
    (tmp_path / "mine.py").write_text(WRAPPER, encoding="utf-8")
    options = {"level": "quick", "contract": "torch", "dtypes": ["bfloat16"]}
    report = check_on([HALF], bad_inputs=False)(f"{tmp_path / 'mine.py'}:loss+compile", **options)
    (part,) = report.subjects
    if not report.ran:
        pytest.skip(next(iter(part.not_applicable)))
    assert (part.name, part.contract, part.findings) == ("loss+compile", "torch", [])
    assert re.search(r"^loss\+compile +PASSED +1 ", str(report), re.M)


@pytest.mark.parametrize(("name", "other"), [("torch", "torch+compile"), ("torch+compile", "torch")])
def test_the_list_of_torch_knows_a_compiled_subject_as_compiled_torch(name, other):
    described = {"checks": ("loss",), "kind": "wrong", "cases": ("*",), "reason": "known"}
    subject = under_contract(Subject("mine", doubled, source=f"m:mine{name.removeprefix('torch')}"), "torch", None)
    for pattern, known in ((name, {"loss"}), (other, set())):
        report = run(subject, HALF)
        mark_expected(report, ([ExpectedFinding(pattern, **described)], []), [subject])
        assert {one.check for one in report.subjects[0].findings if one.expected} == known
        assert report.fixed == []


PYTEST = """
import crossent
import torch.nn.functional as F

@crossent.parametrize(F.cross_entropy, dtypes=["bfloat16"], contract="torch", without={"errors"})
def test_wrapper(check):
    check()
"""


def test_the_contract_of_a_pytest_run_is_that_of_the_decorator_or_of_the_command_line(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makepyfile(PYTEST)

    def run(*more):
        chosen = ("-k", "(loss or gradient) and 7x5-normal-int64", "--crossent-json", "r.json")
        return pytester.runpytest_subprocess("-p", "crossent.plugin", "-p", "no:cacheprovider", *chosen, *more)

    passes = run()
    assert passes.ret == pytest.ExitCode.OK
    assert re.search(r"cross_entropy: \d+ cases ran, ", passes.stdout.str())
    assert ", under the contract torch" in passes.stdout.str()
    assert json.loads((pytester.path / "r.json").read_text())["subjects"][0]["contract"] == "torch"
    fails = run("--crossent-contract", "kernel")
    assert fails.ret == pytest.ExitCode.TESTS_FAILED
    assert HINT in fails.stdout.str()
    assert "contract" not in json.loads((pytester.path / "r.json").read_text())["subjects"][0]


def test_torch_is_off_by_nothing_if_its_value_and_the_exact_value_are_nan():
    def one(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        loss = wrapper(input, target, weight, ignore_index, reduction, label_smoothing)
        return loss.nan_to_num(1.0)

    (finding,) = crossent.check(one, cases="policy/float32-0x4-normal-int64-mean", checks="loss").findings
    assert (finding.numbers.got, finding.torch.partition("  ")[0]) == (1.0, "nan")
    assert finding.torch.endswith(", off by 0")
