"""Script functions for the checks of identical bits in each call, and of a call on another CUDA stream."""

# mypy: allow-untyped-defs, allow-untyped-calls
# ruff: noqa: B905  # a script may run on Python 3.9, whose zip has no `strict`

import torch

from crossent.repro.scripts.case import device, given
from crossent.repro.scripts.functions import bits, cannot_run, evaluate, fresh, memory, poison, verdict


def check_deterministic():
    """Check that ten calls give the same bits in torch's deterministic mode."""
    torch.use_deterministic_algorithms(True)
    try:
        first = bits(evaluate(*fresh(*given)))
    except RuntimeError as error:
        if "deterministic" in str(error) and "use_deterministic_algorithms" in str(error):
            cannot_run(error)
        raise
    for call in range(2, 11):
        poison(*given)
        if bits(evaluate(*fresh(*given))) != first:
            verdict(True, f"call {call} of 10 with the same arguments gives other bits than the first call")


def call_on_stream():
    """Return the result of a call on a second CUDA stream.

    The arguments are zeros until the second stream writes their values. An operation on another stream is wrong: it
    reads the zeros.
    """
    inputs = fresh(*given)
    tensors = [one for one in (inputs[0], inputs[1], inputs[3], *inputs[2].values()) if torch.is_tensor(one)]
    late = [memory(one) for one in tensors]
    values = [raw.clone() for raw in late]
    side = torch.cuda.Stream(torch.device(device))
    side.wait_stream(torch.cuda.current_stream(torch.device(device)))
    with torch.cuda.stream(side):
        evaluate(*fresh(*given))  # a first call may compile, which takes longer than the delay
    side.synchronize()
    for raw in late:
        raw.zero_()  # 0 is a valid value of every argument, also a class index
    side.wait_stream(torch.cuda.current_stream(torch.device(device)))
    with torch.cuda.stream(side):
        torch.cuda._sleep(2**23)  # takes some milliseconds, in which the host starts every operation of the call
        for raw, value in zip(late, values):
            raw.copy_(value)
        result = evaluate(*inputs)
    poison(*inputs)
    side.synchronize()
    return result
