"""Draw plots of time and memory, as SVG that you can read on a white and on a black page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.peers import LOSSES

# Okabe and Ito's colours, darkened for white and black pages. No plot has red beside green.
TONES = ("#808080", "#d55e00", "#b8860b", "#a8589b", "#0f86c1")
COLOURS = dict(zip(LOSSES, TONES, strict=True))
MARKERS = dict(zip(LOSSES, "os^Dv", strict=True))
INK = "#123456"  # a placeholder: `_adapt` replaces it with the reader's text colour
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossent",  # equal figures give equal files
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#80808055",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
}


def growth(kept: dict[str, Any], path: Path) -> None:
    """Plot time and memory against rows and classes, with a line of exponent 1 through torch's last point."""
    kinds = {"seconds": "seconds, forward and backward", "bytes": "bytes beyond the logits, at the peak"}
    axes = list(kept["exponents"])
    with rc_context(STYLE):
        figure = Figure(figsize=(8, 6.4))
        panels = figure.subplots(2, len(axes), sharex="col", sharey="row", squeeze=False)
        for column, axis in enumerate(axes):
            points = [point for point in kept["points"] if point["axis"] == axis]
            sizes = [point["size"] for point in points]
            for row, (kind, label) in enumerate(kinds.items()):
                panel = panels[row][column]
                for name in points[0]["found"]:
                    of = [point["found"][name] for point in points]
                    values = [one["seconds"]["median"] if kind == "seconds" else one["bytes"] for one in of]
                    fit = kept["exponents"][axis][name][kind][0]
                    shown = {"color": COLOURS.get(name), "marker": MARKERS.get(name, "x"), "markersize": 4}
                    panel.loglog(sizes, values, label=f"{name}, exponent {fit:.2f}", linewidth=1.4, **shown)
                last = points[-1]["found"]["torch"]
                end = last["seconds"]["median"] if kind == "seconds" else last["bytes"]
                linear = [end * size / sizes[-1] for size in sizes]
                panel.loglog(sizes, linear, ":", color=INK, linewidth=1, label="linear")
                panel.minorticks_off()
                panel.legend(fontsize=7.5, loc="upper left")
                if column == 0:
                    panel.set_ylabel(label)
            other = "classes" if axis == "rows" else "rows"
            panels[-1][column].set_xlabel(f"{axis}, at {kept['fixed']} {other}")
        figure.suptitle(kept["title"], fontsize=9)
        _save(figure, path)


def verifier(kept: dict[str, Any], path: Path) -> None:
    """Plot the seconds of `crossent check` against the number of cases."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3.6))
        panel = figure.subplots()
        for level, marker, colour in (("quick", "o", "#0f86c1"), ("normal", "s", "#d55e00")):
            of = sorted((one["cases"], one["seconds"]) for one in kept["whole"] if one["level"] == level)
            if of:
                cases, seconds = zip(*of, strict=True)
                panel.plot(cases, seconds, marker=marker, color=colour, label=f"level {level}", linewidth=1.4)
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("cases")
        panel.set_ylabel("seconds of crossent check formula")
        panel.legend(loc="upper left")
        figure.suptitle(kept["title"], fontsize=9)
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    path.write_text(_adapt(path.read_text(encoding="utf-8")), encoding="utf-8")


def _adapt(svg: str) -> str:
    """Return the SVG with text that is dark on a light page, light on a dark page, and grey in other programs."""
    style = "<style>:root{--ink:#24292f}@media(prefers-color-scheme:dark){:root{--ink:#e6edf3}}</style>"
    head, tag, rest = svg.partition("<defs>")
    lines = (head + style + tag + rest).replace(INK, "var(--ink,#808080)").splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"
