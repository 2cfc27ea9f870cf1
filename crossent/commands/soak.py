"""The command `crossent soak`: check functions on any number of random cases, and add up the results."""

from __future__ import annotations

from typing import Any

import click

from crossent import choices, options
from crossent.choices import DTYPE_NAMES, DtypeName
from crossent.files import chosen_files, say_error, write_all
from crossent.options import FAILED, INTERRUPTED, NOT_WRITTEN, NOTHING_RAN, PASSED, as_click_errors


@click.command(short_help="Check functions on any number of random cases.")
@click.argument("subjects", metavar="SUBJECT ...", nargs=-1, required=True, shell_complete=choices.complete_subject)
@options.soak_options
@options.verbosity
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the report to this file, as JSON.")
def soak(
    subjects: tuple[str, ...],
    cases: int,
    dtypes: tuple[DtypeName, ...],
    seed: int | str | None,
    without: tuple[str, ...],
    contract: Any,
    grade: Any,
    jobs: int | None,
    shard: tuple[int, int] | None,
    verbose: int,
    quiet: bool,
    json_file: str | None,
    **others: Any,
) -> int:
    """Check each SUBJECT on random cases, and add up the results.

    `crossent check --help` explains SUBJECT. Each case follows from its number, its dtype and the seed. The command
    calls each subject once on each case. It runs the checks call, result, arguments, state, loss, gradient,
    target_gradient, sign, row_sums and ignored_rows. For a linear cross-entropy, weight_gradient and bias_gradient
    replace target_gradient and row_sums.

    The report has the counts of each check, the worst case of each check and dtype, and some findings. The size of the
    report does not grow with the number of cases. After runs with --shard, `crossent merge` makes the report of the
    whole soak.

    \b
    Exit status:
      0    all checks passed
      1    a check failed; or a check gives no evidence in a dtype, because a
           wrong result, such as zeros, would pass on every case;
           or no case ran on a subject
      2    wrong use
      3    nothing ran
      130  interrupted
      141  the output cannot be written

    With --shard, 0 means only that no check failed in the shard. `crossent merge` gives the verdict on the soak.
    """  # noqa: D301  # click reads the escape: it keeps the lines of the list
    files = chosen_files(json_file, None)
    subjects, lacking = options.with_features(subjects, without)
    from crossent.console import Output, progress, warn_of_grade
    from crossent.machine import cores
    from crossent.run.runner import Interrupted
    from crossent.run.soak.runner import soak as run_soak

    warn_of_grade(subjects, contract, grade)
    status = None
    with as_click_errors():
        try:
            report = run_soak(
                *subjects,
                cases=cases,
                dtypes=dtypes or DTYPE_NAMES,
                seed=options.chosen_seed(seed, subjects, shard),
                without=lacking,
                contract=contract,
                grade=grade,
                jobs=jobs or cores(),
                shard=shard,
                progress=progress,
                **others,
            )
        except Interrupted as interrupt:
            say_error("crossent: interrupted")
            report, status = interrupt.report, INTERRUPTED
    Output().show(report.render(-1 if quiet else verbose))
    if not write_all(files, {"--json": report.write_json}):
        return NOT_WRITTEN
    if status is not None:
        return status
    if not report.ran and report.shard is None:
        return NOTHING_RAN
    return PASSED if report.ok else FAILED
