"""The settings of a run: one validated object for `crossent.check`, `crossent.parametrize` and the command."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import SystemRandom
from typing import Any

import torch

from crossent.cases.axes import DTYPES
from crossent.cases.operation import CROSS_ENTROPY, OPERATIONS, Operation
from crossent.checks import RANK_CHECKS, checks_of
from crossent.choices import LEVELS, MOST_SHARDS
from crossent.machine import can_fork, require_device
from crossent.report import expected_findings as lists
from crossent.report.findings import Finding, SubjectReport
from crossent.report.report import Report
from crossent.run.plan import Plan, plan, with_rank_checks
from crossent.run.selection import select
from crossent.subjects.builtin import BY_NAME, EVERY_NAMED, TORCHS, builtin_of, default_names, with_unique_names
from crossent.subjects.compiler import COMPILE_SUFFIX
from crossent.subjects.contracts import TORCH_CONTRACT, require_contract
from crossent.subjects.loader import load
from crossent.subjects.ranks.protocol import require_ranks
from crossent.subjects.remote import load_remote
from crossent.subjects.subject import Subject
from crossent.trials.check import Check
from crossent.words import cut, quoted

ExpectedList = list[lists.ExpectedFinding]


@dataclass(frozen=True)
class Settings:
    """The options of a run, which :func:`crossent.check` documents.

    `dtypes`, `without` and `checks` become tuples. `cases` becomes a dict, and the seed "random" becomes a number.
    The methods, not the constructor, validate features, ids of cases and the file of known failures.

    Raises:
        ValueError: an option is wrong.
        RuntimeError: this machine does not have the device.
    """

    device: str = "cpu"
    dtypes: str | Iterable[str] = tuple(DTYPES)
    level: str = "normal"
    seed: int | str = 0
    without: str | Iterable[str] = ()
    contract: str | None = None
    grade: str | None = None
    expected_findings: str | os.PathLike[str] | None = None
    jobs: int | None = None
    timeout: float = 300.0
    checks: str | Iterable[str] = ()
    cases: str | Iterable[str] | Mapping[str, Iterable[str]] = ()
    max_findings: int | None = None
    operation: str = CROSS_ENTROPY.name
    ranks: int | None = None
    shard: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"operation: got {quoted(self.operation)}; allowed are {', '.join(OPERATIONS)}")
        dtypes = _several("dtypes", self.dtypes)
        if unknown := [dtype for dtype in dtypes if dtype not in DTYPES]:
            raise ValueError(f"dtypes: got {quoted(unknown[0])}; allowed are {', '.join(DTYPES)}")
        if self.level not in LEVELS:
            raise ValueError(f"level: got {quoted(self.level)}; allowed are {', '.join(LEVELS)}")
        seed = SystemRandom().randrange(2**32) if self.seed == "random" else self.seed
        if type(seed) is not int or seed < 0:
            raise ValueError(f"seed: got {quoted(seed)}; allowed is a whole number of 0 or more, or the word random")
        _require_count("jobs", self.jobs)
        _require_count("max_findings", self.max_findings)
        if not isinstance(self.timeout, int | float) or self.timeout is True or not self.timeout > 0:
            raise ValueError(f"timeout: got {quoted(self.timeout)}; allowed is more than 0 seconds")
        require_contract(self.contract, self.grade)
        require_device(self.device)
        if self.ranks is not None:
            require_ranks(self.ranks, self._operation)
        self._require_shard()
        without, checks = _several("without", self.without), _several("checks", self.checks)
        cases = self.cases if isinstance(self.cases, Mapping) else dict.fromkeys(_several("cases", self.cases), ())
        cases = {case: _several(f"cases[{quoted(case)}]", names) for case, names in cases.items()}
        for given, of_given in (("checks", checks), *((f"cases[{quoted(case)}]", own) for case, own in cases.items())):
            if unknown := [name for name in of_given if name not in self.check_names]:
                raise ValueError(f"{given}: got {quoted(unknown[0])}; allowed are {', '.join(self.check_names)}")
        chosen = {"dtypes": dtypes, "seed": seed, "without": without, "checks": checks, "cases": cases}
        for name, value in chosen.items():
            object.__setattr__(self, name, value)

    def _require_shard(self) -> None:
        if self.shard is None:
            return
        pair = self.shard if isinstance(self.shard, (tuple, list)) else ()
        if [type(one) for one in pair] != [int, int] or not 1 <= pair[0] <= pair[1] <= MOST_SHARDS:
            allowed = f"(1, N) to (N, N), with N from 1 to {MOST_SHARDS:,}"
            raise ValueError(f"shard: got {quoted(self.shard)}; allowed are {allowed}")
        if self.seed == "random":
            raise ValueError("seed: got random, but the shards of a run need the same seed; give all shards one number")
        if self.max_findings is not None:
            got = quoted(self.max_findings)
            raise ValueError(f"max_findings: got {got}, but a shard must run all its cases; leave out max_findings")

    @property
    def in_workers(self) -> bool:
        """Whether worker processes run the cases."""
        return (self.jobs is not None or self.ranks is not None) and self.device == "cpu" and can_fork()

    @property
    def _operation(self) -> Operation:
        return OPERATIONS[self.operation]

    @property
    def every_check(self) -> dict[str, Check]:
        """The checks of the operation by name, in the order of a report; with `ranks`, also the checks of ranks."""
        return checks_of(self._operation) | (RANK_CHECKS if self.ranks is not None else {})

    @property
    def check_names(self) -> tuple[str, ...]:
        """The names of :attr:`every_check`, and "errors", the check of bad inputs."""
        return (*self.every_check, "errors")

    def plan(self) -> Plan:
        """Return the chosen cases of the level, each with its chosen checks.

        Raises:
            ValueError: a choice of cases or checks matches nothing, or a chosen case has another operation.
        """
        assert isinstance(self.seed, int)
        planned = _plan(self.level, tuple(self.dtypes), self.seed, self._operation)
        return self.select(planned if self.ranks is None else with_rank_checks(planned, tuple(self.dtypes), self.seed))

    def select(self, planned: Plan) -> Plan:
        """Return the chosen cases of a plan, each with its chosen checks.

        A full id also chooses a case that the plan lacks.

        Raises:
            ValueError: a choice matches nothing, or a chosen case has another operation.
        """
        assert isinstance(self.cases, Mapping)
        if not self.only:
            return planned
        chosen = select(planned, self.level, tuple(self.checks), self.cases, self.every_check)
        if other := next((case for case in chosen if case.operation is not self._operation), None):
            raise ValueError(
                f"cases: got {quoted(other.id)}, a case of {other.operation.name}, but the operation of this run is "
                f"{self.operation}; choose another case or another operation"
            )
        return chosen

    @property
    def only(self) -> dict[str, list[str]]:
        """The chosen checks and cases, under the keys "checks" and "cases". A key with nothing chosen is absent."""
        assert isinstance(self.cases, Mapping)
        named = {name for names in self.cases.values() for name in names}.union(self.checks)
        chosen = {"checks": [name for name in self.check_names if name in named], "cases": list(self.cases)}
        return {what: names for what, names in chosen.items() if names}

    def load(self, *subjects: str | Callable[..., Any]) -> list[Subject]:
        """Load each subject once, and return the subjects under unique names.

        Without arguments, load the built-in subjects of the operation.

        Raises:
            ValueError: a subject cannot be loaded, or an option does not suit the subjects.
            TypeError: a subject is neither a name nor a callable that crossent can call as a cross-entropy.
        """
        if self.ranks is not None and not subjects:
            raise ValueError(f"ranks: got {self.ranks}, but no subject; name a subject that runs on ranks")
        each = (self._load(one) for one in dict.fromkeys(subjects) or default_names(self._operation, self.device))
        found = itertools.chain.from_iterable(each)
        once = {subject.source or id(subject.loss): subject for subject in found}  # "torch" stands for torch_nll too
        self.require_grade_applies(once.values())
        return with_unique_names(once.values())

    def require_grade_applies(self, subjects: Collection[Subject]) -> None:
        """Require that a chosen grade applies to at least one subject.

        Raises:
            ValueError: no contract is chosen, and each subject is built in and has its own grade.
        """
        if self.grade and self.contract is None and all(builtin_of(subject) is not None for subject in subjects):
            names = ", ".join(subject.name for subject in subjects)
            raise ValueError(
                f"grade: got {quoted(self.grade)}, which would change nothing: without a contract, {names} "
                f"{'keeps its' if len(subjects) == 1 else 'keep their'} own grade; choose a contract too"
            )

    def _load(self, subject: str | Callable[..., Any]) -> Sequence[Subject]:
        known = {**EVERY_NAMED, **BY_NAME}
        options: dict[str, Any] = {"without": self.without, "contract": self.contract, "grade": self.grade}
        options |= {"operation": self._operation, "ranks": self.ranks}
        if self.in_workers and isinstance(subject, str) and subject.removesuffix(COMPILE_SUFFIX) not in known:
            return load_remote(subject, self.timeout, **options)
        return load(subject, **options, device=self.device, timeout=self.timeout)

    def expected(
        self, names: Collection[str] | None, cases: Sequence[str] | None = ()
    ) -> tuple[ExpectedList, ExpectedList]:
        """Return two lists of known failures: torch's list, and the user's list from the file `expected_findings`.

        Args:
            names: the subjects that the user's list may name; None for any name.
            cases: the ids that the user's list may name, besides the cases of all levels; None for any id.

        Raises:
            ValueError: the file cannot be read, is damaged, or has an entry that can match no finding.
        """
        path = self.expected_findings
        if path is None:
            return lists.torch_list(self._operation), []
        try:
            own = lists.read_list(os.fspath(path))
            here = [entry for entry in own if entry.applies(str(torch.__version__), self.device)]
            ids = None if cases is None else lambda: [*_ids(self.seed, self._operation), *cases]
            lists.check_entries(here, names, self.check_names, ids, self._operation)
        except OSError as error:
            got = f"expected_findings: got {quoted(os.fspath(path))}; this file cannot be read: {error.strerror}"
            raise ValueError(f"{got}; give a TOML file of known failures") from None
        except ValueError as error:
            raise ValueError(f"expected_findings: {error}") from None
        return lists.torch_list(self._operation), own


def _several(option: str, words: str | Iterable[str]) -> tuple[str, ...]:
    """Return the words of an option as a tuple without repetitions. A string is one word."""
    several = [words] if isinstance(words, str) else list(words) if isinstance(words, Iterable) else None
    if several is None or not all(isinstance(word, str) for word in several):
        raise ValueError(f"{option}: got {quoted(words)}; allowed is a string, or a list of strings")
    return tuple(dict.fromkeys(several))


def _require_count(option: str, count: int | None) -> None:
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"{option}: got {quoted(count)}; allowed is a whole number of 1 or more")


@cache
def _plan(level: str, dtypes: tuple[str, ...], seed: int, operation: Operation) -> Plan:
    return plan(level, dtypes, seed, operation)


@cache
def _ids(seed: int, operation: Operation) -> list[str]:
    """Return the ids of the cases of all levels and dtypes, with this seed and with seed 0."""
    return list({case.id: None for at in {0, seed} for case in plan("thorough", tuple(DTYPES), at, operation)})


def operation_of(subjects: Iterable[object], operation: str | None) -> str:
    """Return the name of the operation of a run.

    If `operation` is None, return the operation of the forms and losses of torch in `subjects`, by default
    "cross_entropy".

    Raises:
        ValueError: two subjects compute different operations, or a subject does not compute `operation`.
    """
    own: dict[str, str] = {}
    for subject in subjects:
        base = subject.removesuffix(COMPILE_SUFFIX) if isinstance(subject, str) else ""
        for one in (*EVERY_NAMED.get(base, ()), *filter(None, [BY_NAME.get(base)])):
            own.setdefault(one.operation.name, str(subject))
    chosen = operation or next(iter(own), CROSS_ENTROPY.name)
    if others := [name for name in own if name != chosen and chosen in OPERATIONS]:
        given = f"got {quoted(operation)}" if operation else f"{own[chosen]} computes {chosen}"
        advice = f"choose {others[0]} or another subject" if operation else "use a run for each operation"
        raise ValueError(f"operation: {given}, but {cut(own[others[0]])} computes {others[0]}; {advice}")
    return chosen


def is_built_in(subject: Subject) -> bool:
    """Return whether the subject is a form or torch, and not compiled."""
    return subject.source == subject.name and subject.name in BY_NAME


def mark_expected(
    report: Report, known: tuple[ExpectedList, ExpectedList], subjects: Iterable[Subject]
) -> list[tuple[str, str]]:
    """Mark the known failures in `report`, and add the fixed failures to `report.fixed`.

    `known` has torch's list and the user's list. Return a pair for each entry that applies to this run: the text of
    the entry, and the state "happened", "absent" or "not run".
    """
    of_torch, of_user = known  # torch's list applies only to the subjects `like_torch`
    like_torch = [one for one in subjects if one.contract == TORCH_CONTRACT or _is_loss_parallel(one)]
    as_torch = {one.name: _name_in_list(one) for one in like_torch}
    return [*lists.mark(report, of_torch, as_torch), *lists.mark(report, of_user)]


def unexpected(
    findings: Mapping[str, Sequence[Finding]],
    environment: dict[str, str],
    known: tuple[ExpectedList, ExpectedList],
    subjects: Iterable[Subject],
) -> list[Finding]:
    """Return the findings that are not known failures. `findings` has the findings of each subject by name."""
    marked = Report(environment, [SubjectReport(name, findings=list(of)) for name, of in findings.items()])
    mark_expected(marked, known, [subject for subject in subjects if subject.name in findings])
    return marked.findings


def _is_loss_parallel(subject: Subject) -> bool:
    return subject.ranks > 0 and subject.source == "loss_parallel"


def _name_in_list(subject: Subject) -> str:
    """Return the name of a subject in torch's list of known failures."""
    if _is_loss_parallel(subject):
        return subject.source
    of_torch = TORCHS[subject.operation]
    if builtin_of(subject) in of_torch:
        return subject.name
    return f"{of_torch[0].name}{COMPILE_SUFFIX if subject.source.endswith(COMPILE_SUFFIX) else ''}"
