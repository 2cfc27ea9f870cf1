"""Subjects from callables: the reason why an option is missing names a parameter with a similar name."""

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
