"""Helpers: import only a part of a package, and declare the features that a loss lacks."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

# Reasons that several losses share.
LAST = "takes logits with the classes last"
FUNCTION = "is a torch.autograd.Function with a backward alone"


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


def function_of(package, file, name, **names):
    """Return one function from a file of a package. Only this function runs, with the given names as globals."""
    path = Path(importlib.util.find_spec(package).submodule_search_locations[0], file)
    (function,) = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == name)
    exec(compile(ast.Module([function], []), path, "exec"), names)
    return names[name]
