"""Run the cases of a plan, either in this process, or divided among worker processes."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.util import find_spec
from random import SystemRandom
from typing import Any

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.inputs import why_not_on_device
from crossent.checks.derivatives import double_backward, forward_ad
from crossent.checks.jacobians import batched_second, hessian, jacfwd
from crossent.machine import ambient, available, lost
from crossent.report.findings import Finding, Verdict
from crossent.report.report import Report
from crossent.run.isolation.fork_server import TORCH_INDEX, ForkServer, ForkServerError
from crossent.run.isolation.fresh_process import FreshProcess, call_ahead
from crossent.run.isolation.process import IsolatedProcess, perform_acts
from crossent.run.judge import judge_bad_input, judge_case, judge_ended, unjudged
from crossent.run.order import Part, Step, Steps, cost, imports_compilers, ordered, parts
from crossent.run.plan import Plan
from crossent.run.settings import ExpectedList, Settings, is_built_in, unexpected
from crossent.run.workers import Ended, alive, result, workers
from crossent.subjects.builtin import TORCH
from crossent.subjects.compiler import keep_headers_with_code, own_compile_cache, use_new_compile_cache
from crossent.subjects.confinement import unreadable
from crossent.subjects.remote import RemoteLoss
from crossent.subjects.subject import Loss, Subject
from crossent.trials.act import Here, Host
from crossent.trials.ahead import prepare
from crossent.trials.check import Check, Cost
from crossent.trials.trial import Question

Progress = Callable[[Any], Iterable[Any]]  # wraps an iterable, for a progress bar
Placed = tuple[int, Verdict]  # the index of a subject, and a verdict on this subject
Known = tuple[ExpectedList, ExpectedList]  # two lists of known failures: torch's, and the user's
_CASES_AT_ONCE = 100  # the most cases whose error bounds are computed together
# Adds verdicts to the report, and returns their findings that are not known failures.
Enter = Callable[[Sequence[Placed]], list[Finding]]


def run(
    planned: Plan,
    subjects: Sequence[Subject],
    report: Report,
    settings: Settings,
    progress: Progress,
    known: Known = ([], []),
) -> bool:
    """Run the cases of a plan on subjects, and add the verdicts to `report`. Return whether all cases ran.

    A run ends early when a call makes the device unusable, or after `settings.max_findings` findings. The known
    failures in `known` do not count.
    """

    def enough(subject: Subject, findings: Sequence[Finding]) -> bool:
        most = settings.max_findings
        if most is None or len(findings) < most:
            return False
        return len(unexpected({subject.name: findings}, report.environment, known, [subject])) >= most

    def enter(verdicts: Sequence[Placed]) -> list[Finding]:
        new: dict[str, list[Finding]] = {}
        for at, verdict in verdicts:
            report.subjects[at].enter(verdict)
            if verdict.findings:
                new.setdefault(report.subjects[at].name, []).extend(verdict.findings)
        return unexpected(new, report.environment, known, subjects) if new else []

    in_workers = _steps_in_workers if settings.in_workers else _steps_here
    found = 0
    try:
        cache = own_compile_cache() if settings.in_workers else nullcontext()
        work = _Work(planned, subjects, settings, enough)
        with cache, in_workers(work, enter) as steps:
            for step in progress(steps):
                found += len(step.findings)
                if settings.max_findings is not None and found >= settings.max_findings:
                    return False
        return not work.lost
    finally:
        report.sort([case.id for case in planned])


@contextmanager
def _steps_here(work: _Work, enter: Enter) -> Iterator[Steps]:
    """Yield the steps of a run in this process. Each step judges all subjects on one case."""
    hosts = [Here(subject.loss) for subject in work.subjects]
    costs = [cost(case, checks) for case, checks in work.planned.items()]

    def judged() -> Iterator[Step]:
        places = itertools.chain(*ordered(work.planned))
        for at, verdicts in work.judge(places, work.subjects, hosts, work.settings.device):
            steps.running = f"{costs[at][1]} on {work.cases[at].id}"
            made = list(enumerate(verdicts))
            work.lost = any(verdict.findings for _, verdict in made) and bool(lost(work.settings.device))
            yield Step(costs[at][0], enter(made))
            if work.lost:
                return

    steps = Steps(judged(), len(costs), sum(seconds for seconds, _ in costs))
    with ambient():
        yield steps


def judge_each(
    case: Case | BadInput,
    checks: Sequence[Check],
    subjects: Sequence[Subject],
    hosts: Sequence[Host],
    device: str,
    enough: Callable[[Subject, Sequence[Finding]], bool] = lambda subject, findings: False,
    question: Question | None = None,
    made: Mapping[str, Host] | None = None,
) -> Iterator[Verdict]:
    """Judge subjects on one case, and yield a verdict for each subject.

    If a subject makes the device unusable, its verdict has the finding "crashed" and is the last.

    `hosts` has, for each subject, the object that calls the subject, in this process or in another. `enough` returns
    whether the findings of a subject end the run. `question` has the exact values, if the caller computed them. `made`
    has hosts with the outcomes of earlier calls of a bad input, by the name of the subject.
    """
    for subject, host in zip(subjects, hosts, strict=True):
        if reason := why_not_on_device(case.build, device):
            yield Verdict(case.id, not_applicable=reason)
            continue
        if isinstance(case, BadInput):
            alone = (made or {}).get(subject.name) or FreshProcess(subject.loss, device)
            calls = alone if case.asserts(device) else host
            judge = partial(judge_bad_input, case, subject, calls, device)
        else:
            question = question or Question(case, device)
            judge = partial(judge_case, question, subject, host, checks, partial(enough, subject))
        verdict = _judge_safely(judge, case, subject, host, device)
        # A call with bad input may raise an allowed error and yet make the device unusable.
        suspect = verdict.findings or isinstance(case, BadInput)
        if suspect and not host.isolated and (why := lost(device)):
            yield judge_ended(case, subject.name, "crashed", f"the call made {device} unusable: {why}")
            return
        yield verdict


def _judge_safely(
    judge: Callable[[], Verdict], case: Case | BadInput, subject: Subject, host: Host, device: str
) -> Verdict:
    """Return the verdict of `judge`, or the verdict "crashed" if an isolated process or the device failed."""
    if isinstance(host, IsolatedProcess):
        host.start_case()
    try:
        return judge()
    except ForkServerError:
        raise
    except Exception as error:
        if not host.isolated and not lost(device):
            raise
        return judge_ended(case, subject.name, "crashed", unjudged(error))


@dataclass
class _Work:
    """The plan, subjects and settings of a run, and the state of a worker. Forked workers inherit this object."""

    planned: Plan
    subjects: Sequence[Subject]
    settings: Settings
    enough: Callable[[Subject, Sequence[Finding]], bool]  # as for judge_each
    lost: bool = False  # whether a call made the device unusable
    server: ForkServer | None = None  # the fork server of this worker, started for the first isolated part
    processes: dict[int, IsolatedProcess] = field(default_factory=dict)  # by the index of the subject

    @cached_property
    def cases(self) -> list[Case | BadInput]:
        return list(self.planned)

    def judge(
        self, places: Iterable[int], subjects: Sequence[Subject], hosts: Sequence[Host], device: str = "cpu"
    ) -> Iterator[tuple[int, Iterator[Verdict]]]:
        """Yield each index in `places`, with an iterator that judges the case and yields the verdicts."""
        left = iter(places)
        while some := list(itertools.islice(left, _CASES_AT_ONCE)):
            cases = {at: self.cases[at] for at in some}
            questions = {at: Question(case, device) for at, case in cases.items() if isinstance(case, Case)}
            questions = {at: one for at, one in questions.items() if not why_not_on_device(one.case.build, device)}
            derivatives = {forward_ad, double_backward, jacfwd, batched_second, hessian}
            along = [made for at, made in questions.items() if derivatives & {*self.planned[cases[at]]}]
            prepare(list(questions.values()), subjects, along)
            asserting = [case for case in cases.values() if isinstance(case, BadInput) and case.asserts(device)]
            made = call_ahead(asserting, subjects, device)
            for at, case in cases.items():
                known = questions.pop(at, None)  # popped, so that its arrays are freed
                checks = self.planned[case]
                yield at, judge_each(case, checks, subjects, hosts, device, self.enough, known, made.get(case.id))

    def judge_part(self, part: Part) -> list[Placed]:
        """Return the verdicts on the cases of a part, each with the index of its subject."""
        subjects = [self.subjects[at] for at in part.subjects]
        try:
            hosts = self._isolate(part.subjects) if part.isolated else [Here(subject.loss) for subject in subjects]
            placed: list[Placed] = []
            with ambient():
                for _, verdicts in self.judge(part.cases, subjects, hosts):
                    for at, verdict in zip(part.subjects, verdicts, strict=True):
                        placed.append((at, verdict))
                        alive()
                        if verdict.findings and self.enough(self.subjects[at], verdict.findings):
                            return placed
            return placed
        except ForkServerError:  # a subject has ended the fork server, so this worker cannot go on
            os._exit(1)

    def _serve(self, subject: int, stream: int, output: int) -> None:
        if subject == TORCH_INDEX:
            use_new_compile_cache()  # a subject may have written into the compile cache of this run
        # If torch's compiler is imported already, its headers are in a folder into which other subjects can write.
        keep_headers_with_code()
        perform_acts(stream, output, partial(_loss_of, TORCH if subject == TORCH_INDEX else self.subjects[subject]))

    def _isolate(self, subjects: Sequence[int]) -> Sequence[Host]:
        """Return hosts that run the subjects in isolated processes, and close all other hosts.

        `subjects` are indices in the run.
        """
        if self.server is None:  # in a run of a user's function, no exact value has been computed yet
            memory = available("cpu") // (self.settings.jobs or 1)
            with ambient():
                self.server = ForkServer(self._serve, memory)
        for at in self.processes.keys() - set(subjects):
            self.processes.pop(at).close()
        for at in subjects:
            if at not in self.processes:
                self.processes[at] = IsolatedProcess(self.server, at, self.settings.timeout, alive)
        return [self.processes[at] for at in subjects]


@contextmanager
def _steps_in_workers(work: _Work, enter: Enter) -> Iterator[Steps]:
    """Yield the steps of a run in worker processes. Each step judges one part: some cases on some subjects."""
    subjects, jobs = work.subjects, work.settings.jobs or 1
    brief = work.settings.max_findings is not None
    _import("torch.fx.experimental.symbolic_shapes")  # else each worker imports it in a backward pass, in half a second
    isolated = not all(map(is_built_in, subjects))
    # torch's compilers import Triton, but the file of a subject may have to set TRITON_INTERPRET before that import.
    leaves_triton = isolated and find_spec("triton") is not None
    if not brief and not leaves_triton:  # in a run that may end soon, a worker imports the compilers when needed
        _import_compilers(work.planned)
    shares = parts(work.planned, len(subjects), jobs, isolated, brief, SystemRandom())

    def running(now: list[Part]) -> None:
        steps.running = max(now, key=lambda part: part.cost).what if now else ""

    def judged() -> Iterator[Step]:
        timeout = None if isolated else work.settings.timeout
        futures = {pool.submit(part, timeout): part for part in shares}
        again: list[Part] = []
        for future in pool.ended(futures, running):
            part, made = futures[future], result(future)
            if isinstance(made, Ended):  # each case runs again, alone in an isolated process
                again += [Part([case], [subject], True) for case in part.cases for subject in part.subjects]
            yield Step(part.cost, [] if isinstance(made, Ended) else enter(made))
        singles = {pool.submit(part, None): part for part in again}
        for future in pool.ended(singles, running):
            made = result(future)
            if isinstance(made, Ended):
                (case,), (subject,) = singles[future].cases, singles[future].subjects
                made = [(subject, judge_ended(work.cases[case], subjects[subject].name, made.kind, made.message))]
            yield Step(0.0, enter(made))

    steps = Steps(judged(), len(shares), sum(part.cost for part in shares))
    with unreadable(), workers(work.judge_part, jobs, work.settings.timeout) as pool:
        yield steps


def _import_compilers(planned: Plan) -> None:
    """Import torch's compilers if the checks of the plan use them, so that forked workers need no import."""
    checks = {check for checks in planned.values() for check in checks}
    costs = {check.cost for check in checks if "compile" in check.needs}
    if imports_compilers(checks):
        _import("torch._dynamo")
    if Cost.CODE in costs:
        _import("torch._inductor.compile_fx")


def _import(module: str) -> None:
    with suppress(ImportError):
        importlib.import_module(module)


def _loss_of(subject: Subject) -> Loss:
    return subject.loss.load_function() if isinstance(subject.loss, RemoteLoss) else subject.loss
