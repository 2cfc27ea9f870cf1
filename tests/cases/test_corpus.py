"""Test the corpus: each bug has cases that trigger and catch the bug, or a reason why no case can."""

import re
from collections import Counter

import pytest
import torch
from every import MUTANTS
from support.checks import CALL, RESULT, SINGLE
from support.corpus import corpus
from support.defects import DEFECTS
from support.running import run

from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.corpus import bugs
from crossent.checks import CHECKS
from crossent.forms.textbook import formula
from crossent.subjects.builtin import FORM_SUBJECTS
from crossent.subjects.subject import Subject

# The ids of all bugs. With this second list, a test notices when an entry of the corpus is lost.
IDS = [
    *("A1", "A3", "A4", "A5", "A6", "A9", "A10", "A11", "A13", "A14", "A15", "A16", "A17", "A18"),
    *("B1", "B3", "B4", "B5", "B7", "B8", "B9", "B10"),
    *("C1", "C2", "C3", "C6", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C15", "C16"),
    *("C17", "C18", "C19", "C20", "C21", "C22", "C23", "C24"),
    *("D1", "D2", "D4", "D5", "D6", "D6b", "D7", "D8", "D10", "D11", "D12", "D14", "D15"),
    *("E1", "E2", "E3", "E4", "E7", "E8", "E9", "E10"),
    *("F1", "F2", "F3", "F4", "F5"),
    *("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G9", "G10", "G12", "G13", "G14", "G15", "G16", "G17", "G18"),
    *("H1", "H3", "H4", "H5", "H6"),
    *("I1", "I2", "I3", "I4", "I5", "I6", "I7"),
]
# The checks that run in these tests. Checks of compiled code take too long, and large cases take too much memory.
SEEN = {*(check.name for check in SINGLE), "errors", "sign", "split", "options", "widened", "two_backwards"}
SEEN |= {"double_backward", "forward_ad", "hessian", "vmap", "autocast"}
BUGS = {bug.id: bug for bug in bugs()}
BAD = {bad.id: bad for bad in BAD_INPUTS}
# For each bug that is a rounding error: the defects with this error, and the checks that find them.
ROUNDING = {
    "C12": {"gradient_stored_before_it_is_scaled": "gradient widened"},
    "D1": {"gradient_from_logsumexp": "gradient"},
    "D6": {"count_of_float16": "loss gradient"},
    "D6b": {"count_of_float16": "loss gradient"},
    "D7": {"sum_stored": "loss gradient"},
    "D8": {"bfloat16_accumulator": "loss gradient"},
    "E8": {"remainder_of_tiles_dropped": "loss gradient"},
}


def wrong_losses():
    """Yield the id of each bug, a wrong loss with this bug, and the checks that must catch both.

    The wrong losses are the mutants that name the bug or one of its issues, and the defects of `ROUNDING`.
    """
    defects = {defect.name: defect for defect in DEFECTS}
    for bug in BUGS.values():
        known = {bug.id, *(issue.rpartition("/")[2] for issue in bug.issues)}
        of = {mutant.loss: mutant.checks for mutant in MUTANTS if known & set(mutant.issues)}
        of |= {defects[name]: checks.split() for name, checks in ROUNDING.get(bug.id, {}).items()}
        for wrong, checks in of.items():
            if both := sorted(SEEN & set(bug.checks) & set(checks)):
                yield bug.id, wrong, both


WRONG = list(wrong_losses())


def found(bug, *subjects):
    """Return the findings of the subjects on the cases and bad inputs of a bug."""
    small = [case for case in bug.cases if case.tiled == 1]
    checks = [check for name, check in CHECKS.items() if name in SEEN & {CALL.name, RESULT.name, *bug.checks}]
    return run(subjects, [*small, *map(BAD.get, bug.bad_inputs)], checks).findings


def test_every_known_bug_has_cases_or_a_reason(figure):
    without = [bug.id for bug in BUGS.values() if bug.why_not]
    figure(f"corpus: {len(BUGS)} bugs, all with cases but {', '.join(without)}; `crossent list bugs` has each")
    assert [bug.id for bug in bugs()] == IDS
    for bug in BUGS.values():
        has_cases = bool(bug.cases or bug.bad_inputs)
        assert has_cases != bool(bug.why_not), bug.id
        assert has_cases == bool(bug.checks), bug.id


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_an_entry_names_existing_checks_and_bad_inputs(bug):
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", issue) for issue in bug.issues)
    assert len(set(bug.issues)) == len(bug.issues)
    assert set(bug.checks) <= {*CHECKS, "errors"}
    assert set(bug.bad_inputs) <= set(BAD)
    assert ("errors" in bug.checks) == bool(bug.bad_inputs)
    assert re.fullmatch(r"\S.*\.", bug.breaks)
    assert not bug.why_not or re.fullmatch(r"\S.*\.", bug.why_not)


def test_a_printed_bug_has_the_check_errors_before_its_calls_only():
    lines = str(BUGS["G1"]).splitlines()[1:]
    assert {line.split(":")[0].strip() for line in lines} == {"loss", "errors"}
    assert all(("class_" in line) == line.strip().startswith("errors: ") for line in lines)


def test_every_case_is_read_back_from_its_id_and_has_the_name_of_its_bug():
    for bug in BUGS.values():
        for case in bug.cases:
            again = Case.of(case.id)
            assert (again, again.name) == (case, case.name)
            assert case.invalid is None
        assert len({case.name for case in bug.cases}) <= 1
        assert len(set(bug.cases)) == len(bug.cases)
    names = Counter(bug.cases[0].name for bug in BUGS.values() if bug.cases)
    assert max(names.values()) == 1, names.most_common(3)


def test_the_corpus_has_cases_for_given_dtypes_and_for_another_seed():
    everything = list(corpus())
    assert all(case.tiled == 1 for case in everything)
    assert [case.dtype for case in everything if case.dtype not in DTYPES] == []
    assert [case for case in everything if case.dtype == "bfloat16"] == list(corpus(["bfloat16"]))
    assert [case.seeded(5) for case in everything] == list(corpus(seed=5))
    assert len({case.id for case in everything}) == len(everything)


def kept(inputs):
    return inputs.target != inputs.options.get("ignore_index", -100)


def weight_of(inputs):
    return inputs.options["weight"][inputs.target[kept(inputs)]]


def some_ignored(inputs):
    return 0 < kept(inputs).sum() < kept(inputs).numel()


def logits_last(inputs):
    return inputs.input.movedim(1, -1).reshape(-1, inputs.input.shape[1]).double()


def gap(inputs):
    x = logits_last(inputs)
    return (x.amax(1) - x.amin(1)).max()


def of_target(inputs):
    return logits_last(inputs).gather(1, inputs.target.reshape(-1, 1).clamp(min=0)).squeeze(1)


def has_different_upstream_gradients(inputs):
    """Return whether the upstream gradients of the rows differ."""
    return inputs.upstream.unique().numel() > 1


def losses(inputs):
    return logits_last(inputs).logsumexp(1) - of_target(inputs)


def total_of_log_probs(inputs):
    return -logits_last(inputs).log_softmax(1).sum(1).max()


def stored_outside(inputs):
    """Return a mask of the ignored rows that follow a kept row whose true class is the last class.

    In memory, class -1 of an ignored row is the last class of the row before. So if `ignore_index` is -1, a write to
    this class changes the kept row. The mask has an entry for each row except the first.
    """
    kept_before, last = kept(inputs)[:-1], inputs.input.shape[1] - 1
    return (inputs.options["ignore_index"] == -1) & kept_before & (inputs.target[:-1] == last) & ~kept(inputs)[1:]


# For some bugs, a function that returns whether the inputs have the property that triggers the bug.
TRIGGERS = {
    "A1": lambda i: some_ignored(i) and i.options["label_smoothing"] > 0 and i.options["reduction"] != "none",
    "A3": lambda i: weight_of(i).unique().numel() > 1 and weight_of(i).sum() != len(i.target),
    "A4": lambda i: some_ignored(i) and i.options["reduction"] == "mean",
    "A5": lambda i: len({half.sum().item() for half in i.options["weight"][i.target].chunk(2)}) == 2,
    "A6": lambda i: len(i.target) > 32 and len(i.target) % 32,
    "A10": lambda i: not kept(i).any() and i.options["reduction"] == "mean",
    "A11": lambda i: not kept(i).any() and i.options["reduction"] == "mean",
    "A13": lambda i: i.options["label_smoothing"] > 0 and gap(i) > 104,  # exp(-104) is 0 in float32
    "A16": lambda i: some_ignored(i) and len(weight_of(i)) and i.options["ignore_index"] == 0,
    "A17": lambda i: some_ignored(i) and (i.target == i.input.shape[1] - 1).any(),
    "A18": lambda i: weight_of(i).unique().numel() > 1,
    "B3": lambda i: i.options["label_smoothing"] > 0 and "weight" in i.options,
    "B5": lambda i: some_ignored(i) and i.options["label_smoothing"] > 0,
    "B9": lambda i: i.options["label_smoothing"] > 0 and total_of_log_probs(i) > 65504 and losses(i).max() < 65504,
    "B10": lambda i: i.options["label_smoothing"] > 0,
    "B7": lambda i: i.input.isneginf().any() and i.options["label_smoothing"] == 0,
    "C1": lambda i: i.upstream.item() != 1,
    "C2": lambda i: not kept(i)[0] and has_different_upstream_gradients(i),
    "C9": lambda i: i.input.dim() == 4 and not i.input.is_contiguous(),
    "C10": lambda i: i.input.is_contiguous(memory_format=torch.channels_last) and not i.input.is_contiguous(),
    "C11": lambda i: (weight_of(i) < 0).any() and i.input.dtype == torch.float64,
    "C13": lambda i: len(i.target) > 1000 and i.input.element_size() == 2,
    "C15": lambda i: gap(i) > 746,  # exp(-746) is 0 in float64
    "C16": lambda i: i.input.isneginf().any(),
    "C17": lambda i: i.input.dtype == torch.float32,
    "C18": lambda i: i.upstream.dim() == 0 and i.upstream.item() != 1,
    "C19": lambda i: i.input.element_size() == 2 and losses(i).min() < 2**-8,
    "C20": lambda i: i.input.element_size() == 2 and gap(i) > 9,  # the bug drops p < 2^-12 = exp(-8.3)
    "C21": lambda i: stored_outside(i).any(),
    "C22": lambda i: i.input.shape[1] > 1,
    "C23": lambda i: (i.target.sum(1) - 1).abs().max() > 0.1,
    "D1": lambda i: (i.input > 9e7).all(),
    "D2": lambda i: i.input.dtype == torch.bfloat16 and i.input.shape[1] >= 32 and i.input.max() > 89,
    "D4": lambda i: losses(i).max() > 16.2,  # -log 1e-7
    "D6": lambda i: (
        i.input.dtype == torch.float16 and len(i.target) >= 65520
    ),  # 65520 is the smallest number that float16 rounds to infinity
    "D6b": lambda i: i.input.dtype == torch.float16 and len(i.target) >= 65520,
    "D7": lambda i: i.input.shape[1] == 65520 and (i.input == 0).all(),
    "D8": lambda i: i.input.shape[1] > 2 / torch.finfo(i.input.dtype).eps and (i.input == 0).all(),
    "D10": lambda i: i.input[i.target > 32, :32].isneginf().all(1).any(),
    "D11": lambda i: i.input.isneginf().any() and losses(i).isfinite().all(),
    "D12": lambda i: i.input.isneginf().all(1).any() and i.input.shape[1] == 128,
    "D14": lambda i: gap(i) > 104,
    "D15": lambda i: i.input.max() < -104,
    "E1": lambda i: i.input.shape[1] % 256 and i.input.max() < -9e3,
    "E2": lambda i: i.input.shape[1] % 1024 and i.input.max() < -9e3,
    "E3": lambda i: some_ignored(i) and i.options["ignore_index"] == i.input.shape[1],
    "E8": lambda i: i.input.shape[1] % 2 and i.input.dtype == torch.float16,
    "E9": lambda i: i.input.is_contiguous() and i.input.storage_offset() == 1,
    "E10": lambda i: i.input.shape[1] * 4 > 48 * 1024,
    "G2": lambda i: (i.target[~kept(i)] >= i.input.shape[1]).any(),
    "G4": lambda i: some_ignored(i) and i.options["ignore_index"] == -1 and i.options["reduction"] == "none",
    "G6": lambda i: some_ignored(i) and i.options["ignore_index"] == 255 and i.options["reduction"] == "none",
    "G7": lambda i: some_ignored(i) and i.options.get("ignore_index") == i.input.shape[1],
    "G12": lambda i: i.target.dtype == torch.uint8 and (i.target == 156).any() and "ignore_index" not in i.options,
    "G13": lambda i: i.target.numel() == 0 and i.target.is_floating_point(),
    "G14": lambda i: i.input.dim() == 1 and i.target.is_floating_point(),
    "G15": lambda i: not i.input[~kept(i)].isfinite().any() and i.input[kept(i)].isfinite().all(),
    "G16": lambda i: i.input.shape[0] == i.input.shape[1],
    "G17": lambda i: i.target.is_floating_point() and "weight" in i.options,
    "H1": lambda i: not i.target.is_contiguous(),
    "H3": lambda i: not i.input.is_contiguous() and i.input.dtype != torch.float32,
    "H4": lambda i: i.upstream.dim() and not i.upstream.is_contiguous() and not i.input.is_contiguous(),
    "H6": lambda i: i.input.dim() > 3,
    "I5": lambda i: i.input.dim() == 4 and i.target.numel() > 3000,
}


@pytest.mark.parametrize("bug", TRIGGERS)
def test_a_case_of_the_bug_has_the_property_that_triggers_the_bug(bug):
    assert any(TRIGGERS[bug](case.build()) for case in BUGS[bug].cases)


@pytest.mark.parametrize(("bug", "wrong", "checks"), WRONG, ids=lambda one: getattr(one, "__name__", str(one)))
def test_a_bug_is_caught_by_its_own_cases(bug, wrong, checks):
    caught = {finding.check for finding in found(BUGS[bug], Subject("wrong", wrong))}
    assert caught >= set(checks), f"{BUGS[bug].breaks} Caught by {caught}."
    assert "call" not in caught - set(checks), "the wrong loss raises instead of returning a wrong result"


def test_every_check_that_must_catch_a_bug_catches_a_wrong_loss_with_this_bug():
    unseen = {}
    for bug in BUGS.values():
        seen = {check for of, _, checks in WRONG for check in checks if of == bug.id}
        assert seen <= set(bug.checks), bug.id
        unseen[bug.id] = SEEN & set(bug.checks) - seen
    assert {of: checks for of, checks in unseen.items() if checks} == {}


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_right_code_passes(bug):
    assert found(bug, FORM_SUBJECTS["formula"], FORM_SUBJECTS["one_hot"], Subject("kernel", formula)) == []
