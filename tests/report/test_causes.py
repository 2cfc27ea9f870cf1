"""The probable causes of findings, and the words, such as options, that failing cases have in common."""

import math
import zlib
from dataclasses import replace

import pytest
import torch
from support.checks import ALWAYS, CHECKS
from support.running import run

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUT_KINDS
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.linear.grid import linear_grid
from crossent.report.causes import causes, common
from crossent.report.clarity import FEATURE_OF, words_of
from crossent.report.findings import DEPENDS, Finding, Measured, Numbers, Outcome, SubjectReport
from crossent.report.report import Report
from crossent.report.text import plain_text
from crossent.subjects.features import FEATURES
from crossent.subjects.subject import Subject

PAIRS = [*grid(DTYPES, array="pairs"), Case("float32", (0, 5)), Case("float32", (4, 1))]
NUMBERS = Numbers((), 2.0, "", 1.0, 0.0, 0.1, 9.0, 10.0)


def without_its_weights(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Compute the loss, but without the weight in the part that label_smoothing adds."""
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
def test_the_choices_that_the_bug_needs_are_named(subject, check):
    findings = next(of for of in subject.sorts if of[0].check == check)
    assert str(common(subject, findings)).startswith("a weight, label_smoothing")


def test_the_failing_cases_with_these_choices_are_counted(subject):
    findings = next(of for of in subject.sorts if of[0].check == "loss")
    with_both = sum("-weight" in finding.case and "-smooth" in finding.case for finding in findings)
    assert f": {with_both} of {len(findings)} failing cases, " in str(common(subject, findings))


def test_a_single_case_has_no_common_choices(subject):
    assert common(subject, subject.findings[:1]) is None


def test_a_subject_that_fails_everywhere_has_no_common_choices():
    report = crossent.check(lambda x, y: x.sum() * 0 - 1, dtypes="float32", level="quick", without={"errors"})
    findings = next(of for of in report.subjects[0].sorts if of[0].check == "loss")
    assert common(report.subjects[0], findings) is None


def test_failures_that_depend_on_earlier_calls_say_so():
    """Every failing case also fails `repeat`."""
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
    """Return the report of a subject whose loss is wrong if a condition on logits, target and ignore_index is true."""
    subject = SubjectReport("mine")
    for case in [*grid(["float32"], array="pairs"), *list(grid(["float32"], array="size_triples"))[::2]]:
        inputs = case.build()
        failed = condition(inputs.input, inputs.target, inputs.options.get("ignore_index", -100))
        subject.outcomes[case.id] = Outcome(case.dtype, inputs.digest, checks={"loss": Measured(failed)})
        subject.findings += [Finding("mine", "loss", case.id, "wrong", "")] if failed else []
    return subject


@pytest.mark.parametrize(
    ("condition", "expected"),
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
        (is_unnormalised, ["a target of probabilities whose sum is not 1"]),
        (lambda x, y, ignored: x.dim() == 5, ["logits of 5 dimensions"]),
        (lambda x, y, ignored: bool(x.isneginf().any()), ["a class with a logit of -inf"]),
        (lambda x, y, ignored: not bool(x.isfinite().all()), ["logits that are not finite"]),
    ],
)
def test_the_size_and_the_inputs_that_a_bug_needs_are_named(condition, expected):
    subject = reported(condition)
    words = list(common(subject, subject.findings).words)
    assert set(words) >= set(expected)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (lambda case: case.bias != "no_bias", "a linear_bias"),
        (lambda case: not case.build().input.is_contiguous(), "non-contiguous input"),
        (lambda case: not case.build().options["linear_weight"].is_contiguous(), "non-contiguous linear_weight"),
        (lambda case: case.linear_layout == "linear_tied", "one storage for input and linear_weight"),
        (lambda case: case.hidden > 64, "more than 64 hidden units"),
        (lambda case: case.hidden == 1, "1 hidden unit"),
    ],
)
def test_the_arguments_of_a_linear_cross_entropy_that_a_bug_needs_are_named(condition, expected):
    subject = SubjectReport("mine")
    for case in linear_grid(["float32"], array="pairs"):
        failed = condition(case)
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks={"loss": Measured(failed)})
        subject.findings += [Finding("mine", "loss", case.id, "wrong", "")] if failed else []
    assert expected in common(subject, subject.findings).words
    assert not [word for case in subject.outcomes for word in words_of(case) if "contiguous logits" in word]


@pytest.mark.parametrize("word", [word for word in FEATURE_OF if word not in BAD_INPUT_KINDS])
def test_most_cases_with_the_word_of_a_feature_need_the_feature(word):
    """Not all of these cases need the feature. For example, a case of one row may have no ignored row."""
    is_linear = not any(word in words_of(case.id) for case in PAIRS)
    cases = list(linear_grid(["float32"], array="pairs")) if is_linear else PAIRS
    needs = [FEATURES[FEATURE_OF[word]].needs(case.build()) for case in cases if word in words_of(case.id)]
    assert sum(needs) > 0.5 * len(needs) > 0
    others = [FEATURES[FEATURE_OF[word]].needs(case.build()) for case in cases if word not in words_of(case.id)]
    assert not all(others)


def only_two_dimensions(input, target, ignore_index=-100, reduction="mean"):
    """Compute the loss of (N, C) logits and int64 class indices, and refuse other calls."""
    rows, classes = input.shape
    if target.dtype != torch.int64:
        raise TypeError(f"no {target.dtype} for {rows}×{classes}")
    return crossent.formula(input, target, None, ignore_index, reduction)


def test_the_features_that_refused_calls_need_are_named_and_once_declared_nothing_is_refused():
    report = crossent.check(only_two_dimensions, dtypes="float32", level="quick")
    found = causes(report.subjects[0])
    features = [cause.feature for cause in found]
    assert {"spatial", "unbatched", "probability_target", "uint8_target"} <= set(features)
    assert "" not in features
    assert sum(len(cause.findings) for cause in found) == len(report.findings)
    number = f"{len(report.findings)} findings"
    said = f"Missing features would explain {number}. Declare each feature that is missing on purpose"
    assert f"\n{said}: --without {' '.join(features)}, in Python without={features}\n" in str(report)
    again = crossent.check(only_two_dimensions, dtypes="float32", level="quick", without=features)
    assert [finding.headline for finding in again.findings] == []


def test_a_check_that_is_always_refused_is_the_lack_of_a_feature_that_no_passed_check_needs():
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(context, input, target):
            context.save_for_backward(input, target)
            return -torch.log_softmax(input, 1).gather(1, target[:, None])[:, 0].mean()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, upstream):
            logits, target = context.saved_tensors
            return upstream * (logits.softmax(1) - torch.nn.functional.one_hot(target, 5)) / len(target), None

    cases = [Case("float64", seed=seed) for seed in range(3)]
    report = run(Subject("mine", lambda x, y, **options: Loss.apply(x, y)), cases, [*ALWAYS, CHECKS["double_backward"]])
    needs = {check.name: tuple(check.needs) for check in CHECKS.values()}
    part = replace(report.subjects[0], needs=needs)
    assert [(cause.feature, cause.checks) for cause in causes(part)] == [("double_backward", {"double_backward": 3})]


def test_the_feature_that_a_message_suggests_is_named_and_not_an_earlier_one_that_the_check_needs():
    message = "memory: got 149 MiB\nIf this is intended, declare it: --without memory, in Python without=['memory']"
    finding = Finding("mine", "memory", "linear-float32-7x5-normal-int64-mean-hidden16", "wrong", message)
    outcome = Outcome("float32", 0, checks={"call": Measured(False), "memory": Measured(failed=True)})
    part = SubjectReport("mine", {finding.case: outcome}, [finding], needs={"memory": ("gradient", "memory")})
    assert [cause.feature for cause in causes(part)] == ["memory"]


def reported_by(wrong):
    """Return the report of a subject with three checks. `wrong` returns the names of the checks that fail on a case."""
    subject = SubjectReport("mine", order=("loss", "gradient", "row_sums"))
    for case in PAIRS:
        failed = wrong(case)
        checks = {check: Measured(check in failed, 9.0, 9.0) for check in subject.order}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=checks)
        subject.findings += [Finding("mine", check, case.id, "wrong", "", numbers=NUMBERS) for check in failed]
    return subject


def test_checks_that_fail_on_the_same_cases_have_one_cause():
    subject = reported_by(
        lambda case: ["loss", "gradient"] if case.label_smoothing and case.weight != "unweighted" else []
    )
    (cause,) = causes(subject)
    assert cause.checks == {"loss": len(cause.findings) // 2, "gradient": len(cause.findings) // 2}
    assert cause.common.words == ("a weight", "label_smoothing")


def test_two_bugs_are_two_causes_though_one_check_finds_both():
    subject = reported_by(
        lambda case: ["loss"] * (case.dtype == "float64") + ["gradient", "row_sums"] * (case.reduction == "sum")
    )
    words = {tuple(cause.checks): cause.common.words for cause in causes(subject)}
    assert words == {("loss",): ("float64",), ("gradient", "row_sums"): ("reduction='sum'",)}
    both = reported_by(lambda case: ["loss"] * (case.dtype == "float64" or case.label_smoothing == 1.0))
    assert {cause.common.words for cause in causes(both) if cause.common} >= {("float64",)}
    assert sum(len(cause.findings) for cause in causes(both)) == len(both.findings)


def test_a_wrong_loss_comes_before_more_wrong_target_gradients():
    """A wrong loss shows the bug best, even if the gradient of the target is wrong on more cases."""
    subject = SubjectReport("mine", order=("loss", "target_gradient"))
    for case in PAIRS:
        failed = ["loss"] * (case.dtype == "float64") + ["target_gradient"] * (case.reduction == "mean")
        subject.outcomes[case.id] = Outcome(
            case.dtype, "", checks={check: Measured(check in failed, 9.0, 9.0) for check in subject.order}
        )
        subject.findings += [Finding("mine", check, case.id, "wrong", "", numbers=NUMBERS) for check in failed]
    first, second = causes(subject)
    assert (list(first.checks), list(second.checks)) == (["loss"], ["target_gradient"])
    assert len(first.findings) < len(second.findings)


def with_numbers(subject, got):
    """Change the wrong number of each finding to the value that `got` returns for its case, and return the report."""
    for at, finding in enumerate(subject.findings):
        number = got(Case.of(finding.case))
        subject.findings[at] = replace(finding, numbers=replace(finding.numbers, got=number))
    return subject


def loss_and_gradient_of_means(case):
    return ["loss", "gradient"] * (case.reduction == "mean")


def test_a_nan_and_a_finite_error_of_one_mean_are_two_causes_if_other_cases_have_them():
    subject = with_numbers(
        reported_by(loss_and_gradient_of_means), lambda case: math.nan if case.label_smoothing else 2.0
    )
    assert {cause.common.words for cause in causes(subject)} == {
        ("label_smoothing", "reduction='mean'"),
        ("reduction='mean'",),
    }
    for cause in causes(subject):
        assert len({math.isnan(finding.numbers.got) for finding in cause.findings}) == 1
        assert set(cause.checks) == {"loss", "gradient"}


def test_a_nan_and_a_finite_error_that_no_choice_tells_apart_have_one_cause():
    subject = with_numbers(
        reported_by(loss_and_gradient_of_means), lambda case: math.nan if zlib.crc32(case.id.encode()) % 3 == 0 else 2.0
    )
    (cause,) = causes(subject)
    assert {math.isnan(finding.numbers.got) for finding in cause.findings} == {True, False}


def test_two_cases_of_nan_among_few_may_share_a_choice_by_chance_and_are_no_cause():
    subject = with_numbers(
        reported_by(loss_and_gradient_of_means), lambda case: math.nan if case.label_smoothing else 2.0
    )
    losses = [finding for finding in subject.findings if finding.check == "loss"]
    nan, finite = ([one for one in losses if math.isnan(one.numbers.got) is of] for of in (True, False))
    subject.findings = [*nan[:2], *finite[:3]]
    (cause,) = causes(subject)
    assert len(cause.findings) == 5


def test_a_nan_loss_and_a_finite_gradient_of_the_same_cases_have_one_cause():
    subject = reported_by(loss_and_gradient_of_means)
    for at, finding in enumerate(subject.findings):
        if finding.check == "loss":
            subject.findings[at] = replace(finding, numbers=replace(finding.numbers, got=math.nan))
    (cause,) = causes(subject)
    assert set(cause.checks) == {"loss", "gradient"}


def test_every_finding_has_exactly_one_cause():
    def wrong(case):
        return [check for check in ("loss", "gradient") if zlib.crc32(f"{check} {case.id}".encode()) % 3 == 0]

    subject = reported_by(wrong)
    given = [finding for cause in causes(subject) for finding in cause.findings]
    assert sorted(finding.id for finding in given) == sorted(finding.id for finding in subject.findings)


def test_the_example_of_a_cause_has_its_choices_and_a_finite_exact_value():
    numbers = {True: NUMBERS, False: replace(NUMBERS, exact=float("nan"))}
    subject = reported_by(lambda case: ["loss"] * (case.ignored != "kept" and case.reduction == "mean"))
    for at, finding in enumerate(subject.findings):
        subject.findings[at] = replace(finding, numbers=numbers[at == len(subject.findings) - 1])
    (cause,) = causes(subject)
    assert cause.example.id == subject.findings[-1].id
    assert cause.common.applies(cause.example.case)


@pytest.mark.parametrize("option", ["--grade B, in Python grade='B'", "--contract logsumexp --grade B, in Python x"])
def test_a_cause_that_a_weaker_promise_accepts_comes_after_a_smaller_cause_that_none_accepts(option):
    subject = reported_by(
        lambda case: ["loss"] * (case.dtype == "float64") + ["row_sums"] * (case.label_smoothing == 1.0)
    )
    first = causes(subject)[0]
    for at, finding in enumerate(subject.findings):
        if finding.check == first.findings[0].check:
            message = f"{finding.message}\nIf this is intended, declare it: {option}"
            subject.findings[at] = replace(finding, message=message)
    later = causes(subject)
    assert later[-1].checks == first.checks
    assert len(later[0].findings) < len(first.findings)


def test_the_first_finding_of_a_report_is_the_first_that_the_text_shows():
    """The cause with the most findings comes first, although another cause has an earlier case."""
    subject = reported_by(
        lambda case: ["loss"] * (case.dtype == "float64") + ["row_sums"] * (case.label_smoothing == 1.0)
    )
    report = Report({}, [subject])
    shown = next(line for line in str(report).splitlines() if line.startswith("mine: "))
    assert shown == report.findings[0].headline != subject.findings[0].headline
    assert sorted(finding.id for finding in report.findings) == sorted(finding.id for finding in subject.findings)


def test_vv_has_the_id_of_each_finding_and_v_one_of_a_cause():
    """The id of a finding has the name of its case, such as the name of a published bug."""
    subject = reported_by(lambda case: ["loss"] * (case.dtype == "float64"))
    report = Report({}, [subject])
    of = {verbosity: plain_text(report.render(verbosity)).splitlines() for verbosity in (1, 2)}
    ids = [f"    {finding.id}" for finding in report.findings]
    assert len(ids) > 10
    assert [line for line in of[2] if line in ids] == [f"    {finding.id}" for finding in causes(subject)[0].findings]
    assert [line for line in of[1] if line in ids] == []


def test_vv_has_the_id_of_each_refused_call():
    report = crossent.check(only_two_dimensions, dtypes="float32", level="quick", cases="*-uint8-*")
    lines = plain_text(report.render(2)).splitlines()
    assert len(report.findings) > 2
    assert all(f"    {finding.id}" in lines for finding in report.findings)


def test_refusals_on_few_cases_are_not_explained_by_an_option_that_they_share_by_chance():
    means = [case for case in PAIRS if case.reduction == "mean"]
    subject = SubjectReport("mine", needs={"vmap": ("vmap",)})
    for case in PAIRS:
        failed = {"vmap": case in means[:3]} if case in means[:3] or case not in means else {}
        checks = {"call": Measured()} | {check: Measured(of) for check, of in failed.items()}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=checks)
    subject.findings = [Finding("mine", "vmap", case.id, "refused", "RuntimeError: no batch") for case in means[:3]]
    assert [cause.feature for cause in causes(subject)] == [""]
