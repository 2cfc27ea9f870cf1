"""The machine: its versions and its devices. Devices other than the CPU are simulated."""

from importlib.metadata import PackageNotFoundError

from crossent import machine


def test_a_clone_that_is_not_installed_knows_its_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    installed = machine.environment("cpu")["crossent"]
    monkeypatch.setattr(machine, "version", missing)
    assert machine.environment("cpu")["crossent"] == installed
