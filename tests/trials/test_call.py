"""Test the errors about the gradients of a call, and results that are lazily negated views."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import crossent
from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.cases.operation import GRADIENTS
from crossent.trials.call import evaluate, require_gradients

DENSE = Case.of("float32-7x5-normal-probabilities-mean")
LINEAR = LinearCase("float32", (7, 5), bias="bias")


def composed(input, target, *, linear_weight, linear_bias, **options):
    return F.cross_entropy(F.linear(input, linear_weight, linear_bias), target, **options)


def without_weight(input, target, *, linear_weight, **options):
    return composed(input, target, linear_weight=linear_weight.detach(), **options)


@pytest.mark.parametrize(
    ("loss", "case", "message"),
    [
        (
            lambda x, y, **options: crossent.formula(x.detach(), y.detach(), **options),
            DENSE,
            "the loss is detached from the logits, so there is no gradient; if this is intended, declare it: "
            "--without gradient, in Python without=['gradient']",
        ),
        (
            lambda x, y, **options: crossent.formula(x, y.detach(), **options),
            DENSE,
            "the loss is detached from the target probabilities, so there is no gradient; if this is intended, "
            "declare it: --without target_gradient, in Python without=['target_gradient']",
        ),
        (without_weight, LINEAR, "the loss is detached from the linear_weight, so there is no gradient"),
    ],
    ids=["logits", "target", "weight"],
)
def test_the_error_of_a_detached_loss_names_the_argument_and_the_feature(loss, case, message):
    with pytest.raises(TypeError) as raised:
        evaluate(loss, case.build())
    assert str(raised.value) == message


def test_the_error_of_a_missing_or_wrong_gradient_names_the_gradient():
    inputs = LINEAR.build()
    got = evaluate(composed, inputs)
    require_gradients((got, "text"), (inputs,), tuple(GRADIENTS))
    for name, words in (("gradient", "gradient of the input"), ("weight_gradient", "gradient of linear_weight")):
        right = getattr(got, name)
        rows, columns = right.shape
        for wrong, made in (
            (None, "None"),
            (right[1:], f"float32 with shape ({rows - 1}, {columns})"),
            (right.double(), f"float64 with shape ({rows}, {columns})"),
        ):
            message = f"{words}: got {made}; expected float32 with shape ({rows}, {columns})"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                require_gradients([got, [replace(got, **{name: wrong})]], (inputs,), tuple(GRADIENTS))
        require_gradients(replace(got, **{name: None}), (inputs,), ())
    require_gradients(replace(got, loss=torch.zeros(3), gradient=None), (inputs,), tuple(GRADIENTS))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loss_and_a_gradient_may_be_lazily_negated_views(dtype):
    class Negate(torch.autograd.Function):
        @staticmethod
        def forward(context, logits):
            return logits.clone()

        @staticmethod
        def backward(context, gradient):
            return torch._neg_view(-gradient)

    def negated(input, target, **options):
        return torch._neg_view(-F.cross_entropy(Negate.apply(input), target, **options))

    checks = ["call", "result", "loss", "gradient", "repeat", "no_grad", "non_leaf"]
    case = f"{dtype}-7x5-normal-int64-mean-scalar"
    report = crossent.check(negated, checks=checks, cases=[case])
    assert report.ok, report.findings
