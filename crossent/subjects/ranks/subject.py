"""Make a subject from a loss on several ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from crossent.cases.operation import Operation
from crossent.numerics.bounds.contracts import Promise
from crossent.subjects.contracts import grades_by_dtype
from crossent.subjects.loader import import_object, source_of
from crossent.subjects.ranks.loss import RankLoss
from crossent.subjects.ranks.protocol import require_ranks, why_no_classes
from crossent.subjects.subject import Subject
from crossent.words import counted, one_line, quoted

# The subjects on several ranks that have a name, with their descriptions.
RANK_SUBJECTS = {"loss_parallel": "crossent.subjects.ranks.loss_parallel:LossParallel"}
# The promise and the grade of the subjects that have a name, unless the user chooses a contract or a grade. From the
# source of torch 2.13.0, torch/distributed/tensor/parallel/loss.py:
# - `_log_softmax` subtracts the maximum over all ranks first, and never computes max + log Σ. In half precision, the
#   function computes in float32, with an all-reduce of float32 sums, and rounds log p to the dtype once.
# - `_nll_loss_forward` stores the product with the weight, the sum over the rows, the divisor and the mean.
# - `_nll_loss_and_log_softmax_backward` computes `(hot + exp(log p)) * grad_output`, where `hot` is -1 at the true
#   class, and otherwise 0. The function stores the exponential, the sum, `grad_output / divisor`, the product of this
#   quotient with the weight, and the result. The backward of torch's log_softmax stores the result alone.
RANK_PROMISE: Promise = "stepwise"
RANK_GRADE = "B"
# Each pass may take a tenth of the time limit of a case. So a blocked rank is found before the whole case is stopped.
_CALLS = 10
_NOT_TRANSFORMED = "runs on ranks"


def load_on_ranks(given: Any, ranks: int, timeout: float, operation: Operation, backend: str | None = None) -> Subject:
    """Return the subject of a loss on several ranks.

    Args:
        given: a description, a class or function of the user, or a loss of :func:`crossent.adapters.from_ranks`. A
            description is a name in `RANK_SUBJECTS`, package.module:NAME or path/to/file.py:NAME.
        ranks: the number of ranks.
        timeout: the time limit of a case, in seconds. One pass may take a tenth of this time, but at least
            1 second.
        operation: the operation of the run.
        backend: the backend of torch.distributed; by default, :class:`crossent.subjects.ranks.group.Ranks` chooses one.

    Raises:
        ValueError: the subject cannot be loaded, or cannot run on `ranks` ranks. The message is one line.
        TypeError: `given` is not a loss on several ranks. The message is one line.
    """
    require_ranks(ranks, operation)
    how: dict[str, Any] = {"seconds": max(1.0, timeout / _CALLS), "backend": backend}
    if not isinstance(given, str):
        try:
            loss = given if isinstance(given, RankLoss) else RankLoss(given, ranks, **how)
        except TypeError as error:
            raise TypeError(f"subject: got {one_line(str(error))}") from None
        if loss.count != ranks:
            own = f"{quoted(loss.__name__)} runs on {counted(loss.count, 'rank')}"
            raise ValueError(f"ranks: got {ranks}, but {own}; use ranks={loss.count}")
        return _subject(loss.__name__, loss, "")
    description = RANK_SUBJECTS.get(given, given)
    if ":" not in description and not description.endswith(".py"):
        allowed = f"{', '.join(RANK_SUBJECTS)}, package.module:NAME and path/to/file.py:NAME"
        raise ValueError(f"subject: got {quoted(given)}, which names no loss on several ranks; allowed are {allowed}")
    try:
        if given in RANK_SUBJECTS:
            from crossent.subjects.ranks.loss_parallel import require_tensors  # which takes a second

            require_tensors()
        source = source_of(description)
        loss = RankLoss(import_object(description), ranks, description=source, **how)
    except (ValueError, TypeError) as error:
        reason = f"it is {error}" if isinstance(error, TypeError) else str(error)
        raise ValueError(f"subject: got {quoted(given)}; {one_line(reason)}") from error.__cause__
    if given in RANK_SUBJECTS:
        return with_rank_promise(_subject(given, loss, given))
    return _subject(description.rpartition(":")[2].rpartition(".")[2], loss, source)


def with_rank_promise(subject: Subject) -> Subject:
    """Return a copy of a subject with the promise, the contract and the grade of torch's `loss_parallel`."""
    return replace(subject, promise=RANK_PROMISE, contract=RANK_PROMISE, grades=grades_by_dtype(RANK_GRADE))


def _subject(name: str, loss: RankLoss, source: str) -> Subject:
    bare = Subject(name, loss, not_transformed=_NOT_TRANSFORMED, source=source, ranks=loss.count, split=loss.split)
    of_classes = partial(why_no_classes, loss.split, loss.count, loss.lacks)
    return replace(bare, normalization=loss.normalization, not_applicable=of_classes).lacking(loss.lacks)
