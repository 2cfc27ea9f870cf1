"""Each clause of the error bounds is needed: without the clause, a correct cross-entropy exceeds its bound.

A clause is code in `crossent/numerics/bounds/` that allows one rounding or one order of operations. In the docstrings,
`v` are the coefficients (class weight times smoothed target) and `t` is a target. `w` is a class weight, `g` the
upstream gradient, `ε` the label smoothing and `C` the number of classes.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.calls import inputs
from support.running import compare
from support.subjects import TENSOR_FORMS
from support.waits import float16

import crossent
from crossent.cases.case import Case
from crossent.forms.rows import lay_out
from crossent.numerics.bounds import call, intermediates, loss
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.loss import Bounds
from crossent.numerics.bounds.rounding import ANY_ORDER, Computed
from crossent.numerics.bounds.unbounded import unbounded
from crossent.numerics.formats import FLOAT32
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.trials.call import evaluate
from crossent.trials.exact import solve, terms_of

EAGER = [form for form in TENSOR_FORMS if form.promise == "eager"]


def differences(loss, given, grade="A", promise="eager"):
    compared = compare(evaluate(loss, given), solve(given), grade, promise)
    return {difference.of: difference for difference in compared}


def without(clause):
    """Remove a clause, given by its name, from the error bounds. Return the monkeypatch: `undo` restores the clause."""
    patch = pytest.MonkeyPatch()
    plain, times = Computed.sum, Computed.times
    leave_out = {
        "factors come in any order": lambda: patch.setattr(
            Bounds, "_partial_products", lambda self, sizes: np.zeros(sizes.shape[: 2 if self._dense else 1])
        ),
        "terms are scaled before they are summed": lambda: patch.setattr(loss, "wider", lambda a, b: a),
        "an underflow is multiplied": lambda: patch.setattr(
            Bounds, "_multiplied_in_any_order", lambda self, product, factors, products=1: product
        ),
        "no rounding is known": lambda: patch.setattr(
            Computed, "times", lambda self, other, into, known=True: times(self, other, into)
        ),
        "parts are summed separately": lambda: patch.setattr(
            Computed, "sum", lambda self, of, order=ANY_ORDER, sizes=None: plain(self, of, order)
        ),
        "options are stored like other numbers": lambda: patch.setattr(
            intermediates,
            "constant",
            lambda value, narrow, c: Computed(
                np.asarray(value), np.asarray(2 * narrow.unit_roundoff * abs(value)), None
            ),
        ),
        "weights are summed like losses": lambda: patch.setattr(
            call,
            "denominator",
            lambda t, c: c.keep(
                Computed.exactly(np.where(t.kept, t.weight[t.index], 0.0), c.storage)[None].sum(c.compute)
            ),
        ),
    }
    leave_out[clause]()
    return patch


def assert_needed(clause, loss, check, given, grade="A", promise="eager"):
    """Assert that a correct loss is within its bound, and exceeds the bound that the other clauses give.

    `check` is the result that is compared, such as "gradient".
    """
    assert differences(loss, given, grade, promise)[check].ratio <= 1
    patch = without(clause)
    try:
        assert differences(loss, given, grade, promise)[check].ratio > 1, f"{clause}: the loss passes without it"
    finally:
        patch.undo()


def test_a_difference_of_logits_may_overflow_where_the_loss_is_finite():
    """-3e38 - 3e38 is -inf in float32, and 0 · -inf is NaN, although the exact loss is 0."""
    given = inputs([[3e38, -3e38], [3e38, 1e38]], [[1.0, 0.0], [1.0, 0.0]], "bfloat16")
    for subject in EAGER:
        loss = evaluate(subject.loss, given).loss
        assert loss.isnan().tolist() == [True, False]
        difference = differences(subject.loss, given)["loss"]
        assert difference.ratio <= 1
        assert difference.not_judged == {"an intermediate may overflow": 1}
        assert difference.elements == 2
    expected = solve(given)
    assert expected.loss.hi[0] == 0
    assert np.isfinite(Bounds(expected.terms, contract("eager", "A", "bfloat16").unlimited).loss).all()


@pytest.mark.parametrize("classes", [10_000, 50_000])
def test_a_sum_over_the_classes_may_overflow_before_its_product_with_the_smoothing(classes):
    """The log-probabilities of all classes add up to -1e39, which overflows float32. ε/C times the sum does not."""
    logits = [[0.0] + [-1e39 / classes] * (classes - 1)]
    given = inputs(logits, [0], label_smoothing=0.1)
    for name, finite in (("formula", False), ("log_softmax_nll", False), ("one_hot", True)):
        got = evaluate(FORM_SUBJECTS[name].loss, given).loss
        assert bool(got.isfinite().all()) == finite
        assert differences(FORM_SUBJECTS[name].loss, given)["loss"].not_judged == {"an intermediate may overflow": 1}
    assert_needed("factors come in any order", crossent.formula, "loss", given)
    # A thousandth of this sum does not overflow, and has a bound.
    given = inputs((np.array(logits) / 1000).tolist(), [0], label_smoothing=0.1)
    for subject in EAGER:
        assert not differences(subject.loss, given)["loss"].not_judged
        assert differences(subject.loss, given)["loss"].ratio <= 1


def test_a_product_may_overflow_before_its_last_factor_which_is_zero():
    """If the weight comes last, t·(-log p)·w is 2 · 2e38 · 0 = inf · 0 = NaN, although the exact loss is 0."""
    given = inputs([[2e38, 0.0]], [[0.0, 2.0]], weight=[1.0, 0.0])
    assert evaluate(crossent.formula, given).loss.isnan().all()
    assert_needed("factors come in any order", crossent.formula, "loss", given)


def test_a_product_may_overflow_before_a_last_factor_that_is_a_small_loss():
    """w·t is 4e38, which float32 cannot represent, although the loss, half of w·t times log 2, is 1.4e38."""
    given = inputs([[0.0, 0.0]], [[2e19, 0.0]], weight=[2e19, 1.0], label_smoothing=0.5)

    def two_parts(input, target, *, weight, label_smoothing, **options):
        log_probs = input.log_softmax(-1)
        hot, uniform = -(weight * target * log_probs).sum(-1), -(weight * log_probs).sum(-1)
        return (1 - label_smoothing) * hot + label_smoothing / 2 * uniform

    assert evaluate(two_parts, given).loss.isinf().all()
    assert np.isfinite(solve(given).loss.hi).all()
    assert differences(two_parts, given)["loss"].not_judged == {"an intermediate may overflow": 1}
    below = inputs([[0.0, 0.0]], [[2e19, 0.0]], weight=[1e19, 1.0], label_smoothing=0.5)  # w·t is 2e38
    assert differences(two_parts, below)["loss"].not_judged == {}


def test_terms_that_cancel_may_be_scaled_before_they_are_summed():
    """The coefficients v of the row add up to 0. If torch scales and rounds each v before the sum, the sum is not 0."""
    target = [[1.0, -52.0, 48.0, 15.0, 50.0, -31.0, -84.0, -23.0, 76.0]]
    given = inputs([[6.0, *[0.0] * 8]], target, "bfloat16")
    given = replace(given, upstream=torch.tensor([1.015625], dtype=torch.bfloat16))
    assert_needed("terms are scaled before they are summed", TORCH.loss, "gradient", given, "B", "torch")


@float16
def test_the_rounding_of_a_product_of_three_factors_is_not_known():
    """The bound could compute the rounding error of w·t in (w·t)·g. But torch computes (g·t)·w."""
    case = Case.of("float16-4x256x2x16-normal-probabilities-none-weight_zeros-stride0-expanded-seed1017810326")
    assert_needed("no rounding is known", TORCH.loss, "gradient", case.build(), "B", "torch")


@float16
def test_an_underflow_in_the_gradient_of_a_target_is_multiplied_too():
    case = Case.of("float16-205x63-decades-hard-mean-weight_decades-scalar-smooth0.656-seed1595077572")
    assert_needed("an underflow is multiplied", TORCH.loss, "target_gradient", case.build(), "B", "torch")


def test_a_product_in_the_gradient_of_a_target_may_overflow_before_its_last_factor():
    """If the weight 0.05 comes last, 2e38 · 2 overflows, although the whole product is 2e37."""
    given = inputs([[2e38, 0.0]], [[0.0, 1.0]], weight=[1.0, 0.05])
    given = replace(given, upstream=torch.tensor([2.0]))
    found = differences(crossent.formula, given)["target_gradient"]
    assert found.not_judged == {"an intermediate may overflow": 1}


@pytest.mark.parametrize("subject", [*EAGER, TORCH], ids=lambda subject: subject.name)
def test_a_product_in_the_gradient_may_overflow_before_its_last_factor(subject):
    """g·w is 1e40, which float32 cannot represent, although (g·t)·w is 1e20. Autograd multiplies g by w first."""
    given = inputs([[0.0, 1.0]], [[1e-20, 1e-20]], weight=[1e20, 1e20])
    given = replace(given, upstream=torch.tensor([1e20]))
    found = differences(subject.loss, given)["gradient"]
    assert evaluate(subject.loss, given).gradient.isnan().all()
    assert np.isfinite(solve(given).gradient.hi).all()
    assert found.not_judged == {"an intermediate may overflow": 2}


def test_a_product_in_the_gradient_of_the_target_may_overflow_before_its_last_factor():
    """For the first class, g·w is 1e40, but -log p is 2e-22. For the other class, no product overflows."""
    given = inputs([[50.0, 0.0]], [[1.0, 0.0]], weight=[1e20, 1e-30])
    given = replace(given, upstream=torch.tensor([1e20]))
    assert np.isfinite(solve(given).target_gradient.hi).all()
    found = differences(crossent.formula, given)["target_gradient"]
    assert found.not_judged == {"an intermediate may overflow": 1}


def test_only_the_class_weight_of_the_true_class_is_a_factor_without_smoothing():
    """The weight 1e30 of the other class times g overflows, but no implementation needs this product."""
    given = inputs([[0.0, 1.0]], [0], weight=[1.0, 1e30])
    given = replace(given, upstream=torch.tensor([1e20]))
    found = differences(crossent.formula, given)["gradient"]
    assert found.not_judged == {}
    assert found.ratio <= 1


@pytest.mark.parametrize("subject", [*EAGER, TORCH], ids=lambda subject: subject.name)
def test_a_factor_of_the_gradient_may_underflow_to_zero_in_float64(subject):
    """g/D is 1e-330, which rounds to 0. So the computed gradient is 0, although (g·w)/D is 1e-40."""
    given = inputs([[0.0, 1.0]], [0], "float64", weight=[1e290, 1e290], reduction="mean")
    given = replace(given, upstream=torch.tensor(1e-40, dtype=torch.float64))
    assert (evaluate(subject.loss, given).gradient == 0).all()
    assert (np.abs(solve(given).gradient.hi) > 1e-41).all()
    assert differences(subject.loss, given)["gradient"].ratio <= 1


@float16
def test_an_underflow_is_multiplied_by_the_remaining_factors():
    """ε/C divided by a thousand rows underflows to 0 in float16. With the weight 2048 last, the error is 2e-5."""
    given = inputs(
        [[0.0, 0.0, -12.0]] * 1000,
        [0, 1] * 500,
        "float16",
        weight=[1.0, 1.0, 2048.0],
        reduction="mean",
        label_smoothing=3e-5,
    )
    assert (evaluate(TORCH.loss, given).gradient[:, 2] >= 0).all()
    assert (solve(given).gradient.hi[:, 2] < -1e-5).all()
    assert_needed("an underflow is multiplied", TORCH.loss, "gradient", given, "B", "torch")


def test_the_parts_of_a_smoothed_loss_may_be_summed_separately_although_they_cancel():
    """The part of the target of each row is about 500, and the uniform part about -500.

    The separate sums of the two parts have much larger rounding errors than the sum of the whole rows.
    """

    def summed_separately(input, target, **options):
        rows = lay_out(input, target, options.get("weight"), -100, "sum", options["label_smoothing"])
        log_probs = -torch.log_softmax(rows.logits, -1)
        hard = 0.5 * rows.weigh(rows.pick(log_probs))
        uniform = rows.weighted(log_probs).sum(-1) * (0.5 / log_probs.shape[-1])
        return functools.reduce(torch.add, hard) + functools.reduce(torch.add, uniform)  # one row after another

    logits = [[0.0, -1000.3, -2000.7]] * 5000
    given = inputs(logits, [1] * 5000, weight=[1.0, 1.0, -2.0], reduction="sum", label_smoothing=0.5)
    assert_needed("parts are summed separately", summed_separately, "loss", given)


def test_the_weights_of_a_mean_are_summed_in_the_precision_of_its_losses():
    """On a CPU, torch sums both the losses and the weights in bfloat16."""
    given = inputs([[0.0, -50.0]] * 4000, [1] * 4000, "bfloat16", weight=[1.0, 1.03125], reduction="mean")
    assert_needed("weights are summed like losses", TORCH.loss, "gradient", given, "B", "torch")


def test_numbers_computed_from_label_smoothing_are_stored_like_other_numbers():
    """(1 - ε)·t and ε/C nearly cancel, and torch rounds both to bfloat16."""
    given = inputs([[-1000.0, 0.0]], [[-0.61328125, 0.5]], "bfloat16", label_smoothing=0.553)
    assert_needed("options are stored like other numbers", TORCH.loss, "gradient", given, "B", "torch")


@pytest.mark.parametrize("promise", ["eager", "kernel", "fast_kernel"])
def test_the_bound_does_not_grow_with_a_common_offset(promise):
    """A loss computed as `(max + log s) - x` fails with an offset, because `max + log s` loses digits.

    Here `s` is the sum of `exp(x - max)`. A kernel may compute the loss in this way if the logits of a row have both
    signs, or contain 0. The bound then allows a few rounding errors of the row's spread.
    """
    spread = np.random.RandomState(0).randint(-64, 64, size=(7, 10)) / 16

    def logsumexp_first(input, target, **options):
        return torch.logsumexp(input, 1) - input.gather(1, target[:, None])[:, 0]

    widths = {}
    for offset in (0.0, 1e4):
        given = inputs((spread + offset).tolist(), [0] * 7)
        found = differences(crossent.formula, given, promise=promise)
        assert found["loss"].ratio <= 1
        assert found["gradient"].ratio <= 1
        widths[offset] = solve(given).bounds(contract(promise, "A", "float32")).loss
        assert (differences(logsumexp_first, given, promise=promise)["loss"].ratio > 1) == (offset > 0)
    if promise == "eager":
        assert np.array_equal(widths[0.0], widths[1e4])
    assert (widths[1e4] <= widths[0.0] + 2 * FLOAT32.unit_roundoff * np.ptp(spread, 1)).all()
    assert (widths[1e4] < 1e4 * FLOAT32.unit_roundoff).all()


def reasons(check, given, **promised):
    terms = terms_of(given)
    dtype = str(given.input.dtype).removeprefix("torch.")
    return {
        reason: int(where.sum())
        for reason, where in unbounded(Bounds(terms, contract(dtype=dtype, **promised)), check).items()
    }


def test_an_infinite_bound_has_a_reason():
    eager = {"promise": "eager", "grade": "A"}
    assert reasons("loss", inputs([[1.0, 2.0]], [0]), **eager) == {}
    # The loss of each row is 6e4, and the sum of both overflows float16.
    given = inputs([[0.0, 60000.0]] * 2, [0, 0], "float16", reduction="sum")
    assert reasons("loss", given, **eager) == {"an intermediate may overflow": 1}
    assert reasons("gradient", given, **eager) == {}
    # The sum of these weights of both signs is as small as its rounding error.
    given = inputs([[0.0, 1.0]] * 3, [0, 1, 1], weight=[1.0, -0.5 - 2.0**-24], reduction="mean")
    assert reasons("loss", given, **eager) == {"the denominator may be zero": 1}
    assert reasons("gradient", given, **eager) == {"the denominator may be zero": 6}
    # A running sum in bfloat16 may lose most of 200 equal terms.
    given = inputs([[0.0, 1.0]] * 200, [0] * 200, "bfloat16", reduction="sum")
    on_cuda = {"promise": "torch", "grade": "B", "device": "cuda", "rows": 200}
    assert reasons("loss", given, **on_cuda) == {"a sum has too many terms for the precision of its format": 1}
    # With a probability of 0 at a logit of -inf, the exact value is NaN, and crossent compares this NaN.
    given = inputs([[0.0, -float("inf")]], [[1.0, 0.0]])
    assert reasons("loss", given, **eager) == {"a step may multiply zero by infinity": 1}
    assert differences(crossent.formula, given)["loss"].not_judged == {}
    # If the weights cancel to 0, the denominator is 0, and the gradient has no exact value.
    given = inputs([[0.0, 1.0]] * 2, [0, 1], weight=[1.0, -1.0], reduction="mean")
    assert differences(crossent.formula, given)["gradient"].not_judged == {"the exact value is not known": 4}
