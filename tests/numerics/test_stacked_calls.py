"""Bounds that are computed for several calls together equal the bounds of each call alone, bit for bit.

Otherwise the last digits in a report would depend on the cases that one process judges together.
"""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.derivatives import DerivativeBounds
from crossent.numerics.bounds.loss import Bounds
from crossent.trials.trial import Question


def assert_same(name, together, alone):
    together, alone = np.asarray(together), np.asarray(alone)
    assert together.shape == alone.shape, name
    assert np.array_equal(together, alone, equal_nan=True), name


@pytest.mark.parametrize(("promise", "grade"), [("eager", "A"), ("torch", "B"), ("kernel", "B")])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stacked_calls_have_the_bounds_of_each_call(dtype, promise, grade):
    groups = defaultdict(list)
    for case in grid([dtype], 0, "pairs"):
        exact = Question(case).exact_along
        groups[exact.terms.structure].append((case, exact))
    assert max(map(len, groups.values())) > 3
    for group in groups.values():
        promised = contract(promise, grade, dtype, rows=7)
        names = ["loss", "gradient"] + (["target_gradient"] if group[0][1].terms.probabilities is not None else [])
        for kind, of, along in ((Bounds, names, ()), (DerivativeBounds, ["tangent", "second"], ("direction",))):
            calls, alone = (
                [kind(exact.terms, promised, *(getattr(exact, name) for name in along)) for _, exact in group]
                for _ in range(2)
            )
            kind.of_calls(calls, of)
            for one, other, (case, _) in zip(calls, alone, group, strict=True):
                for name in of:
                    assert_same(f"{name} of {case.id}", getattr(one, name), getattr(other, name))
                    for a, b in zip(one.vacuous_results(name), other.vacuous_results(name), strict=True):
                        assert_same(f"vacuous {name} of {case.id}", a, b)


def test_a_row_of_nan_changes_no_bound_of_other_rows():
    """In one call, the product of scale, coefficients and a small p underflows. In the other call, p is NaN."""
    promised = contract("kernel", "B", "float16", rows=7)
    rows = Question(Case.of("float16-7x5-decades-int64-mean")).exact.terms
    rows = replace(rows, upstream=np.full(7, 2.0**-20))
    with_nan = replace(rows, logits=np.full((7, 5), np.nan), log_sum=np.full(7, np.nan))
    together = [Bounds(terms, promised) for terms in (rows, with_nan)]
    Bounds.of_calls(together, ["gradient"])
    assert_same("gradient", together[0].gradient, Bounds(rows, promised).gradient)


def test_calls_with_different_numbers_of_rows_keep_their_own_bounds():
    calls = [Question(Case.of(f"float32-{rows}x3-normal-int64-mean-weighted")).exact.terms for rows in (0, 1, 4)]
    promised = contract("eager", "A", "float32", rows=4)
    together, alone = ([Bounds(terms, promised) for terms in calls] for _ in range(2))
    Bounds.of_calls(together, ["loss", "gradient"])
    for one, other in zip(together, alone, strict=True):
        assert one.loss.shape == ()
        assert_same("loss", one.loss, other.loss)
        assert_same("gradient", one.gradient, other.gradient)


@pytest.mark.parametrize("id", ["float32-2000x3-normal-int64-mean-weight_decades", "float32-2000x3-normal-int64-sum"])
def test_contracts_that_share_intermediates_have_their_own_bounds(id):
    """Another order of the rows changes the bound of the sum of the weights, and so of the gradient of a mean."""
    case = Case.of(id)
    exact = Question(case).exact
    promises = [(promise, grade) for promise in ("eager", "torch") for grade in "AB"]
    contracts = [contract(promise, grade, case.dtype, rows=case.rows) for promise, grade in promises]
    shared = [exact.bounds(promised) for promised in contracts]
    alone = [Bounds(exact.terms, promised) for promised in contracts]
    for mine, its, promised in zip(shared, alone, contracts, strict=True):
        for name in ("loss", "gradient"):
            assert np.array_equal(getattr(mine, name), getattr(its, name)), f"{name} of {promised.row_order}"
    assert len({its.loss.tobytes() for its in alone}) > 1
