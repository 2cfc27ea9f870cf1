"""Checks of a subject on several ranks, which run only with --ranks.

A shard is the part of the logits on one rank. The context of a subject is a context manager, in which each forward and
each backward pass runs.

shards    other numbers of ranks; targets, ignored rows and label smoothing across the shards; uneven and empty shards;
          padding; micro-batches; a rank whose rows are all ignored
contexts  the context of the subject: a second context inside the first, or an exception that ends the context
"""
