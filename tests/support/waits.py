"""What a test waits for that the torch of this machine may lack, and the marks that say so."""

import functools

import pytest
import torch

from crossent.cases.axes import DTYPES


@functools.cache
def computes(dtype, device="cpu"):
    """Whether torch computes the loss of a class in this dtype: at first it had no float16 on a CPU."""
    logits = torch.zeros(1, 2, dtype=DTYPES[dtype], device=device)
    try:
        torch.nn.functional.cross_entropy(logits, torch.tensor([0], device=device))
    except RuntimeError:
        return False
    return True


def computing(dtype):
    """A mark for a test in which torch computes in this dtype on a CPU."""
    return pytest.mark.skipif(not computes(dtype), reason=f"waits for a torch that computes in {dtype} on a CPU")


float16 = computing("float16")
