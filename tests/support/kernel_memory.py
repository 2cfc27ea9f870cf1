"""Watch the memory that a Triton kernel reads and writes in Triton's interpreter."""

import inspect
from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import torch


class Memory:
    """The elements that the programs of the watched launches read and wrote, by the name of the argument.

    Attributes:
        reads, writes: for each argument, a list of pairs: the number of the program, and the addresses of an access.
        tensors: the arguments that are tensors, of the last launch.
    """

    def __init__(self):
        self.reads, self.writes = defaultdict(list), defaultdict(list)
        self.tensors = {}

    def record(self, accesses, program, pointers, mask):
        """Record an access, or raise IndexError if an address is no element of an argument."""
        addresses = pointers[mask.astype(bool)].astype(np.uint64)
        left = len(addresses)
        for name, tensor in self.tensors.items():
            of_tensor = addresses[np.isin(addresses, elements(tensor))]
            left -= len(of_tensor)
            if len(of_tensor):
                accesses[name].append((program, of_tensor))
        if left:
            raise IndexError(f"program {program} accesses {left} addresses outside of the arguments")

    def count(self, accesses, name):
        """Return how often the programs accessed an element of an argument."""
        return sum(len(addresses) for _, addresses in accesses[name])


def elements(tensor):
    """Return the address of each element of a tensor."""
    offsets = np.zeros(1, dtype=np.uint64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(size, dtype=np.uint64) * np.uint64(stride)).ravel()
    return np.uint64(tensor.data_ptr()) + np.uint64(tensor.element_size()) * offsets


@contextmanager
def watched(kernel, name, monkeypatch):
    """Yield the memory that the function `name` of the module `kernel` accesses in the `with` block.

    The arguments of a launch must not overlap in memory.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    memory, function = Memory(), getattr(kernel, name)
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def watched_load(self, pointers, mask, *others):
        memory.record(memory.reads, self.grid_idx[0], pointers.data, mask.data)
        return load(self, pointers, mask, *others)

    def watched_store(self, pointers, value, mask, *others):
        memory.record(memory.writes, self.grid_idx[0], pointers.data, mask.data)
        return store(self, pointers, value, mask, *others)

    class Launcher:
        def __getitem__(self, grid):
            def launch(*arguments, **options):
                named = inspect.getcallargs(function.fn, *arguments, **options_of(options))
                memory.tensors = {key: value for key, value in named.items() if isinstance(value, torch.Tensor)}
                return function[grid](*arguments, **options)

            return launch

    def options_of(options):
        return {key: value for key, value in options.items() if key in inspect.signature(function.fn).parameters}

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", watched_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", watched_store)
        patch.setattr(kernel, name, Launcher())
        yield memory
