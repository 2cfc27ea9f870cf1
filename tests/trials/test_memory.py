"""The memory of tensors: which argument a call changed."""

import pytest
import torch

from crossent.cases.case import Case
from crossent.cases.linear.case import LinearCase
from crossent.trials.memory import overwrite, written


@pytest.mark.parametrize("name", ["input", "linear_weight"])
def test_of_two_tensors_in_one_storage_the_changed_tensor_is_named(name):
    given = LinearCase("float32", linear_layout="linear_tied").build()
    before = given.copy()
    assert written(given, before) == ""
    {"input": given.input, **given.options}[name][0, 0] += 1
    assert written(given, before) == name


def test_a_write_beside_a_view_is_a_write_into_its_argument():
    given = Case.of("float32-7x5-normal-int64-mean-window").build()
    before = given.copy()
    whole = torch.empty(0).set_(given.input.untyped_storage())
    whole[0] = 1.0
    assert given.input.equal(before.input)
    assert written(given, before) == "input"


def test_an_argument_whose_memory_was_released_is_named():
    given = Case.of("float32-7x5-normal-int64-mean-weighted").build()
    before = given.copy()
    given.options["weight"].untyped_storage().resize_(0)
    assert written(given, before) == "weight"


@pytest.mark.parametrize(
    "case",
    [
        Case("float32", layout="expanded", target_layout="target_strided", weight="weighted", upstream="stride0"),
        Case("float32", target="probabilities", reduction="none", layout="window", upstream="rows"),
        Case("float32", (0, 5)),
        LinearCase("float32", linear_layout="linear_tied"),
    ],
    ids=lambda value: getattr(value, "id", str(value)),
)
def test_inputs_are_overwritten_in_place_as_far_as_their_storages_go(case):
    given, source = case.seeded(1).build(), case.build()
    leaf = given.input.detach().requires_grad_()
    versions = leaf._version, given.target._version
    assert overwrite(given, source)
    assert written(given, source) == ""
    assert leaf._version > versions[0]  # a subject may compare versions
    assert given.target._version > versions[1]


def test_inputs_of_another_layout_are_not_overwritten():
    given, source = Case("float32", layout="strided").build(), Case("float32").build()
    before = given.copy()
    assert not overwrite(given, source)
    assert written(given, before) == ""
