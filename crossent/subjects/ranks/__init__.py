"""Subjects that run on several ranks: processes of one torch.distributed group, each with a shard of the logits.

The process that calls such a subject is not a rank. It sends the arguments of a call to every rank, and puts the shards
of the gradient together. A rank sees the arguments of calls and never an exact value: it is forked from a process that
knows none. If a rank raises an exception, blocks or ends, the call raises an error, and the next call starts new ranks.

protocol       the class or function that the user writes, and the rules by which the logits are cut into shards
messages       the messages between the calling process and a rank
rank           the process of one rank: it joins the group, and answers requests
launcher       the process that starts ranks with torch's launcher, and ends them
job            the ranks of a torchrun job: its first process judges, and the others run ranks
group          the ranks, as the calling process sees them: starts, asks and ends them; finds a rank that blocks
loss           a callable with the signature of `F.cross_entropy`, which calls a subject on its ranks
loss_parallel  the subject `loss_parallel`: F.cross_entropy of a DTensor, in torch's context of this name
subject        a subject from a loss on several ranks
"""
