"""Find the case or the bad input with an id."""

from __future__ import annotations

from functools import lru_cache

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.cases.linear.bad_inputs import LINEAR_BAD_INPUTS
from crossent.cases.linear.case import LinearCase

BAD_INPUT_OF = {bad.id: bad for bad in (*BAD_INPUTS, *LINEAR_BAD_INPUTS)}
MOST_CACHED = 2**15  # the most ids in a cache of cases or of their words; a soak may have millions of failing cases


def case_of(id: str) -> Case | BadInput:
    """Return the case or the bad input with this id, or raise ValueError."""
    if id in BAD_INPUT_OF:
        return BAD_INPUT_OF[id]
    of_linear = id.rpartition("/")[2].startswith(LinearCase.prefix)
    return LinearCase.of(id) if of_linear else Case.of(id)


@lru_cache(MOST_CACHED)
def case_or_none(id: str) -> Case | None:
    """Return the case with this id, or None."""
    try:
        found = case_of(id)
    except ValueError:
        return None
    return found if isinstance(found, Case) else None
