"""Copy functions of the folder `scripts` into a printed script, with all functions and classes that they use."""

from __future__ import annotations

import ast
import inspect
import symtable
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from crossent.repro.scripts import case

ScriptFunction = Callable[..., Any]


@dataclass
class Code:
    """The code that has been copied into a script.

    Attributes:
        instead: the functions to copy in place of others, by the names of the replaced functions.
        functions: the text of each copied function or class, by name. A function comes after the functions that it
            uses.
        imports: the modules that the functions use, except torch.
        values: the names of the values of `scripts/case.py` that the functions use.
    """

    instead: Mapping[str, ScriptFunction] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)

    def add(self, function: ScriptFunction, name: str = "") -> None:
        """Copy a function or class into the script, after all functions that its text uses.

        `name` is the name in the script; by default, the function keeps its name.
        """
        name = name or function.__name__
        function = self.instead.get(name, function)
        if name in self.functions:
            return
        file = _read(function.__module__)
        text, used = file.definitions[function.__name__]
        for other in sorted(used - {function.__name__}):
            if other in file.definitions or file.origins.get(other, case.__name__) != case.__name__:
                self.add(getattr(sys.modules[function.__module__], other))
            elif other in file.origins:
                self.values.add(other)
            elif other in file.modules:
                self.imports.add(other)
        self.functions[name] = text.replace(f"def {function.__name__}(", f"def {name}(", 1)


@dataclass(frozen=True)
class _File:
    """The definitions and imports of a file of `scripts`.

    Attributes:
        definitions: the text of each function and class, with the names that the text uses.
        origins: the module of each NAME in a line `from MODULE import NAME`.
        modules: each MODULE in a line `import MODULE`, except torch.
    """

    definitions: Mapping[str, tuple[str, frozenset[str]]]
    origins: Mapping[str, str]
    modules: frozenset[str]


@cache
def _read(module: str) -> _File:
    lines = inspect.getsource(sys.modules[module]).splitlines()
    body = ast.parse("\n".join(lines)).body
    definitions = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            definitions[node.name] = text, frozenset(_globals(symtable.symtable(text, module, "exec")))
    origins = {name.name: node.module or "" for node in body if isinstance(node, ast.ImportFrom) for name in node.names}
    modules = {name.name for node in body if isinstance(node, ast.Import) for name in node.names}
    return _File(definitions, origins, frozenset(modules - {"torch"}))


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the global names and builtins that the code of `table` uses, also in nested functions."""
    at_top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_global() or (at_top and symbol.is_referenced()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _globals(child)
