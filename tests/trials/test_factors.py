"""Test the message that names the factor between a wrong number and the exact value."""

import re

import pytest
from support.running import run

import crossent
from crossent.cases.case import Case
from crossent.subjects.subject import Subject
from crossent.trials.difference import Difference
from crossent.trials.factors import factor_of


def factor_lines(loss, case):
    finding = next(one for one in run(Subject("mine", loss), Case.of(case)).findings if one.check == "loss")
    return [line for line in finding.message.splitlines() if line.startswith("got is the exact value times ")]


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
            r"0.\d+: weight of the kept rows / kept rows.*",
        ),
        (summed, "float64-7x5-normal-int64-mean", "7: .*rows.*"),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) / x.shape[1],
            "float64-7x5-normal-int64-mean",
            "0.2: .*1 / classes",
        ),
        (lambda x, y, **o: -crossent.formula(x, y, **o), "float32-7x5-normal-int64-sum", "-1: -1"),
        (
            lambda x, y, **o: crossent.formula(x, y, **o) / 2**0.5,
            "float32-7x5-normal-int64-sum",
            None,
        ),
        (lambda x, y, **o: crossent.formula(x, y, **o) + 1, "bfloat16-7x5-normal-int64-sum", None),
    ],
    ids=["all rows", "unweighted", "not divided", "by classes", "sign", "no factor", "an addend"],
)
def test_a_known_factor_is_named_with_its_value(loss, case, line):
    lines = factor_lines(loss, case)
    assert [bool(lines)] == [line is not None]
    if line is not None:
        (found,) = lines
        assert re.fullmatch(f"got is the exact value times {line}", found), found


@pytest.mark.parametrize(("bound", "named"), [(0.001, True), (0.1, False)])
def test_a_factor_within_a_wide_bound_may_be_chance_and_is_not_named(bound, named):
    case = Case("float64")
    wrong = Difference("loss", "float64", (), 14.0, 2.0, 0.0, bound, 12.0, 12 / bound, 1.0, 1, 1, {}, False)
    assert bool(factor_of(wrong, case.build())) == named
