"""The worked example of a linear cross-entropy: its numbers, its layout, and the errors of wrong arguments."""

import re

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from crossent.cli import PASSED, main
from crossent.forms import LINEAR_FORMS
from crossent.forms.explain import DEFAULT_LOGITS, DEFAULT_TARGET
from crossent.forms.explain_linear import DEFAULT_BIAS, DEFAULT_HIDDEN, DEFAULT_WEIGHT, explain_linear


def shown(capsys, *words):
    assert main(["explain", "--linear", *words]) == PASSED
    return capsys.readouterr().out


def test_the_example_has_the_logits_of_the_example_without_a_layer():
    h, w, b = torch.tensor(DEFAULT_HIDDEN), torch.tensor(DEFAULT_WEIGHT), torch.tensor(DEFAULT_BIAS)
    assert tuple((w @ h + b).tolist()) == DEFAULT_LOGITS


def test_the_walk_shows_the_logits_and_the_three_gradients(capsys):
    leaves = [
        torch.tensor(one, dtype=torch.float64).requires_grad_()
        for one in (DEFAULT_HIDDEN, DEFAULT_WEIGHT, DEFAULT_BIAS)
    ]
    loss = F.cross_entropy(F.linear(*leaves), torch.tensor(DEFAULT_TARGET))
    of_hidden, of_weight, of_bias = torch.autograd.grad(loss, leaves)
    out = shown(capsys)
    words = " ".join(out.split())
    assert words.count("(2, 1)") == 1
    for numbers in (of_hidden, *of_weight):
        assert f"({', '.join(f'{number:.4g}' for number in numbers.tolist())})" in words
    for c, number in enumerate(of_bias.tolist()):
        assert re.search(rf"^ +{c} .* {number:.4g} *(← the true class)? *$", out, re.M), out
    for form in ("F.linear, F.cross_entropy", *LINEAR_FORMS):
        assert re.search(rf"{re.escape(form)} .*{loss.item():.10g}", out), out
    assert re.findall(r"^(\d)\. ", out, re.M) == list("12345678")


@pytest.mark.parametrize("words", [[], ["--random"], ["--random", "--classes", "1000", "--seed", "3"]], ids=len)
def test_no_line_is_cut_at_80_columns(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(capsys, *words).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 120
    assert sum("← the true class" in line for line in lines) == 3  # in the tables of logits, softmax and gradients
    assert [number for number, line in enumerate(lines) if line.startswith("=")] == []  # no formula wraps


def test_a_random_layer_repeats_with_its_seed(capsys):
    first, second, other = (shown(capsys, "--random", "--seed", seed) for seed in ("1", "1", "2"))
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (([1.0], [[1.0], [2.0]], [0.0], 0), ValueError, "bias: got length 1; allowed is 2, one number for each row of"),
        (([1.0], [[1.0]], [], 0), ValueError, "bias: got length 0; allowed is 1, one number for each row of weight"),
        (([1.0], [[1.0], [1.0, 2.0]], [0.0, 0.0], 0), ValueError, "weight: got length 2 for class 1; allowed is 1"),
        (([1.0], [], [], 0), ValueError, "weight: got no rows; allowed is one row or more, one for each class"),
        (([1e200], [[1e108], [-1e108]], [0.0, 0.0], 0), ValueError, "bias: got .*, whose difference overflows"),
        (([1e200], [[1e200], [0.0]], [0.0, 0.0], 0), ValueError, "logits of hidden, weight and bias: got inf for"),
        (([1.0], [[1.0], [2.0]], [0.0, 0.0], 2), IndexError, "target: got 2; allowed are the classes 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        Console().print(explain_linear(*arguments))
