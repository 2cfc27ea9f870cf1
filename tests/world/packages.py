"""Helpers: import only a part of a package, and declare the features that a loss lacks."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# Reasons that several losses share.
LAST = "takes logits with the classes last"
FUNCTION = "is a torch.autograd.Function with a backward alone"
INDICES = "takes class indices"
ROWS = "takes logits of shape (N, C)"
BATCH = "takes a batch"
FLOAT32 = "returns a float32 loss for half-precision logits"
GATHER = "calls gather, which refuses uint8"
AUTOCAST = "leaves autocast to torch, which computes log_softmax in bfloat16 on a CPU"
TORCHS_ERRORS = "leaves errors to torch"


def without_init(*names):
    """Let Python import modules of these packages without running their `__init__.py`, which imports much more.

    For example, timm imports torchvision, which fails with a torch that is not its own. The losses do not need it.
    """
    for name in names:
        package = ModuleType(name)
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package


def lacks(**reasons):
    """Return a decorator that declares the features that a loss lacks, each with its reason."""

    def declare(loss):
        loss.lacks = reasons
        return loss

    return declare


def named(name, loss, **reasons):
    """Set the name of an adapted loss, and declare further features that the loss lacks."""
    loss.__name__ = name
    loss.lacks |= reasons
    return loss


def of_file(package, file, *names, **given):
    """Run only the functions and classes `names` of a file of a package, and return the first of them.

    `given` has the objects that this code uses, by the names under which the file imports them.
    """
    path = Path(importlib.util.find_spec(package).submodule_search_locations[0], file)
    wanted = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") in names]
    exec(compile(ast.Module(wanted, []), path, "exec"), given)
    return given[names[0]]
