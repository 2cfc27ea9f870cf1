"""Subjects from callables: the reason why an option is missing names a parameter with a similar name."""

import pytest

import crossent
from crossent.subjects.builtin import with_unique_names
from crossent.subjects.callables import as_subject
from crossent.subjects.loader import load


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


def test_a_form_and_a_function_of_its_name_get_two_names():
    """A form that is passed as a function has its own name, unless another subject already has this name."""
    own, named = load(crossent.formula), load("formula")
    imported = load("crossent:formula")
    for subjects, names in (
        (own, ["formula"]),
        ((*own, *named), ["formula#2", "formula"]),
        ((*named, *own), ["formula", "formula#2"]),
        ((*imported, *own), ["formula", "formula#2"]),
        ((*own, *own, *named), ["formula#2", "formula#3", "formula"]),
    ):
        assert [subject.name for subject in with_unique_names(subjects)] == names


def test_an_attribute_that_raises_is_no_suggestion(tmp_path):
    """A message about a missing attribute lists the callables of the object, so it reads all attributes."""
    file = tmp_path / "raising.py"
    file.write_text("class Raising:\n    @property\n    def broken(self):\n        return 1 / 0\nraising = Raising()\n")
    with pytest.raises(ValueError, match=r"raising\.py has no 'raising.xyz'$"):
        load(f"{file}:raising.xyz")


def test_a_file_name_that_the_system_refuses_is_an_error_of_one_line():
    with pytest.raises(ValueError, match="cannot be read: OSError") as caught:
        load(f"{300 * 'a'}.py:loss")
    assert "\n" not in str(caught.value)
