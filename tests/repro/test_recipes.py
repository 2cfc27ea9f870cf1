"""Every check has a recipe, and a test shows that every recipe works."""

import ast
import inspect
import textwrap
from functools import partial

import pytest
from support.repro.wrong_findings import KINDS

from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.checks import CHECKS
from crossent.checks.refusals import judge_reaction
from crossent.repro.recipes import RECIPES, REFUSALS, nothing


def kinds_of(function, seen=()):
    """Return the kinds of the findings that a check may have, from the source of its function and of its callees.

    Each `Problem` names its kind. A function that may raise RefusedError has the kind "refused".
    """
    function = inspect.unwrap(function.func if isinstance(function, partial) else function)
    if function in seen or not function.__module__.startswith("crossent"):
        return set()
    found = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "Problem"
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(node.args[0].value)
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            if name in ("trial.evaluate", "trial.perform") or (
                name == "RefusedError" and isinstance(node.ctx, ast.Load)
            ):
                found.add("refused")
            if name == "MisshapenError":  # Check.run turns this error into a problem
                found.add("wrong")
            known = function.__globals__.get(name.partition(".")[0])
            called = getattr(known, name.partition(".")[2], known) if inspect.ismodule(known) else known
            if inspect.isfunction(called):
                found |= kinds_of(called, (*seen, function))
    return found


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_has_a_recipe_for_each_kind_of_finding(name):
    recipe = RECIPES[name]
    kinds = kinds_of(CHECKS[name].body)
    if recipe.numbers is not nothing:
        kinds.add("wrong")
    if name == "call":
        kinds.add("refused")  # the first call, which every check uses, may raise
    assert set(recipe.kinds) == kinds


def test_every_recipe_is_of_a_check():
    assert list(RECIPES) == list(CHECKS)
    assert set(REFUSALS) == {"errors", "arguments", "state"}
    assert set().union(*(recipe.kinds for recipe in REFUSALS.values())) == kinds_of(judge_reaction) | {
        "crashed",
        "hung",
    }


def test_every_recipe_is_shown_to_work():
    """`KINDS` has an example for each script function and kind of finding, except the examples of other tests."""
    wanted = {(recipe.step, kind) for recipe in (*RECIPES.values(), *REFUSALS.values()) for kind in recipe.kinds}
    shown = set()
    for _, case, said in KINDS.values():
        check, kind = said.split()
        of = REFUSALS if case in {bad_input.id for bad_input in BAD_INPUTS} else RECIPES
        shown.add((of[check].step, kind))
    # Other tests have examples of these checks.
    tested_elsewhere = {
        "chunks": RECIPES,
        "memory": RECIPES,
        "stream": RECIPES,
        "compiled_error": RECIPES,
        "errors": REFUSALS,
    }
    assert (
        wanted - shown
        == {(of[name].step, kind) for name, of in tested_elsewhere.items() for kind in of[name].kinds} - shown
    )
