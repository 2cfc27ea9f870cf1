"""Options and header of the suite's own: --crossent-device, --crossent-level and --crossent-seed are the plugin's.

Of devices, the suite takes all that there are where none is given.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections import Counter

import pytest
import torch

from crossent.machine import device_name, require_device

# `pytest .` looks for doctests in every module, and nox need not be installed for the tests.
collect_ignore = ["noxfile.py"]
# Where the package is installed, its entry point has brought the first of them already.
pytest_plugins = ["crossent.plugin", "pytester"]


def pytest_addoption(parser):
    group = parser.getgroup("crossent")
    group.addoption(
        "--crossent-write-figures",
        action="store_true",
        help="Count anew what the README's tables show, and write it there and into benchmarks/figures.",
    )
    group.addoption(
        "--crossent-repetitions",
        type=int,
        default=1,
        metavar="N",
        help="How often the forms are checked with other numbers. Default: 1; `nox -s repetitions` has 100.",
    )
    group.addoption(
        "--crossent-exhaustive", action="store_true", help="Measure exp and log on every float32. Default: a sample."
    )
    group.addoption(
        "--crossent-soak",
        type=int,
        default=64,
        metavar="N",
        help="How many cases of the soak, each in every dtype. Default: 64, a few seconds; `nox -s soak` runs 20000.",
    )


def own_compile_cache():
    """A cache of torch.compile's for this process and its children, gone at its end.

    In the one that all share, a header that one process precompiles is not always good for another: its C++ then does
    not know `at::vec`, and right code is refused.
    """
    cache, owner = tempfile.mkdtemp(prefix="crossent-compile-"), os.getpid()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(cache, ignore_errors=True))


def pytest_configure(config):
    own_compile_cache()
    # The tensors here are tiny: a pool of threads would only wait for itself, and fight with xdist's workers.
    torch.set_num_threads(1)


def pytest_report_header(config):
    devices = ", ".join(device_name(d) if _missing(d) is None else f"{d} (missing)" for d in _devices(config))
    return f"suite: torch {torch.__version__}, device {devices}, seed {config.getoption('--crossent-seed') or 0}"


# Cases enough to come near the bounds of loss and gradient; each dtype's worst must then be half of its bound at least.
WHOLE_SOAK = 1000
REACHED = 0.5


def pytest_sessionfinish(session):
    """A soak that is long enough must reach the bounds, or they are wider than they need be."""
    terminalreporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminalreporter is None or session.config.getoption("--crossent-soak") < WHOLE_SOAK:
        return
    for dtype, parts in _soaked(terminalreporter).items():
        for check in ("loss", "gradient"):
            worst = max(part[check]["worst"][0] for part in parts)
            if worst < REACHED and sum(part["cases"] for part in parts) >= WHOLE_SOAK:
                terminalreporter.write_line(f"\nthe bound of {check} in {dtype} is never reached: {worst:.2f} of it")
                session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _soaked(terminalreporter):
    """The figures of the soak's parts by dtype."""
    parts: dict[str, list] = {}
    for part in map(json.loads, _recorded(terminalreporter, "soak")):
        parts.setdefault(part["dtype"], []).append(part)
    return parts


def _recorded(terminalreporter, name):
    """What tests recorded by this name, in whichever process each ran."""
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        yield from (text for recorded, text in report.user_properties if recorded == name)


@pytest.fixture
def figure(record_property):
    """Call it with a line that the summary of the run is to show."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter):
    """The figures of the run, and what the soak came to."""
    if figures := list(_recorded(terminalreporter, "figure")):
        terminalreporter.section("figures")
    for line in figures:
        terminalreporter.line(line)
    if parts := _soaked(terminalreporter):
        terminalreporter.section("soak")
    for dtype, of in parts.items():
        terminalreporter.line(f"{dtype}: {sum(part['cases'] for part in of)} cases, {len(of)} parts")
        for check in ("loss", "gradient", "target_gradient"):
            ratio, subject, case = max(part[check]["worst"] for part in of)
            numbers, comparisons = (sum(part[check][name] for part in of) for name in ("numbers", "comparisons"))
            terminalreporter.line(f"  {check}: {numbers} numbers in {comparisons} comparisons")
            terminalreporter.line(f"    largest share of a bound: {ratio:.4f}, {subject} on {case}")
            for counted, unit, total in (
                ("not_judged", "numbers", numbers),
                ("partly_judged", "comparisons", comparisons),
            ):
                for reason, count in sum((Counter(part[check][counted]) for part in of), Counter()).items():
                    terminalreporter.line(f"    no bound, {reason}: {count} {unit}, {100 * count / total:.3f} %")
        for reason, count in sum((Counter(part["known"]) for part in of), Counter()).items():
            terminalreporter.line(f"  known of torch, {reason}: {count}")


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        params = []
        for device in _devices(metafunc.config):
            missing = _missing(device)
            params.append(pytest.param(device, marks=[pytest.mark.skip(reason=missing)] if missing else []))
        metafunc.parametrize("device", params)


@pytest.fixture
def seed(request):
    return request.config.getoption("--crossent-seed") or 0


def _devices(config):
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return config.getoption("--crossent-device") or found


def _missing(device):
    """Why the device cannot be used, or None."""
    try:
        require_device(device)
    except RuntimeError as error:
        return str(error)
    return None
