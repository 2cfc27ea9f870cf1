"""Time the forms and `crossent check`, and write results, plots and the tables of benchmarks/README.md.

    python -m benchmarks                                     # everything: about ten minutes on two idle cores
    python -m benchmarks hot_path --shape 4096x1000 --into FOLDER
    python -m benchmarks growth verifier
    python -m benchmarks linear                              # linear cross-entropy: two minutes
    python -m benchmarks --device cuda
    python -m benchmarks --compare REF                       # is a form slower than in another commit?

Each number of threads runs in a separate process. The results go into `benchmarks/results`, or into the folder of
`--into`. Only results in `benchmarks/results` change the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import readme
from benchmarks.readme import RESULTS, ROOT
from benchmarks.turns import EndedError

PARTS = ("hot_path", "linear", "growth", "verifier")


def main(arguments: list[str] | None = None) -> int:
    """Time the chosen parts, and return the exit status: 1 if --compare finds a slower form, 2 after an error."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"PART: got {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if chosen.here:
        return _here(chosen)
    if chosen.compare is not None:
        from benchmarks import compare

        try:
            return compare.run(chosen.compare, say)
        except (ValueError, EndedError) as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 2
    start = time.perf_counter()
    for part in chosen.parts or PARTS:
        of_cores = part == "hot_path" and chosen.device == "cpu"
        counts = chosen.threads if of_cores else chosen.threads[-1:]
        runs = (_in_process(part, threads, chosen, with_memory=threads == max(counts)) for threads in counts)
        found = [run for run in runs if run is not None]
        if len(found) < len(counts):
            return 2
        _write(part, chosen, found)
    say(f"{(time.perf_counter() - start) / 60:.1f} minutes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time the forms and crossent check.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--device", default="cpu", help="device of hot_path and growth: cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, min(2, cores)}), help="default: 1 2")
    parser.add_argument(
        "--shape", action="append", dest="shapes", help="shape for hot_path, such as 4096x1000; repeatable"
    )
    parser.add_argument(
        "--dtype", action="append", dest="dtypes", choices=("float32", "bfloat16", "float16", "float64")
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="for each shape, dtype, pass and number of threads; default: 5"
    )
    parser.add_argument("--into", type=Path, default=RESULTS, metavar="FOLDER", help="folder of results and plots")
    parser.add_argument(
        "--compare",
        nargs="?",
        const="HEAD~1",
        metavar="REF",
        help="compare with this commit or folder; default: HEAD~1",
    )
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="let glibc keep freed memory, so that times do not include mapping memory; write hot_path-kept.json",
    )
    # Options for the processes that this command starts.
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--no-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    return parser


def _in_process(part: str, threads: int, chosen: argparse.Namespace, *, with_memory: bool) -> dict[str, Any] | None:
    """Time a part in a separate process with this number of threads, and return its results; None after an error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks", part, "--here", "--json", str(path), "--device", chosen.device]
        command += ["--threads", str(threads), "--seconds", str(chosen.seconds)]
        command += [] if with_memory else ["--no-memory"]
        for option, values in (("--shape", chosen.shapes), ("--dtype", chosen.dtypes)):
            command += [word for value in values or () for word in (option, value)]
        # The second variable hides XLA's long warnings.
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if part == "growth" or (part == "hot_path" and chosen.keep_memory):
            from benchmarks.growth import KEEPING

            env |= KEEPING
        done = subprocess.run(command, cwd=ROOT, env=env, check=False)
        if done.returncode or not path.exists():
            print(f"benchmarks: {part}, threads: {threads}: ended with status {done.returncode}", file=sys.stderr)
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _here(chosen: argparse.Namespace) -> int:
    """Time a part in this process, write the results to the file of `--json`, and return the exit status."""
    (part,), (threads,) = chosen.parts, chosen.threads
    import torch

    torch.set_num_threads(threads)
    if chosen.device != "cpu":
        torch.cuda.set_device(chosen.device)
    elif part != "verifier" and hasattr(os, "sched_setaffinity"):
        # JAX uses a thread for each core that the process may use. Avoid the first core, which serves interrupts.
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-threads:])
    from benchmarks.limits import machine

    of = machine(chosen.device)
    found = {"machine": of, "title": _title(of), **_measured(part, chosen)}
    chosen.json.write_text(json.dumps(found), encoding="utf-8")
    return 0


def _measured(part: str, chosen: argparse.Namespace) -> dict[str, Any]:
    if part == "hot_path":
        from benchmarks import hot_path

        shapes = tuple(tuple(map(int, shape.split("x"))) for shape in chosen.shapes or ()) or hot_path.SHAPES
        dtypes = tuple(chosen.dtypes or hot_path.DTYPES)
        measured = hot_path.measure(
            shapes, dtypes, device=chosen.device, seconds=chosen.seconds, with_memory=not chosen.no_memory
        )
        return {"cells": [*_shown(measured, _of_cell)]}
    if part == "growth":
        from benchmarks import growth

        points = [*_shown(growth.measure(device=chosen.device, seconds=chosen.seconds / 5), _of_point)]
        return {"points": points, "exponents": growth.exponents(points), "fixed": growth.FIXED}
    if part == "linear":
        from benchmarks import linear

        return {"cells": [*_shown(linear.measure(seconds=2 * chosen.seconds), _of_linear)]}
    from benchmarks import verifier

    parts = [*_shown(verifier.oracle(), _of_part), *_shown(verifier.parts(), _of_part)]
    whole, commands = [*_shown(verifier.whole(), _of_whole)], [*_shown(verifier.commands(), _of_command)]
    (bare,) = _shown(iter([verifier.bare()]), _of_bare)
    return {"parts": parts, "whole": whole, "commands": commands, "bare": bare}


def _title(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}, torch {machine['torch']}"


def _shown(found: Iterator[dict[str, Any]], words: Any) -> Iterator[dict[str, Any]]:
    """Yield each result, after printing the line that `words` returns for the result."""
    for result in found:
        say(words(result))
        yield result


def _of_cell(cell: dict[str, Any]) -> str:
    ratios = {name: one["ratio_to_torch"] for name, one in cell["found"].items() if name != "torch"}
    words = [f"{name} {ratio['median']:.2f}" + "*" * ratio["disturbed"] for name, ratio in ratios.items()]
    words += [f"{name} is missing, since it {reason}" for name, reason in cell["missing"].items()]
    which = f"{'x'.join(map(str, cell['shape']))} {cell['dtype']} {cell['pass']}, threads: {cell['threads']}"
    ms, rounds = 1000 * cell["found"]["torch"]["seconds"]["median"], cell["found"]["torch"]["seconds"]["rounds"]
    return f"{which}: torch {ms:.3g} ms, {rounds} rounds; time / torch's time: {', '.join(words)}"


def _of_linear(cell: dict[str, Any]) -> str:
    ratios = {name: one["blocked_over_this"] for name, one in cell["found"].items() if name != "linear_blocked"}
    words = [f"{name} {ratio['median']:.2f}" + "*" * ratio["disturbed"] for name, ratio in ratios.items()]
    which = f"{'x'.join(map(str, cell['shape']))} {cell['dtype']}, threads: {cell['threads']}"
    ms, rounds = (cell["found"]["linear_blocked"]["seconds"][key] for key in ("median", "rounds"))
    return f"{which}: linear_blocked {1000 * ms:.3g} ms, {rounds} rounds; its time / time of {', '.join(words)}"


def _of_point(point: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {1000 * one['seconds']['median']:.3g} ms" for name, one in point["found"].items())
    return f"{point['size']} {point['axis']}: {times}"


def _of_part(one: dict[str, Any]) -> str:
    return f"{one['part']} of {one['of']}: {one['seconds_per_million_logits']:.3g} s per million logits"


def _of_whole(one: dict[str, Any]) -> str:
    return f"crossent {one['of']}: {one['cases']} cases, {one['seconds']:.1f} s"


def _of_command(one: dict[str, Any]) -> str:
    return f"crossent {one['of']}: {one['cpu']:.2f} s of CPU, {one['seconds']:.2f} s, status {one['status']}"


def _of_bare(one: dict[str, Any]) -> str:
    return f"{one['calls']} calls on {one['cases']} cases: {one['ratio']:.2f} times the CPU time of a bare loop"


def _write(part: str, chosen: argparse.Namespace, found: list[dict[str, Any]]) -> None:
    """Write the results of a part, and a plot of growth or verifier.

    After a full run on a CPU, with benchmarks/results as the folder, also write the tables of the part.
    """
    from benchmarks import hot_path, linear, tables

    kept = {key: value for key, value in found[-1].items() if key != "cells"}
    if part == "hot_path":
        kept["machines"] = {str(one["machine"]["threads"]): one["machine"] for one in found}
    if part in ("hot_path", "linear"):
        kept["cells"] = [cell for one in found for cell in one["cells"]]
    chosen.into.mkdir(parents=True, exist_ok=True)
    name = part if chosen.device == "cpu" or part == "verifier" else f"{part}-cuda"
    kept_memory = part == "hot_path" and chosen.keep_memory
    name += "-kept" if kept_memory else ""
    (chosen.into / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    say(f"written: {chosen.into / name}.json")
    if part in ("growth", "verifier"):
        from benchmarks import plots  # imports matplotlib, which a machine with a GPU may lack

        getattr(plots, part)(kept, chosen.into / f"{name}.svg")
    else:
        for about, got, allowed in (linear if part == "linear" else hot_path).verdicts(kept["cells"]):
            say(f"{'met' if got <= allowed else 'MISSED'}: {about}: {got:.3g}, target {allowed:.3g}")
    partial = part == "hot_path" and (chosen.shapes or chosen.dtypes)
    if chosen.into == RESULTS and chosen.device == "cpu" and not partial and not kept_memory:
        readme.part(part, getattr(tables, part)(kept))


def say(line: str) -> None:
    """Print a line on the progress of the run."""
    print(f"benchmarks: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
