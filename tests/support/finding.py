"""Run one check on a subject, and make a cross-entropy whose gradient is written by hand."""

import torch
import torch.nn.functional as F
from support.checks import CALL, RESULT
from support.running import run

from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.subjects.subject import Subject


def part_of(subject, case, *names):
    """Run `call`, `result` and the named checks on a case; return the part of the report about the subject."""
    return run(subject, case, (CALL, RESULT, *(CHECKS[name] for name in names))).subjects[0]


def found(name, loss, case):
    """Return the kind and the message of each finding of a check on a case.

    Assert first that the check passes on the case for a correct loss.
    """
    case = Case.of(case)
    right = part_of(FORM_SUBJECTS["formula"], case, name)
    assert not right.findings, right.findings
    assert name in right.outcomes[case.id].checks
    findings = part_of(Subject("mine", loss), case, name).findings
    assert {finding.check for finding in findings} <= {name}, findings
    return [(finding.kind, finding.message) for finding in findings]


def by_hand(wrong):
    """Return a cross-entropy of logits, (N, C), and class indices with a gradient written by hand.

    The gradient is `wrong(softmax, one_hot, upstream)`, all of shape (N, C) except `upstream`, (N,).
    """

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, target):
            probs = torch.softmax(logits, 1)
            ctx.save_for_backward(probs, F.one_hot(target, logits.shape[1]))
            return -torch.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]

        @staticmethod
        def backward(ctx, upstream):
            return wrong(*ctx.saved_tensors, upstream), None

    return lambda logits, target, reduction, **options: reduced(ByHand.apply(logits, target), reduction)


def reduced(losses, reduction):
    return {"none": lambda: losses, "sum": losses.sum, "mean": losses.mean}[reduction]()
