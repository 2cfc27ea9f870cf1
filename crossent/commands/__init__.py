"""Commands of `crossent`, each in its own module, and reading reports; `crossent.cli` has the other commands.

Each command imports torch only when it runs, so that `crossent --help` is fast.

explain  the loss of one row, step by step
merge    the report of a run from the reports of its shards
reports  read the reports that the commands name
soak     functions on any number of random cases, and the sums of the results
"""
