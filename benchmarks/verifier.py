"""The verifier: what it costs to know the exact answer, to bound the error, to check, and to run all of it.

    python -m benchmarks verifier

One core works on a case, so what is timed of the parts is the processor's time, and the fastest round counts:
neighbours only ever make a round slower. `crossent check` is timed as it is run, on all cores, against the number
of its cases.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from crossent.cases.case import Case
from crossent.checks.single import SINGLE
from crossent.numerics.oracle.answer import Answer, answer
from crossent.numerics.oracle.arguments import Arguments
from crossent.run.plan import plan
from crossent.subjects.builtin import FORMS
from crossent.trials.difference import Difference
from crossent.trials.trial import Question, Trial

# Seconds for a million logits, loss and gradient: the project's own limits, where float64 answers and where balls do.
LIMITS = {"float32": 0.2, "float64": 2.0}


@dataclass(frozen=True)
class Workload:
    """Logits of one shape, and what is asked of the oracle."""

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
        """In seconds; a gradient of target probabilities is a million numbers more, and has none for balls."""
        return None if self.target_gradient and self.dtype == "float64" else LIMITS[self.dtype]

    def arguments(self) -> Arguments:
        """The same numbers every time."""
        rng = np.random.default_rng(0)
        shape = self.rows, self.classes
        options: dict[str, Any] = {"index": rng.integers(0, self.classes, self.rows)}
        if self.target == "probabilities":
            options = {"probabilities": rng.random(shape).astype(self.dtype)}
        logits = (3 * rng.standard_normal(shape)).astype(self.dtype)
        return Arguments(logits, label_smoothing=self.label_smoothing, **options)

    def run(self, arguments: Arguments) -> Answer:
        """What is timed: the loss, and the gradient with respect to every number."""
        exact = answer(arguments)
        for block in exact.blocks():
            block.gradient()
            if self.target_gradient:
                block.target_gradient()
        return exact


WORKLOADS = (
    Workload(1000, 1000, "float32"),
    Workload(8, 128_256, "float32"),  # Llama 3's vocabulary
    Workload(32, 128_256, "float32"),  # too many for their exponentials to be kept from loss to gradient
    Workload(100_000, 10, "float32"),
    Workload(500_000, 2, "float32"),  # all rows and no classes
    Workload(1000, 1000, "float32", label_smoothing=0.1),
    Workload(1000, 1000, "float32", "probabilities", 0.1, target_gradient=True),
    Workload(1000, 1000, "float64"),
    Workload(8, 128_256, "float64"),
    Workload(100_000, 10, "float64"),
    Workload(16, 128_256, "float64"),  # too many, again
    Workload(1000, 1000, "float64", label_smoothing=0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1),
    Workload(1000, 1000, "float64", "probabilities", 0.1, target_gradient=True),
)

# Of bounds and checks: a case with every option, of half a million logits.
CASES = tuple(
    Case(dtype, (500, 1000), reduction="mean", weight="weighted", ignored="ignored_16th", label_smoothing=0.1)
    for dtype in ("float32", "bfloat16", "float64")
)


def oracle(workloads: tuple[Workload, ...] = WORKLOADS, rounds: int = 2) -> Iterator[dict[str, Any]]:
    """Seconds that the oracle takes for a million logits."""
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
    """Seconds for a million logits of each step of a case, once those before it are done."""
    subject = FORMS["formula"]
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
        trial = Trial(question, subject)
        timed("inputs", partial(getattr, question, "inputs"))
        timed("exact answer", partial(getattr, question, "expected"))
        timed("call", partial(getattr, trial, "got"))
        timed("bounds", partial(trial.bounds, trial.got, question.expected))
        timed("checks", partial(_hold, trial))
    return found


def _hold(trial: Trial) -> None:
    """The checks of a single call, which must hold: to say what is wrong takes time of its own."""
    for check in SINGLE:
        for one in check.run(trial) if check.applies(trial.case) else ():
            if not isinstance(one, Difference) or one.ratio > 1:
                raise AssertionError(one)


def whole(levels: tuple[str, ...] = ("quick", "normal"), subject: str = "formula") -> Iterator[dict[str, Any]]:
    """Seconds of a whole `crossent check`, by the clock, against the number of its cases."""
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


def _fastest(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)
