"""Relations between calls of a linear cross-entropy: each check finds its own kind of wrong function."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.linear_subjects import by_hand, composed, gradients, right_cases, right_in, subject_of
from support.running import run, run_isolated

from crossent.cases.axes import DTYPES
from crossent.cases.linear.case import LinearCase
from crossent.checks import options, single
from crossent.checks.relations import backward, changes, two_calls
from crossent.numerics.oracle.arithmetic import Ball
from crossent.trials.call import evaluate

FIRST = (single.call, single.result)
CHECKS = (
    *(two_calls.layout, two_calls.shift, two_calls.rows_permuted, two_calls.classes_permuted, two_calls.split),
    *(two_calls.widened, options.options, backward.two_backwards),
)
MEAN = LinearCase("float32", bias="bias", weight="weighted")
ROWS = LinearCase("float32", (17, 5), reduction="none", upstream="rows", bias="bias")


@pytest.mark.parametrize("dtype", DTYPES)
def test_right_code_passes(dtype):
    cases = right_cases(dtype)
    report = run(right_in(dtype), cases, (*FIRST, *CHECKS))
    assert [str(finding) for finding in report.findings] == []
    for part in report.subjects:
        ran = {name for outcome in part.outcomes.values() for name in outcome.checks}
        every = {check.name for check in (*FIRST, *CHECKS)}
        assert ran == (every if dtype in ("float16", "bfloat16") else every - {"widened"})


def test_the_result_in_float64_changes_as_the_relations_say():
    """Without rounding, each relation is an identity of the formula, up to the last digits of float64."""
    for case in (MEAN, ROWS, LinearCase("float32", (17, 3), target="probabilities", reduction="sum", bias="bias")):
        given = case.build()
        given = changes._each(given, lambda one: one.double() if one.is_floating_point() else one)
        result = evaluate(composed, given)
        turned = changes.restore_rows(evaluate(composed, changes.reverse_rows(given, 0)), 0, 2)
        assert_close(turned, result)
        assert_close(changes.restore_classes(evaluate(composed, changes.reverse_classes(given)), given), result)
        before, after = changes.shifted(given)["with one shift for all rows"]
        assert_close(evaluate(composed, after), evaluate(composed, before), 2.0**-20)


def assert_close(one, other, error=2.0**-48):
    assert one.parts.keys() == other.parts.keys() >= {"loss", "gradient", "weight_gradient", "bias_gradient"}
    for name, part in one.parts.items():
        assert (part - other.parts[name]).abs().max() <= error * max(1.0, part.abs().max()), name


def contiguously(tensor):
    return tensor.as_strided(tensor.shape, torch.empty(tensor.shape, device="meta").stride())


def reads_the_weight_as_contiguous(input, target, *, linear_weight, **options):
    return composed(input, target, linear_weight=contiguously(linear_weight), **options)


def without_maximum(input, target, *, linear_weight, linear_bias=None, **options):
    """Compute the loss without subtracting the maximum first."""
    logits = F.linear(input, linear_weight, linear_bias)
    losses = logits.exp().sum(1).log() - logits.gather(1, target[:, None])[:, 0]
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[options["reduction"]]()


def changed(change):
    def loss(slope, hidden, weight, needs):
        return change(slope, hidden, *gradients(slope, hidden, weight, needs))

    return by_hand(loss)


def last_row_twice(slope, hidden, of_input, of_weight, of_bias):
    return torch.cat([of_input[:-1], 2 * of_input[-1:]]), of_weight, of_bias


def last_row_is_missing_in_the_bias(slope, hidden, of_input, of_weight, of_bias):
    return of_input, of_weight, slope[:-1].sum(0)


def first_class_twice(slope, hidden, of_input, of_weight, of_bias):
    return of_input, torch.cat([2 * of_weight[:1], of_weight[1:]]), of_bias


def rows_above_four_are_missing(slope, hidden, of_input, of_weight, of_bias):
    return of_input, slope[:4].T @ hidden[:4], of_bias


class Scales(torch.autograd.Function):
    """A loss whose backward pass scales the saved gradients in place: quack#209."""

    @staticmethod
    def forward(ctx, hidden, weight, target):
        with torch.enable_grad():
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss = F.cross_entropy(F.linear(h, w), target)
            ctx.made = torch.autograd.grad(loss, (h, w))
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        return *(one.mul_(upstream) for one in ctx.made), None


def scales_in_place(input, target, *, linear_weight, **options):
    return Scales.apply(input, linear_weight, target)


def drops_the_bias(input, target, *, linear_bias=None, **options):
    loss = composed(input, target, **options)
    return loss if linear_bias is None else loss + 0 * linear_bias.sum()


def mean_of_means(input, target, *, linear_weight, **options):
    chunks = zip(input.split(3), target.split(3), strict=True)
    return torch.stack([composed(h, t, linear_weight=linear_weight) for h, t in chunks]).mean()


def wrong_in_float32(input, target, **options):
    return composed(input, target, **options) * (1.1 if input.dtype == torch.float32 else 1)


STRIDED = LinearCase("float32", bias="bias", linear_layout="linear_strided")
PLAIN = LinearCase("float32")


@pytest.mark.parametrize(
    ("check", "loss", "case", "said"),
    [
        (two_calls.layout, reads_the_weight_as_contiguous, STRIDED, "loss:\nExpected"),
        (two_calls.shift, without_maximum, ROWS, "loss, with one shift for all rows:\n"),
        (
            two_calls.rows_permuted,
            changed(last_row_twice),
            ROWS,
            "gradient of the input, with rows reversed along dimension 0:\n",
        ),
        (
            two_calls.rows_permuted,
            changed(last_row_is_missing_in_the_bias),
            ROWS,
            "gradient of linear_bias, with rows reversed along dimension 0:\n",
        ),
        (two_calls.classes_permuted, changed(first_class_twice), MEAN, "gradient of linear_weight:\n"),
        (two_calls.split, changed(rows_above_four_are_missing), ROWS, "gradient of linear_weight:\n"),
        (two_calls.split, mean_of_means, LinearCase("float32", (7, 5)), "loss:\n"),
        (two_calls.widened, wrong_in_float32, LinearCase("bfloat16", bias="bias"), "loss:\n"),
        (
            options.options,
            drops_the_bias,
            LinearCase("float32", bias="bias"),
            "loss: got the same values with and without linear_bias; expected different values",
        ),
        (backward.two_backwards, scales_in_place, PLAIN, "after another backward pass through the same graph, "),
    ],
    ids=lambda one: getattr(one, "name", getattr(one, "__name__", None)),
)
def test_a_wrong_function_is_found(check, loss, case, said):
    (finding,) = run(subject_of(loss), case, (*FIRST, check)).findings
    assert finding.check == check.name
    assert _without_counts(finding.message).startswith(said)


def _without_counts(message):
    return "\n".join(line for line in message.split("\n") if not line.startswith("Mismatched"))


def test_two_losses_share_all_leaves():
    seen = []

    def loss(input, target, *, linear_weight, linear_bias=None, **options):
        seen.append((id(input), id(linear_weight), id(linear_bias)))
        return composed(input, target, linear_weight=linear_weight, linear_bias=linear_bias, **options)

    assert run(subject_of(loss), MEAN, (*FIRST, backward.two_backwards)).findings == []
    assert seen[-1] == seen[-2]


def test_the_checks_run_in_an_isolated_process():
    part = run_isolated(subject_of(by_hand()), cases=[MEAN], checks=(*FIRST, *CHECKS)).subjects[0]
    assert part.findings == []
    assert set(part.outcomes[MEAN.id].checks) == {check.name for check in (*FIRST, *CHECKS)} - {"layout", "widened"}


def test_the_gradient_of_the_weight_is_the_sum_over_the_parts():
    """`join_parts` adds the gradients of the layer, and concatenates the gradients of the rows."""
    parts = [with_numbers(1.0), with_numbers(2.0)]
    whole = changes.join_parts(parts, "sum")
    assert whole["weight_gradient"].hi.tolist() == [[3.0]]
    assert whole["loss"].hi.tolist() == [[3.0]]
    assert whole["gradient"].hi.tolist() == [[1.0], [2.0]]
    assert changes.join_parts(parts, "none")["loss"].hi.tolist() == [[1.0], [2.0]]


def with_numbers(number):
    one, zero = np.full((1, 1), number), np.zeros((1, 1))
    return {name: Ball(one, zero, zero) for name in ("loss", "gradient", "weight_gradient", "bias_gradient")}
