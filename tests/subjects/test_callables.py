"""Subjects from callables: the reason why an option is missing names a parameter with a similar name."""

import pytest

import crossent
from crossent.subjects.callables import as_subject


def test_a_parameter_with_nearly_the_name_of_an_option_is_named():
    def loss(input, target, weights=None, ignore_index=-100, reduce="mean", smoothing=0.0, temperature=1.0):
        return crossent.formula(input, target, ignore_index=ignore_index)

    assert {as_subject(loss).lacks[feature] for feature in ("weight", "reduction_sum", "label_smoothing")} == {
        "has no weight (its argument weights is never passed)",
        "has no reduction (its argument reduce is never passed)",
        "has no label_smoothing (its argument smoothing is never passed)",
    }
    report = crossent.check(loss, level="quick", dtypes="float32", checks="loss", cases="*7x5*")
    assert "has no reduction (its argument reduce is never passed), has no weight" in " ".join(str(report).split())


def test_a_parameter_that_is_passed_by_position_is_no_lacking_option():
    def by_position(weights, target, weight=None, /, ignore_index=-100, reduction="mean", label_smoothing=0.0):
        return crossent.formula(weights, target, weight, ignore_index, reduction, label_smoothing)

    def of_two(weights, target):
        return crossent.formula(weights, target)

    def of_weight(input, weight):
        return crossent.formula(input, weight)

    assert dict(as_subject(by_position).lacks) == {"weight": "takes weight only by position"}
    assert as_subject(of_two).lacks["weight"] == as_subject(of_weight).lacks["weight"] == "has no weight"


def test_an_unknown_feature_in_lacks_is_named():
    def loss(input, target):
        return crossent.formula(input, target)

    loss.lacks = {"weigth": "has no weight"}
    with pytest.raises(TypeError) as caught:
        as_subject(loss)
    start = (
        "an object whose attribute `lacks` has the unknown feature 'weigth' (did you mean weight?); allowed are float16"
    )
    assert str(caught.value).startswith(start)
