"""The tables that code writes into README.md and benchmarks/README.md, and the files that the tables are made from."""

from benchmarks.readme import PAGES, README, RESULTS, ROOT, part

__all__ = ["PAGES", "README", "RESULTS", "ROOT", "part"]
