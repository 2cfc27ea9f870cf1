"""Test `blocked`, the form that computes on blocks of rows: every block size, and every path through its code."""

import collections
import functools
import json
import math

import pytest
import torch
from support.running import compare, run
from torch.autograd import forward_ad

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.inputs import Inputs
from crossent.forms import blocks, rows
from crossent.forms.blocks import _differentiate, _most_rows, _Work
from crossent.forms.rows import arrange
from crossent.run.plan import plan
from crossent.subjects.subject import Subject
from crossent.trials.call import Result
from crossent.trials.exact import solve


def batch(shape, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=random)).to(dtype)
    return logits, torch.randint(shape[1], (shape[0], *shape[2:]), generator=random)


@pytest.mark.parametrize(("array", "block_size"), [("pairs", 1), ("pairs", 23), ("sizes", 2000)])
def test_every_number_is_right_with_small_blocks(array, block_size):
    """The test uses small block sizes, because the cases of the grid are smaller than a block of the default size."""
    loss = functools.partial(crossent.blocked, block_size=block_size)
    subject = Subject("in small blocks", loss, promise="blocked")
    cases = list(grid(tuple(DTYPES), 1, array))
    assert {in_one_block(case, block_size) for case in cases} == {True, False}
    made = run(subject, cases)
    assert not made.findings, made
    assert all(made.subjects[0].tallies["gradient", dtype].ran > 18 for dtype in DTYPES)


def in_one_block(case, block_size):
    classes = case.sizes[min(1, len(case.sizes) - 1)]
    return math.prod(case.sizes) <= max(block_size, classes)


def test_the_cases_of_level_quick_take_each_path(monkeypatch):
    taken = collections.Counter()

    def count(owner, name, path):
        """Count in `taken` the calls of function `owner.name`. `path(arguments, result)` names the path of a call."""
        function = getattr(owner, name)

        def counted(*arguments, **options):
            result = function(*arguments, **options)
            taken[path(arguments, result)] += 1
            return result

        monkeypatch.setattr(owner, name, counted)

    count(rows, "_all_kept", lambda _, kept: "every row is kept" if kept else "a row may be ignored")
    count(_Work, "softmax", lambda given, p: "in the gradient" if p is (*given, None)[2] else "in other memory")
    count(blocks, "_losses", lambda *_: "the loss is computed again")
    for case in plan("quick", tuple(DTYPES), 0):
        if isinstance(case, Case) and case.reduction != "none":
            inputs = case.build()
            crossent.blocked(inputs.input.detach().requires_grad_(), inputs.target.detach(), **inputs.options)
    assert len(taken) == 5
    assert min(taken.values()) > 5, taken


@pytest.mark.parametrize("block_size", [1, 5, 6, 29, 30, 31, 60, 119, 120, 121])
@pytest.mark.parametrize("shape", [(5,), (8, 5), (2, 5, 3), (2, 5, 3, 4), (4, 5, 1, 2, 3)])
def test_each_row_is_in_one_block_and_no_block_is_too_large(shape, block_size):
    target_shape = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    every = arrange(torch.zeros(shape), torch.zeros(target_shape, dtype=torch.int64), None, -100, "sum", 0.0)
    seen = torch.zeros(target_shape)
    for block, part in every.blocks(_most_rows(every, block_size), seen):
        part += 1
        assert block.logits.shape == (*part.shape, 5)
        assert block.logits.numel() <= max(block_size, 5)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("spread", [0.01, 1, 3, 10])
def test_the_logarithm_of_a_probability_is_within_the_bound_of_the_contract_blocked(dtype, spread):
    """The test compares each row by itself. In a sum, the bounds of other rows could hide the error of a row."""
    worst = {"blocked": 0.0, "eager": 0.0}
    for classes in (1, 2, 3, 4, 17):
        logits, target = batch((2000, classes), torch.float64, seed=classes)
        logits = (logits * (spread / 3)).to(dtype)
        options = {"ignore_index": -100, "reduction": "none", "label_smoothing": 0.0}
        expected = solve(Inputs(logits, target, options, torch.ones(2000, dtype=dtype)))
        every = arrange(logits, target, None, -100, "sum", 0.0)
        losses = _differentiate(every, 1.0, torch.empty_like(logits), None)
        for promise in worst:
            for difference in compare(Result(losses), expected, "A", promise):
                worst[promise] = max(worst[promise], difference.ratio)
    assert worst["blocked"] <= 1
    if spread >= 3:  # in a row with a probability near 1, the error is larger than the contract "eager" allows
        assert worst["eager"] > 1


@pytest.mark.parametrize(("dtype", "gaps"), [(torch.float32, (70, 86, 90, 100, 200)), (torch.float64, (700, 740, 900))])
def test_the_loss_is_not_the_logarithm_of_a_probability_near_underflow(dtype, gaps):
    """`blocked` does not take the logarithm of a probability that is 0, or that is subnormal and so has few digits.

    In float32, the probabilities below exp(-87) are subnormal or 0.
    """
    for gap in gaps:
        logits = torch.tensor([[0.3, -gap, -1.7]], dtype=dtype, requires_grad=True)
        options = {"ignore_index": -100, "reduction": "sum", "label_smoothing": 0.0}
        target = torch.tensor([1])
        expected = solve(Inputs(logits.detach(), target, options, torch.ones((), dtype=dtype)))
        loss = crossent.blocked(logits, target, reduction="sum").detach()
        assert all(one.ratio <= 1 for one in compare(Result(loss), expected, "A", "blocked")), gap


def test_a_nan_of_an_ignored_row_does_not_hide_a_probability_near_underflow():
    logits = torch.tensor([[math.nan, 0.0], [0.0, 100.0]], requires_grad=True)
    assert crossent.blocked(logits, torch.tensor([-100, 0]), reduction="sum").item() == 100


def gradients_of(loss, logits, upstream=None):
    return torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_second_backward_gives_the_same_bits_after_a_write_into_the_first_gradient(reduction, dtype):
    logits, target = batch((6, 5), dtype)
    logits.requires_grad_()
    loss = crossent.blocked(logits, target, reduction=reduction, block_size=10)
    upstream = torch.full_like(loss, 1.0)
    first = gradients_of(loss, logits, upstream)
    kept = first.clone()
    first.zero_()
    second = gradients_of(loss, logits, upstream)
    assert kept.any()
    assert torch.equal(second, kept)
    assert second.data_ptr() != first.data_ptr()


def test_an_upstream_that_is_not_one_is_rounded_into_the_gradient_once():
    """Loss scaling needs this property: without the scale, the float16 gradient of a mean can be subnormal, or 0."""
    logits, target = batch((512, 40), torch.float16)
    logits.requires_grad_()
    scaled = gradients_of(crossent.blocked(logits, target), logits, torch.tensor(2.0**10, dtype=torch.float16))
    wide = logits.detach().double().requires_grad_()
    exact = 2.0**10 * gradients_of(crossent.blocked(wide, target), wide)
    plain = gradients_of(crossent.blocked(logits, target), logits)
    # Rounding to float16 has a relative error of at most 2^-11; the computation in float32 has a smaller error.
    assert ((scaled.double() - exact).abs() <= 2.0**-11 * exact.abs() + 2.0**-25).all()
    assert ((2.0**10 * plain.double() - exact).abs() > 2.0**-11 * exact.abs()).any()


def test_writing_into_the_logits_is_refused_only_if_the_backward_pass_reads_them():
    logits, target = batch((6, 5))
    leaf = logits.requires_grad_()
    for upstream, refused in ((1.0, False), (2.0, True)):
        made = leaf * 1
        loss = crossent.blocked(made, target)
        with torch.no_grad():
            made.zero_()
        if refused:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward(torch.tensor(upstream))
        else:
            (got,) = torch.autograd.grad(loss, leaf, torch.tensor(upstream))
            assert torch.equal(got, gradients_of(crossent.blocked(leaf, target), leaf))


def test_a_class_weight_or_a_target_that_requires_a_gradient_gets_one():
    logits, target = batch((6, 5), torch.float64)
    weight = torch.rand(5, dtype=torch.float64).requires_grad_()
    probabilities = torch.softmax(logits, 1).detach().requires_grad_()
    for arguments, leaf in (((logits, target, weight), weight), ((logits, probabilities), probabilities)):
        (got,) = torch.autograd.grad(crossent.blocked(*arguments), leaf)
        (expected,) = torch.autograd.grad(crossent.formula(*arguments), leaf)
        assert torch.equal(got, expected)


def test_the_gradient_can_be_differentiated():
    logits, target = batch((4, 5), torch.float64)
    logits.requires_grad_()
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none", "weight": torch.rand(5, dtype=torch.float64)}):
        assert torch.autograd.gradgradcheck(lambda x, o=options: crossent.blocked(x, target, **o), logits)


def test_an_upstream_gradient_of_one_with_a_tangent_gives_a_tangent():
    logits, target = batch((4, 5), torch.float64)
    logits.requires_grad_()
    plain = gradients_of(crossent.formula(logits, target), logits)
    with forward_ad.dual_level():
        one = forward_ad.make_dual(torch.ones((), dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
        tangent = forward_ad.unpack_dual(gradients_of(crossent.blocked(logits, target), logits, one)).tangent
    assert tangent is not None
    assert torch.equal(tangent, 2 * plain)  # each step is linear in the upstream gradient, and a factor of 2 is exact


@pytest.mark.parametrize(
    ("block_size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("8", TypeError), (True, TypeError)]
)
def test_a_block_size_that_is_no_positive_integer_is_refused(block_size, error):
    with pytest.raises(error, match=r"^block_size: got"):
        crossent.blocked(*batch((6, 5)), block_size=block_size)


def allocated(call, tmp_path):
    """Return the sizes of torch's CPU allocations during a call, in bytes, and the peak of the allocated memory.

    A release of memory has a negative size.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    trace = tmp_path / "trace.json"
    profile.export_chrome_trace(str(trace))
    del result
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    sizes = [int(event["args"]["Bytes"]) for event in sorted(changes, key=lambda event: event["ts"])]
    current = peak = 0
    for size in sizes:
        current += size
        peak = max(peak, current)
    return sizes, peak


@pytest.mark.parametrize("shape", [(256, 2000), (4, 21, 80, 80)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_gradient_has_a_buffer_of_the_size_of_the_logits(shape, dtype, tmp_path):
    logits, target = batch(shape, dtype)
    size, block = logits.numel() * logits.element_size(), 2**13  # torch 2.0 has no nbytes

    def forward():
        return crossent.blocked(logits, target, block_size=block)

    def both():
        return torch.autograd.grad(crossent.blocked(logits, target, block_size=block), logits)

    crossent.blocked(logits, target, block_size=block)
    _, peak = allocated(forward, tmp_path)
    losses = 4 * math.prod(target.shape)
    assert peak <= losses + 2 * 4 * block
    logits.requires_grad_()
    sizes, peak = allocated(both, tmp_path)
    assert sum(one >= size for one in sizes) == 1
    assert peak <= size + losses + 2 * 4 * block


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_lazily_negated_view_has_the_loss_of_its_numbers(dtype):
    """In torch 2.13, `copy_` of a lazily negated view in float16 into float32 does not negate the numbers."""
    logits, target = torch.tensor([[3.0, 1.0, -3.0], [0.0, 2.0, 1.0]], dtype=dtype), torch.tensor([0, 2])
    negated = torch._neg_view(-logits)
    assert negated.is_neg()
    assert crossent.blocked(negated, target) == crossent.blocked(logits, target)
