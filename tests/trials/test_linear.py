"""The comparison of a linear cross-entropy with its exact values: right code passes, and code with a bug fails."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.linear_subjects import by_hand

from crossent.cases.axes import DTYPES
from crossent.cases.inputs import Inputs
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.cases.operation import LINEAR_CROSS_ENTROPY
from crossent.checks import checks_of, single
from crossent.numerics.bounds.linear_contracts import linear_contract_of
from crossent.run.judge import judge_case
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.check import Cost
from crossent.trials.difference import largest_errors, not_judged
from crossent.trials.exact import solve
from crossent.trials.trial import Question, Trial

CHECKS = [check for check in checks_of(LINEAR_CROSS_ENTROPY).values() if check.cost is Cost.CALL]
SMALL = [case for case in linear_edges() if np.prod(case.sizes) <= 2**12]


def in_double(input, target, *, linear_weight, linear_bias=None, **options):
    """Return the loss, computed in float64 and rounded once. Autograd rounds each gradient once, too."""
    wide = {name: one.double() if torch.is_tensor(one) else one for name, one in options.items()}
    bias = None if linear_bias is None else linear_bias.double()
    dense = target.is_floating_point()
    logits = F.linear(input.double(), linear_weight.double(), bias)
    return F.cross_entropy(logits, target.double() if dense else target, **wide).to(input.dtype)


def composed(input, target, *, linear_weight, linear_bias=None, **options):
    """Return the loss of F.linear and F.cross_entropy, computed in the dtype of the input."""
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def failed(loss, case, **promises):
    question = Question(case)
    subject = Subject("loss", loss, **promises)
    outcome = judge_case(question, subject, Here(loss), CHECKS).outcome
    return [name for name, measured in outcome.checks.items() if measured.failed]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_one_rounding_of_the_exact_result_reaches_grade_a(case):
    trial = Trial(Question(case), Subject("loss", in_double), Here(in_double))
    assert set(trial.differences) == {"loss", *trial.question.inputs.leaves}
    assert trial.grade == "A"
    assert failed(in_double, case) == []


def test_the_composition_in_half_precision_reaches_grade_b_and_not_a():
    grades = set()
    for case in linear_edges(["bfloat16"]):
        subject = Subject("loss", composed, promise="torch", contract="torch", grades={"bfloat16": "B"})
        grades.add(Trial(Question(case), subject, Here(composed)).grade)
        assert failed(composed, case, promise="torch", contract="torch", grades={"bfloat16": "B"}) == [], case.id
    assert grades == {"A", "B"}


CASE = LinearCase("float32", (17, 5), ignored="ignored", bias="bias", reduction="none", upstream="rows")


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        (lambda d, h, w, needs: (d @ w, d.T @ h, d.sum(0)), []),
        (lambda d, h, w, needs: (d @ w, 1.001 * (d.T @ h), d.sum(0)), ["weight_gradient"]),
        (lambda d, h, w, needs: (d @ w, d[::2].T @ h[::2], d[::2].sum(0)), ["weight_gradient", "bias_gradient"]),
        (lambda d, h, w, needs: (d @ w, d.T @ h, torch.zeros(5)), ["bias_gradient"]),
        (lambda d, h, w, needs: ((d @ w).abs(), d.T @ h, d.sum(0)), ["gradient"]),
        (lambda d, h, w, needs: (d @ w + 1e-4, d.T @ h, d.sum(0)), ["gradient", "ignored_rows"]),
    ],
    ids=["right", "weight", "row", "bias", "input", "ignored"],
)
def test_a_wrong_gradient_fails_the_check_of_its_tensor_alone(change, checks):
    assert failed(by_hand(change), CASE) == checks


def test_a_loss_that_is_added_up_over_chunks_in_bfloat16_fails():
    def chunked(input, target, *, linear_weight, **options):
        of_rows = composed(input.float(), target, linear_weight=linear_weight.float(), reduction="none")
        total = torch.zeros((), dtype=input.dtype)
        for row in of_rows.to(input.dtype):
            total = total + row
        return total / len(of_rows)

    def wide(input, target, *, linear_weight, **options):
        return composed(input.float(), target, linear_weight=linear_weight.float()).to(input.dtype)

    case = LinearCase("bfloat16", (1024, 64))
    assert failed(wide, case) == []
    assert "loss" in failed(chunked, case)


def test_a_gradient_that_is_missing_is_an_error_that_names_its_tensor():
    def detached(input, target, *, linear_weight, **options):
        return F.cross_entropy(F.linear(input, linear_weight.detach()), target)

    outcome = judge_case(Question(LinearCase("float32")), Subject("loss", detached), Here(detached), CHECKS)
    (finding,) = outcome.findings
    assert (finding.check, finding.kind) == (single.call.name, "refused")
    assert "the loss is detached from the linear_weight" in finding.message
    assert finding.call.startswith("input float32 (7, 16), target int64 (7,), linear_weight=float32 (5, 16), ")


def test_a_message_about_a_gradient_of_a_wrong_dtype_names_the_input():
    trial = Trial(Question(LinearCase("float32")), Subject("loss", in_double), Here(in_double))
    got = replace(trial.got, gradient=trial.got.gradient.double())
    with pytest.raises(ValueError, match=r"^gradient of the input: got float64; expected float32$"):
        trial.compare(got, trial.question.exact)


def test_each_number_without_a_bound_has_a_reason():
    hidden, weight = torch.tensor([[3e38], [1.0]]), torch.tensor([[1.0], [-1.0], [0.0]])
    options = {"linear_weight": weight, "reduction": "none", "label_smoothing": 0.0}
    inputs = Inputs(hidden, torch.tensor([0, 1]), options, torch.ones(2))
    exact = solve(inputs)
    bounds = exact.bounds(linear_contract_of("eager", "A", "float32", device="cpu", rows=2, flushes=False))
    assert np.isinf(bounds.loss).tolist() == [True, False]
    allowed, _ = largest_errors("loss", exact.loss, bounds)
    assert not_judged("loss", allowed, exact.loss, bounds) == {"an intermediate may overflow": 1}


def test_zeros_and_the_part_of_the_target_alone_are_no_evidence_where_they_would_pass():
    """With one class, the exact gradients are 0, so a subject that returns zeros passes. With five, it fails."""
    for classes, vacuous in ((1, True), (5, False)):
        case = LinearCase("float32", (7, classes), bias="bias")
        differences = Trial(Question(case), Subject("loss", in_double), Here(in_double)).differences
        assert {differences[name].vacuous for name in ("gradient", "weight_gradient", "bias_gradient")} == {vacuous}


def test_the_bounds_of_another_dtype_are_those_of_its_case():
    """The check `widened` compares the result for bfloat16 inputs with the result for the same inputs in float32."""
    case = LinearCase("bfloat16", (17, 5), bias="bias")
    check = checks_of(LINEAR_CROSS_ENTROPY)["widened"]
    question = Question(case)
    for loss, fails in (
        (in_double, False),
        (lambda *a, **o: in_double(*a, **o) * (1 + (a[0].dtype == torch.float32)), True),
    ):
        subject = Subject("loss", loss)
        outcome = judge_case(question, subject, Here(loss), [*CHECKS, check]).outcome
        assert outcome.checks["widened"].failed == fails
    assert case.dtype in DTYPES
