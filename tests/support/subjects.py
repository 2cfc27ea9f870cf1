"""Subjects of several tests: the forms on tensors, and wrong cross-entropy functions."""

import crossent
from crossent.forms import FORMS, scalar
from crossent.subjects.builtin import FORM_SUBJECTS

# All forms except `scalar`, which takes one row of Python numbers. A new form is in this list without a change here.
TENSOR_FORMS = [FORM_SUBJECTS[name] for name, form in FORMS.items() if form is not scalar]


def off_by_a_percent(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Return a loss and a gradient that are a percent too large."""
    return crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing) * 1.01


def off_in_the_loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """Return a loss that is a percent too large, with the right gradient."""
    loss = crossent.formula(input, target, weight, ignore_index, reduction, label_smoothing)
    return loss + 0.01 * loss.detach()
