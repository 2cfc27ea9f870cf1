"""Repro scripts: they show what was found, say where it is not there, and hold nothing that a report can inject."""

import ast
import contextlib
import copy
import inspect
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.checks import CALL, RESULT
from support.running import run_case

import crossent
from crossent import cli
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.inputs import bits
from crossent.checks import CHECKS, compiled_code
from crossent.checks.compiled_code import _why_no_error
from crossent.checks.refusals import judge_reaction
from crossent.checks.transforms import _why_no_export
from crossent.cli import PASSED, WRONG_USE, main
from crossent.machine import ambient, environment
from crossent.report.findings import Finding, Numbers, SubjectReport
from crossent.report.reader import find, read_json
from crossent.report.report import Report
from crossent.repro.recipes import RECIPES, REFUSALS, nothing
from crossent.repro.script import repeated, script
from crossent.state import STATES, restore, snapshot
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.compiler import TRACER, unusable
from crossent.subjects.subject import Subject

RIGHT = "from crossent import formula as subject"
TORCH_HALF = "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA"


def source(body):
    """A subject as the text that a user puts into the script."""
    return "import torch, crossent\ndef subject(input, target, **options):\n" + textwrap.indent(body, "    ")


OFF = source("return crossent.formula(input, target, **options) * 1.01")
OFF_TARGET = source("return crossent.formula(input, 2 * target - target.detach(), **options)")
CONSTANT = source(
    "return crossent.formula(input, target, **options).detach().zero_() + 0 * input.nan_to_num(0, 0, 0).sum()"
)
REFUSES = source("raise RuntimeError('not today')")
CUT_OFF = source("return crossent.formula(input, target.detach(), **options)")
A_LIST = source("return [crossent.formula(input, target, **options)]")
WRITES = source("input.data[...] = 0\nreturn crossent.formula(input, target, **options)")
WRITES_WEIGHT = source("loss = crossent.formula(input, target, **options)\noptions['weight'].zero_()\nreturn loss")
WRITES_BACKWARD = source(
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(lambda gradient: (input.data.zero_(), gradient)[1])\n"
    "return loss"
)
SCALES_UPSTREAM = source(
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(lambda upstream: upstream.mul_(3).clone().div_(3))\n"
    "return loss"
)
SETS_GRAD = source(
    "loss = crossent.formula(input, target, **options)\n"
    "(input.grad,) = torch.autograd.grad(loss.sum(), input, retain_graph=True)\n"
    "return loss"
)
WANTS_MORE = source("options['weight'].requires_grad_()\nreturn crossent.formula(input, target, **options)")
DOUBLE = source("return crossent.formula(input, target, **options).double()")
LONGER = source("return crossent.formula(input, target, **options)[None]")
ACCEPTS = source("return input.sum()")
WRONG_CLASS = source("raise KeyError('average')")
ALIASED = source("return input.flatten()[0]")
ROLLS_DICE = source("torch.rand(1)\nreturn crossent.formula(input, target, **options)")
WRITES_AND_REFUSES = source("input.data.fill_(1)\nraise ValueError('average')")
ROLLS_DICE_AND_REFUSES = source("torch.rand(1)\nraise ValueError('average')")
NEGATIVE = source("return crossent.formula(input, target, **options) - 1")
LEAKS = source(
    "ignored = target == options.get('ignore_index', -100)\n"
    "leak = (input - input.detach()).sum(1) * ignored\n"
    "return crossent.formula(input, target, **options) + leak + 0.25 * ignored"
)
# The gradient of one logit; the derivative of the gradient.
KICKED = source(
    "kick = torch.zeros_like(input)\n"
    "kick[(0, 1) if input.dim() == 2 else (slice(None), 1, 0)] = 0.01\n"
    "return crossent.formula(input, target, **options) + ((input - input.detach()) * kick).sum()"
)
CURVED = source("return crossent.formula(input, target, **options) + ((input - input.detach()) ** 2).sum()")


def later(change):
    """A subject that is right when it is called first."""
    count = "subject.calls = getattr(subject, 'calls', -1) + 1"
    return source(f"{count}\nloss = crossent.formula(input, target, **options)\n{change}\nreturn loss")


GROWS = later("loss = loss * (1 + subject.calls / 100)")
GOES_BACK_ANEW = later(
    "back = dict(calls=0)\n"
    "def hook(gradient):\n"
    "    back['calls'] += 1\n"
    "    return gradient * back['calls']\n"
    "loss.register_hook(hook)"
)
ONLY_ONCE = later("if subject.calls:\n    raise ValueError('only once')")
ONCE_IN_SHAPE = later("loss = loss[None] if subject.calls else loss")


def where(condition, change="loss = loss * 1.01"):
    """A subject that is right unless a condition holds."""
    change = textwrap.indent(change, "    ")
    return source(f"loss = crossent.formula(input, target, **options)\nif {condition}:\n{change}\nreturn loss")


REFUSE = "raise ValueError('not so')"
MISSHAPE = "loss = loss[None]"
STRIDED = "not input.is_contiguous()"
IS_DUAL = "torch.autograd.forward_ad.unpack_dual(input).tangent is not None"
UNDER_GRAD = "torch._C._functorch.is_gradtrackingtensor(input)"
UNDER_VMAP = "torch._C._functorch.is_batchedtensor(input)"
UNDER_AUTOCAST = "(torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16"
UNDER_DETERMINISM = "torch.are_deterministic_algorithms_enabled()"
IN_A_THREAD = "__import__('threading').current_thread() is not __import__('threading').main_thread()"
IS_TRACED = "torch.compiler.is_compiling()"
TURNED_OFF = "options.get('weight') is not None and options['weight'].eq(1).all()"
LARGER = "len(input) > 7"
# As extensions have it that know of no transforms: a backward that cannot go back itself, nor forward.
OLD = """
import torch, crossent

class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        ctx.pair = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = ctx.pair
        return torch.autograd.grad(loss, leaf, upstream.detach(), retain_graph=True)[0], None, None

def subject(input, target, **options):
    return Old.apply(input, target, options)
"""
# Keeps its gradient in one place for all calls.
SHARES = """
import torch, crossent

kept = {}

class Shares(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, options):
        with torch.enable_grad():
            leaf = input.detach().requires_grad_()
            loss = crossent.formula(leaf, target, **options)
        kept["pair"] = leaf, loss
        return loss.detach()

    @staticmethod
    def backward(ctx, upstream):
        leaf, loss = kept["pair"]
        return torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0], None, None

def subject(input, target, **options):
    return Shares.apply(input, target, options)
"""
ONLY_BACK_ONCE = source(
    "def hook(gradient):\n"
    "    if gradient.requires_grad:\n"
    "        raise ValueError('only once')\n"
    "loss = crossent.formula(input, target, **options)\n"
    "loss.register_hook(hook)\n"
    "return loss"
)
IN_HALVES = source("return torch.nn.functional.cross_entropy(input, target, **options)")
IN_CHUNKS = source(  # Automodel#3803
    "pairs = zip(input.split(2), target.split(2))\n"
    "return torch.stack([crossent.formula(x, y, **options) for x, y in pairs]).mean()"
)
BY_THE_BATCH = source("return crossent.formula(input, target, **options) * (1 + len(input) / 1000)")
DROWNED = source(  # pytorch#38839
    "losses = torch.logsumexp(input, 1) - input.gather(1, target[:, None])[:, 0]\n"
    "return dict(none=losses, sum=losses.sum(), mean=losses.mean())[options['reduction']]"
)
UNWEIGHTED = source("return crossent.formula(input, target, **{**options, 'weight': None})")
CLAMPS = source("return crossent.formula(input, target.clamp(0, 4), **options)")
LAST_ROWS = source(
    "loss = crossent.formula(input, target, **options)\n"
    "return loss * torch.where(torch.arange(len(loss)) > 7, 1.01, 1.0).reshape(-1, *[1] * (loss.dim() - 1))"
)
LAST_GRADIENTS = source(
    "kick = (torch.arange(len(input)) == 10)[:, None] * 0.01\n"
    "return crossent.formula(input, target, **options) + ((input - input.detach()) * kick).sum(1)"
)


def found(text, case, check):
    """The finding of one check on one case, on the subject that a text defines."""
    names = {}
    exec(text, names)
    subject = Subject("mine", names["subject"])
    made = Report({}, [SubjectReport("mine")])
    case = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    before = () if getattr(case, "tiled", 1) > 1 else (CALL, RESULT)
    with ambient():
        run_case(case, [subject], made, "cpu", (*before, *([CHECKS[check]] if check in CHECKS else ())))
    (finding,) = made.findings
    assert finding.check == check
    return finding


def with_subject(text, subject):
    """The script with the subject put where it asks for it."""
    asks = re.compile(r"^print\('import mine here as subject, .*\nraise SystemExit\(2\)$", re.M)
    assert len(asks.findall(text)) == 1
    return asks.sub(lambda match: subject, text)


def graphs_work(check):
    """Skip where torch makes no graphs for a check."""
    reason = unusable(TRACER, "cpu") if check.startswith("trace") else ""
    if reason or (check == "export" and (reason := _why_no_export())):
        pytest.skip(reason)


def play(text, path=None):
    """Run a script here: its names, exit status and what it printed. A process of its own takes two seconds."""
    names = {"__name__": "__main__"} | ({"__file__": path} if path else {})
    out, before = io.StringIO(), snapshot()
    with contextlib.redirect_stdout(out), contextlib.ExitStack() as stack:
        stack.callback(restore, before)
        try:
            exec(compile(text, "repro.py", "exec"), names)
        except SystemExit as end:
            status = int(end.code)
        except Exception as error:
            status = 1  # Python's own for an exception that nobody catches
            print(f"{type(error).__name__}: {error}")
        else:
            status = 0
    return names, status, out.getvalue()


INDEX = "float32-7x5-normal-int64-mean"
ROWS = "float32-7x5-normal-int64-none-rows"
DENSE = "float32-7x5-normal-probabilities-none-weighted-rows-smooth0.1"
HALF = "bfloat16-7x5-normal-int64-mean"
KINDS = {
    "wrong loss": (OFF, "float32-7x5-normal-int64-mean", "loss wrong"),
    "wrong gradient": (OFF, "float32-7x5-normal-int64-mean-scalar", "gradient wrong"),
    "wrong target_gradient": (OFF_TARGET, "float32-7x5-normal-probabilities-mean-scalar", "target_gradient wrong"),
    "refused": (REFUSES, "float32-7x5-normal-int64-mean", "call refused"),
    "cut off from the target": (CUT_OFF, "float32-7x5-normal-probabilities-mean", "call refused"),
    "a list": (A_LIST, "float32-7x5-normal-int64-mean", "call refused"),
    "on a meta device": (source("return (input.sum() * 0).to('meta')"), ROWS, "call refused"),
    "accepted": (ACCEPTS, "reduction_unknown", "errors accepted"),
    "wrong class of error": (WRONG_CLASS, "reduction_unknown", "errors wrong"),
    "changed logits": (WRITES, "float32-7x5-normal-int64-mean", "arguments changed_input"),
    "changed weight": (WRITES_WEIGHT, "float32-7x5-normal-int64-mean-weighted", "arguments changed_input"),
    "changed in the backward": (WRITES_BACKWARD, "float32-7x5-normal-int64-mean", "arguments changed_input"),
    "changed beside NaN": (WRITES_WEIGHT, "float32-7x5-nan-int64-mean-weighted", "arguments changed_input"),
    "changed upstream gradient": (SCALES_UPSTREAM, ROWS, "arguments changed_input"),
    "a gradient of the caller's": (SETS_GRAD, INDEX, "arguments changed_input"),
    "a weight that wants a gradient": (
        WANTS_MORE,
        "float32-7x5-normal-int64-mean-weighted",
        "arguments changed_input",
    ),
    "another dtype": (DOUBLE, "float32-7x5-normal-int64-mean", "result wrong"),
    "another shape": (LONGER, "float32-7x5-normal-int64-mean", "result wrong"),
    "stride 0": (OFF, "float64-3x5x4-normal-int64-none-stride0", "gradient wrong"),
    "rows": (OFF, "float64-3x5x4-normal-int64-none-rows", "gradient wrong"),
    "five dimensions": (OFF, "bfloat16-2x3x2x2x3-normal-int64-none-weighted-rows-smooth0.1", "loss wrong"),
    "unbatched": (OFF, "float64-5-normal-int64-none-scalar", "loss wrong"),
    "empty": (CONSTANT, "float32-0x5-normal-int64-mean", "loss wrong"),
    "huge ignore_index": (OFF, "float32-7x5-normal-int64-sum-weighted-ignored_huge", "loss wrong"),
    "uint8": (OFF, "float32-7x5-normal-uint8-mean-ignored", "gradient wrong"),
    "exactly nan": (CONSTANT, "float32-7x5-nan-int64-sum", "loss wrong"),
    "exactly inf": (CONSTANT, "float32-70x5-inf_on_target-int64-sum", "loss wrong"),
    "all of float64": (OFF, "float64-7x5-decades-int64-none-rows-smooth0.3333333333333333", "gradient wrong"),
    "float16": (OFF, "float16-7x5-subnormal-int64-none-weight_decades-rows", "loss wrong"),
    "aliased": (ALIASED, INDEX, "arguments aliased"),
    "changed state": (ROLLS_DICE, INDEX, "state changed_state"),
    "written and refused": (WRITES_AND_REFUSES, "reduction_unknown", "arguments changed_input"),
    "changed state and refused": (ROLLS_DICE_AND_REFUSES, "reduction_unknown", "state changed_state"),
    "not repeated": (GROWS, INDEX, "repeat not_repeated"),
    "refused when repeated": (ONLY_ONCE, INDEX, "repeat refused"),
    "below zero": (NEGATIVE, "float32-7x5-confident-int64-none-rows", "sign wrong"),
    "the sum of a row": (KICKED, ROWS, "row_sums wrong"),
    "the sum of a row beyond the batch": (KICKED, "float64-3x5x4-normal-int64-none-rows", "row_sums wrong"),
    "ignored rows": (LEAKS, "float32-7x5-nan_ignored-int64-none-ignored_first-rows", "ignored_rows wrong"),
    "another layout": (where(STRIDED), "float32-7x5-normal-int64-none-rows-transposed-target_strided", "layout wrong"),
    "refused in another layout": (
        where("input.is_contiguous()", REFUSE),
        "float32-7x5-normal-int64-sum-transposed",
        "layout refused",
    ),
    "NaN in another layout": (
        where("input.is_contiguous()", "loss = loss * torch.nan"),
        "float32-7x5-normal-int64-sum-transposed",
        "layout wrong",
    ),
    "another shape in another layout": (ONCE_IN_SHAPE, "float32-7x5-normal-int64-mean-window", "layout wrong"),
    "moved": (DROWNED, "float32-7x5-normal-int64-none-rows", "shift wrong"),
    "moved row by row": (where("input.std() > 1e4"), "float32-7x5-normal-int64-mean", "shift wrong"),
    "refused where moved": (ONLY_ONCE, INDEX, "shift refused"),
    "another shape where moved": (ONCE_IN_SHAPE, INDEX, "shift wrong"),
    "rows turned": (KICKED, ROWS, "rows_permuted wrong"),
    "rows turned beyond the batch": (KICKED, "float64-3x5x4-normal-int64-none-rows", "rows_permuted wrong"),
    "refused where rows are turned": (ONLY_ONCE, "float64-3x5x4-normal-int64-mean", "rows_permuted refused"),
    "another shape where rows are turned": (ONCE_IN_SHAPE, ROWS, "rows_permuted wrong"),
    "classes turned": (KICKED, DENSE, "classes_permuted wrong"),
    "refused where classes are turned": (ONLY_ONCE, INDEX, "classes_permuted refused"),
    "another shape where classes are turned": (ONCE_IN_SHAPE, "float64-5-normal-int64-mean", "classes_permuted wrong"),
    "a mean of parts": (IN_CHUNKS, "float32-7x5-normal-int64-mean-ignored_default-scalar", "split wrong"),
    "a sum of parts": (BY_THE_BATCH, "float64-7x5-normal-int64-sum-ignored_default-scalar", "split wrong"),
    "rows of the first part": (where("len(input) == 2"), ROWS, "split wrong"),
    "rows of the second part": (where("len(input) == 5"), "float32-7x5x2-normal-int64-none-rows", "split wrong"),
    "the gradient of the second part": (KICKED, DENSE, "split wrong"),
    "refused in parts": (ONLY_ONCE, INDEX, "split refused"),
    "another shape in parts": (ONCE_IN_SHAPE, INDEX, "split wrong"),
    "half precision": (IN_HALVES, "half_sure/bfloat16-4x2-sure-int64-mean-gradeA", "widened wrong"),
    "refused in float32": (where("input.dtype == torch.float32", REFUSE), HALF, "widened refused"),
    "another shape in float32": (where("input.dtype == torch.float32", MISSHAPE), HALF, "widened wrong"),
    "an option that changes nothing": (UNWEIGHTED, "float32-7x5-normal-int64-mean-weighted", "options wrong"),
    "an option that is off": (where(TURNED_OFF), INDEX, "options wrong"),
    "refused with an option that is off": (where(TURNED_OFF, REFUSE), INDEX, "options refused"),
    "another shape with an option that is off": (where(TURNED_OFF, MISSHAPE), INDEX, "options wrong"),
    "another gradient from the same graph": (GOES_BACK_ANEW, INDEX, "two_backwards not_repeated"),
    "two losses of the same logits": (GROWS, DENSE, "two_backwards disturbed"),
    "refused of other classes": (ONLY_ONCE, INDEX, "two_backwards refused"),
    "another shape of other classes": (ONCE_IN_SHAPE, INDEX, "two_backwards wrong"),
    "under no_grad": (where("not torch.is_grad_enabled()"), DENSE, "no_grad wrong"),
    "without requires_grad": (where("torch.is_grad_enabled() and not input.requires_grad"), INDEX, "no_grad wrong"),
    "refused in inference mode": (where("torch.is_inference_mode_enabled()", REFUSE), INDEX, "no_grad refused"),
    "another shape under no_grad": (where("not torch.is_grad_enabled()", MISSHAPE), INDEX, "no_grad wrong"),
    "a gradient that is not wanted": (
        where("not torch.is_grad_enabled()", "loss = loss.clone().requires_grad_()"),
        INDEX,
        "no_grad wrong",
    ),
    "asks for a gradient": (where("not input.requires_grad", "input.requires_grad_()"), INDEX, "no_grad changed_input"),
    "writes under no_grad": (where("not torch.is_grad_enabled()", "input.zero_()"), INDEX, "no_grad changed_input"),
    "of no leaf": (where("not input.is_leaf"), DENSE, "non_leaf wrong"),
    "refused of no leaf": (where("not input.is_leaf", REFUSE), DENSE, "non_leaf refused"),
    "another shape of no leaf": (where("not input.is_leaf", MISSHAPE), DENSE, "non_leaf wrong"),
    "writes into no leaf": (where("not input.is_leaf", "input.data.zero_()"), INDEX, "non_leaf changed_input"),
    "of the target alone": (where("not input.requires_grad"), DENSE, "alone wrong"),
    "of the logits alone": (where("not target.requires_grad"), DENSE, "alone wrong"),
    "cut off from the target alone": (where("not input.requires_grad", "loss = loss.detach()"), DENSE, "alone wrong"),
    "refused of the target alone": (where("not input.requires_grad", REFUSE), DENSE, "alone refused"),
    "another shape of the target alone": (where("not input.requires_grad", MISSHAPE), DENSE, "alone wrong"),
    "in a thread": (where(IN_A_THREAD), DENSE, "threads wrong"),
    "beside another thread": (SHARES, ROWS, "threads wrong"),
    "refused in a thread": (where(IN_A_THREAD, REFUSE), DENSE, "threads refused"),
    "another shape in a thread": (where(IN_A_THREAD, MISSHAPE), INDEX, "threads wrong"),
    "the second derivative": (CURVED, "float32-7x5-normal-int64-none-rows", "double_backward wrong"),
    "no second derivative": (OLD, INDEX, "double_backward wrong"),
    "refused backward twice": (ONLY_BACK_ONCE, INDEX, "double_backward refused"),
    "the tangent": (where(IS_DUAL), "float32-7x5-normal-int64-none-stride0-expanded", "forward_ad wrong"),
    "no tangent": (where(IS_DUAL, "loss = loss.detach()"), INDEX, "forward_ad wrong"),
    "refused forward": (OLD, INDEX, "forward_ad refused"),
    "not deterministic": (GROWS, INDEX, "deterministic not_repeated"),
    "refused where deterministic": (where(UNDER_DETERMINISM, REFUSE), INDEX, "deterministic refused"),
    "under vjp": (where(UNDER_GRAD), DENSE, "func_grad wrong"),
    "refused under vjp": (OLD, INDEX, "func_grad refused"),
    "another shape under vjp": (where(UNDER_GRAD, MISSHAPE), INDEX, "func_grad wrong"),
    "under vmap": (where(UNDER_VMAP), DENSE, "vmap wrong"),
    "under vmap along the last dimension": (
        where(UNDER_GRAD),
        "float64-3x5x4-normal-int64-none-weighted-rows",
        "vmap wrong",
    ),
    "refused under vmap": (where(UNDER_VMAP, REFUSE), INDEX, "vmap refused"),
    "another shape under vmap": (where(UNDER_VMAP, MISSHAPE), ROWS, "vmap wrong"),
    "under autocast": (where(UNDER_AUTOCAST), HALF, "autocast wrong"),
    "refused under autocast": (where(UNDER_AUTOCAST, REFUSE), HALF, "autocast refused"),
    "not widened by autocast": (CONSTANT, HALF, "autocast wrong"),
    "refused without data": (where("input.is_meta", REFUSE), INDEX, "meta refused"),
    "another shape without data": (where("input.is_meta", MISSHAPE), INDEX, "meta wrong"),
    "exported": (where(IS_TRACED), "float32-7x5-normal-int64-mean-weighted-smooth0.1", "export wrong"),
    "refused where exported": (where("input.sum() > 0"), INDEX, "export refused"),
    "another shape where exported": (where(IS_TRACED, MISSHAPE), INDEX, "export wrong"),
    "traced": (where(IS_TRACED), DENSE, "trace wrong"),
    "refused where traced": (where("input.sum() > 0"), INDEX, "trace refused"),
    "another shape where traced": (where(IS_TRACED, MISSHAPE), INDEX, "trace wrong"),
    "traced for any size": (where(LARGER), ROWS, "trace_dynamic wrong"),
    "rows of tiles": (LAST_ROWS, "float32-3x5x2-normal-int64-none-tiled4", "large wrong"),
    "gradients of tiles": (LAST_GRADIENTS, "float32-3x5-normal-int64-none-rows-tiled4", "large wrong"),
    "a sum of tiles": (OFF, "float32-3x5-normal-int64-sum-scalar-tiled4", "large wrong"),
    "refused tiles": (REFUSES, "float32-3x5-normal-int64-mean-tiled4", "large refused"),
    "another shape of tiles": (LONGER, "float32-3x5-normal-int64-mean-tiled4", "large wrong"),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_script_shows_what_was_found_and_says_right_where_it_is_not(name):
    subject, case, said = KINDS[name]
    check, kind = said.split()
    graphs_work(check)
    finding = found(subject, case, check)
    assert finding.kind == kind
    text = script(finding)
    names, status, out = play(with_subject(text, subject))
    assert status == 1, out
    assert out.splitlines()[-1:] == ["wrong"] or finding.kind == "refused"
    if finding.numbers is not None and check != "row_sums":  # which rounds its sum
        n = finding.numbers
        assert f"got {n.got!r}, {n.versus} {n.exact!r}, off by " in out
    names, status, out = play(with_subject(text, RIGHT))
    assert status == 0, out
    assert out.splitlines()[-1] == "right"
    _, status, out = play(text)  # as it stands, it asks for the subject: that is neither
    assert (status, out) == (2, "import mine here as subject, and take these two lines out\n")

    inputs = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    inputs = inputs.build()
    for one, two in (
        (names["logits"], inputs.logits),
        (names["target"], inputs.target),
        (names["upstream"], inputs.upstream),
    ):
        assert (one.dtype, one.shape, one.stride()) == (two.dtype, two.shape, two.stride())
        assert np.array_equal(bits(one), bits(two))
    assert list(names["options"]) == list(inputs.options)
    for key, value in inputs.options.items():
        assert repr(names["options"][key]) == repr(value)
        assert not torch.is_tensor(value) or np.array_equal(bits(names["options"][key]), bits(value))


def test_a_result_that_is_as_wrong_as_it_was_found_is_wrong():
    """The exact answer has more digits than a float64: where the bound is tight, its first 53 bits are not enough."""
    finding = found(OFF, "float64-7x5-normal-int64-sum", "loss")
    n = finding.numbers
    wide = Numbers(n.index, n.got, n.bits, n.exact, n.radius, 1e9, n.ulp, n.ratio)
    text = script(replace(finding, numbers=wide))
    assert play(with_subject(text, OFF))[1] == 1
    assert play(with_subject(text, RIGHT))[1] == 0


def test_a_script_shows_that_compiled_code_takes_what_is_no_class(monkeypatch):
    """In a graph that runs in torch's own kernels: making code takes seconds."""
    graphs_work("trace")
    if reason := _why_no_error():
        pytest.skip(reason)
    monkeypatch.setattr(compiled_code, "INDUCTOR", TRACER)
    finding = found(CLAMPS, INDEX, "compiled_error")
    assert finding.kind == "accepted"
    text = script(finding)
    assert skeleton(text) == skeleton(script(replace(finding, kind="wrong")))
    _, status, out = play(with_subject(text, CLAMPS))
    assert (status, out.splitlines()[-1]) == (1, "wrong")
    assert "class 5 is none, and gave" in out
    _, status, out = play(with_subject(text, RIGHT))
    assert (status, out.splitlines()[-1]) == (0, "right")
    _, status, out = play(with_subject(text, where(IS_TRACED, REFUSE)))
    assert status == 2
    assert "it cannot be asked here: a right call fails: " in out


def test_a_script_does_not_ask_what_torch_refuses_to_do_deterministically():
    text = script(found(GROWS, INDEX, "deterministic"))
    says = "raise RuntimeError('it is not deterministic: use_deterministic_algorithms(False) is needed')"
    _, status, out = play(with_subject(text, where(UNDER_DETERMINISM, says)))
    assert status == 2
    assert "it cannot be asked here: it is not deterministic" in out


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)", 1, "its process died: exit code -6"),
        ("import time\ntime.sleep(1000)", 1, "no answer within 1 s"),
        ("return crossent.formula(input, target, **options)", 0, "refused, as it should"),
    ],
    ids=["dies", "hangs", "right"],
)
def test_a_call_that_may_end_its_process_is_made_in_another(tmp_path, body, status, said):
    text = script(Finding("mine", "errors", "reduction_unknown", "crashed" if "os" in body else "hung", ""))
    assert play(text)[1:] == (2, "import mine here as subject, and take these two lines out\n")
    text = with_subject(text, source(body))
    assert play(text)[1:] == (2, "save this script as a file: it starts itself again\n")
    path = tmp_path / "script.py"
    patience = 1 if "sleep" in body else 60
    path.write_text(text.replace("seconds = 60\n", f"seconds = {patience}\n"), encoding="ascii")
    _, ended, out = play(path.read_text(), str(path))
    assert (ended, out.splitlines()[-1]) == (status, "wrong" if status else "right")
    assert said in out


def test_a_call_that_ends_in_an_assert_on_cuda_is_made_in_another_process():
    finding = Finding("mine", "errors", "class_negative", "accepted", "")
    assert "subprocess" in script(finding, "cuda:0")
    assert "subprocess" not in script(finding)


def test_a_script_for_a_stream_of_the_callers_is_made_for_cuda_alone():
    numbers = Numbers((6,), 1.0, "0x3f800000", 2.0, 0.0, 0.5, 1.0, 2.0)
    finding = Finding("torch", "stream", ROWS, "wrong", "", numbers=numbers, of="loss")
    text = script(finding, "cuda")
    compile(text, "repro.py", "exec")
    assert "torch.cuda.Stream(" in text
    with pytest.raises(ValueError, match="has no stream"):
        script(finding)


def test_scripts_know_every_state_of_torch_that_is_looked_at():
    names, _, _ = play(with_subject(script(found(ROLLS_DICE, INDEX, "state")), RIGHT))
    assert set(names["state"]()) == set(STATES)


# Every check.


def kinds_of(function, seen=()):
    """The kinds of problems that a function of the package yields, or one that it calls; and whether it may refuse."""
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
            if name == "MisshapenError":  # which Check.run turns into a problem
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
        kinds.add("refused")  # by the first call, which every check looks at
    if name == "compiled_error":
        kinds.remove("refused")  # which it asks for, and catches
    assert set(recipe.kinds) == kinds


def test_every_recipe_is_of_a_check():
    assert list(RECIPES) == list(CHECKS)
    assert set(REFUSALS) == {"errors", "arguments", "state"}
    assert set().union(*(recipe.kinds for recipe in REFUSALS.values())) == kinds_of(judge_reaction) | {
        "crashed",
        "hung",
    }


def test_every_recipe_is_shown_to_work():
    """For each kind of finding, of a check or of one that does the same: the compiled ones differ in a constant."""
    wanted = {(recipe.step, kind) for recipe in (*RECIPES.values(), *REFUSALS.values()) for kind in recipe.kinds}
    shown = set()
    for _, case, said in KINDS.values():
        check, kind = said.split()
        of = REFUSALS if case in {bad_input.id for bad_input in BAD_INPUTS} else RECIPES
        shown.add((of[check].step, kind))
    apart = {"stream": RECIPES, "compiled_error": RECIPES, "errors": REFUSALS}  # have tests of their own
    assert wanted - shown == {(of[name].step, kind) for name, of in apart.items() for kind in of[name].kinds} - shown


IDS = {
    "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got 0.0, exact 0.001",
    "torch_nll:gradient:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got ",
    "torch:loss:half_partial_sums/bfloat16-1000x10-normal-int64-mean-ignored_16th": "got ",
    "torch:call:float32-5-normal-uint8-mean-weighted-scalar-smooth1": "RuntimeError",
    "torch_nll:call:float64-2x5x3x2-normal-int64-mean-scalar": "must be contiguous",
    "torch:errors:label_smoothing_nan": "accepted, and gave",
    "torch:row_sums:half_sure/bfloat16-4x2-sure-int64-mean-gradeA": "got ",
    "torch:large:half_partial_sums/bfloat16-64x3-normal-int64-mean-ignored_16th-tiled1024": "got ",
    "torch:vmap:float32-7x5-normal-uint8-mean": "RuntimeError: gather",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Files with the scripts of torch's own findings."""
    folder = tmp_path_factory.mktemp("scripts")
    for at, finding in enumerate(IDS):
        (folder / f"{at}.py").write_text(script(repeated(finding)), encoding="ascii")
    return folder


def test_the_scripts_of_torch_need_no_crossent(scripts):
    """All of them in one process in which crossent cannot be imported, since torch's import takes its time."""
    code = textwrap.dedent("""
        import runpy, sys, traceback
        sys.modules["crossent"] = None
        for path in sys.argv[1:]:
            try:
                runpy.run_path(path, run_name="__main__")
            except SystemExit as exit:
                print("status", int(exit.code))
            except Exception:
                print(traceback.format_exc(), "status 1", sep="")
            print("end")
    """)
    paths = [str(scripts / f"{at}.py") for at in range(len(IDS))]
    clear = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code, *paths], env=clear, capture_output=True, text=True, check=True
    )
    told = process.stdout.split("end\n")
    for (finding, said), text in zip(IDS.items(), told, strict=False):
        assert said in text, (finding, text)
        assert text.endswith("status 1\n"), (finding, text)
    assert len(told) == len(IDS) + 1


@pytest.mark.parametrize("finding", IDS)
def test_the_script_of_a_finding_of_torch_says_right_of_a_right_subject(finding):
    text = script(repeated(finding))
    start, end = text.index("def subject("), text.index("\n\n\nlogits = ")
    _, status, out = play(text[:start] + RIGHT + text[end:])
    assert status == 0, out
    assert out.endswith("right\n")


@pytest.mark.parametrize(("check", "versus"), [("loss", "exact"), ("shift", "other")])
@pytest.mark.parametrize("name", ["formula", "log_softmax_nll", "one_hot", "blocked", "scalar"])
def test_the_script_of_a_form_imports_that_form(name, check, versus, monkeypatch):
    case = "float64-5-normal-int64-sum"
    known, right = BY_NAME[name], BY_NAME["formula"].loss

    def wrong(input, target, **options):
        return right(input, target, **options).to(known.dtype) + input[0].detach()

    monkeypatch.setitem(BY_NAME, name, replace(known, loss=wrong))
    text = script(repeated(f"{name}:{check}:{case}"))
    assert "crossent import" in text
    _, status, out = play(text)
    assert status == 0
    assert re.fullmatch(rf"torch \S+: got \S+, {versus} \S+, off by \S+, allowed \S+\nright\n", out)


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("", "allowed is SUBJECT:CHECK:CASE"),
        ("torch", "allowed is SUBJECT:CHECK:CASE"),
        ("torch:loss", "allowed is SUBJECT:CHECK:CASE"),
        ("::", "got subject ''"),
        ("mine:loss:float32-7x5-normal-int64-mean", "got subject 'mine'; without its report"),
        ("torch:loss:nonsense", "no case's id"),
        ("torch:loss:float32-7x5-normal-int64-mean", "does not happen with torch"),
        ("torch:nonsense:float32-7x5-normal-int64-mean", "does not happen"),
        ("torch:loss:label_smoothing_nan", "does not happen"),
        ("torch:errors:float32-7x5-normal-int64-mean", "does not happen"),
        ("scalar:loss:float32-7x5-normal-int64-mean", "does not happen"),
        ("torch:loss:float32-99999999999999x99999999999-normal-int64-mean", "crossent: "),
        ("torch:loss:float32-7x5-normal-int64-mean\x1b[31m\n", r"\x1b[31m"),
        ("torch:stream:float32-7x5-normal-int64-mean", "where torch waits for a CUDA device"),
        ("scalar:gradient:float32-5-normal-int64-mean", "where scalar has no gradient to compare"),
        ("torch:compile:reduction_unknown", "does not happen"),
        ("torch:large:float32-7x5-normal-int64-mean", "does not happen"),
    ],
)
def test_what_names_no_finding_is_one_line_and_status_2(capsys, id, said):
    assert main(["repro", "--", id]) == WRONG_USE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cuda:99", TORCH_HALF], "device: got 'cuda:99'; "),
        (["--device", "nonsense", TORCH_HALF], "device: got 'nonsense'; "),
        (["--device", "cpu", TORCH_HALF, __file__], "--device is for a case that is run here"),
    ],
    ids=["missing", "nonsense", "report"],
)
def test_a_device_that_cannot_be_asked_is_one_line(capsys, arguments, said):
    status = main(["repro", *arguments])
    captured = capsys.readouterr()
    refused(status, captured.out, captured.err)
    assert said in captured.err


def test_a_case_is_run_on_the_device_that_is_named(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "repeated", lambda name, device: asked.append(device) or repeated(name))
    assert main(["repro", TORCH_HALF, "--device", "cuda:1"]) == PASSED
    assert asked == ["cuda:1"]
    assert "\ndevice = 'cuda:1'\n" in capsys.readouterr().out


# Reports.


DOCUMENTED = ("call", "result", "loss", "gradient", "target_gradient", "rows_permuted", "options")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A report with findings of each shape, as they stand in its file."""
    folder = tmp_path_factory.mktemp("report")

    def unweighted(input, target, weight=None, **options):
        return crossent.formula(input, target, **options) * (1 + 0.01 * input.detach()[0, 0])

    def off(*args, **options):
        return crossent.formula(*args, **options) * 1.01

    def refuses(*args, **options):
        raise RuntimeError("not today")

    subjects = [Subject("off", off), Subject("refuses", refuses), Subject("unweighted", unweighted)]
    made = Report(environment("cpu"), [SubjectReport(subject.name) for subject in subjects])
    chosen = [
        Case.of("float32-3x5-normal-probabilities-none-weighted-rows"),
        *(b for b in BAD_INPUTS if b.id == "class_negative"),
    ]
    with ambient():
        for case in chosen:
            run_case(case, subjects, made, "cpu", [CHECKS[check] for check in DOCUMENTED])
    made.write_json(folder / "report.json")
    return read_json(folder / "report.json")


def repro(capsys, tmp_path, document, id):
    """`crossent repro` of a finding of a document."""
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    status = main(["repro", id, str(path)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(status, out, err):
    assert (status, out) == (WRONG_USE, "")
    assert err.startswith("crossent: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    assert len(err) < 2000


class _Skeleton(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant(None)

    def visit_UnaryOp(self, node):
        return ast.Constant(None)  # -0.5

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id == "float":
            return ast.Constant(None)  # float('nan')
        return self.generic_visit(node)


def skeleton(text):
    """What a script does, whatever its docstring and its constants are."""
    tree = ast.parse(text)
    assert isinstance(tree.body[0].value.value, str)
    return ast.dump(_Skeleton().visit(ast.Module(tree.body[1:], [])))


def test_a_script_from_a_report_is_the_one_from_the_run(capsys, tmp_path, document):
    for part in document["subjects"]:
        assert part["findings"]
        for entry in part["findings"]:
            status, out, err = repro(capsys, tmp_path, document, entry["id"])
            assert (status, err) == (0, "")
            assert out == script(find(document, entry["id"])[0])
            assert entry["message"].splitlines()[0] in ast.get_docstring(ast.parse(out))


def test_other_bits_than_the_report_saw_are_refused(capsys, tmp_path, document):
    other = copy.deepcopy(document)
    case = other["subjects"][0]["findings"][0]["case"]
    other["subjects"][0]["cases"][case]["inputs"] = "00000000"
    status, out, err = repro(capsys, tmp_path, other, other["subjects"][0]["findings"][0]["id"])
    refused(status, out, err)
    assert "has other bits here" in err


DAMAGE = [
    None,
    True,
    -1,
    3,
    1.5,
    10**400,
    "",
    "x",
    "nan",
    "a\nb",
    [],
    [[]],
    ["x"],
    [-1],
    [1.5],
    [10**30],
    [0] * 9,
    {},
    {"x": 1},
]


def _benign(entry):
    """The same kind of finding without a word of the report."""
    numbers = None
    if entry["index"] is not None:
        numbers = Numbers(tuple(0 for _ in entry["index"]), 1.0, "", 2.0, 0.0, 0.5, 1.0, 2.0)
    _, check, case = entry["id"].rsplit(":", 2)
    return Finding("mine", check, case, entry["kind"], "", numbers=numbers, of=entry["of"])


def test_a_report_with_any_field_of_a_finding_damaged_is_one_line_or_the_same_script(capsys, tmp_path, document):
    statuses = []
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            whole = part["name"] != "unweighted" and "gradient" not in entry["check"]
            benign = {}
            for name in entry if whole else ("index", "check", "of"):
                for damage in [*DAMAGE, "gone"]:
                    other = copy.deepcopy(document)
                    there = other["subjects"][p]["findings"][f]
                    there.pop(name) if damage == "gone" else there.update({name: damage})
                    status, out, err = repro(capsys, tmp_path, other, entry["id"])
                    statuses.append(status)
                    if status:
                        refused(status, out, err)
                    else:
                        # An option that changes nothing becomes a result of the wrong shape, which has no name.
                        of = "" if (name, damage) == ("of", "") else entry["of"]
                        if of not in benign:
                            benign[of] = skeleton(script(_benign({**entry, "of": of})))
                        assert skeleton(out) == benign[of], (name, damage)
    assert set(statuses) == {0, 2}  # another message is a message
    assert len(statuses) > 900


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: ascii(damage)[:12])
def test_a_report_that_is_damaged_around_a_finding_is_one_line(capsys, tmp_path, document, damage):
    entry = document["subjects"][0]["findings"][0]

    def part(other):
        return other["subjects"][0]

    places = {
        "schema": lambda other: (other, "schema"),
        "environment": lambda other: (other, "environment"),
        "device": lambda other: (other["environment"], "device"),
        "subjects": lambda other: (other, "subjects"),
        "subject": lambda other: (other["subjects"], 0),
        "name": lambda other: (part(other), "name"),
        "findings": lambda other: (part(other), "findings"),
        "finding": lambda other: (part(other)["findings"], 0),
        "cases": lambda other: (part(other), "cases"),
        "case": lambda other: (part(other)["cases"], entry["case"]),
        "inputs": lambda other: (part(other)["cases"][entry["case"]], "inputs"),
    }
    for place in places.values():
        other = copy.deepcopy(document)
        holder, key = place(other)
        holder[key] = damage
        refused(*repro(capsys, tmp_path, other, entry["id"]))


INJECTIONS = [
    '"""\nraise SystemExit(77)\n"""',
    "'''\nraise SystemExit(77)\n'''",
    '\\"""\nraise SystemExit(77)\n\\"""',
    '\\\\"""\nraise SystemExit(77)\n"""',
    '"',
    '""',
    "\\",
    "x\nraise SystemExit(77)",
    "x\rraise SystemExit(77)\r",
    "x\x0craise SystemExit(77)\x0b",
    "x\u2028raise SystemExit(77)\u2029\x85\x1c\x1d\x1e",
    "');raise SystemExit(77)#",
    "{body} {0} {device!r} %s",
    "\\N{no such name} \\x \\u12 \\U99999999",
    "\x00\x1a\x1b[31m",
    "\udc80 ünï ± 猫",
    "# -*- coding: utf-7 -*-\n+AGE-",
]


@pytest.mark.parametrize("injection", INJECTIONS, ids=ascii)
def test_what_a_hostile_report_says_is_inert_in_the_script(capsys, tmp_path, document, injection):
    """Into every text of it, and checked by what Python makes of the script, not by how it looks."""
    for p, part in enumerate(document["subjects"]):
        for f, entry in enumerate(part["findings"]):
            other = copy.deepcopy(document)
            there = other["subjects"][p]["findings"][f]
            other["subjects"][p]["name"] = injection
            there.update(dict.fromkeys(("message", "call", "torch", "expected"), injection))
            there["bits"] = injection if there["bits"] is not None else None
            there["id"] = f"{injection}:{entry['check']}:{entry['case']}"
            status, out, err = repro(capsys, tmp_path, other, there["id"])
            assert (status, err) == (0, "")
            assert out.isascii()
            assert skeleton(out) == skeleton(script(_benign(entry)))
            names, status, printed = play(out)
            assert status == 2  # where it asks for the subject
            assert "result" not in names
            assert printed.rstrip("\n").isprintable()
    for name in ("check", "case", "kind", "of"):
        other = copy.deepcopy(document)
        entry = other["subjects"][0]["findings"][0]
        entry[name] = injection
        entry["id"] = f"off:{entry['check']}:{entry['case']}"
        refused(*repro(capsys, tmp_path, other, entry["id"]))
    other = copy.deepcopy(document)
    other["environment"]["device"] = injection
    refused(*repro(capsys, tmp_path, other, document["subjects"][0]["findings"][0]["id"]))


@pytest.mark.parametrize(
    ("check", "kind", "case"),
    [
        ("loss", "wrong", "reduction_unknown"),
        ("errors", "accepted", "float32-7x5-normal-int64-mean"),
        ("loss", "refused", "float32-7x5-normal-int64-mean"),
        ("call", "wrong", "float32-7x5-normal-int64-mean"),
        ("loss", "wrong", "float32-7x5-normal-int64-mean"),  # without numbers
        ("target_gradient", "wrong", "float32-7x5-normal-int64-mean"),
        ("__class__", "wrong", "float32-7x5-normal-int64-mean"),
    ],
)
def test_a_finding_that_cannot_be_is_refused(check, kind, case):
    with pytest.raises(ValueError, match=r"^finding: "):
        script(Finding("mine", check, case, kind, ""))
    with pytest.raises(ValueError, match=r"^finding: "):
        script(
            Finding(
                "scalar",
                "gradient",
                "float32-5-normal-int64-mean",
                "wrong",
                "",
                numbers=Numbers((0,), 1.0, "", 2.0, 0.0, 0.0, 0.0, 2.0),
            )
        )


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\x7fELF\x00\x01\xff", "no report"), (b"[" * 100_000, "no report"), (b"", "no report"), (b"{}", "schema None")],
    ids=["binary", "nested", "empty", "another"],
)
def test_a_file_that_is_no_report_is_one_line(capsys, tmp_path, content, said):
    (tmp_path / "r").write_bytes(content)
    status = main(["repro", TORCH_HALF, str(tmp_path / "r")])
    captured = capsys.readouterr()
    refused(status, captured.out, captured.err)
    assert said in captured.err


@pytest.mark.parametrize("path", ["", "missing", ".", "/proc/self/mem"])
def test_a_file_that_cannot_be_read_is_one_line(capsys, path):
    status = main(["repro", TORCH_HALF, path])
    captured = capsys.readouterr()
    refused(status, captured.out, captured.err)
