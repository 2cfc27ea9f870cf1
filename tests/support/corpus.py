"""The cases of the corpus, as a function like `grid` and `edges`."""

from crossent.cases.axes import DTYPES
from crossent.cases.corpus import bugs


def corpus(dtypes=tuple(DTYPES), seed=0):
    """Yield the cases of all bugs with these dtypes, except tiled cases, with the random numbers of the seed.

    Two bugs may have the same case under two names. Such cases are equal.
    """
    return (case.seeded(seed) for bug in bugs() for case in bug.cases if case.dtype in set(dtypes) and case.tiled == 1)
