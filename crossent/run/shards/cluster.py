"""Run the shards of a run on the workers of a Dask scheduler."""

from __future__ import annotations

import logging
from typing import Any

from crossent.report.report import Report
from crossent.run.shards.executor import over
from crossent.words import cut, one_line, quoted

_SECONDS_TO_CONNECT = 30
# Two small shards are better than one large shard: a lost worker loses less work, and the threads end at about the same
# time.
_SHARDS_PER_THREAD = 2


def check_on_dask(address: str, *subjects: str, shards: int | None = None, **options: Any) -> Report:
    """Run the shards of a run on the workers of the Dask scheduler at an address, such as "tcp://host:8786".

    `shards` is the number of shards, by default two for each thread of the workers. `subjects` and `options` are the
    arguments of :func:`crossent.over`.

    Raises:
        ValueError: the package `distributed` is missing, no scheduler with workers answers, or an argument is wrong.
        TypeError: a subject is not a string, or `cases` is a mapping.
        RuntimeError: a shard failed too often, or Dask cannot run more shards.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("dask: the package 'distributed' is missing; run pip install 'crossent[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # a lost worker needs no message: its shard runs again
    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = one_line(str(error)) or type(error).__name__
        got = f"dask: got {quoted(address)}; cannot connect to a scheduler there: {cut(reason)}"
        raise ValueError(f"{got}; start `dask scheduler`, and give the address that it prints") from None
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            at = cut(address)
            raise ValueError(f"dask: the scheduler at {at} has no workers; start a worker with `dask worker {at}`")
        executor = client.get_executor(pure=False)
        try:
            return over(
                executor, *subjects, shards=_SHARDS_PER_THREAD * threads if shards is None else shards, **options
            )
        finally:
            executor.shutdown(wait=False)  # cancels running shards; each worker then ends its command
    finally:
        client.close()
