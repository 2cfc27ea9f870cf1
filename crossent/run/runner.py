"""Run cases on subjects, and return the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from crossent.cases.case import Case
from crossent.cases.grid import count_combinations
from crossent.choices import DTYPE_NAMES, ContractName, DtypeName, GradeName, Level, OperationName
from crossent.machine import environment
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run import parallel
from crossent.run.commands import options_of, with_commands
from crossent.run.parallel import Progress
from crossent.run.plan import Plan
from crossent.run.settings import ExpectedList, Settings, mark_expected, operation_of
from crossent.run.shards.division import described, plan_of_shard
from crossent.subjects.builtin import chosen_contract
from crossent.subjects.features import declared
from crossent.subjects.subject import Subject


def check(
    *subjects: str | Callable[..., torch.Tensor],
    device: str = "cpu",
    dtypes: DtypeName | Iterable[DtypeName] = DTYPE_NAMES,
    level: Level = "normal",
    seed: int | str = 0,
    without: str | Iterable[str] = (),
    contract: ContractName | None = None,
    grade: GradeName | None = None,
    expected_findings: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    checks: str | Iterable[str] = (),
    cases: str | Iterable[str] | Mapping[str, Iterable[str]] = (),
    max_findings: int | None = None,
    operation: OperationName | None = None,
    ranks: int | None = None,
    shard: tuple[int, int] | None = None,
    progress: Progress = iter,
) -> Report:
    """Check cross-entropy functions against the exact value, and return a report.

    Each subject runs on the built-in cases. The errors of loss and gradients must not exceed the error bounds. The
    other checks of `crossent list checks` must pass, and bad input must raise the right error.

    Args:
        subjects: the functions to check, as objects or as strings. An object is a callable with the signature of
            `F.cross_entropy`, or a class with the constructor of `nn.CrossEntropyLoss`. A string is the name of a form,
            "torch" for `nn.CrossEntropyLoss`, "package.module:NAME" or "path/to/file.py:NAME". A string that ends in
            "+compile" names the compiled function. Without subjects, torch and the forms of the operation are checked.
            The form `fused` is then left out if its kernel cannot run on the device.
        device: the device of the tensors: "cpu", "cuda", "cuda:0", "xpu", "mps", …
        dtypes: the dtypes of the logits.
        level: how many cases and checks run: "quick", "normal" or "thorough".
        seed: the seed of the numbers in the cases, 0 or more. The seed does not change the options of the cases.
            "random" draws a seed.
        without: the features that the subjects lack, as names from `crossent list features`. Checks and cases that need
            a missing feature are skipped. For a few features, the checks expect another result instead;
            `crossent list features` names that result.
        contract: what each subject promises about its arithmetic, as a name from `crossent list contracts`. "torch"
            judges a subject as `nn.CrossEntropyLoss`, with torch's known failures. With None, the forms and torch have
            their own contracts, and other subjects have "kernel".
        grade: the precision that each subject must reach in float16 and bfloat16. "A": the result is computed in
            float32 or wider, and rounded once. "B": each step may be rounded to the dtype. "float16=B" chooses B in
            float16 alone. The default is "A", or "B" under the contract "torch". If no contract is given, the forms and
            torch have their own grades.
        expected_findings: a TOML file of known failures, in the format of `crossent/report/torch_findings.toml`.
        jobs: the number of worker processes. By default, all cases run in this process, unless `ranks` is given. In a
            worker process, a subject may crash or hang without ending the run. If `device` is not "cpu", or if the
            system has no fork, no worker process is started.
        timeout: the seconds that all calls of a subject on one case may take together. If the calls take longer, the
            case ends with the finding "hung". The limit applies only with `jobs` or `ranks`.
        checks: the checks to run, as names from `crossent list checks`; all if empty. `call` and `result` always
            run, since the other checks need them.
        cases: the cases to run, as ids or as patterns such as `*smooth0.1*`; all if empty. A full id also chooses a
            case that the level lacks. A mapping from cases to names of checks gives each case its own checks.
        max_findings: the number of findings after which the run ends; known failures do not count. The report of a run
            that ended early has the cases that ran, and `report.ok` is False.
        operation: the function of torch that the subjects compute: "cross_entropy", of logits, or
            "linear_cross_entropy", of hidden states and a weight. The default is "cross_entropy". If a subject is the
            name of a form or of a loss of torch, the default is the operation of this form or loss.
        ranks: the number of ranks, for subjects that run on several ranks, such as "loss_parallel". Each rank is a
            process with a shard of the logits. See "On several ranks" in the docs. None for subjects in one process.
        shard: the part of the run that this call runs: (2, 8) is the second of eight shards of about equal cost. All
            shards need the same arguments and the same versions. :func:`crossent.merge` makes the report of the run
            from the reports of the shards.
        progress: a function that wraps an iterable with a length, for a progress bar, such as `tqdm.tqdm`. Reading the
            next item runs the next cases.

    Returns:
        The report. `report.ok` is True if the run is complete, every failed check is a known failure, and every result
        has evidence: on at least one case, wrong results such as zeros would fail. `print(report)` shows the tables.

    Raises:
        ValueError: an argument is wrong, a subject cannot be loaded, or the file of known failures is damaged. The
            message names the argument, its value, and the values that are possible.
        TypeError: a subject is neither a name nor a callable that crossent can call as a cross-entropy.
        RuntimeError: this machine does not have the device.
        KeyboardInterrupt: the user interrupted the run. The exception has the attribute `report`, the report
            of the finished cases.

    Example:
        >>> import crossent
        >>> report = crossent.check("formula", dtypes=["float32"], level="quick")
        >>> report.ok
        True
    """
    judging = Settings(
        device, dtypes, level, seed, without, contract, grade, expected_findings, jobs, timeout, shard=shard
    )
    chosen = operation_of(subjects, operation)
    judging = replace(judging, operation=chosen, ranks=ranks)
    settings = replace(judging, checks=checks, cases=cases, max_findings=max_findings)
    return run(settings, settings.load(*subjects), progress=progress)


def run(
    settings: Settings, subjects: Sequence[Subject], planned: Plan | None = None, progress: Progress = iter
) -> Report:
    """Run cases on subjects, and return the report.

    The settings choose the cases from `planned`. By default, `planned` is the plan of the level in the settings.

    Raises:
        ValueError: a choice of cases or checks matches nothing, or the file of known failures is wrong.
        Interrupted: the user interrupted the run. The exception has the report of the finished cases.
    """
    planned = settings.plan() if planned is None else settings.select(planned)
    known = settings.expected([subject.name for subject in subjects], [case.id for case in planned])
    order, needs = settings.check_names, {name: tuple(check.needs) for name, check in settings.every_check.items()}
    parts = [
        SubjectReport(one.name, order=order, needs=needs, contract=chosen_contract(one), declared=declared(one.lacks))
        for one in subjects
    ]
    assert isinstance(settings.seed, int)
    where = environment(settings.device, settings.ranks)
    report = Report(where, parts, level=settings.level, seed=settings.seed, only=settings.only)
    report.without, report.grade = list(settings.without), settings.grade or ""
    if settings.shard is not None:
        whole, planned = planned, plan_of_shard(planned, settings.shard)
        report.shard = described(settings, subjects, whole, planned)
    start = time.perf_counter()
    try:
        if not parallel.run(planned, subjects, report, settings, progress, known):
            report.planned, report.stopped = len(planned), True
    except KeyboardInterrupt:
        report.planned = len(planned)
        raise Interrupted(_finish(report, settings, subjects, planned, known)) from None
    finally:
        report.seconds = time.perf_counter() - start
    return _finish(report, settings, subjects, planned, known)


class Interrupted(KeyboardInterrupt):  # no suffix "Error", as KeyboardInterrupt has none
    """The user interrupted a run. `report` is the Report or SoakReport of the finished cases."""

    def __init__(self, report: Any) -> None:
        super().__init__("interrupted")
        self.report = report


def _finish(
    report: Report,
    settings: Settings,
    subjects: Sequence[Subject],
    planned: Plan,
    known: tuple[ExpectedList, ExpectedList],
) -> Report:
    """Complete the report of a run: add commands to findings, and mark known failures. Then return the report."""
    for subject, part in zip(subjects, report.subjects, strict=True):
        part.findings = with_commands(part.findings, subject.source, options_of(settings))
    states = mark_expected(report, known, subjects)
    if report.shard is not None:
        report.shard, report.fixed = replace(report.shard, known=states), []  # the merged report lists fixed failures
    if report.only or report.planned is not None:
        report.fixed = []  # the failure may still happen in a case that did not run
    ran = {check.name for checks in planned.values() for check in checks}
    every = settings.every_check
    report.left_out = [name for name in report.only.get("checks", every) if name in every and name not in ran]
    if "cases" in report.only:
        report.left_out = []  # the choice of cases left out these checks, not the level
    done = {case for part in report.subjects for case in part.outcomes}
    report.triples = count_combinations(case for case in planned if isinstance(case, Case) and case.id in done)
    return report
