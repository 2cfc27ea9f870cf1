"""Draw the pictures of the tutorial: `python docs/pictures.py` writes them, `--check` compares them with the files."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "pictures"
LOGITS, TARGET = (3.0, 1.0, -3.0), 0  # the example of the tutorial and of `crossent explain`
BLUE, ORANGE = "#0072b2", "#d55e00"  # Okabe and Ito's colours, which differ for every eye
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossent",  # the same file in every run
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the probabilities of a row of logits."""
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def bars(panel: Axes, values: Sequence[float], title: str, written: str) -> None:
    """Draw a bar for each class, with its number at the end. The bar of the true class has another colour."""
    colours = [ORANGE if c == TARGET else BLUE for c in range(len(values))]
    panel.bar(range(len(values)), values, 0.6, color=colours)
    for c, value in enumerate(values):
        below = value < 0
        panel.text(c, value, written.format(value), ha="center", va="top" if below else "bottom")
    panel.set_xticks(range(len(values)), [f"class {c}" for c in range(len(values))])
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_title(title, fontsize=9.5)


def draw_softmax(figure: Figure) -> None:
    """Draw the logits of the example beside their probabilities."""
    left, right = figure.add_axes((0.07, 0.12, 0.4, 0.74)), figure.add_axes((0.57, 0.12, 0.4, 0.74))
    bars(left, LOGITS, "logits", "{:g}")
    left.set_ylim(-3.8, 3.8)
    bars(right, softmax(LOGITS), "probabilities", "{:.4f}")
    right.set_ylim(0, 1.1)


def draw_loss(figure: Figure) -> None:
    """Draw the loss against the probability of the true class."""
    panel = figure.add_axes((0.1, 0.16, 0.86, 0.78))
    steps = [at / 400 for at in range(4, 401)]
    panel.plot(steps, [-math.log(p) for p in steps], color=BLUE)
    for p, side in ((softmax(LOGITS)[TARGET], "right"), (0.5, "left"), (0.1, "left"), (1 / 3, "left")):
        panel.plot([p], [-math.log(p)], "o", color=ORANGE)
        at = (p + 0.02 if side == "left" else 1.0, -math.log(p) + (0.08 if side == "left" else 0.26))
        panel.text(*at, f"p = {p:.2f}: loss {-math.log(p):.3f}", ha=side, va="bottom")
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 4.6)
    panel.set_xlabel("probability of the true class, p")
    panel.set_ylabel("loss, -log p")


def draw_twice(figure: Figure) -> None:
    """Draw the probabilities of the example after one softmax and after two."""
    once = softmax(LOGITS)
    twice = softmax(once)
    left, right = figure.add_axes((0.07, 0.12, 0.4, 0.72)), figure.add_axes((0.57, 0.12, 0.4, 0.72))
    bars(left, once, f"softmax once: loss {-math.log(once[TARGET]):.4f}", "{:.4f}")
    bars(right, twice, f"softmax twice: loss {-math.log(twice[TARGET]):.4f}", "{:.4f}")
    for panel in (left, right):
        panel.set_ylim(0, 1.1)


def draw_limit(figure: Figure) -> None:
    """Draw the loss against the logit of the true class, with one softmax and with two."""
    panel = figure.add_axes((0.1, 0.16, 0.86, 0.78))
    logits = [at / 10 for at in range(-80, 121)]
    rows = [softmax((x, 0.0, 0.0)) for x in logits]
    panel.plot(logits, [-math.log(p[0]) for p in rows], color=BLUE, label="one softmax")
    panel.plot(logits, [-math.log(softmax(p)[0]) for p in rows], "--", color=ORANGE, label="two")
    panel.text(-5.2, 6.3, "one softmax: a wrong row costs much", color=BLUE, va="bottom")
    panel.text(12, 0.75, "two: always 0.55 to 1.46", color=ORANGE, ha="right", va="bottom")
    panel.set_xlim(-8, 12)
    panel.set_ylim(0, 9)
    panel.set_xlabel("logit of the true class; the two others are 0")
    panel.set_ylabel("loss")


PICTURES: dict[str, tuple[Callable[[Figure], None], float]] = {
    "softmax": (draw_softmax, 2.8),
    "loss": (draw_loss, 3.0),
    "twice": (draw_twice, 2.8),
    "limit": (draw_limit, 3.0),
}


def draw(folder: Path) -> None:
    """Write every picture into the folder."""
    for name, (drawn, height) in PICTURES.items():
        with rc_context(STYLE):
            figure = Figure(figsize=(5.4, height))
            drawn(figure)
            path = folder / f"{name}.svg"
            figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def stale() -> list[str]:
    """Return the names of the files that differ from what this module draws."""
    with tempfile.TemporaryDirectory() as made:
        draw(Path(made))
        names = {file.name for folder in (FOLDER, Path(made)) for file in folder.glob("*.svg")}
        return sorted(name for name in names if _bytes(FOLDER / name) != _bytes(Path(made) / name))


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if found := stale():
            sys.exit(f"files that docs/pictures.py draws otherwise: {', '.join(found)}; run `python docs/pictures.py`")
    else:
        draw(FOLDER)
