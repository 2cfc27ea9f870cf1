"""A report as a picture of the terminal, for the README."""

import html
import io
import re

from rich.text import Text

from crossent.console import Output

_CHARACTER = 12.2  # the width of a character in rich's pictures


def picture(command: str, report, width: int = 100) -> str:
    """Return the command and its output as SVG. The time is left out, so that equal reports give equal pictures."""
    report.seconds = None
    console = Output(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {command}\n"))
    for part in report.render():
        console.print(part)  # `print` wraps long lines; `Output.show` does not
    svg = console.export_svg(title="crossent", unique_id="terminal")
    return re.sub(r" *@font-face \{.*?\}\n", "", svg, flags=re.S)  # a viewer would load the fonts from the network


def lines_of(svg: str) -> list[str]:
    """Return the lines of text in a picture."""
    rows: dict[float, str] = {}
    for x, y, said in re.findall(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        before = rows.get(float(y), "").ljust(round(float(x) / _CHARACTER))
        rows[float(y)] = before + html.unescape(said).replace("\xa0", " ")
    return [row.rstrip() for _, row in sorted(rows.items())]
