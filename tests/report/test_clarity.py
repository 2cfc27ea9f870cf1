"""A report shows the plainest finding of each group first, and names the published bug with the same trigger."""

import pytest
from support.running import run

import crossent
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.report.clarity import by_plainness, same_trigger
from crossent.report.findings import Finding, Numbers, SubjectReport
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
    assert subject.findings == [refused, loss, faint, plain, relation]  # as in the document


def test_the_message_of_a_number_has_the_count_that_is_read_here():
    wrong = Subject("mine", lambda *given, **options: crossent.formula(*given, **options) * 2)
    (found,) = (one for one in run(wrong, Case.of(SMALL)).findings if one.check == "loss")
    few = Finding(**{**vars(found), "message": found.message.replace(" 7 / 7 ", " 1 / 7 ")})
    assert few.message != found.message
    assert by_plainness(found) < by_plainness(few)


def test_a_finding_on_a_case_of_the_corpus_names_the_bug_with_the_same_trigger():
    said = "tracel-ai/burn#5568 has the same trigger: The mean divides by the weight of all rows, "
    assert same_trigger("loss", BURN).startswith(said)
    assert same_trigger("loss", BURN.partition("/")[2]).startswith(said)
    assert same_trigger("loss", BURN + "-seed5").startswith(said)
    assert same_trigger("state", BURN) == ""  # the bug shows in other checks
    assert same_trigger("loss", "float32-7x5-normal-int64-mean-weighted-ignored_zero-window") == ""
    assert same_trigger("errors", "label_smoothing_nan").startswith("a known bug has the same trigger: ")
    assert same_trigger("errors", "reduction_unknown") == ""
    lines = str(finding(2.0, case=BURN)).splitlines()
    assert [line for line in lines if line.startswith(f"  corpus  {said}")]
    assert not any("corpus" in line for line in str(finding(2.0, case="float32-7x6-normal-int64-mean")).splitlines())


def test_a_bug_of_the_name_of_the_case_is_named_before_others_of_the_same_case():
    shared = [bug for bug in bugs() for case in bug.cases if case == Case.of(SMALL) and "loss" in bug.checks]
    assert len(shared) >= 2
    for bug in shared:
        told = same_trigger("loss", f"{bug.cases[0].name}/{SMALL}")
        assert told.startswith(f"{bug.issues[0]} has the same trigger: {bug.breaks} The same is true of ")
        assert "\n" not in told
        assert len(told) < 300
