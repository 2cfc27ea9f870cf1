"""The machine: its versions, its devices and the state of a run. Devices other than the CPU are simulated."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from crossent import machine

PRODUCTS = """
import zlib
import numpy as np
from crossent.machine import ambient
random = np.random.default_rng(0)
h, w = random.standard_normal((130, 513)), random.standard_normal((257, 513))
with ambient():
    print(zlib.crc32((h @ w.T).tobytes()))
"""


def test_a_clone_that_is_not_installed_knows_its_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    installed = machine.environment("cpu")["crossent"]
    monkeypatch.setattr(machine, "version", missing)
    assert machine.environment("cpu")["crossent"] == installed


@pytest.mark.parametrize("name", ["cpu:0", "gpu", "cuda:", "cuda:-1", "mps:1", "meta", "xpu:x", ""])
def test_a_device_that_no_run_can_use_is_named_with_the_allowed_devices(name):
    with pytest.raises(RuntimeError, match=r"allowed are cpu, cuda, cuda:N, xpu, xpu:N and mps"):
        machine.require_device(name)


@pytest.mark.parametrize("given", [torch.device("cpu"), None, 0])
def test_a_device_that_is_not_a_string_is_refused(given):
    with pytest.raises(TypeError, match=r"^device: got .+; allowed is a string: cpu, cuda, .* and mps$"):
        machine.require_device(given)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu", "xpu:1", "mps"])
def test_a_device_that_torch_lacks_is_refused_in_one_line(name, monkeypatch):
    def zeros(*sizes, device):
        raise AssertionError("Torch not compiled with this backend. More\nlines")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(RuntimeError) as raised:
        machine.require_device(name)
    reason = "Torch not compiled with this backend"
    assert str(raised.value) == (
        f"device: got '{name}'; torch cannot use this device ({reason}); choose another, such as cpu"
    )


def test_a_device_whose_error_has_no_message_is_refused_with_the_name_of_the_error(monkeypatch):
    def zeros(*sizes, device):
        raise NotImplementedError

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(RuntimeError, match=r"cannot use this device \(NotImplementedError\); choose another"):
        machine.require_device("mps")


def test_a_device_is_lost_if_it_raises_and_its_memory_is_not_full(monkeypatch):
    def raising(error):
        def zeros(*sizes, device):
            raise error

        monkeypatch.setattr(torch, "zeros", zeros)
        return machine.lost("cuda:0")

    assert machine.lost("cpu") == ""
    assert raising(RuntimeError("CUDA error: an illegal memory access\nCompile with ...")) == (
        "CUDA error: an illegal memory access"
    )
    assert raising(RuntimeError()) == "RuntimeError"
    assert raising(torch.cuda.OutOfMemoryError("CUDA out of memory")) == ""


def test_only_mps_lacks_float64():
    assert machine.lacks_float64("mps") == "needs float64, which the device mps does not have"
    assert [machine.lacks_float64(device) for device in ("cpu", "cuda:0", "xpu:0")] == ["", "", ""]


class Backend:
    """A simulated torch.xpu or torch.mps."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        numbers = {"memory_allocated": 3, "current_allocated_memory": 5, "recommended_max_memory": 70}
        whole = type("Properties", (), {"total_memory": 100})()
        names = {"get_device_name": "an Arc", "get_device_properties": whole, "is_available": True, **numbers}
        return lambda *of: self.calls.append(name) or names.get(name)


def test_the_memory_and_the_name_of_other_gpus_are_read(monkeypatch):
    calls = []
    for name in ("xpu", "mps"):
        monkeypatch.setattr(torch, name, Backend(calls), raising=False)
    assert machine.available("xpu:0") == 97
    assert machine.available("mps") == 65
    assert calls.count("empty_cache") == 2  # memory that torch keeps for later counts as used
    assert machine.environment("xpu:0")["device_name"] == "an Arc"
    assert "device_name" not in machine.environment("mps")
    assert machine.memory_growth(lambda: None, "xpu:0") is None
    machine.synchronize(torch.device("xpu", 0))
    machine.synchronize(torch.device("mps"))
    machine.synchronize(torch.device("cpu"))
    assert calls.count("synchronize") == 2


def test_synchronize_waits_for_the_given_device(monkeypatch):
    waited = []
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(
            torch, name, SimpleNamespace(synchronize=lambda of=None: waited.append(str(of))), raising=False
        )
    machine.synchronize(torch.device("cuda", 1))
    machine.synchronize(torch.device("xpu", 1))  # not the current device, such as xpu:0
    assert waited == ["cuda:1", "xpu:1"]


def test_autocast_is_off_on_each_kind_of_device_that_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "xpu", Backend([]), raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: True, raising=False)
    assert list(machine._kinds_with_autocast()) == ["cpu", "cuda", "xpu", "mps"]
    # torch 2.0 has autocast on neither MPS nor, without an extension, on XPU.
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")
    assert list(machine._kinds_with_autocast()) == ["cpu", "cuda", "xpu"]


@pytest.mark.skipif(machine.memory_growth(lambda: None, "cpu") is None, reason="needs the counters of Linux")
def test_an_error_of_the_measured_call_is_not_taken_for_a_missing_counter():
    def call():
        raise OSError("of the call")

    with pytest.raises(OSError, match="of the call"):
        machine.memory_growth(call, "cpu")


@pytest.mark.skipif(machine._thread_functions() is None, reason="needs a numpy with OpenBLAS in its wheel")
def test_the_products_of_a_run_have_the_same_bits_with_any_number_of_threads():
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRODUCTS],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(printed) == 1


def test_a_run_has_one_thread_and_restores_the_number_of_threads():
    functions = machine._thread_functions()
    before = torch.get_num_threads(), functions and functions[0]()
    with machine.ambient():
        assert torch.get_num_threads() == 1
        assert functions is None or functions[0]() == 1
    assert (torch.get_num_threads(), functions and functions[0]()) == before
