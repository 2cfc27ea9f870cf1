"""Checks of one call without an exact value: each catches its own kind of wrong cross-entropy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.finding import by_hand, found, part_of, reduced
from support.running import trial_of

import crossent
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.checks import single
from crossent.numerics.bounds.rounding import safe
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.subjects.subject import Subject
from crossent.trials.exact import rows_of
from crossent.trials.trial import Question

U = 2.0**-53


def measured(check, case, loss=crossent.formula):
    """Return the single difference or problem that a check yields on a case."""
    (found,) = check.run(trial_of(Question(case), Subject("mine", loss)))
    return found


def test_a_negative_loss_is_caught():
    def without_bias(logits, target, reduction, **options):
        """apple/ml-cross-entropy#52: the bias is added to the logit of the true class, but not in the sum."""
        return reduced(torch.logsumexp(logits, 1) - logits.gather(1, target[:, None])[:, 0] - 1, reduction)

    ((kind, message),) = found("sign", without_bias, "float32-7x5-confident-int64-none-rows")
    assert kind == "wrong"
    assert "loss" in message


def test_a_loss_may_be_below_zero_by_its_bound_and_no_more():
    def constant(value):
        return lambda logits, target, **options: crossent.formula(logits, target, **options) * 0 + value

    case = "float32-17x3-flat-int64-mean"
    trial = trial_of(Question(Case.of(case)), Subject("mine", crossent.formula))
    bound = trial.bounds(trial.got, trial.question.exact)["loss"].item()
    assert 0 < bound < 1e-5
    assert not found("sign", constant(-0.99 * bound), case)
    assert found("sign", constant(-1.01 * bound), case)


def test_a_gradient_that_does_not_sum_to_zero_is_caught():
    rounded = by_hand(lambda probs, hot, upstream: (probs.bfloat16().float() - hot) * upstream[:, None])
    ((_, message),) = found("row_sums", rounded, "float32-7x5-normal-int64-none-rows")
    assert "gradient" in message


@pytest.mark.parametrize("numbers", [(math.inf, -math.inf), (math.inf, 0.0), (math.nan, 0.0)])
def test_a_row_with_a_number_that_is_not_finite_does_not_sum_to_zero(numbers):
    """A row with NaN or infinity is a finding. torch before 2.8 returns such rows in bfloat16 for three dimensions."""

    def infinite(probs, hot, upstream):
        gradient = (probs - hot) * upstream[:, None]
        gradient[3, :2] = torch.tensor(numbers)
        return gradient

    ((kind, _),) = found("row_sums", by_hand(infinite), "float32-7x5-normal-int64-none-rows")
    assert kind == "wrong"


def test_row_sums_name_the_row_of_a_tensor_with_further_dimensions():
    def wrong(logits, target, **options):
        extra = torch.zeros_like(logits)
        extra[2, 3, 1] = 1.0
        return crossent.formula(logits, target, **options) + ((logits - logits.detach()) * extra).sum()

    case = Case.of("float64-3x5x4-normal-int64-sum")
    (finding,) = part_of(Subject("mine", wrong), case, "row_sums").findings
    assert finding.numbers.index == (2, 1)


def test_rows_in_which_a_number_has_no_bound_are_not_judged():
    case = Case.of("float32-7x5-nan_ignored-int64-sum-ignored")
    measured = part_of(FORM_SUBJECTS["formula"], case, "row_sums").outcomes[case.id].checks["row_sums"]
    ignored = int((case.build().target == 255).sum())
    assert 0 < ignored < 7
    assert measured.not_judged == {"the sum of the row has no error bound": ignored}
    assert measured.elements == 7


def test_ignored_rows_that_are_left_as_they_were_in_memory_are_caught():
    def uninitialised(logits, target, ignore_index=-100, reduction="mean", **options):
        losses = crossent.formula(logits, target, ignore_index=ignore_index, reduction="none", **options)
        return reduced(torch.where(target == ignore_index, 0.25, losses), reduction)

    ((_, message),) = found("ignored_rows", uninitialised, "float32-7x5-normal-int64-none-ignored_first")
    assert message == "loss: not 0 in 1 of 1 ignored row; got 0.25 at index (0,); expected 0"


def test_a_gradient_of_ignored_rows_is_caught_though_their_loss_is_zero():
    def leaking(logits, target, ignore_index=-100, **options):
        leak = (logits - logits.detach())[:, 2] * (target == ignore_index)
        return crossent.formula(logits, target, ignore_index=ignore_index, **options) + leak.sum()

    ((_, message),) = found("ignored_rows", leaking, "float32-3x5x4-normal-int64-sum-ignored_first")
    assert message == "gradient of the logits: not 0 in 1 of 1 ignored row; got 1.0 at index (0, 2, 0); expected 0"


def test_a_gradient_of_ignored_hidden_states_is_named_by_their_argument():
    def leaking(hidden, target, *, linear_weight, linear_bias=None, ignore_index=-100, **options):
        leak = (hidden - hidden.detach()).sum(1) * (target == ignore_index)
        logits = F.linear(hidden, linear_weight, linear_bias)
        return F.cross_entropy(logits, target, ignore_index=ignore_index, **options) + leak.sum()

    case = LinearCase("float32", ignored="ignored_first")
    problem = measured(single.ignored_rows, case, leaking)
    said = "gradient of the input: not 0 in 1 of 1 ignored row; got 1.0 at index (0, 0); expected 0"
    assert problem.message == said


@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_losses_that_are_not_negative_are_compared_with_themselves(factor):
    def scaled(*arguments, **options):
        return crossent.formula(*arguments, **options) * factor

    found = measured(single.sign, Case("float32", (7, 5), reduction="none"), scaled)
    assert (found.of, found.error, found.bound, found.elements) == ("loss", 0.0, 0.0, 7)


@pytest.mark.parametrize("id", ["float64-7x5-normal-int64-none-rows", "float64-7x5-nan_ignored-int64-sum-ignored"])
def test_the_bound_of_a_row_sum_adds_the_bounds_and_the_error_of_the_summation(id):
    """An ignored row with a logit of NaN does not change the bounds of the other rows."""
    trial = trial_of(Question(Case.of(id)), FORM_SUBJECTS["formula"])
    ignored = int(trial.question.inputs.input.isnan().any(1).sum())
    (found,) = single.row_sums.run(trial)
    numbers = rows_of(trial.got.gradient)
    total = np.array([math.fsum(row) for row in numbers])  # correctly rounded; the compensated sum nearly is
    rounding = U * np.abs(total) + 2.0**-17 * U * np.abs(numbers).sum(1)
    allowed = trial.bounds(trial.got, trial.question.exact)["gradient"].sum(1) + rounding
    assert np.isnan(total).sum() == ignored
    row = int(np.nanargmax(np.abs(total) / allowed))
    assert (found.of, found.index, found.elements) == ("gradient", (row,), 7)
    assert found.not_judged == ({"the sum of the row has no error bound": ignored} if ignored else {})
    assert abs(found.got - total[row]) <= U * abs(total[row])
    assert allowed[row] <= found.bound <= allowed[row] * (1 + 2.0**-29)  # widened by 2^-30 for its own roundings
    assert found.ulp == found.error / math.ulp(np.abs(numbers[row]).max())


def test_only_a_row_that_does_not_sum_to_zero_counts():
    def two_rows(probs, hot, upstream):
        gradient = (probs - hot) * upstream[:, None]
        gradient[1, 0], gradient[3, 0] = math.inf, -math.inf
        return gradient

    trial = trial_of(Question(Case("float32", (7, 5), reduction="none")), Subject("mine", by_hand(two_rows)))
    (found,) = single.row_sums.run(trial)
    assert (found.of, found.index, found.got, found.mismatched) == ("gradient", (1,), math.inf, 2)
    # A sum with an infinity has no rounding error.
    assert found.bound == safe(trial.bounds(trial.got, trial.question.exact)["gradient"][1].sum())


def test_a_row_that_is_not_judged_has_no_error():
    found = measured(single.row_sums, Case.of("float32-1x3-nan-int64-sum"))
    assert found.not_judged == {"the sum of the row has no error bound": 1}
    assert (found.got, found.error, found.bound, found.ratio) == (0.0, 0.0, math.inf, 0.0)


def test_the_sum_of_the_only_row_has_no_index():
    def wrong(logits, target, **options):
        return crossent.formula(logits, target, **options) + logits[0] - logits[0].detach()

    found = measured(single.row_sums, Case("float64", (5,)), wrong)
    assert (found.index, found.mismatched) == ((), 1)
    assert found.ratio > 1


@pytest.mark.parametrize("sizes", [(7, 5), (5,), (2, 5, 3)])
def test_rows_of_any_shape_that_another_index_ignores_must_be_zero(sizes):
    def leaks(logits, target, ignore_index=-100, **options):
        leak = logits.sum() - logits.sum().detach()
        return crossent.formula(logits, target, ignore_index=ignore_index, **options) + leak

    case = Case("float32", sizes, reduction="sum", ignored="ignored_all")
    problem = measured(single.ignored_rows, case, leaks)
    assert problem.kind == "wrong"
    assert problem.message.startswith("gradient of the logits: ")
    assert list(single.ignored_rows.run(trial_of(Question(case), FORM_SUBJECTS["formula"]))) == []
