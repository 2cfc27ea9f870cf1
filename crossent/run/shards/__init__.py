"""Shards: the parts of a run that run as separate commands, on one machine or on several.

Each case belongs to exactly one shard. `crossent merge` makes the report of the whole run from the reports of all
shards. The merged report equals the report of one run without shards, byte for byte.

division   divide the cases into shards of about equal cost; the values that must be equal in all shards of a run
match      check that each shard is given exactly once, and that all shards belong to one run
merge      the report of a run from the reports of its shards
task       the work of an executor's worker: run the command for one shard in a new process
executor   over(): run the shards on a concurrent.futures.Executor
cluster    run the shards on the workers of a Dask scheduler
"""
