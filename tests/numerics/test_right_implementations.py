"""Random right implementations stay within the error bounds of a kernel, and come near them.

`nox -s soak` runs 20,000 cases in each dtype. Ten of two hundred implementations run on each case.
"""

import json

import numpy as np
import pytest
from support.right_implementations import RightImplementation

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.numerics.bounds.contracts import contract
from crossent.run.soak.draws import draws
from crossent.trials.difference import largest_errors
from crossent.trials.exact import solve, solve_along

IMPLEMENTATIONS = 200
OF_A_CASE = 10  # the number of implementations that run on a case
PART = 250  # the number of cases in one test; several processes can run several tests
LARGEST = 60_000  # the most logits of a case: two hundred implementations take long on a larger case
RESULTS = ("loss", "gradient", "target_gradient", "tangent", "second")


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        count = metafunc.config.getoption("--crossent-soak")
        parts = [(dtype, start, min(PART, count - start)) for dtype in DTYPES for start in range(0, count, PART)]
        metafunc.parametrize("part", parts, ids=lambda part: f"{part[0]}-{part[1]}")


def applies(case):
    """Return whether the implementations can run on a case.

    The implementations have no rules for infinities, or for a target of another dtype than the logits. They are slow,
    so the case must not have more than `LARGEST` logits.
    """
    if case.target == "other_float" or case.rows * case.classes > LARGEST:
        return False
    inputs = case.build()
    return bool(inputs.input.isfinite().all()) and bool(np.isfinite(solve(inputs).loss.hi).all())


def shares(case, implementations):
    """Yield, for each implementation and each result: the implementation, the name of the result, the largest share.

    A share is error ÷ bound.
    """
    inputs = case.build()
    exact, along = solve(inputs), solve_along(inputs, case.direction())
    promised = contract("kernel", "A", case.dtype)
    bounds, allowed = (exact.bounds(promised), along.bounds(promised)), {}
    for name in RESULTS:
        value, of = (getattr(along, name), bounds[1]) if hasattr(along, name) else (getattr(exact, name), bounds[0])
        if value is not None:
            allowed[name] = value, largest_errors(name, value, of)[0]
    for implementation in implementations:
        results = implementation(exact.terms, along.direction)
        for name, (value, bound) in allowed.items():
            error = value.distance(getattr(results, name).reshape(value.hi.shape))
            with np.errstate(all="ignore"):
                share = np.where(error > 0, np.where(np.isinf(bound), 0.0, error / bound), 0.0)
            yield implementation, name, float(share.max(initial=0.0))


def test_no_right_implementation_exceeds_an_error_bound(part, seed, record_property):
    dtype, first, count = part
    worst, alarms, judged = dict.fromkeys(RESULTS, (0.0, -1, "")), [], 0
    for number, case in enumerate(draws(count, [dtype], seed, first=first), first):
        if not applies(case):
            continue
        judged += 1
        some = np.random.RandomState([seed, number]).choice(IMPLEMENTATIONS, OF_A_CASE, replace=False)
        for made, name, share in shares(case, [RightImplementation(int(drawn), dtype) for drawn in some]):
            worst[name] = max(worst[name], (share, made.seed, case.id))
            if not share <= 1:
                alarms.append(f"implementation {made.seed}, {name} of {case.id}: {share} of the bound")
    record_property("right", json.dumps({"dtype": dtype, "cases": judged, "worst": worst}))
    assert judged > count / 3
    assert not alarms, "\n".join(alarms)


# On these cases, a gradient computed as `s (p - 1)` with `s = g w` exceeds a bound that covers only `s p - s`.
EXCEEDED = (
    "float32-2x3x2x2x3-integers-int64-none-weight_decades-ignored_class-window-target_strided-seed12",
    "float32-17x3-offset-int64-sum-weighted-ignored_16th-transposed-target_strided-seed15",
)
# With these negative weights, the coefficients of all other classes cancel, but their rounding errors do not.
CANCELS = "bfloat16-1x8-confident-int64-none-weight_negative-ignored-strided-target_offset-smooth0.0001-seed1103676803"


@pytest.mark.parametrize("id", EXCEEDED)
def test_every_implementation_is_within_the_bounds_where_a_gradient_rounds_p_minus_1(id):
    made = [RightImplementation(number, "float32") for number in range(IMPLEMENTATIONS)]
    found = [(share, one.seed, name) for one, name, share in shares(Case.of(id), made)]
    assert max(found)[0] <= 1, "share of the bound, implementation and result: {}, {}, {}".format(*max(found))
    assert len(found) == IMPLEMENTATIONS * 4


# The softmax is 4e-307, so its products with the scale are subnormal in float64. The bound must count their rounding
# errors, although half the smallest subnormal number of float64 is 0 in float64.
SUBNORMAL = "float64-2223x15-scales-uint8-mean-weight_decades-ignored_class-scalar-smooth0.1-seed70194570"


def test_every_implementation_is_within_the_bounds_if_products_underflow_in_float64():
    made = [RightImplementation(number, "float64") for number in range(0, IMPLEMENTATIONS, 8)]
    found = max((share, one.seed, name) for one, name, share in shares(Case.of(SUBNORMAL), made))
    assert found[0] <= 1, found


def test_every_implementation_is_within_the_bounds_if_the_weights_of_other_classes_cancel():
    made = [RightImplementation(number, "bfloat16") for number in range(IMPLEMENTATIONS)]
    assert max(share for _, _, share in shares(Case.of(CANCELS), made)) <= 1


def test_two_hundred_implementations_make_every_choice():
    for dtype in DTYPES:
        made = [RightImplementation(number, dtype) for number in range(IMPLEMENTATIONS)]
        for choice, least in {"_order": 6, "_side": 6, "_softmax_by": 4, "_smooths_by": 3, "_late": 8}.items():
            assert len({getattr(one, choice) for one in made}) == least, choice
        assert {one._fuses for one in made} == ({False} if dtype == "float64" else {False, True})
        assert {one._compute for one in made} == ({np.float64} if dtype == "float64" else {np.float32, np.float64})


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_implementation_is_the_same_in_every_run(dtype):
    case = Case.of(f"{dtype}-7x5-normal-int64-mean-weighted-smooth0.1")
    exact = solve(case.build())
    one, two = (RightImplementation(3, dtype)(exact.terms, np.ones((7, 5))) for _ in range(2))
    assert (one.gradient == two.gradient).all()
    assert one.loss == two.loss


class Imprecise(RightImplementation):
    """An implementation whose exp and log have the precision of float16."""

    def _results(self, t, direction):
        plain, self._function = self._function, lambda of, values: of(values).astype(np.float16).astype(self._compute)
        try:
            return super()._results(t, direction)
        finally:
            self._function = plain


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_implementation_exceeds_the_bounds(dtype):
    case = Case.of(f"{dtype}-17x3-normal-int64-sum-weighted")
    found = [share for _, name, share in shares(case, [Imprecise(0, dtype)]) if name in ("loss", "gradient")]
    assert min(found) > 1
