"""The error bounds of a linear cross-entropy: values worked out by hand, and the bugs that the bounds must find."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support.linear_bugs import BUGS, Chunked
from support.linear_calls import linear_case
from support.right_linear import RightLinear

from crossent.numerics.bounds import call, linear
from crossent.numerics.bounds.inexact_logits import largest_move, softmax_of_inexact
from crossent.numerics.bounds.intermediates import softmax
from crossent.numerics.bounds.linear import LinearBounds, LinearTerms
from crossent.numerics.bounds.linear_contracts import linear_contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.formats import FLOAT32, FORMATS
from crossent.numerics.linear_call import LINEAR_RESULTS, LinearCall
from crossent.numerics.oracle.linear import linear_answer

U = 2.0**-24


@cache
def judge_of(number, dtype, grade="A", **fixed):
    """Return the random case with this number, its exact values, and its bounds under the contract of a kernel.

    `fixed` has values in place of random choices, such as `sizes`.
    """
    case = linear_case(number, dtype, dense=False, **fixed)
    return (
        case,
        linear_answer(case.call),
        LinearBounds(LinearTerms.of(case.call), linear_contract("kernel", grade, dtype)),
    )


def shares(judge, results):
    """Return, for each result, the largest share of the bound: error ÷ bound. `judge` comes from `judge_of`."""
    _, exact, bounds = judge
    found = {}
    for name in LINEAR_RESULTS:
        if (value := getattr(exact, name)) is not None:
            error = value.distance(results[name].reshape(value.hi.shape))
            with np.errstate(all="ignore"):
                share = np.where(error > 0, error / (getattr(bounds, name) + value.radius), 0.0)
            found[name] = float(share.max(initial=0.0))
    return found


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_published_bug_exceeds_the_bounds(bug):
    dtype = "float32" if bug.__name__ == "CutsTheOperandsToTf32" else "bfloat16"
    found = []
    for number in range(60):
        judge = judge_of(number, dtype)
        found.append(max(shares(judge, bug(judge[0].call, dtype).run()).values()))
    assert max(found) > 1


@pytest.mark.parametrize("dtype", FORMATS)
def test_without_a_bug_the_implementation_stays_within_the_bounds(dtype):
    for number in range(60):
        judge = judge_of(number, dtype)
        found = shares(judge, Chunked(judge[0].call, dtype).run())
        assert max(found.values()) <= 1, (judge[0].id, found)


@pytest.mark.parametrize(
    ("bug", "name"),
    [("AccumulatesTheWeightGradientInTheDtype", "grad_weight"), ("AccumulatesTheLossInTheDtype", "loss")],
)
def test_no_grade_allows_a_sum_over_chunks_in_the_dtype(bug, name):
    (found,) = [one for one in BUGS if one.__name__ == bug]
    judge = judge_of(
        0, "bfloat16", "B", sizes=(1024, 16, 64), values="normal", reduction="mean", ignored=0.0, smooth=0.0
    )
    assert shares(judge, Chunked(judge[0].call, "bfloat16").run())[name] <= 1
    assert shares(judge, found(judge[0].call, "bfloat16").run())[name] > 1


def test_there_are_as_many_bugs_as_the_public_reports_name():
    assert len(BUGS) >= 30


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_radius_of_the_exact_value_is_a_millionth_of_a_bound(dtype):
    for number in range(60):
        _, exact, bounds = judge_of(number, dtype)
        for name in LINEAR_RESULTS:
            if (value := getattr(exact, name)) is not None:
                bound = getattr(bounds, name)
                assert ((value.radius <= 1e-6 * bound) | np.isinf(value.radius)).all(), name


# A bound is widened by 2^-30 (`safe`), and computed in float64: fewer than 2^10 roundings of 2^-53 reach a number here.
WIDENED, COMPUTED = 2.0**-29, 2.0**-43
# The error of log_softmax in float64, where at most 16 roundings reach a number below 10.
LOG_SOFTMAX = 10 * 16 * 2.0**-53


def growth(roundings):
    """Return `n u / (1 - n u)`, the largest relative error of a number after `n = roundings` roundings."""
    return roundings * U / (1 - roundings * U)


def one_dot(dtype, features=4, **given):
    """Return the terms of a call with one row and one class, whose input and weight are all ones."""
    array = np.ones((1, features), "f8" if dtype == "float64" else "f4")
    return LinearTerms.of(LinearCall(array, array, index=np.array([0]), **given))


@pytest.mark.parametrize(
    ("dtype", "bias", "roundings"), [("bfloat16", False, 3), ("float32", False, 4), ("float32", True, 5)]
)
def test_each_term_of_a_logit_goes_through_its_additions_and_one_product(dtype, bias, roundings):
    """The product of two bfloat16 numbers is exact in float32. A bias is one more addition."""
    terms = one_dot(dtype, linear_bias=np.float32([2]) if bias else None)
    error = LinearBounds(terms, linear_contract("kernel", "A", dtype)).logits_error
    size = 6 if bias else 4
    assert error == pytest.approx(np.array([[growth(roundings) * size]]), rel=WIDENED)


def test_a_logit_that_is_kept_in_the_dtype_has_one_more_rounding():
    terms = one_dot("bfloat16")
    wide, narrow = (LinearBounds(terms, linear_contract("kernel", grade, "bfloat16")).logits_error for grade in "AB")
    assert narrow == pytest.approx(wide + 2.0**-8 * (4 + wide), rel=COMPUTED)


@pytest.mark.parametrize(("terms", "roundings"), [(1, 0), (32, 31), (33, 32), (64, 32), (4096, 31 + 127)])
def test_blocks_of_32_limit_the_additions_of_a_term(terms, roundings):
    assert linear_contract("kernel", "A", "bfloat16", block=32).roundings(terms) == roundings
    assert linear_contract("kernel", "A", "bfloat16").roundings(terms) == terms - 1


def test_blocks_make_the_bound_of_a_long_dot_product_26_times_tighter():
    terms = one_dot("bfloat16", features=4096)
    any_order, blocks = (
        LinearBounds(terms, linear_contract("kernel", "A", "bfloat16", block=block)).logits_error
        for block in (None, 32)
    )
    float64 = 4096 * 2.0**-52  # the rounding errors of the bound's own logits, which are sums in float64
    assert any_order / blocks == pytest.approx((growth(4095) + float64) / (growth(158) + float64), rel=WIDENED)


@pytest.mark.parametrize("dtype", FORMATS)
def test_grade_b_allows_at_least_what_grade_a_allows(dtype):
    for number in range(30):
        a, b = (judge_of(number, dtype, grade)[2] for grade in "AB")
        for name in LINEAR_RESULTS:
            assert (getattr(a, name) <= getattr(b, name)).all(), name


def test_an_implementation_that_computes_logits_again_may_err_more_in_a_sure_row():
    call = LinearCall(np.float32([[30.0, 1.1]]), np.float32([[1, 1], [0, 1], [0, 0]]), index=np.array([0]))
    once, again = (
        LinearBounds(LinearTerms.of(call), linear_contract("kernel", "A", "float32", recomputes=recomputes))
        for recomputes in (False, True)
    )
    assert (once.grad_weight < again.grad_weight).all()
    assert again.loss > once.loss


def rows_with_error(random, rows=3, classes=5, error=0.3):
    terms = judge_of(0, "float32", sizes=(rows, 4, classes))[2].terms.rows
    errors = error * random.random_sample((rows, classes))
    return replace(terms, logits_error=errors)


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("recomputes", [False, True])
def test_no_change_of_the_logits_moves_a_probability_further_than_the_largest_move(recomputes):
    random = np.random.RandomState(0)
    terms = rows_with_error(random)
    contract = linear_contract("kernel", "A", "float32", recomputes=recomputes).loss
    moves, before = largest_move(terms, contract), log_softmax(terms.logits)
    assert np.isfinite(moves).all()
    most = np.zeros_like(moves)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    for sign in [*signs, *random.uniform(-1, 1, (200, 5))]:
        most = np.maximum(most, np.abs(log_softmax(terms.logits + sign * terms.logits_error) - before))
    assert (most <= moves + LOG_SOFTMAX).all()
    if not recomputes:
        np.testing.assert_allclose(
            most, moves, rtol=WIDENED, atol=LOG_SOFTMAX
        )  # one of the signs attains the largest move


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize(
    ("logits", "error"), [([0.0, -746.0], 400.0), ([-800.0, 0.0, -1.0], 405.0), ([0, -706], 354.0), ([0, -1500], 1e3)]
)
def test_the_error_covers_errors_of_the_logits_that_make_an_underflowing_probability_large(logits, error, recomputes):
    logits = np.float64([logits])
    terms = rows_with_error(np.random.RandomState(0), rows=1, classes=logits.size)
    terms = replace(terms, logits=logits, log_sum=log_sum(logits), logits_error=np.full_like(logits, error))
    contract = linear_contract("kernel", "A", "float32", recomputes=recomputes).loss
    with np.errstate(all="ignore"):
        moves, probs = largest_move(terms, contract), softmax_of_inexact(terms, contract)[1]
    before = log_softmax(logits)
    for sign in np.array(np.meshgrid(*[[-1, 1]] * logits.size)).reshape(logits.size, -1).T:
        after = log_softmax(logits + error * sign)
        assert (np.abs(after - before) <= moves + 1e-9).all()
        assert (np.abs(np.exp(after) - np.exp(before)) <= probs.error * (1 + 1e-9)).all()


def test_two_large_logits_may_round_to_the_same_number():
    """In bfloat16, both logits are 131072. So the computed loss is log 2, but the exact loss is exp(-750)."""
    hidden, weight = torch.tensor([[256.0, 1.0]]).bfloat16(), torch.tensor([[512.0, 500.0], [510.0, 262.0]]).bfloat16()
    assert (hidden @ weight.T).tolist() == [[131072, 131072]]
    call = LinearCall(hidden.float().numpy(), weight.float().numpy(), index=np.array([0]))
    bounds = LinearBounds(LinearTerms.of(call), linear_contract("eager", "B", "bfloat16"))
    assert bounds.loss >= np.log(2)
    assert (bounds.grad_bias >= 0.5).all()


def test_the_move_of_a_sure_class_is_relative_to_the_other_classes():
    terms = rows_with_error(np.random.RandomState(0), rows=1, classes=2)
    terms = replace(
        terms, logits=np.array([[50.0, 0.0]]), log_sum=np.array([np.exp(-50)]), logits_error=np.array([[1e-3, 2e-3]])
    )
    moves = largest_move(terms, linear_contract("kernel", "A", "float32").loss)
    assert moves[0, 0] == pytest.approx(np.exp(-50) * np.expm1(3e-3), rel=COMPUTED, abs=0)
    assert moves[0, 1] == pytest.approx(3e-3, rel=COMPUTED, abs=0)


@pytest.mark.parametrize("promise", ["eager", "torch", "kernel", "fast_kernel"])
@pytest.mark.parametrize("grade", ["A", "B"])
def test_an_error_of_nearly_zero_leaves_the_rounding_error_of_given_logits(promise, grade):
    """Inexact logits never have a smaller bound than exact logits.

    The bounds for inexact logits are at most 1.5 times the largest bound for exact logits.
    """
    terms = rows_with_error(np.random.RandomState(0), rows=4, classes=30, error=1e-30)
    contract = linear_contract(promise, grade, "bfloat16", rows=4).loss
    contract = replace(contract, storage=FLOAT32)
    known = replace(terms, logits=terms.logits.astype(np.float32).astype(np.float64))
    for given, computed in zip(
        softmax(replace(known, logits_error=None), contract), softmax_of_inexact(known, contract), strict=True
    ):
        assert (given.error <= computed.error * (1 + 1e-12)).all()
        assert (computed.error <= 1.5 * given.error.max()).all()


@pytest.mark.parametrize("promise", ["eager", "torch", "kernel", "fast_kernel"])
@pytest.mark.parametrize("grade", ["A", "B"])
def test_the_error_covers_the_rounding_errors_of_all_logits_within_the_error_of_the_logits(promise, grade):
    """The exact logits are nearly equal and have large errors. So computed logits may have far larger magnitudes."""
    random = np.random.RandomState(1)
    terms = rows_with_error(random, rows=4, classes=6, error=4.0)
    logits = (0.1 * random.standard_normal((4, 6))).astype("f4").astype("f8")
    terms = replace(terms, logits=logits, log_sum=log_sum(logits))
    contract = replace(linear_contract(promise, grade, "bfloat16", rows=4).loss, storage=FLOAT32)
    log_probs, probs, _ = softmax_of_inexact(terms, contract)
    before = log_softmax(logits)
    for sign in [*random.choice([-1, 1], (300, 6)), *np.where(np.eye(6), -1, 1), *np.where(np.eye(6), 1, -1)]:
        computed = (logits + 0.999999 * sign * terms.logits_error).astype("f4").astype("f8")
        given = replace(terms, logits=computed, log_sum=log_sum(computed), logits_error=None)
        log_p, p, _ = softmax(given, contract)
        assert (np.abs(log_p.value - before) + log_p.error <= log_probs.error + 1e-14).all()
        assert (np.abs(p.value - np.exp(before)) + p.error <= probs.error + 1e-14).all()
        assert (log_p.error <= log_probs.error - largest_move(terms, contract) + 1e-14).all()


@pytest.mark.parametrize(
    ("logits", "ulps"), [([[0.1, 0.0]], (0.0, 0.0)), ([[5.0, 0.0]], (0.0, 1000.0)), ([[0.1, 0.0]], (1000.0, 0.0))]
)
def test_each_rounding_error_is_taken_at_the_magnitude_of_the_computed_logits(logits, ulps):
    """One source of errors is large in each test: subtracting the maximum, the logarithm, or the exponential."""
    functions = replace(linear_contract("eager", "A", "bfloat16").loss.functions, exp_ulps=ulps[0], log_ulps=ulps[1])
    contract = replace(linear_contract("eager", "A", "bfloat16").loss, storage=FLOAT32, functions=functions)
    logits = np.float64(np.float32(logits))
    terms = rows_with_error(np.random.RandomState(0), rows=1, classes=2)
    terms = replace(terms, logits=logits, log_sum=log_sum(logits), logits_error=np.array([[4.0, 4.0]]))
    rounding = softmax_of_inexact(terms, contract)[0].error - largest_move(terms, contract)
    found = np.zeros_like(rounding)
    for change in np.random.RandomState(0).uniform(-4, 4, (500, 1, 2)):
        computed = np.float64(np.float32(logits + change))
        given = replace(terms, logits=computed, log_sum=log_sum(computed), logits_error=None)
        found = np.maximum(found, softmax(given, contract)[0].error)
    assert (found <= rounding + 1e-14).all()


def log_sum(logits):
    return np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))


def test_an_ignored_row_has_bounds_of_zero():
    call = replace(judge_of(0, "float32", sizes=(3, 4, 5))[0].call, index=np.array([-100, 1, -100]), ignore_index=-100)
    bounds = LinearBounds(LinearTerms.of(call), linear_contract("kernel", "B", "bfloat16"))
    assert not bounds.grad_input[[0, 2]].any()
    assert bounds.grad_input[1].all()


def test_logits_beyond_float16_promise_nothing():
    call = LinearCall(np.float32([[60000.0]]), np.float32([[2.0], [1.0]]), index=np.array([0]))
    bounds = LinearBounds(LinearTerms.of(call), linear_contract("kernel", "B", "float16"))
    assert np.isinf(bounds.loss)
    assert np.isinf(bounds.grad_input).all()
    assert np.isfinite(LinearBounds(LinearTerms.of(call), linear_contract("kernel", "A", "float16")).loss)


def test_an_upstream_gradient_that_is_no_power_of_two_rounds_a_float32_gradient_once_more():
    call = replace(linear_case(1, "float32", reduction="mean", ignored=0.0, dense=False).call, upstream=1.0)
    contract = linear_contract("kernel", "A", "float32")
    bounds, doubled, tripled = (
        LinearBounds(LinearTerms.of(replace(call, upstream=g)), contract) for g in (1.0, 2.0, 3.0)
    )
    values = np.abs(linear_answer(call).grad_weight.hi)
    np.testing.assert_allclose(doubled.grad_weight, 2 * bounds.grad_weight, rtol=WIDENED)
    assert (tripled.grad_weight >= 3 * bounds.grad_weight + 3 * U * values).all()


@pytest.mark.parametrize("smooth", [0.0, 0.1])
def test_bounds_of_many_rows_are_the_same_in_parts(monkeypatch, smooth):
    case = linear_case(2, "bfloat16", sizes=(40, 4, 9), smooth=smooth, reduction="mean", weighted=True)
    terms, contract = LinearTerms.of(case.call), linear_contract("kernel", "B", "bfloat16")
    whole = LinearBounds(terms, contract)
    expected = {name: getattr(whole, name) for name in LINEAR_RESULTS}
    monkeypatch.setattr(call, "parts_of", lambda numbers: [slice(0, 7), slice(7, 8), slice(8, 40)])
    monkeypatch.setattr(linear, "parts_of", call.parts_of)
    parts = LinearBounds(terms, contract)
    for name, bound in expected.items():
        np.testing.assert_allclose(getattr(parts, name), bound, rtol=COMPUTED, err_msg=name)


def test_parts_have_every_row_once():
    for shape in ((0, 5), (1, 10**6), (3, 2**14), (100_000, 3)):
        parts = call.parts_of(np.broadcast_to(0.0, shape))
        assert [at for part in parts for at in range(*part.indices(shape[0]))] == list(range(shape[0]))
        assert all(part.stop - part.start == 1 or (part.stop - part.start) * shape[1] <= 2**16 for part in parts)


def test_calls_whose_logits_have_an_error_are_stacked_with_their_errors():
    random = np.random.RandomState(0)
    one, two = rows_with_error(random, rows=3), rows_with_error(random, rows=4)
    contract = linear_contract("kernel", "A", "bfloat16").loss
    alone = [Bounds(terms, contract).loss for terms in (one, two)]
    together = [Bounds(terms, contract) for terms in (one, two)]
    assert one.structure == two.structure != replace(one, logits_error=None).structure
    Bounds.of_calls(together, ["loss"])
    np.testing.assert_array_equal([bounds.loss for bounds in together], alone)


def test_a_bfloat16_matrix_product_of_torch_on_a_cpu_may_flush_subnormal_numbers():
    arrays = np.float32([[1.0]]), np.float32([[0.0], [0.0]])
    terms = LinearTerms.of(LinearCall(*arrays, index=np.array([0]), reduction="sum", upstream=2.0**-130))
    exact = 2.0**-131
    assert (LinearBounds(terms, linear_contract("torch", "B", "bfloat16")).grad_weight >= exact).all()
    for contract in (
        linear_contract("torch", "B", "bfloat16", device="cuda:0"),
        linear_contract("eager", "B", "bfloat16"),
        linear_contract("torch", "A", "float32"),
    ):
        assert (LinearBounds(terms, contract).grad_weight < exact / 2).all()


def test_a_subnormal_operand_may_be_taken_for_zero_where_the_contract_flushes():
    arrays = np.float32([[2.0**-130]]), np.float32([[2.0**120], [0.0]])
    terms = LinearTerms.of(LinearCall(*arrays, index=np.array([0])))
    keeps, flushes = (linear_contract("kernel", "A", "float32", flushes=flushes) for flushes in (False, True))
    assert LinearBounds(terms, flushes).logits_error[0, 0] >= 2.0**-10
    assert LinearBounds(terms, keeps).logits_error[0, 0] < 2.0**-30
    exact = linear_answer(LinearCall(*arrays, index=np.array([0])))
    error = exact.grad_input.distance(np.float32([[-0.5 * 2.0**120]]))  # the gradient if all logits are 0
    assert (error <= LinearBounds(terms, flushes).grad_input).all()
    assert (error > LinearBounds(terms, keeps).grad_input).all()


@pytest.mark.parametrize("grade", ["A", "B"])
def test_a_gradient_of_each_row_may_be_rounded_before_its_upstream_gradient(grade):
    """The implementation rounds the gradient of the input, and then multiplies by the upstream gradient of each row."""
    case = linear_case(3, "bfloat16", sizes=(40, 6, 20), reduction="none", values="normal", ignored=0.0, dense=False)
    given = replace(case.call, upstream=np.ones(40, "f4"))
    scale = FORMATS["bfloat16"].nearest(np.linspace(1.1, 1.9, 40))
    once = RightLinear(0, "bfloat16", "A")(given)["grad_input"]
    twice = FORMATS["bfloat16"].nearest(once * scale[:, None])
    scaled = replace(given, upstream=scale)
    error = linear_answer(scaled).grad_input.distance(twice)
    bounds = LinearBounds(LinearTerms.of(scaled), linear_contract("kernel", grade, "bfloat16"))
    assert bool((error <= bounds.grad_input).all()) == (grade == "B")


def test_a_gradient_that_may_overflow_while_it_is_summed_has_no_bound():
    arrays = np.float32([[1.0]]), np.float32([[2.0**100], [2.0**100]])
    terms = LinearTerms.of(LinearCall(*arrays, index=np.array([0]), reduction="sum", upstream=2.0**30))
    assert np.isinf(LinearBounds(terms, linear_contract("kernel", "A", "float32")).grad_input).all()


ROWS_OF_ZEROS = np.zeros(16, np.int64)


@pytest.mark.parametrize(
    ("hidden", "options"),
    [
        (2.0**-149, {"reduction": "sum", "upstream": 2.0**60}),
        (2.0**-149, {"reduction": "sum", "upstream": 3 * 2.0**60}),
        (2.0**-120, {"weight": np.full(3, 2.0**-60, "f4")}),
    ],
)
def test_products_that_underflow_before_a_multiplication_by_the_upstream_gradient_or_by_1_over_d(hidden, options):
    """The implementation multiplies by `g/D` last: before, the products of the weight's gradient may underflow to 0."""
    call = LinearCall(np.full((16, 1), hidden, "f4"), np.zeros((3, 1), "f4"), index=ROWS_OF_ZEROS, **options)
    p = np.float32(1 / 3) * np.float32([[-2, 1, 1]])
    weight = np.float32(1 if call.weight is None else call.weight[0])
    divisor = 1.0 if call.reduction == "sum" else 16.0 * weight
    unscaled = ((p * weight).T * call.input.T).sum(1, dtype="f4", keepdims=True)
    error = linear_answer(call).grad_weight.distance(unscaled * (call.upstream / divisor))
    for promise in ("eager", "torch", "kernel"):
        assert (error <= LinearBounds(LinearTerms.of(call), linear_contract(promise, "A", "float32")).grad_weight).all()
    rows = replace(call, reduction="none", upstream=np.full(16, call.upstream))
    assert (error > LinearBounds(LinearTerms.of(rows), linear_contract("eager", "A", "float32")).grad_weight).any()


@pytest.mark.parametrize("options", [{"reduction": "sum", "upstream": 2.0**-30}, {"reduction": "mean"}])
def test_a_sum_of_rows_may_overflow_before_a_multiplication_by_the_upstream_gradient_or_by_1_over_d(options):
    arrays = np.full((16, 1), 2.0**126, "f4"), np.zeros((3, 1), "f4")
    terms = LinearTerms.of(LinearCall(*arrays, index=ROWS_OF_ZEROS, **options))
    assert np.isinf(LinearBounds(terms, linear_contract("eager", "A", "float32")).grad_weight).all()


def test_gradients_have_no_bound_if_rounded_class_weights_may_add_up_to_zero_even_where_a_factor_is_zero():
    # The class weights add up to 1/64. Their sum in bfloat16 may have a larger error, and may be 0.
    large = np.float32([1 + k / 128 for k in range(16)])
    weight = np.concatenate([large, -large, np.float32([1 / 64])])
    arrays = np.float32([[1, 0]] * 33), np.float32([[0, 1]] * 33)
    terms = LinearTerms.of(LinearCall(*arrays, index=np.arange(33), weight=weight))
    bounds = LinearBounds(terms, linear_contract("torch", "B", "bfloat16", rows=33))
    assert np.isinf(bounds.grad_input).all()
    assert np.isinf(bounds.grad_weight).all()


def test_a_declared_order_in_blocks_shows_logits_in_the_dtype_where_any_order_hides_them():
    fixed = {"values": "normal", "reduction": "mean", "ignored": 0.0, "smooth": 0.0, "weighted": False}
    case, exact, any_order = judge_of(0, "bfloat16", sizes=(16, 4096, 256), **fixed)
    blocks = LinearBounds(any_order.terms, linear_contract("kernel", "A", "bfloat16", block=32))
    (bug,) = [one for one in BUGS if one.__name__ == "KeepsTheLogitsInTheDtype"]
    right, wrong = (made(case.call, "bfloat16").run() for made in (Chunked, bug))
    assert max(shares((case, exact, any_order), wrong).values()) <= 1
    assert max(shares((case, exact, blocks), right).values()) <= 1
    assert shares((case, exact, blocks), wrong)["grad_weight"] > 5
