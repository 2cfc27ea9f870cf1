"""Three commands of `crossent`, and a module that reads report files. `crossent.cli` has the other commands.

A command imports torch only when it runs, so that `crossent --help` is fast.

explain  `crossent explain`: the loss of one row, step by step
merge    `crossent merge`: the report of a run from the reports of its shards
reports  functions that read report files
soak     `crossent soak`: check functions on any number of random cases, and add up the results
"""
