"""Mutants on 2 and on 3 ranks: the checks that a mutant names find the mutant, and the right losses pass."""

from types import SimpleNamespace
from typing import ClassVar

import pytest
from batch_parallel import BatchParallel
from rank_mutants import RANK_MUTANTS
from support.running import run_isolated
from token_mean import TokenMean
from vocab_parallel import PaddedVocabParallel, VocabParallel

from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.checks import CHECKS, RANK_CHECKS
from crossent.run.plan import of_cost, plan
from crossent.subjects.loader import load
from crossent.subjects.ranks.protocol import can_start_ranks
from crossent.trials.check import Cost
from crossent.trials.trial import NotRunError, Question

pytestmark = pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
OF_A_CALL = of_cost(Cost.CALL)
PLAIN = "float32-7x5-normal-int64-none-rows"
ONLY_IGNORED = "gets only ignored rows; this check needs a row that is not ignored"
PUBLISHED = {
    "LocalMaximum",
    "LocalSmoothing",
    "SumInTheDtype",
    "TargetOnEveryRank",
    "UnmaskedTarget",
    "MeanOverLocalRows",
    "IdentityGradientOfLogSoftmax",
    "LogOfTheRanksTooMuch",
    "FloatInPlace",
    "NoGradientWithoutTheTarget",
}


def report_of(loss, ranks, cases, checks=OF_A_CALL):
    (subject,) = load(loss, ranks=ranks)
    return run_isolated(subject, seconds=300, cases=cases, checks=checks)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("mutant", RANK_MUTANTS, ids=str)
def test_a_mutant_is_killed_by_the_checks_that_it_names(mutant, ranks):
    own = [check for name, check in RANK_CHECKS.items() if name in mutant.checks]
    report = report_of(mutant.loss, ranks, [mutant.case], [*OF_A_CALL, *own])
    assert {finding.check for finding in report.findings} == set(mutant.checks), "\n\n".join(map(str, report.findings))


def test_the_mistakes_that_others_published_are_among_the_mutants():
    assert {str(mutant) for mutant in RANK_MUTANTS} >= PUBLISHED


@pytest.mark.parametrize("loss", [VocabParallel, PaddedVocabParallel, BatchParallel, TokenMean])
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_right_loss_survives_the_cases_of_the_mutants(loss, ranks):
    cases = sorted({mutant.case for mutant in RANK_MUTANTS})
    report = report_of(loss, ranks, cases, [*OF_A_CALL, *RANK_CHECKS.values()])
    assert [str(finding) for finding in report.findings] == []
    applicable = [case for case in cases if loss is not TokenMean or "-mean" in case]
    assert set(report.subjects[0].outcomes) == set(applicable)


@pytest.mark.parametrize(
    ("split", "target", "reason"),
    [
        ("classes", "int64", "pads no shard"),
        ("padded", "probabilities", "gets class probabilities; this check needs class indices"),
    ],
)
def test_padding_target_says_why_it_does_not_run(split, target, reason):
    subject = SimpleNamespace(split=split, ranks=2)
    trial = SimpleNamespace(question=Question(Case("float32", target=target)), subject=subject)
    with pytest.raises(NotRunError, match=f"^{reason}$"):
        list(RANK_CHECKS["padding_target"].body(trial))


@pytest.mark.parametrize(("check", "split"), [("uneven_shards", "classes"), ("padding_target", "padded")])
def test_a_single_rank_is_the_reason_why_a_check_of_its_shards_does_not_run(check, split):
    subject = SimpleNamespace(split=split, ranks=1)
    trial = SimpleNamespace(question=Question(Case("float32")), subject=subject)
    with pytest.raises(NotRunError, match=r"^runs on one rank, which has all classes$"):
        list(RANK_CHECKS[check].body(trial))


@pytest.mark.parametrize(
    ("check", "split", "sizes", "ranks", "reason"),
    [
        ("world_sizes", "classes", (7, 5), 1, "runs on one rank; this check needs two or more"),
        ("idle_rank", "batch", (7, 5), 1, "has all rows on one rank"),
        ("idle_rank", "batch", (1, 5, 3), 2, "has all rows on one rank"),
    ],
)
def test_a_check_without_a_further_call_does_not_pass(check, split, sizes, ranks, reason):
    trial = SimpleNamespace(
        question=Question(Case("float32", sizes)), subject=SimpleNamespace(split=split, ranks=ranks)
    )
    with pytest.raises(NotRunError, match=f"^{reason}$"):
        list(RANK_CHECKS[check].body(trial))


class Checked(PaddedVocabParallel):
    lacks: ClassVar = {"probability_target": "takes class indices"}

    def forward(self, local_logits, target, shape, axis, options):
        kept = target[target != options["ignore_index"]]
        if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < shape[axis]:
            raise IndexError("a target is no class")
        return super().forward(local_logits, target, shape, axis, options)


@pytest.mark.parametrize(
    ("case", "not_run"),
    [
        (PLAIN, ""),
        ("float32-7x255-normal-int64-none-ignored", ""),
        (
            "float32-7x5-normal-int64-none-ignored_all-rows",
            ONLY_IGNORED,
        ),
    ],
)
def test_padding_target_gives_no_target_that_is_ignored(case, not_run):
    report = report_of(Checked, 2, [case], [*OF_A_CALL, RANK_CHECKS["padding_target"]])
    assert [str(finding) for finding in report.findings] == []
    (outcome,) = report.subjects[0].outcomes.values()
    assert outcome.not_run.get("padding_target", "") == not_run


class Normalised(VocabParallel):
    lacks: ClassVar = {"one_class": "needs a class on each rank", "unnormalised": "takes probabilities with the sum 1"}


def test_empty_shard_does_not_cut_probabilities_if_the_loss_needs_the_sum_1():
    case = "float32-7x5-normal-probabilities-mean"
    (outcome,) = report_of(Normalised, 3, [case], [RANK_CHECKS["empty_shard"]]).subjects[0].outcomes.values()
    assert outcome.not_run == {"empty_shard": "takes probabilities with the sum 1"}


class Double(VocabParallel):
    def forward(self, local_logits, target, shape, *arguments):
        loss = super().forward(local_logits, target, shape, *arguments)
        return loss.double() if shape[1] == 1 else loss


class Shorter(VocabParallel):
    def forward(self, local_logits, target, shape, *arguments):
        loss = super().forward(local_logits, target, shape, *arguments)
        return loss[:3] if shape[1] == 1 else loss


@pytest.mark.parametrize(
    ("loss", "got"),
    [(Double, "float64 with shape (7,)"), (Shorter, "float32 with shape (3,)")],
)
def test_a_wrong_dtype_or_shape_of_a_call_with_one_class_is_found(loss, got):
    (finding,) = report_of(loss, 2, [PLAIN], [*OF_A_CALL, RANK_CHECKS["empty_shard"]]).findings
    assert (finding.check, finding.kind) == ("empty_shard", "wrong")
    assert finding.message == f"loss of another call: got {got}; expected float32 with shape (7,)"


def test_a_batch_of_one_sample_with_several_rows_is_not_cut():
    trial = SimpleNamespace(
        question=Question(Case("float32", (1, 5, 3))), subject=SimpleNamespace(normalization="tokens")
    )
    with pytest.raises(NotRunError, match=r"^gets a batch of one sample, which cannot be cut into micro-batches$"):
        list(RANK_CHECKS["micro_batches"].body(trial))


class WrongWithoutClasses(VocabParallel):
    def forward(self, local_logits, target, shape, *arguments):
        return super().forward(local_logits, target, shape, *arguments) + (shape[1] == 1)


def test_the_message_of_a_call_with_one_class_says_class():
    (finding, *_) = report_of(WrongWithoutClasses, 2, [PLAIN], [*OF_A_CALL, RANK_CHECKS["empty_shard"]]).findings
    assert finding.message.startswith("loss, of 1 class:\n")


def test_a_mutant_of_each_check_of_ranks_is_killed():
    assert {name for mutant in RANK_MUTANTS for name in mutant.checks} >= set(RANK_CHECKS)


def test_a_right_loss_passes_the_pairwise_cases_of_level_quick():
    planned = plan("quick", ("bfloat16", "float64"), 0)
    cases = [case for case in planned if isinstance(case, Case) and single_source(case)]
    report = report_of(VocabParallel, 2, cases)
    assert [str(finding) for finding in report.findings] == []
    assert len(report.subjects[0].outcomes) > 50


def single_source(case):
    """Return whether a case is from a covering array. The ids of other cases begin with the name of their source."""
    return "/" not in case.id


def test_every_case_of_a_mutant_is_in_a_dtype_and_its_checks_exist():
    for mutant in RANK_MUTANTS:
        assert Case.of(mutant.case).dtype in DTYPES
        assert set(mutant.checks) <= {*CHECKS, *RANK_CHECKS}
