"""The command `crossent`: a thin door."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any

import click
from rich.console import Console
from rich.constrain import Constrain
from rich.progress import track
from rich.text import Text

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.checks import CHECKS
from crossent.checks.refusals import ERRORS
from crossent.console import Output, chosen_files, write
from crossent.forms import explain as explanation
from crossent.forms.explain import SEED_LOGITS, SEED_TARGET, random_row
from crossent.report.moves.diff import diff as diff_of
from crossent.report.reader import find, read_json, read_report
from crossent.report.report import Report
from crossent.repro.script import nearest_to_bound as holding
from crossent.repro.script import repeated, script
from crossent.run.plan import LEVELS, plan
from crossent.run.runner import Interrupted
from crossent.run.runner import check as run_check
from crossent.subjects.builtin import NAMED
from crossent.subjects.features import FEATURES
from crossent.words import printable

LISTS = ("subjects", "checks", "cases", "features", "bugs")
# 32 bits: what numpy's and torch's generators both take.
SEED_OPTION = click.IntRange(0, 2**32 - 1)
# Two of them by the shell's habit: 128 and the number of the signal, SIGINT and SIGPIPE.
HELD, FINDINGS, WRONG_USE, NOTHING_RAN, INTERRUPTED, NOT_WRITTEN = 0, 1, 2, 3, 130, 141


class Seed(click.ParamType):  # type: ignore[type-arg]  # which click 8.1 does not have
    """A seed, or the word for one that nobody knows."""

    name = "integer or random"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        """The number, or the word."""
        return value if value == "random" else SEED_OPTION.convert(value, parameter, context)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; wrong use is one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" and not a traceback
    with suppress(ValueError):  # not in the main thread, where nobody's signal comes
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = crossent.main(arguments, prog_name="crossent", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"crossent: {printable(' '.join(error.format_message().split()))}", err=True)
        return WRONG_USE
    except (click.Abort, KeyboardInterrupt):
        click.echo("crossent: interrupted", err=True)
        return INTERRUPTED
    except SystemExit:  # click's own, where its output met a closed pipe
        return NOT_WRITTEN
    except OSError as error:
        # Whoever read the output has gone, or it cannot be written: nothing more of it, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            click.echo(f"crossent: the output cannot be written: {error.strerror}", err=True)
        return NOT_WRITTEN
    return status if isinstance(status, int) else HELD


@click.group(no_args_is_help=False, invoke_without_command=True)
@click.pass_context
@click.version_option(version("crossent"), message="crossent %(version)s")
def crossent(context: click.Context) -> int:
    """Cross-entropy by hand, held to torch.nn.CrossEntropyLoss on this machine's torch."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return WRONG_USE
    return HELD


@crossent.command(short_help="Hold a cross-entropy to the exact answer: the forms, torch, or your own.")
@click.argument("subjects", metavar="[SUBJECT ...]", nargs=-1)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(list(DTYPES)),
    help="Of the logits; may be given again. All four unless given.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="normal",
    show_default=True,
    help="How much is asked: seconds, a minute, or what takes long.",
)
@click.option(
    "--seed",
    type=Seed(),
    help="Other numbers for the same options; random is a seed that nobody knows before the end."
    "  [default: random for your own, else 0]",
)
@click.option(
    "--without",
    metavar="FEATURE ...",
    multiple=True,
    help="What the subjects do without, and are not asked: `crossent list features`.",
)
@click.option(
    "--grade",
    type=click.Choice(["A", "B"]),
    default="A",
    show_default=True,
    help="What your own must reach in half precision: float32 inside (A), or that precision itself (B).",
)
@click.option(
    "--expected-findings",
    metavar="FILE",
    help="What is known to be wrong and why, written as crossent's own torch_findings.toml: shown, and no failure.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 1024), help="How many processes share the cases. As many as there are cores."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds for a case, after which a subject is said to hang.",
)
@click.option(
    "--baseline",
    "baseline_file",
    type=click.Path(exists=True, dir_okay=False),
    help="A report that --json wrote before: show what has moved since, and fail where `crossent diff` would.",
)
@click.option("--strict", is_flag=True, help="With --baseline, as for `crossent diff`.")
@click.option("--force", is_flag=True, help="With --baseline, as for `crossent diff`.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the whole report to this file.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False), help="Write a page for a browser to this file.")
def check(
    subjects: tuple[str, ...],
    device: str,
    dtypes: tuple[str, ...],
    level: str,
    seed: int | str | None,
    without: tuple[str, ...],
    grade: str,
    expected_findings: str | None,
    jobs: int | None,
    timeout: float,
    baseline_file: str | None,
    strict: bool,
    force: bool,
    json_file: str | None,
    html_file: str | None,
) -> int:
    """Hold each SUBJECT to the exact answer: the forms and torch when none is named.

    Compared are the loss and the gradients, over combinations of the options in which every three meet, and over inputs
    that bit somebody; bad input must be refused. A SUBJECT is formula, log_softmax_nll, one_hot, blocked, scalar, or
    torch: nn.CrossEntropyLoss, and the pair of log_softmax and nll_loss. Or it is your own: package.module:NAME or
    path/to/file.py:NAME, of a callable with the signature of F.cross_entropy, or of a class with the constructor of
    nn.CrossEntropyLoss. With +compile behind it, it is what torch.compile makes of it.

    Your own lives in processes of its own, which see inputs and no answers.

    Exit status: 0 all held, 1 findings, or a move from the baseline that breaks, 2 wrong use, 3 nothing ran, 130
    interrupted.
    """
    files = chosen_files(json_file, html_file)
    if (strict or force) and baseline_file is None:
        raise click.UsageError("--strict and --force are about --baseline")
    old = None if baseline_file is None else _recorded(baseline_file)  # before what takes long
    # `--without weight vmap`: what comes behind the first is no subject, which no feature's name is.
    more = [name for name in subjects if without and name in FEATURES]
    if seed is None and old is not None:
        seed = old.seed  # or nothing could be compared
    elif seed is None:
        seed = 0 if all(name in NAMED for name in subjects) else "random"
    status = None
    with _one_line():
        chosen = dtypes or tuple(DTYPES)
        try:
            report = run_check(
                *(name for name in subjects if name not in more),
                device=device,
                dtypes=chosen,
                level=level,
                seed=seed,
                without=[*without, *more],
                grade=grade,
                expected_findings=expected_findings,
                jobs=jobs or _cores(),
                timeout=timeout,
                progress=_progress,
            )
        except Interrupted as interrupt:
            click.echo("crossent: interrupted", err=True)
            report, status = interrupt.report, INTERRUPTED
    Output().show(report.render())
    if not write(files, {"--json": report.write_json, "--html": report.write_html}):
        return NOT_WRITTEN
    if status is not None:
        return status
    if not report.ran:
        return NOTHING_RAN
    held = report.ok
    if old is not None:
        with _one_line():
            moved = diff_of(old, report, force=force)
        Output().show([Text(), *moved.render()])
        held = held and (moved.strictly_ok if strict else moved.ok)
    return HELD if held else FINDINGS


def _recorded(path: str) -> Report:
    """The run of a file, which may have none."""
    with _one_line():
        try:
            return read_report(path)
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None


def _cores() -> int | None:
    """How many this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@crossent.command("diff", short_help="What moved between two reports, as of two versions of torch.")
@click.argument("old", type=click.Path(exists=True, dir_okay=False))
@click.argument("new", type=click.Path(exists=True, dir_okay=False))
@click.option("--strict", is_flag=True, help="Fail where an error became much larger within its bound, too.")
@click.option("--force", is_flag=True, help="Compare runs that say little about each other, as of two devices.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write every move to this file.")
@click.option("--html", "html_file", type=click.Path(dir_okay=False), help="Write a page for a browser to this file.")
def diff(old: str, new: str, strict: bool, force: bool, json_file: str | None, html_file: str | None) -> int:
    """What moved from OLD to NEW, two files that `crossent check --json` wrote. Nothing is run.

    Compared is each check of each case that both have, on the same bits: the same bits came, or others within the
    bounds, or it broke, was mended, is newly refused or accepted, or promises something else.

    Exit status: 0 where nothing broke, is newly refused, or changed its contract; 1 where something did; 2 for wrong
    use, and where the two cannot be compared.
    """
    files = chosen_files(json_file, html_file)
    with _one_line():
        made = diff_of(_recorded(old), _recorded(new), files=(old, new), force=force)
    Output().show(made.render())
    if not write(files, {"--json": made.write_json, "--html": made.write_html}):
        return NOT_WRITTEN
    return HELD if (made.strictly_ok if strict else made.ok) else FINDINGS


@crossent.command("list")
@click.argument("what", metavar="|".join(LISTS), type=click.Choice(LISTS))
@click.option("--level", type=click.Choice(LEVELS), default="normal", show_default=True, help="Of the cases.")
def list_(what: str, level: str) -> None:
    """List what there is: subjects, checks with what they ask, the cases of a level, features, or bugs.

    A feature is what a subject may do without, as --without declares it.

    Bugs are those that somebody shipped: its number, what went wrong and where, and the cases that stand for it, or why
    none can.
    """
    if what == "subjects":
        lines = list(NAMED)
    elif what == "checks":
        width = max(map(len, CHECKS))
        lines = [f"{name:<{width}}  {check.sentence}" for name, check in CHECKS.items()]
        lines.append(f"{'errors':<{width}}  {ERRORS}")
    elif what == "features":
        width = max(map(len, FEATURES))
        lines = [f"{name:<{width}}  {feature.sentence}" for name, feature in FEATURES.items()]
    elif what == "cases":
        lines = [case.id for case in plan(level, tuple(DTYPES), 0)]
    else:
        lines = list(map(str, bugs()))
    click.echo("\n".join(lines))


@crossent.command()
@click.argument("finding")
@click.argument("report", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--device", help="Where the case is run: cpu, cuda or cuda:N.  [default: cpu, or the report's]")
@click.option("--held", is_flag=True, help="Of what holds: the number nearest to its bound.")
def repro(finding: str, report: str | None, device: str | None, held: bool) -> None:
    """Print a script that repeats a FINDING with torch and nothing else.

    It exits with 1 where the finding happens, 0 where not, and 2 where that cannot be asked.

    FINDING is SUBJECT:CHECK:CASE, as `crossent check` prints it; REPORT is the file that --json wrote. Without it the
    case is run here.
    """
    if report is not None and device is not None:
        raise click.UsageError("--device is for a case that is run here: a report says where a finding was made")
    if report is not None and held:
        raise click.UsageError("--held is for a case that is run here")
    with _one_line():
        if report is None:
            here = device or "cpu"
            text = script((holding if held else repeated)(finding, here), here, held=held)
        else:
            try:
                document = read_json(report)
            except OSError as error:
                raise ValueError(f"{report}: {error.strerror}") from None
            found, digest = find(document, finding)
            text = script(found, document["environment"]["device"], digest)
    click.echo(text, nl=False)


@crossent.command()
@click.option("--logits", help="The numbers of one row, separated by commas.  [default: 3,1,-3]")
@click.option("--target", type=int, help="The true class.  [default: 0]")
@click.option("--random", is_flag=True, help="A random row and a random label instead.")
@click.option("--classes", type=click.IntRange(1, 1_000_000), help="How many, with --random.  [default: 5]")
@click.option("--seed", type=SEED_OPTION, help="Of the random row.  [default: 0]")
def explain(logits: str | None, target: int | None, random: bool, classes: int | None, seed: int | None) -> None:
    """Walk through the loss of one row, step by step."""
    if random and (logits is not None or target is not None):
        raise click.UsageError("--random draws the logits and the target: give it without --logits and --target")
    if (logits is None) != (target is None):
        raise click.UsageError("--logits and --target go together: the class of one row says nothing of another")
    if not random and (classes is not None or seed is not None):
        raise click.UsageError("--classes and --seed belong to --random")
    if random:
        row, label = random_row(classes or 5, seed or 0)
    else:
        row, label = SEED_LOGITS, SEED_TARGET
        if logits is not None and target is not None:
            row, label = _numbers(logits), target
    with _one_line():
        text = explanation.explain(row, label)
    console = Output()
    console.show([Constrain(text, min(console.width, 100))])


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"got {text!r}; allowed are numbers separated by commas, as in 3,1,-3", param_hint="--logits"
        ) from None


@contextmanager
def _one_line() -> Iterator[None]:
    """The errors that the package raises for bad input become one line of wrong use."""
    try:
        yield
    except (ValueError, IndexError, TypeError, RuntimeError, MemoryError) as error:
        raise click.UsageError(str(error)) from None


def _progress(cases: Sequence[Case | BadInput]) -> Iterator[Case | BadInput]:
    """A bar on stderr, gone at the end; none where stderr is no terminal."""
    console = Console(stderr=True)
    yield from track(cases, description="checking", console=console, transient=True, disable=not console.is_interactive)
