"""Cross-entropy written out by hand, and held to `torch.nn.CrossEntropyLoss`.

What is here is imported when it is asked for: pytest looks at the plugin in every project, and most need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossent.forms.blocks import blocked
    from crossent.forms.textbook import formula, log_softmax_nll, one_hot, scalar
    from crossent.report.moves.diff import diff
    from crossent.run.pytest_checks import parametrize
    from crossent.run.runner import check


__all__ = ["blocked", "check", "diff", "formula", "log_softmax_nll", "one_hot", "parametrize", "scalar"]
_FROM = {
    "blocked": "forms.blocks",
    "check": "run.runner",
    "diff": "report.moves.diff",
    "parametrize": "run.pytest_checks",
    **dict.fromkeys(("formula", "log_softmax_nll", "one_hot", "scalar"), "forms.textbook"),
}


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
    return found
