"""Checks of a subject on several ranks. They run only with --ranks, and are not in `CHECKS`.

shards    other numbers of ranks; targets, ignored rows and label smoothing across the shards; uneven and empty shards
contexts  the context of the subject, entered twice or ended by an exception

`RANK_CHECKS` of `crossent.checks` lists the checks in the order of a report.
"""
