"""The machine: its versions and its devices. Devices other than the CPU are simulated."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

from crossent import machine


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


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "xpu", "xpu:1", "mps"])
def test_a_device_that_torch_lacks_is_refused_in_one_line(name, monkeypatch):
    def zeros(*sizes, device):
        raise AssertionError("Torch not compiled with this backend. More\nlines")

    monkeypatch.setattr(torch, "zeros", zeros)
    message = f"got '{name}'; torch cannot use this device: Torch not compiled"
    with pytest.raises(RuntimeError, match=message) as raised:
        machine.require_device(name)
    assert "\n" not in str(raised.value)


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
    assert raising(torch.cuda.OutOfMemoryError("CUDA out of memory")) == ""


def test_only_metal_lacks_float64():
    assert machine.lacks_float64("mps") == "needs float64, which Metal does not have"
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


def test_autocast_is_off_on_each_kind_of_device_that_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "xpu", Backend([]), raising=False)
    assert list(machine._kinds_with_autocast()) == ["cpu", "cuda", "xpu"]
