"""The command `crossent explain`: the loss of one row, step by step."""

from __future__ import annotations

from typing import Any

import click

from crossent.option_types import SEED_NUMBER, Row, Whole
from crossent.options import as_click_errors


@click.command()
@click.option("--logits", type=Row(), metavar="TEXT", help="Logits of one row, separated by commas.  [default: 3,1,-3]")
@click.option("--target", type=int, help="True class.  [default: 0]")
@click.option(
    "--random",
    is_flag=True,
    help="Draw the logits and the true class at random. With --linear, draw the hidden state and the layer instead of "
    "the logits.",
)
@click.option("--classes", type=Whole(1, 1_000_000), help="Number of classes, with --random.  [default: 5]")
@click.option("--seed", type=SEED_NUMBER, help="Seed of the random row.  [default: 0]")
@click.option(
    "--linear",
    is_flag=True,
    help="Also show the last layer, which computes the logits, and the gradients of this layer.",
)
def explain(logits: Any, target: int | None, random: bool, classes: int | None, seed: int | None, linear: bool) -> None:
    """Explain the loss of one row, step by step."""
    if linear and (logits is not None or target is not None):
        raise click.UsageError(
            "--linear computes the logits of its own example, with its own target: leave out --logits and --target"
        )
    if random and (logits is not None or target is not None):
        raise click.UsageError("--random draws the logits and the target: leave out --logits and --target")
    if (logits is None) != (target is None):
        raise click.UsageError("--logits and --target go together: give both or neither")
    if not random and (classes is not None or seed is not None):
        raise click.UsageError("--classes and --seed are about a random row: add --random")
    from rich.constrain import Constrain

    from crossent.console import Output
    from crossent.forms.explain import explain as explain_row
    from crossent.forms.explain import random_row
    from crossent.forms.explain_linear import explain_linear, random_layer

    explained: Any = explain_linear if linear else explain_row
    drawn: Any = random_layer if linear else random_row
    row = drawn(classes or 5, seed or 0) if random else () if logits is None else (logits, target)
    with as_click_errors():
        text = explained(*row)
    console = Output()
    console.show([Constrain(text, min(max(console.width, console.NARROWEST), 100))])
