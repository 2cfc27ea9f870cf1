"""Compare the error bounds of small calls under every promise with recorded bounds, so that no change goes unnoticed.

`nox -s figures` writes recorded_bounds.json again. Look at the diff of this file. A bound that grew needs a derivation,
and a test in test_bounds_by_hand.py or test_right_implementations.py that fails without the derived term.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crossent.cases.case import Case
from crossent.numerics.bounds.contracts import contract
from crossent.numerics.bounds.derivatives import DerivativeBounds
from crossent.numerics.bounds.loss import Bounds
from crossent.trials.exact import rows_of, terms_of

# The roundings in the computation of a bound differ between machines. `safe` adds 2^-30 to a bound for these roundings,
# so the bounds of two machines differ by less than 2^-29.
ROUNDINGS = 2.0**-29
FILE = Path(__file__).parent / "recorded_bounds.json"
OPTIONS = {
    "plain": {},
    "weighted": {"weight": "weighted", "reduction": "none", "upstream": "rows"},
    "ignored": {"weight": "weighted", "ignored": "ignored_first", "label_smoothing": 0.1},
    "smoothed": {"label_smoothing": 0.2, "reduction": "sum"},
    "smoothed_rows": {"label_smoothing": 0.1, "reduction": "none", "weight": "weight_decades", "upstream": "rows"},
    "negative": {"weight": "weight_negative", "label_smoothing": 0.1, "reduction": "sum"},
    "dense": {"target": "probabilities", "reduction": "sum"},
    "dense_smoothed": {"target": "probabilities", "label_smoothing": 0.1, "weight": "weighted"},
    "offset": {"values": "large_offset", "reduction": "none"},
    "large": {"values": "large", "label_smoothing": 0.1},
    "infinite": {"values": "inf_off_target"},
}
DTYPES = {
    "float32": list(OPTIONS),
    "bfloat16": ["weighted", "ignored", "dense_smoothed"],
    "float64": ["ignored", "dense"],
}
CASES = {
    f"{dtype}-{name}": Case(dtype, (2, 3), seed=5, **OPTIONS[name]) for dtype, names in DTYPES.items() for name in names
}
PROMISES = {
    "eager": ("eager", "A"),
    "eager B": ("eager", "B"),
    "blocked": ("blocked", "A"),
    "torch B": ("torch", "B"),
    "kernel": ("kernel", "A"),
    "kernel B": ("kernel", "B"),
    "fast_kernel": ("fast_kernel", "A"),
    "stepwise B": ("stepwise", "B"),
    "logsumexp": ("logsumexp", "A"),
    "kernel that flushes": ("kernel", "A"),
}


def bounds_of(case, name):
    """Return the bounds of a call under a promise: for each result, a list of numbers."""
    promise, grade = PROMISES[name]
    given = case.build()
    terms = terms_of(given)
    promised = contract(promise, grade, case.dtype, rows=len(terms.logits), flushes="flushes" in name)
    call, along = Bounds(terms, promised), DerivativeBounds(terms, promised, rows_of(case.direction()))
    found = {"loss": call.loss, "gradient": call.gradient, "tangent": along.tangent, "second": along.second}
    if terms.probabilities is not None:
        found["target_gradient"] = call.target_gradient
    return {part: [float(f"{number:.12g}") for number in np.ravel(bound)] for part, bound in found.items()}


def recorded():
    return {call: {name: bounds_of(case, name) for name in PROMISES} for call, case in CASES.items()}


def as_text(number):
    return str(number) if not math.isfinite(number) else number


def test_write_the_bounds(request):
    if not request.config.getoption("crossent_write_figures"):
        pytest.skip("writes a file: nox -s figures")
    lines = [
        f"{json.dumps(call)}: {{\n"
        + ",\n".join(
            f"  {json.dumps(name)}: {json.dumps({part: list(map(as_text, of)) for part, of in bounds.items()})}"
            for name, bounds in by_promise.items()
        )
        + "\n}"
        for call, by_promise in recorded().items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("call", CASES)
def test_the_bounds_equal_the_recorded_bounds(call):
    known = json.loads(FILE.read_text(encoding="utf-8"))[call]
    assert list(known) == list(PROMISES)
    for name, bounds in known.items():
        here = bounds_of(CASES[call], name)
        assert list(here) == list(bounds)
        for part, numbers in bounds.items():
            np.testing.assert_allclose(here[part], list(map(float, numbers)), rtol=ROUNDINGS, err_msg=f"{name}: {part}")


def test_calls_that_are_computed_together_have_the_same_bounds_as_each_call_alone():
    """`of_calls` computes the bounds of three calls with the same options."""
    for name in PROMISES:
        promise, grade = PROMISES[name]
        cases = [replace(CASES["float32-ignored"], seed=seed) for seed in (5, 6, 7)]
        promised = contract(promise, grade, "float32", rows=2, flushes="flushes" in name)
        alone = [Bounds(terms_of(case.build()), promised) for case in cases]
        together = [Bounds(terms_of(case.build()), promised) for case in cases]
        Bounds.of_calls(together, ("loss", "gradient"))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.loss, other.loss)
            np.testing.assert_array_equal(one.gradient, other.gradient)
