"""The class or function that a user writes for a loss on several ranks, and the rules that cut logits into shards.

The user writes a class. Each rank makes one instance, without arguments, after its process has joined the group:

    class VocabParallel:
        split = "classes"  # the default: see `SPLITS`
        lacks = {"weight": "has no weight"}  # optional: the features that the loss lacks, with the reasons

        def context(self): ...  # optional: a context manager around each forward and each backward pass
        def forward(self, local_logits, target, shape, axis, options): ...  # returns the loss
        def backward(self, loss, upstream): ...  # optional: computes local_logits.grad

A function with the arguments of `forward` is enough for a loss that needs no context.

`local_logits` is the shard of this rank. This tensor is a leaf, and requires a gradient if the call needs a gradient.
Every rank gets the whole `target` and all options: `weight`, `ignore_index`, `reduction` and `label_smoothing`. `shape`
is the shape of all logits, and `axis` is the axis that is cut. Every rank must return the whole loss, with the same
bits. If the loss is a DTensor, crossent takes its full tensor. The argument `loss` of `backward` is the result of
`forward`, and `upstream` is the upstream gradient.

A loss for data-parallel training divides by `tokens`, the number of kept rows of the whole batch. A row is kept if its
target is not `ignore_index`:

    class TokenMean:
        split = "batch"
        normalization = "tokens"

        def count(self, targets, options): ...  # optional: returns `tokens`
        def forward(self, local_logits, target, shape, axis, options, tokens): ...

Such a loss may get a batch in micro-batches, one after another, as in gradient accumulation. Its `target` is only the
shard of this rank, and `shape` is the shape of the logits of this micro-batch on all ranks. `targets` has the `target`
of each micro-batch. Each rank returns its own part of the loss. The loss is the sum of the parts of all ranks and
micro-batches. Without `count`, `tokens` is the number of kept rows of all ranks and micro-batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from crossent.cases.inputs import Inputs
from crossent.cases.operation import CROSS_ENTROPY, Operation
from crossent.machine import can_fork
from crossent.words import cut, quoted

# The rules by which the logits are cut into shards. The padding belongs to no class, so a loss must ignore the padding.
SPLITS = {
    "classes": "the class axis, cut as torch.chunk does; the last ranks may have fewer classes, or none",
    "padded": "the class axis, padded with further logits so that all shards have the same size",
    "batch": "the first axis, cut as torch.chunk does; the last ranks may have fewer samples, or none",
}
# The divisor of a loss: "" for the divisor of `F.cross_entropy`, "tokens" for the number of kept rows of a whole batch.
NORMALIZATIONS = ("", "tokens")
MOST_RANKS = 64
_PADDING = 10_000.0  # a finite number in every dtype, far above most logits
_FORWARD = ("local_logits", "target", "shape", "axis", "options")


def require_ranks(ranks: object, operation: Operation = CROSS_ENTROPY) -> None:
    """Do as :func:`require_number_of_ranks`, and raise ValueError if this system or this torch cannot start ranks."""
    require_number_of_ranks(ranks, operation)
    if not can_fork():
        raise ValueError(f"ranks: got {ranks}, but this system cannot fork processes; use Linux or macOS")
    if not _has_launcher():
        needed = "use torch 2.3 or newer, with torch.distributed"
        raise ValueError(f"ranks: got {ranks}, but torch {torch.__version__} cannot start ranks; {needed}")


def require_number_of_ranks(ranks: object, operation: Operation = CROSS_ENTROPY) -> None:
    """Check a number of ranks, and that the operation can be computed on several ranks.

    Raises:
        ValueError: `ranks` is not an int from 1 to `MOST_RANKS`, or the operation cannot run on ranks. The message is
            one line.
    """
    if type(ranks) is not int or not 1 <= ranks <= MOST_RANKS:
        raise ValueError(f"ranks: got {quoted(ranks)}; allowed are whole numbers from 1 to {MOST_RANKS}")
    if operation is not CROSS_ENTROPY:
        can = f"only {CROSS_ENTROPY.name} runs on ranks; leave out ranks"
        raise ValueError(f"ranks: got {ranks} with the operation {operation.name}; {can}")


def can_start_ranks() -> bool:
    """Return whether ranks can start here: the system can fork, and torch is 2.3 or newer, with torch.distributed."""
    return can_fork() and _has_launcher()


def _has_launcher() -> bool:
    try:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs  # noqa: F401  # since torch 2.3
    except ImportError:
        return False
    return True


class RankEndedError(RuntimeError):
    """A rank ended or sent a damaged message (`kind` is "crashed"), or did not reply in time (`kind` is "hung").

    `kind` is also "crashed" if the process that starts the ranks ends or does not reply in time. The same holds if a
    process of the torchrun job cannot be reached. `how` is the message of this exception.
    """

    def __init__(self, kind: str, how: str) -> None:
        super().__init__(how)
        self.kind = kind


class RanksDifferError(RuntimeError):
    """Some ranks raised an exception and others did not, or the ranks returned different losses."""


class OnRank:
    """The user's loss on one rank, with a default for each optional method that the user did not write.

    The attribute `of_tokens` says whether the user's class or function has the attribute `normalization = "tokens"`.
    Such a loss divides by the number of kept rows of the whole batch.

    Args:
        made: an instance of the user's class, or the user's function.
    """

    def __init__(self, made: Any) -> None:
        self._made = made
        self._forward: Callable[..., Any] = getattr(made, "forward", made)
        self.of_tokens = normalization_of(made) == "tokens"

    def context(self) -> AbstractContextManager[Any]:
        """Return the user's context; if the user wrote no method `context`, a context that does nothing."""
        make = getattr(self._made, "context", nullcontext)
        made: AbstractContextManager[Any] = make()
        return made

    def forward(
        self, local: Tensor, target: Tensor, shape: torch.Size, axis: int, options: dict[str, Any], tokens: Any = None
    ) -> Any:
        """Call the user's `forward`, and return its result: the loss, or this rank's part of the loss.

        `local` is the argument `local_logits`, this rank's shard of the logits. `tokens` is the divisor, which only a
        loss with `of_tokens` gets. This module's docstring explains the other arguments.
        """
        return self._forward(local, target, shape, axis, options, *([tokens] if self.of_tokens else []))

    def tokens(self, own: list[Tensor], whole: Tensor, logits: Tensor, options: dict[str, Any]) -> Any:
        """Return the divisor of the loss: the result of `count` or, without `count`, the number of kept rows.

        `own` has this rank's targets, one tensor for each micro-batch. `whole` and `logits` are the target and the
        logits of the whole batch. With class probabilities, all rows are kept.
        """
        count = getattr(self._made, "count", None)
        if count is not None:
            return count(own, options)
        if whole.is_floating_point():
            return logits.numel() // max(1, logits.shape[1])
        return int((whole != options["ignore_index"]).sum())

    def backward(self, loss: Any, upstream: Tensor) -> None:
        """Run the backward pass of `loss`, a result of :meth:`forward`. `upstream` is the upstream gradient.

        The backward pass sets the `.grad` of this rank's shard of the logits. If the user wrote no method `backward`,
        call `loss.backward(upstream, retain_graph=True)`. For a loss that is a DTensor, first make `upstream` a
        replicated DTensor.
        """
        own = getattr(self._made, "backward", None)
        if own is not None:
            own(loss, upstream)
        elif hasattr(loss, "full_tensor"):
            from torch.distributed.tensor import DTensor, Replicate

            everywhere = [Replicate()] * loss.device_mesh.ndim
            loss.backward(
                DTensor.from_local(upstream, loss.device_mesh, everywhere, run_check=False), retain_graph=True
            )
        else:
            loss.backward(upstream, retain_graph=True)


def require_protocol(given: object) -> None:
    """Check that an object is a loss on several ranks, as this module describes.

    Raises:
        TypeError: the object is neither a class with a method `forward` nor a callable, or does not take the arguments
            of `forward`. The attribute `split` or `normalization` has an unknown value. Or `normalization` is "tokens",
            but `split` is not "batch". The message begins with a phrase for the object, so that the caller can put
            "got" or "it is" before the message.
    """
    arguments = forward_arguments(given)
    names = ", ".join(arguments)
    allowed = f"a class with forward(self, {names}), and a function with these arguments"
    if isinstance(given, type):
        what, forward = f"the class {cut(given.__name__)}", getattr(given, "forward", None)
        if forward is None:
            raise TypeError(f"{what}, which has no method forward; allowed are {allowed}")
        bound = isinstance(inspect.getattr_static(given, "forward"), staticmethod | classmethod)
        places, takes = [*([] if bound else [None]), *arguments], "whose method forward does not take"
    elif hasattr(given, "forward"):
        raise TypeError(f"an instance of the class {cut(type(given).__name__)}; give the class itself")
    elif callable(given):
        what, forward = f"the function {cut(getattr(given, '__name__', repr(given)))}", given
        places, takes = [*arguments], "which does not take"
    else:
        raise TypeError(f"an object of type {cut(type(given).__name__)}; allowed are {allowed}")
    try:
        inspect.signature(forward).bind(*places)
    except TypeError:
        raise TypeError(f"{what}, {takes} these positional arguments: {names}") from None
    except ValueError:
        pass  # Python cannot read the signature
    if not _is_split(rule := split_of(given)):
        raise TypeError(f"{what}, whose attribute split is {quoted(rule)}; allowed are {', '.join(SPLITS)}")
    if (normalization := normalization_of(given)) not in NORMALIZATIONS:
        default = "leave out normalization to divide as F.cross_entropy does"
        got = f"{what}, whose attribute normalization is {quoted(normalization)}"
        raise TypeError(f"{got}; allowed is 'tokens'; {default}")
    if normalization and rule != "batch":
        raise TypeError(
            f"{what}, whose attribute split is {quoted(rule)}; normalization = 'tokens' needs split = 'batch'"
        )


def forward_arguments(given: object) -> tuple[str, ...]:
    """Return the names of the arguments that `forward` must take. `given` is the user's class or function."""
    return (*_FORWARD, "tokens") if normalization_of(given) == "tokens" else _FORWARD


def normalization_of(given: object) -> str:
    """Return the attribute `normalization` of a loss on several ranks, a word of `NORMALIZATIONS`; by default ""."""
    word: str = getattr(given, "normalization", "")
    return word


def split_of(given: object) -> str:
    """Return the attribute `split` of a loss on several ranks, a key of `SPLITS`; by default "classes"."""
    rule: str = getattr(given, "split", "classes")
    return rule


def require_normalization(word: object) -> str:
    """Check that a word is in `NORMALIZATIONS`, and return the word.

    Raises:
        ValueError: the word is not in `NORMALIZATIONS`.
    """
    if word not in NORMALIZATIONS:
        raise ValueError(f"normalization: got {quoted(word)}; allowed are 'tokens' and ''")
    return str(word)


def require_split(rule: object) -> str:
    """Check that a rule for the shards is a key of `SPLITS`, and return the rule.

    Raises:
        ValueError: the rule is not a key of `SPLITS`.
    """
    if not _is_split(rule):
        raise ValueError(f"split: got {quoted(rule)}; allowed are {', '.join(SPLITS)}")
    return str(rule)


def _is_split(rule: object) -> bool:
    return isinstance(rule, str) and rule in SPLITS  # a list, which has no hash, cannot be looked up in a dict


def cut_axis(rule: str, dimensions: int) -> int:
    """Return the axis along which a rule, a key of `SPLITS`, cuts logits with this number of dimensions."""
    return 0 if rule == "batch" else min(1, dimensions - 1)


def why_no_classes(rule: str, ranks: int, lacks: Mapping[str, str], inputs: Inputs) -> str | None:
    """Return why a loss cannot take `inputs` that leave a rank without classes; None if this reason does not apply.

    `rule` is the attribute `split` of the loss, and `ranks` is the number of ranks. `lacks` has the missing features of
    the loss, with the reasons. Three conditions give the reason for the feature `one_class`: `rule` is "classes",
    `lacks` has `one_class`, and `inputs` have classes but leave a rank without any.
    """
    if rule != "classes" or "one_class" not in lacks or not inputs.input.dim() or not inputs.classes:
        return None
    largest = -(-inputs.classes // ranks)
    return lacks["one_class"] if -(-inputs.classes // largest) < ranks else None


def shard(logits: Tensor, rule: str, rank: int, ranks: int) -> Tensor:
    """Return the shard of rank `rank` of `ranks` ranks. `rule` is a key of `SPLITS`.

    The shard is a part of `logits`, and may use the same memory. With the rule "padded", padding may follow the part.
    With the rule "batch", `logits` may also be a target. The shard of contiguous logits is contiguous, like the logits
    that a rank of a real model computes.
    """
    axis = cut_axis(rule, logits.dim())
    if rule == "padded":
        short = -logits.shape[axis] % ranks
        padding = logits.new_full((*logits.shape[:axis], short, *logits.shape[axis + 1 :]), _PADDING)
        whole = torch.cat([logits, padding], axis)
        part = whole.chunk(ranks, axis)[rank] if whole.shape[axis] else whole
    else:
        parts = logits.chunk(ranks, axis) if logits.shape[axis] else ()
        part = parts[rank] if rank < len(parts) else logits.narrow(axis, 0, 0)
    return part.contiguous() if logits.is_contiguous() else part


def join(shards: Sequence[Tensor], rule: str, shape: Sequence[int]) -> Tensor:
    """Join the shards of a gradient from all ranks, and return the whole gradient, without padding.

    `rule` is the rule by which the logits were cut, and `shape` is the shape of the logits.

    Raises:
        RuntimeError: a shard has a number other than 0 in the padding.
    """
    axis = cut_axis(rule, len(shape))
    whole = torch.cat(list(shards), axis)
    if rule != "padded":
        return whole
    padding = whole.narrow(axis, shape[axis], whole.shape[axis] - shape[axis])
    if bool((padding != 0).any()):
        worst = float(padding.flatten()[padding.abs().argmax()])
        raise RuntimeError(f"the gradient of the padding is not 0, but {worst:.3g}; leave the padding out of the loss")
    return whole.narrow(axis, 0, shape[axis])


def write_shard(logits: Tensor, content: Tensor, rule: str, rank: int, ranks: int) -> None:
    """Overwrite the shard of rank `rank` in `logits` with `content`, but leave out the padding of `content`.

    `content` has the shape that :func:`shard` returns for the same `rule`, `rank` and `ranks`.
    """
    axis = cut_axis(rule, logits.dim())
    shards = [content if at == rank else shard(logits, rule, at, ranks) for at in range(ranks)]
    logits.copy_(torch.cat(shards, axis).narrow(axis, 0, logits.shape[axis]))


# Whether this process knows no exact value, so that ranks may be forked from this process.
_knows_nothing = False


def allow_fork() -> None:
    """Record that this process knows no exact value, so that ranks may be forked from this process."""
    global _knows_nothing
    _knows_nothing = True


def may_fork() -> bool:
    """Return whether ranks may be forked from this process."""
    return _knows_nothing
