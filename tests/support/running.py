"""Run a subject on a few cases, as the command does."""

from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.checks.single import SINGLE
from crossent.machine import ambient
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run.actors import Actor, Nursery
from crossent.run.judge import run_case
from crossent.subjects.loader import load

CASES = [
    Case.of(name)
    for name in (
        "float32-7x5-normal-int64-none-rows",
        "float32-7x5-normal-int64-mean-weighted-ignored",
        "float32-257x5-normal-int64-none-rows",
        "float32-7x5-normal-probabilities-sum-smooth0.1",
        "float32-7x5-normal-int64-none-rows-transposed",
    )
]
MEMORY = 4 * 2**30


def run_isolated(subject, seconds=60.0, cases=CASES, memory=MEMORY):
    """The report of a subject that runs in an isolated process."""
    report = Report({}, [SubjectReport(subject.name)])
    with ambient():
        nursery = Nursery([lambda: subject.loss], memory)
        actor = Actor(nursery, 0, seconds)
        try:
            for case in cases:
                run_case(case, [subject], report, "cpu", SINGLE, [actor])
        finally:
            actor.close()
            nursery.close()
    return report


def judged(loss, case, *checks, without=()):
    """The findings of one case."""
    (subject,) = load(loss, without=without)
    report = Report({}, [SubjectReport(subject.name)])
    run_case(Case.of(case), [subject], report, checks=[CHECKS[name] for name in checks])
    return report
