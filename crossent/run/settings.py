"""Known: what of a run's findings is known: of torch itself, and what a user's list says."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from os import PathLike

import torch

from crossent.cases.axes import DTYPES
from crossent.checks import CHECKS
from crossent.report import expected_findings as lists
from crossent.report.report import Report
from crossent.run.plan import plan
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.subject import Subject

ExpectedList = list[lists.ExpectedFinding]


def expected_lists(
    path: str | os.PathLike[str] | None, subjects: Sequence[Subject] | None, device: str, seed: int = 0
) -> tuple[ExpectedList, ExpectedList]:
    """What is known to be wrong: of torch itself, and what a file says of these subjects, or of any.

    Raises:
        ValueError: the file is none, or cannot be read, or has an entry that can match nothing.
    """
    if path is None:
        return lists.torch_list(), []
    try:
        own = lists.read_list(os.fspath(path))
        here = [entry for entry in own if entry.applies(str(torch.__version__), device)]
        names = None if subjects is None else [subject.name for subject in subjects]
        lists.require_about(here, names, (*CHECKS, "errors"), partial(_ids, seed))
    except OSError as error:
        raise ValueError(f"expected findings: {os.fspath(path)}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"expected findings: {error}") from None
    return lists.torch_list(), own


@cache
def _ids(seed: int) -> list[str]:
    """Those of all cases that a run with this seed, or without one, may have."""
    return list({case.id: None for at in {0, seed} for case in plan("thorough", tuple(DTYPES), at)})


def own_names(subjects: Iterable[Subject]) -> list[str]:
    """The names of those that are crossent's own, and of what torch.compile makes of them."""
    return [subject.name for subject in subjects if subject.source.removesuffix(COMPILE_SUFFIX) in BY_NAME]


def mark_expected(report: Report, known: tuple[ExpectedList, ExpectedList], own: Collection[str]) -> None:
    """Mark what is known to be wrong: of torch, only with the subjects of these names."""
    of_torch, of_all = known
    lists.mark(report, of_torch, own)
    lists.mark(report, of_all)


@dataclass(frozen=True)
class Settings:
    """What is asked, and how; as in :func:`crossent.check`."""

    device: str = "cpu"
    dtypes: str | Iterable[str] = tuple(DTYPES)
    level: str = "quick"
    seed: int = 0
    without: str | Iterable[str] = ()
    grade: str = "A"
    expected_findings: str | PathLike[str] | None = None
