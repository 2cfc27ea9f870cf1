"""The corpus: bugs of cross-entropies that somebody shipped, and the cases that stand for each.

`corpus.toml` has the table. A bug comes with the names of the checks that must catch it, some of which cost more calls
than those that run on every case; or with the reason why no case can stand for it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case


@dataclass(frozen=True)
class Bug:
    """One entry of the corpus.

    Attributes:
        id: a letter for what goes wrong, and a number.
        breaks: what goes wrong, in a sentence.
        issues: where it was reported, as in `pytorch/pytorch#73205`; none where it was met in a user's code.
        cases: that have what triggers it, all of one name.
        bad_inputs: ids of calls that must be refused and were not.
        checks: the names of those that must catch it on these.
        why_not: why nothing can stand for it, or "".
    """

    id: str
    breaks: str
    issues: tuple[str, ...] = ()
    cases: tuple[Case, ...] = ()
    bad_inputs: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    why_not: str = ""

    def __str__(self) -> str:
        lines = [f"{self.id:<4} {self.breaks} {', '.join(self.issues)}".rstrip()]
        lines += [f"       {', '.join(self.checks)}: {case.id}" for case in self.cases]
        lines += [f"       errors: {bad_input}" for bad_input in self.bad_inputs]
        return "\n".join([*lines, *([f"       none: {self.why_not}"] if self.why_not else [])])


@cache
def bugs() -> tuple[Bug, ...]:
    """All of the corpus, in the order of its ids."""
    document = tomllib.loads((files("crossent.cases") / "corpus.toml").read_text(encoding="utf-8"))
    return tuple(_bug(**entry) for entry in document["bug"])


def corpus(dtypes: Iterable[str] = tuple(DTYPES), seed: int = 0) -> Iterator[Case]:
    """The cases of all bugs that are of these dtypes, in numbers of their own for each seed; not the large ones.

    Two bugs may share a case, under two names; cases are equal whatever they are called.

    Example:
        >>> next(corpus()).id
        'pytorch-73205/float32-7x5-normal-int64-mean-ignored_default-smooth0.2'
    """
    wanted = set(dtypes)
    return (case.seeded(seed) for bug in bugs() for case in bug.cases if case.dtype in wanted and case.tiled == 1)


def _bug(issues: list[str], name: str = "", cases: Iterable[str] = (), **entry: Any) -> Bug:
    name = name or _name(issues[0])
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Bug(issues=tuple(issues), cases=tuple(Case.of(f"{name}/{recipe}") for recipe in cases), **given)


def _name(issue: str) -> str:
    """`linkedin/Liger-Kernel#678` to `liger-kernel-678`."""
    return issue.rpartition("/")[2].replace("#", "-").replace(".", "-").lower()
