"""Help for the glue: import a part of a package alone, and declare the features that a loss lacks."""

import importlib.util
import sys
from types import ModuleType


def without_init(*names):
    """Let Python import modules of these packages without their `__init__.py`, which would import much more.

    timm, for example, imports torchvision, which fails beside a torch that is not its own. The losses do not need it.
    """
    for name in names:
        package = ModuleType(name)
        package.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
        sys.modules[name] = package


def lacks(**reasons):
    """Declare the features that a loss lacks, each with its reason."""

    def declare(loss):
        loss.lacks = reasons
        return loss

    return declare
