"""Compare the oracle with a second oracle, which computes each element with 100 digits or more, and with known values.

The contract of cross-entropy is torch's documentation, and torch's behaviour where the documentation says nothing. The
second oracle, `by_definition`, has the formulas of the contract in mpmath, whose infinities and NaN give the special
values. The tests compare every number of every case. The second oracle's number must be within the oracle's radius. The
radius must be below 2^-20 times the rounding error of the number's terms in the dtype of the call.
"""

import itertools
import math
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import flint
import numpy as np
import pytest
from mpmath import mp, mpf

from crossent.numerics.oracle import answer as answer_module
from crossent.numerics.oracle.answer import SAVED, answer
from crossent.numerics.oracle.arguments import Arguments
from crossent.numerics.oracle.arithmetic import EXP_LOG_ULP, Ball, compensated_sum, two_sum

INF, NAN = math.inf, math.nan
UNIT_ROUNDOFF = {np.float32: 2.0**-24, np.float64: 2.0**-53}
# A radius below this number is small enough, whatever the terms. For float32, the number is half the smallest subnormal
# number. The oracle returns two float64 numbers, which cannot express a number below 2^-1074.
NEGLIGIBLE = {np.float32: 2.0**-150, np.float64: 2.0**-1050}

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


# --- The second oracle --------------------------------------------------------------------------------------------


def by_definition(a, direction=None):
    """Return losses, loss, gradients and their sizes for the arguments `a`, as mpf numbers in a namespace.

    With a direction, also return the derivatives along the direction. The size of a number is the sum of the magnitudes
    of its terms. Each row must have a finite maximum.
    """
    rows, classes = a.logits.shape
    eps, upstream = mpf(a.label_smoothing), [mpf(float(g)) for g in np.broadcast_to(a.upstream, rows)]
    w = [mpf(1)] * classes if a.weight is None else [mpf(float(value)) for value in a.weight]
    kept = [r for r in range(rows) if a.index is None or a.index[r] != a.ignore_index]
    denominator = mpf(1)
    if a.reduction == "mean":
        denominator = mp.fsum(w[a.index[r]] for r in kept) if a.index is not None else mpf(rows)
    scale = [g / denominator if denominator else mp.nan for g in upstream]

    out = SimpleNamespace(losses=[], gradient=[], target_gradient=[], loss_sizes=[], gradient_sizes=[])
    out.tangents, out.tangent_sizes, out.second, out.second_sizes = [], [], [], []
    for r in range(rows):
        x = [mpf(float(value)) for value in a.logits[r]]
        exps = [mp.exp(value - max(x)) for value in x]
        partition = mp.fsum(exps)
        p, lp = [e / partition for e in exps], [value - max(x) - mp.log(partition) for value in x]
        if a.index is None:
            t = [mpf(float(value)) for value in a.probabilities[r]]
        else:
            t = [mpf(int(c == a.index[r])) for c in range(classes)]
        v = [w[c] * ((1 - eps) * t[c] + eps / classes) for c in range(classes)]
        v_size = [abs(w[c]) * ((1 - eps) * abs(t[c]) + eps / classes) for c in range(classes)]
        terms = range(classes) if a.index is None or eps else [a.index[r]]
        if r in kept:
            out.losses.append(-sum((v[c] * lp[c] for c in terms), mpf(0)))
            out.loss_sizes.append(sum((v_size[c] * abs(lp[c]) for c in terms), mpf(0)))
            out.gradient.append([scale[r] * (p[c] * mp.fsum(v) - v[c]) for c in range(classes)])
            size = mp.fsum(v_size)
            out.gradient_sizes.append([abs(scale[r]) * (p[c] * size + v_size[c]) for c in range(classes)])
        else:
            out.losses.append(mpf(0))
            out.loss_sizes.append(mpf(0))
            out.gradient.append([mpf(0)] * classes)
            out.gradient_sizes.append([mpf(0)] * classes)
        if a.index is None:
            out.target_gradient.append([-scale[r] * (1 - eps) * w[c] * lp[c] for c in range(classes)])
        if direction is not None:
            u, kept_row = [mpf(float(value)) for value in direction[r]], int(r in kept)
            mean, mean_size = (mp.fsum(p[c] * f(u[c]) for c in range(classes)) for f in (mpf, abs))
            out.tangents.append(kept_row * mp.fsum(v[c] * (mean - u[c]) for c in range(classes)))
            out.tangent_sizes.append(kept_row * mp.fsum(v_size[c] * (mean_size + abs(u[c])) for c in range(classes)))
            factor, factor_size = scale[r] * mp.fsum(v), abs(scale[r]) * mp.fsum(v_size)
            kept_rows = [mpf(0)] * classes, [mpf(0)] * classes
            if kept_row:
                kept_rows = (
                    [factor * p[c] * (u[c] - mean) for c in range(classes)],
                    [factor_size * p[c] * (abs(u[c]) + mean_size) for c in range(classes)],
                )
            out.second.append(kept_rows[0])
            out.second_sizes.append(kept_rows[1])
    out.tangent = sum(out.tangents, mpf(0)) / denominator if denominator else mp.nan
    out.tangent_size = sum(out.tangent_sizes, mpf(0)) / abs(denominator) if denominator else mp.nan
    out.loss = sum(out.losses, mpf(0)) / denominator if denominator else mp.nan
    out.loss_size = sum(out.loss_sizes, mpf(0)) / abs(denominator) if denominator else mp.nan
    return out


class Comparison:
    """A comparison of the oracle's numbers with exact mpf numbers, over many cases.

    The oracle returns balls: numbers, each with a radius. `count` is the number of compared numbers, and `special` how
    many of them are infinite or NaN. `worst` is the largest share of a radius.
    """

    def __init__(self, dtype):
        self.dtype, self.count, self.special, self.worst = dtype, 0, 0, 0.0

    def compare(self, ball, exact, sizes, denominator=1):
        """Assert that every exact number is within the radius of the ball, and that every radius is small enough.

        Infinities and NaN must be equal, with radius 0.

        Args:
            ball: the oracle's numbers.
            exact: the exact numbers.
            sizes: the sums of the magnitudes of the terms of each number.
            denominator: the denominator of a mean if below 1, otherwise 1. The division enlarges a negligible radius.
        """
        assert all(isinstance(part, np.ndarray) for part in (ball.hi, ball.lo, ball.radius))
        assert ball.lo.shape == ball.radius.shape == ball.hi.shape
        exact, sizes = (np.array(values, object).reshape(ball.hi.shape) for values in (exact, sizes))
        for index in np.ndindex(ball.hi.shape):
            z, hi, lo, radius = exact[index], *(float(part[index]) for part in (ball.hi, ball.lo, ball.radius))
            self.count += 1
            if not mp.isfinite(z):
                self.special += 1
                assert radius == lo == 0, (index, hi, lo, radius, z)
                assert hi == z or (math.isnan(hi) and mp.isnan(z)), (index, hi, lo, radius, z)
                continue
            error = abs(mpf(hi) + lo - z)
            allowed = radius + sizes[index] * mpf(10) ** (25 - mp.dps)  # the second term covers roundings in mpmath
            assert error <= allowed, (index, hi, lo, radius, z)
            limit = UNIT_ROUNDOFF[self.dtype] * sizes[index] + NEGLIGIBLE[self.dtype] / denominator
            assert radius <= limit * 2.0**-20, (index, hi, lo, radius, z)
            if radius:
                self.worst = max(self.worst, float(error / allowed))

    def case(self, a, digits=100):
        """Compare the losses and the gradients of the call with the arguments `a`, with `digits` digits in mpmath."""
        with mp.workdps(digits):
            exact, got = by_definition(a), answer(a)
            self.compare(got.losses, exact.losses, exact.loss_sizes)
            if a.reduction == "none":
                self.compare(got.loss, exact.losses, exact.loss_sizes)
            else:
                denominator = abs(mpf(float(got.denominator.hi)))
                self.compare(got.loss, exact.loss, exact.loss_size, min(mpf(1), denominator))
                if mp.isfinite(exact.loss):  # the errors of all rows may have one sign
                    radii = mp.fsum(map(float, got.losses.radius)) / denominator
                    assert float(got.loss.radius) >= radii * (1 - mpf(2) ** -50)
            rows = 0
            for block, gradient, target_gradient in got.gradients():
                rows += len(gradient.hi)
                self.compare(gradient, exact.gradient[block], exact.gradient_sizes[block])
                assert (target_gradient is None) == (a.probabilities is None)
                if target_gradient is not None:
                    expected = np.array(exact.target_gradient[block])
                    self.compare(target_gradient, expected, abs(expected))
            assert rows == len(a.logits)

    def along(self, a, direction, digits=100):
        """Compare the derivatives of loss and gradient along a direction, for the call with the arguments `a`.

        mpmath computes the exact numbers with `digits` digits.
        """
        with mp.workdps(digits):
            exact, got = by_definition(a, direction), answer(a)
            self.compare(got.second(direction), exact.second, exact.second_sizes)
            tangent = got.tangent(direction)
            if a.reduction == "none":
                self.compare(tangent, exact.tangents, exact.tangent_sizes)
            elif not a.kept.any() and a.reduction == "mean":
                assert tangent.radius == INF
            else:
                denominator = min(mpf(1), abs(mpf(float(got.denominator.hi))))
                self.compare(tangent, exact.tangent, exact.tangent_size, denominator)


# --- Every option with every kind of logits -----------------------------------------------------------------------


def masked(x, rng):
    """Return the logits with -inf at random classes, except the largest logit of each row."""
    return np.where((rng.random(x.shape) < 0.4) & (x < x.max(1, keepdims=True)), -INF, x)


def tiny_above(x, rng):
    """Return the logits with a tiny positive largest logit in each row.

    In float64, the difference of another logit and the largest logit loses the digits of the largest logit.
    """
    x[np.arange(len(x)), rng.integers(0, x.shape[1], len(x))] = 10.0 ** rng.uniform(-16, -13, len(x))
    return x


def decades(rng, shape, lowest, highest):
    """Return random numbers of both signs with magnitudes from 10^lowest to 10^highest, evenly over the decades."""
    return rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(lowest, highest, shape)


# For each kind of logits, a function that draws them, and the number of digits that `by_definition` needs for float64:
# `1 - p` must keep numbers down to 1e-323. For float32, the radius is at least 2^-200, so 100 digits suffice.
REGIMES = {
    "ordinary": (lambda rng, shape, dtype: 3 * rng.standard_normal(shape), 100),
    "small": (lambda rng, shape, dtype: 1e-3 * rng.standard_normal(shape), 100),
    "subnormal": (
        lambda rng, shape, dtype: rng.integers(-9, 9, shape) * float(np.finfo(dtype).smallest_subnormal),
        100,
    ),
    "large": (lambda rng, shape, dtype: 30 * rng.standard_normal(shape), 200),
    "very_large": (lambda rng, shape, dtype: 1e4 * rng.standard_normal(shape), 400),
    "underflowing": (lambda rng, shape, dtype: rng.uniform(-800, -600, shape) * rng.integers(0, 2, shape), 400),
    "offset": (lambda rng, shape, dtype: 1e8 + 8 * rng.integers(-9, 9, shape), 200),
    "negative_offset": (lambda rng, shape, dtype: -1e8 + 3 * rng.standard_normal(shape), 200),
    "near_ties": (lambda rng, shape, dtype: 5 + rng.integers(0, 3, shape) * float(np.finfo(dtype).eps) * 4, 100),
    "ties": (lambda rng, shape, dtype: np.zeros(shape) - 7, 100),
    "saturated": (lambda rng, shape, dtype: -1024.0 * rng.permuted(np.arange(shape[1]) + np.zeros(shape), axis=1), 400),
    "masked": (lambda rng, shape, dtype: masked(3 * rng.standard_normal(shape), rng), 100),
    "decades": (lambda rng, shape, dtype: decades(rng, shape, -40, 3), 400),
    "rounded_shift": (lambda rng, shape, dtype: tiny_above(rng.uniform(-130, -60, shape), rng), 100),
    "huge": (lambda rng, shape, dtype: decades(rng, shape, 25, 38 if dtype == np.float32 else 60), 400),
    "half_precision": (lambda rng, shape, dtype: (5 * rng.standard_normal(shape)).astype(np.float16), 100),
}

WEIGHTS = {
    "no_weight": lambda rng, classes: None,
    "decades": lambda rng, classes: 10.0 ** rng.uniform(-6, 6, classes),
    "some_zero": lambda rng, classes: rng.random(classes) * (np.arange(classes) % 2),
    "some_negative": lambda rng, classes: rng.standard_normal(classes),
}

PROBABILITIES = {
    "normalised": lambda rng, shape: rng.dirichlet(np.ones(shape[1]), shape[0]),
    "one_hot": lambda rng, shape: np.eye(shape[1])[rng.integers(0, shape[1], shape[0])],
    "any_numbers": lambda rng, shape: decades(rng, shape, -3, 2),
}

TARGETS = ["index", "ignored", *PROBABILITIES]
REDUCTIONS = ["none", "mean", "sum"]
SMOOTHINGS = [0.0, 1e-6, 0.1, 1.0]


def arguments_of(rng, regime, dtype, target, reduction, weight, label_smoothing):
    shape = rows, classes = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    weight = WEIGHTS[weight](rng, classes)
    index = rng.integers(0, classes, rows)
    if target == "ignored":
        index[rng.random(rows) < 0.5] = -100
    upstream = rng.standard_normal(rows if reduction == "none" else None) * 4
    return Arguments(
        logits=REGIMES[regime][0](rng, shape, dtype).astype(dtype),
        index=None if target in PROBABILITIES else index,
        probabilities=PROBABILITIES[target](rng, shape).astype(dtype) if target in PROBABILITIES else None,
        weight=None if weight is None else weight.astype(dtype),
        reduction=reduction,
        label_smoothing=label_smoothing,
        upstream=np.asarray(upstream).astype(dtype),
    )


@each_dtype
@pytest.mark.parametrize("regime", REGIMES)
def test_every_number_is_within_its_radius_of_the_definition(regime, dtype, seed):
    rng = np.random.default_rng([seed, sorted(REGIMES).index(regime)])
    comparison, cases = Comparison(dtype), 0
    for options in itertools.product(TARGETS, REDUCTIONS, WEIGHTS, SMOOTHINGS):
        a = arguments_of(rng, regime, dtype, *options)
        try:
            comparison.case(a, REGIMES[regime][1] if dtype == np.float64 else 100)
        except AssertionError as error:
            raise AssertionError(f"{options}: {a}") from error
        cases += 1
    print(
        f"{regime}, {dtype.__name__}: {cases} cases, {comparison.count} numbers, {comparison.special} of them special, "
        f"worst error / radius {comparison.worst:.3f}"
    )
    assert comparison.worst > 0 or regime in {"ties", "subnormal"}, "no number was rounded"


@each_dtype
@pytest.mark.parametrize("regime", REGIMES)
def test_every_derivative_along_a_direction_is_within_its_radius_of_the_definition(regime, dtype, seed):
    rng = np.random.default_rng([seed, 1, sorted(REGIMES).index(regime)])
    comparison, every = Comparison(dtype), list(itertools.product(TARGETS, REDUCTIONS, WEIGHTS, SMOOTHINGS))
    for at in range(int(rng.integers(12)), len(every), 12):
        a = arguments_of(rng, regime, dtype, *every[at])
        direction = rng.integers(-2, 3, a.logits.shape).astype(float)
        if at % 2:
            direction = np.float32(rng.standard_normal(direction.shape)).astype(float)
        try:
            comparison.along(a, direction, REGIMES[regime][1] if dtype == np.float64 else 100)
        except AssertionError as error:
            raise AssertionError(f"{every[at]}: {a}, {direction}") from error
    print(
        f"{regime}, {dtype.__name__}: {comparison.count} numbers, {comparison.special} of them special, worst error / "
        f"radius {comparison.worst:.3f}"
    )
    assert comparison.worst > 0 or regime in {"ties", "subnormal", "saturated"}, "no number was rounded"


def as_wrong_as_assumed(function, x, direction):
    """Return the float64 number that is as far from `function(x)` as the assumed error `EXP_LOG_ULP` allows.

    `direction` is 1 for a number above the exact result, and -1 for a number below.
    """
    with flint.ctx.workprec(200):
        exact = function(flint.arb(float(x)))
        value = float(exact)
        allowed = EXP_LOG_ULP * float(np.spacing(value))
        while abs(exact - (further := math.nextafter(value, INF * direction))) <= allowed:
            value = further
        return value


def test_with_the_largest_assumed_errors_of_exp_and_log_a_quarter_of_the_radius_is_reached(seed, monkeypatch):
    """The error never exceeds the radius, even if two exponentials are too large and all others too small.

    The test also takes the opposite errors.
    """
    rng = np.random.default_rng(seed)
    comparison, along = Comparison(np.float32), Comparison(np.float32)
    for _ in range(50):
        classes = int(rng.integers(10, 30))
        # exp(x) is just above a power of two, where an ulp is largest relative to the number.
        x = np.float32(np.log(2.0) * -rng.integers(1, 4, (1, classes)) * (1 - 2.0**-23))
        direction = np.r_[1, 1, -np.ones(classes - 2)] * rng.choice([-1, 1])
        x[0, 0] = 0
        exps = [[as_wrong_as_assumed(flint.arb.exp, *pair) for pair in zip(x[0], direction, strict=True)]]
        monkeypatch.setattr(np, "exp", lambda _, exps=exps: np.array(exps))
        monkeypatch.setattr(
            np, "log1p", lambda v, d=direction[2]: np.array([as_wrong_as_assumed(flint.arb.log1p, v[0], d)])
        )
        options = {"reduction": "none", "weight": rng.random(classes).astype(np.float32), "upstream": rng.random(1)}
        for label_smoothing in (0.0, 0.1):
            a = Arguments(x, index=rng.integers(0, classes, 1), label_smoothing=label_smoothing, **options)
            comparison.case(a)
            along.along(a, np.sign(direction)[None])
    print(f"{comparison.count} numbers, worst error / radius {comparison.worst:.3f}")
    print(f"{along.count} along a direction, worst error / radius {along.worst:.3f}")
    assert 1 / 4 < comparison.worst <= 1
    assert 1 / 8 < along.worst <= 1  # less than above, because the proof allows for more sums than occur here


@each_dtype
def test_a_smoothed_probability_that_cancels_is_within_its_radius(dtype, seed):
    """For a negative t, `(1 - ε)·t + ε/C` may cancel to little more than the rounding errors of its terms."""
    rng = np.random.default_rng(seed)
    comparison = Comparison(dtype)
    for _ in range(100):
        rows, classes = int(rng.integers(1, 3)), int(rng.integers(2, 5))
        label_smoothing = float(rng.uniform(0.01, 0.9))
        t = np.full((rows, classes), -label_smoothing / classes / (1 - label_smoothing), dtype)
        x = rng.standard_normal((rows, classes)).astype(dtype)
        comparison.case(Arguments(x, probabilities=t, label_smoothing=label_smoothing, reduction="sum"))
    print(f"{comparison.count} numbers, worst error / radius {comparison.worst:.3f}")


def test_float32_and_float64_arithmetic_agree_on_fifty_thousand_classes(seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((3, 50_000)).astype(np.float32) * 5, rng.random(50_000).astype(np.float32)
    along = rng.integers(-2, 3, x.shape).astype(float)
    for label_smoothing in (0.0, 0.1):
        options = {"index": rng.integers(0, 50_000, 3), "label_smoothing": label_smoothing, "upstream": 2.0}
        narrow, wide = (answer(Arguments(x.astype(t), weight=weight, **options)) for t in (np.float32, np.float64))
        balls = [(narrow.losses, wide.losses), (narrow.loss, wide.loss)]
        balls += [(n[1], w[1]) for n, w in zip(narrow.gradients(), wide.gradients(), strict=True)]
        balls += [(getattr(narrow, of)(along), getattr(wide, of)(along)) for of in ("tangent", "second")]
        for in_float64, in_balls in balls:
            distance = in_balls.distance(in_float64.hi)
            assert (distance <= in_float64.radius + in_balls.radius).all()
            assert (in_balls.radius <= 2.0**-24 * in_float64.radius).all()


# --- Values that are infinite, NaN or exactly 0 -------------------------------------------------------------------


def assert_exact(ball, expected):
    """Assert that the ball has exactly the expected numbers, with radius 0."""
    assert ball.hi.shape == np.shape(expected)
    np.testing.assert_array_equal(ball.hi, expected)
    np.testing.assert_array_equal(ball.lo, np.zeros(np.shape(expected)))
    np.testing.assert_array_equal(ball.radius, np.zeros(np.shape(expected)))


def answers(dtype, logits, target, *, weight=None, **options):
    """Return the exact losses, loss, gradients and derivatives along a direction of a call, in a namespace.

    The default reduction is "none". A target with two dimensions holds probabilities. The call must fit in one block.
    """
    key = "probabilities" if np.ndim(target) == 2 else "index"
    target = np.array(target, dtype if key == "probabilities" else np.int64)
    weight = None if weight is None else np.array(weight, dtype)
    options = {"reduction": "none", **options}
    logits = np.array(logits, dtype)
    if options["reduction"] == "none":
        options.setdefault("upstream", np.ones(len(logits)))
    got = answer(Arguments(logits, weight=weight, **{key: target}, **options))
    (_, gradient, target_gradient) = next(got.gradients(), (None, None, None))
    out = SimpleNamespace(losses=got.losses, loss=got.loss, gradient=gradient, target_gradient=target_gradient)
    direction = np.broadcast_to(np.arange(logits.shape[1]) % 3 - 1.0, logits.shape)
    out.tangent, out.second = got.tangent(direction), got.second(direction)
    return out


def element(ball, *index):
    return Ball(ball.hi[index], ball.lo[index], ball.radius[index])


@each_dtype
def test_a_masked_class_without_a_term_leaves_the_loss_finite_and_has_gradient_0(dtype):
    got = answers(dtype, [[0.0, 1.0, -INF]], [0])
    assert 0 < got.loss.hi[0] < INF
    assert np.isfinite(got.gradient.hi).all()
    assert_exact(element(got.gradient, 0, 2), 0.0)


@each_dtype
def test_a_masked_target_has_loss_inf_and_a_finite_gradient(dtype):
    for label_smoothing in (0.0, 0.5, 1.0):  # for label_smoothing 1, torch returns NaN
        got = answers(dtype, [[0.0, 0.0, 0.0, -INF]], [3], label_smoothing=label_smoothing)
        assert_exact(got.loss, [INF])
        v = (1 - label_smoothing) + label_smoothing / 4
        assert got.gradient.distance([[0.0, 0.0, 0.0, -v]])[0, 3] <= got.gradient.radius[0, 3]
        assert np.isfinite(got.gradient.hi).all()


@each_dtype
@pytest.mark.parametrize("target", [[0], [[1.0, 0.0, 0.0]]], ids=["index", "probabilities"])
def test_with_smoothing_every_masked_class_has_a_term(target, dtype):
    assert_exact(answers(dtype, [[0.0, 0.0, -INF]], target, label_smoothing=0.1).loss, [INF])


@each_dtype
@pytest.mark.parametrize(
    ("target", "label_smoothing"),
    [([2], 0.0), ([2], 1.0), ([0], 0.1), ([[0.5, 0.0, 0.5]], 0.0), ([[0.5, 0.0, 0.5]], 0.1)],
)
def test_weight_0_times_a_masked_term_is_nan(target, label_smoothing, dtype):
    got = answers(dtype, [[0.0, 0.0, -INF]], target, weight=[1, 1, 0], label_smoothing=label_smoothing)
    assert_exact(got.loss, [NAN])
    assert_exact(element(got.gradient, 0, 2), 0.0)


@each_dtype
def test_weight_0_of_a_masked_class_without_a_term_has_no_effect(dtype):
    assert np.isfinite(answers(dtype, [[0.0, 0.0, -INF]], [0], weight=[1, 1, 0]).loss.hi).all()


@each_dtype
def test_probability_0_times_a_masked_class_is_nan_without_smoothing_and_inf_with(dtype):
    assert math.isnan(answers(dtype, [[0.0, 0.0, -INF]], [[0.5, 0.5, 0.0]]).loss.hi[0])
    assert_exact(answers(dtype, [[0.0, 0.0, -INF]], [[0.5, 0.5, 0.0]], label_smoothing=1e-6).loss, [INF])


@each_dtype
def test_the_loss_is_minus_inf_for_a_negative_weight_and_nan_for_weights_of_both_signs(dtype):
    assert_exact(answers(dtype, [[0.0, -INF]], [1], weight=[1, -1]).loss, [-INF])
    assert_exact(answers(dtype, [[0.0, -INF, -INF]], [0], weight=[1, -1, 1], label_smoothing=0.1).loss, [NAN])


@each_dtype
def test_the_sign_of_a_coefficient_is_known_where_its_float64_underflows_or_cancels(dtype):
    tiny = float(np.finfo(dtype).smallest_subnormal)
    assert_exact(answers(dtype, [[0.0, -INF]], [[1, tiny]], weight=[1, tiny]).loss, [INF])
    assert_exact(answers(dtype, [[0.0, -INF]], [1], weight=[1, tiny], label_smoothing=5e-324).loss, [INF])
    # For t = -1/2 and C = 2, (1 - ε)·t + ε/C is (2ε - 1)/2: 0 for ε = 1/2, and positive for the next larger ε.
    for label_smoothing, loss in ((0.5, NAN), (0.5 + 2.0**-53, INF), (0.5 - 2.0**-54, -INF), (0.0, -INF), (1.0, INF)):
        assert_exact(answers(dtype, [[0.0, -INF]], [[1, -0.5]], label_smoothing=label_smoothing).loss, [loss])


NO_MAXIMUM = [[NAN, 0.0], [INF, 0.0], [INF, -INF], [NAN, -INF], [-INF, -INF]]


@each_dtype
@pytest.mark.parametrize("target", [[0, 1], [[1.0, 0.0], [0.5, 0.5]]], ids=["index", "probabilities"])
@pytest.mark.parametrize("row", NO_MAXIMUM, ids=str)
def test_a_kept_row_without_a_finite_maximum_is_nan_and_no_other_row_is(row, target, dtype):
    got = answers(dtype, [row, [0.0, 1.0]], target, weight=[2, 0])
    assert_exact(element(got.losses, 0), NAN)
    assert_exact(element(got.gradient, 0), [NAN, NAN])
    assert np.isfinite(got.losses.hi[1])
    assert np.isfinite(got.gradient.hi[1]).all()
    if got.target_gradient is not None:
        assert_exact(element(got.target_gradient, 0), [NAN, NAN])
        assert np.isfinite(got.target_gradient.hi[1]).all()
    for reduction in ("sum", "mean"):
        assert_exact(answers(dtype, [row, [0.0, 1.0]], target, reduction=reduction).loss, NAN)


@each_dtype
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("row", NO_MAXIMUM, ids=str)
def test_an_ignored_row_without_a_finite_maximum_has_loss_0_but_a_gradient_of_nan(row, reduction, dtype):
    got = answers(dtype, [row, [0.0, 1.0]], [-100, 1], reduction=reduction, label_smoothing=0.1)
    assert_exact(element(got.losses, 0), 0.0)
    assert_exact(element(got.gradient, 0), [NAN, NAN])
    alone = answers(dtype, [[0.0, 1.0]], [1], reduction=reduction, label_smoothing=0.1)
    assert got.loss.hi.flat[-1] == alone.loss.hi.flat[0]
    np.testing.assert_array_equal(got.gradient.hi[1], alone.gradient.hi[0])


@each_dtype
@pytest.mark.parametrize("target", [[0], [2], [[0.5, 0.5, 0.0]], [[0.5, 0.0, 0.5]]], ids=str)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_derivatives_are_finite_where_a_masked_class_makes_the_loss_infinite_or_nan(label_smoothing, target, dtype):
    """The derivatives have no logarithm, which is infinite here. The masked class only adds `v u` to the tangent.

    `v` is the coefficient of the class (class weight times smoothed target), and `u` its direction.
    """
    got = answers(dtype, [[0.0, 1.0, -INF]], target, weight=[1, 2, 3], label_smoothing=label_smoothing)
    p = 1 / (1 + math.e), 1 / (1 + 1 / math.e)
    t = np.array(target[0]) if np.ndim(target) == 2 else np.eye(3)[target[0]]
    v = np.array([1, 2, 3]) * ((1 - label_smoothing) * t + label_smoothing / 3)
    mean = -p[0]  # the mean of the direction -1, 0, 1
    assert got.tangent.distance([v @ (mean - np.array([-1, 0, 1]))])[0] < 1e-14
    assert got.second.distance([[v.sum() * p[0] * (-1 - mean), v.sum() * p[1] * (0 - mean), 0.0]]).max() < 1e-14
    assert_exact(element(got.second, 0, 2), 0.0)


@each_dtype
@pytest.mark.parametrize("row", NO_MAXIMUM, ids=str)
def test_the_derivatives_of_a_row_without_a_finite_maximum_are_nan_except_the_tangent_of_an_ignored_row(row, dtype):
    for label_smoothing in (0.0, 0.1):
        got = answers(dtype, [row, row, [0.0, 1.0]], [0, -100, 1], label_smoothing=label_smoothing)
        assert_exact(element(got.second, slice(2)), np.full((2, 2), NAN))
        assert_exact(element(got.tangent, slice(2)), [NAN, 0.0])
        assert np.isfinite(got.second.hi[2]).all()
        assert np.isfinite(got.tangent.hi[2])
        assert_exact(answers(dtype, [row, [0.0, 1.0]], [0, 1], reduction="sum").tangent, NAN)
        ignored = answers(dtype, [row, [0.0, 1.0]], [-100, 1], reduction="sum", label_smoothing=label_smoothing).tangent
        assert np.isfinite(ignored.hi)
    assert_exact(answers(dtype, [row], [[0.5, 0.5]]).tangent, [NAN])


@each_dtype
@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_the_derivatives_of_a_mean_over_weights_that_are_all_0_are_nan(label_smoothing, dtype):
    options = {"weight": [0, 1], "reduction": "mean", "label_smoothing": label_smoothing}
    got = answers(dtype, [[0.0, 1.0], [2.0, 3.0], [-INF, 1.0]], [0, -100, 0], **options)
    assert_exact(got.tangent, NAN)
    assert_exact(got.second, [[NAN, NAN], [0.0, 0.0], [NAN, NAN]])
    cancelling = answers(dtype, [[0.0, 1.0], [2.0, 3.0]], [0, 1], weight=[1, -1], reduction="mean")
    assert cancelling.tangent.radius == INF
    assert np.isinf(cancelling.second.radius).all()


@each_dtype
def test_a_mean_over_no_rows_has_a_tangent_of_radius_inf_and_second_derivatives_of_0(dtype):
    """The contract says that the loss is NaN and the gradient is 0. So forward mode may return NaN or 0."""
    got = answers(dtype, [[0.0, 1.0], [2.0, -INF]], [-100, -100], reduction="mean")
    assert got.tangent.radius == INF
    assert np.isnan(got.tangent.hi)
    assert_exact(got.second, np.zeros((2, 2)))
    assert_exact(answers(dtype, [[0.0, 1.0]], [-100], reduction="sum").tangent, 0.0)
    assert_exact(answers(dtype, [[0.0, 1.0]], [-100]).tangent, [0.0])
    assert answers(dtype, np.zeros((0, 3)), np.zeros(0), reduction="mean").tangent.radius == INF
    assert_exact(answers(dtype, np.zeros((0, 3)), np.zeros(0)).second, np.zeros((0, 3)))


@each_dtype
def test_derivatives_of_one_class_are_0_and_derivatives_without_classes_are_an_empty_sum(dtype):
    got = answers(dtype, [[1e30], [-7.0]], [0, 0], weight=[3], label_smoothing=0.1)
    assert_exact(got.tangent, [0.0, 0.0])
    assert_exact(got.second, [[0.0], [0.0]])
    got = answers(dtype, np.zeros((2, 0)), np.zeros((2, 0)), weight=np.zeros(0))
    assert_exact(got.tangent, [0.0, 0.0])
    assert_exact(got.second, np.zeros((2, 0)))


@pytest.mark.parametrize("direction", [np.zeros((2, 3)), np.zeros(3), np.full((1, 3), NAN), np.full((1, 3), 2.0**128)])
def test_a_direction_is_one_finite_number_for_each_logit(direction):
    got = answer(Arguments(np.zeros((1, 3)), index=np.array([0])))
    for derivative in (got.tangent, got.second):
        with pytest.raises(ValueError, match="direction: got"):
            derivative(direction)


def test_a_direction_may_be_as_large_as_the_largest_numbers_of_float32():
    """For two equal logits, `p_0 (u_0 - mean)` is `(u_0 - u_1)/4`, and the tangent of class 0 is `-(u_0 - u_1)/2`."""
    got = answer(Arguments(np.zeros((1, 2)), index=np.array([0]), reduction="sum"))
    direction = np.array([[2.0**127, 0.0]])
    assert got.second(direction).hi.tolist() == [[2.0**125, -(2.0**125)]]
    assert got.tangent(direction).hi == -(2.0**126)


@each_dtype
@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_an_ignored_row_with_some_masked_classes_has_loss_0_and_gradient_0(label_smoothing, dtype):
    got = answers(dtype, [[0.0, -INF, 1.0]], [7], ignore_index=7, weight=[1, 0, -1], label_smoothing=label_smoothing)
    assert_exact(got.loss, [0.0])
    assert_exact(got.gradient, [[0.0, 0.0, 0.0]])


@each_dtype
@pytest.mark.parametrize(("reduction", "loss"), [("none", [0.0, 0.0]), ("sum", 0.0), ("mean", NAN)])
def test_all_rows_ignored_have_gradient_0_and_a_mean_of_nan(reduction, loss, dtype):
    got = answers(dtype, [[0.0, 1.0], [2.0, -INF]], [-100, -100], reduction=reduction, weight=[0, 1])
    assert_exact(got.loss, loss)
    assert_exact(got.gradient, np.zeros((2, 2)))


@each_dtype
@pytest.mark.parametrize("target", [np.zeros(0), np.zeros((0, 3))], ids=["index", "probabilities"])
@pytest.mark.parametrize(("reduction", "loss"), [("none", np.zeros(0)), ("sum", 0.0), ("mean", NAN)])
def test_no_rows_sum_to_0_and_have_a_mean_of_nan(reduction, loss, target, dtype):
    got = answers(dtype, np.zeros((0, 3)), target, reduction=reduction)
    assert_exact(got.loss, loss)
    assert got.gradient is None


@each_dtype
@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_a_mean_over_weights_that_are_all_0_is_nan_and_so_are_the_gradients_of_kept_rows(label_smoothing, dtype):
    options = {"weight": [0, 1], "reduction": "mean", "label_smoothing": label_smoothing}
    got = answers(dtype, [[0.0, 1.0], [2.0, 3.0], [-INF, 1.0]], [0, -100, 0], **options)
    assert_exact(got.loss, NAN)
    assert_exact(got.gradient, [[NAN, NAN], [0.0, 0.0], [NAN, NAN]])
    assert_exact(answers(dtype, [[3.0]], [0], **{**options, "weight": [0]}).gradient, [[NAN]])


@each_dtype
def test_a_mean_over_weights_that_cancel_has_radius_inf(dtype):
    got = answers(dtype, [[0.0, 1.0], [2.0, 3.0], [0.0, 0.0]], [0, 1, -100], weight=[1, -1], reduction="mean")
    assert got.loss.radius == INF
    np.testing.assert_array_equal(got.gradient.radius, [[INF, INF], [INF, INF], [0, 0]])
    assert_exact(element(got.gradient, 2), [0.0, 0.0])


@each_dtype
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
@pytest.mark.parametrize("target", [[0, 0], [[0.3], [-2.0]]], ids=["index", "probabilities"])
def test_one_class_has_loss_0_and_gradient_0(target, label_smoothing, reduction, dtype):
    got = answers(dtype, [[1e30], [-7.0]], target, weight=[3], reduction=reduction, label_smoothing=label_smoothing)
    assert_exact(got.loss, [0.0, 0.0] if reduction == "none" else 0.0)
    assert_exact(got.gradient, [[0.0], [0.0]])
    if got.target_gradient is not None:
        assert_exact(got.target_gradient, [[0.0], [0.0]])


@each_dtype
@pytest.mark.parametrize("label_smoothing", SMOOTHINGS)
def test_no_classes_are_an_empty_sum(label_smoothing, dtype):
    for target in ([-100, -100], np.zeros((2, 0))):
        got = answers(dtype, np.zeros((2, 0)), target, weight=np.zeros(0), label_smoothing=label_smoothing)
        assert_exact(got.loss, [0.0, 0.0])
        assert_exact(got.gradient, np.zeros((2, 0)))
    assert_exact(got.target_gradient, np.zeros((2, 0)))


@each_dtype
def test_the_gradient_of_the_target_at_a_masked_class_is_infinite_or_nan_if_a_factor_is_0(dtype):
    logits, target = [[0.0, 1.0, -INF], [0.0, 1.0, 2.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

    def at_the_mask(weight=(1, 1, 1), upstream=(1, 1), **options):
        got = answers(dtype, logits, target, weight=weight, upstream=np.array(upstream), **options).target_gradient
        assert np.isfinite(np.delete(got.hi, 2)).all()
        return element(got, 0, 2)

    assert_exact(at_the_mask(), INF)
    assert_exact(at_the_mask(label_smoothing=0.5, upstream=(-1, 1)), -INF)
    assert_exact(at_the_mask(weight=(1, 1, -1)), -INF)
    assert_exact(at_the_mask(weight=(1, 1, 0)), NAN)
    assert_exact(at_the_mask(label_smoothing=1.0), NAN)
    assert_exact(at_the_mask(upstream=(0, 1)), NAN)
    assert_exact(at_the_mask(upstream=-2.0, reduction="mean"), -INF)


@each_dtype
def test_infinite_losses_are_summed_and_divided_by_the_rules_of_ieee_754(dtype):
    logits = [[0.0, -INF], [-INF, 0.0], [0.0, 0.0]]
    for target, weight, loss in (((1, 1, 0), (1, 2), INF), ((1, 0, 0), (1, -2), NAN), ((1, 1, 0), (1, -2), -INF)):
        assert_exact(answers(dtype, logits, target, weight=weight, reduction="sum").loss, loss)
    assert_exact(answers(dtype, logits, (1, 1, 0), weight=(1, -2), reduction="mean").loss, INF)


def test_a_number_beyond_float64_has_radius_inf():
    huge = [[1.7e308, -1.7e308], [0.0, 0.0]]
    got = answers(np.float64, huge, [1, 0])
    np.testing.assert_array_equal(got.loss.hi, [INF, math.log(2)])
    np.testing.assert_array_equal(np.isinf(got.loss.radius), [True, False])
    assert np.isfinite(got.gradient.radius).all()
    for reduction in ("sum", "mean"):
        assert answers(np.float64, huge, [1, 0], reduction=reduction).loss.radius == INF
    loss = answers(np.float64, [[1.7e308, 0.0]] * 2, [1, 1], reduction="sum").loss
    assert np.isnan(loss.hi)
    assert loss.radius == INF


# --- The denominator, the radius, blocks, memory and distances ----------------------------------------------------


@each_dtype
def test_the_denominator_is_exact(dtype):
    def of(target, weight=None, reduction="mean"):
        x = np.zeros((3, 2), dtype)
        key = "probabilities" if target is None else "index"
        target = np.ones((3, 2), dtype) if target is None else np.array(target)
        weight = None if weight is None else np.array(weight, dtype)
        options = {"upstream": np.ones(3)} if reduction == "none" else {}
        return answer(Arguments(x, weight=weight, reduction=reduction, **{key: target}, **options)).denominator

    for ball, expected in (
        (of([0, 1, -100]), 2),
        (of([0, 1, -100], [0.5, 4]), 4.5),
        (of([0, 1, 1], [2.0**100, 1]), 2.0**100),  # the exact sum is larger by 2, which `lo` holds
        (of(None, [0.5, 4]), 3),
        (of([0, 1, 1], [2, -1]), 0),
        (of([-100] * 3), 0),
        (of([0, 1, 1], [2, 5], "sum"), 1),
        (of([0, 1, 1], [2, 5], "none"), 1),
    ):
        assert ball.hi == expected
        assert ball.lo == (2 if expected == 2.0**100 else 0)
        assert ball.radius <= 2.0**-51 * ball.lo + 2.0**-1000


def test_the_radius_is_small_if_all_terms_cancel():
    a = Arguments(np.full((1, 3), 0.7), probabilities=np.full((1, 3), 0.3), label_smoothing=0.1)
    (_, gradient, _) = next(answer(a).gradients())
    assert (gradient.distance(np.zeros((1, 3))) <= gradient.radius).all()
    assert 2.0**-140 < gradient.radius.max() <= 2.0**-73 / 3


@each_dtype
@pytest.mark.parametrize("target", ["ignored", "any_numbers"])
def test_blocks_cover_all_rows_once_and_change_no_number(target, dtype, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((7, 4)).astype(dtype)
    x[2, 1], x[3, 0], x[4] = -INF, NAN, -INF
    options = {"index": np.array([0, -100, 1, 2, -100, 3, 0])}
    if target == "any_numbers":
        options = {"probabilities": PROBABILITIES[target](rng, x.shape).astype(dtype)}
    a = Arguments(x, label_smoothing=0.1, upstream=0.5, **options)

    def everything(got):
        rows, *balls = zip(*got.gradients(), strict=True)
        assert np.concatenate([np.arange(7)[block] for block in rows]).tolist() == list(range(7))
        balls = [np.concatenate([[b.hi, b.lo, b.radius] for b in blocks], 1) for blocks in balls if blocks[0]]
        return [got.loss.hi, got.loss.lo, got.loss.radius, got.losses.hi, *balls]

    whole = everything(answer(a))
    monkeypatch.setattr(answer_module, "SAVED", 0)
    for rows, starts in ((1, range(7)), (2, (0, 2, 4, 6)), (3, (0, 3, 6)), (7, (0,)), (100, (0,)), (0.25, range(7))):
        monkeypatch.setattr(answer_module, "BLOCK" if a.float64_suffices else "BALL_BLOCK", int(rows * 4))
        assert [block.rows for block in answer(a).blocks()] == [slice(s, min(s + max(1, int(rows)), 7)) for s in starts]
        for one, other in zip(whole, everything(answer(a)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_rows_of_one_class_fill_a_block_too(monkeypatch):
    monkeypatch.setattr(answer_module, "BALL_BLOCK", 2)
    answered = answer(Arguments(np.zeros((3, 1)), index=np.zeros(3, int)))
    assert [block.rows for block in answered.blocks()] == [slice(0, 2), slice(2, 3)]


@pytest.mark.parametrize(("most", "kept"), [(6, True), (5, False)])
def test_a_call_with_few_logits_keeps_its_blocks_from_loss_to_gradient(most, kept, monkeypatch):
    monkeypatch.setattr(answer_module, "SAVED", most)
    answered = answer(Arguments(np.zeros((2, 3)), index=np.zeros(2, int)))
    (one,), (other,) = answered.blocks(), answered.blocks()
    assert (one is other) == kept


def test_memory_does_not_grow_with_the_rows(seed):
    """A further row adds at most 200 bytes, for its loss. So logits (4096, 128256) need less than 512 MiB."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 128_256), dtype=np.float32)
    index = rng.integers(0, x.shape[1], 40)
    peaks = []
    for rows in (10, 40):
        assert rows * x.shape[1] > SAVED
        tracemalloc.start()
        for _, gradient, _ in answer(Arguments(x[:rows], index=index[:rows])).gradients():
            assert gradient.hi.shape[1] == x.shape[1]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"peaks {peaks[0] / 2**20:.2f} and {peaks[1] / 2**20:.2f} MiB")
    assert peaks[1] - peaks[0] <= 30 * 200
    assert peaks[0] + 4096 * 200 < 512 * 2**20


def test_a_difference_keeps_its_digits():
    ball = Ball(np.array([1.0, 1.0, 0.0]), np.array([2.0**-80, -(2.0**-80), 0.0]), np.zeros(3))
    assert ball.distance([1.0, 1 + 2.0**-52, -0.0]).tolist() == [2.0**-80, 2.0**-52 + 2.0**-80, 0.0]
    assert ball.distance(np.float16(1.0)).tolist() == [2.0**-80, 2.0**-80, 1.0]


@pytest.mark.parametrize("exact", [NAN, INF, -INF, 1.0])
@pytest.mark.parametrize("got", [NAN, INF, -INF, 1.0])
def test_infinities_and_nan_have_distance_0_from_themselves_and_inf_from_everything_else(got, exact):
    same = got == exact or (math.isnan(got) and math.isnan(exact))
    assert Ball(*np.array([exact, 0.0, 0.0])).distance(got) == (0.0 if same else INF)


# --- The assumptions of the proofs --------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [0, 1, 2, 3, 4, 5, 7, 8, 31, 100, 1001])
def test_a_compensated_sum_is_within_its_proven_error(terms, seed):
    rng = np.random.default_rng(seed)
    values = decades(rng, (20, terms), -20, 20)
    values[10:, 1::2] = -values[10:, : terms - 1 : 2] * (1 + 2.0**-30 * rng.integers(0, 2))  # nearly cancel
    u = Fraction(1, 2**53)
    for row, got in zip(values, compensated_sum(values), strict=True):
        exact, size = sum(map(Fraction, row), Fraction(0)), sum(map(abs, map(Fraction, row)), Fraction(0))
        assert abs(Fraction(float(got)) - exact) <= u * abs(exact) + u * size / 2**17


def test_a_sum_and_its_error_are_exact(seed):
    a, b = decades(np.random.default_rng(seed), (2, 1000), -30, 30)
    for x, y, s, e in zip(a, b, *two_sum(a, b), strict=True):
        assert Fraction(x) + Fraction(y) == Fraction(s) + Fraction(e)
        assert s == x + y


@pytest.mark.parametrize(
    ("numpys", "flints", "smallest", "largest"),
    [(np.exp, flint.arb.exp, 1e-17, 708.0), (np.log1p, flint.arb.log1p, 1e-300, 2.0**30)],
    ids=["exp", "log1p"],
)
def test_the_errors_of_exp_and_log1p_in_numpy_are_within_the_assumption(numpys, flints, smallest, largest, seed):
    """Test exp for negative numbers and log1p for positive numbers.

    numpy chooses its code by processor, so the test measures this machine.
    """
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(np.log(smallest), np.log(largest), 40_000))
    x[:20_000] = rng.uniform(0, min(largest, 750), 20_000)
    x = -np.minimum(x, largest) if numpys is np.exp else x
    got = numpys(x)
    with flint.ctx.workprec(128):
        errors = [abs(float(flints(flint.arb(v)) - g)) for v, g in zip(x.tolist(), got.tolist(), strict=True)]
    worst = (np.array(errors) / np.spacing(got)).max()
    print(f"{numpys.__name__}: {len(x)} numbers, worst error {worst:.3f} ulp")
    assert 0.3 < worst <= EXP_LOG_ULP
    assert np.exp(-INF) == 0
    assert (np.exp(np.linspace(-708, -1e5, 1000)) <= 2.0**-1021).all()


# --- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"logits": np.zeros(3)}, "logits"),
        ({"logits": np.zeros((2, 3), np.float16)}, "logits"),
        ({"index": None}, "index and probabilities: got neither"),
        ({"probabilities": np.zeros((2, 3))}, "index and probabilities: got both"),
        ({"index": np.zeros(3, int)}, "index"),
        ({"index": np.zeros(2, np.uint8)}, "index"),
        ({"index": None, "probabilities": np.zeros((3, 2))}, "probabilities"),
        ({"index": None, "probabilities": np.full((2, 3), NAN)}, "probabilities"),
        ({"index": None, "probabilities": np.zeros((2, 3)), "ignore_index": 0}, "ignore_index"),
        ({"weight": np.zeros(2)}, "weight"),
        ({"weight": np.array([1.0, INF, 1.0])}, "weight"),
        ({"weight": np.ones(3, int)}, "weight"),
        ({"reduction": "max"}, "reduction"),
        ({"reduction": "none"}, "upstream"),
        ({"upstream": np.ones(2)}, "upstream"),
        ({"upstream": NAN}, "upstream"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
        ({"label_smoothing": 1.1}, "label_smoothing"),
        ({"label_smoothing": NAN}, "label_smoothing"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_the_contract_does_not_allow_are_refused(wrong, name):
    with pytest.raises(ValueError, match=name):
        Arguments(**{"logits": np.zeros((2, 3)), "index": np.zeros(2, int), **wrong})


@pytest.mark.parametrize("index", [3, -1, 255])
def test_a_class_outside_the_row_is_refused_unless_it_is_ignored(index):
    allowed = "allowed are the classes 0 to 2 and ignore_index, -100"
    with pytest.raises(IndexError, match=f"^index: got {index}; {allowed}$"):
        Arguments(np.zeros((2, 3)), index=np.array([2, index]))
    allowed = "the logits have no classes, so only ignore_index, -100, is allowed"
    with pytest.raises(IndexError, match=f"^index: got {index}; {allowed}$"):
        Arguments(np.zeros((1, 0)), index=np.array([index]))
    assert_exact(
        answer(Arguments(np.zeros((1, 3)), index=np.array([index]), ignore_index=index, reduction="sum")).loss, 0.0
    )


def test_with_an_upstream_gradient_beyond_float32_the_oracle_computes_in_ball_arithmetic():
    a = Arguments(np.zeros((1, 2), np.float32), index=np.array([0]), upstream=1e300)
    assert not a.float64_suffices
    (_, gradient, _) = next(answer(a).gradients())
    assert gradient.hi.tolist() == [[-0.5e300, 0.5e300]]
