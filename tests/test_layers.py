"""The rooms of the package: their allowed imports, and one place for each name."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from importlinter import cli

import crossent
from crossent.forms import FORMS, KERNEL_FORMS, LINEAR_FORMS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crossent"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({module.parent for module in MODULES})
MOST_MODULES, MOST_LINES = 12, 350


def test_a_room_imports_only_what_its_contract_allows():
    assert cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_the_exact_answer_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import crossent.numerics.oracle.answer, crossent.numerics.bounds.loss"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_public_class_or_constant_stands_in_one_module():
    homes = defaultdict(list)
    for module in MODULES:
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_") and len(name) > 1:  # a type variable is a letter
                    homes[name].append(str(module.relative_to(PACKAGE)))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_room_is_small_and_lists_its_modules(folder):
    modules = sorted(module.stem for module in folder.glob("*.py") if not module.stem.startswith("__"))
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    assert len(modules) + 1 <= MOST_MODULES
    assert [name for name in modules if name not in text] == []


@pytest.mark.parametrize(
    "module", [*MODULES, *sorted((ROOT / "tests" / "support").rglob("*.py"))], ids=lambda module: module.stem
)
def test_a_module_is_short(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_form_is_a_public_name():
    forms = {**FORMS, **KERNEL_FORMS, **LINEAR_FORMS}
    assert set(forms) < set(crossent.__all__)
    assert all(getattr(crossent, name) is form for name, form in forms.items())
