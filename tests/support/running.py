"""Run checks of subjects on cases, as `crossent check` does. No other module of tests/ calls `judge_each`."""

from support.checks import SINGLE

from crossent.cases.bad_inputs import BAD_INPUTS, BadInput
from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.machine import ambient, environment
from crossent.numerics.bounds.contracts import contract
from crossent.report.expected_findings import mark
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.run import runner
from crossent.run.isolation.fork_server import TORCH_INDEX, ForkServer
from crossent.run.isolation.process import IsolatedProcess, perform_acts
from crossent.run.parallel import judge_each
from crossent.run.plan import of_cost
from crossent.run.settings import Settings, operation_of
from crossent.subjects.builtin import TORCH
from crossent.subjects.features import declared
from crossent.subjects.loader import load
from crossent.subjects.subject import Subject
from crossent.trials import difference
from crossent.trials.act import Here
from crossent.trials.check import Cost
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


def run(subjects, cases, checks=SINGLE, device="cpu", *, known=(), hosts=None):
    """Run checks, and return the report of one or several subjects on one or several cases.

    Args:
        subjects: a subject or a list of subjects. A function becomes a subject with the name "mine".
        cases: a case or a list of cases. An id stands for its case. A case may also be a bad input.
        checks: the checks to run, or a function from a case to its checks.
        device: the device of the tensors.
        known: the known failures to mark in the report.
        hosts: the host of each subject; by default, this process.
    """
    subjects = [one if isinstance(one, Subject) else Subject("mine", one) for one in _several(subjects)]
    parts = [SubjectReport(subject.name, declared=declared(subject.lacks)) for subject in subjects]
    report = Report(environment(device), parts)
    with ambient():
        for case in _several(cases):
            case = Case.of(case) if isinstance(case, str) else case
            run_case(case, subjects, report, device, checks(case) if callable(checks) else checks, hosts)
    if known:
        mark(report, known)
    return report


def run_case(case, subjects, report, device="cpu", checks=SINGLE, hosts=None):
    """Run checks of all subjects on a case, and enter the verdicts into a report."""
    hosts = hosts or [Here(subject.loss) for subject in subjects]
    for verdict, part in zip(judge_each(case, checks, subjects, hosts, device), report.subjects, strict=True):
        part.enter(verdict)


def _several(one_or_more):
    """Return a list of the subjects or cases. The argument may also be a single subject or case."""
    single = callable(one_or_more) or isinstance(one_or_more, str | Subject | Case | BadInput)
    return [one_or_more] if single else list(one_or_more)


def trial_of(question, subject, host=None):
    """Return a trial: a subject on a case. The default host is this process."""
    return Trial(question, subject, host or Here(subject.loss))


def run_isolated(subject, seconds=60.0, cases=CASES, memory=MEMORY, checks=SINGLE):
    """Run checks, and return the report of a subject that runs in an isolated process."""
    with ambient():
        losses = {0: subject.loss, TORCH_INDEX: TORCH.loss}
        server = ForkServer(lambda at, *descriptors: perform_acts(*descriptors, lambda: losses[at]), memory)
        process = IsolatedProcess(server, 0, seconds)
        try:
            return run(subject, cases, checks, hosts=[process])
        finally:
            process.close()
            server.close()


def judged(loss, case, *checks, without=()):
    """Run checks of a loss on a case, and return the report.

    Args:
        loss: a function, or a text such as "mine.py:loss" that names a function.
        case: a case or its id.
        checks: the names of the checks.
        without: the features that the loss does not have.
    """
    return run(load(loss, without=without), case, [CHECKS[name] for name in checks])


def check_on(cases, *, more=(), bad_inputs=True):
    """Return a function like `crossent.check` that runs on these cases instead of the cases of a level.

    Args:
        cases: the cases. At level quick, the checks of cost CALL and AGAIN run on them; otherwise, all checks that
            compile nothing.
        more: further cases, on which only the checks of cost CALL and AGAIN run.
        bad_inputs: whether the bad inputs run too.
    """

    def check(*subjects, progress=iter, **options):
        settings = Settings(**{**options, "operation": operation_of(subjects, options.get("operation"))})
        costs = [Cost.CALL, Cost.AGAIN] + ([] if settings.level == "quick" else [Cost.CALLS, Cost.STRUCTURE])
        chosen, others = (
            [case.seeded(settings.seed) for case in group if case.dtype in settings.dtypes] for group in (cases, more)
        )
        bad = [one for one in BAD_INPUTS if bad_inputs and one.dtype in settings.dtypes]
        plan = {
            **dict.fromkeys(others, of_cost(Cost.CALL, Cost.AGAIN)),
            **dict.fromkeys(chosen, of_cost(*costs)),
            **dict.fromkeys(bad, ()),
        }
        return runner.run(settings, settings.load(*subjects), plan, progress)

    return check


def compare(got, exact, grade="A", promise="eager", dtype=None):
    """Return the differences of a result from the exact values, under the contract of a promise at a grade."""
    device, rows = got.loss.device.type, len(exact.terms.logits)
    promised = contract(promise, grade, dtype or exact.logits_dtype, device=device, rows=rows)
    return difference.compare(promised, got, exact)
