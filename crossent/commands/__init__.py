"""Commands of `crossent` that stand in a module each; `crossent.cli` has the others.

Each command imports what it needs when it runs, so that `crossent --help` needs no import of torch.

explain  the loss of one row, step by step
merge    the report of a run from the reports of its shards
"""
