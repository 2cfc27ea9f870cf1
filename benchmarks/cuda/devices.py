"""Find the device of a session, by asking torch in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90.0  # the first import of torch on a cold disk, and the start of a driver
PRETENDED = "a pretended GPU; the commands ran on a CPU"


class NoDeviceError(Exception):
    """No device can be used. The message is one line."""


@dataclass(frozen=True)
class Device:
    """The device on which a session runs its steps.

    Attributes:
        use: the device as torch names it, such as "cuda:0". A dry run uses "cpu".
        name: the name of the device.
        facts: properties of the device, and versions of the software, by name.
        pretended: whether the session is a dry run.
    """

    use: str
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    pretended: bool = False

    @property
    def one_process(self) -> bool:
        """Whether the driver lets only one process use the device at a time."""
        return "exclusive" in str(self.facts.get("compute_mode", "")).lower()

    def __str__(self) -> str:
        versions = [f"torch {self.facts.get('torch')}"]
        versions += [f"{what} {self.facts[what]}" for what in ("cuda", "hip", "triton") if self.facts.get(what)]
        memory = [f"{self.facts['total_memory'] / 2**30:.0f} GiB"] if "total_memory" in self.facts else []
        capability = [f"capability {self.facts['capability']}"] if "capability" in self.facts else []
        cores = [f"{self.facts['cores']} cores"] if "cores" in self.facts else []
        return ", ".join([self.use, self.name, *capability, *memory, *versions, *cores])


def pretended() -> Device:
    """Return the CPU, as the device of a dry run."""
    return Device("cpu", PRETENDED, {"torch": version("torch"), "cores": os.cpu_count()}, pretended=True)


def find(wanted: str | None, facts: dict[str, Any] | None = None) -> tuple[Device, list[str]]:
    """Return the device to use, and the names of the other devices. Without `wanted`, use the first device.

    `facts` is the output of :mod:`benchmarks.cuda.device`. By default, this function runs that module.

    Raises:
        NoDeviceError: torch sees no device, does not see `wanted`, or cannot describe its devices.
    """
    facts = _ask() if facts is None else facts
    devices = {one["device"]: one for one in facts["devices"]}
    at = f"{wanted}:0" if wanted in ("cuda", "xpu") else wanted
    if not devices:
        raise NoDeviceError(f"torch {facts['torch']} sees no GPU; for a dry run on a CPU, add --pretend")
    if at is not None and at not in devices:
        raise NoDeviceError(f"--device: got {wanted!r}; torch {facts['torch']} sees {', '.join(devices)}")
    chosen = devices[at or next(iter(devices))]
    of_software = {name: value for name, value in facts.items() if name != "devices"}
    others = [name for name in devices if name != chosen["device"]]
    return Device(chosen["device"], chosen["name"], {**of_software, **chosen}), others


def _ask() -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.cuda.device"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        advice = "run `python -m benchmarks.cuda.device` to see whether torch answers later"
        raise NoDeviceError(f"torch did not describe its devices within {SECONDS:g} s; {advice}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NoDeviceError(f"torch cannot describe its devices (exit status {done.returncode}): {last}")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts
