"""Subjects that run on several ranks: processes of one torch.distributed group, each with a shard of the logits.

A shard is the part of the logits that one rank has. The calling process, which is no rank, sends the arguments of a
call to every rank, and puts the shards of the gradient together. The ranks know no exact value.

If all ranks raise the same exception, the call raises a builtin exception with the same message. If a rank blocks or
ends, or if the ranks disagree, the call raises an error that says what each rank did.

The context of a loss is a context manager around its forward and backward passes, such as torch's `loss_parallel`.

protocol       the class or function that the user writes, and the rules by which the logits are cut into shards
messages       the messages between the calling process and a rank
rank           the process of one rank: it joins the group, and answers requests
launcher       the process that starts ranks with torch's launcher, and ends them
job            the ranks of a torchrun job: its first process runs the checks, and the other processes run ranks
group          Ranks, with which the calling process starts ranks, sends requests, finds a blocked rank and ends ranks
loss           a callable with the signature of `F.cross_entropy`, which calls a subject on its ranks
loss_parallel  the subject `loss_parallel`: F.cross_entropy of a DTensor, in torch's context of this name
subject        a subject from a loss on several ranks
"""
