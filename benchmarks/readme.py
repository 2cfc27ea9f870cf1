"""Read and write the tables in README.md and other pages. Each table stands between two marks with its name.

This module imports only the standard library: `nox -s upgrade` runs where torch may be missing.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "benchmarks" / "README.md", ROOT / "SECURITY.md")
RESULTS = ROOT / "benchmarks" / "results"  # the files that the tables are made from


def part(name: str, written: str | None = None) -> str:
    """Return the text between the two marks of this name. If `written` is given, replace the text by it.

    Raises:
        ValueError: no page, or more than one page, has such a mark.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    pages = [page for page in PAGES if begin in page.read_text(encoding="utf-8")]
    if len(pages) != 1:
        found = ", ".join(map(str, pages)) or "none"
        allowed = ", ".join(map(str, PAGES))
        raise ValueError(f"the mark {begin.strip()} is in {found}; put the mark into exactly one of {allowed}")
    before, rest = pages[0].read_text(encoding="utf-8").split(begin)
    shown, after = rest.split(end)
    if written is not None:
        pages[0].write_text(before + begin + written + end + after, encoding="utf-8")
    return shown
