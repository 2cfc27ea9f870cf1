"""Each form against `torch.nn.CrossEntropyLoss`, called with the same arguments: loss and gradient. Start here.

Two correct implementations round differently, so their results differ in the last digits. A rounding-error analysis of
each call bounds how far each result may be from the exact value. A form passes if it differs from torch by no more than
the sum of the two bounds. The bounds follow from the numbers of the call: no test has a tolerance such as `rtol`.
"""

import pytest
import torch
from support.against_torch import (
    COUNTS_IN_FLOAT16,
    assert_within_bounds,
    evaluate,
    in_float64,
    readable,
    scalar,
    torch_computes,
)

from crossent.cases.inputs import Inputs
from crossent.forms import FORMS, KERNEL_FORMS
from crossent.machine import lacks_float64
from crossent.subjects.builtin import subjects_of

AXES = {
    # `scalar` has its own test below.
    "form": [form for name, form in {**FORMS, **KERNEL_FORMS}.items() if name != "scalar"],
    "shape": [(10,), (32, 10), (5, 1000), (4, 10, 3, 2)],  # (C), (N, C) or (N, C, d1, d2)
    "dtype": [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    "reduction": ["none", "mean", "sum"],
}


def pytest_generate_tests(metafunc):
    """Run a test with each combination of values of the AXES that the test takes as arguments.

    The conftest.py at the top of the repository adds `device`.
    """
    for name, values in AXES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=readable)


@pytest.fixture
def logits(shape, dtype, device, seed):
    if dtype is torch.float64 and (reason := lacks_float64(device)):
        pytest.skip(reason)
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(device, dtype)


@pytest.fixture
def target(logits):
    """Return the true class of each row: the class with the second largest logit."""
    axis = min(1, logits.dim() - 1)
    return logits.cpu().double().topk(2, axis).indices.select(axis, 1).contiguous().to(logits.device)


@pytest.fixture
def weight(logits):
    return torch.linspace(0.5, 2, logits.shape[min(1, logits.dim() - 1)]).to(logits)


def torch_loss(input, target, **options):
    return torch.nn.CrossEntropyLoss(**options)(input, target)


def compare(form, logits, target, **options):
    """Compare a form with torch in float64, whose error bound is tiny, and with torch in the dtype of the logits.

    Old versions of torch cannot compute in float16 on a CPU. There, compare with float64 only.
    """
    if reason := why_no_kernel(form, logits):
        pytest.skip(reason)
    result = evaluate(form, logits, target, **options)
    assert_within_bounds(result, evaluate(torch_loss, **in_float64(logits, target, **options)))
    if torch_computes(logits):
        assert_within_bounds(result, evaluate(torch_loss, logits, target, **options))


def why_no_kernel(form, logits):
    """Return why the kernel of a form cannot run here; "" if the kernel can run, or if the form has no kernel."""
    if form not in KERNEL_FORMS.values():
        return ""
    (subject,) = subjects_of(form.__name__, str(logits.device))
    if subject.promise == "blocked":
        return "without CUDA, fused calls blocked; set TRITON_INTERPRET=1 to run its kernel in Triton's interpreter"
    return subject.not_applicable(Inputs(logits, logits, {}, logits)) or ""  # Triton's interpreter truncates bfloat16


def test_class_indices(form, logits, target, reduction):
    compare(form, logits, target, reduction=reduction)


def test_large_logits(form, logits, target, reduction):
    compare(form, 1000 * logits, target, reduction=reduction)  # exp(1000) is infinite in every dtype


def test_weight(form, logits, target, weight, reduction):
    compare(form, logits, target, weight=weight, reduction=reduction)


def test_ignore_index(form, logits, target, reduction):
    target.view(-1)[1::2] = -1  # every second row
    compare(form, logits, target, ignore_index=-1, reduction=reduction)


def test_label_smoothing(form, logits, target, reduction):
    compare(form, logits, target, label_smoothing=0.1, reduction=reduction)


def test_all_options(form, logits, target, weight, reduction):
    target.view(-1)[1::2] = -1
    compare(form, logits, target, weight=weight, ignore_index=-1, label_smoothing=0.1, reduction=reduction)


def test_class_probabilities(form, logits, weight, reduction):
    target = logits.cpu().double().flip(0).softmax(min(1, logits.dim() - 1)).to(logits)
    compare(form, logits, target, weight=weight, label_smoothing=0.1, reduction=reduction)


@pytest.mark.parametrize("loss", [*AXES["form"], pytest.param(torch_loss, marks=COUNTS_IN_FLOAT16)], ids=readable)
def test_mean_of_70000_rows_in_float16(loss, device):
    """The forms count the rows in float32. torch counts the rows in float16, where 70,000 is infinity."""
    call = torch.zeros(70_000, 2, dtype=torch.float16, device=device), torch.zeros(70_000, dtype=int, device=device)
    if reason := why_no_kernel(loss, call[0]):
        pytest.skip(reason)
    assert_within_bounds(evaluate(loss, *call), evaluate(torch_loss, **in_float64(*call)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_scalar(reduction, smoothing):
    """Compare the loss of `scalar`, the form for one row of Python numbers, with torch. `scalar` has no gradient."""
    call = {"logits": torch.tensor([3.0, 1.0, -3.0]).double(), "target": torch.tensor(1), "reduction": reduction}
    call |= {"weight": torch.tensor([0.5, 2.0, 1.0]).double(), "label_smoothing": smoothing}
    assert_within_bounds(evaluate(scalar, **call), evaluate(torch_loss, **call), names=["loss"])
