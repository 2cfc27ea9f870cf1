"""Random right implementations of a linear cross-entropy stay within the error bounds, and come near them.

`nox -s soak` runs 20,000 cases in each dtype. Two implementations run on each case, one at each grade.
"""

import numpy as np
import pytest
from support.linear_calls import linear_case
from support.right_linear import ORDERS, RightLinear

from crossent.numerics.bounds.linear import LinearBounds, LinearTerms
from crossent.numerics.bounds.linear_contracts import linear_contract
from crossent.numerics.formats import FORMATS
from crossent.numerics.linear_call import LINEAR_RESULTS
from crossent.numerics.oracle.linear import linear_answer

PART = 250  # the number of cases in one test; several processes can run several tests
WHOLE = 1000  # from so many cases on, the results must come near the bounds in half precision
REACHED = 0.9


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        count = metafunc.config.getoption("--crossent-soak")
        parts = [(dtype, start, min(PART, count - start)) for dtype in FORMATS for start in range(0, count, PART)]
        metafunc.parametrize("part", parts, ids=lambda part: f"{part[0]}-{part[1]}")


@pytest.fixture(scope="module")
def worst():
    """The largest share of each result's bound, and the number of cases, by dtype; checked when all tests have run."""
    found = {}
    yield found
    for dtype, (count, most) in found.items():
        if count >= WHOLE and FORMATS[dtype].precision < 24:
            assert min(most.values()) >= REACHED, (dtype, most)


def terms_of(case):
    return LinearTerms.of(case.call, FORMATS[case.dtype] if case.call.index is None else None)


def shares(case, implementations):
    """Yield for each implementation and result: the implementation, the result's name, its largest share of a bound."""
    exact, terms, allowed = linear_answer(case.call), terms_of(case), {}
    for implementation in implementations:
        contract, results = implementation.contract, implementation(case.call)
        bounds = allowed.setdefault(contract, LinearBounds(terms, contract))
        for name in LINEAR_RESULTS:
            if (value := getattr(exact, name)) is not None:
                error = value.distance(results[name].reshape(value.hi.shape))
                with np.errstate(all="ignore"):
                    share = error / (getattr(bounds, name) + value.radius)
                yield implementation, name, float(np.where(error > 0, share, 0.0).max(initial=0.0))


def test_no_right_implementation_exceeds_an_error_bound(part, seed, worst):
    dtype, first, count = part
    alarms = []
    cases, most = worst.setdefault(dtype, [0, dict.fromkeys(LINEAR_RESULTS, 0.0)])
    worst[dtype][0] = cases + count
    for number in range(first, first + count):
        case = linear_case(number, dtype, seed=seed)
        made = [RightLinear(2 * number + at, dtype, grade, recomputes=number % 2 > 0) for at, grade in enumerate("AB")]
        for implementation, name, share in shares(case, made):
            most[name] = max(most[name], share)
            if not share <= 1:
                alarms.append(f"implementation {implementation.number}, {name} of {case.id}: {share} of the bound")
    assert not alarms, "\n".join(alarms)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("sizes", [(300, 3, 5), (3, 400, 5), (3, 2, 500)])
def test_no_right_implementation_exceeds_an_error_bound_of_a_longer_sum(dtype, sizes):
    for number in range(8):
        case = linear_case(number, dtype, sizes=sizes, seed=1)
        made = [RightLinear(number * 10 + at, dtype, "AB"[at % 2]) for at in range(4)]
        found = max((share, one.number, name) for one, name, share in shares(case, made))
        assert found[0] <= 1, (case.id, found)


def test_logits_in_the_dtype_exceed_the_bounds_of_grade_a(monkeypatch):
    contract = linear_contract("kernel", "A", "bfloat16")
    monkeypatch.setattr(RightLinear, "contract", contract)
    cases = [linear_case(number, "bfloat16", values="normal", dense=False) for number in range(20)]
    found = [share for at, case in enumerate(cases) for _, _, share in shares(case, [RightLinear(at, "bfloat16", "B")])]
    assert max(found) > 1


def test_the_implementations_make_every_choice():
    made = [RightLinear(number, "float32") for number in range(100)]
    choices = {"_row_chunk": 3, "_class_chunk": 4, "_bias_first": 2, "_by_logsumexp": 2, "_splits": 2, "_scale_late": 3}
    for choice, least in choices.items():
        assert len({getattr(one, choice) for one in made}) == least, choice
    assert {order for one in made for order in one._orders.values()} == set(ORDERS)
