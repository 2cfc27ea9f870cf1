"""The cases of the corpus as a source of cases, like the grid and the edges."""

from crossent.cases.axes import DTYPES
from crossent.cases.corpus import bugs


def corpus(dtypes=tuple(DTYPES), seed=0):
    """Yield the cases of all bugs with these dtypes, without the large ones. Each seed has its own random numbers.

    Two bugs may share a case under two names. Cases are equal whatever their names are.
    """
    return (case.seeded(seed) for bug in bugs() for case in bug.cases if case.dtype in set(dtypes) and case.tiled == 1)
