"""A part of a run: chosen checks and chosen cases, and the lines about them in the report."""

import json
import re

import pytest
from support.running import check_on
from support.subjects import off_by_a_percent

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.bad_inputs import BadInput
from crossent.cases.case import Case
from crossent.cases.operation import CROSS_ENTROPY
from crossent.checks import CHECKS, RANK_CHECKS, checks_of
from crossent.report.reader import report_of
from crossent.run.plan import of_cost, plan
from crossent.run.selection import select
from crossent.run.settings import Settings
from crossent.trials.check import Cost

SEED = 11
CASES = [Case("float32", (3, 5), label_smoothing=smoothing) for smoothing in (0.0, 0.1)]
LARGE = "float16-2049x1025-normal-int64-none-tiled1024"


@pytest.fixture(scope="module")
def planned():
    return {level: plan(level, tuple(DTYPES), SEED) for level in ("quick", "normal")}


def names(checks):
    return [check.name for check in checks]


def test_a_chosen_check_runs_where_the_level_has_it_with_the_checks_that_it_needs(planned):
    whole = planned["normal"]
    part = select(whole, "normal", ["vmap"], {})
    assert set(part) == {
        case for case, checks in whole.items() if CHECKS["vmap"] in checks and CHECKS["vmap"].applies(case)
    }
    assert {tuple(names(checks)) for checks in part.values()} == {("call", "result", "vmap")}


def test_a_check_runs_on_no_case_to_which_it_does_not_apply(planned):
    part = select(planned["quick"], "quick", ["target_gradient"], {})
    assert part
    assert all(CHECKS["target_gradient"].applies(case) for case in part)


def test_the_check_of_bad_inputs_can_be_chosen_too(planned):
    assert {type(case) for case in select(planned["quick"], "quick", ["errors"], {})} == {BadInput}
    assert not any(isinstance(case, BadInput) for case in select(planned["quick"], "quick", ["loss"], {}))


def test_a_pattern_selects_cases_of_the_plan_in_their_order_whatever_the_seed(planned):
    whole = planned["quick"]
    part = select(whole, "quick", [], {"pytorch-73205/*smooth0.2": ()})
    assert part
    assert all(case.id.startswith("pytorch-73205/") and case.seed == SEED for case in part)
    assert part == {case: whole[case] for case in part}
    assert list(part) == [case for case in whole if case in part]


def test_a_full_id_runs_even_if_the_level_lacks_the_case_or_the_check(planned):
    wanted = "float32-7x6-normal-int64-mean-seed5"
    assert Case.of(wanted) not in planned["quick"]
    (case,) = part = select(planned["quick"], "quick", [], {wanted: ()})
    chosen = tuple(check for check in of_cost(Cost.CALL, Cost.AGAIN) if check.name in checks_of(CROSS_ENTROPY))
    assert (case.id, part[case]) == (wanted, chosen)
    ((case, checks),) = select(planned["quick"], "quick", ["vmap", "trace"], {wanted: ()}).items()
    assert names(checks) == ["call", "result", "vmap", "trace"]
    ((case, checks),) = select(planned["quick"], "quick", ["loss"], {LARGE: ["large"]}).items()
    assert names(checks) == ["large"]
    assert names(select(planned["quick"], "quick", [], {LARGE: ()})[case]) == ["large"]


def test_a_full_id_that_the_plan_lacks_also_runs_the_checks_of_ranks(planned):
    wanted, every = "float32-7x6-normal-int64-mean-seed5", CHECKS | RANK_CHECKS
    (checks,) = select(planned["normal"], "normal", [], {wanted: ()}, every).values()
    assert {"loss", "world_sizes", "one_shard"} <= {*names(checks)}


def test_a_full_id_of_the_plan_runs_the_checks_of_the_plan(planned):
    case = list(planned["normal"])[100]
    assert select(planned["normal"], "normal", [], {case.id: ()}) == {case: planned["normal"][case]}


@pytest.mark.parametrize("first", ["pattern", "id"])
@pytest.mark.parametrize("without_names", ["pattern", "id"])
def test_all_checks_run_on_a_case_that_one_word_chooses_without_names(planned, first, without_names):
    whole = planned["quick"]
    case = next(case for case in whole if isinstance(case, Case))
    words = {"id": case.id, "pattern": "*"}
    order = [first, *(words.keys() - {first})]
    part = select(whole, "quick", [], {words[one]: [] if one == without_names else ["loss"] for one in order})
    assert part[case] == whole[case]


def test_a_case_may_have_checks_of_its_own(planned):
    one, other = (Case("float32", (3, n)).id for n in (5, 6))
    part = select(planned["quick"], "quick", [], {one: ["repeat"], other: ["sign"], "class_negative": ["errors"]})
    assert {case.id.rpartition("/")[2]: names(checks) for case, checks in part.items()} == {
        one: ["call", "result", "repeat"],
        other: ["call", "result", "sign"],
        "class_negative": [],
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"checks": "los"}, "checks: got 'los'; allowed are call, result"),
        ({"cases": {"*": ["los"]}}, r"cases\['\*'\]: got 'los'; allowed are call, result"),
        (
            {"checks": ["trace_dynamic"]},
            "checks: got trace_dynamic; no chosen case of level quick runs these checks; choose another level or dtype",
        ),
        ({"cases": "*nothing*"}, r"cases: got '\*nothing\*', which matches no case of this level and these dtypes"),
        (
            {"cases": "float32-7x5"},
            "cases: got 'float32-7x5', which is not the id of a case; `crossent list cases` prints ids; a pattern has",
        ),
        (
            {"cases": "float32-7x5-normal-int64-mean", "checks": "target_gradient"},
            r"cases: got float32-7x5-normal-int64-mean; no chosen check \(target_gradient\) applies to a chosen case;",
        ),
        (
            {"cases": {"float32-7x5-normal-int64-mean": ["large"], "class_negative": ["loss"]}},
            r"cases: got float32-7x5-normal-int64-mean, class_negative; no chosen check \(large, loss\) applies to a ",
        ),
        (
            {"cases": {"float32-7x5-normal-int64-mean": ["large"], "float32-7x5*": []}, "checks": ["large"]},
            "checks: got large; no chosen case of level quick runs these checks",
        ),
    ],
)
def test_a_choice_without_any_check_is_wrong_use(options, said):
    with pytest.raises(ValueError, match=said):
        Settings(level="quick", dtypes="float32", **options).plan()


def test_the_report_says_that_only_a_part_ran():
    report = check_on(CASES)("formula", level="quick", dtypes="float32", checks=["loss"], cases="*smooth0.1")
    assert report.ok
    assert [*report.subjects[0].outcomes] == ["float32-3x5-normal-int64-mean-smooth0.1"]
    assert "ONLY A PART RAN: only the checks loss\n" in str(report)
    assert "ONLY A PART RAN: only the cases *smooth0.1\n" in str(report)
    document = report.to_json()
    assert document["only"] == {"checks": ["loss"], "cases": ["*smooth0.1"]}
    assert report_of(json.loads(json.dumps(document))).to_json() == document


def test_a_whole_run_says_nothing_of_parts():
    report = check_on(CASES)("formula", level="quick", dtypes="float32")
    assert "ONLY" not in str(report)
    assert not {"only", "stopped"} & report.to_json().keys()


def test_a_part_without_evidence_for_a_result_may_pass():
    zero = Case("float32", (1, 1))  # a single class: the loss is zero
    part = check_on([zero], bad_inputs=False)("formula", level="quick", checks=["loss"])
    assert (part.ok, part.subjects[0].without_evidence) == (True, ["loss in float32"])
    assert "NO EVIDENCE" not in str(part)
    assert re.search("^formula +PASSED", str(part), re.M)
    whole = check_on([zero], bad_inputs=False)("formula", level="quick")
    assert not whole.ok
    assert "NO EVIDENCE" in str(whole)
    assert re.search("^formula +UNPROVEN", str(whole), re.M)


def test_the_report_names_the_checks_that_did_not_run_since_a_feature_is_declared_missing():
    """Otherwise a wrong gradient would pass without a word, because its owner declared that there is no gradient."""
    report = check_on(CASES)("formula", level="quick", dtypes="float32", without=["gradient"])
    assert report.summary.endswith("; no gradient of formula was checked")
    assert re.search(r"^not checked: gradient, .*since formula is declared without gradient$", str(report), re.M)
    assert "not checked" not in str(check_on(CASES)("formula", level="quick", dtypes="float32"))


def test_a_partial_run_is_compared_on_what_it_has_and_what_is_missing_is_no_change():
    options = {"level": "quick", "dtypes": "float32"}
    whole = check_on(CASES)(off_by_a_percent, **options)
    part = check_on(CASES)(off_by_a_percent, **options, checks=["loss"])
    for old, new, which in ((whole, part, "new"), (part, whole, "old")):
        compared = crossent.diff(old, new)
        assert compared.ok
        notes = [note for note in compared.notes if "compiled code" not in note]
        assert notes == [f"the {which} run is only a part: only the checks loss; only this part is compared"]
        assert compared.others == []


def test_a_subject_that_two_names_stand_for_runs_once():
    """The name torch stands for torch and torch_nll. So `crossent check torch torch_nll` runs each of them once."""
    loaded = Settings().load("torch", "torch_nll", "formula", "torch")
    assert [subject.name for subject in loaded] == ["torch", "torch_nll", "formula"]


def test_a_function_with_the_name_of_a_form_gets_another_name():
    """Otherwise a report about the function reads as a report about the form."""

    def formula(input, target, **options):
        return 1.01 * crossent.formula(input, target, **options)

    loaded = Settings().load(formula, "formula", "formula+compile", "torch")
    assert [one.name for one in loaded] == ["formula#2", "formula", "formula+compile", "torch", "torch_nll"]
    assert [one.name for one in Settings().load(crossent.formula)] == ["formula"]


def test_two_functions_of_one_name_both_run():
    loaded = Settings().load(lambda *args, **options: 1, lambda *args, **options: 2)
    assert [subject.name for subject in loaded] == ["<lambda>", "<lambda>#2"]
