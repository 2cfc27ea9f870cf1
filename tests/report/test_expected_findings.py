"""Known failures: the list is read strictly, matches only its findings, and reports entries that no longer happen."""

import math
import re
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
import torch.nn.functional as F
from support import waits
from support.checks import CIRCUMSTANCES, SINGLE
from support.running import run

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.cases.edges import EDGES
from crossent.cases.grid import grid
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.options import chosen_seed
from crossent.report.expected_findings import KINDS, ExpectedFinding, mark, read_list, torch_list
from crossent.report.findings import Finding, Measured, Numbers, Outcome, SubjectReport
from crossent.report.report import Report
from crossent.repro.recipes import RECIPES
from crossent.repro.script import ENDS
from crossent.run.plan import plan, with_rank_checks
from crossent.subjects.builtin import LINEAR_ALIAS, LINEAR_NAMED, TORCH, TORCH_NLL
from crossent.subjects.ranks.protocol import can_start_ranks

ENTRY = {"subject": "torch", "checks": ["loss"], "kind": "wrong", "cases": ["a*"], "reason": "known"}


def toml(**changed):
    entry = {**ENTRY, **changed}
    lines = [f"{key} = {value!r}" for key, value in entry.items() if value is not None]
    return "\n".join(["[[finding]]", *lines])


def entry(**changed):
    fields = {**ENTRY, **changed}
    return ExpectedFinding(**{**fields, "checks": tuple(fields["checks"]), "cases": tuple(fields["cases"])})


def report(*findings, torch="2.13.0", device="cpu", ran=()):
    """Return a report with these findings. `ran` has further cases, as (subject, case), on which the loss passed."""
    made = Report({"torch": torch, "device": device})
    for name in dict.fromkeys([*(finding.subject for finding in findings), *(subject for subject, _ in ran)]):
        own = [finding for finding in findings if finding.subject == name]
        cases = [*(finding.case for finding in own), *(case for subject, case in ran if subject == name)]
        outcomes = {case: Outcome("float32", "", checks={"loss": Measured()}) for case in cases}
        made.subjects.append(SubjectReport(name, outcomes, own))
        for finding in own:
            made.subjects[-1].outcomes[finding.case].checks[finding.check] = Measured(failed=True)
    return made


def finding(subject="torch", check="loss", case="a1", kind="wrong"):
    return Finding(subject, check, case, kind, "message")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[finding]", "Expected"),
        ("finding = [[[[", "Invalid value"),
        ("a = " + "[" * 100_000, ": "),
        ("[[finding]]\nsubject = 'a\nb'", "line 2"),
        (b"\xff\xfe", "utf-8"),
        ("\ufeff" + toml(), "line 1"),
        ("[[findings]]\nsubject = 'torch'", "got the key 'findings'; allowed are [[finding]] tables"),
        ("[finding]\nsubject = 'torch'", "allowed are [[finding]] tables"),
        ("finding = 3", "got finding = 3; allowed are [[finding]] tables, one for each known failure"),
        ("finding = ['torch']", "allowed are [[finding]] tables"),
        ('"two\\nlines" = 3', r"got the key 'two\nlines'; allowed"),
        ("version = 1\n" + toml(), "got the key 'version'; allowed"),
        (
            toml(check="loss"),
            "finding 1: got the key 'check'; allowed are subject, checks, kind, cases, reason, torch, device",
        ),
        (toml() + "\n" + toml(subject=None), "finding 2: subject is missing or empty; add it to the entry"),
        (toml(checks=None), "finding 1: checks and results are missing or empty; add one of them to the entry"),
        (toml(results="loss"), "results: got 'loss'; allowed is a list of strings"),
        (toml(checks=[]), "finding 1: checks and results are missing"),
        (toml(kind=None), "finding 1: kind is missing"),
        (toml(kind=""), "finding 1: kind is missing"),
        (toml(cases=None), "finding 1: cases is missing or empty"),
        (toml(cases=[]), "finding 1: cases is missing or empty"),
        (toml(reason=None), "finding 1: reason is missing"),
        (toml(reason=""), "finding 1: reason is missing or empty"),
        (toml(reason=0), "finding 1: reason: got 0; allowed is a string"),
        (toml(checks=0), "finding 1: checks: got 0; allowed is a list of strings"),
        (toml(subject=["torch"]), "subject: got ['torch']; allowed is a string"),
        (toml(checks="loss"), "checks: got 'loss'; allowed is a list of strings"),
        (toml(cases="a*"), "cases: got 'a*'; allowed is a list of strings"),
        (toml(cases=["a", 3]), "cases: got ['a', 3]; allowed is a list of strings"),
        (toml(reason=3), "reason: got 3; allowed is a string"),
        (toml(device=3), "device: got 3; allowed is a string"),
        (toml(sometimes="yes"), "sometimes: got 'yes'; allowed is true or false"),
        (toml(sometimes=1), "sometimes: got 1; allowed is true or false"),
        (toml(issue=["x"]), "issue: got ['x']; allowed is a string"),
        (toml(torch=2.1), "torch: got 2.1; allowed is a string"),
        (toml(torch="2.1"), "torch: got '2.1'; allowed are version specifiers, such as '>=2.1,<2.4'"),
        (toml(torch=">=two"), "torch: got '>=two'; allowed are version specifiers, such as '>=2.1,<2.4'"),
        (toml(torch=">=2.1 <2.4"), "torch: got '>=2.1 <2.4'; allowed are version specifiers, such as '>=2.1,<2.4'"),
        (toml(torch="\n"), None),
    ],
)
def test_a_list_is_refused_in_one_line_that_says_where(tmp_path, content, message):
    path = tmp_path / "list.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.replace("'\\n'", "''").encode())
    if message is None:  # an empty version means all versions
        assert len(read_list(path)) == 1
        return
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_list(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_read_is_an_os_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing.toml"):
        with pytest.raises(OSError, match=re.escape(str(path))):
            read_list(path)


def test_an_empty_list_expects_nothing(tmp_path):
    (tmp_path / "list.toml").write_text("# nothing is known to be wrong\n")
    assert read_list(tmp_path / "list.toml") == []


def test_a_list_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "list.toml"
    path.write_text(toml(torch=">=2.1,<3", device="cuda*", issue="https://example.org/1"))
    assert read_list(path) == [entry(torch=">=2.1,<3", device="cuda*", issue="https://example.org/1")]
    assert str(read_list(path)[0]) == "known (https://example.org/1)"
    path.write_text(f"{toml()}\nsometimes = true")
    assert read_list(path) == [entry(sometimes=True)]


@pytest.mark.parametrize(
    ("changed", "matches"),
    [
        ({}, True),
        ({"subject": "torch*"}, True),
        ({"subject": "*"}, True),
        ({"subject": "Torch"}, False),
        ({"subject": "torch_*"}, False),
        ({"checks": ["gradient", "loss"]}, True),
        ({"checks": ["gradient"]}, False),
        ({"checks": ["lo*"]}, False),  # the names of checks are not patterns
        ({"kind": "refused"}, False),
        ({"cases": ["a1"]}, True),
        ({"cases": ["b*", "?1"]}, True),
        ({"cases": ["a"]}, False),
        ({"cases": ["A*"]}, False),
        ({"cases": ["[ab]1"]}, True),
    ],
)
def test_an_entry_describes_a_finding_by_subject_check_kind_and_case(changed, matches):
    made = report(finding())
    mark(made, [entry(**changed)])
    (found,) = made.subjects[0].findings
    assert found.expected == ("known" if matches else None)
    assert len(made.findings) == (not matches)


@pytest.mark.parametrize(
    ("versions", "torch", "applies"),
    [
        ("", "2.13.0", True),
        ("", "2.14.0a0+git1234", True),
        ("", "my own build", True),
        ("==2.13.0", "2.13.0+cpu", True),
        ("==2.13.*", "2.13.1+cu130", True),
        (">=2.13", "2.13.0+cpu", True),
        (">2.13", "2.13.0+cpu", False),
        ("<=2.13", "2.13.0+cpu", True),
        ("<2.13", "2.13.0+cpu", False),
        ("<2.1", "2.0.1+cu117", True),
        ("<2.10", "2.9.0", True),  # 9 is less than 10, although the text "9" comes after "10"
        # A nightly build counts as its release: a bug that 2.14 fixes is fixed in 2.14.0a0.
        (">=2.14", "2.14.0a0+git1234", True),
        (">=2.14", "2.14.0.dev20260101+cpu", True),
        ("<2.14", "2.14.0a0+git1234", False),
        ("<2.14", "2.14.0.dev20260101+cpu", False),
        (">=2.1,<2.14", "2.13.0a0+34c6371d24.nv25.08", True),
        ("==2.14.0", "2.14.0a0+git1234", True),
        ("!=2.14.0", "2.14.0a0+git1234", False),
        (">=2.14", "2.14.0rc3", True),
        (">=2.1", "my own build", False),
    ],
)
def test_an_entry_is_about_the_versions_of_torch_that_it_names(versions, torch, applies):
    made = report(finding(), torch=torch)
    mark(made, [entry(torch=versions)])
    assert bool(made.findings) != applies
    assert made.fixed == []  # an entry about another version of torch does not count as fixed


@pytest.mark.parametrize(
    ("pattern", "here", "applies"),
    [("*", "cuda:0", True), ("cpu", "cpu", True), ("cpu", "cuda", False), ("cuda*", "cuda:1", True)],
)
def test_an_entry_is_about_the_devices_that_it_names(pattern, here, applies):
    made = report(finding(), device=here)
    mark(made, [entry(device=pattern)])
    assert bool(made.findings) != applies
    assert made.fixed == []


NUMBERS = Numbers((), math.inf, "0x7c00", 1.0, 0.0, 1.0, math.inf, math.inf)


@pytest.mark.parametrize(
    ("changed", "numbers", "matches"),
    [
        ({}, {}, True),
        ({"of": "loss under no_grad"}, {}, True),
        ({"of": "gradient under no_grad"}, {}, False),
        ({"of": ""}, {}, False),
        ({"kind": "refused"}, {}, False),
        ({"case": "b"}, {}, False),
        ({"subject": "mine"}, {}, False),
        ({}, {"got": 3.0}, False),
        ({}, {"versus": "other"}, False),
    ],
)
def test_an_entry_about_a_result_describes_it_in_every_check(changed, numbers, matches):
    one = replace(finding(check="no_grad"), of="loss", numbers=replace(NUMBERS, **numbers))
    of_results = entry(checks=[], results=("loss", "target_gradient"), got=("inf",))
    assert of_results.matches(replace(one, **changed), changed.get("subject", "torch")) is matches
    assert not entry(checks=["loss"]).matches(one, "torch")


@waits.float16
def test_a_wrong_number_of_torch_is_known_in_every_check_that_calls_the_loss():
    """A float16 sum overflows on this case, also under no_grad and with non-leaf logits."""
    case = Case.of("float16-5x5-large-probabilities-mean-weighted-expanded-target_strided-smooth1-seed4066419307")
    report = run(TORCH, case, (*SINGLE, *CIRCUMSTANCES), known=SHIPPED)
    found = {one.check for one in report.subjects[0].findings}
    assert found >= {"loss", "no_grad", "non_leaf", "alone"}
    assert not report.findings, report


def test_another_check_or_kind_on_the_same_case_stays_a_finding():
    made = report(finding(), finding(check="gradient"), finding(kind="refused"))
    mark(made, [entry()])
    assert [(found.check, found.kind) for found in made.findings] == [("gradient", "wrong"), ("loss", "refused")]
    assert not made.ok


def test_another_subject_with_the_same_finding_keeps_it():
    made = report(finding(), finding(subject="mine"))
    mark(made, [entry()])
    assert [found.subject for found in made.findings] == ["mine"]


def test_a_known_failure_that_no_longer_happens_is_reported_if_its_cases_ran():
    gone = entry(issue="pytorch#1")
    for ran, fixed in (
        ([("torch", "a1")], ["known (pytorch#1)"]),
        ([("torch", "a1"), ("torch", "a2")], ["known (pytorch#1)"]),
        ([("torch", "b1")], []),
        ([("mine", "a1")], []),
        ([], []),
    ):
        made = report(ran=ran)
        mark(made, [gone])
        assert made.fixed == fixed
        assert str(made).count("no longer happens: known (pytorch#1)") == len(fixed)
        assert made.to_json()["mended"] == fixed


def test_a_known_failure_that_happens_only_sometimes_is_not_reported_as_fixed():
    made = report(ran=[("torch", "a1")])
    mark(made, [entry(sometimes=True)])
    assert made.fixed == []
    made = report(finding())
    mark(made, [entry(sometimes=True)])
    assert made.subjects[0].findings[0].expected == "known"


@pytest.mark.parametrize("sums", ["mean", "sum"])
def test_sums_of_torch_on_cuda_may_differ_from_call_to_call(sums):
    """pytorch#46024: the order of a sum varies only with logits of three or more dimensions and a reduction."""
    known = next(one for one in SHIPPED if "repeat" in one.checks)
    assert known.sometimes
    assert known.applies("2.13.0", "cuda:0")
    assert not known.applies("2.13.0", "cpu")
    for case, covered in (
        (f"float32-3x5x4-normal-int64-{sums}-weighted", True),
        (f"bfloat16-2x5x3x2-large_offset-int64-{sums}", True),
        (f"float32-7x5-extreme-int64-{sums}", False),
        (f"float32-3x5x4-normal-probabilities-{sums}", False),
        ("float32-3x5x4-normal-int64-none", False),
    ):
        assert Case.of(case)
        assert known.covers("torch", case) == covered
        assert not known.covers("formula", case)


def test_an_entry_whose_checks_did_not_run_is_not_fixed():
    made = report(ran=[("torch", "a1")])
    mark(made, [entry(checks=["vmap"]), entry(checks=["vmap", "compile"], reason="another")])
    assert made.fixed == []


def test_one_case_that_still_fails_keeps_an_entry():
    made = report(finding(), ran=[("torch", "a2"), ("torch", "a3")])
    mark(made, [entry()])
    assert made.fixed == []


def test_a_finding_of_another_check_does_not_keep_an_entry():
    made = report(finding(check="gradient"))
    mark(made, [entry()])
    assert made.fixed == ["known"]
    assert made.findings


def test_an_entry_that_matches_the_finding_of_an_earlier_entry_is_not_fixed():
    made = report(finding())
    mark(made, [entry(reason="first"), entry(reason="second")])
    assert made.subjects[0].findings[0].expected == "first"
    assert made.fixed == []


LINEAR = LINEAR_NAMED[LINEAR_ALIAS]
SHIPPED = [known for known in torch_list() if known.subject != "loss_parallel"]
OF_RANKS = [known for known in torch_list() if known.subject == "loss_parallel"]
OF_LINEAR = torch_list(LINEAR_CROSS_ENTROPY)
PLANNED, THOROUGH = (plan(level, tuple(DTYPES), 0) for level in ("normal", "thorough"))


def test_the_shipped_list_is_about_torch_and_nothing_else():
    assert len(SHIPPED) >= 9
    for known in (*SHIPPED, *OF_RANKS):
        assert known.subject in ("torch", "torch*", "torch_nll", "loss_parallel")
        assert known.reason == known.reason.strip()
        assert not known.issue or known.issue.startswith("https://github.com/pytorch/pytorch/issues/")
    assert len({known.reason for known in torch_list()}) == len(torch_list())


def chosen(known):
    """Return some cases that an entry describes, and the plan of the lowest level that has such cases."""
    planned = PLANNED if described_of(known, PLANNED) else THOROUGH
    of = described_of(known, planned)
    applicable = [case for case in of if TORCH_NLL.not_applicable(case.build()) is None]
    of = applicable if known.subject == "torch_nll" else of
    return of[:: max(1, len(of) // 50)], planned


def described_of(known, planned):
    """Return the cases of a plan that a known failure matches, and on which the plan runs a check of the failure."""
    return [
        case
        for case, checks in planned.items()
        if (known.covers("torch", case.id) or known.covers("torch_nll", case.id))
        and (isinstance(case, BadInput) or {check.name for check in checks} & {*known.checks, *known.results})
    ]


@pytest.mark.parametrize("known", SHIPPED, ids=lambda known: re.sub(r"\W+", "_", known.reason)[:60])
def test_every_entry_of_the_shipped_list_happens_here(known):
    if not known.applies(torch.__version__, "cpu"):
        pytest.skip(f"needs torch {known.torch or 'of any version'} on {known.device}")
    cases, planned = chosen(known)
    made = run([TORCH, TORCH_NLL], cases, planned.get, known=[known])
    if not made.ran and (reasons := {reason for part in made.subjects for reason in part.not_applicable}):
        pytest.skip("; ".join(sorted(reasons)))
    assert made.ran
    assert made.fixed == []
    described = [found for part in made.subjects for found in part.findings if found.expected == str(known)]
    if not described and (reasons := reasons_not_run(known, made)):
        pytest.skip("; ".join(sorted(reasons)))
    assert described


@pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
@pytest.mark.parametrize("known", OF_RANKS, ids=lambda known: re.sub(r"\W+", "_", known.reason)[:60])
def test_every_entry_of_the_list_for_ranks_happens_here(known):
    if not known.applies(torch.__version__, "cpu"):
        pytest.skip(f"needs torch {known.torch} on {known.device}")
    checks = {*known.checks, *known.results}
    cases = [
        case.id
        for case, of_case in with_rank_checks(PLANNED, tuple(DTYPES), 0).items()
        if known.covers(known.subject, case.id) and checks & {check.name for check in of_case}
    ]
    cases = [case for case in cases if "-smooth" not in case]  # loss_parallel has no label_smoothing
    some = cases[:: max(1, len(cases) // 3)]  # few cases, since noticing a blocked rank takes ten seconds
    made = crossent.check(known.subject, ranks=2, level="normal", checks=checks, cases=some)
    assert known.sometimes or str(known) in {found.expected for found in made.subjects[0].findings}


def reasons_not_run(known, made):
    """Return the reasons why this version of torch ran no check of an entry; an empty set if a check ran."""
    if any(known.ran(part) for part in made.subjects):
        return set()
    outcomes = [outcome for part in made.subjects for outcome in part.outcomes.values()]
    reasons = {outcome.not_run.get(check, "") for outcome in outcomes for check in (*known.checks, *known.results)}
    return {reason for reason in reasons if reason.startswith(("needs a torch", "needs torch"))}


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
@pytest.mark.parametrize("known", OF_LINEAR, ids=lambda known: re.sub(r"\W+", "_", known.reason)[:60])
def test_every_entry_of_the_list_for_linear_cross_entropies_happens_here(known):
    planned = plan("normal" if known.sometimes else "quick", tuple(DTYPES), 0, LINEAR_CROSS_ENTROPY)
    matching = [case for case in planned if any(fnmatchcase(case.id, pattern) for pattern in known.cases)]
    if "split" in known.checks:  # few cases, so that the test takes only seconds
        matching = [case for case in matching if case.sizes[0] == 33]
    subjects = [subject for subject in LINEAR if fnmatchcase(subject.name, known.subject)]
    made = run(subjects, matching, planned.get, known=[known])
    assert made.fixed == []
    assert [found for part in made.subjects for found in part.findings if found.expected == str(known)]


def test_the_kinds_of_a_list_are_the_kinds_that_a_finding_can_have():
    assert {*KINDS} == {*ENDS}.union(*(recipe.kinds for recipe in RECIPES.values()))


def test_the_shipped_list_has_every_finding_of_torch():
    """The test runs a twentieth of the grid. `crossent check torch` runs the whole grid."""
    cases = [*list(grid())[::20], *BAD_INPUTS, *(case for case in EDGES if case.rows < 2000)]
    made = run([TORCH, TORCH_NLL], cases, known=SHIPPED)
    assert not made.findings, made


def test_a_refused_call_on_ranks_is_known_with_every_seed():
    case = "float64-7x5-normal-int64-none-weighted-rows"
    for check in ("empty_shard", "nested_context", "ignored_shard"):
        (known,) = [one for one in OF_RANKS if check in one.checks]
        assert known.covers("loss_parallel", case)
        assert known.covers("loss_parallel", f"{case}-seed7")


def test_loss_parallel_has_the_seed_0_by_default():
    assert chosen_seed(None, ["loss_parallel"], None) == 0
    assert chosen_seed(None, ["loss_parallel", "mine.py:loss"], None) == "random"
