"""Skip the tests that need more than this version of torch can do on this machine."""

import functools

import pytest
import torch
from packaging.version import Version

from crossent.cases.axes import DTYPES
from crossent.state import STATES


@functools.cache
def computes(dtype, device="cpu"):
    """Return whether torch computes the loss of class indices in this dtype. Old versions lack float16 on a CPU."""
    logits = torch.zeros(1, 2, dtype=DTYPES[dtype], device=device)
    try:
        torch.nn.functional.cross_entropy(logits, torch.tensor([0], device=device))
    except RuntimeError:
        return False
    return True


def computing(dtype):
    """Return a mark that skips a test if torch does not compute in this dtype on a CPU."""
    return pytest.mark.skipif(not computes(dtype), reason=f"needs a torch that computes in {dtype} on a CPU")


float16 = computing("float16")


def older_than(version):
    """Return whether torch is older than a version, such as "2.1"."""
    return Version(Version(torch.__version__).base_version) < Version(version)


def skip_unless_readable(name):
    """Skip a test if torch cannot read this global state.

    The test must not change such a state, because crossent could not restore it.
    """
    if name == "the multithreading mode of autograd" and STATES[name][0]() is None:
        pytest.skip("needs a torch that says whether autograd has threads")
    if name == "the hooks of saved tensors" and not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"):
        pytest.skip("needs a torch that says which hooks are installed")
