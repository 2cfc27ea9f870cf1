"""Paths of the pages and of the stored results, and `part`, which reads or writes a table of a page."""

from benchmarks.readme import PAGES, README, RESULTS, ROOT, part

__all__ = ["PAGES", "README", "RESULTS", "ROOT", "part"]
