"""The causes of findings that a missing feature, a declaration, another dtype or a factor explains."""

from dataclasses import replace

import pytest
import torch

from crossent.cases.axes import DENSE_TARGETS, DTYPES, HALF_DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.linear.grid import linear_grid
from crossent.report.causes import Cause, causes
from crossent.report.expected_findings import KINDS
from crossent.report.findings import Finding, Measured, Numbers, Outcome, SubjectReport
from crossent.report.report import Report
from crossent.report.text import explained
from crossent.trials.call import dtype_and_shape
from crossent.words import as_options

PAIRS = list(grid(DTYPES, array="pairs"))
NUMBERS = Numbers((), 2.0, "", 1.0, 0.0, 0.1, 9.0, 10.0)


def with_calls(judge):
    """Return a subject's report. For a case, `judge` returns the failed check and its message, or None for a pass."""
    subject = SubjectReport("mine", order=("call", "result", "loss"))
    for case in PAIRS:
        check, message = judge(case) or ("", "")
        order = subject.order[: subject.order.index(check) + 1] if check in ("call", "result") else subject.order
        checks = {name: Measured(name == check) for name in order}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=checks)
        kind = "refused" if check == "call" else "wrong"
        subject.findings += [Finding("mine", check, case.id, kind, message)] if check else []
    return subject


def is_index(case):
    return case.target not in DENSE_TARGETS


def only_probabilities(case):
    """Judge a subject without class indices: most calls raise, with two messages, and unbatched losses are wrong."""
    if is_index(case):
        message = "no pixels" if len(case.sizes) > 2 else "no rows"
        return ("loss", "") if len(case.sizes) == 1 else ("call", f"ValueError: {message}")
    return None


def test_calls_refused_with_several_messages_lack_one_feature_though_some_calls_return_a_wrong_loss():
    found = causes(with_calls(only_probabilities))
    refused = [cause for cause in found if cause.findings[0].kind == "refused"]
    assert [cause.feature for cause in refused] == ["index_target"]
    assert len({finding.message for finding in refused[0].findings}) == 2
    assert [cause.lacks for cause in found if cause.findings[0].check == "loss"] == ["index_target"]


def test_thousands_of_refused_calls_are_not_compared_in_pairs(monkeypatch):
    subject = with_calls(only_probabilities)
    monkeypatch.setattr(Finding, "__eq__", lambda finding, other: pytest.fail("the time grows with the square"))
    assert "index_target" in [cause.feature for cause in causes(subject)]


def test_a_linear_cross_entropy_that_refuses_a_bias_lacks_the_bias():
    subject = SubjectReport("mine", order=("call",))
    for case in linear_grid(["float32"], array="pairs"):
        refused = case.bias != "no_bias"
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks={"call": Measured(refused)})
        subject.findings += [Finding("mine", "call", case.id, "refused", "ValueError: no bias")] if refused else []
    assert [cause.feature for cause in causes(subject)] == ["linear_bias"]


def test_a_refusal_by_another_check_is_explained_by_the_feature_that_calls_lack():
    subject = with_calls(only_probabilities)
    case = next(case for case in PAIRS if is_index(case) and len(case.sizes) == 2)
    subject.findings.append(Finding("mine", "no_grad", case.id, "refused", "ValueError: no rows"))
    assert {cause.feature for cause in causes(subject) if "no_grad" in cause.checks} == {"index_target"}


def test_a_cause_of_wrong_results_names_the_feature_that_no_right_result_needs():
    subject = with_calls(lambda case: ("loss", "") if len(case.sizes) > 2 else None)
    (cause,) = causes(subject)
    assert cause.lacks == "spatial"
    assert "  declare --without spatial, in Python without=['spatial'], if the feature is missing on purpose" in str(
        Report({}, [subject])
    )
    part = with_calls(lambda case: ("loss", "") if len(case.sizes) > 2 and case.reduction == "mean" else None)
    assert [cause.lacks for cause in causes(part)] == [""]


def test_a_check_that_always_fails_names_the_feature_that_no_passed_check_needs():
    subject = SubjectReport("mine", needs={"autocast": ("autocast",)})
    for case in PAIRS[:9]:
        checks = {"call": Measured(), "loss": Measured(), "autocast": Measured(True)}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=checks)
        subject.findings.append(Finding("mine", "autocast", case.id, "wrong", "", numbers=NUMBERS))
    assert [cause.lacks for cause in causes(subject)] == ["autocast"]


def test_of_several_features_that_a_check_needs_the_one_that_most_failing_checks_need_explains_it():
    # The second derivative may work: `hessian` fails because it uses torch.func, like the other two checks.
    needs = {"vmap": ("vmap",), "func_grad": ("vmap",), "hessian": ("double_backward", "vmap")}
    subject = SubjectReport("mine", needs=needs)
    for case in PAIRS[:9]:
        checks = {"call": Measured(), "loss": Measured(), **dict.fromkeys(needs, Measured(True))}
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks=checks)
        subject.findings += [Finding("mine", name, case.id, "refused", "raised") for name in needs]
    assert {cause.feature for cause in causes(subject)} == {"vmap"}


def test_findings_that_are_right_under_a_declaration_are_a_separate_cause():
    zero = f"If this is intended, declare it: {as_options(without=['nan_mean'])}"

    def judge(case):
        if case.reduction == "mean" and case.ignored == "ignored_all":
            return "loss", zero
        return ("loss", "") if case.label_smoothing and case.weight != "unweighted" else None

    found = causes(with_calls(judge))
    declared = [cause for cause in found if cause.declaration]
    assert [cause.declaration for cause in declared] == ["nan_mean"]
    assert {finding.message for finding in declared[0].findings} == {zero}
    assert [cause.lacks for cause in declared] == [""]


def test_losses_of_another_dtype_have_one_cause_whatever_their_shape():
    def judge(case):
        shape = () if case.reduction != "none" else case.sizes[:1]
        got, due = dtype_and_shape(torch.float32, shape), dtype_and_shape(DTYPES[case.dtype], shape)
        declare = (
            f"\nIf float32 is intended: {as_options(without=['half_result'])}"
            if DTYPES[case.dtype] in HALF_DTYPES
            else ""
        )
        return ("result", f"loss: got {got}; expected {due}{declare}") * (case.dtype != "float32")

    found = causes(with_calls(lambda case: judge(case) or None))
    assert [(cause.declaration, cause.lacks) for cause in found] == [("half_result", ""), ("", "float64")]


def test_the_example_names_the_factor_that_the_most_findings_share_and_few_others():
    subject = with_calls(lambda case: ("loss", "") if case.reduction == "mean" else None)
    subject.findings = [replace(finding, numbers=NUMBERS) for finding in subject.findings]
    lines = ["1 / rows or 1 / batch or 1 / classes", "1 / classes or 1 / 2", "1 / classes", "1 / rows"]
    for at, line in enumerate(lines):
        message = f"Mismatched elements: 1 / 1 (100.0%)\nThe number is the exact value times 0.2: {line}"
        subject.findings[at] = replace(subject.findings[at], message=message)
    (cause,) = causes(subject)
    assert cause.example.message.endswith(": 1 / classes")


def test_vague_words_give_way_to_words_of_which_nearly_all_cases_fail():
    """Cases with default options may fail more often than other cases by chance, but their words are vague."""
    plain = [Case("float32", seed=seed) for seed in range(40)]
    weighted = [Case("float32", weight="weighted", seed=seed) for seed in range(8)]
    other = [Case("float64", sizes=(9, 4, 2), reduction="sum", seed=seed) for seed in range(60)]
    subject = SubjectReport("mine", order=("loss",))
    for case in (*plain, *weighted, *other):
        failed = case in weighted or case in plain[:8]
        subject.outcomes[case.id] = Outcome(case.dtype, "", checks={"loss": Measured(failed)})
        subject.findings += [Finding("mine", "loss", case.id, "wrong", "", numbers=NUMBERS)] * failed
    assert "a weight" in causes(subject)[0].common.words


def explained_words(*findings):
    """Return the words for findings that a missing feature explains, each given as (check, kind)."""
    pairs = zip(PAIRS, findings, strict=False)
    return explained(Cause([Finding("mine", check, case.id, kind, "") for case, (check, kind) in pairs]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_about_a_missing_feature_have_a_phrase_for_each_kind_of_finding(kind):
    said = explained_words(*[("arguments", kind)] * 2)
    assert said.startswith("2 calls ")
    assert kind in ("crashed", "hung") or said != f"2 calls {kind} in the check arguments"


def test_the_words_about_a_missing_feature_say_what_the_calls_did():
    changed = ("arguments", "changed_input")
    assert explained_words(changed, changed) == "2 calls wrote into an argument in the check arguments"
    assert explained_words(*[("errors", "accepted")] * 2) == "2 bad inputs accepted"
    assert explained_words(*[("errors", "wrong")] * 2) == "2 bad inputs raised another class of error"
    assert explained_words(("memory", "wrong")) == "1 call took too much memory in the check memory"


def test_the_words_about_a_missing_feature_name_all_checks_and_count_each_kind():
    said = explained_words(("double_backward", "refused"), ("hessian", "refused"))
    assert said == "2 calls raised in the checks double_backward, hessian"
    said = explained_words(("errors", "accepted"), ("errors", "crashed"))
    assert said == "1 bad input accepted, 1 bad input crashed"
    said = explained_words(("loss", "refused"), ("loss", "wrong"), ("loss", "refused"))
    assert said == "2 calls raised, 1 call gave a wrong result in the check loss"


def test_one_missing_feature_is_in_the_singular():
    subject = with_calls(lambda case: ("call", "ValueError: no rows") if is_index(case) else None)
    (line,) = [line for line in str(Report({}, [subject])).splitlines() if "issing feature" in line]
    said = f"A missing feature would explain {len(subject.findings)} findings. If it is missing on purpose, declare it"
    assert line == f"{said}: --without index_target, in Python without=['index_target']"


def test_the_words_about_a_missing_feature_repeat_an_unknown_kind_of_a_file():
    assert explained_words(*[("loss", "odd")] * 2) == "2 calls odd in the check loss"
