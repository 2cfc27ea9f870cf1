"""The parts of the README that code writes."""

from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def part(name, written=None):
    """What stands between two marks of the README; where that is given, it is written there."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    shown, after = rest.split(end)
    if written is not None:
        README.write_text(before + begin + written + end + after, encoding="utf-8")
    return shown
