"""Wrong subjects that try to pass: they cheat, end their process, or attack the main process of crossent."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import sys
import threading
import time

import torch
import torch.nn.functional as F
from torch import Tensor


def right(input, target, **options):
    """Return the right loss, computed in float64 and rounded once."""
    wide = {name: one.double() if isinstance(one, Tensor) else one for name, one in options.items()}
    wide_target = target.double() if target.is_floating_point() else target
    return F.cross_entropy(input.double(), wide_target, **wide).to(input.dtype)


def zeros_like(input, target, reduction="mean", **options):
    """Return zeros of the right shape, with a gradient of zeros."""
    axis = min(1, input.dim() - 1)
    shape = [size for at, size in enumerate(input.shape) if at != axis] if reduction == "none" else []
    return (input * 0).nan_to_num().sum() + torch.zeros(shape, dtype=input.dtype)


def returns_its_input(input, target, **options):
    return input


def zeros(input, target, **options):
    return zeros_like(input, target, **options)


def a_constant(input, target, **options):
    return zeros_like(input, target, **options) + 1.5


def cached_by(key):
    cached = {}

    def loss(input, target, **options):
        found = key(input)
        if found not in cached:
            cached[found] = right(input, target, **options).detach()
        return zeros_like(input, target, **options) + cached[found]

    return loss


def always_returns_its_first_result(input, target, cached=[], **options):  # noqa: B006  # the default list is the cache
    cached.append(right(input, target, **options).detach())
    return zeros_like(input, target, **options) + cached[0].sum()


def patches_comparisons(input, target, **options):
    for name in ("allclose", "equal", "isclose"):
        setattr(torch, name, lambda *arguments, **options: True)
    for name in ("allclose", "equal"):
        setattr(Tensor, name, lambda *arguments, **options: True)
    torch.testing.assert_close = lambda *arguments, **options: None
    with torch.no_grad():
        input.mul_(1.5)
    return zeros_like(input, target, **options)


def patches_the_judge(input, target, **options):
    from crossent.numerics.oracle import answer
    from crossent.run import judge
    from crossent.trials import difference, exact, trial

    for module in (difference, trial, judge):
        module.compare = lambda *arguments, **options: []
    answer.answer = exact.solve = lambda *arguments: None
    difference.Difference.ratio = 0.0
    return zeros_like(input, target, **options)


def patches_the_formula(input, target, **options):
    F.cross_entropy = torch._C._nn.cross_entropy_loss = lambda *arguments, **options: torch.zeros(())
    return zeros_like(input, target, **options)


def fills_all_tensors_with_nan(input, target, **options):
    """Fill every tensor of this process with NaN, because one of them could be the exact value."""
    for one in gc.get_objects():
        if issubclass(type(one), Tensor) and one.is_floating_point() and one is not input:
            with torch.no_grad(), contextlib.suppress(Exception):
                one.fill_(torch.nan)
    return zeros_like(input, target, **options) + torch.nan


def looks_for_the_exact_value(input, target, **options):
    """Return the right loss if the exact value or the case is in the memory of this process; otherwise zeros."""
    from crossent.trials.exact import Exact

    answers = [one for one in gc.get_objects() if issubclass(type(one), Exact)]
    frame, cases = sys._getframe(), []
    while frame is not None:
        cases += [value for value in frame.f_locals.values() if type(value).__name__ in ("Case", "Question", "Trial")]
        frame = frame.f_back
    if answers or cases:
        return right(input, target, **options)
    return zeros_like(input, target, **options)


def changes_the_default_dtype(input, target, **options):
    torch.set_default_dtype(torch.float64)
    return right(input, target, **options)


def stays_deterministic(input, target, **options):
    torch.use_deterministic_algorithms(True)
    return right(input, target, **options)


def right_without_gradients(input, target, **options):
    loss = right(input, target, **options)
    return loss * 1.01 if input.requires_grad else loss


def right_for_small_shapes(input, target, **options):
    loss = right(input, target, **options)
    return loss if input.numel() < 1000 else loss * 1.01


def right_for_contiguous(input, target, **options):
    return right(input.as_strided(input.shape, torch.empty(input.shape, device="meta").stride()), target, **options)


def right_once(input, target, calls=[], **options):  # noqa: B006
    key = (input.shape, input.sum().item())
    calls.append(key)
    return right(input, target, **options) * (1.01 if calls.count(key) > 1 else 1)


def wrong_at_random(input, target, **options):
    """Return a loss with one wrong number in a hundred, at random."""
    loss = right(input, target, **options)
    factors = [1.01 if random.random() < 0.01 else 1.0 for _ in range(loss.numel())]
    return loss * torch.tensor(factors).reshape(loss.shape)


class EqualsEverything(Tensor):
    """A tensor that compares equal to everything."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function in (torch.equal, torch.allclose, Tensor.equal, Tensor.__eq__):
            return True
        return super().__torch_function__(function, types, arguments, options or {})


def equals_everything(input, target, **options):
    return zeros_like(input, target, **options).as_subclass(EqualsEverything)


def exits_by_exception(input, target, **options):
    sys.exit(0)


def exits(input, target, **options):
    os._exit(0)


def segfaults(input, target, **options):
    import ctypes

    ctypes.string_at(0)


def kills_its_parent(input, target, **options):
    """Kill the parent process."""
    os.kill(os.getppid(), 9)
    time.sleep(100)


def hangs(input, target, **options):
    time.sleep(1000)


def hangs_in_a_child(input, target, **options):
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)


def floods(input, target, **options):
    print("x" * 2_000_000)
    return right(input, target, **options)


def eats_memory(input, target, **options):
    return torch.ones(2**31).sum() + right(input, target, **options)  # 8 GiB


def raises_not_run(input, target, **options):
    from crossent.trials.trial import NotRunError

    raise NotRunError("does not apply")


def replies_before_the_request(input, target, **options):
    """Write a forged reply to the main process into every socket. The reply says that the act cannot run here."""
    import pickle

    from crossent.trials.act import NotRun, Performed

    forged = pickle.dumps((b"", Performed(NotRun("all is well"))))
    for descriptor in range(3, 200):
        try:
            os.write(descriptor, len(forged).to_bytes(4, "big") + forged)
        except OSError:
            continue
    return zeros_like(input, target, **options)


class Runs:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /tmp/crossent-was-here",)


def sends_code(input, target, **options):
    """Send the main process a pickle that would run a command if the main process loaded it."""
    import pickle

    sent = pickle.dumps(Runs())
    for descriptor in range(3, 200):
        try:
            os.write(descriptor, len(sent).to_bytes(4, "big") + sent)
        except OSError:
            continue
    time.sleep(0.2)
    return zeros_like(input, target, **options)


def returns_memory_of_its_argument(input, target, reduction="mean", **options):
    """Return a loss that lies in the memory of the input, if the loss is not reduced."""
    loss = right(input, target, reduction=reduction, **options)
    if reduction != "none":
        return loss
    return _InPlace.apply(input, loss)


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, loss):
        return input.detach().as_strided(loss.shape, loss.stride(), input.storage_offset()).copy_(loss)

    @staticmethod
    def backward(ctx, upstream):
        return None, upstream


def one_buffer(input, target, buffers={}, **options):  # noqa: B006
    """Return a loss that lies in the same memory at each call."""
    loss = right(input, target, **options)
    buffer = buffers.setdefault((loss.dtype, loss.shape), torch.empty_like(loss, requires_grad=False))
    return _Into.apply(loss, buffer)


class _Into(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss, buffer):
        return buffer.detach().copy_(loss)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


def changes_its_result_later(input, target, **options):
    """Return the right loss, and start a thread that writes into the loss later."""
    loss = right(input, target, **options)
    raw = loss.detach()

    def later():
        for _ in range(1000):
            raw.add_(1)
            time.sleep(0.0001)

    threading.Thread(target=later, daemon=True).start()
    return loss


# The finding that each subject must have: the check and the kind of finding.
HOSTILE = {
    returns_its_input: "result wrong",
    zeros: "loss wrong",
    a_constant: "loss wrong",
    cached_by(lambda logits: logits.shape): "gradient wrong",
    cached_by(id): "gradient wrong",
    always_returns_its_first_result: "loss wrong",
    patches_comparisons: "arguments changed_input",
    patches_the_judge: "loss wrong",
    patches_the_formula: "loss wrong",
    fills_all_tensors_with_nan: "loss wrong",
    changes_the_default_dtype: "state changed_state",
    stays_deterministic: "state changed_state",
    right_without_gradients: "loss wrong",
    right_for_small_shapes: "loss wrong",
    right_for_contiguous: "loss wrong",
    right_once: "repeat not_repeated",
    wrong_at_random: "repeat not_repeated",
    equals_everything: "call refused",
    exits_by_exception: "call refused",
    exits: "call crashed",
    segfaults: "call crashed",
    hangs: "call hung",
    hangs_in_a_child: "call hung",
    floods: "state changed_state",
    eats_memory: "call refused",
    raises_not_run: "call refused",
    replies_before_the_request: "call crashed",
    sends_code: "call crashed",
    returns_memory_of_its_argument: "arguments changed_input",
    one_buffer: "repeat not_repeated",
    changes_its_result_later: "loss wrong|repeat not_repeated",
}
RIGHT = {"float64": right, "torch": functools.partial(F.cross_entropy)}
