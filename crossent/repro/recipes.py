"""Recipes: how a script repeats what a check found, made of `snippets` and `steps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.checks import circumstances, compiled_code, relations
from crossent.checks.large import GIB, needed
from crossent.repro import equations, snippets, steps
from crossent.repro.equations import Equations, Index, Shapes, parts
from crossent.subjects import compiler
from crossent.subjects.subject import Subject
from crossent.trials.agreement import RESULT_PARTS


@dataclass(frozen=True)
class Focus:
    """What a script is to show.

    Attributes:
        case, inputs, subject: what was called with what; the tensors are on the CPU.
        of, index: the result that the finding is about, and the number in it; "" and None where it is none.
    """

    case: Case
    inputs: Inputs
    subject: Subject
    of: str = ""
    index: Index | None = None

    @property
    def part(self) -> str:
        """Which part of a result it is: the loss or a gradient."""
        return self.of.partition(" ")[0]

    @property
    def way(self) -> str:
        """How it came about, where there are several ways."""
        return self.of.partition(" ")[2]


def nothing(asked: Focus) -> dict[str, Any]:
    """No values, and no results."""
    return {}


@dataclass(frozen=True)
class Recipe:
    """How a script repeats what a check found.

    Attributes:
        kinds: of its findings.
        functions: what the steps call, but for what judges numbers.
        steps: what is done with the subject. They end the script where something is wrong that is no number.
        number: how the number of a finding is judged after them.
        whole: what is looked at after them where a finding is about a result, but about no number of it.
        numbers: the results that a number may be of, by the words of a finding, and their sizes.
        wholes: the same for what may be wrong as a whole.
        numbered: whether all that is "wrong" is a number.
        values: what the steps need besides the case, by name.
    """

    kinds: tuple[str, ...]
    functions: tuple[str, ...]
    steps: tuple[str, ...]
    number: str = ""
    whole: str = ""
    numbers: Callable[[Focus], Shapes] = nothing
    wholes: Callable[[Focus], Shapes] = nothing
    numbered: bool = False
    values: Callable[[Focus], dict[str, Any]] = nothing


EITHER = ("wrong", "refused")
ONCE = (snippets.EVALUATE,)
AGAIN = (snippets.EVALUATE, snippets.SHAPED, snippets.FRESH)
BITWISE = (*AGAIN, snippets.POISON, snippets.BITS)
ARGUMENTS = (snippets.MEMORY, snippets.ARGUMENTS, snippets.CHANGED)
STATE = (snippets.STATE, snippets.CHANGED)


def _all(asked: Focus) -> Shapes:
    return parts(asked.inputs)


def _only(part: str) -> Callable[[Focus], Shapes]:
    return lambda asked: {part: parts(asked.inputs)[part]}


def _rows(asked: Focus) -> Shapes:
    sizes = asked.inputs.logits.shape
    return {"gradient": (sizes[0], *sizes[2:]) if len(sizes) > 1 else ()}


def _number(numbers: Callable[[Focus], Shapes], number: str = steps.JUDGED) -> Recipe:
    """Of a number of the first call."""
    return Recipe(("wrong",), ONCE, (steps.ONCE,), number, numbers=numbers, numbered=True)


def _related(known: Equations, whole: str = "") -> Recipe:
    """Of a result that follows from others."""

    def named(asked: Focus, *, whole: bool) -> Shapes:
        found = known(asked.case, asked.inputs).items()
        names = [name for name, way in found if (way.followed is None) == whole]
        return {f"{part} {name}".rstrip(): shape for name in names for part, shape in parts(asked.inputs).items()}

    def values(asked: Focus) -> dict[str, Any]:
        found = known(asked.case, asked.inputs)
        if not asked.of:
            return {"ways": [way.inputs for way in found.values()]}
        way = found[asked.way]
        followed = way.followed(asked.part, asked.index) if way.followed and asked.index is not None else ()
        return {"ways": [way.inputs], "followed": followed}

    numbers, wholes = partial(named, whole=False), partial(named, whole=True)
    return Recipe(EITHER, AGAIN, (steps.RELATED,), steps.FOLLOWS, whole, numbers, wholes, values=values)


def _called(step: str, *functions: str, kinds: tuple[str, ...] = EITHER, ways: Mapping[str, tuple[str, ...]]) -> Recipe:
    """Of calls in several circumstances: `ways` says which parts of a result there are in each."""

    def numbers(asked: Focus) -> Shapes:
        known = parts(asked.inputs)
        return {f"{part} {way}": known[part] for way, of in ways.items() for part in of if part in known}

    def values(asked: Focus) -> dict[str, Any]:
        other = asked.case.seeded(asked.case.seed + 1).build()
        return {"ways": tuple(ways), "which": asked.way, "other": other}

    return Recipe(kinds, (*AGAIN, *functions), (step,), steps.OF_A_WAY, numbers=numbers, values=values)


def _derivative(step: str, *names: str) -> Recipe:
    """Of derivatives along the case's direction. Where one is cut off, it is 0."""

    def shapes(asked: Focus) -> Shapes:
        known = parts(asked.inputs)
        return {name: known["gradient" if name == "second" else "loss"] for name in names}

    def values(asked: Focus) -> dict[str, Any]:
        along = {"direction": asked.case.direction()}
        return {**along, "shape": shapes(asked)[asked.of]} if asked.of else along

    return Recipe(EITHER, (), (step,), steps.DERIVATIVE, steps.CUT_OFF, shapes, shapes, values=values)


def _transform(
    step: str, *functions: str, numbers: Callable[[Focus], Shapes] = _all, number: str = steps.JUDGED
) -> Recipe:
    """Of one call under a transform."""
    return Recipe(EITHER, (snippets.EVALUATE, snippets.SHAPED, *functions), (step,), number, numbers=numbers)


def _of_samples(asked: Focus) -> Shapes:
    logits = asked.inputs.logits
    reduced = {} if asked.inputs.upstream.dim() else {"loss": (logits.shape[0 if logits.dim() == 2 else -1],)}
    return {**parts(asked.inputs), **reduced}


def _compiled(backend: str, *, dynamic: bool) -> Recipe:
    def second(asked: Focus) -> tuple[str, Inputs]:
        larger = compiled_code.larger(asked.case)
        return (f"on {larger.id}", larger.build()) if dynamic else ("called again", asked.inputs)

    def numbers(asked: Focus) -> Shapes:
        way, other = second(asked)
        return {**parts(asked.inputs), **{f"{part} {way}": shape for part, shape in parts(other).items()}}

    def values(asked: Focus) -> dict[str, Any]:
        return {"backend": backend, "dynamic": dynamic, "other": second(asked)[1], "which": int(asked.way != "")}

    functions = (*AGAIN, snippets.POISON, snippets.UNASKED, snippets.CALL)
    steps_of_it = (steps.COMPILED, steps.CALLED_TWICE)
    return Recipe(EITHER, functions, steps_of_it, steps.OF_EITHER_CALL, numbers=numbers, values=values)


def _no_classes(asked: Focus) -> dict[str, Any]:
    return {"backend": compiler.INDUCTOR, "dynamic": False, "classes": compiled_code.no_classes(asked.inputs)}


def _of_tiles(asked: Focus) -> Shapes:
    times = asked.case.tiled
    return {name: (times * shape[0], *shape[1:]) if shape else () for name, shape in parts(asked.inputs).items()}


def _tiles(asked: Focus) -> dict[str, Any]:
    gib = needed(asked.case, asked.subject) / GIB
    return {"times": asked.case.tiled, "each_row": asked.case.upstream == "rows", "gib": gib}


RECIPES = {
    "call": Recipe(("refused",), (*ONCE, snippets.BITS), (steps.CALL,)),
    "result": Recipe(("wrong",), (*ONCE, snippets.SHAPED), (steps.ONCE, steps.SHAPED)),
    "arguments": Recipe(
        ("changed_input", "aliased"),
        (*ONCE, *ARGUMENTS, snippets.WATCHED),
        (steps.ARGUMENTS, steps.WATCHED, steps.SAME_ARGUMENTS, steps.UNMARKED, steps.ALIASED),
    ),
    "state": Recipe(("changed_state",), (*ONCE, *STATE), (steps.STATE, steps.ONCE, steps.SAME_STATE)),
    "loss": _number(_only("loss")),
    "gradient": _number(_only("gradient")),
    "target_gradient": _number(_only("target_gradient")),
    "repeat": Recipe(
        ("not_repeated", "refused"),
        BITWISE,
        (steps.REPEAT,),
        values=lambda asked: {"other": asked.case.seeded(asked.case.seed + 1).build()},
    ),
    "sign": _number(_only("loss"), steps.SIGN),
    "row_sums": _number(_rows, steps.ROW_SUM),
    "ignored_rows": Recipe(("wrong",), ONCE, (steps.ONCE, steps.IGNORED_ROWS)),
    "layout": _related(equations.of_the_same(relations.contiguous)),
    "shift": _related(equations.of_moved_logits),
    "rows_permuted": _related(equations.of_turned_rows),
    "classes_permuted": _related(equations.of_turned_classes),
    "split": _related(equations.of_two_parts),
    "widened": _related(equations.of_the_same(relations.wide)),
    "options": _related(equations.of_options, steps.UNCHANGED),
    "two_backwards": Recipe(
        ("disturbed", "not_repeated", *EITHER),
        (*AGAIN, snippets.BITS, snippets.BOTH),
        (steps.TWO_BACKWARDS,),
        values=lambda asked: {"other": relations.of_other_classes(asked.inputs)},
    ),
    "no_grad": _called(
        steps.UNRECORDED,
        *(snippets.MEMORY, snippets.UNTOUCHED),
        kinds=("changed_input", *EITHER),
        ways=dict.fromkeys(circumstances.UNRECORDED, ("loss",)),
    ),
    "non_leaf": Recipe(
        ("changed_input", *EITHER),
        (*AGAIN, snippets.MEMORY, snippets.CLONED),
        (steps.NON_LEAF,),
        steps.JUDGED,
        numbers=_all,
    ),
    "alone": _called(
        steps.ALONE,
        ways=dict(zip(circumstances.ALONE, (("loss", "gradient"), ("loss", "target_gradient")), strict=True)),
    ),
    "threads": replace(
        _called(steps.THREADS, snippets.AT_ONCE, ways=dict.fromkeys(circumstances.THREADS, RESULT_PARTS)),
        number=steps.OF_A_TRY,
    ),
    "double_backward": _derivative(steps.SECOND_ORDER, "second", "upstream_gradient"),
    "forward_ad": _derivative(steps.TANGENT, "tangent"),
    "deterministic": Recipe(("not_repeated", "refused"), (*BITWISE, snippets.UNASKED), (steps.DETERMINISTIC,)),
    "stream": Recipe(
        EITHER,
        (*ONCE, snippets.FRESH, snippets.MEMORY, snippets.POISON),
        (steps.STREAM,),
        steps.JUDGED,
        numbers=_all,
        numbered=True,
    ),
    "func_grad": _transform(steps.VJP, snippets.LOSS_OF, snippets.PULL),
    "vmap": _transform(
        steps.VMAP,
        *(snippets.LOSS_OF, snippets.PULL, snippets.GRADIENTS_OF),
        numbers=_of_samples,
        number=steps.OF_SAMPLES,
    ),
    "autocast": _transform(steps.AUTOCAST, snippets.UNDER_AUTOCAST),
    "meta": _transform(steps.META, snippets.EMPTY, numbers=nothing),
    "export": _transform(steps.EXPORT, snippets.UNASKED, snippets.MODULE, numbers=_only("loss")),
    "trace": _compiled(compiler.TRACER, dynamic=False),
    "trace_dynamic": _compiled(compiler.TRACER, dynamic=True),
    "compile": _compiled(compiler.INDUCTOR, dynamic=False),
    "compile_dynamic": _compiled(compiler.INDUCTOR, dynamic=True),
    "compiled_error": Recipe(
        ("accepted", "wrong"),
        (*ONCE, snippets.FRESH, snippets.UNASKED, snippets.CALL),
        (steps.COMPILED, steps.NO_CLASSES),
        values=_no_classes,
    ),
    "large": replace(_transform(steps.TILED, snippets.UNASKED, snippets.REPEATED, numbers=_of_tiles), values=_tiles),
}
# Of bad input.
REFUSALS = {
    "errors": Recipe(("accepted", "wrong", "crashed", "hung"), (), (steps.REFUSED,)),
    "arguments": Recipe(("changed_input",), ARGUMENTS, (steps.ARGUMENTS, steps.TRIED, steps.SAME_ARGUMENTS)),
    "state": Recipe(("changed_state",), STATE, (steps.STATE, steps.TRIED, steps.SAME_STATE)),
}
