"""Cross-entropy written out by hand, and a checker for any implementation of `torch.nn.CrossEntropyLoss`.

The loss of logits, in six forms (crossent/forms/textbook.py, blocks.py and fused.py). Here x is a row of logits, and y
is its true class:

    formula          -log softmax(x)[y], step by step
    log_softmax_nll  log_softmax, then the negative log-likelihood
    one_hot          a sum over all classes, with a dense target: 1 for the true class, 0 for every other class
    scalar           without torch, for one row: a list of Python numbers
    blocked          computes some rows at a time; the gradient is written by hand
    fused            one Triton kernel for CUDA; without CUDA, the same as blocked

The loss of hidden states and the weight of the last layer, in two forms (crossent/forms/linear.py):

    linear_formula   computes the logits, then their cross-entropy
    linear_blocked   computes some rows at a time, and keeps only the logits of these rows in memory

The checker:

    check        check functions against the exact value; returns a report
    parametrize  a pytest decorator: makes a test for each check on each case
    soak         check functions on any number of random cases; returns counts and worst cases
    merge        combine the reports of all shards (parts) of a run into one report
    over         check functions in shards, on an executor such as a pool of processes or Dask
    diff         compare two reports, for example of two versions of torch
    adapters     make functions of numpy, JAX and ONNX, and losses on ranks, callable with tensors
    Report, Diff, SoakReport   what `check`, `diff` and `soak` return; `Report.findings` is a list of Finding

The modules and folders of the package are called rooms. A room imports only rooms on its own line of this list, or on a
line above:

    words, files, choices   printable text; files written completely or not at all; words and limits of options
    machine, state          devices and versions; the global state of torch, numpy and Python
    forms                   the forms
    numerics                the exact value (oracle), and the error bounds (bounds)
    cases                   the inputs of a loss function, each rebuilt bit for bit from its id
    report                  the findings of a run, as text, HTML and JSON; the changes between two runs
    subjects                the functions under test
    adapters                public: from_numpy, from_jax, from_onnx, from_ranks
    trials                  one subject on one case: its result, the exact value, the difference
    checks                  the properties that a subject must have
    run                     runs the checks of a level on its cases, and makes the report
    repro                   a script that repeats a finding
    option_types, options, console, commands, cli   the command, its options, and its output
    plugin                  the pytest plugin
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossent import adapters as adapters
    from crossent.forms.blocks import blocked
    from crossent.forms.fused import fused
    from crossent.forms.linear import linear_blocked, linear_formula
    from crossent.forms.textbook import formula, log_softmax_nll, one_hot, scalar
    from crossent.report.findings import Finding
    from crossent.report.moves.diff import Diff, diff
    from crossent.report.report import Report
    from crossent.run.pytest_checks import parametrize
    from crossent.run.runner import check
    from crossent.run.shards.executor import over
    from crossent.run.soak.merge import merge
    from crossent.run.soak.report import SoakReport
    from crossent.run.soak.runner import soak

    __version__: str

__all__ = [
    "Diff",
    "Finding",
    "Report",
    "SoakReport",
    "__version__",
    "blocked",
    "check",
    "diff",
    "formula",
    "fused",
    "linear_blocked",
    "linear_formula",
    "log_softmax_nll",
    "merge",
    "one_hot",
    "over",
    "parametrize",
    "scalar",
    "soak",
]
_FROM = {
    "Diff": "report.moves.diff",
    "Finding": "report.findings",
    "Report": "report.report",
    "SoakReport": "run.soak.report",
    "blocked": "forms.blocks",
    "check": "run.runner",
    "diff": "report.moves.diff",
    "fused": "forms.fused",
    "merge": "run.soak.merge",
    "over": "run.shards.executor",
    "parametrize": "run.pytest_checks",
    "soak": "run.soak.runner",
    **dict.fromkeys(("formula", "log_softmax_nll", "one_hot", "scalar"), "forms.textbook"),
    **dict.fromkeys(("linear_blocked", "linear_formula"), "forms.linear"),
}


# Import a name on its first use: pytest loads the plugin in every project, and importing torch is slow.
def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name == "adapters":
        return import_module(f"{__name__}.adapters")
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "adapters"])
