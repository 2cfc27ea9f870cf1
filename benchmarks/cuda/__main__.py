"""The command `python -m benchmarks.cuda`: run the checks, tests and benchmarks that need a GPU, in ten minutes.

Exit status: 0 if every step passed or cannot run on this machine; 1 if a step failed, or a command ended with an
unexpected status; 2 after wrong use; 3 if there is no device, or nothing ran; 4 if the time ran out and nothing failed;
130 after an interrupt. After status 4, a second call runs the other steps.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cuda import devices, processes, wheels
from benchmarks.cuda.devices import ROOT, NoDeviceError
from benchmarks.cuda.session import INTERRUPTED, NOTHING_RAN, PASSED, WRONG_USE, Session
from benchmarks.cuda.steps import STEPS

RESULTS = ROOT / "benchmarks" / "results"
PRETENDED = ROOT / "pretended"  # git ignores this folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen steps, and return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    names = [step.name for step in STEPS]
    for option, given in (("--step", chosen.steps), ("--again", chosen.again)):
        if unknown := set(given) - set(names):
            parser.error(f"{option}: got {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    into = chosen.into or (PRETENDED if chosen.pretend else RESULTS)
    if chosen.pretend and into.resolve() == RESULTS:
        parser.error(f"--into: got {into}, the folder of measured results; choose another folder for a dry run")
    if chosen.pretend and chosen.device:
        parser.error("--device contradicts --pretend, which uses no device: leave out one of the two")
    steps = [step for step in STEPS if step.name in (chosen.steps or names)]
    if chosen.list:
        print("\n".join(f"{step.name:15} {step.seconds:4.0f} s  {step.about}" for step in steps))
        return PASSED
    return _run(chosen, steps, into)


def _run(chosen: argparse.Namespace, steps: Sequence[object], into: Path) -> int:
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster that stops a job ends the session as Ctrl-C
    try:
        if missing := wheels.missing():
            say(f"missing: {', '.join(missing)}; {wheels.ADVICE}")
            return NOTHING_RAN
        device, others = (devices.pretended(), []) if chosen.pretend else devices.find(chosen.device)
        say(str(device) + (f"; not used: {', '.join(others)}" if others else ""))
        if device.one_process:
            say("the driver lets one process use the device at a time, so the parts of a step take turns")
        session = Session(device, into, 60 * chosen.minutes, chosen.again, say)
        return session.run([step for step in STEPS if step in steps])
    except NoDeviceError as error:
        print(f"cuda: {error}", file=sys.stderr)
        return WRONG_USE if chosen.device else NOTHING_RAN
    except KeyboardInterrupt:
        print("cuda: interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        processes.end_orphans()


def _parser() -> argparse.ArgumentParser:
    about, _, statuses = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description=about, epilog=" ".join(statuses.split())
    )
    parser.add_argument("--device", help="such as cuda:1, xpu or mps; default: the first device that torch sees")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all steps together; default: 10")
    parser.add_argument("--step", action="append", default=[], dest="steps", help="run only this step; repeatable")
    parser.add_argument("--again", action="append", default=[], metavar="STEP", help="repeat this step; repeatable")
    parser.add_argument(
        "--into", type=Path, metavar="FOLDER", help="folder of the results; default: benchmarks/results"
    )
    parser.add_argument("--pretend", action="store_true", help="a dry run: each step in a small form, on a CPU")
    parser.add_argument("--list", action="store_true", help="print the steps and their time limits")
    return parser


def say(line: str) -> None:
    """Print a line on the progress of the session."""
    print(f"cuda: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
