"""Run the steps of a session within its time. A second call runs the steps for which the first had no time."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.cuda import processes, wheels
from benchmarks.cuda.devices import ROOT, Device
from benchmarks.cuda.processes import Part
from benchmarks.cuda.steps import Step

# A step with one of these outcomes has ended: a second call shows its result, and does not run the step again.
ENDED = ("passed", "failed", "broken")
# The outcome of a step is the first of these words that is the outcome of one of its parts.
_DECIDES = ("interrupted", "broken", "failed", "out of time", "passed")
PASSED, FAILED, WRONG_USE, NOTHING_RAN, UNFINISHED, INTERRUPTED = 0, 1, 2, 3, 4, 130
_PATIENCE = 20  # the factor by which a dry run, on a busy CPU, raises the time limit of a step
_RESERVE = processes.GRACE + 1  # seconds that are kept to end the commands of the last step


@dataclass
class Session:
    """A run of the steps on one device, within a time limit.

    Attributes:
        device: the device.
        into: the folder of the results.
        seconds: the time for all steps together.
        again: the names of steps that run even if they have ended.
        say: a function that prints a line.
        start: when the session began, by `time.monotonic`.
    """

    device: Device
    into: Path
    seconds: float
    again: Collection[str] = ()
    say: Callable[[str], object] = print
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """The seconds that are left for steps."""
        return self.seconds - _RESERVE - (time.monotonic() - self.start)

    @property
    def identity(self) -> dict[str, Any]:
        """The device, the versions and a checksum of the code. A result with another identity does not count."""
        facts = {name: self.device.facts.get(name) for name in ("torch", "cuda", "hip", "triton")}
        return {"device": self.device.name, **facts, "code": code_checksum()}

    def path(self, step: Step) -> Path:
        """Return the path of the result of a step. The results of a dry run have other names."""
        return self.into / f"{'pretended' if self.device.pretended else 'cuda'}-{step.name}.json"

    def folder(self, step: Step) -> Path:
        """Return the folder with the logs and the reports of a step."""
        return self.into / f"{'pretended' if self.device.pretended else 'cuda'}-logs" / step.name

    def run(self, steps: Sequence[Step]) -> int:
        """Run the steps that have not ended, and return the exit status of the session."""
        outcomes: Counter[str] = Counter()
        identity = self.identity
        for number, step in enumerate(steps, 1):
            self.say(f"{number}/{len(steps)} {step.name}: {step.about}")
            old = self._before(step, identity)
            if old in ENDED and step.name not in self.again:
                outcomes[old] += 1
                self.say(f"    {old} in an earlier call; --again {step.name} runs it again")
                continue
            kind, reason = self._why_not(step)
            if reason:
                outcomes[kind] += 1
                if old in ("", "skipped"):  # otherwise keep the result of a step that ran out of time
                    self._write(step, {"outcome": "skipped", "reason": reason}, identity)
                self.say(f"    skipped: {reason}")
                continue
            try:
                outcome, took = self._run_step(step, identity)
            except KeyboardInterrupt:
                self.say(f"    interrupted; the results are in {self.into}, and a second call runs the other steps")
                return INTERRUPTED
            outcomes[outcome] += 1
            left = "" if self.device.pretended else f" {max(self.left, 0):.0f} s are left;"
            self.say(f"    {outcome} in {took:.0f} s;{left} {self.path(step)}")
        self.say(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
        return status_of(outcomes)

    def _before(self, step: Step, identity: Mapping[str, Any]) -> str:
        """Return the outcome of a step in an earlier call with the same identity, or ""."""
        try:
            old = json.loads(self.path(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ""
        same = isinstance(old, dict) and old.get("identity") == identity
        return str(old.get("outcome", "")) if same else ""

    def _why_not(self, step: Step) -> tuple[str, str]:
        """Return "not possible" or "waits", and the reason why a step does not run; two empty texts if it runs."""
        if reason := step.lacking():
            return "not possible", reason
        if missing := wheels.missing(step.packages):
            return "waits", f"needs {', '.join(missing)}; {wheels.ADVICE}"
        least = min(step.seconds, step.seconds if step.least is None else step.least)
        if not self.device.pretended and least > self.left:
            return "waits", f"needs {least:.0f} s, and {max(self.left, 0):.0f} s are left; a second call runs it"
        return "", ""

    def _run_step(self, step: Step, identity: Mapping[str, Any]) -> tuple[str, float]:
        folder = self.folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        values = {"python": sys.executable, "device": self.device.use, "folder": str(folder)}
        chosen = step.parts[:1] if self.device.pretended else step.parts
        parts = [
            Part(name, [command.filled(self.device.pretended, part=name, **values) for command in commands])
            for name, commands in chosen
        ]
        cores = int(self.device.facts.get("cores") or os.cpu_count() or 1)
        at_once = 1 if step.alone or self.device.one_process else max(1, min(len(parts), cores))
        limit = _PATIENCE * step.seconds if self.device.pretended else min(step.seconds, self.left)
        of = "" if self.device.pretended else f" of the {max(self.left, 0):.0f} s left"
        self.say(f"    at most {limit:.0f} s{of}; logs: {folder}")
        begun = time.monotonic()
        try:
            processes.run(parts, folder, limit, at_once, self._environment(cores // at_once), ROOT)
        finally:
            took = time.monotonic() - begun
            facts = step.read(parts, folder)
            outcome = next(one for one in _DECIDES if any(part.outcome == one for part in parts))
            if facts.pop("failed", False) and outcome == "passed":
                outcome = "failed"
            self._write(
                step, {"outcome": outcome, **self._of_parts(parts, folder, took, limit), "facts": facts}, identity
            )
        return outcome, took

    def _environment(self, threads: int) -> dict[str, str]:
        """Return the environment variables with which the commands import this checkout and share the cores."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        shared = str(max(1, threads))
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": shared}
        # torch starts a process for each core to compile. A dry run compiles nothing, since this takes minutes.
        own |= {"TORCHINDUCTOR_COMPILE_THREADS": shared, "COLUMNS": "120"}
        own |= {"TORCHDYNAMO_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""} if self.device.pretended else {}
        return {**os.environ, **own}

    def _of_parts(self, parts: Sequence[Part], folder: Path, took: float, limit: float) -> dict[str, Any]:
        short = {sys.executable: "python", str(folder): self.folder_name(folder), str(ROOT): "."}

        def shown(words: Sequence[str]) -> str:
            text = " ".join(words)
            for long, name in short.items():
                text = text.replace(long, name)
            return text

        each = [
            {
                "part": part.name,
                "outcome": part.outcome,
                "status": part.status,
                "seconds": part.seconds,
                "commands": [shown(command.words) for command in part.commands],
            }
            for part in parts
        ]
        return {"seconds": round(took, 1), "limit": round(limit, 1), "parts": each}

    @staticmethod
    def folder_name(folder: Path) -> str:
        """Return the name of a folder of logs, without the path of this machine."""
        return f"{folder.parent.name}/{folder.name}"

    def _write(self, step: Step, content: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        head = {"step": step.name, "about": step.about, "pretended": self.device.pretended}
        device = {"use": self.device.use, "name": self.device.name, **self.device.facts}
        write(self.path(step), {**head, **content, "device": device, "identity": identity})


def status_of(outcomes: Mapping[str, int]) -> int:
    """Return the exit status of a session whose steps have these outcomes.

    >>> status_of({"passed": 2, "failed": 1, "waits": 1})
    1
    >>> status_of({"passed": 2, "waits": 1})
    4
    """
    if outcomes.get("failed") or outcomes.get("broken"):
        return FAILED
    if outcomes.get("out of time") or outcomes.get("waits"):
        return UNFINISHED
    return PASSED if outcomes.get("passed") else NOTHING_RAN


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, of which a reader sees either the old content or the complete new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
    os.chmod(name, 0o644)
    os.replace(name, path)


def code_checksum() -> str:
    """Return a checksum of the code of the package, its tests and its benchmarks."""
    found = sha256()
    for room in ("crossent", "tests", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".py", ".txt", ".toml") and path.is_file():
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]
