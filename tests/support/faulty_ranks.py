"""Wrong losses on several ranks. In most, rank 1 raises an error, ends, or blocks, and other ranks are right."""

import functools
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from crossent.forms import formula


def right(local_logits, target, shape, axis, options):
    """Gather the logits of all ranks, and compute the loss of all classes, with the gradient of this shard."""
    sizes = [len(part) for part in torch.empty(shape[axis]).chunk(dist.get_world_size())]
    sizes += [0] * (dist.get_world_size() - len(sizes))
    parts = [local_logits.new_empty(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    for rank, part in enumerate(parts):
        part.copy_(local_logits.detach()) if rank == dist.get_rank() else None
        dist.broadcast(part, rank)
    parts[dist.get_rank()] = local_logits
    return formula(torch.cat(parts, axis), target, **options)


def on_rank_1(action):
    """Return a right loss that first calls `action` on rank 1."""

    @functools.wraps(action)
    def loss(local_logits, target, shape, axis, options):
        if dist.get_rank() == 1:
            action()
        return right(local_logits, target, shape, axis, options)

    del loss.__wrapped__  # which has another signature
    return loss


@on_rank_1
def raises():
    raise ValueError("no such shard")


@on_rank_1
def exits():
    sys.exit(4)


@on_rank_1
def ends():
    os._exit(3)


@on_rank_1
def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)


@on_rank_1
def sleeps():
    time.sleep(3600)


@on_rank_1
def reduces_once_more():
    dist.all_reduce(torch.zeros(1))


@on_rank_1
def spins():
    while True:
        pass


@on_rank_1
def starts_a_process():
    os.fork()
    time.sleep(3600)


def waits_at_the_end(*arguments):
    """Wait on rank 1 for a collective that the other ranks do not call."""
    loss = right(*arguments)
    if dist.get_rank() == 1:
        dist.all_reduce(torch.zeros(1))
    return loss


def differs(*arguments):
    """Return a loss that is too large on rank 1."""
    return right(*arguments) + dist.get_rank() * 2.0**-10


def changes_state(*arguments):
    """Change the default dtype on rank 1."""
    if dist.get_rank() == 1:
        torch.set_default_dtype(torch.float64)
    return right(*arguments)


def refuses(local_logits, target, shape, axis, options):
    """Raise the same error on all ranks."""
    raise NotImplementedError("takes no logits today")


class SetsNoGradient:
    """A loss whose own backward pass leaves the .grad of the shard as None."""

    def forward(self, *arguments):
        return right(*arguments)

    def backward(self, loss, upstream):
        """Do nothing."""


# The finding of each faulty loss: its check, its kind, and a part of its message.
FAULTS = {
    raises: ("call", "refused", "RanksDifferError: rank 1 raised ValueError: no such shard; rank 0 waits"),
    exits: ("call", "refused", "RanksDifferError: rank 1 raised SystemExit: 4; rank 0 waits"),
    ends: ("call", "crashed", "rank 1 ended with exit status 3"),
    crashes: ("call", "crashed", "rank 1 ended with SIGSEGV"),
    sleeps: ("call", "hung", "rank 1 did not return"),
    reduces_once_more: ("call", "crashed|hung", "rank 1 "),
    waits_at_the_end: ("call", "hung", "rank 1 did not return"),
    spins: ("call", "hung", "rank 1 did not return"),
    starts_a_process: ("call", "hung", "rank 1 did not return"),
    differs: ("call", "refused", "RanksDifferError: the ranks return different losses: rank 0 "),
    changes_state: ("state", "changed_state", "the default dtype"),
    refuses: ("call", "refused", "NotImplementedError: takes no logits today"),
    SetsNoGradient: ("call", "refused", "TypeError: logits: .grad is None after the backward pass on this rank; "),
}
