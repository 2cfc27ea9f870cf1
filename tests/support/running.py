"""Run a subject on a few cases, as the command does."""

from support.checks import SINGLE

from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.machine import ambient
from crossent.numerics.bounds.contracts import contract
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run.isolation import ForkServer, IsolatedProcess
from crossent.run.parallel import judge_each
from crossent.subjects.loader import load
from crossent.trials import difference
from crossent.trials.act import Here
from crossent.trials.trial import Trial

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


def run_case(case, subjects, report, device="cpu", checks=SINGLE, hosts=None):
    """Judge subjects on a case, and enter the verdicts into a report."""
    hosts = hosts or [Here(subject.loss) for subject in subjects]
    verdicts = judge_each(case, checks, subjects, hosts, device)
    for verdict, part in zip(verdicts, report.subjects, strict=True):
        part.enter(verdict)


def trial_of(question, subject, host=None):
    """A subject on a case, in this process unless a host is given."""
    return Trial(question, subject, host or Here(subject.loss))


def run_isolated(subject, seconds=60.0, cases=CASES, memory=MEMORY):
    """The report of a subject that runs in an isolated process."""
    report = Report({}, [SubjectReport(subject.name)])
    with ambient():
        server = ForkServer([lambda: subject.loss], memory)
        process = IsolatedProcess(server, 0, seconds)
        try:
            for case in cases:
                run_case(case, [subject], report, hosts=[process])
        finally:
            process.close()
            server.close()
    return report


def judged(loss, case, *checks, without=()):
    """The report of one case."""
    (subject,) = load(loss, without=without)
    report = Report({}, [SubjectReport(subject.name)])
    run_case(Case.of(case), [subject], report, checks=[CHECKS[name] for name in checks])
    return report


def compare(got, exact, grade="A", promise="eager", dtype=None):
    """The differences of a result from the exact values, under the contract of a promise at a grade."""
    device, rows = got.loss.device.type, len(exact.terms.logits)
    promised = contract(promise, grade, dtype or exact.logits_dtype, device=device, rows=rows)
    return difference.compare(promised, got, exact)
