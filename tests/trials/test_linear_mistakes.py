"""A finding about a linear cross-entropy names the mistake. Each test reads the finding about a loss with a bug."""

import numpy as np
import pytest
import torch
from support import linear_bugs
from support.linear_subjects import RIGHT, subject_of
from support.running import trial_of

from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.checks import single
from crossent.numerics.formats import FORMATS
from crossent.run.judge import judge_case
from crossent.trials.act import Here
from crossent.trials.exact import _linear_call
from crossent.trials.linear.mistakes import mistake_of
from crossent.trials.trial import Question

CHECKS = (single.call, single.result, single.loss, single.gradient, single.weight_gradient, single.bias_gradient)


class Planted(torch.autograd.Function):
    """A linear cross-entropy with a bug: its loss and its gradients are the results of a class of `linear_bugs`."""

    @staticmethod
    def forward(ctx, bug, inputs, hidden, weight, bias):
        results = bug(_linear_call(inputs), str(hidden.dtype).removeprefix("torch.")).run()
        leaves = {"grad_input": hidden, "grad_weight": weight, "grad_bias": bias}
        ctx.gradients = [
            None if leaf is None else torch.from_numpy(results[name]).reshape(leaf.shape).to(leaf.dtype)
            for name, leaf in leaves.items()
        ]
        return torch.from_numpy(np.asarray(results["loss"])).reshape(inputs.upstream.shape).to(hidden.dtype)

    @staticmethod
    def backward(ctx, upstream):
        return None, None, *ctx.gradients


def with_bug(bug, case):
    """Return a subject with a bug. Its gradients are computed with the upstream gradient of the case.

    `bug` is a class of `linear_bugs`, which computes all results of a call.
    """
    inputs = case.build()

    def loss(input, target, *, linear_weight, linear_bias=None, **options):
        return Planted.apply(bug, inputs, input, linear_weight, linear_bias)

    return subject_of(loss)


def lines_of(bug, case):
    """Return the words about the mistake in the finding of each wrong result, by the name of the result."""
    subject = with_bug(bug, case)
    trial = trial_of(Question(case), subject)
    wrong = [name for name, difference in trial.differences.items() if not difference.ratio <= 1]
    return {name: mistake_of(trial, name).removeprefix("\nThe numbers fit a result ") for name in wrong}


ALL = LinearCase(
    "float32",
    (17, 5),
    "normal",
    ignored="ignored",
    weight="weighted",
    label_smoothing=0.1,
    upstream="scalar",
    bias="bias",
)
ROWS = LinearCase("float32", (17, 5), reduction="none", upstream="rows", bias="bias", ignored="ignored")
MEAN = LinearCase("float32", (17, 5), ignored="ignored", bias="bias", upstream="scalar")
HALF = LinearCase("bfloat16", (1024, 64), reduction="sum", bias="bias")
PLAIN = LinearCase("float32", (17, 5), bias="bias")
WEIGHTED_SUM = LinearCase("float32", (17, 5), weight="weighted", reduction="sum", bias="bias")
IGNORED_SUM = LinearCase("float32", (17, 5), ignored="ignored", reduction="sum", bias="bias")
IGNORED = "to which ignored rows contribute, as if they had class 0"
WITHOUT_LAST = "without the last row"
EXCEPT = "without weight, except in the denominator of the mean"
ROUNDED = "whose sum over the rows is rounded to bfloat16 after each chunk of 4 rows"


@pytest.mark.parametrize(
    ("bug", "case", "said"),
    [
        (
            "DropsTheBias",
            MEAN,
            dict.fromkeys(("loss", "gradient", "weight_gradient", "bias_gradient"), "without linear_bias"),
        ),
        ("ReturnsNoBiasGradient", MEAN, {"bias_gradient": "of zeros"}),
        (
            "CountsIgnoredRowsInTheMean",
            MEAN,
            dict.fromkeys(
                ("loss", "gradient", "weight_gradient", "bias_gradient"), "whose denominator counts ignored rows"
            ),
        ),
        ("GivesIgnoredRowsAGradient", MEAN, dict.fromkeys(("gradient", "weight_gradient", "bias_gradient"), IGNORED)),
        (
            "DropsTheLastChunk",
            MEAN,
            {
                "loss": WITHOUT_LAST,
                "gradient": f"with zeros in the last row, or a result {WITHOUT_LAST}",
                "weight_gradient": WITHOUT_LAST,
                "bias_gradient": WITHOUT_LAST,
            },
        ),
        ("TakesTheBiasGradientOfTheLastChunk", MEAN, {"bias_gradient": "of the last row alone"}),
        (
            "MeansTheMeansOfChunks",
            MEAN,
            dict.fromkeys(
                ("gradient", "weight_gradient", "bias_gradient"), "that is the mean of the means of chunks of 4 rows"
            ),
        ),
        (
            "SumsTheMeansOfChunks",
            MEAN,
            dict.fromkeys(
                ("gradient", "weight_gradient", "bias_gradient"), "that is the sum of the means of chunks of 4 rows"
            ),
        ),
        (
            "MultipliesByTheUpstreamOfRow0",
            ROWS,
            dict.fromkeys(
                ("gradient", "weight_gradient", "bias_gradient"),
                "with the upstream gradient of the first row in every row",
            ),
        ),
        (
            "IgnoresTheUpstream",
            ROWS,
            dict.fromkeys(("gradient", "weight_gradient", "bias_gradient"), "without the upstream gradient"),
        ),
        (
            "ForgetsTheClassWeightInTheGradient",
            ALL,
            dict.fromkeys(("gradient", "weight_gradient", "bias_gradient"), EXCEPT),
        ),
        (
            "DropsTheLabelSmoothing",
            ALL,
            dict.fromkeys(("loss", "gradient", "weight_gradient", "bias_gradient"), "without label_smoothing"),
        ),
        (
            "DividesByTheRowsAndNotTheirWeight",
            ALL,
            dict.fromkeys(
                ("loss", "gradient", "weight_gradient", "bias_gradient"),
                "whose denominator counts the rows, not their weights",
            ),
        ),
        (
            "CountsAPaddedClass",
            MEAN,
            dict.fromkeys(
                ("loss", "gradient", "weight_gradient", "bias_gradient"),
                "with an additional class whose logits are 0, as in a padded vocabulary",
            ),
        ),
        ("LeavesTheTargetOutOfTheInputGradient", MEAN, {"gradient": "of the softmax alone, without the target"}),
        (
            "AccumulatesTheWeightGradientInTheDtype",
            HALF,
            dict.fromkeys(("weight_gradient", "bias_gradient"), ROUNDED),
        ),
        ("AccumulatesTheLossInTheDtype", HALF, {"loss": ROUNDED}),
    ],
)
def test_a_mistake_is_named(bug, case, said):
    assert lines_of(getattr(linear_bugs, bug), case) == said


@pytest.mark.parametrize(
    ("bug", "said"),
    [
        ("ShiftsTheTargetsByOne", "in which each row uses the target of the previous row"),
        ("CutsTheOperandsToTf32", "with input and linear_weight rounded to TF32"),
    ],
)
def test_a_mistake_is_named_in_every_result(bug, said):
    case = LinearCase("float32", (17, 5), "normal", bias="bias")
    found = lines_of(getattr(linear_bugs, bug), case)
    assert set(found) >= {"weight_gradient"}
    assert set(found.values()) == {said}


class TakesIgnoredRowsForTheLastClass(linear_bugs.GivesIgnoredRowsAGradient):
    def targets(self, rows):
        return np.where(self.kept[rows], self.y[rows], self.call.classes - 1)


class KnowsNoIgnoredRows(linear_bugs.Chunked):
    def __init__(self, call, dtype):
        super().__init__(call, dtype)
        self.kept = np.ones_like(self.kept)


class DropsTheClassWeight(linear_bugs.Chunked):
    def __init__(self, call, dtype):
        super().__init__(call, dtype)
        self.weight = np.ones_like(self.weight)


class TakesTheTargetOfTheNextRow(linear_bugs.Chunked):
    def targets(self, rows):
        return np.roll(self.y, -1)[rows]


class RoundsTheOperands(linear_bugs.Chunked):
    def operand(self, values):
        return self.narrow(values, FORMATS["bfloat16"]).astype(self.compute)


class LeavesTheLastClassesZero(linear_bugs.Chunked):
    def finished(self, name, value):
        if name == "grad_weight":
            value = np.concatenate([value[:-2], 0 * value[-2:]])
        return np.concatenate([value[:-1], 0 * value[-1:]]) if name == "grad_bias" else value


NUMBERS = ("loss", "gradient", "weight_gradient", "bias_gradient")


@pytest.mark.parametrize(
    ("bug", "case", "said"),
    [
        (
            TakesIgnoredRowsForTheLastClass,
            MEAN,
            dict.fromkeys(NUMBERS[1:], "to which ignored rows contribute, as if they had the last class"),
        ),
        (KnowsNoIgnoredRows, MEAN, dict.fromkeys(NUMBERS, f"{IGNORED}, and whose denominator includes them")),
        (DropsTheClassWeight, ALL, dict.fromkeys(NUMBERS, "without weight")),
        # Without a mean there is no denominator, so a mistake with another denominator is not a second name.
        (DropsTheClassWeight, WEIGHTED_SUM, dict.fromkeys(NUMBERS, "without weight")),
        (KnowsNoIgnoredRows, IGNORED_SUM, dict.fromkeys(NUMBERS, IGNORED)),
        (
            TakesTheTargetOfTheNextRow,
            PLAIN,
            dict.fromkeys(NUMBERS[:3], "in which each row uses the target of the next row"),
        ),
        (RoundsTheOperands, PLAIN, dict.fromkeys(NUMBERS, "with input and linear_weight rounded to bfloat16")),
        (
            LeavesTheLastClassesZero,
            PLAIN,
            {
                "weight_gradient": "with zeros in the last 2 classes",
                "bias_gradient": "with zeros in the last class",
            },
        ),
    ],
)
def test_further_mistakes_are_named(bug, case, said):
    assert lines_of(bug, case) == said


def test_the_finding_has_the_line():
    subject = with_bug(linear_bugs.DropsTheBias, MEAN)
    findings = judge_case(Question(MEAN), subject, Here(subject.loss), CHECKS).findings
    assert [finding.check for finding in findings] == ["loss", "gradient", "weight_gradient", "bias_gradient"]
    assert all("\nThe numbers fit a result without linear_bias" in finding.message for finding in findings)


def test_a_right_result_fits_no_mistake():
    """No mistake explains the rounding errors of a right result, in float32 and bfloat16 and with any options."""
    for dtype in ("float32", "bfloat16"):
        for case in linear_edges([dtype]):
            if 0 < case.rows * case.classes <= 2**8:
                trial = trial_of(Question(case), RIGHT[0])
                lines = {name: mistake_of(trial, name) for name in trial.differences}
                assert set(lines.values()) == {""}, (case.id, lines)


def test_a_result_off_by_a_percent_fits_no_mistake():
    case = LinearCase("float32", (17, 5), ignored="ignored", bias="bias")

    class OffByAPercent(linear_bugs.Chunked):
        def finished(self, name, value):
            return 1.01 * value

    found = lines_of(OffByAPercent, case)
    assert set(found) == {"loss", "gradient", "weight_gradient", "bias_gradient"}
    assert set(found.values()) == {""}


class OnesForGradients(torch.autograd.Function):
    """A sum over no rows: the loss is 1, and so is each number of the gradients."""

    @staticmethod
    def forward(ctx, hidden, linear_weight):
        ctx.save_for_backward(hidden, linear_weight)
        return hidden.new_ones(())

    @staticmethod
    def backward(ctx, upstream):
        return tuple(map(torch.ones_like, ctx.saved_tensors))


def test_an_empty_batch_with_a_wrong_result_fits_no_sum_that_is_rounded():
    case = LinearCase("float16", (0, 5), reduction="sum")
    subject = subject_of(lambda hidden, target, *, linear_weight, **o: OnesForGradients.apply(hidden, linear_weight))
    trial = trial_of(Question(case), subject)
    assert [mistake_of(trial, name) for name in ("loss", "weight_gradient")] == ["", ""]
