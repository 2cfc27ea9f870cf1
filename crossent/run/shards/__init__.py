"""Shards: the parts of a run that run as separate commands, on one machine or on several.

The plan of a run is divided into shards, so that each case belongs to one shard. `crossent merge` makes the report of
the whole run from the reports of all shards. The merged report equals the report of one run without shards, byte for
byte.

division   the cases of each shard, of about equal cost; the entries that must be equal in all shards of a run
match      whether each shard is there exactly once, and whether all shards belong to one run
merge      the report of a run from the reports of its shards
task       what a worker of an executor does: run the command for a shard in a new process
executor   over(): the shards of a run on a concurrent.futures.Executor
cluster    the shards of a run on the workers of a Dask scheduler
"""
