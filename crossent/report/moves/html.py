"""Moved page: what moved between two runs as one HTML file, made as the page of a report is."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

from crossent.cases.axes import DTYPES
from crossent.report.html import LONGEST_COMMAND, engine, hash_of
from crossent.report.moves.rules import Kind, Move

if TYPE_CHECKING:
    from crossent.report.moves.diff import Diff


_MOST = 40  # sorts of a kind
_MOST_OF_A_SORT = 60
TONES = {kind: "failed" for kind in Kind if kind.fails} | {Kind.WORSE: "known", Kind.STILL: "known"}


def page(diff: Diff) -> str:
    """What moved as a whole HTML document; the same for the same two runs."""
    folder = files("crossent.report")
    style, script, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "moves/diff.html.jinja")
    )
    counts = diff.table
    dtypes = [dtype for dtype in DTYPES if any(dtype == met for _, _, met in counts)]
    met = dict.fromkeys((kind, check) for kind, check, _ in counts)  # in the order of the checks
    rows: dict[Kind, list[tuple[str, list[int]]]] = {}
    for kind, check in sorted(met, key=lambda row: list(Kind).index(row[0])):
        rows.setdefault(kind, []).append((check, [counts[kind, check, dtype] for dtype in dtypes]))
    sorts: dict[Kind, list[list[Move]]] = {}
    for sort in diff.sorts:
        sorts.setdefault(sort[0].kind, []).append(sort)
    return (
        engine()
        .from_string(template)
        .render(
            diff=diff,
            headline="Nothing broke" if diff.ok else "Look before you upgrade",
            tone="held" if diff.strictly_ok else "unproven" if diff.ok else "failed",
            dtypes=dtypes,
            rows=rows,
            sorts=sorts,
            tones=TONES,
            most=_MOST,
            most_of_a_sort=_MOST_OF_A_SORT,
            command=lambda move: _command(diff, move),
            style=Markup(style),
            script=Markup(script),
            style_hash=hash_of(style),
            script_hash=hash_of(script),
        )
    )


def _command(diff: Diff, move: Move) -> Markup:
    command = diff.command(move)
    return Markup.escape(command) if len(command) <= LONGEST_COMMAND else Markup("")
