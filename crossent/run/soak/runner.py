"""soak(): draw random cases, judge them as `crossent check` does, and add up the results."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.operation import OPERATIONS
from crossent.choices import DTYPE_NAMES, ContractName, DtypeName, GradeName, OperationName
from crossent.machine import environment
from crossent.report.document import ShardNumber
from crossent.report.findings import Finding, SubjectReport
from crossent.report.report import Report
from crossent.run import parallel
from crossent.run.commands import relative_source
from crossent.run.order import Step, Steps
from crossent.run.parallel import Known, Progress
from crossent.run.runner import Interrupted
from crossent.run.settings import Settings, mark_expected, operation_of
from crossent.run.shards.division import checksum_of_file
from crossent.run.soak.draws import MOST_CASES, draw
from crossent.run.soak.report import SoakReport
from crossent.run.soak.sums import SubjectSums, sums_of
from crossent.subjects.builtin import chosen_contract
from crossent.subjects.features import declared
from crossent.subjects.subject import Subject
from crossent.trials.check import Cost
from crossent.words import quoted

# The most cases of a part. All results of a part are in memory together. Starting its workers takes about 0.2 seconds.
_PART = 1000


def soak(
    *subjects: str | Callable[..., torch.Tensor],
    cases: int,
    seed: int | str = 0,
    device: str = "cpu",
    dtypes: DtypeName | Iterable[DtypeName] = DTYPE_NAMES,
    without: str | Iterable[str] = (),
    contract: ContractName | None = None,
    grade: GradeName | None = None,
    expected_findings: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    timeout: float = 300.0,
    operation: OperationName | None = None,
    shard: tuple[int, int] | None = None,
    progress: Progress = iter,
) -> SoakReport:
    """Check cross-entropy functions on random cases, and return the sums of the results.

    Each case follows from its number, its dtype and the seed. The soak calls each function once on each case, and runs
    the checks that need only this call: `call`, `result`, `arguments`, `state`, `loss`, `gradient`, `target_gradient`,
    `sign`, `row_sums` and `ignored_rows`. For a linear cross-entropy, `weight_gradient` and `bias_gradient` replace
    `target_gradient` and `row_sums`. The size of the report and the memory of the soak do not grow with the number of
    cases.

    Args:
        subjects: the functions to check, at least one: callables, or strings such as "torch" or "path/to/file.py:NAME".
        cases: the number of cases in each dtype. With `shard`, the number for all shards together.
        seed: the seed from which the cases are drawn, from 0 to 2³²-1. "random" draws a seed.
        device: the device of the tensors, such as "cpu" or "cuda:0". :func:`crossent.check` says more about this
            argument and the following arguments, except `shard`.
        dtypes: the dtypes of the logits.
        without: features that the subjects lack.
        contract: the promise of each subject about its arithmetic.
        grade: the precision that a callable must reach in float16 and bfloat16.
        expected_findings: a TOML file of known failures.
        jobs: the number of worker processes.
        timeout: with `jobs`, the seconds that all calls of a subject on one case may take together.
        operation: the function of torch that the subjects compute.
        shard: the part to run: (2, 8) is the second of eight shards. :func:`crossent.merge` merges the reports.
        progress: a function that wraps an iterable, for a progress bar. Each item stands for up to 1000 cases.

    Returns:
        The report. `report.ok` is True if the soak is complete, and every failed check is a known failure. Without
        `shard`, at least one case must also have run on each subject, and every result must have evidence: on at least
        one case, a wrong result such as zeros would fail. `print(report)` shows the worst cases and the findings.

    Raises:
        ValueError: no subject is given, `cases` or `seed` is out of range, or another argument is wrong.
        TypeError: a subject is neither a name nor callable.
        RuntimeError: this machine does not have the device.
        KeyboardInterrupt: the user interrupted the soak. The attribute `report` of the exception is the report of the
            cases that were done.

    Example:
        >>> import crossent
        >>> report = crossent.soak("formula", cases=20, dtypes="float32")
        >>> report.ok, report.ran
        (True, 20)
    """
    if not subjects:
        raise ValueError("subjects: got none; name a function")
    if type(cases) is not int or not 1 <= cases <= MOST_CASES:
        raise ValueError(f"cases: got {quoted(cases)}; allowed are whole numbers from 1 to {MOST_CASES:,}")
    settings = Settings(
        *(device, dtypes, "normal", seed, without, contract, grade, expected_findings, jobs, timeout),
        operation=operation_of(subjects, operation),
        shard=shard,
    )
    assert isinstance(settings.seed, int)
    if settings.seed >= 2**32:
        raise ValueError(f"seed: got {quoted(settings.seed)}; allowed are 0 to {2**32 - 1:,}")
    loaded = settings.load(*subjects)
    known = settings.expected([subject.name for subject in loaded], None)
    report = SoakReport(
        environment(settings.device),
        [_empty(subject) for subject in loaded],
        cases=cases,
        seed=settings.seed,
        dtypes=[dtype for dtype in DTYPES if dtype in settings.dtypes],
        operation=OPERATIONS[settings.operation],
        promises={"without": list(settings.without), "contract": contract, "grade": grade},
        known_failures_checksum=f"{zlib.crc32(repr(known).encode()):08x}",
        shard=None if shard is None else ShardNumber(*shard),
    )
    start = time.perf_counter()
    try:
        for _ in progress(Steps(_steps(report, loaded, settings, known), -(-report.planned // _PART), report.planned)):
            pass
    except KeyboardInterrupt:
        report.complete = False
        raise Interrupted(report) from None
    finally:
        report.seconds = time.perf_counter() - start
    return report


def _empty(subject: Subject) -> SubjectSums:
    source = relative_source(subject.source)
    return SubjectSums(
        subject.name, chosen_contract(subject), declared(subject.lacks), source, checksum_of_file(subject.source)
    )


def _steps(report: SoakReport, subjects: Sequence[Subject], settings: Settings, known: Known) -> Iterator[Step]:
    """Run the cases part by part, and add the results to the report. After each part, yield a step of the progress."""
    checks = tuple(check for check in settings.every_check.values() if check.cost is Cost.CALL)
    for numbers in _parts(report):
        of = Report(report.environment, [SubjectReport(one.name, declared=one.declared) for one in report.subjects])
        try:
            report.complete = parallel.run(dict.fromkeys(numbers, checks), subjects, of, settings, iter, known)
        finally:  # also after an interrupt, so that the report has the cases that were done
            mark_expected(of, known, subjects)
            by_id = {case.id: number for case, number in numbers.items()}
            for sums, part in zip(report.subjects, of.subjects, strict=True):
                sums.join(sums_of(part, by_id))
        new: list[Finding] = [one for part in of.subjects for one in part.findings if one.expected is None]
        yield Step(len(numbers), new)
        if not report.complete:  # a call made the device unusable
            return


def _parts(report: SoakReport) -> Iterator[dict[Case, int]]:
    """Yield the cases of a soak in parts of at most `_PART` cases, each case with its number."""
    part: dict[Case, int] = {}
    for number in report.numbers:
        for dtype in report.dtypes:
            case = draw(number, dtype, report.seed, report.operation)
            if len(part) >= _PART or case in part:  # a plan has each case only once
                yield part
                part = {}
            part[case] = number
    if part:
        yield part
