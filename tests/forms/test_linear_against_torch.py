"""Each form of linear cross-entropy against torch, called with the same arguments: the loss and the three gradients.

As in test_against_torch.py, a form passes if it differs from torch by no more than the sum of the two error bounds. The
bounds follow from the numbers of the call.
"""

import pytest
import torch
import torch.nn.functional as F
from support.against_torch import assert_within_bounds, evaluate_linear, readable
from support.waits import computes

from crossent.forms import LINEAR_FORMS

AXES = {
    "form": list(LINEAR_FORMS.values()),
    "shape": [(1, 3, 2), (32, 16, 10), (130, 67, 5), (5, 7, 1000)],  # N, H and C
    "dtype": [torch.float16, torch.bfloat16, torch.float32, torch.float64],
    "reduction": ["none", "mean", "sum"],
}


def pytest_generate_tests(metafunc):
    """Run a test with each combination of values of the AXES that the test takes as arguments."""
    for name, values in AXES.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=readable)


def composition(input, linear_weight, target, *, linear_bias=None, **options):
    return torch.nn.CrossEntropyLoss(**options)(F.linear(input, linear_weight, linear_bias), target)


# torch's linear cross-entropy. Before torch 2.13, torch has only the composition of the layer and the loss.
torch_loss = getattr(F, "linear_cross_entropy", composition)


@pytest.fixture
def call(shape, dtype, seed):
    """Return a dict of the arguments input, linear_weight and target. The target has class indices."""
    if not computes(str(dtype).removeprefix("torch.")):
        pytest.skip(f"this torch does not compute the loss of {dtype} logits on a CPU")
    (rows, features, classes), random = shape, torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, features, generator=random), torch.randn(classes, features, generator=random)
    target = torch.randint(classes, (rows,), generator=random)
    return {"input": hidden.to(dtype), "linear_weight": (3 * weight / features**0.5).to(dtype), "target": target}


def with_bias(call):
    classes = len(call["linear_weight"])
    return {**call, "linear_bias": torch.linspace(-2, 2, classes).to(call["input"])}


def with_weight(call):
    return {**call, "weight": torch.linspace(0.5, 2, len(call["linear_weight"])).to(call["input"])}


def compare(form, call, **options):
    """Compare a form with torch in float64, whose error bound is tiny, and with torch in the dtype of the input."""
    call = {**call, **options}
    result = evaluate_linear(form, call)
    wide = {
        name: one.double() if torch.is_tensor(one) and one.is_floating_point() else one for name, one in call.items()
    }
    names = ["loss", "gradient", "weight_gradient", *(["bias_gradient"] if "linear_bias" in call else [])]
    assert_within_bounds(result, evaluate_linear(composition, wide), names)
    assert_within_bounds(result, evaluate_linear(torch_loss, call), names)


def test_class_indices(form, call, reduction):
    compare(form, call, reduction=reduction)


def test_bias(form, call, reduction):
    compare(form, with_bias(call), reduction=reduction)


def test_weight(form, call, reduction):
    compare(form, with_weight(call), reduction=reduction)


def test_ignore_index(form, call, reduction):
    call["target"][1::2] = -1  # every second row
    compare(form, with_bias(call), ignore_index=-1, reduction=reduction)


def test_label_smoothing(form, call, reduction):
    compare(form, with_bias(call), label_smoothing=0.1, reduction=reduction)


def test_all_options(form, call, reduction):
    call["target"][1::2] = -1
    compare(form, with_weight(with_bias(call)), ignore_index=-1, label_smoothing=0.1, reduction=reduction)


def test_class_probabilities(form, call, reduction):
    logits = F.linear(call["input"].double(), call["linear_weight"].double())
    call["target"] = logits.flip(0).softmax(1).to(call["input"])
    compare(form, with_weight(with_bias(call)), label_smoothing=0.1, reduction=reduction)
