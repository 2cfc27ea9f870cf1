"""Show the changes between two runs as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from crossent.report.findings import NUMBERS
from crossent.report.moves.rules import Kind, Move
from crossent.words import counted, printable

if TYPE_CHECKING:
    from crossent.report.moves.diff import Diff


# The colours of the kinds that need attention.
LOUD = {kind: "bold red" for kind in Kind if kind.fails} | {Kind.WORSE: "yellow", Kind.STILL: "yellow"}
# The kinds that need no action. The text shows one group of each kind, and the table counts all changes.
QUIET = (Kind.BETTER, Kind.MOVED, Kind.WORDS, Kind.JUDGED)


def rendered(diff: Diff, most: int) -> Iterator[RenderableType]:
    """Yield the conditions of the runs, a table of the changes, groups of similar changes, and the summary.

    Of each kind, show groups about a decision of torch, and at most `most` other groups. Of a kind that needs no
    action, show one group.
    """
    for which, run, file in (("old", diff.old, diff.old_file), ("new", diff.new, diff.new_file)):
        environment = run.environment
        words = [f"torch {environment.get('torch', '?')}", f"crossent {environment.get('crossent', '?')}"]
        words += [f"device {environment.get('device', '?')}", f"level {run.level}", f"seed {run.seed}"]
        yield Text(printable(f"{which}  {'  '.join(words)}  {file}".rstrip()))
    for what, old, new in diff.others:
        if what not in ("torch",):
            yield Text(printable(f"  {what}: {old or 'none'} → {new or 'none'}"))
    for hindrance in diff.hindrances:
        yield Text(printable(f"  {'COMPARED ANYWAY' if diff.compared else 'NOT COMPARED'}: {hindrance}"), "bold red")
    for note in diff.notes:
        yield Text(printable(f"  {note}"))
    yield Text()
    yield Padding(_table(diff), (0, 0, 0, 2))
    for kind, groups in diff.sorts.items():
        policies = [group for group in groups if group[0].policy and kind not in QUIET]
        others = [group for group in groups if group not in policies]
        shown = others[: 1 if kind in QUIET else most]
        for group in (*policies, *shown):
            yield from _group_lines(diff, group)
        if hidden := sum(len(group) for group in others[len(shown) :]):
            how = "to see all of them, run crossent diff OLD NEW --json FILE, in Python diff.write_json(FILE)"
            yield Text(f"\n… and {counted(hidden, 'more change')} of the kind '{kind}'; {how}", "dim")
    yield Text()
    yield Text(diff.summary)


def _table(diff: Diff) -> Table:
    """Return the table of the numbers of comparisons, by kind, check and dtype."""
    dtypes, rows = diff.rows(lambda kind, check: "other checks" if kind in QUIET and check not in NUMBERS else check)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_edge=False)
    for name in ("change", "check", *dtypes):
        table.add_column(name, no_wrap=True, justify="right" if name in dtypes else "left")
    for kind, checks in rows.items():
        for check, counts in checks:
            table.add_row(Text(kind.value, LOUD.get(kind, "")), check, *(str(count or "") for count in counts))
    return table


def _group_lines(diff: Diff, group: list[Move]) -> Iterator[Text]:
    """Yield the lines about a group: its largest change in full, and the number of its further changes."""
    move = group[0]
    yield Text()
    if move.policy:
        line = f"{move.kind}: {move.subject}: {move.policy}, {move.check}: {move.says}"
    else:
        line = f"{move.kind}: {move.subject}: {move.check} on {move.case}"
    yield Text(printable(line), LOUD.get(move.kind, ""))
    if not move.policy:
        yield Text(printable(f"  {move.says}"))
    for known in diff.known(move):
        yield Text(printable(f"  {known}"))
    if command := diff.command(move):
        yield Text(f"  {command}")
    if len(group) > 1:
        dtypes = Counter(move.dtype for move in group)
        each = ", ".join(f"{count} {dtype}" for dtype, count in dtypes.items())
        yield Text(printable(f"  and {counted(len(group) - 1, 'similar change')}; dtypes of all {len(group)}: {each}"))
