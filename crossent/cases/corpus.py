"""The corpus: bugs in cross-entropies that other projects shipped, and the cases that trigger each bug.

`corpus.toml` lists for each bug the checks that must catch the bug, or the reason why no case can trigger the bug.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from crossent.cases.case import Case


@dataclass(frozen=True)
class Bug:
    """One entry of the corpus.

    Attributes:
        id: a letter for the kind of bug, and a number, such as "D6". "D6b" is a variant of D6.
        breaks: the bug, in one or two sentences.
        issues: the issues about the bug, such as `pytorch/pytorch#73205`; empty for a bug in a user's code.
        cases: the cases that trigger the bug.
        bad_inputs: the ids of calls for which the buggy code should raise an error.
        checks: the names of the checks that must catch the bug.
        why_not: the reason why no case can trigger the bug, or "".
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
        checks = ", ".join(check for check in self.checks if check != "errors")  # the check errors runs on calls only
        lines += [f"       {checks}: {case.id}" for case in self.cases]
        lines += [f"       errors: {bad_input}" for bad_input in self.bad_inputs]
        return "\n".join([*lines, *([f"       no case: {self.why_not}"] if self.why_not else [])])


@cache
def bugs() -> tuple[Bug, ...]:
    """Return all bugs of the corpus, in the order of their ids."""
    document = tomllib.loads((files("crossent.cases") / "corpus.toml").read_text(encoding="utf-8"))
    return tuple(_bug(**entry) for entry in document["bug"])


def _bug(issues: list[str], name: str = "", cases: Iterable[str] = (), **entry: Any) -> Bug:
    """Return an entry of `corpus.toml` as a bug.

    The ids in `cases` leave out the name of the case, which is `name` or comes from the first issue.
    """
    name = name or _name(issues[0])
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Bug(issues=tuple(issues), cases=tuple(Case.of(f"{name}/{recipe}") for recipe in cases), **given)


def _name(issue: str) -> str:
    """Return the name of the cases that show an issue: `liger-kernel-678` for `linkedin/Liger-Kernel#678`."""
    return issue.rpartition("/")[2].replace("#", "-").replace(".", "-").lower()
