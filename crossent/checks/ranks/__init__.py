"""Checks of a subject on several ranks. They run only with --ranks, and are not in `CHECKS`.

shards    the same call on other numbers of ranks; targets, ignored rows and smoothing over the shards; uneven shards
contexts  the context of the subject, entered twice or ended by an exception

`RANK_CHECKS` of `crossent.checks` lists them in the order of a report.
"""
