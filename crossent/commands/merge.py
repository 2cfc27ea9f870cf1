"""The command `crossent merge`: the report of a run from the reports of its shards."""

from __future__ import annotations

import click

from crossent import options
from crossent.commands.reports import recorded_shard
from crossent.files import chosen_files, write_all
from crossent.options import FAILED, NOT_WRITTEN, NOTHING_RAN, PASSED, as_click_errors


@click.command(short_help="Merge the reports of all shards of a run.")
@click.argument("reports", metavar="REPORT ...", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@options.verbosity
@options.report_files
def merge(reports: tuple[str, ...], json_file: str | None, html_file: str | None, verbose: int, quiet: bool) -> int:
    """Merge the reports of all shards of a run into the report of the run. No check runs.

    Each REPORT is a file that `crossent check --shard I/N --json` or `crossent soak --shard I/N --json` wrote. The
    order of the files does not matter. The merged report equals the report of one run without --shard, byte for byte.
    --html does not work for the reports of a soak.

    \b
    Exit status:
      0    all checks passed
      1    a check failed; or a check gives no evidence in a dtype, because a
           wrong result, such as zeros, would pass on every case;
           or no case ran on a subject
      2    wrong use, a missing shard, or shards that do not belong to one run
      3    nothing ran
      130  interrupted
      141  the output cannot be written
    """  # noqa: D301  # click reads the escape: it keeps the lines of the list
    files = chosen_files(json_file, html_file)
    from crossent.console import Output
    from crossent.report.report import Report
    from crossent.run.soak.merge import merged

    with as_click_errors():
        report = merged([(path, recorded_shard(path, "REPORT")) for path in reports])
    if html_file is not None and not isinstance(report, Report):
        raise click.UsageError("--html: the report of a soak has no HTML page; leave out --html")
    Output().show(report.render(-1 if quiet else verbose))
    writers = {"--json": report.write_json}
    if isinstance(report, Report):
        writers["--html"] = report.write_html
    if not write_all(files, writers):
        return NOT_WRITTEN
    if not report.ran:
        return NOTHING_RAN
    return PASSED if report.ok else FAILED
