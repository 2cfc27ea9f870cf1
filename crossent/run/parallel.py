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
from crossent.run.judge import DAMAGED, judge_bad_input, judge_case, judge_ended
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
from crossent.words import said

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
    """Run the cases of a plan on subjects, and add the verdicts to a report. Finally sort the report in plan order.

    Args:
        planned: the cases, each with its checks.
        subjects: the subjects.
        report: the report of the run, with a `SubjectReport` for each subject.
        settings: the settings of the run.
        progress: a function that wraps the steps of the run, for a progress bar.
        known: two lists of known failures: the list for torch, and the user's list.

    Returns:
        True if all cases ran; False if the run ended early. A run ends early after `settings.max_findings` findings
        that are not known failures, or when a call makes the device unusable.
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
    """Yield the steps of a run in this process. Each step judges all subjects on one case.

    `enter` adds the verdicts of a step to the report, and returns the findings that are not known failures.
    """
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

    Inputs and exact values are computed once for all subjects.

    A subject in this process may make the device unusable, for example by a device-side assert. The verdict on this
    subject then has the finding "crashed", and no further verdict follows.

    Args:
        case: the case or the bad input.
        checks: the checks to run on the case.
        subjects: the subjects.
        hosts: for each subject, its host: the object that calls the subject, in this process or in another process. A
            call with bad input that may make the device unusable runs in a fresh process instead.
        device: the device of the tensors.
        enough: a function that takes a subject and its findings on the case, and returns whether the run ends.
        question: the case with its exact values; None to compute the exact values here.
        made: the earlier calls with a bad input that may make the device unusable: a dict from the name of a subject
            to a host with the outcome. If `made` is None or lacks a subject, a fresh process makes the call.
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
    """Call the function `judge`, and return its verdict. For an isolated process, first start the case's time limit.

    If `judge` raises an exception, because of a wrong reply of an isolated process or an unusable device, return a
    verdict with the finding "crashed". Any other exception propagates, and so does a :class:`ForkServerError`.
    """
    if isinstance(host, IsolatedProcess):
        host.start_case()
    try:
        return judge()
    except ForkServerError:
        raise
    except Exception as error:
        if not host.isolated and not lost(device):
            raise
        return judge_ended(case, subject.name, "crashed", f"{DAMAGED}: {said(error)}")


@dataclass
class _Work:
    """The work of a run: the plan, the subjects and the settings. Forked workers inherit this object."""

    planned: Plan
    subjects: Sequence[Subject]
    settings: Settings
    enough: Callable[[Subject, Sequence[Finding]], bool]  # as for judge_each
    lost: bool = False  # whether a call made the device unusable
    server: ForkServer | None = None  # the fork server of this worker, started for the first isolated part
    processes: dict[int, IsolatedProcess] = field(default_factory=dict)  # by the index of the subject

    @cached_property
    def cases(self) -> list[Case | BadInput]:
        """The cases of the plan."""
        return list(self.planned)

    def judge(
        self, places: Iterable[int], subjects: Sequence[Subject], hosts: Sequence[Host], device: str = "cpu"
    ) -> Iterator[tuple[int, Iterator[Verdict]]]:
        """Judge the cases at the indices `places` of the plan. Yield each index, with the iterator of `judge_each`.

        The case is judged when the caller reads the iterator. `judge_each` explains `subjects`, `hosts` and `device`.

        Up to `_CASES_AT_ONCE` cases form a group. Before the first case of a group is judged, `prepare` computes the
        exact values and most error bounds of the group. For a linear cross-entropy, `prepare` computes nothing.
        """
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
        """Judge the cases of a part of the run, and return the verdicts, each with the index of its subject.

        Stop after a verdict whose findings alone are enough to end the run.
        """
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
        """Return the host of an isolated process for each index in `subjects`. Close the hosts of other subjects."""
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
    """Yield the steps of a run in worker processes. Each step judges one part: some cases on some subjects.

    All subjects run in isolated processes if a subject is a user's function or compiled. Otherwise the workers call the
    subjects themselves, which is faster. If a worker crashes or hangs, its part runs again in isolated processes. In
    this repetition, each case on each subject is a separate step. If a worker then crashes or hangs on a case again,
    this case has the finding "crashed" or "hung".

    `enter` adds the verdicts of a step to the report, and returns the findings that are not known failures.
    """
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
            if isinstance(made, Ended):
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
    """Import torch's compilers if a check of the plan uses them. Workers that are forked later then need no import."""
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
    """Return the loss function of a subject. Load the code of a :class:`RemoteLoss` in this process."""
    return subject.loss.load_function() if isinstance(subject.loss, RemoteLoss) else subject.loss
