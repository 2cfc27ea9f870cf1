"""The options that failing cases have in common."""

import pytest

import crossent
from crossent.report.findings import DEPENDS
from crossent.report.text import common


def without_its_weights(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Right, but for label_smoothing, which does without the weights."""
    options = {"ignore_index": ignore_index, "reduction": "sum" if reduction == "mean" else reduction}
    loss = crossent.formula(input, target, weight, **options)
    if label_smoothing:
        smooth = crossent.formula(input, target, label_smoothing=1.0, **options)
        loss = (1 - label_smoothing) * loss + label_smoothing * smooth
    if reduction != "mean":
        return loss
    kept = target != ignore_index
    weights = input.new_ones(input.shape[1]) if weight is None else weight
    return loss / (weights[target.where(kept, target.new_zeros(()))] * kept).sum()


LACKS = {"unbatched", "spatial", "probability_target", "uint8_target", "empty", "errors", "compile", "vmap"}


@pytest.fixture(scope="module")
def subject():
    report = crossent.check(without_its_weights, dtypes="float64", level="normal", without=LACKS)
    return report.subjects[0]


@pytest.mark.parametrize("check", ["loss", "gradient"])
def test_the_choices_that_the_bug_needs_are_told(subject, check):
    findings = next(of for of in subject.sorts if of[0].check == check)
    assert common(subject, findings).startswith("a weight, label_smoothing: ")


def test_how_many_cases_have_them_is_counted(subject):
    findings = next(of for of in subject.sorts if of[0].check == "loss")
    with_both = sum("-weight" in finding.case and "-smooth" in finding.case for finding in findings)
    assert f": {with_both} of {len(findings)} failing cases, " in common(subject, findings)


def test_of_a_single_case_nothing_is_told(subject):
    assert common(subject, subject.findings[:1]) == ""


def test_where_it_holds_nowhere_nothing_is_told():
    report = crossent.check(lambda x, y: x.sum() * 0 - 1, dtypes="float32", level="quick", without={"errors"})
    findings = next(of for of in report.subjects[0].sorts if of[0].check == "loss")
    assert common(report.subjects[0], findings) == ""


def test_that_the_result_depends_on_earlier_calls_is_told():
    """Every case that fails `repeat` too has its own result from a call before."""
    calls = []

    def counts(input, target, **options):
        calls.append(1)
        return crossent.formula(input, target, **options) * (1.01 if len(calls) % 5 == 0 else 1)

    without = {"unbatched", "spatial", "probability_target", "empty", "errors", "compile", "vmap"}
    report = crossent.check(counts, dtypes="float32", level="quick", without=without)
    groups = {of[0].check: of for of in report.subjects[0].sorts}
    assert common(report.subjects[0], groups["loss"]).startswith(f"{DEPENDS}: ")
    assert DEPENDS not in common(report.subjects[0], groups["repeat"])
