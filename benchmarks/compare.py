"""Find the forms that are slower than in another commit. Two processes, one for each commit, take turns to call them.

    python -m benchmarks --compare            # with the previous commit
    python -m benchmarks --compare v0.1.0     # with any other commit, or a folder that has the package

A call is slower if its ratio of times, new / old, exceeds 1 by more than the distance between the quartiles of the
ratio. It must also exceed 1 by more than the noise of torch on the same logits, since torch is the same code on both
sides. A second pair of processes must confirm a slower call, since memory addresses differ between processes. Ratios of
times from two jobs would be unreliable, so no times are stored.
"""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.paired import Spread
from benchmarks.peers import LOSSES
from benchmarks.turns import BLOCKS, Hot, Side, hot, ratios
from crossent.words import counted

ROOT = Path(__file__).resolve().parents[1]


def compare(
    old: Side,
    new: Side,
    *,
    calls: list[Hot] | None = None,
    blocks: int = BLOCKS,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Return a line for each call that is slower in two pairs of processes. Leave out a form that one side lacks.

    Raises:
        EndedError: the hot path does not run on one of the sides.
    """
    wanted = hot(tuple(LOSSES)) if calls is None else calls
    first = _worse(old, new, wanted, blocks, say)
    if not first:
        return []
    say("measuring the calls that seem slower again, in new processes")
    controls = [call for call in wanted if call.name == "torch"]
    again = [call for call in wanted if call in controls or call in first]
    second = _worse(old, new, again, blocks, say)
    return [f"{call}: {first[call]}; {second[call]}" for call in first if call in second]


def _worse(old: Side, new: Side, calls: list[Hot], blocks: int, say: Callable[[str], None]) -> dict[Hot, str]:
    """Return the slower calls in one pair of processes, each with a text about its ratio."""
    found: dict[Hot, Spread] = {}
    for call, ratio in ratios(old, new, calls, blocks):
        say(f"{call}: new / old {ratio}")
        found[call] = ratio
    noise = {call.logits: abs(ratio.median - 1) + ratio.width for call, ratio in found.items() if call.name == "torch"}
    return {
        call: f"new / old {ratio.median:.3f}, where noise alone reaches {allowed:.3f}"
        for call, ratio in found.items()
        if call.name != "torch" and ratio.median > (allowed := 1 + max(ratio.width, noise.get(call.logits, 0.0)))
    }


@contextlib.contextmanager
def checkout(ref: str, root: Path = ROOT) -> Iterator[str]:
    """Yield a folder that has the package of a commit, or the folder that `ref` names.

    Raises:
        ValueError: git has no such commit. The message ends with the message of git.
    """
    if (Path(ref) / "crossent" / "__init__.py").exists():
        yield str(Path(ref).resolve())
        return
    command = ["git", "-C", str(root), "archive", "--format=tar", ref, "crossent"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        first = said.decode(errors="replace").strip().splitlines()[0]
        raise ValueError(f"--compare: got {ref!r}; give a commit, or a folder that has the package: {first}") from None
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield folder


def run(ref: str, say: Callable[[str], None] = print) -> int:
    """Compare with a commit, print the slower calls, and return the exit status."""
    with checkout(ref) as folder:
        worse = compare(Side(ref, sys.executable, folder), Side("this", sys.executable, str(ROOT)), say=say)
    for line in worse:
        say(f"slower: {line}")
    say(f"slower than in {ref}: {counted(len(worse), 'call')}" if worse else f"no call is slower than in {ref}")
    return 1 if worse else 0
