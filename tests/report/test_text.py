"""The options that failing cases have in common."""

import pytest

import crossent
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
