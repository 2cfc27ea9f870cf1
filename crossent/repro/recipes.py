"""Recipes: for each check, functions of the folder `scripts` that repeat a finding, and the values that they use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.cases.operation import GRADIENTS
from crossent.checks import compiled_code, leaves
from crossent.checks.circumstances import CIRCUMSTANCES, THREADS, UNRECORDED, circumstances_of
from crossent.checks.large import GIB, MEMORY_CLASSES, MEMORY_ROWS, needed_bytes
from crossent.checks.relations import changes, chunks
from crossent.repro import equations
from crossent.repro.composer import ScriptFunction
from crossent.repro.equations import Equations, Index, Shapes, part_shapes
from crossent.repro.scripts import circumstances, derivatives, determinism, refusals, relations, single, transforms
from crossent.repro.scripts.compiled_code import call_compiled, check_compiled_errors
from crossent.repro.scripts.single import call_once, judge_number
from crossent.subjects.compiler import INDUCTOR, TRACER
from crossent.subjects.subject import Subject
from crossent.trials.agreement import RESULT_PARTS


@dataclass(frozen=True)
class Focus:
    """The part of a result, or the one number in this part, that a finding is about.

    Attributes:
        case, inputs, subject: the case, its inputs on the CPU, and the subject.
        of: the name of the part, such as "gradient"; "" for no part. A check of several calls adds the call, as in
            "gradient reversed along dimension 2".
        index: the index of the number in this part; None for no number.
    """

    case: Case
    inputs: Inputs
    subject: Subject
    of: str = ""
    index: Index | None = None

    @property
    def part(self) -> str:
        """The name of the part, such as "gradient", or ""."""
        return self.of.partition(" ")[0]

    @property
    def call(self) -> str:
        """The name of the call, such as "reversed along dimension 2", or ""."""
        return self.of.partition(" ")[2]


def nothing(focus: Focus) -> dict[str, Any]:
    """Return an empty dict: the default for the functions of a :class:`Recipe`."""
    return {}


@dataclass(frozen=True)
class Recipe:
    """The functions and values of a script that repeats a finding of a check.

    Attributes:
        kinds: the kinds of findings of the check, besides "crashed" and "hung".
        step: the function that calls the subject. A step may end the script itself, for example if a shape is wrong.
        number: the function that judges one number in the result of `step`; None if no finding is about a number.
        whole: the function that judges a whole part of a result; None if no finding is about a whole part.
        numbers: a function that returns the shape of each part in which a number can be wrong, by name (`Focus.of`).
        wholes: a function that returns the shape of each part that can be wrong as a whole, by name (`Focus.of`).
        numbered: whether each finding of kind "wrong" is about a number.
        values: a function that returns the further values that the script needs, by name.
    """

    kinds: tuple[str, ...]
    step: ScriptFunction
    number: ScriptFunction | None = None
    whole: ScriptFunction | None = None
    numbers: Callable[[Focus], Shapes] = nothing
    wholes: Callable[[Focus], Shapes] = nothing
    numbered: bool = False
    values: Callable[[Focus], dict[str, Any]] = nothing


EITHER = ("wrong", "refused")  # the kinds of most checks: a wrong result, or an exception


# Functions for the attributes of a recipe: a function that returns `Shapes` is for `numbers`, any other for `values`.
def _all(focus: Focus) -> Shapes:
    return part_shapes(focus.inputs)


def _only(part: str) -> Callable[[Focus], Shapes]:
    return lambda focus: {part: part_shapes(focus.inputs)[part]}


def _rows(focus: Focus) -> Shapes:
    sizes = focus.inputs.input.shape
    return {"gradient": (sizes[0], *sizes[2:]) if len(sizes) > 1 else ()}


def _number(numbers: Callable[[Focus], Shapes], number: ScriptFunction = judge_number) -> Recipe:
    """Return the recipe of a check whose only findings are wrong numbers of one call."""
    return Recipe(("wrong",), call_once, number, numbers=numbers, numbered=True)


def _equal(equations_of: Equations, whole: ScriptFunction | None = None) -> Recipe:
    """Return the recipe of a check that tests equations; `whole` judges two results that must differ."""

    def named(focus: Focus, *, whole: bool) -> Shapes:
        found = equations_of(focus.case, focus.inputs).items()
        calls = [call for call, equation in found if (equation.terms is None) == whole]
        shapes = part_shapes(focus.inputs).items()
        return {f"{part} {call}".rstrip(): shape for call in calls for part, shape in shapes}

    def values(focus: Focus) -> dict[str, Any]:
        found = equations_of(focus.case, focus.inputs)
        if not focus.of:
            return {"equations": [equation.inputs for equation in found.values()]}
        equation = found[focus.call]
        terms = equation.terms(focus.part, focus.index) if equation.terms and focus.index is not None else ()
        return {"equations": [equation.inputs], "terms": terms}

    numbers, wholes = partial(named, whole=False), partial(named, whole=True)
    return Recipe(EITHER, relations.call_each, relations.judge_terms, whole, numbers, wholes, values=values)


def _called(
    step: ScriptFunction,
    calls: Mapping[str, tuple[str, ...]],
    *,
    number: ScriptFunction = circumstances.judge_one_call,
    kinds: tuple[str, ...] = EITHER,
) -> Recipe:
    """Return the recipe of a check that makes several calls.

    `calls` has the names of the judged parts of each result, by the name of the call.
    """

    def numbers(focus: Focus) -> Shapes:
        known = part_shapes(focus.inputs)
        return {f"{part} {call}": known[part] for call, names in calls.items() for part in names if part in known}

    def values(focus: Focus) -> dict[str, Any]:
        return {"calls": tuple(calls), "which_call": focus.call, **_others(focus)}

    return Recipe(kinds, step, number, numbers=numbers, values=values)


def _others(focus: Focus) -> dict[str, Any]:
    return of_other_numbers(focus.case)


def of_other_numbers(case: Case) -> dict[str, Any]:
    """Return the value `other` of a script: the inputs of the same case with another seed."""
    return {"other": case.seeded(case.seed + 1).build()}


def _of_some(focus: Focus) -> Shapes:
    known, ways = part_shapes(focus.inputs), leaves.gradients_by_call(focus.inputs)
    return {f"{part} {call}": known[part] for call, names in ways.items() for part in ("loss", *names)}


def _wanted(focus: Focus) -> dict[str, Any]:
    ways = leaves.gradients_by_call(focus.inputs).items()
    wanted = tuple((call, {name: GRADIENTS[name] for name in names}) for call, names in ways)
    return {"wanted_of": wanted, "which_call": focus.call}


def _of_chunks(focus: Focus) -> Shapes:
    ways = chunks.chunk_sizes_by_call(focus.inputs, focus.subject.chunks)
    return {f"{part} {call}": shape for call in ways for part, shape in part_shapes(focus.inputs).items()}


def _chunk_sizes(focus: Focus) -> dict[str, Any]:
    ways = chunks.chunk_sizes_by_call(focus.inputs, focus.subject.chunks).items()
    sizes = tuple((call, *keyword_and_size) for call, keyword_and_size in ways if focus.call in ("", call))
    return {"chunk_sizes": sizes, "which_call": focus.call}


def _derivative(step: ScriptFunction, *names: str, batch: tuple[int, ...] = ()) -> Recipe:
    """Return the recipe of a check of the derivatives `names`; `batch` is the shape of the batch of directions."""

    def shapes(focus: Focus) -> Shapes:
        known = part_shapes(focus.inputs)
        return {name: (*batch, *known["gradient" if name == "second" else "loss"]) for name in names}

    def values(focus: Focus) -> dict[str, Any]:
        along = {"direction": focus.case.direction()}
        return {**along, "shape": shapes(focus)[focus.of]} if focus.of else along

    number, whole = derivatives.judge_derivative, derivatives.judge_presence
    return Recipe(EITHER, step, number, whole, shapes, shapes, values=values)


def _wrong_or_refused(
    step: ScriptFunction, numbers: Callable[[Focus], Shapes] = _all, *, number: ScriptFunction = judge_number
) -> Recipe:
    """Return the recipe of a check whose findings are wrong results or exceptions."""
    return Recipe(EITHER, step, number, numbers=numbers)


def _of_samples(focus: Focus) -> Shapes:
    logits = focus.inputs.input
    reduced = {} if focus.inputs.upstream.dim() else {"loss": (logits.shape[0 if logits.dim() == 2 else -1],)}
    return {**part_shapes(focus.inputs), **reduced}


def _of_batch(focus: Focus) -> Shapes:
    return {name: (2, *shape) for name, shape in part_shapes(focus.inputs).items() if name != "loss"}


def _compiled(backend: str, *, dynamic: bool) -> Recipe:
    """Return the recipe of a check that calls the compiled subject twice, with different sizes if `dynamic`."""

    def second(focus: Focus) -> tuple[str, Inputs]:
        larger = compiled_code.larger(focus.case)
        return (f"on {larger.id}", larger.build()) if dynamic else ("in a second call", focus.inputs)

    def numbers(focus: Focus) -> Shapes:
        call, other = second(focus)
        of_second = {f"{part} {call}": shape for part, shape in part_shapes(other).items()}
        return {**part_shapes(focus.inputs), **of_second}

    def values(focus: Focus) -> dict[str, Any]:
        which = {"other": second(focus)[1], "which_call": int(focus.call != "")}
        return {"backend": backend, "dynamic": dynamic, **which}

    return Recipe(EITHER, call_compiled, circumstances.judge_one_call, numbers=numbers, values=values)


def _wrong_classes(focus: Focus) -> dict[str, Any]:
    return {"backend": INDUCTOR, "dynamic": False, "classes": compiled_code.wrong_classes(focus.inputs)}


def _of_tiles(focus: Focus) -> Shapes:
    times = focus.case.tiled
    return {name: (times * shape[0], *shape[1:]) if shape else () for name, shape in part_shapes(focus.inputs).items()}


def _many(focus: Focus) -> dict[str, Any]:
    return {"many": (MEMORY_ROWS, MEMORY_CLASSES)}


def _tiles(focus: Focus) -> dict[str, Any]:
    gib = needed_bytes(focus.case, focus.subject) / GIB
    return {"times": focus.case.tiled, "each_row": focus.case.upstream == "rows", "gib": gib}


# The recipes on cases, by the name of the check.
RECIPES = {
    "call": Recipe(("refused",), single.show_call),
    "result": Recipe(("wrong",), single.check_shape),
    "arguments": Recipe(("changed_input", "aliased"), single.check_arguments),
    "state": Recipe(("changed_state",), single.check_state),
    "loss": _number(_only("loss")),
    "gradient": _number(_only("gradient")),
    "target_gradient": _number(_only("target_gradient")),
    "weight_gradient": _number(_only("weight_gradient")),
    "bias_gradient": _number(_only("bias_gradient")),
    "repeat": Recipe(("not_repeated", "refused"), single.check_repeat, values=_others),
    "sign": _number(_only("loss"), single.judge_sign),
    "row_sums": _number(_rows, single.judge_row_sum),
    "ignored_rows": Recipe(("wrong",), single.check_ignored_rows),
    "layout": _equal(equations.equal_to(changes.contiguous)),
    "shift": _equal(equations.of_shifted_logits),
    "rows_permuted": _equal(equations.of_reversed_rows),
    "classes_permuted": _equal(equations.of_reversed_classes),
    "split": _equal(equations.of_two_batches),
    "chunks": Recipe(
        EITHER, relations.call_in_chunks, circumstances.judge_one_call, numbers=_of_chunks, values=_chunk_sizes
    ),
    "widened": _equal(equations.equal_to(changes.wide)),
    "options": _equal(equations.of_options, relations.judge_unchanged),
    "two_backwards": Recipe(
        ("disturbed", "not_repeated", *EITHER),
        relations.check_two_backwards,
        values=lambda focus: {"other": changes.with_reversed_targets(focus.inputs)},
    ),
    "no_grad": _called(
        circumstances.call_without_gradients,
        dict.fromkeys(UNRECORDED, ("loss",)),
        kinds=("changed_input", "not_repeated", *EITHER),
    ),
    "non_leaf": Recipe(("changed_input", *EITHER), circumstances.call_on_non_leaf, judge_number, numbers=_all),
    "alone": Recipe(
        EITHER, circumstances.call_for_some_gradients, circumstances.judge_one_call, numbers=_of_some, values=_wanted
    ),
    "threads": _called(
        circumstances.call_in_threads, dict.fromkeys(THREADS, RESULT_PARTS), number=circumstances.judge_every_try
    ),
    "circumstances": replace(
        _called(circumstances.call_in_circumstances, dict.fromkeys(CIRCUMSTANCES, RESULT_PARTS)),
        values=lambda focus: {"calls": circumstances_of(focus.case, focus.subject), "which_call": focus.call},
    ),
    "double_backward": _derivative(derivatives.differentiate_twice, "second", "upstream_gradient"),
    "forward_ad": _derivative(derivatives.differentiate_forward, "tangent"),
    "deterministic": Recipe(("not_repeated", "refused"), determinism.check_deterministic),
    "stream": Recipe(EITHER, determinism.call_on_stream, judge_number, numbers=_all, numbered=True),
    "func_grad": _wrong_or_refused(transforms.call_under_vjp),
    "vmap": _wrong_or_refused(transforms.call_under_vmap, _of_samples, number=transforms.judge_samples),
    "batched_gradient": _wrong_or_refused(transforms.differentiate_batch, _of_batch),
    "jacrev": _wrong_or_refused(transforms.differentiate_by_jacrev, _of_batch),
    "jacfwd": _derivative(transforms.differentiate_by_jacfwd, "tangent", batch=(2,)),
    "batched_second": _derivative(transforms.differentiate_batch_twice, "second", "upstream_gradient", batch=(2,)),
    "hessian": _derivative(transforms.differentiate_by_hessian, "second", batch=(2,)),
    "autocast": _wrong_or_refused(transforms.call_under_autocast),
    "meta": Recipe(EITHER, transforms.call_on_meta),
    "export": _wrong_or_refused(transforms.call_exported, _only("loss")),
    "trace": _compiled(TRACER, dynamic=False),
    "trace_dynamic": _compiled(TRACER, dynamic=True),
    "compile": _compiled(INDUCTOR, dynamic=False),
    "compile_dynamic": _compiled(INDUCTOR, dynamic=True),
    "compiled_error": Recipe(("accepted", "refused", "wrong"), check_compiled_errors, values=_wrong_classes),
    "memory": Recipe(EITHER, single.check_memory, values=_many),
    "large": replace(_wrong_or_refused(single.call_on_repeated, _of_tiles), values=_tiles),
}
# The recipes on bad inputs, by the name of the check.
REFUSALS = {
    "errors": Recipe(("accepted", "wrong", "crashed", "hung"), refusals.check_refused),
    "arguments": Recipe(("changed_input",), refusals.check_arguments_of_bad_call),
    "state": Recipe(("changed_state",), refusals.check_state_after_bad_call),
}
