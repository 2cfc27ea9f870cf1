"""A report shows the clearest finding of each group first, and names the published bug with the same trigger."""

import pytest
from support.running import run

import crossent
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.cases.grid import grid
from crossent.report.causes import causes, published
from crossent.report.clarity import by_plainness, similarity_key
from crossent.report.findings import Finding, Measured, Numbers, Outcome, SubjectReport
from crossent.report.html import page
from crossent.subjects.subject import Subject

SMALL, WIDE = "float32-7x5-normal-int64-none-rows", "float32-2x1000-normal-int64-none-rows"
BURN = "burn-5568/float32-7x5-normal-int64-mean-weighted-ignored_zero"


def finding(ratio=None, wrong=7, case=SMALL, check="gradient", kind="wrong"):
    numbers = None if ratio is None else Numbers((0,), 1.0, "0x0", 0.0, 0.0, 1.0, ratio, ratio)
    return Finding("mine", check, case, kind, f"Mismatched elements: {wrong} / 35 (1.0%)", numbers=numbers)


@pytest.mark.parametrize(
    ("plainer", "other"),
    [
        (finding(2e9), finding(1.1)),
        (finding(20.0), finding(9.0)),
        (finding(float("nan")), finding(900.0)),
        (finding(float("inf")), finding(900.0)),
        (finding(1e5), finding(1e9, case=WIDE)),
        (finding(1e5, 35), finding(1e9, 1)),
        (finding(1e5), finding(1e9, case=SMALL + "-window")),
        (finding(1e5), finding(1e9, case="float32-7x5-subnormal-int64-none-rows")),
        (finding(), finding(900.0)),
    ],
)
def test_one_finding_is_plainer_than_another(plainer, other):
    assert by_plainness(plainer) < by_plainness(other)


def test_the_first_of_a_group_and_the_first_group_are_the_plainest():
    faint, plain = finding(1.5, 1), finding(1e30)
    loss = finding(1.2, check="loss")
    relation = finding(1e30, check="shift")
    relation = Finding(**{**vars(relation), "numbers": Numbers(**{**vars(relation.numbers), "versus": "other"})})
    refused = finding(check="call", kind="refused")
    subject = SubjectReport("mine", findings=[refused, loss, faint, plain, relation])
    subject.order = ("call", "loss", "gradient", "shift")
    assert subject.sorts == [[plain, faint], [loss], [relation], [refused]]
    assert subject.findings == [refused, loss, faint, plain, relation]  # the JSON document keeps the given order


def test_by_plainness_reads_the_count_of_wrong_numbers_from_the_message():
    wrong = Subject("mine", lambda *given, **options: crossent.formula(*given, **options) * 2)
    (found,) = (one for one in run(wrong, Case.of(SMALL)).findings if one.check == "loss")
    few = Finding(**{**vars(found), "message": found.message.replace(" 7 / 7 ", " 1 / 7 ")})
    assert few.message != found.message
    assert by_plainness(found) < by_plainness(few)


@pytest.mark.parametrize(
    ("got", "expected", "alike"),
    [
        ("float32 with shape (3, 5)", "float16 with shape (3, 5)", True),
        ("float32 with shape (3, 5) on cuda:0", "float16 with shape (3, 5) on cuda:0", True),
        ("float32 with shape (3, 5)", "float16 with shape (3,)", False),
        ("float32 with shape (3, 5)", "float16 with shape (3, 5) on cuda:0", False),
        ("float32 with shape (3, 5) on cuda:0", "float16 with shape (3, 5)", False),
    ],
)
def test_findings_are_similar_if_only_the_dtype_of_a_result_is_wrong(got, expected, alike):
    key, _ = similarity_key(Finding("mine", "result", SMALL, "wrong", f"loss: got {got}; expected {expected}"))
    assert (key == "loss: got another dtype") == alike


CASES = list(dict.fromkeys([*grid(["float32"], array="pairs"), *(case for bug in bugs() for case in bug.cases)]))


def sentence_about(wrong, checks=("loss", "gradient")):
    """Return the sentence about the first cause of a subject for which `checks` fail if `wrong(case)` is true."""
    subject = SubjectReport("mine")
    for case in CASES:
        failed = case.tiled == 1 and wrong(case)
        measured = {check: Measured(failed and check in checks) for check in ("loss", "gradient")}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=measured)
        subject.findings += [finding(2.0, case=case.id, check=check) for check in checks] if failed else []
    return published(subject, causes(subject)[0])


def is_weighted_mean(case):
    return case.weight != "unweighted" and case.reduction == "mean"


def smooths_ignored_rows(case):
    return case.label_smoothing > 0 and case.ignored != "kept"


@pytest.mark.parametrize(
    ("wrong", "start"),
    [
        (
            is_weighted_mean,
            "iree-org/iree#24228 has the same trigger: The weighted mean divides by the number of rows.",
        ),
        (smooths_ignored_rows, "pytorch/pytorch#73205 has the same trigger: Label smoothing counts the ignored rows."),
    ],
)
def test_a_cause_names_the_bug_whose_trigger_distinguishes_the_failing_cases(wrong, start):
    assert sentence_about(wrong).startswith(start)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda case: True,  # no word distinguishes the failing cases
        lambda case: case.reduction == "mean",  # every bug of the mean needs a further option
        lambda case: case.classes % 2 == 1,  # most cases of the corpus have an odd number of classes
        lambda case: is_weighted_mean(case) and case.target == "int64" and case.label_smoothing > 0,
    ],
)
def test_a_bug_whose_trigger_does_not_distinguish_the_failing_cases_is_not_named(wrong):
    assert any(wrong(case) and "loss" in bug.checks for bug in bugs() for case in bug.cases)
    assert sentence_about(wrong) == ""


def test_a_bug_that_leaves_the_loss_right_is_not_named_where_the_loss_is_wrong():
    def is_none(case):
        return case.reduction == "none"

    assert sentence_about(is_none, ["gradient"]).startswith(
        "microsoft/DirectML#739 has the same trigger: With reduction 'none'"
    )
    assert "DirectML" not in sentence_about(is_none)


@pytest.mark.parametrize(
    ("bad_input", "start"),
    [("label_smoothing_nan", "a known bug has the same trigger: "), ("reduction_unknown", "")],
)
def test_an_accepted_bad_input_names_the_bug_that_accepts_it(bad_input, start):
    subject = SubjectReport("mine", {bad_input: Outcome("float32", "", checks={"errors": Measured(True)})})
    subject.findings = [finding(case=bad_input, check="errors", kind="accepted")]
    sentence = published(subject, causes(subject)[0])
    assert sentence.startswith(start)
    assert bool(sentence) == bool(start)


def test_the_text_and_the_page_name_the_bug_of_a_cause():
    """A single finding names no bug, because its case may be the trigger of a bug by chance."""
    twice = Subject("mine", lambda *given, **options: crossent.formula(*given, **options) * 2)
    report = run(twice, BURN)
    passing = [case for case in CASES if case.ignored == "kept"][:20]
    report.subjects[0].outcomes |= {
        case.id: Outcome("float32", "", checks={"loss": Measured(), "gradient": Measured()}) for case in passing
    }
    (line,) = (line for line in str(report).splitlines() if line.startswith("  corpus  "))
    assert line.startswith("  corpus  tracel-ai/burn#5568 has the same trigger: The mean divides by the weight of all ")
    assert "tracel-ai/burn#5568</a> has the same trigger: The mean" in page(report)
    assert not any("corpus" in str(one) for one in report.findings)
