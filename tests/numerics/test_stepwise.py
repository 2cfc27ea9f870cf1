"""The contract of torch's loss_parallel, whose backward stores the probability, and its difference from the target.

`result_of_steps` has the steps of torch/distributed/tensor/parallel/loss.py in one process. The contract of
nn.CrossEntropyLoss, whose backward stores only its result, is too narrow for these steps.
"""

import pytest
import torch
from support.running import compare
from support.waits import computes

from crossent.cases.case import Case
from crossent.trials.call import Result
from crossent.trials.exact import solve

BITS = {dtype: bits for dtype, bits in (("float16", 11), ("bfloat16", 8)) if computes(dtype)}  # of the significand
CASES = [f"{dtype}-{one}" for dtype in BITS for one in ("7x5-normal-int64-mean-weighted", "7x5-wide-int64-none-rows")]
CASES += [f"width/{dtype}-4x{size}-assorted-int64-none-rows" for dtype in BITS for size in (7, 63, 129, 781)]


def in_bits(numbers, bits):
    """Return numbers rounded to significands of `bits` bits, in their own dtype."""
    mantissa, exponent = torch.frexp(numbers.float())
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(numbers.dtype)


def result_of_steps(inputs, store=lambda step, numbers: numbers):
    """Return loss and gradient, computed in the steps of loss_parallel. Each line rounds to the dtype of the logits.

    `store` is a function that takes the name of a step and its result, and returns the number that is stored instead.
    """
    x, y, weight = inputs.input.detach(), inputs.target, inputs.options.get("weight")
    log_probs = x.float().log_softmax(1).to(x.dtype)
    of_target = torch.ones_like(x[:, 0]) if weight is None else weight[y]
    rows = -log_probs.gather(1, y[:, None])[:, 0] * of_target
    mean = inputs.options["reduction"] == "mean"
    divisor = of_target.sum() if mean else torch.ones_like(x[0, 0])
    probs = store("probability", log_probs.exp())
    difference = store("difference", torch.zeros_like(x).scatter_(1, y[:, None], -1.0) + probs)
    scale = inputs.upstream / divisor * of_target
    return Result(rows.sum() / divisor if mean else rows, difference * scale[:, None])


def ratios(name, promise, store=lambda step, numbers: numbers):
    """Return the share of the bound, error ÷ bound, of loss and gradient at grade B."""
    inputs = Case.of(name).build()
    found = compare(result_of_steps(inputs, store), solve(inputs), "B", promise)
    return {one.of: one.ratio for one in found}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_keep_their_contract(name):
    found = ratios(name, "stepwise")
    assert 0 < found["gradient"] <= 1, found
    assert found["loss"] <= 1, found


def test_the_contract_of_torch_does_not_allow_the_steps():
    """So "stepwise" allows more than "eager" and "torch"."""
    for promise in ("eager", "torch"):
        assert max(ratios(name, promise)["gradient"] for name in CASES) > 1


@pytest.mark.parametrize("step", ["probability", "difference"])
@pytest.mark.parametrize("dtype", BITS)
def test_a_step_that_is_stored_in_four_bits_fewer_is_found(step, dtype):
    short = lambda at, numbers: in_bits(numbers, BITS[dtype] - 4) if at == step else numbers  # noqa: E731
    assert max(ratios(name, "stepwise", short)["gradient"] for name in CASES if dtype in name) > 1


def test_grade_a_and_wide_dtypes_have_the_bounds_of_eager():
    for name, grade in (("float32-7x5-wide-int64-none-rows", "B"), (CASES[1], "A")):
        inputs = Case.of(name).build()
        exact, got = solve(inputs), result_of_steps(inputs)
        wide, eager = (compare(got, exact, grade, promise) for promise in ("stepwise", "eager"))
        assert [one.ratio for one in wide] == [one.ratio for one in eager]
