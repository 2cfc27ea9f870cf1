"""Whether a form has become slower: this checkout and another one take turns in the same job.

    python -m benchmarks --compare            # with the commit before this one
    python -m benchmarks --compare v0.1.0     # with any other, or a folder that has the package

Worse is a call whose ratio, new over old, is above 1 by more than it spreads, and by more than torch itself is off on
such logits in the same two processes, whose code is the same in both. It must be so in a second pair of processes too:
where memory comes to lie differs from one to the next. Times of two jobs are no ratio, so none is kept.
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
from benchmarks.turns import BLOCKS, Hot, Side, hot, ratios

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("formula", "log_softmax_nll", "one_hot", "blocked")


def compare(
    old: Side,
    new: Side,
    *,
    calls: list[Hot] | None = None,
    blocks: int = BLOCKS,
    say: Callable[[str], None] = print,
) -> list[str]:
    """What has become worse, in words, each time that it was measured.

    Raises:
        EndedError: a side on which the hot path does not run.
    """
    asked = hot(("torch", *FORMS)) if calls is None else calls
    first = _worse(old, new, asked, blocks, say)
    if not first:
        return []
    say("once more, what seems worse, in new processes")
    controls = [call for call in asked if call.name == "torch"]
    again = [call for call in asked if call in controls or call in first]
    second = _worse(old, new, again, blocks, say)
    return [f"{call}: {first[call]}; {second[call]}" for call in first if call in second]


def _worse(old: Side, new: Side, calls: list[Hot], blocks: int, say: Callable[[str], None]) -> dict[Hot, str]:
    """What is worse in one pair of processes."""
    found: dict[Hot, Spread] = {}
    for call, ratio in ratios(old, new, calls, blocks):
        say(f"{call}: {ratio} of the time")
        found[call] = ratio
    noise = {call.logits: abs(ratio.median - 1) + ratio.width for call, ratio in found.items() if call.name == "torch"}
    return {
        call: f"{ratio.median:.3f} of the time, where {allowed:.3f} is as far as it spreads"
        for call, ratio in found.items()
        if call.name != "torch" and ratio.median > (allowed := 1 + max(ratio.width, noise.get(call.logits, 0.0)))
    }


@contextlib.contextmanager
def checkout(ref: str, root: Path = ROOT) -> Iterator[str]:
    """The folder that has the package as it is in a commit; or the folder itself that is named.

    Raises:
        ValueError: there is none, with what git says.
    """
    if (Path(ref) / "crossent" / "__init__.py").exists():
        yield str(Path(ref).resolve())
        return
    command = ["git", "-C", str(root), "archive", "--format=tar", ref, "crossent"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        raise ValueError(f"{ref}: {said.decode(errors='replace').strip().splitlines()[0]}") from None
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="data")
        yield folder


def run(ref: str, say: Callable[[str], None] = print) -> int:
    """Compare with a commit, and say what is worse; the exit status."""
    with checkout(ref) as folder:
        worse = compare(Side(ref, sys.executable, folder), Side("this", sys.executable, str(ROOT)), say=say)
    for line in worse:
        say(f"worse: {line}")
    say(f"{len(worse)} worse than {ref}" if worse else f"nothing is worse than in {ref} by more than it spreads")
    return 1 if worse else 0
