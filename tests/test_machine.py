"""The machine: a run has the same bits, however many threads the libraries would use."""

import os
import subprocess
import sys

import pytest
import torch

from crossent import machine

PRODUCTS = """
import zlib
import numpy as np
from crossent.machine import ambient
random = np.random.default_rng(0)
h, w = random.standard_normal((130, 513)), random.standard_normal((257, 513))
with ambient():
    print(zlib.crc32((h @ w.T).tobytes()))
"""


@pytest.mark.skipif(machine._thread_functions() is None, reason="needs a numpy with OpenBLAS in its wheel")
def test_the_products_of_a_run_have_the_same_bits_with_any_number_of_threads():
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRODUCTS],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "4")
    }
    assert len(printed) == 1


def test_a_run_has_one_thread_and_restores_the_number_of_threads():
    functions = machine._thread_functions()
    before = torch.get_num_threads(), functions and functions[0]()
    with machine.ambient():
        assert torch.get_num_threads() == 1
        assert functions is None or functions[0]() == 1
    assert (torch.get_num_threads(), functions and functions[0]()) == before
