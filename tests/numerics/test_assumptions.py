"""Measure exp and log on this device: no error is above the errors that `FUNCTIONS` of the contracts assumes.

`FUNCTIONS` is a table in `crossent.numerics.bounds.contracts`.

The tests measure the functions that subjects call: `torch.exp` and `torch.log`, which may use a vector library, and exp
and log inside the kernels of log_softmax, which have other code. By default, the tests measure every 101st float32
number, in a second. With `--crossent-exhaustive`, the tests measure every number, in a minute.
"""

import itertools

import flint
import numpy as np
import pytest
import torch

from crossent.machine import lacks_float64
from crossent.numerics.bounds.contracts import FUNCTIONS
from crossent.numerics.formats import FORMATS
from crossent.subjects.compiler import INDUCTOR, why_cannot_compile

STRIDE = 101  # a prime, so that the numbers have all patterns of last bits
CHUNK = 2**21 + 13  # no multiple of the width of a vector, so that the last vector of a chunk is not full
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def exp_of_log_softmax(x, dim, width=None):
    """Return the exp(x) that the backward kernel of log_softmax computes, for `x ≤ 0`.

    The kernel computes `grad - exp(output) Σ grad`. If one element of `grad` is 1 and all others are 0, the result of
    each other element is `-exp(output)`.

    Args:
        x: the numbers, as a vector.
        dim: the dimension of the softmax: 1 is the last dimension, 0 the first.
        width: with `dim=1`, the number of elements of `x` in a row; by default, one row has all elements.
    """
    output = torch.cat([torch.zeros_like(x[:1]), x])
    if width is not None:
        pad = -len(x) % width
        rows = torch.cat([x, x.new_zeros(pad)]).reshape(-1, width)
        output = torch.cat([torch.zeros_like(rows[:, :1]), rows], 1)
    else:
        output = output[None] if dim == 1 else torch.stack([torch.zeros_like(x), x])
    grad = torch.zeros_like(output)
    (grad[:, 0] if dim == 1 else grad[0]).fill_(1)
    got = -torch._log_softmax_backward_data(grad, output, dim, x.dtype)
    return (got[:, 1:] if dim == 1 else got[1]).reshape(-1)[: len(x)]


EXP = {
    "torch.exp": torch.exp,
    "torch.exp, strided": lambda x: torch.stack([x, x], 1)[:, 0].exp(),
    "log_softmax, last dimension": lambda x: exp_of_log_softmax(x, 1),
    "log_softmax, rows of seven": lambda x: exp_of_log_softmax(x, 1, 6),
    "log_softmax, first dimension": lambda x: exp_of_log_softmax(x, 0),
}
LOG = {"torch.log": torch.log, "torch.log, strided": lambda s: torch.stack([s, s], 1)[:, 0].log()}


def log_of_log_softmax(x, dim):
    """Return `s = fl(1 + exp(x))` and the log(s) that the kernel of log_softmax computes, for `x ≤ 0`.

    For a row `0, x`, the first element of log_softmax is `-log s`. The exp in `s` comes from the backward kernel. If
    the forward kernel had another exp, the forward `s` would be another number, and the measured error of log would be
    many ulps.
    """
    s = 1 + exp_of_log_softmax(x, dim)
    rows = torch.stack([torch.zeros_like(x), x], dim)
    return s, -torch.log_softmax(rows, dim).select(dim, 0)


class Worst:
    """The largest error of each path that computes exp or log, in ulps of the exact result, and its argument.

    A path is a function of torch, called on one layout of numbers, such as "torch.exp, strided".
    """

    def __init__(self, name):
        self.format, self.seen = FORMATS[name], {}

    def add(self, path, x, got, exact, remainder=0.0):
        """Record the errors of the results `got` for the arguments `x`.

        The exact results are `exact + remainder`, where `exact` are the nearest float64 numbers.
        """
        place = np.maximum(
            np.abs(np.frexp(exact)[1]) * 0 + np.ldexp(1.0, np.frexp(exact)[1] - self.format.precision), 0
        )
        place = np.maximum(place, self.format.smallest_subnormal)
        error = np.abs((got.cpu().double().numpy() - exact) - remainder)
        # Near underflow, the bounds allow a flush to zero, whatever the error in ulps.
        small = np.abs(exact) < 8 * self.format.smallest_normal
        assert (error[small] <= self.format.smallest_normal).all(), path
        ulps = np.where(small, 0.0, error / place)
        at = int(ulps.argmax())
        before = self.seen.get(path, (0.0, 0.0, 0))
        self.seen[path] = (*max(before[:2], (float(ulps[at]), float(x[at]))), before[2] + len(ulps))

    def within(self, ulps, least_share=0.0):
        """Print the largest error of each path, and assert that the largest error of all paths is as assumed.

        This error must be above `least_share * ulps`, and at most the assumed `ulps`.
        """
        for path, (worst, at, count) in self.seen.items():
            print(f"{path}: {worst:.4f} ulp at {at!r}, of {count} {self.format.name} numbers; assumed {ulps}")
        assert least_share * ulps < max(worst for worst, _, _ in self.seen.values()) <= ulps, self.seen


@pytest.fixture
def stride(request):
    return 1 if request.config.getoption("--crossent-exhaustive") else STRIDE


def floats(start, stop, stride):
    """Yield every `stride`-th positive float32 number from `start` to `stop`, in chunks."""
    first, last = (int(np.float32(end).view(np.uint32)) for end in (start, stop))
    for low in range(first, last + 1, stride * CHUNK):
        yield np.arange(low, min(low + stride * CHUNK, last + 1), stride, dtype=np.uint32).view(np.float32)


def functions(device, dtype):
    if dtype == "float64" and (reason := lacks_float64(device)):
        pytest.skip(reason)
    return FUNCTIONS["cpu" if device == "cpu" else "cuda", dtype]


def least_share(device):
    """Return the share of the assumed error that the largest error must exceed.

    On a CPU, this share is a half, so the assumed error is less than twice the largest error. On CUDA, nobody has
    measured the errors yet, so this share is 0.
    """
    return 0.5 if device == "cpu" else 0.0


def test_exp_in_float32_is_as_near_as_assumed(device, stride):
    """Measure exp from -2^-25, where the result rounds to 1, to -104, where the result rounds to 0."""
    worst = Worst("float32")
    for x in floats(2.0**-25, 104.0, stride):
        exact = np.exp(-x.astype(np.float64))  # the error of float64 is negligible: 2^-29 times an ulp of float32
        given = torch.from_numpy(-x).to(device)
        for path, exp in EXP.items():
            got = exp(given)
            assert bool((got >= 0).all())
            worst.add(path, -x, got, exact)
    worst.within(functions(device, "float32").exp_ulps, least_share(device))


def test_log_in_float32_is_as_near_as_assumed(device, stride):
    """Measure log from 1 to 2^20. No row of a case has a larger sum of exponentials."""
    worst = Worst("float32")
    for s in floats(1.0, 2.0**20, stride):
        exact = np.log(s.astype(np.float64))
        for path, log in LOG.items():
            worst.add(path, s, log(torch.from_numpy(s).to(device)), exact)
    # All sums of exponentials of two classes: 1 + k 2^-23.
    for k in (np.arange(low, min(low + CHUNK * stride, 2**23), stride) for low in range(1, 2**23, CHUNK * stride)):
        x = torch.from_numpy(np.log(np.ldexp(k.astype(np.float64), -23)).astype(np.float32)).to(device)
        for dim in (0, 1):
            s, got = log_of_log_softmax(x, dim)
            s = s.cpu().double().numpy()
            worst.add(f"log_softmax, {('first', 'last')[dim]} dimension", s, got, np.log(s))
    for count in (3, 5, 7, 100, 1000, 32003, 50257, 131071):  # classes with equal logits
        for dim in (0, 1):
            got = -torch.log_softmax(torch.zeros((count, 1) if dim == 0 else (1, count), device=device), dim).reshape(
                -1
            )
            worst.add("log_softmax, equal logits", np.full(1, count), got[:1], np.log(np.full(1, float(count))))
    worst.within(functions(device, "float32").log_ulps, least_share(device))


def random_numbers_near(seed, count, centres):
    """Return a random generator, and random numbers near `centres`.

    Half of the numbers are within 40 ulps of a centre, the other half within a factor 1 ± 2^-10.
    """
    random = np.random.RandomState(seed)
    near = np.repeat(centres, max(1, count // 2 // len(centres)))
    ulps = np.spacing(near) * random.randint(-40, 41, len(near))
    parts = near * 2.0 ** -random.uniform(10, 52, len(near)) * random.choice([-1, 1], len(near))
    return random, np.concatenate([near + ulps, near + parts])


def reference(name, x):
    """Return exp or log of float64 numbers with an error of at most 2^-10 ulp.

    numpy's long double computes all numbers if it is wider than float64, and python-flint checks 2000 of them.
    Otherwise python-flint computes 20,000 of the numbers.

    Returns:
        The indices of the computed numbers, the results in float64, and the differences to the exact results.
    """
    wide = np.finfo(np.longdouble).nmant >= 63
    few = np.arange(0, len(x), max(1, len(x) // (2000 if wide else 20000)))
    with flint.ctx.workprec(128):
        balls = [getattr(flint.arb(float(value)), name)() for value in x[few]]
        hi = np.array([float(ball) for ball in balls])
        remainder = np.array([float(ball - flint.arb(float(value))) for ball, value in zip(balls, hi, strict=True)])
    if not wide:
        return few, hi, remainder
    long = getattr(np, name)(x.astype(np.longdouble))
    error = np.abs(((long[few] - hi) - remainder).astype(np.float64))
    assert (error <= 2.0**-10 * np.spacing(np.abs(hi))).all()
    return np.arange(len(x)), long.astype(np.float64), (long - long.astype(np.float64)).astype(np.float64)


def test_exp_in_float64_is_as_near_as_assumed(device, stride):
    assumed = functions(device, "float64").exp_ulps
    count = 200_000 if stride > 1 else 10_000_000
    # Near these numbers, a kernel changes its table or its multiple of ln 2, or the result is a power of two.
    random, near = random_numbers_near(1, count, np.arange(1, 2040) * np.log(2) / 4)
    x = -np.concatenate([near, random.uniform(0, 708, count // 4), 2.0 ** random.uniform(-54, 9.4, count // 4)])
    at, exact, remainder = reference("exp", x)
    worst = Worst("float64")
    for path, exp in EXP.items():
        worst.add(path, x[at], exp(torch.from_numpy(x[at]).to(device)), exact, remainder)
    worst.within(assumed, least_share(device))


def test_log_in_float64_is_as_near_as_assumed(device, stride):
    assumed = functions(device, "float64").log_ulps
    count = 200_000 if stride > 1 else 10_000_000
    random, near = random_numbers_near(
        2, count, np.ldexp(np.array([1, 0.75, 2**0.5, 4 / 3, 1.5]), np.arange(0, 18)[:, None]).ravel()
    )
    s = np.concatenate([near, 1 + 2.0 ** -random.uniform(0, 52, count // 4), 2.0 ** random.uniform(0, 17, count // 4)])
    s = s[s >= 1]
    at, exact, remainder = reference("log", s)
    worst = Worst("float64")
    for path, log in LOG.items():
        worst.add(path, s[at], log(torch.from_numpy(s[at]).to(device)), exact, remainder)
    x = torch.from_numpy(np.log(2.0 ** -random.uniform(0, 52, count))).to(device)
    for dim in (0, 1):
        s, got = log_of_log_softmax(x, dim)
        s = s.cpu().numpy()
        at, exact, remainder = reference("log", s)
        worst.add(f"log_softmax, {('first', 'last')[dim]} dimension", s[at], got[at], exact, remainder)
    worst.within(assumed, least_share(device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_short_and_odd_lengths_are_no_worse(device, dtype):
    """torch may compute the last elements of a tensor, which fill no vector, with other code than the rest.

    Test slices of every length up to 63, with eight different starts.
    """
    assumed = functions(device, dtype)
    x = -np.float32([0.011, 0.34657, 0.34658, 1.0397, 7.3, 20.1, 87.2, 3e-5] * 9).astype(np.float64)
    s = 2 - np.expm1(x)
    worst = {"exp": Worst(dtype), "log": Worst(dtype)}
    for name, paths, given in (("exp", EXP, x), ("log", LOG, s)):
        given = given.astype(dtype).astype(np.float64)
        _, exact, remainder = reference(name, given)
        for start in range(8):
            for length in range(1, 64):
                part = slice(start, start + length)
                numbers = torch.from_numpy(given[part].astype(dtype)).to(device)
                for path, function in paths.items():
                    worst[name].add(path, given[part], function(numbers), exact[part], remainder[part])
    worst["exp"].within(assumed.exp_ulps)
    worst["log"].within(assumed.log_ulps)


def test_exp_and_log_in_compiled_code_are_as_near_as_assumed(device, stride):
    """Measure code that torch compiled for a CPU: full vectors, and the last elements, which use the C library."""
    if reason := why_cannot_compile(INDUCTOR, device):
        pytest.skip(reason)
    if device != "cpu":
        pytest.skip("needs error bounds for Triton's accurate functions; the assumed bounds are for its fastest ones")
    exp, log = (torch.compile(function, dynamic=True, fullgraph=True) for function in (torch.exp, torch.log))
    worst = {(name, dtype): Worst(dtype) for name in ("exp", "log") for dtype in DTYPES}
    given = {
        "exp": (-x for x in floats(2.0**-25, 104.0, 10 * stride)),
        "log": floats(1.0, 2.0**20, 10 * stride),
    }
    for name, function in (("exp", exp), ("log", log)):
        for chunk in given[name]:
            exact = getattr(np, name)(chunk.astype(np.float64))
            worst[name, "float32"].add("whole vectors", chunk, function(torch.from_numpy(chunk)), exact)
            for start, length in itertools.product(range(0, len(chunk) - 64, 5003), (1, 2, 3, 5, 7, 31, 63)):
                part = slice(start, start + length)
                got = function(torch.from_numpy(chunk[part]))
                worst[name, "float32"].add("short and odd", chunk[part], got, exact[part])
    random, near = random_numbers_near(3, 40_000, np.arange(1, 2040) * np.log(2) / 4)
    for name, function, x in (
        ("exp", exp, -np.concatenate([near, random.uniform(0, 708, 10_000)])),
        ("log", log, 1 + 2.0 ** random.uniform(-52, 17, 40_000)),
    ):
        at, exact, remainder = reference(name, x)
        worst[name, "float64"].add("whole vectors", x[at], function(torch.from_numpy(x[at])), exact, remainder)
    for (name, dtype), errors in worst.items():
        errors.within(getattr(functions(device, dtype), f"{name}_ulps"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_that_the_bounds_assume_exact_are_exact(device, dtype):
    """Check exp(0) = 1, exp(-inf) = 0 and log(1) = 0 in tensors of every length up to 39."""
    assert functions(device, dtype)
    for length in range(1, 40):
        zero = torch.zeros(length, dtype=DTYPES[dtype], device=device)
        for exp in EXP.values():
            assert bool((exp(zero) == 1).all())
            assert bool((exp(-zero) == 1).all())
            assert bool((exp(zero - torch.inf) == 0).all())
        for log in LOG.values():
            assert bool((log(zero + 1) == 0).all())
        for dim in (0, 1):
            assert bool((log_of_log_softmax(zero - torch.inf, dim)[1] == 0).all())
