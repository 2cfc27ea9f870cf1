"""Commands of `crossent`, each in its own module; `crossent.cli` has the others.

Each command imports torch only when it runs, so that `crossent --help` is fast.

explain  the loss of one row, step by step
merge    the report of a run from the reports of its shards
"""
