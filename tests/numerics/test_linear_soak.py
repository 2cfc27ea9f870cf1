"""Random right implementations of a linear cross-entropy stay within the error bounds, and come near them.

`nox -s soak` runs 20,000 cases in each dtype. Five implementations run on each case: a random implementation at each
grade, the two forms, and `F.cross_entropy` of `F.linear`. Each implementation has its own contract.
`--crossent-write-figures` writes the worst and the median share of the bounds to benchmarks/results/linear_soak.json.
Pass `-n 0` too, since only one process may write.
"""

import functools
import json
from collections import defaultdict

import numpy as np
import pytest
import torch.nn.functional as F
from support.linear_calls import linear_case
from support.readme import RESULTS
from support.right_linear import ORDERS, RightLinear
from support.waits import computes

from crossent.forms import linear_blocked, linear_formula
from crossent.numerics.bounds.linear import LinearBounds, LinearTerms
from crossent.numerics.bounds.linear_contracts import linear_contract
from crossent.numerics.formats import FORMATS
from crossent.numerics.linear_call import LINEAR_RESULTS
from crossent.numerics.oracle.linear import linear_answer

PART = 250  # the number of cases in one test; several processes can run several tests
WHOLE = 1000  # with so many cases or more, the largest share of each result must be near 1 in half precision
REACHED = 0.9  # the least share that counts as near 1
FIGURES = RESULTS / "linear_soak.json"


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        count = metafunc.config.getoption("--crossent-soak")
        parts = [(dtype, start, min(PART, count - start)) for dtype in FORMATS for start in range(0, count, PART)]
        metafunc.parametrize("part", parts, ids=lambda part: f"{part[0]}-{part[1]}")


@pytest.fixture(scope="module")
def found(pytestconfig):
    """Collect the largest share of a bound on each case, by dtype, contract and result.

    When all tests have run, check that the largest share of each result is near 1 in half precision.
    """
    shares_of = {}
    yield shares_of
    if pytestconfig.getoption("--crossent-write-figures"):
        write(shares_of)
    for dtype, by_contract in shares_of.items():
        both = [by_contract[contract] for contract in ("kernel A", "kernel B")]
        if len(both[0]["loss"]) >= WHOLE and FORMATS[dtype].precision < 24:
            worst = {name: max(max(of[name]) for of in both) for name in LINEAR_RESULTS}
            assert min(worst.values()) >= REACHED, (dtype, worst)


def write(shares_of):
    """Write the worst and the median share by dtype, contract and result. Keep the figures of all other dtypes."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    for dtype, by_contract in shares_of.items():
        figures[dtype] = {contract: summary(of) for contract, of in by_contract.items()}
    figures = {dtype: figures[dtype] for dtype in FORMATS if dtype in figures}
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def summary(listed):
    """Return the number of cases, and the worst and the median share of each result.

    `listed` maps the name of a result to its shares in all cases.
    """
    both = {name: [float(f"{of(shares):.3g}") for of in (np.max, np.median)] for name, shares in listed.items()}
    return {"cases": len(listed["loss"]), **both}


def composed(input, linear_weight, target, *, linear_bias=None, **options):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def terms_of(case):
    return LinearTerms.of(case.call, FORMATS[case.dtype] if case.call.index is None else None)


def implementations(number, case):
    """Yield the five implementations of a case: a name, the contract, and a function that returns the results."""
    dtype, rows = case.dtype, case.call.rows
    for at, grade in enumerate("AB"):
        made = RightLinear(2 * number + at, dtype, grade, recomputes=number % 2 > 0)
        yield f"kernel {grade}", made.contract, lambda made=made: made(case.call)
    yield "eager A", linear_contract("eager", "A", dtype, rows=rows), lambda: case.run(linear_formula)
    blocked = functools.partial(linear_blocked, block_size=1 + number % 500)
    yield "blocked A", linear_contract("kernel", "A", dtype), lambda: case.run(blocked)
    if computes(dtype):
        yield "torch B", linear_contract("torch", "B", dtype, rows=rows), lambda: case.run(composed)


def shares(case, implementations):
    """Yield, for each implementation and each result, both names and the largest share of the bound."""
    exact, terms, allowed = linear_answer(case.call), terms_of(case), {}
    for title, contract, run in implementations:
        results = run()
        bounds = allowed.setdefault(contract, LinearBounds(terms, contract))
        for name in LINEAR_RESULTS:
            if (value := getattr(exact, name)) is not None:
                error = value.distance(results[name].reshape(value.hi.shape))
                with np.errstate(all="ignore"):
                    share = error / (getattr(bounds, name) + value.radius)
                yield title, name, float(np.where(error > 0, share, 0.0).max(initial=0.0))


def overflows_in_torch(case):
    """Return whether torch's sum of `-w_c log p_c` over classes and rows overflows float16.

    torch multiplies this sum by `ε/C` last. So `F.cross_entropy` with label_smoothing returns infinity where the loss
    is far below 65504 (transformers#10674).
    """
    rows = terms_of(case).rows
    log_probs = rows.logits - rows.logits.max(1, keepdims=True) - rows.log_sum[:, None]
    sizes = np.where(rows.kept[:, None], np.abs(log_probs if rows.weight is None else rows.weight * log_probs), 0.0)
    total = sizes.sum() if case.call.reduction != "none" else sizes.sum(1).max(initial=0.0)
    return case.dtype == "float16" and case.call.label_smoothing > 0 and total > 0.99 * FORMATS["float16"].largest


def test_no_right_implementation_exceeds_an_error_bound(part, seed, found):
    dtype, first, count = part
    alarms, shares_of = [], found.setdefault(dtype, defaultdict(lambda: defaultdict(list)))
    for number in range(first, first + count):
        case = linear_case(number, dtype, seed=seed)
        for title, name, share in shares(case, implementations(number, case)):
            if title == "torch B" and np.isinf(share) and name == "loss" and overflows_in_torch(case):
                continue
            shares_of[title][name].append(share)
            if not share <= 1:
                alarms.append(f"{title}, {name} of {case.id}: {share} of the bound")
    assert not alarms, "\n".join(alarms)


def titled(case, contract=None):
    """Return a function that turns a random implementation into an item for `shares`: (number, contract, call).

    `contract` replaces the contract of the random implementation, if given.
    """
    return lambda one: (one.number, contract or one.contract, lambda: one(case.call))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("sizes", [(300, 3, 5), (3, 400, 5), (3, 2, 500)])
def test_no_right_implementation_exceeds_an_error_bound_of_a_longer_sum(dtype, sizes):
    for number in range(8):
        case = linear_case(number, dtype, sizes=sizes, seed=1)
        made = [RightLinear(number * 10 + at, dtype, "AB"[at % 2]) for at in range(4)]
        worst = max((share, number, name) for number, name, share in shares(case, map(titled(case), made)))
        assert worst[0] <= 1, (case.id, worst)


@pytest.mark.parametrize("dtype", FORMATS)
def test_no_right_implementation_exceeds_an_error_bound_of_a_mean_whose_weights_may_add_up_to_zero(dtype):
    fixed = {"sizes": (33, 3, 40), "weighted": True, "reduction": "mean", "smooth": 0.0, "dense": False}
    for number in range(20):
        case = linear_case(number, dtype, zeros=True, ignored=0.0, **fixed)
        worst = max((share, number, title, name) for title, name, share in shares(case, implementations(number, case)))
        assert worst[0] <= 1, (case.id, worst)


def test_logits_in_the_dtype_exceed_the_bounds_of_grade_a():
    contract, found = linear_contract("kernel", "A", "bfloat16"), []
    for number in range(20):
        case = linear_case(number, "bfloat16", values="normal", dense=False)
        narrow = titled(case, contract)(RightLinear(number, "bfloat16", "B"))
        found += [share for _, _, share in shares(case, [narrow])]
    assert max(found) > 1


def test_the_implementations_make_every_choice():
    made = [RightLinear(number, "float32") for number in range(100)]
    choices = {"_row_chunk": 3, "_class_chunk": 4, "_bias_first": 2, "_by_logsumexp": 2, "_splits": 2, "_scale_late": 3}
    for choice, least in choices.items():
        assert len({getattr(one, choice) for one in made}) == least, choice
    assert {order for one in made for order in one._orders.values()} == set(ORDERS)
