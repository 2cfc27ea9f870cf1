"""The differences between two runs, as an HTML page with the style and script of a report's page."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from markupsafe import Markup

from crossent.report.html import LONGEST_COMMAND, engine, hash_of
from crossent.report.moves.rules import Kind, Move

if TYPE_CHECKING:
    from crossent.report.moves.diff import Diff


_MOST = 40  # groups of a kind
_MOST_OF_A_SORT = 60  # changes of a group
TONES = {kind: "failed" for kind in Kind if kind.fails} | {Kind.WORSE: "known", Kind.STILL: "known"}


def page(diff: Diff) -> str:
    """Return the comparison as an HTML document. The same two runs give the same document."""
    folder = files("crossent.report")
    style, script, template = (
        (folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "moves/diff.html.jinja")
    )
    dtypes, rows = diff.rows()
    return (
        engine()
        .from_string(template)
        .render(
            diff=diff,
            headline="No regression" if diff.ok else "Look before you upgrade",
            tone="passed" if diff.strictly_ok else "unproven" if diff.ok else "failed",
            dtypes=dtypes,
            rows=rows,
            sorts=diff.sorts,
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
