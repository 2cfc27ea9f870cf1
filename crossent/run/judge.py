"""Judge one subject on one case: run the checks, and return the verdict for the report.

A check yields a :class:`Difference` for each comparison with another value, and a :class:`Problem` for another failure.
"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs, bits
from crossent.checks import refusals, single
from crossent.numerics.formats import FORMATS
from crossent.report.findings import DEPENDS, Finding, Measured, Numbers, Outcome, ResultSummary, Verdict
from crossent.run.isolation.fork_server import ForkServerError
from crossent.subjects.builtin import REFERENCES
from crossent.subjects.contracts import DEFAULT_CONTRACT, under_contract
from crossent.subjects.features import keywords_of
from crossent.subjects.subject import Subject
from crossent.trials.act import Host
from crossent.trials.call import Result, checksum, evaluate, in_words
from crossent.trials.check import Check, Cost
from crossent.trials.difference import Difference
from crossent.trials.exact import solve
from crossent.trials.factors import factor_of, infinity_of, narrower_dtype_of
from crossent.trials.linear.mistakes import mistake_of
from crossent.trials.trial import EndedError, NotRunError, Problem, Question, RefusedError, Trial, widens_halves
from crossent.words import as_options, said

Enough = Callable[[Sequence[Finding]], bool]  # returns whether these findings on a case are enough to end the run

# If one of these checks fails, the other checks lack what they need: a loss of the right shape and dtype.
_FIRST = (single.call, single.result)
_AS_TORCH = "\nThe result has torch's bits: judge this subject with --contract torch, in Python with contract='torch'."
# The message of a finding may end in a line that names an option under which the check would pass. The line begins so:
_IF_INTENDED = "If this is intended, declare it:"

# Contracts and grades with wider bounds than the default: the options as text, the contract and the grade.
_WIDER = (
    (as_options(grade="B"), DEFAULT_CONTRACT, "B"),
    (as_options(contract="logsumexp"), "logsumexp", "A"),
    (as_options(contract="logsumexp", grade="B"), "logsumexp", "B"),
)


def judge_case(
    question: Question, subject: Subject, host: Host, checks: Sequence[Check], enough: Enough = lambda findings: False
) -> Verdict:
    """Run the checks on one subject and one case, and return the verdict.

    `question` has the case and its exact value. `host` calls the subject. If `enough(findings)` is true, no further
    check runs.
    """
    trial, case = Trial(question, subject, host), question.case
    checks = [check for check in checks if check.applies(case)]
    reasons = [check.why_not_run(subject, question.inputs) for check in checks]
    lacking = reasons[0] if reasons and all(reasons) else ""
    if reason := subject.not_applicable(question.inputs) or lacking or host.not_run:
        return Verdict(case.id, not_applicable=reason)
    outcome = Outcome(case.dtype, question.inputs_on_cpu.digest)
    findings: list[Finding] = []
    blocked = ""  # the reason why checks that make further calls do not run
    for at, (check, reason) in enumerate(zip(checks, reasons, strict=True)):
        if reason := reason or (blocked if check.cost is not Cost.CALL else ""):
            outcome.not_run[check.name] = reason
            continue
        try:
            found = _run_check(trial, check)
        except NotRunError as error:
            outcome.not_run[check.name] = str(error)
            continue
        problems = [one for one in found if isinstance(one, Problem) or not one.ratio <= 1]  # a ratio of NaN fails too
        outcome.checks[check.name] = _summarize_found(found, bool(problems))
        findings += [as_finding(trial, check, problem) for problem in problems[:1]]
        if problems and check in (single.result, single.loss):
            findings[-1] = replace(findings[-1], message=findings[-1].message + _unused_options(trial))
        if problems and enough(findings):
            break
        hung = any(isinstance(one, Problem) and one.kind == "hung" for one in problems)
        if problems and (check in _FIRST or hung):  # each further call might take the whole time limit
            why = "exceeds the time limit" if hung else f"fails `{check.name}`, which the other checks need"
            if check is single.result and widens_halves(trial):
                blocked = why
                continue
            outcome.not_run |= {other.name: why for other in checks[at + 1 :]}
            break
        if check is single.call:
            outcome.digest = trial.digest
            outcome.results = {name: _summary(part) for name, part in trial.got.parts.items()}
    result = outcome.checks.get(single.result.name)
    if result is not None and not result.failed:
        outcome.grade = trial.grade
    return Verdict(case.id, outcome, _note_dependence(findings))


def _unused_options(trial: Trial) -> str:
    """Return a line that names the options that the subject ignores, or "" if none are found."""
    inputs, defaults = trial.question.inputs_on_cpu, trial.case.operation.options
    options = inputs.options
    given = [name for name in keywords_of(trial.case.operation) if options.get(name, defaults[name]) != defaults[name]]
    unused = [name for name in given if checksum(trial.got.loss) == _checksum_without(name, trial)]
    if not unused or trial.got.loss.isnan().all() or trial.case.classes < 2:  # the loss of one class is always 0
        return ""
    others = {name: value for name, value in options.items() if name not in unused} | {
        name: default for name in unused if (default := defaults[name]) is not None
    }
    upstream = inputs.upstream.new_ones(()) if "reduction" in unused else inputs.upstream
    try:
        exact = solve(replace(inputs, options=others, upstream=upstream))
    except IndexError:  # without its ignore_index, the call has an ignored target that is not a class
        return ""
    # a loss that is wrong for this call too has another cause
    if tuple(trial.got.loss.shape) != exact.shape or trial.compare(Result(trial.got.loss), exact)[0].ratio > 1:
        return ""
    without = unused
    if "reduction" in unused and _checksum_without("reduction", trial, reduction="sum") != checksum(trial.got.loss):
        without = ["reduction_none" if name == "reduction" else name for name in unused]  # only "none" is ignored
    return f"\nThe loss is the same without {' and '.join(unused)}. {_IF_INTENDED} {as_options(without=without)}"


def _checksum_without(option: str, trial: Trial, **instead: str) -> int | None:
    """Call the subject with `instead` in place of `option`. Return the checksum of the loss, or None without a loss."""
    inputs = trial.question.fresh()
    options = {name: value for name, value in inputs.options.items() if name != option} | instead
    made = trial.host.perform(evaluate, replace(inputs, options=options), ()).value
    return checksum(made.loss) if isinstance(made, Result) and not made.loss.is_meta else None


def _note_dependence(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, with a note if the check `repeat` fails.

    The note in each other finding about a result says that the result depends on earlier calls.
    """
    if not any((finding.check, finding.kind) == (single.repeat.name, "not_repeated") for finding in findings):
        return list(findings)
    why = f"\nThe check `{single.repeat.name}` fails too: {DEPENDS}."
    about_results = ("wrong", "not_repeated", "disturbed")
    return [
        replace(one, message=one.message + why)
        if one.kind in about_results and one.check != single.repeat.name
        else one
        for one in findings
    ]


def _run_check(trial: Trial, check: Check) -> list[Difference | Problem]:
    """Run a check, and return its differences and problems."""
    try:
        return list(check.run(trial))
    except RefusedError as error:
        return [Problem("refused", str(error))]
    except EndedError as error:
        return [Problem(error.kind, str(error))]
    except (NotRunError, ForkServerError):
        raise
    except Exception as error:
        if not trial.host.isolated:
            raise
        return [Problem("crashed", unjudged(error))]


def unjudged(error: Exception) -> str:
    """Return the message for an exception of crossent itself on a case of an isolated subject.

    The subject may have forged a reply that crossent cannot judge. The exception does not tell a forged reply from a
    bug of crossent, so the message names both, and the line of crossent.
    """
    package, frames = Path(__file__).parents[1], traceback.extract_tb(error.__traceback__)
    of_crossent = [frame for frame in frames if package in Path(frame.filename).parents]
    at = "".join(f" (crossent/{Path(one.filename).relative_to(package)}:{one.lineno})" for one in of_crossent[-1:])
    return f"crossent has a bug, or its process returned a damaged reply: {said(error)}{at}"


def judge_bad_input(bad: BadInput, subject: Subject, host: Host, device: str) -> Verdict:
    """Call a subject with a bad input, and return the verdict. The subject must raise an error."""
    inputs = bad.build(device)
    if reason := why_not_called(bad, subject, inputs) or host.not_run:
        return Verdict(bad.id, not_applicable=reason)
    try:
        reaction = refusals.react(host, bad, device)
    except NotRunError as error:
        return Verdict(bad.id, not_applicable=str(error))
    outcome = Outcome(bad.dtype, inputs.digest, raised=reaction.raised.message if reaction.raised else "")
    findings = []
    allowed = (Exception,) if "error_classes" in subject.lacks else bad.allowed(device)
    for check, problem in refusals.judge_reaction(reaction, allowed).items():
        if check in subject.lacks:  # the subject is declared to write into its arguments
            continue
        outcome.checks[check] = Measured(failed=problem is not None)
        if problem is not None:
            findings.append(Finding(subject.name, check, bad.id, problem.kind, problem.message, describe(inputs)))
    return Verdict(bad.id, outcome, findings)


def why_not_called(bad: BadInput, subject: Subject, inputs: Inputs) -> str:
    """Return the reason why a subject is not called with a bad input, or "" if the subject is called."""
    return subject.not_applicable(inputs) or subject.lacks.get("errors") or subject.lacks.get(bad.kind) or ""


def judge_ended(case: Case | BadInput, subject: str, kind: str, message: str) -> Verdict:
    """Return a verdict with one finding. `kind` is "hung" if the subject did not return, otherwise "crashed"."""
    inputs = case.build()
    check = "errors" if isinstance(case, BadInput) else single.call.name
    outcome = Outcome(case.dtype, inputs.digest, checks={check: Measured(failed=True)})
    return Verdict(case.id, outcome, [Finding(subject, check, case.id, kind, message, describe(inputs))])


def _summarize_found(found: Sequence[Difference | Problem], failed: bool) -> Measured:
    differences = [one for one in found if isinstance(one, Difference)]
    if not differences:
        return Measured(failed)
    if len(differences) == 1:
        (one,) = differences
        return Measured(failed, one.ulp, one.ratio, one.vacuous, Counter(one.not_judged), one.elements)
    worst = max(differences, key=lambda difference: difference.ratio)
    return Measured(
        failed,
        worst.ulp,
        worst.ratio,
        all(difference.vacuous for difference in differences),
        sum((Counter(difference.not_judged) for difference in differences), Counter()),
        sum(difference.elements for difference in differences),
    )


def as_finding(trial: Trial, check: Check, problem: Difference | Problem) -> Finding:
    """Return the finding for a difference or a problem of a check."""
    inputs, of, numbers, of_torch = trial.question.inputs_on_cpu, problem.of, None, ""
    kind, message = (problem.kind, problem.message) if isinstance(problem, Problem) else ("wrong", str(problem))
    if isinstance(problem, Difference):
        if of != check.name:
            numbers = _numbers(problem, check.versus)
            message = f"{in_words(of, trial.case.operation)}:\n{message}"
            message += narrower_dtype_of(problem) if check.versus == "exact" else ""
        else:
            numbers = _numbers(problem)
            is_torch = trial.subject is REFERENCES[trial.case.operation]
            of_torch, hint = ("", "") if is_torch else _of_torch(trial, problem)
            message += _lines(problem, inputs)
            message += mistake_of(trial, of) if trial.question.exact.linear_terms is not None else ""
            message += hint or _declaration(trial, of)
    elif check is single.arguments and kind == "changed_input":
        message += f"\n{_IF_INTENDED} {as_options(without=['arguments'])}"
    call = describe(inputs)
    return Finding(trial.subject.name, check.name, trial.case.id, kind, message, call, numbers, of_torch, of=of)


def _lines(difference: Difference, inputs: Inputs) -> str:
    """Return lines about the probable cause of a wrong number, or "" if no cause is found."""
    return factor_of(difference, inputs) + narrower_dtype_of(difference) + infinity_of(difference, inputs)


def _numbers(d: Difference, versus: str = "exact") -> Numbers:
    return Numbers(d.index, d.got, _bits(d.got, d.dtype), d.exact, d.radius, d.bound, d.ulp, d.ratio, versus)


def _bits(value: float, dtype: str) -> str:
    tensor = torch.tensor(value, dtype=DTYPES[dtype])
    return f"0x{int(bits(tensor)):0{2 * tensor.element_size()}x}"


def _of_torch(trial: Trial, difference: Difference) -> tuple[str, str]:
    """Return a text with torch's value at the worst element of a difference, and a hint.

    The hint is `_AS_TORCH` if the wrong result has the bits of torch's result, but the subject has another contract
    than torch. Otherwise, the hint is "".
    """
    torch_itself = REFERENCES[trial.case.operation]
    try:
        result = evaluate(torch_itself.loss, trial.case.build(trial.question.device))
    except Exception as error:
        return f"raises {said(error)}", ""
    tensor: Tensor = getattr(result, difference.of)
    value = tensor[difference.index].item()
    off = 0.0 if repr(value) == repr(difference.exact) else abs(value - difference.exact)  # also for inf and NaN
    name = str(tensor.dtype).removeprefix("torch.")
    share = f", {off / difference.bound:.3g} of the subject's error bound" if difference.bound else ""
    alike = checksum(tensor) == checksum(getattr(trial.got, difference.of))
    digits = math.isfinite(difference.got) and difference.got != 0  # two losses that are inf are equal by chance
    as_torch = trial.subject.contract == torch_itself.contract
    hint = _AS_TORCH if alike and digits and not as_torch and not difference.ratio <= 1 else ""
    return f"{value!r}  ({_bits(value, name)}), off by {off:.3g}{share}", hint


def _declaration(trial: Trial, of: str) -> str:
    """Return a line that suggests an option under which the result `of` would pass, or "" if no option fits."""
    subject, exact = trial.subject, trial.question.exact
    flushed = abs(trial.differences[of].exact) < FORMATS[trial.differences[of].dtype].smallest_normal
    features = ["nan_mean"] + ["subnormal"] * flushed
    declared = {as_options(without=[name]): subject.lacking({name: ""}) for name in features}
    if subject.contract == DEFAULT_CONTRACT:
        declared |= {words: under_contract(subject, contract, grade) for words, contract, grade in _WIDER}
    fits: dict[str, float] = {}
    for words, one in declared.items():
        found = {part.of: part for part in replace(trial, subject=one).compare(trial.got, exact)}
        if of in found and found[of].ratio <= 1 and not trial.differences[of].ratio <= 1:
            fits[words] = found[of].ratio
    # the option with the smallest bounds that fits
    return f"\n{_IF_INTENDED} {max(fits, key=fits.__getitem__)}" if fits else ""


def describe(inputs: Inputs) -> str:
    """Return the arguments of a call in words, such as "logits float32 (3, 5), target int64 (3,), reduction='sum'"."""

    def of(tensor: Tensor) -> str:
        return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"

    options = [f"{k}={of(v) if isinstance(v, Tensor) else repr(v)}" for k, v in inputs.options.items()]
    first = inputs.operation.word("input")
    return ", ".join([f"{first} {of(inputs.input)}", f"target {of(inputs.target)}", *options])


def _summary(tensor: Tensor) -> ResultSummary:
    special = {}
    if not tensor.isfinite().all():
        where = {"nan": tensor.isnan(), "inf": tensor.isposinf(), "-inf": tensor.isneginf()}
        special = {name: count for name, at in where.items() if (count := int(at.sum()))}
    value = float(tensor.item()) if tensor.numel() == 1 else None
    dtype = str(tensor.dtype).removeprefix("torch.")
    return ResultSummary(f"{checksum(tensor):08x}", dtype, tuple(tensor.shape), value, special)
