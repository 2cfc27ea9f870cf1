"""Make the tables of time and memory in benchmarks/README.md from the result files."""

from __future__ import annotations

import math
from typing import Any

from benchmarks import linear as linear_part
from benchmarks.hot_path import TARGETS, Pass
from benchmarks.peers import NAMES

PEERS = ("torch.compile", "linear_cross_entropy", "liger", "quack", "optax")
NONE = "–"
_STAR = " A star: in most rounds more threads were ready to run than there were cores."


def hot_path(kept: dict[str, Any]) -> str:
    """Return three tables in Markdown: times divided by torch's, the same for the forward pass, and extra memory."""
    cells = kept["cells"]
    most = max(cell["threads"] for cell in cells)
    both = [cell for cell in cells if cell["threads"] == most and cell["pass"] == Pass.BOTH.value]
    forward = [cell for cell in cells if cell["threads"] == most and cell["pass"] == Pass.FORWARD.value]
    peers = [name for name in PEERS if any(name in cell["found"] for cell in both)]
    names = ["torch", *NAMES, *peers]
    parts = [
        f"Time over the time of `nn.CrossEntropyLoss`, forward and backward, {_threads(most)}, medians. For `blocked` "
        "also the quartiles, the target, and the share of its time in which a sum and a copy of the logits run, into "
        "allocated memory (copy) or into new memory (clone):",
        _table(
            ["logits", "dtype", "torch, ms", *NAMES, "quartiles", "target", "copy", "clone", *peers],
            [
                [*_which(cell), _ms(cell), *_ratios(cell, NAMES), *_of_blocked(cell), *_ratios(cell, peers)]
                for cell in both
            ],
        ),
        f"The same for the forward pass alone, without a gradient{_others(cells, most)}:",
        _table(
            ["logits", "dtype", "torch, ms", *NAMES, *_heads(cells, most)],
            [[*_which(cell), _ms(cell), *_ratios(cell, NAMES), *_alone(cells, cell, most)] for cell in forward],
        ),
        "Peak memory beyond the logits, over the size of the logits, forward and backward; the last column is "
        "`blocked`, forward alone:",
        _table(
            ["logits", "dtype", *names, "forward"],
            [[*_which(cell), *_memories(cell, names), _forward_memory(forward, cell)] for cell in both],
        ),
        _machine(kept, cells),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def linear(kept: dict[str, Any]) -> str:
    """Return the tables of the time and the memory of a linear cross-entropy."""
    cells = kept["cells"]
    others = [name for name in cells[0]["found"] if name not in (linear_part.FORM, *linear_part.LIMITS)]
    times = [
        [
            *_which(cell),
            f"{1000 * cell['found'][linear_part.FORM]['seconds']['median']:.3g}",
            *(_marked(cell["found"][name]["blocked_over_this"]) for name in others),
            *(f"{1 / cell['found'][name]['blocked_over_this']['median']:.0%}" for name in linear_part.LIMITS),
        ]
        for cell in cells
    ]
    memories = [
        [
            *_which(cell),
            _megabytes(cell["gradients"]),
            _megabytes(cell["block"]),
            f"{linear_part.share_of_memory(cell):.2f}",
            *(_megabytes(cell["found"][name]["extra_memory"]) for name in (linear_part.FORM, *others)),
        ]
        for cell in cells
    ]
    heads = ["input", "dtype"]
    return (
        f"Time of `{linear_part.FORM}` in ms, the same over the time of other calls (target {linear_part.TIME:g}), and "
        "the share of its time in which the limits run, medians:\n\n"
        + _table([*heads, "ms", *(f"/ {name}" for name in others), *linear_part.LIMITS], times)
        + f"\nPeak memory beyond the inputs in MB, and that of `{linear_part.FORM}` over the memory of the gradients "
        f"and one block (target {linear_part.MEMORY:g}):\n\n"
        + _table([*heads, "gradients", "block", "share", linear_part.FORM, *others], memories)
        + f"\n{kept['title']}.{_STAR if any('*' in word for row in times for word in row) else ''}\n"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g}"


def growth(kept: dict[str, Any]) -> str:
    """Return the table of the exponents of time and memory."""
    rows = [
        [
            name,
            *(_fit(kept["exponents"][axis][name][kind]) for kind in ("seconds", "bytes") for axis in kept["exponents"]),
        ]
        for name in next(iter(kept["exponents"].values()))
    ]
    axes = [f"{kind}, {axis}" for kind in ("time", "memory") for axis in kept["exponents"]]
    return _table(["", *axes], rows) + f"\n{kept['title']}.\n"


def verifier(kept: dict[str, Any]) -> str:
    """Return the tables of seconds per million logits of each part, and of seconds of the whole command."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for one in kept["parts"]:
        key = one["part"], one["of"].partition("-")[0]
        without_limit = one["part"] == "oracle" and one["limit"] is None
        slower = key not in worst or one["seconds_per_million_logits"] > worst[key]["seconds_per_million_logits"]
        if slower and not without_limit:
            worst[key] = one
    parts = [
        [part, dtype, f"{one['seconds_per_million_logits']:.2g}", str(one.get("limit") or NONE), f"`{one['of']}`"]
        for (part, dtype), one in worst.items()
        if part in ("oracle", "bounds", "checks")
    ]
    whole = [[f"`{one['of']}`", f"{one['cases']:,}", f"{one['seconds']:.1f}"] for one in kept["whole"]]
    commands = [
        [f"`crossent {one['of']}`", *(_with_target(one[name], one[limit]) for name, limit in _COLUMNS)]
        for one in kept["commands"]
    ]
    bare = kept["bare"]
    return (
        _table(["part", "dtype", "s per million logits", "target", "slowest workload"], parts)
        + "\n"
        + _table(["", "cases", "seconds"], whole)
        + "\n"
        + _table(["", "CPU seconds (target)", "seconds (target)"], commands)
        + f"\nA run of {bare['cases']:,} cases of level normal, without the checks that transform a subject, takes "
        f"{bare['ratio']:.1f} times the CPU of its {bare['calls']:,} calls in a bare loop (target 3).\n"
        + f"\n{kept['title']}.\n"
    )


_COLUMNS = (("cpu", "cpu_limit"), ("seconds", "limit"))


def _with_target(got: float, limit: float | None) -> str:
    return f"{got:.3g}" if limit is None else f"{got:.3g} ({limit:g})"


def times(kept: dict[str, Any]) -> str:
    """Return the README's two sentences on the time that `crossent check` takes."""
    seconds = {one["of"]: one["seconds"] for one in kept["commands"]}
    quick, normal = (_about(seconds[of]) for of in ("check --level quick", "check"))
    return f"The default level, `normal`, takes about {normal} on two cores. `--level quick` takes about {quick}."


def _about(seconds: float) -> str:
    """Return a time in words, rounded up to five seconds or half a minute."""
    if seconds < 90:
        return f"{5 * math.ceil(seconds / 5)} seconds"
    return f"{math.ceil(seconds / 30) / 2:g} minutes"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    rules = [
        " --- " if head in ("", "logits", "input", "dtype", "part", "slowest workload") else " ---: " for head in heads
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(rules)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _which(cell: dict[str, Any]) -> list[str]:
    return ["×".join(map(str, cell["shape"])), cell["dtype"]]


def _ms(cell: dict[str, Any]) -> str:
    return f"{1000 * cell['found']['torch']['seconds']['median']:.3g}"


def _ratios(cell: dict[str, Any], names: Any) -> list[str]:
    found = cell["found"]
    return [_marked(found[name]["ratio_to_torch"]) if name in found else NONE for name in names]


def _marked(ratio: dict[str, Any]) -> str:
    """Return a median as text, with a star if other processes ran in most of its rounds."""
    return f"{ratio['median']:.2f}" + ("\\*" if ratio["disturbed"] else "")


def _of_blocked(cell: dict[str, Any]) -> list[str]:
    if "blocked" not in cell["found"]:
        return [NONE] * 4
    ratio, target = cell["found"]["blocked"]["ratio_to_torch"], TARGETS.get(tuple(cell["shape"]))
    allowed = f"{getattr(target, cell['dtype']):.2f}" if target else NONE
    shares = [f"{cell['found']['blocked'][name]:.0%}" for name in ("share_of_limit", "share_in_new_memory")]
    return [f"{ratio['lower']:.2f} to {ratio['upper']:.2f}", allowed, *shares]


def _fewer(cells: list[dict[str, Any]], most: int) -> list[int]:
    return sorted({cell["threads"] for cell in cells} - {most})


def _others(cells: list[dict[str, Any]], most: int) -> str:
    fewer = _fewer(cells, most)
    return f", and `blocked` with {', '.join(map(_threads, fewer))}" if fewer else ""


def _heads(cells: list[dict[str, Any]], most: int) -> list[str]:
    return [f"{of.value}, {_threads(count)}" for count in _fewer(cells, most) for of in Pass]


def _alone(cells: list[dict[str, Any]], like: dict[str, Any], most: int) -> list[str]:
    found = []
    for count in _fewer(cells, most):
        for of in Pass:
            same = ("shape", "dtype")
            wanted = [
                cell
                for cell in cells
                if cell["threads"] == count and cell["pass"] == of.value and all(cell[k] == like[k] for k in same)
            ]
            found += _ratios(wanted[0], ["blocked"]) if wanted else [NONE]
    return found


def _memory(cell: dict[str, Any], name: str) -> str:
    extra = cell["found"].get(name, {}).get("extra_memory", {})
    # Only torch's own count is shown. JAX keeps freed memory, so its resident memory says nothing about a call.
    return f"{extra['torch']:.2f}" if "torch" in extra else NONE


def _memories(cell: dict[str, Any], names: list[str]) -> list[str]:
    return [_memory(cell, name) for name in names]


def _forward_memory(forward: list[dict[str, Any]], like: dict[str, Any]) -> str:
    same = [cell for cell in forward if cell["shape"] == like["shape"] and cell["dtype"] == like["dtype"]]
    return _memory(same[0], "blocked") if same else NONE


def _fit(fit: list[float]) -> str:
    return f"{fit[0]:.2f} ± {fit[1]:.2f}"


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _machine(kept: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    """Return a text about the machine, the discarded ratios, and Liger's kernel if it is missing."""
    machine = kept["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    rates = machine["gigabytes_per_second"]
    spreads = [one["ratio_to_torch"] for cell in cells for name, one in cell["found"].items() if name != "torch"]
    out, all_of_them = (
        sum(one["thrown_out"] for one in spreads),
        sum(one["rounds"] + one["thrown_out"] for one in spreads),
    )
    missing = {name: reason for cell in cells for name, reason in cell["missing"].items() if name == "liger"}
    absent = "".join(f" {name} {reason}." for name, reason in missing.items())
    stars = _STAR if any(one["disturbed"] for one in spreads) else ""
    device = "" if machine["device"] == "cpu" else f" {machine.get('device_name', machine['device'])},"
    return (
        f"{machine['processor']},{device} {machine['cores']} cores, {caches}; torch {machine['torch']}, Python "
        f"{machine['python']}, allocator {machine['allocator']}; a sum reads {rates['sum']} GB/s, a copy moves "
        f"{rates['copy']}, into new memory {rates['clone']}. {out:,} of {all_of_them:,} ratios were discarded, since "
        f"another process was running.{stars}{absent}"
    )
