"""The command `crossent`: read options, call the package, and turn results into output and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from crossent import choices, options
from crossent.choices import CONTRACT_NAMES, DTYPE_NAMES, LEVELS, ContractName, DtypeName, GradeName, Level
from crossent.commands.explain import explain
from crossent.commands.merge import merge
from crossent.commands.reports import recorded, unreadable
from crossent.commands.soak import soak
from crossent.files import chosen_files, say_error, write_all
from crossent.option_types import Word
from crossent.options import FAILED, INTERRUPTED, NOT_WRITTEN, NOTHING_RAN, PASSED, WRONG_USE, as_click_errors
from crossent.words import printable, quoted

if TYPE_CHECKING:
    from crossent.report.moves.diff import Diff

# Each command imports its modules when it runs, so that `crossent --help` and a wrong option need no import of torch.

_LISTS = ("subjects", "checks", "cases", "features", "contracts", "bugs")  # the words that `crossent list` takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command on `arguments`, by default `sys.argv[1:]`, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of a traceback
    with suppress(ValueError):  # outside the main thread, Python sets no handler
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = crossent.main(arguments, prog_name="crossent", standalone_mode=False)
    except click.ClickException as error:
        words = sys.argv[1:] if arguments is None else arguments
        say_error(f"crossent: {options.shortened(options.message_of(error), words)}")
        if isinstance(error, click.UsageError):  # the help does not explain a damaged file
            command = ["crossent", *(word for word in words[:1] if word in crossent.commands)]
            say_error(f"Try '{' '.join(command)} --help'.")
        return WRONG_USE
    except (click.Abort, KeyboardInterrupt):
        say_error("crossent: interrupted")
        return INTERRUPTED
    except SystemExit as end:  # click raises SystemExit after a completion, and if the output is a closed pipe
        return NOT_WRITTEN if end.code else PASSED
    except OSError as error:
        # The output cannot be written, for example because a pipe is closed: write nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say_error(f"crossent: the output cannot be written: {error.strerror}")
        return NOT_WRITTEN
    return status if isinstance(status, int) else PASSED


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
@click.version_option(None, "-V", "--version", package_name="crossent", message="crossent %(version)s")
def crossent(context: click.Context) -> int:
    """Check implementations of cross-entropy, such as torch.nn.CrossEntropyLoss, against the exact value."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        return WRONG_USE
    return PASSED


@crossent.command(short_help="Check your cross-entropy function, torch, or the forms.")
@click.argument("subjects", metavar="[SUBJECT ...]", nargs=-1, shell_complete=choices.complete_subject)
@options.check_options
@options.verbosity
@options.report_files
def check(
    subjects: tuple[str, ...],
    device: str,
    dtypes: tuple[DtypeName, ...],
    level: Level,
    seed: int | str | None,
    without: tuple[str, ...],
    contract: ContractName | None,
    grade: GradeName | None,
    expected_findings: str | None,
    jobs: int | None,
    timeout: float,
    baseline_file: str | None,
    strict: bool,
    force: bool,
    json_file: str | None,
    html_file: str | None,
    no_cache: bool,
    dask: str | None,
    shards: int | None,
    verbose: int,
    quiet: bool,
    **part: Any,
) -> int:
    """Check each SUBJECT against the exact value. Without a SUBJECT, check the forms and torch.

    A SUBJECT is your function, torch, or a form of this package (formula, log_softmax_nll, one_hot, blocked, scalar,
    fused, linear_formula or linear_blocked). torch stands for nn.CrossEntropyLoss, and for log_softmax with nll_loss.

    Your function is path/to/file.py:NAME or package.module:NAME. NAME is a function with the signature of
    F.cross_entropy, or a class with the constructor of nn.CrossEntropyLoss. With --operation linear_cross_entropy, NAME
    has the signature of F.linear_cross_entropy. SUBJECT+compile is the subject after torch.compile.

    The cases combine the options of the loss, and repeat inputs of published bugs. Loss and gradients must be within
    error bounds. Bad input must raise torch's class of error. Your functions run in isolated processes.

    \b
    Exit status:
      0    all checks passed
      1    a check failed; or a check gives no evidence in a dtype, because a
           wrong result, such as zeros, would pass on every case;
           or no case ran on a subject; or no check of --check ran;
           or --baseline shows a change for which `crossent diff` exits with 1
      2    wrong use
      3    nothing ran; or, with --baseline, nothing was compared
      130  interrupted
      141  the output cannot be written

    With --check, --case or --last-failed, no evidence is needed, and one subject with a case is enough. With --shard, 0
    means only that no check failed in the shard. `crossent merge` gives the verdict on the run.
    """  # noqa: D301  # click reads the escape: it keeps the lines of the list
    files = chosen_files(json_file, html_file)
    if (strict or force) and baseline_file is None:
        raise click.UsageError("--strict and --force compare with a baseline: add --baseline FILE")
    if shards is not None and dask is None:
        raise click.UsageError("--shards is the number of shards on Dask: add --dask ADDRESS, or use --shard I/N")
    if baseline_file is not None and part["shard"] is not None:
        raise click.UsageError("--baseline compares a whole run: leave out --shard, and compare the merged report")
    from rich.text import Text

    from crossent.console import Output, progress, warn_of_grade
    from crossent.machine import cores
    from crossent.report.last_findings import keep
    from crossent.report.moves.diff import diff as diff_of
    from crossent.run.runner import Interrupted
    from crossent.run.runner import check as run_check
    from crossent.run.settings import Settings, operation_of
    from crossent.run.shards.cluster import check_on_dask
    from crossent.run.verify import require_comparable
    from crossent.subjects.ranks.job import join_job

    with as_click_errors():
        join_job(part["ranks"])
    old = None if baseline_file is None else recorded(baseline_file, "--baseline")
    subjects, lacking = options.with_features(subjects, without)
    if seed is None and old is not None:
        seed = old.seed  # a run with another seed cannot be compared
    seed = options.chosen_seed(seed, subjects, part["shard"])
    if contract is None and old is not None:
        contracts = [name for name in CONTRACT_NAMES if any(one.contract == name for one in old.subjects)]
        contract = contracts[0] if len(contracts) == 1 else None
    warn_of_grade(subjects, contract, grade)
    status, chosen = None, options.chosen_part(subjects, on_dask=dask is not None, **part)
    if old is not None and not force:
        with as_click_errors():  # before the run, which takes long
            some = {**chosen, "operation": operation_of(subjects, chosen["operation"])}
            require_comparable(old, Settings(device, dtypes or DTYPE_NAMES, level, seed, **some), subjects)
    with as_click_errors():
        try:
            here = partial(run_check, jobs=jobs or cores())
            runs = here if dask is None else partial(check_on_dask, dask, shards=shards, jobs=jobs or 1)
            report = runs(
                *subjects,
                device=device,
                dtypes=dtypes or DTYPE_NAMES,
                level=level,
                seed=seed,
                without=lacking,
                contract=contract,
                grade=grade,
                expected_findings=expected_findings,
                timeout=timeout,
                progress=progress,
                **chosen,
            )
        except Interrupted as interrupt:
            say_error("crossent: interrupted")
            report, status = interrupt.report, INTERRUPTED
    if not no_cache and report.shard is None:
        keep(report, subjects, chosen["operation"])
    Output().show(report.render(-1 if quiet else verbose))
    if not write_all(files, {"--json": report.write_json, "--html": report.write_html}):
        return NOT_WRITTEN
    if status is not None:
        return status
    if not report.ran and report.shard is None:
        return NOTHING_RAN
    if old is None:
        return PASSED if report.ok else FAILED
    with as_click_errors():
        moved = diff_of(old, report, force=force)
    Output().show([Text(), *moved.render()])
    return _status(moved, strict) if report.ok else FAILED


def _status(moved: Diff, strict: bool) -> int:
    """Return the exit status for a comparison of two runs. If `strict`, "worse within bounds" also fails."""
    if not moved.compared:
        return NOTHING_RAN
    return PASSED if (moved.strictly_ok if strict else moved.ok) else FAILED


@crossent.command("diff", short_help="Compare two reports, for example of two versions of torch.")
@click.argument("old", type=click.Path(exists=True, dir_okay=False))
@click.argument("new", type=click.Path(exists=True, dir_okay=False))
@click.option("--strict", is_flag=True, help='Also fail on "worse within bounds", such as an error that doubled.')
@click.option("--force", is_flag=True, help="Also compare runs of different devices, processors or seeds.")
@options.report_files
def diff(old: str, new: str, strict: bool, force: bool, json_file: str | None, html_file: str | None) -> int:
    """Compare two reports that `crossent check --json` wrote. No check runs.

    The command compares each check on each case, if the case has the same input in both reports. Three kinds of change
    fail: regression, newly refused and changed behaviour. Regression means that the check of a result fails in NEW, but
    not in OLD. Newly refused means that the call now raises an error. Changed behaviour is another shape, dtype, kind
    of value or class of error. Other results are, for example, worse within bounds, fixed and same bits.

    Exit status: 0: no change of the three kinds. 1: a change of the three kinds; with --strict, also worse within
    bounds. 2: wrong use, or incomparable reports. 3: with --force, nothing was compared. 141: the output cannot be
    written.
    """
    files = chosen_files(json_file, html_file)
    from crossent.console import Output
    from crossent.report.moves.diff import diff as diff_of

    with as_click_errors():
        made = diff_of(recorded(old, "OLD"), recorded(new, "NEW"), files=(old, new), force=force)
    Output().show(made.render())
    if not write_all(files, {"--json": made.write_json, "--html": made.write_html}):
        return NOT_WRITTEN
    return _status(made, strict)


@crossent.command(short_help="Run the cases of a report again, and compare the results.")
@click.argument("report", type=click.Path(exists=True, dir_okay=False))
@click.argument("subjects", metavar="[SUBJECT ...]", nargs=-1, shell_complete=choices.complete_subject)
@options.run_options
@click.option("--force", is_flag=True, help="Run even if versions or machine differ from those in the report.")
def verify(
    report: str,
    subjects: tuple[str, ...],
    expected_findings: str | None,
    jobs: int | None,
    timeout: float,
    force: bool,
) -> int:
    """Run the cases of a REPORT again, and compare the bits and the verdict of each result with the report.

    REPORT is a file that `crossent check --json` wrote. The level, the seed, the device, the contract and the other
    options that change results come from the REPORT, except --expected-findings and --timeout.

    SUBJECT names your function, as in `crossent check`. If the REPORT has results of your function, SUBJECT is
    required, since a report cannot choose code to run.

    Exit status: 0: every result equals the result in the report, findings included. 1: a result differs. 2: wrong use,
    or a report that cannot be verified here. 130: interrupted. 141: the output cannot be written.
    """
    from rich.text import Text

    from crossent.console import Output, progress
    from crossent.machine import cores
    from crossent.run.verify import verify as verification

    with as_click_errors():
        made = verification(
            recorded(report, "REPORT"),
            subjects,
            file=report,
            expected_findings=expected_findings,
            jobs=jobs or cores(),
            timeout=timeout,
            force=force,
            progress=progress,
        )
    Output().show(Text(printable(line)) for line in made.lines)
    return PASSED if made.ok else FAILED


@crossent.command("list", short_help="List subjects, checks, cases, features, contracts or bugs.")
@click.argument("what", metavar="|".join(_LISTS), type=Word(_LISTS))
@click.option("--level", type=Word(LEVELS), default="normal", show_default=True, help="List the cases of this level.")
@options.listed_operation
def list_(what: str, level: str, operation: str | None) -> None:
    """List subjects, checks, cases, features, contracts or bugs.

    \b
    subjects   the functions that `check` takes by name, with their operation
    checks     the properties that are tested on a case
    cases      the ids of the cases of a level
    features   the abilities that a subject may lack; see `check --without`
    contracts  promises about arithmetic; choose one with `check --contract`
    bugs       published bugs; the cases that trigger each bug, or why none can
    """  # noqa: D301  # click reads the escape: it keeps the lines of the list
    from crossent.console import listed

    click.echo("\n".join(listed(what, level, operation)))


@crossent.command()
@click.argument("finding")
@click.argument("report", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--device", help="Device, without a REPORT: cpu, cuda, cuda:N, xpu, xpu:N or mps.  [default: cpu]")
@click.option("--passed", is_flag=True, help="Repeat a check that passes; show its number nearest to the error bound.")
@click.option("--held", is_flag=True, hidden=True, help="The former name of --passed.")
@click.option("--subject", "source", default="", metavar="SUBJECT", help="Your function, which the script imports.")
@options.promises
def repro(
    finding: str, report: str | None, device: str | None, passed: bool, held: bool, source: str, **promises: Any
) -> None:
    """Print a script that repeats a FINDING.

    FINDING is SUBJECT:CHECK:CASE, as `crossent check` prints it. REPORT is a file that `crossent check --json` wrote.
    Without a REPORT, the finding comes from the last runs in this folder. The check runs again if these runs do not
    have the finding, or if --device or --passed is given. To run the check again on your function, give --subject.

    A script for torch needs torch alone, and a script for a form also needs crossent. A script for your function needs
    torch alone, and marks where to insert your function. With --subject, the script imports your function, and also
    needs crossent. The script exits with 1 if the finding happens, 0 if not, and 2 if the script cannot tell.

    With --passed, FINDING names a check that passes on a form or on torch. The script shows the number nearest to its
    error bound, and exits with 0 if this number is within the bound. You cannot combine --passed with a REPORT or with
    --subject.
    """
    if report is not None and device is not None:
        raise click.UsageError(f"--device: got {quoted(device)} and a REPORT, which sets the device; give only one")
    if (passed := passed or held) and (report is not None or source):
        raise click.UsageError("--passed runs a form or torch here: leave out the REPORT and --subject")
    from crossent.repro.rerun import script_of

    with as_click_errors():
        try:
            text = script_of(finding, report, device=device, passed=passed, source=source, **promises)
        except OSError as error:
            raise unreadable(str(report), "REPORT", error) from None
    click.echo(text, nl=False)


for _command in (explain, merge, soak):
    crossent.add_command(_command)
