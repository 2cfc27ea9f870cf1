"""The options that failing cases have in common."""

import pytest
import torch
from support.running import run

import crossent
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.report.causes import common
from crossent.report.findings import DEPENDS, Finding, Measured, Outcome, SubjectReport


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
    assert str(common(subject, findings)).startswith("a weight, label_smoothing")


def test_how_many_cases_have_them_is_counted(subject):
    findings = next(of for of in subject.sorts if of[0].check == "loss")
    with_both = sum("-weight" in finding.case and "-smooth" in finding.case for finding in findings)
    assert f": {with_both} of {len(findings)} failing cases, " in str(common(subject, findings))


def test_of_a_single_case_nothing_is_told(subject):
    assert common(subject, subject.findings[:1]) is None


def test_where_it_holds_nowhere_nothing_is_told():
    report = crossent.check(lambda x, y: x.sum() * 0 - 1, dtypes="float32", level="quick", without={"errors"})
    findings = next(of for of in report.subjects[0].sorts if of[0].check == "loss")
    assert common(report.subjects[0], findings) is None


def test_that_the_result_depends_on_earlier_calls_is_told():
    """Every case that fails `repeat` too has its own result from a call before."""
    calls = []

    def counts(input, target, **options):
        calls.append(1)
        return crossent.formula(input, target, **options) * (1.01 if len(calls) % 5 == 0 else 1)

    report = run(counts, [Case("float32", reduction="none", seed=seed) for seed in range(20)])
    groups = {of[0].check: of for of in report.subjects[0].sorts}
    assert common(report.subjects[0], groups["loss"]).words == [DEPENDS]
    assert DEPENDS not in str(common(report.subjects[0], groups["repeat"]))


def classes_of(input):
    return input.shape[min(1, input.dim() - 1)]


def has_low_row(input, target, ignore_index):
    return bool((input < -100).all(min(1, input.dim() - 1)).any())


def is_unnormalised(input, target, ignore_index):
    axis = min(1, input.dim() - 1)
    return target.is_floating_point() and bool(((target.sum(axis) - 1).abs() > 0.01).any())


def reported(condition):
    """The report of a subject that is wrong where a condition holds on the logits, the target and ignore_index."""
    subject = SubjectReport("mine")
    for case in [*grid(["float32"], array="pairs"), *list(grid(["float32"], array="size_triples"))[::2]]:
        inputs = case.build()
        failed = condition(inputs.logits, inputs.target, inputs.options.get("ignore_index", -100))
        subject.outcomes[case.id] = Outcome(case.dtype, inputs.digest, checks={"loss": Measured(failed)})
        subject.findings += [Finding("mine", "loss", case.id, "wrong", "")] if failed else []
    return subject


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (lambda x, y, ignored: classes_of(x) > 256, ["more than 256 classes"]),
        (lambda x, y, ignored: classes_of(x) > 4096, ["more than 4096 classes"]),
        (lambda x, y, ignored: 256 < classes_of(x) <= 1024, ["257 to 1024 classes"]),
        (lambda x, y, ignored: x.numel() > 128 * classes_of(x), ["more than 128 rows"]),
        (lambda x, y, ignored: 16 < x.numel() / classes_of(x) <= 32, ["17 to 32 rows"]),
        (
            lambda x, y, ignored: classes_of(x) > 256 and y.is_floating_point(),
            ["more than 256 classes", "class probabilities"],
        ),
        (
            lambda x, y, ignored: x.numel() > 128 * classes_of(x) and y.dtype == torch.uint8,
            ["more than 128 rows", "uint8 targets"],
        ),
        (has_low_row, ["a row of logits far below zero"]),
        (lambda x, y, ignored: 0 <= ignored < classes_of(x), ["an ignore_index that is a class"]),
        (is_unnormalised, ["a target whose sum is not 1"]),
    ],
)
def test_the_size_and_the_inputs_that_a_bug_needs_are_told(condition, told):
    subject = reported(condition)
    words = list(common(subject, subject.findings).words)
    assert set(words) >= set(told)
