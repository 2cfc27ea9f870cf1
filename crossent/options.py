"""The options of the commands; the exit statuses; error messages of one line.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from crossent.choices import (
    CHECK_NAMES,
    CONTRACT_NAMES,
    DTYPE_NAMES,
    FEATURE_NAMES,
    GRADE_NAMES,
    LEVELS,
    MOST_SHARDS,
    OPERATION_NAMES,
    RANK_CHECK_NAMES,
    complete_case,
    complete_feature,
)
from crossent.files import say_error
from crossent.option_types import Positive, Seed, ShardOption, Whole, Word, Words
from crossent.words import LONGEST_VALUE, cut, printable, said

# INTERRUPTED and NOT_WRITTEN are as in a shell: 128 plus the number of the signal, which is SIGINT or SIGPIPE.
PASSED, FAILED, WRONG_USE, NOTHING_RAN, INTERRUPTED, NOT_WRITTEN = 0, 1, 2, 3, 130, 141


def shortened(message: str, arguments: Sequence[str]) -> str:
    """Return a message of click as one printable line, in which long command-line arguments are cut."""
    for argument in arguments:
        for word in (argument, argument.partition("=")[2]):  # `--option=word`
            for shown in (word, repr(word)[1:-1]):
                message = message.replace(shown, cut(word)) if len(shown) > LONGEST_VALUE else message
    return printable(" ".join(message.split()))


@contextmanager
def as_click_errors() -> Iterator[None]:
    """Turn errors of the package, such as ValueError, into errors of click, which the command prints in one line."""
    try:
        yield
    except (ValueError, IndexError, TypeError, RuntimeError, MemoryError, OSError) as error:
        text = said(error) if isinstance(error, OSError) else str(error) or said(error)  # a MemoryError has no text
        message = _with_dashes(text)
        raise (click.UsageError if message != text else click.ClickException)(message) from None


def _with_dashes(message: str) -> str:
    """Replace an argument at the start of a message by its option: `level: …` becomes `--level: …`."""
    name, colon, rest = message.partition(":")
    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context and colon else ():
        option = max(parameter.opts, key=len)
        if option.startswith("--") and name in (parameter.name, option[2:]):
            return f"{option}:{rest}"
    return message


def message_of(error: click.ClickException) -> str:
    """Return the message of an error of click. The name of a wrong option or argument comes first."""
    if type(error) is not click.BadParameter:
        return error.format_message()
    option = error.param_hint or ""
    if error.param is not None:
        argument = str(error.param.metavar).split()[0] if error.param.nargs == -1 else str(error.param.name).upper()
        option = max(error.param.opts, key=len) if isinstance(error.param, click.Option) else argument
    return f"{option}: {error.message}" if option else error.message


def _add_options(*options: Callable[[Any], Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `options` to a command, in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_device = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Device of the tensors: cpu, cuda, cuda:N, xpu, xpu:N or mps.",
)
_dtypes = click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=Word(DTYPE_NAMES),
    help="Dtype of the logits. Repeat the option for several.  [default: all four]",
)
_level = click.option(
    "--level",
    type=Word(LEVELS),
    default="normal",
    show_default=True,
    help="How many cases and checks run: quick takes seconds, normal minutes, thorough hours.",
)
_seed = click.option(
    "--seed",
    type=Seed(),
    help="Seed of the numbers in the cases, or random.  [default: random for your functions, 0 otherwise]",
)
# The options that say what the subjects promise.
promises = _add_options(
    click.option(
        "--without",
        metavar="FEATURE ...",
        multiple=True,
        shell_complete=complete_feature,
        help="Features that the subjects lack: see `crossent list features`. Cases and checks that need such a "
        "feature do not run, or expect another result.",
    ),
    click.option(
        "--contract",
        type=Word(CONTRACT_NAMES),
        help="What the subjects promise about their arithmetic: see `crossent list contracts`. If your function calls "
        "F.cross_entropy, choose torch.  [default: kernel; the forms and torch have their own]",
    ),
    click.option(
        "--grade",
        type=Word(GRADE_NAMES),
        help="How precisely the subjects compute in float16 and bfloat16. A: in float32 or wider, with one rounding "
        "at the end. B: in the dtype itself. float16=B: B in float16 only.  [default: A; with --contract torch: B]",
    ),
)
run_options = _add_options(
    click.option(
        "--expected-findings",
        metavar="FILE",
        help="TOML file of known failures with reasons. These failures are in the report, but do not fail the run.",
    ),
    click.option("--jobs", type=Whole(1, 1024), help="Number of worker processes.  [default: the number of cores]"),
    click.option(
        "--timeout",
        type=Positive(),
        default=300.0,
        show_default=True,
        help="Limit in seconds for all calls of a subject on one case. A case that takes longer is a finding (hung).",
    ),
)
_baseline = _add_options(
    click.option(
        "--baseline",
        "baseline_file",
        type=click.Path(exists=True, dir_okay=False),
        help="Report of an earlier run (--json). Show the changes since the earlier run, and exit with 1 on a "
        "regression, as `crossent diff` does. Cases and checks that only one of the runs has are not compared. "
        "The earlier report gives the defaults of --seed and, if that report has only one contract, of --contract.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help='With --baseline: also fail on "worse within bounds", such as an error that more than doubled.',
    ),
    click.option(
        "--force", is_flag=True, help="With --baseline: also compare runs of different devices, processors or seeds."
    ),
)
_operation = click.option(
    "--operation",
    type=Word(OPERATION_NAMES),
    help="Function of torch that the subjects compute.  [default: the function that a given form or loss of torch "
    "computes, otherwise cross_entropy]",
)
_ranks = click.option(
    "--ranks",
    metavar="N",
    type=Whole(1, 64),
    help="Number of ranks, for a loss on several ranks. Ranks are processes that each have a part of the logits.",
)
listed_operation = click.option(
    "--operation",
    type=Word(OPERATION_NAMES),
    help="Function of torch that the lists are about.  [default: all; for checks and cases, cross_entropy]",
)
_shard = click.option(
    "--shard",
    type=ShardOption(MOST_SHARDS),
    metavar="I/N",
    help="Divide the cases into N shards of about equal cost, and run only shard I, such as 2/8. "
    "`crossent merge` makes the report of the run from the reports of all shards.",
)
# The options that choose a part of a run.
_part = _add_options(
    click.option(
        "--check",
        "checks",
        metavar="NAME[,NAME ...]",
        multiple=True,
        type=Words((*CHECK_NAMES, *RANK_CHECK_NAMES)),
        help="Run only these checks: see `crossent list checks`. `call` and `result` always run too. Repeatable.",
    ),
    click.option(
        "--case",
        "cases",
        metavar="ID_OR_PATTERN",
        multiple=True,
        shell_complete=complete_case,
        help="Run only this case. A full id runs at any level. A pattern such as '*smooth0.1*' selects cases of the "
        "level, and need not match the seed at the end of an id. Repeatable.",
    ),
    click.option(
        "--last-failed",
        is_flag=True,
        help="Run only the checks and cases that failed in the last run on these subjects in this folder. If none "
        "failed, run everything.",
    ),
    click.option("-x", "--exitfirst", is_flag=True, help="Stop at the first finding, as with --max-findings 1."),
    click.option(
        "--max-findings",
        metavar="N",
        type=Whole(1),
        help="Stop after this many findings. Known failures do not count.",
    ),
    _shard,
    click.option("--no-cache", is_flag=True, help="Do not store the findings for --last-failed and `crossent repro`."),
)

verbosity = _add_options(
    click.option(
        "-v",
        "--verbose",
        count=True,
        help="Show a table by check, all causes and known failures. -vv also shows the id of each finding, and each "
        "reason why something did not run.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Show only the verdict."),
)
_FILE = click.Path(dir_okay=False)
report_files = _add_options(
    click.option("--json", "json_file", type=_FILE, help="Write the whole report to this file, as JSON."),
    click.option("--html", "html_file", type=_FILE, help="Write the report to this file, as an HTML page."),
)
_engine = _add_options(
    click.option(
        "--dask",
        metavar="ADDRESS",
        help="Run shards on the workers of this Dask scheduler, such as tcp://HOST:8786, and merge their reports. "
        "A shard has one worker process, or as many as --jobs says.",
    ),
    click.option(
        "--shards",
        type=Whole(1, MOST_SHARDS),
        metavar="N",
        help="With --dask: the number of shards.  [default: two for each thread of the workers]",
    ),
)
check_options = _add_options(
    _operation, _ranks, _device, _dtypes, _level, _seed, promises, run_options, _part, _engine, _baseline
)
soak_options = _add_options(
    click.option("--cases", type=Whole(1, 2**32), required=True, help="Number of random cases in each dtype."),
    *(_operation, _device, _dtypes, _seed, promises, run_options, _shard),
)


def with_features(subjects: tuple[str, ...], without: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Return `subjects` without the names of features, and `without` with these names added.

    For `--without weight vmap`, click reads `weight` as a feature, but `vmap` as a subject. If `without` is empty,
    nothing changes.
    """
    more = [name for name in subjects if without and name in FEATURE_NAMES]
    return tuple(name for name in subjects if name not in more), [*without, *more]


def chosen_seed(seed: int | str | None, subjects: Sequence[str], shard: tuple[int, int] | None) -> int | str:
    """Return `seed` or, if `seed` is None, the default: 0 for forms and losses of torch, otherwise "random".

    Raises:
        UsageError: the run is a shard, and the default seed would be random.
    """
    from crossent.subjects.builtin import BY_NAME, EVERY_NAMED
    from crossent.subjects.compiler import COMPILE_SUFFIX

    named = {name.removesuffix(COMPILE_SUFFIX) for name in subjects}
    if seed is not None or named <= {*EVERY_NAMED, *BY_NAME, "loss_parallel"}:
        return seed or 0
    if shard is not None:
        raise click.UsageError("--shard: each shard would draw its own random seed; add --seed NUMBER")
    return "random"


def chosen_part(
    subjects: Sequence[str],
    checks: tuple[tuple[str, ...], ...],
    cases: tuple[str, ...],
    last_failed: bool,
    exitfirst: bool,
    max_findings: int | None,
    operation: str | None,
    shard: tuple[int, int] | None,
    on_dask: bool,
    ranks: int | None = None,
) -> dict[str, Any]:
    """Return the arguments of `crossent.check` that choose the operation, the ranks and a part of a run.

    With --last-failed, choose the checks and cases that failed in the last run on these subjects.

    Raises:
        UsageError: two options contradict each other.
    """
    if exitfirst and max_findings is not None:
        raise click.UsageError("-x means --max-findings 1: leave out one of the two")
    if shard is not None and on_dask:
        raise click.UsageError("--dask runs every shard: leave out --shard")
    if (shard is not None or on_dask) and (last_failed or exitfirst or max_findings is not None):
        one = "--last-failed" if last_failed else "-x" if exitfirst else "--max-findings"
        why = "chooses other cases on each machine" if last_failed else "ends a run early, and a shard must be complete"
        raise click.UsageError(f"{one} {why}: leave out {one} or {'--dask' if on_dask else '--shard'}")
    if last_failed and cases:
        raise click.UsageError("--last-failed chooses the cases: leave out --case")
    names = tuple(dict.fromkeys(name for each in checks for name in each))
    chosen: dict[str, Any] = {"checks": names, "cases": cases, "operation": operation, "ranks": ranks}
    # a run on Dask takes no `max_findings`
    chosen |= {} if on_dask else {"max_findings": 1 if exitfirst else max_findings}
    chosen |= {"shard": shard} if shard is not None else {}
    if last_failed:
        from crossent.report.last_findings import read_failed_checks

        failed = read_failed_checks(subjects, operation)
        kept = {case: [check for check in of if not names or check in names] for case, of in failed.items()}
        chosen["cases"] = {case: of for case, of in kept.items() if of}
        if chosen["cases"]:
            chosen["checks"] = ()  # each case names its checks
        else:
            of_checks = f" of {' or '.join(names)}" if names else ""
            runs = "the chosen checks run on every case" if names else "everything runs"
            why = f"this folder stores no finding{of_checks} from the last run on these subjects"
            say_error(f"crossent: --last-failed: {why}; {runs}")
    return chosen
