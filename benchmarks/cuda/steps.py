"""The steps of a session, in the order of their value: if the time runs out, the last steps are missing.

The time limits are guesses for an H100 with 16 cores. No limit is measured yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cuda import results
from benchmarks.cuda.processes import ENDS, Command, Part

DTYPES = ("float32", "bfloat16", "float16", "float64")  # in the order of their value
FORMS = ("formula", "log_softmax_nll", "one_hot", "blocked")
LINEAR = ("linear_formula", "linear_blocked", "torch.nn.functional:linear_cross_entropy")
# The cases of a dry run. They are small, and include a known failure of torch and a bad input.
SMALL = ("--case", "policy/float32-6x4-normal-int64-mean*")
SMALL_LINEAR = ("--case", "linear-float32-7x5-normal-int64-mean-hidden16")
MINIMAL = ("pytest", "hypothesis")  # packages that the tests of the steps need besides those of crossent


@dataclass(frozen=True)
class Step:
    """One step of a session: its commands, its time limit and its results.

    Attributes:
        name: the name, which is part of the name of the result file.
        about: what the step shows, in a phrase.
        seconds: the time limit.
        parts: the parts, which run in parallel. Each part is a pair of a name and a chain of commands.
        read: the function that returns the facts of the parts, from the folder with their output.
        least: the step does not start if fewer seconds are left; by default, `seconds`.
        packages: the packages that the step needs besides those of crossent.
        lacking: a function that returns the reason why the step cannot run on this machine, or "".
        alone: whether the parts must run one after another, because they measure time.
    """

    name: str
    about: str
    seconds: float
    parts: tuple[tuple[str, tuple[Command, ...]], ...]
    read: Callable[[Sequence[Part], Path], dict[str, Any]]
    least: float | None = None
    packages: tuple[str, ...] = ()
    lacking: Callable[[], str] = lambda: ""
    alone: bool = False


def check(
    *words: str,
    small: Sequence[str] = SMALL,
    full: Sequence[str] = (),
    json: str = "{part}.json",
    device: str = "{device}",
    ends: Mapping[int, str] = ENDS,
) -> Command:
    """Return the command `crossent check` on the device, which writes its report into the folder of the step."""
    always = ("{python}", "-m", "crossent", "check", *words, "--device", device, "--json", "{folder}/" + json)
    return Command(always, tuple(small), tuple(full), ends)


def run_tests(path: str, *words: str, small: Sequence[str] = (), full: Sequence[str] = ()) -> Command:
    """Return the command that runs tests on the device, without pytest-xdist, which may be missing."""
    options = ("-q", "-ra", "-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider")
    own = ("--crossent-device={device}", "--junitxml={folder}/{part}.xml")
    return Command(("{python}", "-m", "pytest", path, *options, *own, *words), tuple(small), tuple(full))


def in_parts(*words: str, small: Sequence[str] = SMALL) -> tuple[tuple[str, tuple[Command, ...]], ...]:
    """Return a check in eight parts, by dtype and by subjects, so that eight processes share the device.

    A device-side assert then ends only one of the parts. Shards of the cases would divide the work more evenly, but
    an assert would then end a shard of every subject.
    """
    groups = {"torch": ("torch",), "forms": FORMS}
    return tuple(
        (f"{group}-{dtype}", (check(*subjects, "--dtype", dtype, *words, small=small),))
        for dtype in DTYPES
        for group, subjects in groups.items()
    )


def _no_triton() -> str:
    return "" if find_spec("triton") else "needs the package triton, which compiles the kernel"


_ASSUMPTIONS = "tests/numerics/test_assumptions.py"
_ASSUMED = ("exp_in_float32", "log_in_float32", "exp_in_float64", "log_in_float64")
_USE_DEVICE = Command(("{python}", "-c", "import torch; print(torch.ones(2, device='{device}').sum().item())"))
# The check of the asserting loss must have a finding: exit status 0 means that the check has missed the assert.
_FINDS = {0: "failed", 1: "passed"}
_COMPARES = {0: "passed", 1: "passed"}
_HOT = (
    "--seconds",
    "2",
    "--dtype",
    "bfloat16",
    "--shape",
    "4096x1000",
    "--shape",
    "4096x8192",
    "--shape",
    "4096x32000",
)
_HOT_PATH = ("{python}", "-m", "benchmarks", "hot_path", "--device", "{device}", "--into", "{folder}", "--threads", "1")

STEPS = (
    Step(
        "exp_and_log",
        "the errors of exp and log on every 101st float32 number, which the error bounds assume",
        45.0,
        (("sample", (run_tests(_ASSUMPTIONS, "-s", small=("-k", "odd_lengths and float32")),)),),
        results.of_assumptions,
        packages=MINIMAL,
    ),
    Step(
        "against_torch",
        "each form against nn.CrossEntropyLoss in float64 and in the same dtype",
        60.0,
        (("tests", (run_tests("tests/forms/test_against_torch.py", small=("-k", "class_indices and 10-float32")),)),),
        results.of_tests,
        packages=MINIMAL,
    ),
    Step("quick", "forms and torch at level quick", 75.0, in_parts("--level", "quick"), results.of_checks, least=30.0),
    Step(
        "isolation",
        "a loss whose kernel stops with a device-side assert spoils no other verdict and no other process",
        40.0,
        (
            (
                "asserting",
                (
                    check(
                        *("benchmarks/cuda/asserting.py:loss", "--level", "quick", "--dtype", "float32"),
                        *("--seed", "0"),
                        small=("--case", "float32-7x5-*", "--check", "loss"),
                        ends=_FINDS,
                    ),
                    _USE_DEVICE,
                ),
            ),
        ),
        results.of_isolation,
    ),
    Step(
        "normal", "forms and torch at level normal", 150.0, in_parts("--level", "normal"), results.of_checks, least=45.0
    ),
    Step(
        "linear",
        "linear cross-entropies at level quick",
        60.0,
        tuple((dtype, (check(*LINEAR, "--level", "quick", "--dtype", dtype, small=SMALL_LINEAR),)) for dtype in DTYPES),
        results.of_checks,
        least=30.0,
    ),
    Step(
        "large",
        "more than 2^31 and more than 2^32 elements",
        60.0,
        (
            (
                "tiles",
                (
                    check(
                        *("blocked", "torch", "--level", "thorough", "--check", "large"),
                        small=("--dtype", "bfloat16", "--case", "half_partial_sums/*-tiled*"),
                        full=("--case", "*-tiled*"),
                    ),
                ),
            ),
        ),
        results.of_checks,
        least=30.0,
    ),
    Step(
        "determinism",
        "repeated calls, deterministic algorithms and streams",
        45.0,
        (
            ("tests", (run_tests("tests/checks/test_determinism.py", small=("-k", "stream")),)),
            (
                "checks",
                (
                    check(
                        *("blocked", "torch", "--level", "normal", "--check", "repeat", "--check", "deterministic"),
                        *("--check", "stream"),
                    ),
                ),
            ),
        ),
        results.of_both,
        packages=MINIMAL,
    ),
    Step(
        "cpu_and_device",
        "the same cases on the CPU and on the device, each against the exact value, and the differences",
        60.0,
        tuple(
            (
                dtype,
                (
                    check(
                        "blocked",
                        "torch",
                        "--level",
                        "quick",
                        "--dtype",
                        dtype,
                        json="{part}-cpu.json",
                        device="cpu",
                        ends=_COMPARES,
                    ),
                    # Step `quick` judges the findings; this step compares.
                    check("blocked", "torch", "--level", "quick", "--dtype", dtype, ends=_COMPARES),
                    Command(
                        (
                            *("{python}", "-m", "crossent", "diff", "--force"),
                            *(
                                "{folder}/{part}-cpu.json",
                                "{folder}/{part}.json",
                                "--json",
                                "{folder}/{part}-diff.json",
                            ),
                        ),
                        ends=_COMPARES,  # status 1: results differ, as results of two devices may
                    ),
                ),
            )
            for dtype in DTYPES
        ),
        results.of_comparison,
        least=30.0,
    ),
    Step(
        "every_float32",
        "the errors of exp and log on every float32 number, and on millions of float64 numbers",
        90.0,
        tuple(
            (name, (run_tests(_ASSUMPTIONS, "-s", "-k", name, full=("--crossent-exhaustive",)),)) for name in _ASSUMED
        ),
        results.of_assumptions,
        packages=MINIMAL,
    ),
    Step(
        "fused",
        "the form `fused` at level normal",
        45.0,
        tuple((dtype, (check("fused", "--level", "normal", "--dtype", dtype),)) for dtype in DTYPES),
        results.of_checks,
        least=30.0,
        lacking=_no_triton,
    ),
    Step(
        "hot_path",
        "the time of forms, torch, torch.compile, Liger and quack, where installed",
        90.0,
        (
            (
                "times",
                (
                    Command(
                        _HOT_PATH,
                        small=("--shape", "8x10", "--seconds", "0.01", "--dtype", "float32"),
                        full=_HOT,
                    ),
                ),
            ),
        ),
        results.of_times,
        alone=True,
    ),
)
