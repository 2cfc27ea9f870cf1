"""A subject from a loss on several ranks: the subject's name, features, contract and grades."""

from __future__ import annotations

from typing import Any

from crossent.cases.operation import Operation
from crossent.subjects.loader import import_object, source_of
from crossent.subjects.ranks.loss import RankLoss
from crossent.subjects.ranks.protocol import require_ranks
from crossent.subjects.subject import Subject
from crossent.words import one_line, quoted

# The subjects on several ranks that have a name, with their descriptions.
RANK_SUBJECTS = {"loss_parallel": "crossent.subjects.ranks.loss_parallel:LossParallel"}
# The contract and the grade of the subjects that have a name, unless the user chooses others. torch computes in the
# dtype of the logits, and stores the logarithm of the sum of a row in this dtype.
RANK_CONTRACT = "logsumexp", "B"
# Each pass may take a tenth of the time limit of a case. So a blocked rank is found before the whole case is stopped.
_CALLS = 10
_NOT_TRANSFORMED = "runs on several ranks"


def load_on_ranks(given: Any, ranks: int, timeout: float, operation: Operation, backend: str | None = None) -> Subject:
    """Return the subject of a loss on several ranks.

    Args:
        given: the name of a subject in `RANK_SUBJECTS`; package.module:NAME or path/to/file.py:NAME; a class or a
            function that follows :mod:`crossent.subjects.ranks.protocol`; or a loss of
            :func:`crossent.adapters.from_ranks`.
        ranks: the number of ranks.
        timeout: the time limit of a case, in seconds.
        operation: the operation of the run.
        backend: the backend of torch.distributed, or None: see :class:`crossent.subjects.ranks.group.Ranks`.

    Raises:
        ValueError: the subject cannot be loaded. The message is one line.
        TypeError: the object does not follow the protocol. The message is one line.
    """
    require_ranks(ranks, operation)
    how: dict[str, Any] = {"seconds": max(1.0, timeout / _CALLS), "backend": backend}
    if not isinstance(given, str):
        try:
            loss = given if isinstance(given, RankLoss) else RankLoss(given, ranks, **how)
        except TypeError as error:
            raise TypeError(f"subject: got {one_line(str(error))}") from None
        if loss.count != ranks:
            own = f"{quoted(loss.__name__)} runs on {loss.count} ranks"
            raise ValueError(f"ranks: got {ranks}, but {own}; give this number of ranks")
        return _subject(loss.__name__, loss, "")
    description = RANK_SUBJECTS.get(given, given)
    if ":" not in description:
        allowed = f"{', '.join(RANK_SUBJECTS)}, package.module:NAME and path/to/file.py:NAME"
        raise ValueError(f"subject: got {quoted(given)}, which does not run on ranks; allowed are {allowed}")
    try:
        source = source_of(description)
        loss = RankLoss(import_object(description), ranks, description=source, **how)
    except (ValueError, TypeError) as error:
        reason = f"it is {error}" if isinstance(error, TypeError) else str(error)
        raise ValueError(f"subject: got {quoted(given)}; {one_line(reason)}") from error.__cause__
    if given in RANK_SUBJECTS:
        return _subject(given, loss, given)
    return _subject(description.rpartition(":")[2].rpartition(".")[2], loss, source)


def _subject(name: str, loss: RankLoss, source: str) -> Subject:
    bare = Subject(name, loss, not_transformed=_NOT_TRANSFORMED, source=source, ranks=loss.count, split=loss.split)
    return bare.lacking(loss.lacks)
