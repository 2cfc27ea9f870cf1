"""Define the fixtures `device` and `seed` by the options `--crossent-device` and `--crossent-seed` of the plugin.

Without `--crossent-device`, the tests run on every device of the machine. Tests and benchmarks share this file. Options
that only the tests need are in tests/conftest.py.
"""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import torch

from crossent.machine import require_device

# `pytest .` imports every module to find doctests, but the tests need neither nox nor Sphinx.
# Only a call of `fused` imports its kernel, which imports Triton.
collect_ignore = ["noxfile.py", "docs", "crossent/forms/kernel.py"]
# The plugin must also load if the package is not installed, when no entry point names it.
pytest_plugins = ["crossent.plugin", "pytester"]


def own_compile_cache(config):
    """Give torch.compile a new cache folder in this process and its children. Delete the folder when pytest ends.

    In a shared cache, a header that one process precompiled can be wrong for another process. Then correct C++ code
    fails to compile, with the error that `at::vec` is unknown.
    """
    cache, owner = tempfile.mkdtemp(prefix="crossent-compile-"), os.getpid()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    # Not with atexit: mutmut runs pytest in forked processes, which end without running these functions.
    config.add_cleanup(lambda: os.getpid() == owner and shutil.rmtree(cache, ignore_errors=True))


def pytest_configure(config):
    own_compile_cache(config)
    # The tensors are tiny. More threads would gain nothing, and would compete with xdist's workers.
    torch.set_num_threads(1)


def _device_name(device):
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def pytest_report_header(config):
    devices = ", ".join(_device_name(d) if _missing(d) is None else f"{d} (missing)" for d in _devices(config))
    return f"suite: torch {torch.__version__}, device {devices}, seed {config.getoption('--crossent-seed') or 0}"


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
    """Return the reason why the device cannot be used, or None."""
    try:
        require_device(device)
    except RuntimeError as error:
        return str(error)
    return None
