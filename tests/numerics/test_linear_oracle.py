"""Compare the exact values of linear cross-entropies: float64 with ball arithmetic, and both with values by hand."""

from dataclasses import replace

import numpy as np
import pytest
from support.linear_calls import linear_case

from crossent.numerics.linear_call import LINEAR_RESULTS, LinearCall
from crossent.numerics.oracle import linear
from crossent.numerics.oracle.answer import answer
from crossent.numerics.oracle.arguments import Arguments
from crossent.numerics.oracle.linear import linear_answer


def pairs(one, other):
    """Yield each result that a call has: its name, and the balls (numbers with a radius) of both answers."""
    for name in LINEAR_RESULTS:
        if getattr(one, name) is not None:
            yield name, getattr(one, name), getattr(other, name)


def shares(call):
    """Yield, for each result, its name and the largest share: distance ÷ sum of both radii.

    The distance is between the values of float64 arithmetic and of ball arithmetic.
    """
    for name, one, other in pairs(linear_answer(call), linear_answer(call, in_balls=True)):
        distance, radius = other.distance(one.hi), one.radius + other.radius
        with np.errstate(all="ignore"):
            yield name, np.where(distance > 0, distance / radius, 0.0).max(initial=0.0)


def test_float64_and_ball_arithmetic_agree_within_their_radii(seed):
    worst = dict.fromkeys(LINEAR_RESULTS, 0.0)
    for number in range(150):
        for name, share in shares(linear_case(number, "float32", seed=seed).call):
            assert share <= 1, (number, name, share)
            worst[name] = max(worst[name], share)
    assert min(worst.values()) > 0.01, worst  # the radii are not far too large


def test_without_the_radius_of_the_logits_the_two_ways_disagree(monkeypatch):
    monkeypatch.setattr(linear, "_logit_errors", lambda call: np.zeros(call.rows))
    found = [share for number in range(40) for _, share in shares(linear_case(number, "float32", values="large").call)]
    assert max(found) > 1


# numpy's exp and log1p have an error of at most one ulp, which is 2 u for u = 2^-53. All steps together have an error
# of at most 8 u.
EIGHT = 8 * 2.0**-53


def test_the_loss_of_two_classes_is_a_logarithm_by_hand():
    call = LinearCall(np.float32([[2.0]]), np.float32([[1.0], [-1.0]]), index=np.array([0]))
    exact = linear_answer(call)
    p = 1 / (1 + np.exp(4.0))
    assert exact.loss.hi == pytest.approx(np.log1p(np.exp(-4.0)), rel=EIGHT, abs=0)
    assert exact.grad_weight.hi == pytest.approx(np.array([[-2 * p], [2 * p]]), rel=EIGHT, abs=0)
    assert exact.grad_input.hi == pytest.approx(np.array([[-2 * p]]), rel=EIGHT, abs=0)
    assert exact.grad_bias is None


@pytest.mark.parametrize("in_balls", [False, True])
def test_with_the_identity_as_weight_the_loss_is_the_cross_entropy_of_the_input(in_balls):
    random = np.random.RandomState(0)
    logits, index = random.randn(5, 4).astype("f4"), np.array([0, 3, -100, 1, 1])
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "sum", "weight": np.float32([1, 2, 0.5, 3])}):
        known = answer(Arguments(logits, index, **options))
        (rows,) = [gradient for _, gradient, _ in known.gradients()]
        call = LinearCall(logits, np.eye(4, dtype="f4"), np.zeros(4, "f4"), index=index, **options)
        exact = linear_answer(call, in_balls=in_balls)
        assert exact.loss.hi == pytest.approx(known.loss.hi, rel=1e-14, abs=0)
        np.testing.assert_allclose(exact.grad_input.hi, rows.hi, rtol=1e-13, atol=1e-16)
        np.testing.assert_allclose(exact.grad_bias.hi, rows.hi.sum(0), rtol=1e-13, atol=1e-16)
        np.testing.assert_allclose(exact.grad_weight.hi, rows.hi.T @ logits, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("in_balls", [False, True])
def test_a_confident_row_keeps_its_relative_accuracy(in_balls):
    call = LinearCall(np.float32([[1.0]]), np.float32([[60.0], [0.0]]), index=np.array([0]))
    exact = linear_answer(call, in_balls=in_balls)
    assert exact.loss.hi == pytest.approx(np.exp(-60.0), rel=1e-13, abs=0)
    assert exact.loss.radius < 1e-10 * exact.loss.hi
    assert (exact.grad_weight.radius < 1e-10 * np.abs(exact.grad_weight.hi)).all()


def test_ignored_rows_add_exactly_zero():
    case = linear_case(3, "float32", sizes=(6, 3, 4), dense=False, reduction="sum", upstream=np.ones(()))
    call = replace(case.call, index=np.array([1, -100, 2, -100, 0, 3]), ignore_index=-100)
    some = replace(call, input=call.input[call.kept], index=call.index[call.kept])
    for name, one, other in pairs(linear_answer(call), linear_answer(some)):
        rows = call.kept if name == "grad_input" else slice(None)
        assert (one.hi[rows] if name == "grad_input" else one.hi) == pytest.approx(other.hi, rel=1e-12, abs=0), name
    assert (linear_answer(call).grad_input.hi[~call.kept] == 0).all()
    assert (linear_answer(call).grad_input.radius[~call.kept] == 0).all()


@pytest.mark.parametrize("in_balls", [False, True])
@pytest.mark.parametrize(("rows", "index"), [(0, []), (2, [-100, -100])])
def test_a_mean_over_no_rows_is_nan_and_its_gradients_are_zero(rows, index, in_balls):
    given = np.ones((rows, 3), "f4"), np.ones((4, 3), "f4"), np.ones(4, "f4")
    call = LinearCall(*given, index=np.array(index, np.int64))
    exact = linear_answer(call, in_balls=in_balls)
    assert np.isnan(exact.loss.hi)
    assert exact.loss.radius == 0
    for name, ball, _ in pairs(exact, exact):
        if name != "loss":
            assert not ball.hi.any(), name
            assert not ball.radius.any(), name
    assert linear_answer(replace(call, reduction="sum"), in_balls=in_balls).loss.hi == 0


def test_a_total_weight_of_zero_makes_loss_and_gradients_nan():
    call = LinearCall(np.ones((2, 3), "f4"), np.ones((2, 3), "f4"), np.ones(2, "f4"), index=np.array([0, -100]))
    exact = linear_answer(replace(call, weight=np.float32([0, 1])))
    assert np.isnan(exact.loss.hi)
    assert np.isnan(exact.grad_input.hi[0]).all()
    assert not exact.grad_input.hi[1].any()
    assert np.isnan(exact.grad_weight.hi).all()
    assert np.isnan(exact.grad_bias.hi).all()


def test_one_class_has_no_loss_and_no_gradient():
    exact = linear_answer(LinearCall(np.ones((2, 3), "f4"), np.ones((1, 3), "f4"), index=np.array([0, 0])))
    assert all(not ball.hi.any() and not ball.radius.any() for _, ball, _ in pairs(exact, exact))


def test_huge_logits_take_ball_arithmetic(monkeypatch):
    call = LinearCall(np.float32([[1e30, 1.0]]), np.float32([[1.0, 0.0], [1.0, 1.0]]), index=np.array([0]))
    exact = linear_answer(call)
    assert exact.loss.hi == pytest.approx(np.log1p(np.exp(1.0)), rel=1e-15, abs=0)
    assert exact.loss.radius < 1e-30


def test_a_block_of_rows_changes_no_value(monkeypatch):
    case = linear_case(5, "float32", sizes=(40, 5, 7), dense=False)
    whole = linear_answer(case.call)
    monkeypatch.setattr(linear, "_BLOCK", 21)
    for name, one, other in pairs(whole, linear_answer(case.call)):
        assert (np.abs(one.hi - other.hi) <= one.radius + other.radius).all(), name


def test_float64_arguments_have_a_radius_below_the_rounding_of_float64():
    for number in range(20):
        call = linear_case(number, "float64", values="confident", ignored=0.0).call
        for name, ball, _ in pairs(linear_answer(call), linear_answer(call)):
            assert (ball.radius <= 2.0**-80 * np.abs(ball.hi) + 2.0**-150).all(), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input", np.ones(3, "f4")),
        ("linear_weight", np.ones((0, 3), "f4")),
        ("linear_weight", np.ones((4, 2), "f4")),
        ("linear_bias", np.ones(3, "f4")),
        ("input", np.float32([[np.inf, 1, 1]])),
        ("linear_bias", np.ones(4, np.int64)),
    ],
)
def test_a_bad_array_is_refused_with_its_name(name, value):
    call = LinearCall(np.ones((1, 3), "f4"), np.ones((4, 3), "f4"), np.ones(4, "f4"), index=np.array([1]))
    with pytest.raises(ValueError, match=f"^{name}: got "):
        replace(call, **{name: value})


def test_a_class_out_of_range_is_refused():
    call = LinearCall(np.ones((1, 3), "f4"), np.ones((4, 3), "f4"), index=np.array([4]))
    with pytest.raises(IndexError, match="allowed are the classes 0 to 3"):
        linear_answer(call)
