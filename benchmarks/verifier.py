"""Time the verifier: the exact values, the error bounds, the checks, and the whole command.

    python -m benchmarks verifier

A case uses one core. The time of a part is therefore CPU time, and the fastest round counts, since other processes can
only make a round slower. `crossent check` uses all cores, and its time is by the clock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.checks import single
from crossent.machine import ambient
from crossent.numerics.oracle.answer import Answer, answer
from crossent.numerics.oracle.arguments import Arguments
from crossent.run.order import imports_compilers
from crossent.run.plan import plan
from crossent.run.runner import run
from crossent.run.settings import Settings
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.subject import Subject
from crossent.trials.act import Here
from crossent.trials.call import evaluate
from crossent.trials.check import Check
from crossent.trials.difference import Difference
from crossent.trials.trial import Question, Trial

# Targets of the oracle in seconds for a million logits, loss and gradient. For float32 logits the oracle computes in
# float64, and for float64 logits in interval arithmetic.
LIMITS = {"float32": 0.2, "float64": 2.0}
# The timed checks: the checks of a single call.
TIMED = (
    *(single.call, single.result, single.arguments, single.state),
    *(single.loss, single.gradient, single.target_gradient, single.repeat),
)


@dataclass(frozen=True)
class Workload:
    """A call for the oracle: the shape and dtype of the logits, the kind of target, and the options."""

    rows: int
    classes: int
    dtype: str
    target: str = "index"
    label_smoothing: float = 0.0
    target_gradient: bool = False

    def __str__(self) -> str:
        smoothed = "-smoothed" if self.label_smoothing else ""
        with_target = "-with_target_gradient" if self.target_gradient else ""
        return f"{self.dtype}-{self.rows}x{self.classes}-{self.target}{smoothed}{with_target}"

    @property
    def limit(self) -> float | None:
        """The target in seconds. None for a float64 target gradient, which adds a million numbers to the result."""
        return None if self.target_gradient and self.dtype == "float64" else LIMITS[self.dtype]

    def arguments(self) -> Arguments:
        """Return the inputs of the oracle. Each call returns the same numbers."""
        rng = np.random.default_rng(0)
        shape = self.rows, self.classes
        options: dict[str, Any] = {"index": rng.integers(0, self.classes, self.rows)}
        if self.target == "probabilities":
            options = {"probabilities": rng.random(shape).astype(self.dtype)}
        logits = (3 * rng.standard_normal(shape)).astype(self.dtype)
        return Arguments(logits, label_smoothing=self.label_smoothing, **options)

    def run(self, arguments: Arguments) -> Answer:
        """Return the exact loss and gradients. The benchmark times this call."""
        exact = answer(arguments)
        for block in exact.blocks():
            block.gradient()
            if self.target_gradient:
                block.target_gradient()
        return exact


WORKLOADS = (
    Workload(1000, 1000, "float32"),
    Workload(8, 128_256, "float32"),  # Llama 3's vocabulary
    Workload(32, 128_256, "float32"),  # so many logits that the gradient computes their exponentials again
    Workload(100_000, 10, "float32"),
    Workload(500_000, 2, "float32"),  # many rows, few classes
    Workload(1000, 1000, "float32", label_smoothing=0.1),
    Workload(1000, 1000, "float32", "probabilities", 0.1, target_gradient=True),
    Workload(1000, 1000, "float64"),
    Workload(8, 128_256, "float64"),
    Workload(100_000, 10, "float64"),
    Workload(16, 128_256, "float64"),  # the same in float64
    Workload(1000, 1000, "float64", label_smoothing=0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1, target_gradient=True),
)

# The cases for bounds and checks: half a million logits, with every option.
CASES = tuple(
    Case(dtype, (500, 1000), reduction="mean", weight="weighted", ignored="ignored_16th", label_smoothing=0.1)
    for dtype in ("float32", "bfloat16", "float64")
)


def oracle(workloads: tuple[Workload, ...] = WORKLOADS, rounds: int = 2) -> Iterator[dict[str, Any]]:
    """Yield the seconds of the oracle for a million logits, as a dict for each workload."""
    for workload in workloads:
        arguments = workload.arguments()
        seconds = _fastest(partial(workload.run, arguments), rounds)
        yield {
            "part": "oracle",
            "of": str(workload),
            "seconds_per_million_logits": seconds / arguments.logits.size * 1e6,
            "limit": workload.limit,
        }


def parts(cases: tuple[Case, ...] = CASES, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """Yield the seconds for a million logits, as a dict for each step of each case, such as "bounds"."""
    subject = BY_NAME["formula"]
    for case in cases:
        for name, seconds in _steps(case, subject, rounds).items():
            million = seconds / (case.rows * case.classes) * 1e6
            yield {"part": name, "of": case.id, "seconds_per_million_logits": million}


def _steps(case: Case, subject: Any, rounds: int) -> dict[str, float]:
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], object]) -> None:
        start = time.process_time()
        call()
        took = time.process_time() - start
        found[name] = min(took, found.get(name, took))

    for _ in range(rounds):
        question = Question(case)
        trial = Trial(question, subject, Here(subject.loss))
        timed("inputs", partial(getattr, question, "inputs"))
        timed("exact value", partial(getattr, question, "exact"))
        timed("call", partial(getattr, trial, "got"))
        timed("bounds", partial(trial.bounds, trial.got, question.exact))
        timed("checks", partial(_run_checks, trial))
    return found


def _run_checks(trial: Trial) -> None:
    """Run the checks of `TIMED`. Raise AssertionError if one fails: a description of a failure would take time."""
    for check in TIMED:
        for found in check.run(trial) if check.applies(trial.case) else ():
            if not isinstance(found, Difference) or found.ratio > 1:
                raise AssertionError(found)


def whole(levels: tuple[str, ...] = ("quick", "normal"), subject: str = "formula") -> Iterator[dict[str, Any]]:
    """Yield the seconds of whole runs of `crossent check`, by the clock, with the number of cases."""
    for level in levels:
        for of in (("--dtype", "float32"), ()):
            command = [sys.executable, "-m", "crossent", "check", subject, "--level", level, *of]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - start
            dtypes = of[1::2] or ("float16", "bfloat16", "float32", "float64")
            cases = len(plan(level, dtypes, 0))
            yield {
                "part": "crossent check",
                "of": " ".join(command[4:]),
                "level": level,
                "cases": cases,
                "seconds": seconds,
                "status": done.returncode,
            }


RIGHT = """
from torch.nn.functional import cross_entropy
def loss(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return cross_entropy(input, target, weight, **options)
"""
LINEAR = """
import torch
from torch.nn.functional import cross_entropy
def loss(
    input, linear_weight, target, linear_bias=None, weight=None, ignore_index=-100, reduction="mean",
    label_smoothing=0.0,
):
    compute = torch.promote_types(input.dtype, torch.float32)
    logits = input.to(compute) @ linear_weight.to(compute).flatten(0, -2).T
    if linear_bias is not None:
        logits = logits + linear_bias.to(compute).flatten()
    logits = logits.reshape(*input.shape[:-1], *linear_weight.shape[:-1])
    weight = None if weight is None else weight.to(compute)
    target = target.to(compute) if target.is_floating_point() else target
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    return cross_entropy(logits, target, weight, **options).to(input.dtype)
"""
WRONG = RIGHT.replace('"ignore_index": ignore_index, ', "")
# Commands, each with its targets: CPU seconds, and seconds on two idle cores.
COMMANDS: tuple[tuple[str, float | None, float | None], ...] = (
    ("check", 110.0, 60.0),
    ("check --level quick", 16.0, 10.0),
    ("check right.py:loss --contract torch --level quick", None, 6.0),
    ("check wrong.py:loss --contract torch --level quick -x", None, 5.0),
    ("check linear.py:loss --operation linear_cross_entropy --without errors --level quick", None, 15.0),
    ("check linear.py:loss --operation linear_cross_entropy --without errors", None, 60.0),
    ("--help", 0.15, 0.15),
    ("check --levle quick", 0.15, 0.15),
)


def commands(of: tuple[tuple[str, float | None, float | None], ...] = COMMANDS) -> Iterator[dict[str, Any]]:
    """Yield a dict for each command: its CPU seconds, its seconds by the clock, and the targets.

    The commands run in a new folder, where no earlier report is.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("right", RIGHT), ("wrong", WRONG), ("linear", LINEAR)):
            (Path(folder) / f"{name}.py").write_text(text, encoding="utf-8")
        for words, cpu_limit, limit in of:
            before, start = os.times(), time.perf_counter()
            command = [sys.executable, "-m", "crossent", *words.split()]
            done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
            seconds, after = time.perf_counter() - start, os.times()
            cpu = after.children_user + after.children_system - before.children_user - before.children_system
            limits = {"cpu_limit": cpu_limit, "limit": limit}
            yield {"part": "command", "of": words, "cpu": cpu, "seconds": seconds, **limits, "status": done.returncode}


def bare(every: int = 16) -> dict[str, Any]:
    """Return a dict with the CPU seconds of a run, the CPU seconds of the same calls in a bare loop, and their ratio.

    The run has every 16th case of level normal (or another `every`), without the checks that transform a subject. The
    bare loop makes the inputs of a case once, and calls the subject and its backward pass as often as the run does.
    """
    settings = Settings(level="normal")
    subjects = settings.load()
    planned: dict[Case | BadInput, tuple[Check, ...]] = {
        case: tuple(check for check in checks if not imports_compilers([check]) and check.name not in _COMPILERS)
        for case, checks in [*settings.plan().items()][::every]
        if isinstance(case, Case)
    }
    counts: Counter[tuple[str, Case]] = Counter()
    now: list[Case] = []

    def counting(subject: Subject) -> Subject:
        def loss(*arguments: Any, **options: Any) -> Any:
            counts[subject.name, now[-1]] += 1
            return subject.loss(*arguments, **options)

        return replace(subject, loss=loss)

    counted = [counting(subject) for subject in subjects]
    for case, checks in planned.items():  # count the calls, without timing
        now.append(case)
        run(settings, counted, {case: checks})
    start = time.process_time()
    run(settings, subjects, planned)
    of_run = time.process_time() - start
    start = time.process_time()
    with ambient():  # one thread, as in the run, since idle threads of a pool use CPU time
        for case in planned:
            inputs = case.build()
            for subject in subjects:
                for _ in range(counts[subject.name, case]):
                    with suppress(Exception):
                        evaluate(subject.loss, inputs)
    of_loop = time.process_time() - start
    calls = sum(counts.values())
    return {"cases": len(planned), "calls": calls, "run": of_run, "loop": of_loop, "ratio": of_run / of_loop}


# Checks that make torch import its compilers although they do not transform a subject.
_COMPILERS = ("deterministic",)


def _fastest(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)
