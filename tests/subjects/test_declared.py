"""Features declared missing: the checks expect the result that `Feature.instead` names, and still find other bugs."""

import contextlib
import subprocess
import sys
import textwrap

import pytest
import torch
from support import waits
from support.checks import ALWAYS, CHECKS
from support.repro.playing import play, with_subject
from support.running import run
from support.subjects import TENSOR_FORMS

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUT_KINDS, BAD_INPUTS
from crossent.cases.case import Case
from crossent.forms import LINEAR_FORMS
from crossent.report.reader import report_of
from crossent.repro.rerun import declared_differences
from crossent.repro.script import script
from crossent.run.plan import plan
from crossent.subjects.features import FEATURES, declared
from crossent.subjects.loader import load
from crossent.trials.check import Cost
from crossent.words import as_options

HALVES = [Case(dtype, reduction=reduction) for dtype in ("float16", "bfloat16") for reduction in ("none", "mean")]
CHEAP = [check for check in CHECKS.values() if check.cost in (Cost.CALL, Cost.AGAIN, Cost.CALLS)]
NOTHING = [Case("float32", ignored="ignored_all"), Case("float32", (0, 5)), Case("bfloat16", ignored="ignored_all")]


def judged(loss, cases, without=(), checks=ALWAYS, **options):
    return run(load(loss, without=without, **options), cases, checks)


def kinds(report):
    return {(finding.check, finding.kind) for finding in report.findings}


def widened(input, target, weight=None, **options):
    """Return a float32 loss for half-precision logits, as many models do."""
    half = input.dtype in (torch.float16, torch.bfloat16)
    cast = [one.float() if one is not None and half else one for one in (input, weight)]
    target = target.float() if half and target.is_floating_point() else target
    return crossent.formula(cast[0], target, weight=cast[1], **options)


def test_a_float32_loss_of_half_precision_logits_passes_where_it_is_declared():
    cases = [*HALVES, Case("float16", target="probabilities"), Case("float32", reduction="none")]
    report = judged(widened, cases, ["half_result"], CHEAP)
    assert [str(finding) for finding in report.findings] == []
    assert report.subjects[0].declared == ["returns float32 for half precision"]
    assert report.summary.endswith("within its error bound, with 1 declared difference")
    assert "declared: widened returns float32 for half precision" in str(report)
    assert kinds(judged(crossent.formula, HALVES, ["half_result"])) == {("result", "wrong")}


def test_an_undeclared_float32_loss_is_judged_by_its_numbers_too_and_the_message_names_the_declaration():
    (finding,) = judged(widened, HALVES[0]).findings
    assert finding.message == (
        "loss: got float32 with shape (7,); expected float16 with shape (7,)\n"
        "If float32 is intended: --without half_result, in Python without=['half_result']"
    )
    wrong = judged(lambda *args, **options: widened(*args, **options) * 1.01, HALVES[0], checks=CHEAP)
    assert {"result", "loss", "gradient"} == {finding.check for finding in wrong.findings}
    (outcome,) = wrong.subjects[0].outcomes.values()
    assert outcome.not_run["repeat"] == "fails `result`, which the other checks need"


def zero_mean(input, target, reduction="mean", **options):
    """Return the right loss, but 0 instead of NaN as the mean over no rows."""
    if reduction != "mean" or target.is_floating_point():
        return crossent.formula(input, target, reduction=reduction, **options)
    kept = target.long() != options.get("ignore_index", -100)
    if kept.any():
        return crossent.formula(input, target, **options)
    return crossent.formula(input, target, reduction="sum", **options)


def test_a_mean_over_no_rows_is_zero_where_that_is_declared_and_nan_otherwise():
    assert kinds(judged(zero_mean, NOTHING, ["nan_mean"], CHEAP)) == set()
    assert kinds(judged(crossent.formula, NOTHING, ["nan_mean"])) == {("loss", "wrong")}
    (finding, *_) = judged(zero_mean, NOTHING[0]).findings
    assert finding.message.splitlines()[1] == "Expected nan, got 0"
    off = judged(lambda *args, **options: zero_mean(*args, **options) + 1e-30, NOTHING[0], ["nan_mean"])
    assert kinds(off) == {("loss", "wrong")}


@contextlib.contextmanager
def flushed():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Flushing(torch.autograd.Function):
    """A form that treats subnormal arguments as 0, and returns 0 for subnormal results, forward and backward."""

    @staticmethod
    def forward(ctx, form, logits, target, options):
        with flushed(), torch.enable_grad():
            leaves = [one.detach().requires_grad_(one.is_floating_point()) for one in (logits, target)]
            loss = form(*leaves, **options)
        ctx.loss, ctx.leaves = loss, [leaf for leaf in leaves if leaf.requires_grad]
        return loss.detach().clone()

    @staticmethod
    def backward(ctx, upstream):
        with flushed():
            made = torch.autograd.grad(ctx.loss, ctx.leaves, upstream, retain_graph=True)
        return (None, *made, *[None] * (3 - len(made)))


def flushing(form):
    return lambda logits, target, **options: Flushing.apply(form, logits, target, options)


SUBNORMAL = "float32-2049x5-assorted-int64-sum-weight_decades-ignored-strided-target_strided-seed7"


def test_a_gradient_that_is_flushed_to_zero_passes_where_that_is_declared():
    loss = flushing(crossent.log_softmax_nll)
    (finding,) = judged(loss, Case.of(SUBNORMAL)).findings
    assert (finding.check, finding.numbers.got) == ("gradient", 0.0)
    assert "\nIf this is intended, declare it: --without subnormal, in Python without=['subnormal']" in finding.message
    assert 0 < finding.numbers.exact < 2.0**-126
    assert kinds(judged(loss, Case.of(SUBNORMAL), ["subnormal"])) == set()


@pytest.mark.parametrize("form", [subject.loss for subject in TENSOR_FORMS], ids=lambda form: form.__name__)
def test_forms_under_a_processor_that_flushes_keep_the_declared_bounds(form, seed):
    every = [case for case in plan("normal", tuple(DTYPES), seed) if isinstance(case, Case)]
    few = [case for case in every if case.rows * case.classes < 20_000][::40]
    report = judged(flushing(form), few, ["subnormal"], [one for one in ALWAYS if one.name != "repeat"])
    assert [str(finding) for finding in report.findings] == []


def test_a_declared_flush_allows_no_larger_error():
    """A gradient above the smallest normal number must not become 0."""

    def loses(input, target, **options):
        input.register_hook(lambda gradient: gradient + 2.0**-124)
        return crossent.formula(input, target, **options)

    case = Case("float32", (7, 5), values="inf_off_target", reduction="sum")
    assert kinds(judged(crossent.formula, case, ["subnormal"])) == set()
    assert kinds(judged(loses, case, ["subnormal"])) >= {("gradient", "wrong")}


def overwrites(input, target, **options):
    before = input.clone()
    with torch.no_grad():
        input.add_(1)
    return crossent.formula(before, target, **options)


def test_a_loss_may_write_into_its_arguments_where_that_is_declared():
    case = Case("float32", reduction="none")
    assert kinds(judged(overwrites, case)) == {("arguments", "changed_input")}
    report = judged(overwrites, case, ["arguments"])
    assert kinds(report) == set()
    assert report.subjects[0].not_run["arguments"] == {"is declared without arguments": 1}
    # A call with a bad input may write into its arguments too.
    bad = BAD_INPUTS[0]
    assert ("arguments", "changed_input") in kinds(judged(overwrites, bad))
    assert kinds(judged(overwrites, bad, ["arguments"])) == set()


def test_a_loss_that_may_write_into_its_arguments_may_write_without_gradients_and_into_non_leaf_logits():
    case, checks = Case("float32", reduction="none"), [*ALWAYS, CHECKS["no_grad"], CHECKS["non_leaf"]]
    undeclared = kinds(judged(overwrites, case, checks=checks))
    assert undeclared == {(check, "changed_input") for check in ("arguments", "no_grad", "non_leaf")}
    assert kinds(judged(overwrites, case, ["arguments"], checks)) == set()


@pytest.mark.parametrize("kind", BAD_INPUT_KINDS)
def test_a_loss_may_lack_one_kind_of_error_and_must_raise_all_others(kind):
    of_kind = {bad.id for bad in BAD_INPUTS if bad.kind == kind}
    assert of_kind

    def accepts(id):
        def loss(input, target, **options):
            return crossent.formula(input, target, **options) if id not in of_kind else input.sum()

        return loss

    for bad in BAD_INPUTS:
        declared_missing = judged(accepts(bad.id), bad, [kind])
        assert kinds(declared_missing) == set()
        assert bool(declared_missing.subjects[0].not_applicable) == (bad.id in of_kind)
        assert (kinds(judged(accepts(bad.id), bad)) == {("errors", "accepted")}) == (bad.id in of_kind)


def test_another_class_of_error_passes_where_that_is_declared_and_no_error_does_not():
    def other(input, target, **options):
        try:
            return crossent.formula(input, target, **options)
        except Exception as error:
            raise KeyError(str(error)) from None

    assert kinds(judged(other, BAD_INPUTS)) == {("errors", "wrong")}
    assert kinds(judged(other, BAD_INPUTS, ["error_classes"])) == set()
    returns = judged(lambda logits, *args, **options: logits.sum(), BAD_INPUTS[0], ["error_classes"])
    assert kinds(returns) == {("errors", "accepted")}


@waits.float16
def test_a_grade_of_one_dtype_leaves_the_other_dtype_at_grade_a():
    """torch computes in the dtype of the logits, and returns 0 for a loss of 0.001."""
    loss, cases = torch.nn.functional.cross_entropy, [Case(dtype, (4, 2), "sure") for dtype in ("float16", "bfloat16")]
    assert {finding.case for finding in judged(loss, cases).findings} == {one.id for one in cases}
    remaining = judged(loss, cases, grade="float16=B").findings
    assert {finding.case for finding in remaining} == {cases[1].id}
    assert kinds(judged(loss, cases, grade="B")) == set()
    with pytest.raises(ValueError, match=r"grade: got 'C'; allowed are A, B, float16=B, bfloat16=B"):
        load(loss, grade="C")


def test_a_chosen_grade_holds_for_the_cases_that_show_failures_of_torch():
    sure = Case("bfloat16", (4, 2), "sure", name="half_sure", grade="A")
    assert kinds(judged(torch.nn.functional.cross_entropy, sure, grade="B")) == set()
    assert ("loss", "wrong") in kinds(judged(torch.nn.functional.cross_entropy, sure, contract="torch"))


def by_logsumexp(input, target, reduction="mean"):
    losses = torch.logsumexp(input, 1) - input.gather(1, target[:, None])[:, 0]
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_minus_the_logit_passes_under_its_contract_alone(dtype):
    cases = [Case(dtype, values=values, reduction="none") for values in ("normal", "large_offset", "negative_offset")]
    assert kinds(judged(by_logsumexp, cases, contract="logsumexp")) == set()
    assert kinds(judged(by_logsumexp, cases)) >= {("loss", "wrong"), ("gradient", "wrong")}

    def rounds(input, target, reduction="mean"):
        return by_logsumexp(input.bfloat16().to(input.dtype), target, reduction)

    assert ("loss", "wrong") in kinds(judged(rounds, cases, contract="logsumexp"))


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=waits.float16), "bfloat16"])
def test_logsumexp_in_half_precision_passes_at_grade_b(dtype):
    """torch.logsumexp rounds `max + log Σ` to the dtype of the logits, and this rounding is an error of the loss."""
    cases = [Case(dtype, (4, 2), values, reduction="none") for values in ("normal", "offset", "assorted")]
    assert kinds(judged(by_logsumexp, cases, contract="logsumexp", grade="B")) == set()
    assert ("loss", "wrong") in kinds(judged(by_logsumexp, cases, contract="logsumexp"))
    assert ("loss", "wrong") in kinds(judged(by_logsumexp, cases, grade="B"))

    def twice(input, target, reduction="mean"):
        return 2 * by_logsumexp(input, target, reduction)

    assert ("loss", "wrong") in kinds(judged(twice, cases, contract="logsumexp", grade="B"))


def in_its_dtype(input, target, reduction="mean"):
    shifted = input - input.amax(1, keepdim=True)
    losses = shifted.exp().sum(1).log() - shifted.gather(1, target[:, None])[:, 0]
    return {"none": lambda: losses, "mean": losses.mean, "sum": losses.sum}[reduction]()


@pytest.mark.parametrize(
    ("loss", "case", "options", "in_python"),
    [
        (zero_mean, NOTHING[0], "--without nan_mean", "without=['nan_mean']"),
        (in_its_dtype, Case("bfloat16", (4, 2), "sure", reduction="none"), "--grade B", "grade='B'"),
        (
            by_logsumexp,
            Case("float32", values="large_offset", reduction="none"),
            "--contract logsumexp",
            "contract='logsumexp'",
        ),
        (
            by_logsumexp,
            Case("bfloat16", (4, 2), "assorted", reduction="none"),
            "--contract logsumexp --grade B",
            "contract='logsumexp', grade='B'",
        ),
    ],
)
def test_a_wrong_number_names_the_declaration_with_which_it_is_right(loss, case, options, in_python):
    first = next(finding for finding in judged(loss, case).findings if finding.check == "loss")
    assert f"If this is intended, declare it: {options}, in Python {in_python}\n" in first.message + "\n"
    _, *words = f" {options}".split(" --")
    chosen = dict(word.split(" ") for word in words)
    without = [chosen.pop("without")] if "without" in chosen else []
    assert "loss" not in {finding.check for finding in judged(loss, case, without, **chosen).findings}


def test_of_several_options_that_fit_the_narrowest_is_named():
    """Each option has its largest share of the bound at another element, whose bounds do not compare."""

    def log_softmax_in_its_dtype(input, target, reduction="mean"):
        shifted = input - input.amax(1, keepdim=True)
        log_probs = shifted - shifted.exp().sum(1, keepdim=True).log()
        return -log_probs.gather(1, target[:, None])[:, 0]

    case = Case.of("width/bfloat16-4x15-assorted-int64-none-rows")
    found = {finding.check: finding.message for finding in judged(log_softmax_in_its_dtype, case).findings}
    assert "If this is intended, declare it: --grade B, in Python grade='B'" in found["gradient"]


def test_a_wrong_number_that_no_declaration_explains_names_none():
    def doubled(input, target, reduction="mean"):
        return 2 * crossent.formula(input, target, reduction=reduction)

    assert "If this is intended" not in judged(doubled, Case("bfloat16")).findings[0].message


def test_a_reduction_that_is_missing_alone_is_named_alone():
    def sums(input, target, reduction="mean", **options):
        return crossent.formula(input, target, reduction="sum" if reduction == "sum" else "mean")

    (finding,) = judged(sums, Case("float32", reduction="none")).findings
    assert finding.message.endswith("--without reduction_none, in Python without=['reduction_none']")


def test_no_option_is_called_without_effect_on_one_class():
    def ignores(input, target, **options):
        return crossent.formula(input, target)

    case = Case("float32", (7, 1), reduction="none", weight="weighted")
    assert "The loss is the same" not in judged(ignores, case).findings[0].message


def test_subnormal_is_not_proposed_for_an_ordinary_number():
    """If 4,096 terms of a sum may be replaced by 0, the error bound in float16 is so large that any result passes."""

    def loss(input, linear_weight, target, reduction="mean"):
        cut_off = linear_weight.detach() + 0 * linear_weight  # the gradient of the weight is 0
        return LINEAR_FORMS["linear_formula"](input, cut_off, target, reduction=reduction)

    case = "linear-float16-4096x16-normal-int64-mean-hidden16"
    (finding,) = crossent.check(
        loss, operation="linear_cross_entropy", level="quick", cases=[case], checks=["weight_gradient"]
    ).findings
    assert "If this is intended" not in finding.message


def test_options_that_make_no_difference_are_named_with_their_declaration():
    def ignores(input, target, **options):
        return crossent.formula(input, target, ignore_index=options.get("ignore_index", -100))

    case = Case("float32", weight="weighted", label_smoothing=0.1, reduction="none")
    (finding,) = judged(ignores, case).findings
    unused = "The loss is the same without weight and reduction and label_smoothing. If this is intended, declare it: "
    declaration = (
        "--without weight reduction label_smoothing, in Python without=['weight', 'reduction', 'label_smoothing']"
    )
    assert finding.message.splitlines()[-1] == f"{unused}{declaration}"
    assert kinds(judged(ignores, case, ["weight", "reduction", "label_smoothing"])) == set()
    wrong = judged(lambda *args, **options: crossent.formula(*args, **options) * 1.01, case).findings
    assert not any("the same without" in finding.message for finding in wrong)


def test_a_report_keeps_what_was_declared():
    report = judged(widened, HALVES, ["half_result", "nan_mean", "vmap"])
    assert report.subjects[0].declared == declared(["nan_mean", "half_result"])
    again = report_of(report.to_json())
    assert list(again.subjects[0].declared) == report.subjects[0].declared
    assert again.summary == report.summary


def test_the_script_of_a_finding_expects_what_is_declared(tmp_path):
    def wrong(*args, **options):
        return widened(*args, **options) * (1 if torch.is_grad_enabled() else 1.01)

    checks = [one for one in ALWAYS if one.name in ("call", "result")] + [CHECKS["no_grad"]]
    report = judged(wrong, Case("float16", reduction="none"), ["half_result"], checks)
    document = report.to_json()
    (finding,) = report.findings
    assert finding.check == "no_grad"
    assert declared_differences(document, finding) == {"half_result"}
    text = script(finding, lacks=["half_result"])
    assert "own_dtype = torch.float32" in text
    assert "own_dtype = torch.float32" not in script(finding)
    # The report does not say where the loss comes from, so the script asks its reader for a definition of the subject.
    own = "import crossent\ndef subject(x, t, **o):\n    loss = crossent.formula(x.float(), t, **o)\n"
    own += "    return loss * (1 if torch.is_grad_enabled() else 1.01)\n"
    before, _, after = text.partition("print('this script lacks the code of wrong;")
    file = tmp_path / "repro.py"
    file.write_text(before + own + after.partition("raise SystemExit(2)\n")[2], encoding="utf-8")
    ran = subprocess.run([sys.executable, file], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "error bound" in ran.stdout


@pytest.mark.parametrize("check", ["no_grad", "non_leaf"])
def test_the_script_of_a_loss_that_may_change_its_arguments_judges_the_loss(check):
    """If the loss is right now, the script says so, although the loss still writes into its logits."""
    wrong = """
        import torch, crossent

        def subject(input, target, **options):
            wrong = input.grad_fn or not torch.is_grad_enabled()
            loss = crossent.formula(input, target, **options) * (1.01 if wrong else 1)
            input.detach().add_(1)
            return loss
    """
    names = {}
    exec(textwrap.dedent(wrong), names)
    names["subject"].__name__ = "mine"  # the name that `with_subject` expects
    checks = [one for one in ALWAYS if one.name in ("call", "result")] + [CHECKS[check]]
    report = judged(names["subject"], Case("float32", reduction="none"), ["arguments"], checks)
    finding = next(one for one in report.findings if one.check == check)
    lacks = declared_differences(report.to_json(), finding)
    assert lacks == {"arguments"}
    for text, status, word in ((wrong, 1, "wrong"), (wrong.replace("1.01", "1"), 0, "right")):
        _, ended, out = play(with_subject(script(finding, lacks=lacks), textwrap.dedent(text)))
        assert (ended, out.splitlines()[-1]) == (status, word), out
    assert "the call " in play(with_subject(script(finding), textwrap.dedent(wrong)))[2]


def test_every_declaration_says_what_the_loss_does_instead():
    assert [name for name, feature in FEATURES.items() if feature.instead] == [
        "half_result", "nan_mean", "subnormal", "arguments", "error_classes",
    ]  # fmt: skip


def test_an_option_that_changes_nothing_is_not_named_if_the_loss_has_another_cause():
    """Without the feature `reduction`, the checks expect the mean. This loss always returns the sum."""

    def sums(input, target, reduction="sum"):
        return crossent.formula(input, target, reduction="sum")

    for reduction in ("none", "mean"):
        findings = judged(sums, Case("float32", reduction=reduction)).findings
        assert findings
        assert not any("the same without" in finding.message for finding in findings)


def test_the_declaration_with_the_smallest_error_bound_is_named():
    """Two declarations allow this loss: grade B, and the contract logsumexp, which has the smaller bound."""

    def wide(input, target, reduction="mean"):
        return by_logsumexp(input.float(), target, reduction)

    case = Case("bfloat16", (4, 2), "assorted", reduction="none")
    first = next(one for one in judged(wide, case, ["half_result"]).findings if one.check == "loss")
    assert f"If this is intended, declare it: {as_options(contract='logsumexp')}\n" in first.message + "\n"
