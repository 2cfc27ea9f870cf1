"""Show the changes between two runs as an HTML page, with the style and script of a report's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossent.report.html import command, render
from crossent.report.moves.rules import Kind, Move
from crossent.report.moves.text import QUIET

if TYPE_CHECKING:
    from crossent.report.moves.diff import Diff


_MOST = 40  # the most cards of a kind
_MOST_OF_A_CARD = 60  # the most changes that a card shows, with the first
_MOST_NAMES = 6  # the most names in a title
_HEADLINES = ("Nothing was compared", "Look at the changes before you upgrade")
# The class of a card in report.css, by kind of change.
TONES = {kind: "failed" for kind in Kind if kind.fails} | {Kind.WORSE: "known", Kind.STILL: "known"}


@dataclass(frozen=True)
class Card:
    """A card of the page about changes of the same kind: the first in full, the others in a folded list."""

    moves: list[Move]

    @property
    def title(self) -> str:
        """The title of the card: names of checks, or of results that torch decides, such as "mean over no rows"."""
        names = list(dict.fromkeys(move.policy or move.check for move in self.moves))
        more = len(names) - _MOST_NAMES
        return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")

    @property
    def subjects(self) -> Counter[str]:
        """The number of changes of each subject."""
        return Counter(move.subject for move in self.moves)


def page(diff: Diff) -> str:
    """Return the comparison as an HTML document. The same two runs give the same document."""
    dtypes, rows = diff.rows()
    return render(
        "moves/diff.html.jinja",
        diff=diff,
        headline="No regression" if diff.ok else _HEADLINES[bool(diff.compared)],
        tone="passed" if diff.strictly_ok else "unproven" if diff.ok else "failed",
        dtypes=dtypes,
        rows=rows,
        cards={kind: cards(kind, groups) for kind, groups in diff.sorts.items()},
        tones=TONES,
        most=_MOST,
        most_of_a_card=_MOST_OF_A_CARD,
        command_of=lambda move: command(diff.command(move)),
    )


def cards(kind: Kind, groups: Iterable[list[Move]]) -> list[Card]:
    """Return the cards that show the groups of changes of one kind.

    Groups with the same text (`Move.says`) share a card. For a kind that needs no action, groups with the same check
    share a card.
    """
    found: dict[str, list[Move]] = {}
    for group in groups:
        found.setdefault(group[0].check if kind in QUIET else group[0].says, []).extend(group)
    return [Card(moves) for moves in found.values()]
