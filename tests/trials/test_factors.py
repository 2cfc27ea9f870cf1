"""Test the lines about a wrong number: a factor times the exact value, a narrower dtype, and infinite exponentials."""

import math
import re

import pytest
import torch
from support.checks import CHECKS
from support.running import run
from support.waits import float16

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.subject import Subject
from crossent.trials.difference import Difference
from crossent.trials.exact import solve
from crossent.trials.factors import factor_of, infinity_of


def factor_lines(loss, case):
    finding = next(one for one in run(Subject("mine", loss), Case.of(case)).findings if one.check == "loss")
    return [line for line in finding.message.splitlines() if line.startswith("The number is the exact value times ")]


def summed(input, target, **options):
    return crossent.formula(input, target, **{**options, "reduction": "sum"})


@pytest.mark.parametrize(
    ("loss", "case", "line"),
    [
        (
            lambda x, y, **o: summed(x, y, **o) / len(y),
            "float32-6x4-normal-int64-mean-ignored_class",
            r"0.666667: kept rows / rows or .+",
        ),
        (
            lambda x, y, **o: summed(x, y, **o) / (y != o.get("ignore_index", -100)).sum(),
            "float32-7x5-normal-int64-mean-weighted-ignored",
            r"0.\d+: sum of weight over kept rows / kept rows.*",
        ),
        (summed, "float64-7x5-normal-int64-mean", "7: .*rows.*"),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) / x.shape[1],
            "float64-5x5-normal-int64-mean",  # 5 rows and 5 classes, so the factor 0.2 has four names
            "0.2: .*1 / classes",
        ),
        (
            lambda x, y, **o: summed(x, y, **o) / y.sum(),
            "float64-7x5-normal-unnormalised-mean",
            r"[0-9.]+: rows / sum of the probabilities.*",
        ),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) * (1 - o["label_smoothing"]),
            "float64-7x5-normal-int64-mean-smooth0.1",
            "0.9: 1 - label_smoothing",
        ),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) / (1 - o["label_smoothing"]),
            "float64-7x5-normal-int64-mean-smooth0.1",
            r"1.11111: 1 / \(1 - label_smoothing\)",
        ),
        (lambda x, y, **o: -crossent.formula(x, y, **o), "float32-7x5-normal-int64-sum", "-1: wrong sign"),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) / 2**0.5,
            "float32-7x5-normal-int64-sum",
            None,
        ),
        (lambda x, y, **o: crossent.formula(x, y, **o) + 1, "bfloat16-7x5-normal-int64-sum", None),
    ],
    ids=[
        "all rows",
        "unweighted",
        "not divided",
        "by classes",
        "probabilities",
        "smoothing",
        "divided twice",
        "sign",
        "no factor",
        "an addend",
    ],
)
def test_a_known_factor_is_named_with_its_value(loss, case, line):
    lines = factor_lines(loss, case)
    assert [bool(lines)] == [line is not None]
    if line is not None:
        (found,) = lines
        assert re.fullmatch(f"The number is the exact value times {line}", found), found


@pytest.mark.parametrize(("bound", "named"), [(0.001, True), (0.1, False)])
def test_a_factor_within_a_wide_bound_may_be_chance_and_is_not_named(bound, named):
    case = Case("float64")
    wrong = Difference("loss", "float64", (), 14.0, 2.0, 0.0, bound, 12.0, 12 / bound, 1.0, 1, 1, {}, False)
    assert bool(factor_of(wrong, case.build())) == named


def last_lines(loss, case, check="loss"):
    report = run(
        Subject("mine", loss), Case.of(case), [CHECKS[name] for name in ("call", "result", "loss", "non_leaf")]
    )
    return next(finding for finding in report.findings if finding.check == check).message.splitlines()


def through(dtype):
    return lambda x, y, **options: crossent.formula(x.to(dtype), y, **options).to(x.dtype)


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        ("float32", "float64-7x5-normal-int64-mean"),
        ("float16", "float32-7x5-normal-int64-none-rows"),
        ("bfloat16", "float32-7x5-normal-int64-none-rows"),
    ],
)
def test_a_wrong_number_of_a_narrower_dtype_is_named_with_this_dtype(dtype, case):
    line = f"The number is representable in {dtype}: a step may be computed in {dtype}"
    assert line in last_lines(through(DTYPES[dtype]), case)


def test_the_dtype_is_also_named_if_the_number_is_wrong_in_another_check():
    def loss(x, y, **options):
        return crossent.formula(x, y, **options) if x.is_leaf else through(torch.float16)(x, y, **options)

    assert "The number is representable in float16: a step may be computed in float16" in last_lines(
        loss, "float32-7x5-normal-int64-none-rows", "non_leaf"
    )


@float16
def test_a_sum_of_exponentials_that_overflows_is_named():
    def loss(x, y, **options):
        sums = (x - x.amax(1, keepdim=True)).exp().sum(1)
        return (sums.log() + x.amax(1) - x.gather(1, y[:, None])[:, 0]).mean()

    line = "In float16, the largest sum of exp(x - max x) of a row, 65520, is inf"
    assert line in last_lines(loss, "float16-2x65520-flat-int64-mean")
    assert not any(
        "is inf" in one for one in last_lines(lambda x, y, **options: x.sum() * 0 + 1, "float16-7x5-normal-int64-mean")
    )


def test_a_number_in_place_of_an_infinite_one_is_not_said_to_be_rounded():
    lines = last_lines(lambda x, y, **options: x.clamp(-1, 1).sum(1) * 0 + 1, "float32-7x5-inf_on_target-int64-none")
    assert "may be computed in" not in "\n".join(lines)


def test_a_short_number_far_from_the_exact_value_is_not_said_to_be_rounded():
    lines = last_lines(lambda x, y, **options: x.sum() * 0 + 64.0, "float64-7x5-normal-int64-mean")
    assert not any("a step may be computed in" in line for line in lines)


OVERFLOW = "exp(300), of the largest logit, is inf"


@pytest.mark.parametrize(
    ("logits", "target", "smoothing", "line"),
    [
        ([0.0, 300.0], 0, 0.0, f"the smallest probability of a row, at most exp(-300), rounds to 0 and {OVERFLOW}"),
        ([0.0, 300.0], 0, 0.1, f"the smallest probability of a row, at most exp(-285), rounds to 0 and {OVERFLOW}"),
        ([0.0, 30.0], [4.0, 0.0], 0.0, ""),  # the loss is 120, and the least probability is exp(-30)
        ([0.0, 80.0], [4.0, -1.0], 0.0, ""),  # the loss is 320, and the least probability is exp(-80)
        (
            [0.0, 300.0],
            [0.5, 0.0],
            0.0,
            "the smallest probability of a row, at most exp(-150), rounds to 0 and "
            "exp(300), of the largest logit, is inf",
        ),
    ],
    ids=["class", "smoothed", "large probabilities", "a negative probability", "small probabilities"],
)
def test_the_probability_of_an_infinite_loss_is_not_above_the_named_number(logits, target, smoothing, line):
    options = {"reduction": "none", "label_smoothing": smoothing}
    inputs = Inputs(torch.tensor([logits]), torch.tensor([target]), options, torch.ones(1))
    exact = float(solve(inputs).loss.hi[0, 0])
    wrong = Difference("loss", "float32", (0,), math.inf, exact, 0.0, 1e-3, math.inf, math.inf, 1.0, 1, 1, {}, False)
    assert infinity_of(wrong, inputs) == (f"\nIn float32, {line}" if line else "")


@pytest.mark.parametrize(("total", "named"), [(65_519, False), (65_520, True)])
def test_a_sum_that_rounds_to_the_largest_number_does_not_overflow(total, named):
    logits = torch.zeros(1, total, dtype=torch.float16)
    inputs = Inputs(logits, torch.tensor([0]), {"reduction": "mean"}, torch.ones(()))
    wrong = Difference("loss", "float16", (), math.inf, 11.0, 0.0, 1e-3, math.inf, math.inf, 1.0, 1, 1, {}, False)
    assert bool(infinity_of(wrong, inputs)) == named


def test_an_infinite_loss_of_an_empty_batch_is_a_wrong_number_without_a_line_about_infinities():
    def loss(x, y, **options):
        return crossent.formula(x, y, **options) + torch.inf

    assert "is inf" not in "\n".join(last_lines(loss, "float32-0x5-normal-int64-sum"))


def test_an_infinite_loss_names_the_exponentials_that_may_cause_it():
    def of_softmax(x, y, **options):
        return -x.softmax(1).gather(1, y[:, None])[:, 0].log()

    line = last_lines(of_softmax, "float32-7x5-large-int64-none-rows")[-1]
    assert re.match(r"In float32, the smallest probability of a row, at most exp\(-\d+\), rounds to 0", line), line

    def unshifted(x, y, **options):
        return x.exp().sum(1).log() - x.gather(1, y[:, None])[:, 0]

    line = last_lines(unshifted, "float32-7x5-large_offset-int64-none-rows")[-1]
    assert re.fullmatch(r"In float32, exp\(.+\), of the largest logit, is inf", line), line
