"""`crossent diff` reports every change between two runs, and refuses a damaged file."""

import copy
import json
import random
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.running import run
from support.subjects import off_by_a_percent

from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.cases.edges import POLICIES, POLICY_NAMES
from crossent.cli import main
from crossent.machine import cpu_capability
from crossent.report.expected_findings import torch_list
from crossent.report.findings import Finding, Measured, Numbers
from crossent.report.moves.diff import diff
from crossent.report.moves.html import page
from crossent.report.moves.rules import Kind, Move, Side, kind_of
from crossent.report.reader import read_report, report_of
from crossent.report.text import plain_text
from crossent.run.plan import plan
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject

PLAIN, PER_ROW = "float32-7x5-normal-int64-mean", "float32-3x5x4-normal-probabilities-none-rows"
REFUSED = "policy/float32-3x4x5-normal-uint8-mean"  # torch raises on this case
CASES = [
    *(Case.of(name) for name in (PLAIN, PER_ROW, "bfloat16-7x5-normal-int64-mean", REFUSED)),
    POLICIES["mean over no rows"],
    POLICIES["-inf where a class probability is 0"],
    Case.of("half_sure/bfloat16-4x2-sure-int64-mean-gradeA"),
    *[bad for bad in BAD_INPUTS if bad.id in ("class_beyond_the_last", "label_smoothing_negative")],
]
NO_ROWS = POLICIES["mean over no rows"].id
BAD = "class_beyond_the_last"


def report_on(*subjects, chosen=CASES):
    """Return the report of these subjects on the cases `chosen`, as if at level quick. Mark torch's known failures."""
    made = run(subjects, chosen, known=torch_list())
    made.environment["cpu_capability"] = "AVX2"  # torch 2.0 does not know the instructions
    made.level = "quick"
    return made


@pytest.fixture(scope="module")
def before():
    return report_on(FORM_SUBJECTS["formula"], TORCH, Subject("mine", off_by_a_percent))


@pytest.fixture
def after(before):
    return report_of(json.loads(json.dumps(before.to_json())))


def changes_of(made, kind):
    """Return the changes of a kind, as (subject, check, case)."""
    return {(move.subject, move.check, move.case) for move in made.moves if move.kind is kind}


def only_move(made):
    """Return the only change of a comparison."""
    (move,) = made.moves
    return move


def remeasure(report, case, check, **changes):
    """Change attributes of the result of a check of the subject formula on a case. Return the outcome of the case."""
    outcome = report.subjects[0].outcomes[case]
    outcome.checks[check] = replace(outcome.checks[check], **changes)
    return outcome


def change_bits(outcome, of="loss", **changes):
    """Change the checksum of the result `of`, as if its bits changed, and set further attributes of its summary."""
    outcome.digest = f"{int(outcome.digest, 16) ^ 1:08x}"
    outcome.results[of] = replace(outcome.results[of], digest=outcome.digest, **changes)


def formula_finding(check, case, kind="wrong", message="", numbers=None, **more):
    return Finding("formula", check, case, kind, message, numbers=numbers, **more)


WRONG = Numbers((), 0.5, "0x3f000000", 0.25, 0.0, 1e-7, 2e6, 2.5e6)


def test_a_run_has_the_same_bits_as_itself(before, tmp_path, capsys):
    before.write_json(tmp_path / "r.json")
    made = diff(tmp_path / "r.json", tmp_path / "r.json")
    assert made.ok
    assert made.strictly_ok
    assert not made.moves
    assert not made.others
    assert not made.notes
    assert made.cases == {Kind.SAME: sum(len(part.outcomes) for part in before.subjects)}
    assert main(["diff", str(tmp_path / "r.json"), str(tmp_path / "r.json"), "--strict"]) == 0
    summary = "27 cases in both runs (counted for each subject): 27 same bits"
    assert capsys.readouterr().out.splitlines()[-1] == summary
    one = replace(before, subjects=before.subjects[:1])
    assert diff(one, one).summary == "9 cases in both runs: 9 same bits"


def test_two_runs_of_one_torch_have_no_changes(before):
    made = diff(before, report_on(FORM_SUBJECTS["formula"], TORCH, Subject("mine", off_by_a_percent)))
    assert not made.moves, str(made)


def test_a_run_that_is_read_back_is_the_run_that_was_written(before, tmp_path):
    before.write_json(tmp_path / "r.json")
    again = read_report(tmp_path / "r.json")
    assert again.to_json() == before.to_json()
    assert str(again).splitlines()[1:] == str(before).splitlines()[1:]


def test_other_bits_within_the_bound_are_of_kind_moved(before, after):
    outcome = remeasure(after, PLAIN, "loss", ulp=0.9)
    old = before.subjects[0].outcomes[PLAIN].checks["loss"].ulp
    change_bits(outcome)
    made = diff(before, after)
    move = only_move(made)
    assert (move.kind, made.ok, made.strictly_ok) == (Kind.MOVED, True, True)
    assert f"{old:.3g} → 0.9 ulp" in move.says


@pytest.mark.parametrize(
    ("ulp", "now", "kind"),
    [
        (1.0, 2.0, Kind.MOVED),
        (1.0, 2.01, Kind.WORSE),
        (0.1, 1.09, Kind.MOVED),  # the error grew by a factor of ten, but by less than an ulp
        (50.0, 99.0, Kind.MOVED),
        (2.01, 1.0, Kind.BETTER),
        (0.0, 1.5, Kind.WORSE),
    ],
)
def test_worse_is_more_than_twice_and_more_than_one_ulp(before, after, ulp, now, kind):
    change_bits(remeasure(after, PLAIN, "gradient", ulp=now, ratio=now / 100), "gradient")
    first = copy.deepcopy(before)
    remeasure(first, PLAIN, "gradient", ulp=ulp, ratio=ulp / 100)
    made = diff(first, after)
    assert only_move(made).kind is kind
    assert made.ok
    assert made.strictly_ok is (kind is not Kind.WORSE)


@pytest.mark.parametrize("share", [0.3, 0.33, 0.66])
def test_more_ulps_near_zero_are_not_worse_if_the_share_of_the_bound_at_most_doubles(before, after, share):
    change_bits(remeasure(after, PLAIN, "gradient", ulp=43.4, ratio=share), "gradient")
    first = copy.deepcopy(before)
    remeasure(first, PLAIN, "gradient", ulp=1.04, ratio=0.33)
    assert only_move(diff(first, after)).kind is Kind.MOVED
    assert only_move(diff(after, first)).kind is Kind.MOVED


def test_a_result_that_passed_and_now_fails_is_a_regression(before, after):
    change_bits(remeasure(after, PLAIN, "loss", failed=True, ulp=2e6, ratio=2.5e6), value=0.5)
    after.subjects[0].findings.append(formula_finding("loss", PLAIN, message="Mismatched", numbers=WRONG))
    made = diff(before, after)
    assert only_move(made).kind is Kind.BROKEN
    assert not made.ok
    assert re.search(r"→ 0.5; .* → 2e\+06 ulp, .* → >10× of the bound", only_move(made).says)
    assert only_move(diff(after, before)).kind is Kind.FIXED
    assert diff(after, before).ok


def test_a_regression_that_is_a_known_failure_is_shown_with_its_reason(before, after):
    change_bits(remeasure(after, PLAIN, "loss", failed=True, ulp=2e6, ratio=2.5e6))
    after.subjects[0].findings.append(formula_finding("loss", PLAIN, numbers=WRONG, expected="since torch 2.4"))
    made = diff(before, after)
    assert not made.ok
    assert "  known failure: since torch 2.4" in str(made).splitlines()


def refuse(report, case=PLAIN, message="RuntimeError: not for this"):
    """Change a report so that formula raises an error on a case, and return the report."""
    outcome = report.subjects[0].outcomes[case]
    outcome.checks = {"call": Measured(failed=True)}
    outcome.not_run = dict.fromkeys(("result", "loss", "gradient"), "fails `call`, which the other checks need")
    outcome.digest, outcome.results, outcome.grade = "", {}, ""
    report.subjects[0].findings.append(formula_finding("call", case, "refused", message))
    return report


def test_a_call_that_raises_is_newly_refused_and_one_that_raised_is_newly_accepted(before, after):
    made = diff(before, refuse(after))
    assert only_move(made).kind is Kind.REFUSED
    assert only_move(made).says == "right → RuntimeError: not for this"
    assert not made.ok
    assert not made.notes  # the refused call explains the checks that only the old run has
    other = diff(after, before)
    assert only_move(other).kind is Kind.ACCEPTED
    assert other.ok


@pytest.mark.parametrize("kind", ["refused", "crashed", "hung"])
def test_a_call_without_a_result_that_became_a_wrong_number_is_a_regression(before, after, kind):
    mine = before.subjects[2]
    first = copy.deepcopy(before)
    outcome = first.subjects[2].outcomes[PLAIN]
    outcome.checks = {"call": Measured(failed=True)}
    outcome.digest, outcome.results, outcome.grade = "", {}, ""
    first.subjects[2].findings = [finding for finding in mine.findings if finding.case != PLAIN]
    first.subjects[2].findings.append(Finding("mine", "call", PLAIN, kind, "RuntimeError: not yet"))
    made = diff(first, after)
    assert only_move(made).kind is Kind.BROKEN
    assert only_move(made).says == "RuntimeError: not yet → returns a result, but fails loss, gradient"
    assert made.command(only_move(made)).startswith(f"crossent repro mine:loss:{PLAIN}")
    assert not made.ok


def test_a_call_that_was_refused_and_is_refused_under_a_transform_alone_is_newly_accepted(before, after):
    outcome = after.subjects[0].outcomes[PLAIN]
    outcome.checks["vmap"] = Measured(failed=True)
    after.subjects[0].findings.append(formula_finding("vmap", PLAIN, "refused", "RuntimeError: not under vmap"))
    made = diff(refuse(copy.deepcopy(before)), after)
    assert only_move(made).kind is Kind.ACCEPTED
    assert only_move(made).says == "RuntimeError: not for this → right"
    assert made.ok


def test_an_error_that_became_a_wrong_number_has_the_reasons_of_both_known_failures(before, after):
    first = refuse(copy.deepcopy(before))
    first.subjects[0].findings[-1] = replace(first.subjects[0].findings[-1], expected="not before torch 2.2")
    change_bits(remeasure(after, PLAIN, "loss", failed=True, ulp=2e6, ratio=2.5e6))
    after.subjects[0].findings.append(formula_finding("loss", PLAIN, numbers=WRONG, expected="since torch 2.4"))
    made = diff(first, after)
    assert only_move(made).kind is Kind.BROKEN
    lines = str(made).splitlines()
    assert lines[lines.index("  known failure before: not before torch 2.2") + 1] == "  known failure: since torch 2.4"


def test_another_class_of_error_is_changed_behaviour_and_other_words_are_not(before, after):
    first = refuse(copy.deepcopy(before))
    made = diff(first, refuse(copy.deepcopy(before), message="IndexError: not for this"))
    assert only_move(made).kind is Kind.BEHAVIOUR
    made = diff(first, refuse(after, message="RuntimeError: in other words"))
    assert only_move(made).kind is Kind.WORDS
    assert made.strictly_ok


def test_a_bad_input_that_raises_another_error_is_changed_behaviour(before, after):
    outcome = after.subjects[0].outcomes[BAD]
    assert outcome.raised.startswith("IndexError: ")
    outcome.raised = "IndexError: in other words"
    assert only_move(diff(before, after)).kind is Kind.WORDS
    outcome.raised = "RuntimeError: another"
    move = only_move(diff(before, after))
    assert move.kind is Kind.BEHAVIOUR
    assert move.says.endswith(" → RuntimeError: another")


def test_a_bad_input_that_is_newly_accepted_is_a_regression(before, after):
    outcome = after.subjects[0].outcomes[BAD]
    outcome.raised, outcome.checks["errors"] = "", Measured(failed=True)
    after.subjects[0].findings.append(
        formula_finding("errors", BAD, "accepted", "the call returned 1.4; should have raised IndexError")
    )
    made = diff(before, after)
    assert only_move(made).kind is Kind.BROKEN
    assert "→ the call returned 1.4; should have raised IndexError" in only_move(made).says


def test_a_changed_policy_reads_as_one_line(before, after):
    change_bits(
        remeasure(after, NO_ROWS, "loss", failed=True, ulp=float("inf"), ratio=float("inf")), value=0.0, special={}
    )
    zero = replace(WRONG, got=0.0, exact=float("nan"))
    after.subjects[0].findings.append(formula_finding("loss", NO_ROWS, numbers=zero))
    made = diff(before, after)
    assert only_move(made).kind is Kind.BEHAVIOUR
    assert not made.ok
    (line,) = [line for line in str(made).splitlines() if line.startswith("changed behaviour: ")]
    assert line.startswith("changed behaviour: formula: mean over no rows, loss: NaN → 0; ")


@pytest.mark.parametrize("change", [{"dtype": "float64"}, {"shape": (1,)}, {"special": {"nan": 1}}])
def test_another_dtype_shape_or_kind_of_value_is_changed_behaviour(before, after, change):
    change_bits(after.subjects[0].outcomes[PLAIN], **change)
    assert only_move(diff(before, after)).kind is Kind.BEHAVIOUR


def test_bits_that_differ_between_two_calls_are_changed_behaviour(before, after):
    remeasure(after, PLAIN, "repeat", failed=True)
    after.subjects[0].findings.append(
        formula_finding("repeat", PLAIN, "not_repeated", "a second call gives other bits")
    )
    assert only_move(diff(before, after)).kind is Kind.BEHAVIOUR


def test_a_failure_with_other_wrong_numbers_is_still_wrong(before, after):
    mine = after.subjects[2]
    at = next(at for at, finding in enumerate(mine.findings) if (finding.check, finding.case) == ("loss", PLAIN))
    mine.findings[at] = replace(mine.findings[at], numbers=replace(mine.findings[at].numbers, got=7.0))
    change_bits(mine.outcomes[PLAIN])
    made = diff(before, after)
    assert only_move(made).kind is Kind.STILL
    assert made.strictly_ok


def test_the_same_bits_with_another_bound_are_judged_anew(before, after):
    remeasure(after, PLAIN, "loss", ratio=0.123)
    made = diff(before, after)
    assert only_move(made).kind is Kind.JUDGED
    assert made.strictly_ok


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        (Side(Measured(ulp=12.20795170031488, ratio=0.221)), Kind.JUDGED),
        (Side(Measured(ulp=13.20795169658959, ratio=0.239)), Kind.MOVED),
        (Side(Measured(ulp=12.20795170031488, ratio=0.221), digest="1"), Kind.MOVED),
    ],
)
def test_an_error_that_is_the_same_but_for_the_digits_of_another_numpy_is_judged_anew(now, kind):
    """Without a checksum, the result counts as the same if its errors agree to three decimals: see `_same_error`."""
    before = Side(Measured(ulp=12.20795169658959, ratio=0.221), digest="0" if now.digest else "")
    assert kind_of("func_grad", before, now) is kind


def test_a_move_without_numbers_says_other_bits():
    sides = Side(Measured(), digest="0"), Side(Measured(), digest="1")
    kind = kind_of("ignored_rows", *sides)
    assert Move(kind, "torch", "ignored_rows", PLAIN, "float32", *sides).says == "other bits"


def test_a_move_in_which_only_details_differ_says_so():
    sides = Side(Measured(elements=1)), Side(Measured(elements=2))
    said = "other details, such as another message, known failure or number of elements"
    assert Move(kind_of("vmap", *sides), "torch", "vmap", PLAIN, "float32", *sides).says == said
    finding = formula_finding("loss", PLAIN, numbers=WRONG, expected="since torch 2.4")
    sides = tuple(Side(Measured(True), one, digest="0") for one in (finding, replace(finding, expected="a bug")))
    assert kind_of("sign", *sides) is Kind.JUDGED
    without_checksums = [replace(side, digest="") for side in sides]
    assert kind_of("vmap", *without_checksums) is Kind.JUDGED  # only the reason of the known failure differs
    other = replace(without_checksums[1], finding=replace(finding, numbers=replace(WRONG, got=0.75)))
    assert kind_of("vmap", without_checksums[0], other) is Kind.STILL
    with_checksums = [replace(side, digest=digest) for side, digest in zip(sides, "01", strict=True)]
    assert kind_of("sign", *with_checksums) is Kind.STILL
    assert Move(Kind.JUDGED, "torch", "sign", PLAIN, "float32", *sides).says == said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (("wrong", WRONG, ""), ("refused", None, "InternalError: no"), "wrong → InternalError: no"),
        (("refused", None, "InternalError: no"), ("wrong", WRONG, ""), "InternalError: no → wrong"),
        (("wrong", None, "no gradient\nat all"), ("wrong", WRONG, ""), "no gradient → wrong"),
        (("wrong", None, "no gradient"), None, "no gradient → right"),
    ],
)
def test_a_side_without_a_message_is_right_or_wrong(old, new, said):
    sides = [
        Side(Measured(failed=bool(one)), one and formula_finding("compile", PLAIN, one[0], one[2], one[1]))
        for one in (old, new)
    ]
    assert Move(kind_of("compile", *sides), "formula", "compile", PLAIN, "float32", *sides).says == said


def test_the_grade_of_a_result_that_is_fixed_is_no_change_of_grade():
    wrong = formula_finding("result", PLAIN, message="a shape")
    sides = Side(Measured(failed=True), wrong), Side(Measured(), grade="A")
    assert Move(Kind.FIXED, "formula", "result", PLAIN, "float32", *sides).says == "a shape → right"


def test_the_line_about_changes_that_are_not_shown_names_the_command_that_shows_them(before, after):
    (line,) = [line for line in plain_text(diff(before, refuse(after)).render(0)).splitlines() if line.startswith("…")]
    how = "to see all of them, run crossent diff OLD NEW --json FILE, in Python diff.write_json(FILE)"
    assert line == f"… and 1 more change of the kind 'newly refused'; {how}"


def test_a_lower_grade_is_worse(before, after):
    after.subjects[0].outcomes[PLAIN].grade = "B"
    made = diff(before, after)
    assert only_move(made).kind is Kind.WORSE
    assert only_move(made).says == "grade A → B"
    assert only_move(diff(after, before)).kind is Kind.BETTER


def test_subjects_cases_and_checks_of_only_one_run_are_noted_and_not_compared(before, after):
    del after.subjects[0].outcomes[PLAIN]
    after.subjects[1].outcomes[PLAIN].inputs = "00000000"
    del after.subjects[1].outcomes[PER_ROW].checks["loss"]
    after.subjects[2].name = "yours"
    after.environment["numpy"], after.level = "0.1", "normal"
    made = diff(before, after)
    assert not made.moves
    assert made.others == [
        ("numpy", before.environment["numpy"], "0.1"),
        ("level", "quick", "normal"),
    ]
    assert made.notes == [
        "only in the old run: subject mine",
        "only in the new run: subject yours",
        f"only in the old run (formula): 1 case, {PLAIN}",
        f"not compared, because the bits of the inputs differ (torch): 1 case, {PLAIN}",
        "checks that ran only in the old run (torch): loss on 1 case",
    ]
    lines = str(made).splitlines()
    assert all(f"  {note}" in lines for note in made.notes)


def test_a_note_counts_several_cases_and_the_cases_that_are_not_applicable(before, after):
    for case in (PLAIN, PER_ROW):
        del after.subjects[0].outcomes[case]
    after.subjects[1].not_applicable["takes one row only"] = 2
    assert diff(before, after).notes == [
        f"only in the old run (formula): 2 cases, for example {PLAIN}",
        "cases that are not applicable (torch): 0 in the old run, 2 in the new run: takes one row only",
    ]


def test_a_note_about_several_subjects_is_one_line(before, after):
    for part in after.subjects:
        del part.outcomes[PLAIN]
    for part in after.subjects[:2]:
        del part.outcomes[PER_ROW].checks["loss"]
    assert diff(before, after).notes == [
        f"only in the old run (formula, torch, mine): 1 case, {PLAIN}",
        "checks that ran only in the old run (formula, torch): loss on 1 case",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.environment.update(device="cuda:0"), "device was 'cpu' and is 'cuda:0'"),
        (lambda run: run.environment.update(cpu_capability="ALTIVEC"), "is 'ALTIVEC'"),
        (lambda run: run.environment.update(ranks="2"), "ranks was not set and is '2'"),
        (
            lambda run: setattr(run, "seed", 7),
            "seed was 0 and is 7, so the inputs differ: repeat the new run with --seed 0, in Python seed=0",
        ),
        (lambda run: run.subjects.clear(), "no subject in common"),
        (
            lambda run: [part.outcomes.clear() or part.findings.clear() for part in run.subjects],
            "no case in common whose inputs have the same bits; repeat the new run with the options of the old run",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_unless_forced(before, after, change, message, tmp_path, capsys):
    change(after)
    with pytest.raises(ValueError, match=f"^these runs cannot be compared: .*{message}"):
        diff(before, after)
    files = [str(tmp_path / "old"), str(tmp_path / "new")]
    before.write_json(files[0])
    after.write_json(files[1])
    assert main(["diff", *files]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    comparable = "in common" not in message
    assert ("; --force, in Python force=True, compares the two runs anyway" in err) == comparable
    html = tmp_path / "page.html"
    assert main(["diff", *files, "--force", "--html", str(html)]) == (0 if comparable else 3)
    out = capsys.readouterr().out
    assert ("COMPARED ANYWAY: " in out) == comparable
    assert ("NOT COMPARED: the runs have no " in out) != comparable
    assert ("<b>Compared anyway: " in html.read_text(encoding="utf-8")) == comparable
    assert ("<b>Not compared: the runs have no " in html.read_text(encoding="utf-8")) != comparable
    assert out.splitlines()[-1].startswith("27 cases in both runs" if comparable else "nothing was compared")
    assert diff(before, after, force=True).ok == comparable
    assert ("<h1>Nothing was compared" in html.read_text(encoding="utf-8")) != comparable


def test_a_level_without_compiled_code_is_noted(before, after):
    note = "no compiled code is compared: level quick runs none of compile, compile_dynamic, compiled_error"
    before, after = copy.deepcopy((before, after))
    after.left_out, after.level = ["export", "compile", "compile_dynamic", "compiled_error"], "quick"
    assert note in diff(before, after).notes
    after.subjects[0].outcomes[PLAIN].checks["compile"] = Measured()
    assert note in diff(before, after).notes  # compiled code ran only in the new run
    before.subjects[0].outcomes[PLAIN].checks["compile"] = Measured()
    assert note not in diff(before, after).notes
    before, after = copy.deepcopy((before, after))
    for part in (before.subjects[0], after.subjects[0]):
        del part.outcomes[PLAIN].checks["compile"]
        part.name += "+compile"
    assert note not in diff(before, after).notes


def test_json_has_the_words_of_the_text(before, after):
    after.subjects[0].findings.append(Finding("formula", "state", PLAIN, "changed_state", "off"))
    made = diff(before, after)
    assert [move["kind"] for move in made.to_json()["moves"]] == ["regression"]
    assert made.summary.endswith(" 1 regression, 26 same bits")


def test_cpu_capability_names_the_vector_instructions_for_every_version_of_torch(monkeypatch):
    """Torch 2.0 names the vector instructions only in its configuration, which has "NO AVX" in place of "DEFAULT"."""
    known = cpu_capability()
    monkeypatch.delattr(torch.backends, "cpu", raising=False)
    expected = {"DEFAULT": "NO AVX"}.get(known, known)
    assert cpu_capability() == expected
    assert expected != "unknown"


def test_runs_are_compared_even_if_a_processor_is_unknown(before, after):
    after.environment["cpu_capability"] = "unknown"
    assert diff(before, after).others == [
        ("cpu_capability", before.environment["cpu_capability"], "unknown"),
    ]


def test_the_command_has_the_exit_status_that_its_help_names(before, after, tmp_path, capsys):
    change_bits(remeasure(after, PLAIN, "gradient", ulp=30.0, ratio=0.99), "gradient")
    files = [str(tmp_path / "old"), str(tmp_path / "new")]
    before.write_json(files[0])
    after.write_json(files[1])
    assert main(["diff", *files]) == 0
    assert main(["diff", *files, "--strict"]) == 1
    refuse(after).write_json(files[1])
    json_file, html_file = tmp_path / "d.json", tmp_path / "d.html"
    assert main(["diff", *files, "--json", str(json_file), "--html", str(html_file)]) == 1
    out = capsys.readouterr().out
    assert f"crossent repro formula:call:{PLAIN} {files[1]}" in out
    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert [move["kind"] for move in document["moves"]] == ["newly refused"]
    assert document["moves"][0]["new"]["finding"]["message"] == "RuntimeError: not for this"
    assert "<script>" in html_file.read_text(encoding="utf-8")


def test_markup_and_control_characters_of_a_message_are_shown_as_text(before, after, tmp_path):
    evil = "ValueError: \x1b[31m</script><script>alert(1)</script>[bold]x[/bold]"
    made = diff(before, refuse(after, message=evil))
    assert all(char.isprintable() or char == "\n" for char in str(made))
    assert "[bold]x[/bold]" in str(made)
    made.write_html(tmp_path / "d.html")
    html = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in html
    assert "\x1b" not in html


# Damage


def places(value, at=()):
    """Yield the path of each value in a JSON document, as a tuple of keys and indices."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*at, key))


def damaged(document, at, way, generator):
    """Return a copy of a document with damage of the kind `way` at the path `at`; None if the damage is impossible."""
    made = copy.deepcopy(document)
    *path, last = at
    parent = made
    for key in path:
        parent = parent[key]
    value = parent[last]
    if way == "gone":
        del parent[last]
    elif way == "another kind":
        parent[last] = generator.choice(
            [one for one in (None, True, 17, -3, 0.5, "x", [], {}, [1], {"x": 1}) if one != value]
        )
    elif way == "another name":
        if not isinstance(last, str):
            return None
        parent[f"{last}x"] = parent.pop(last)
    elif way == "twice":
        if not isinstance(value, list) or not value:
            return None
        value.append(copy.deepcopy(value[-1]))
    elif isinstance(value, bool):
        parent[last] = not value
    elif isinstance(value, int | float):
        parent[last] = generator.choice([value + 1, -value - 1, value * 2 + 1])
    elif isinstance(value, str):
        digits = value and set(value) <= set("0123456789abcdef")
        parent[last] = value[:-1] + ("1" if value[-1] == "0" else "0") if digits else f"{value}0"
    else:
        return None
    return made


def compared(good, bad):
    """Return "" and the changes between a report and a file, or the error message and None."""
    try:
        return "", diff(good, bad)
    except ValueError as error:
        return str(error), None


def test_a_thousand_damaged_files_are_each_refused_in_one_line_or_have_changes(before, tmp_path):
    bad = tmp_path / "bad.json"
    before.write_json(bad)
    document = json.loads(bad.read_text(encoding="utf-8"))
    everywhere = [at for at in places(document) if at]
    generator = random.Random(0)
    generator.shuffle(everywhere)
    ways = ("another value", "gone", "another kind", "another name", "twice")
    made = refusals = 0
    # First damage one value for each path of keys (without indices and ids of cases), then random values.
    named = {tuple(key for key in at if isinstance(key, str) and key not in CASE_IDS): at for at in everywhere}
    for at in (*named.values(), *everywhere):
        for way in ways:
            forged = damaged(document, at, way, generator)
            if forged is None or forged == document:
                continue
            bad.write_text(json.dumps(forged), encoding="utf-8")
            made += 1
            message, seen = compared(before, bad)
            refusals += bool(message)
            assert message.isprintable(), (at, way)
            assert message or seen.moves or seen.others or seen.notes, (at, way)
        if made >= 1000:
            break
    assert made >= 1000
    assert 0 < refusals < made


CASE_IDS = {case.id for case in CASES}


def test_a_file_that_is_cut_off_or_has_another_byte_is_refused_or_has_changes(before, tmp_path):
    bad = tmp_path / "bad.json"
    before.write_json(bad)
    whole = bad.read_bytes()
    generator = random.Random(1)
    for _ in range(50):
        at = generator.choice([at for at, byte in enumerate(whole) if not bytes([byte]).isspace()][:-1])
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << generator.randrange(8)]) + whole[at + 1 :]):
            bad.write_bytes(content)
            message, seen = compared(before, bad)
            assert message.isprintable(), at
            # A change of the 17th digit of a number may have no effect.
            if not (message or seen.moves or seen.others or seen.notes):
                assert json.loads(content) == json.loads(whole), content[at - 40 : at + 40]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"{",
        b"[" * 100_000,
        b'{"schema": 2}',
        b'{"schema": 1, "environment": {"device": "cpu"}}',
        b'{"schema": 1, "schema": 1, "environment": {"device": "cpu"}}',
        b'{"schema": 1, "environment": {"device": "cpu"}, "seed": NaN}',
        b"\x80\x04\x95cposix\nsystem\n(S'touch /tmp/crossent-was-here'\ntR.",
        b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_report_is_an_error_of_one_line_and_status_2(before, content, tmp_path, capsys):
    files = [str(tmp_path / "old"), str(tmp_path / "new")]
    before.write_json(files[0])
    (tmp_path / "new").write_bytes(content)
    for arguments in (files, files[::-1]):
        assert main(["diff", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("crossent: ")


def test_a_file_larger_than_the_limit_is_not_read(monkeypatch, before, tmp_path):
    monkeypatch.setattr("crossent.files.LARGEST", 1000)
    before.write_json(tmp_path / "old")
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        read_report(tmp_path / "old")


def test_the_error_about_a_report_of_another_version_names_the_missing_key(before, tmp_path):
    before.write_json(tmp_path / "r")
    document = json.loads((tmp_path / "r").read_text(encoding="utf-8"))
    del document["subjects"][0]["cases"][PLAIN]["results"]
    (tmp_path / "r").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"damaged, or from another version of crossent: the key 'results' is missing; write a new report$",
    ):
        read_report(tmp_path / "r")


# Policies


def test_each_policy_is_a_case_of_the_quick_level_under_its_name():
    ids = {case.id for case in plan("quick", ("float32",), 0)}
    assert len(POLICY_NAMES) == len(POLICIES)
    assert ids >= set(POLICY_NAMES)


@pytest.mark.parametrize(
    ("policy", "value"),
    [
        ("mean over no rows", torch.nan),
        ("mean over rows that are all ignored", torch.nan),
        ("sum over rows that are all ignored", 0.0),
        ("-inf on the true class", torch.inf),
        ("-inf where a class probability is 0", torch.nan),
    ],
)
def test_torch_and_the_forms_have_the_value_of_each_policy(policy, value):
    inputs = POLICIES[policy].build()
    for subject in (TORCH, FORM_SUBJECTS["formula"]):
        loss = subject.loss(inputs.input, inputs.target, **inputs.options)
        assert loss.equal(torch.tensor(value)) or loss.isnan() == torch.tensor(value).isnan()


# Python and pytest


def test_a_check_with_a_baseline_is_a_check_and_a_diff(tmp_path, capsys):
    baseline, arguments = (
        tmp_path / "kept.json",
        ["check", "scalar", "--level", "quick", "--dtype", "float64", "--jobs", "1"],
    )
    assert main([*arguments, "--json", str(baseline)]) == 0
    assert main([*arguments, "--baseline", str(baseline), "--strict"]) == 0
    assert re.search(r"^\d+ cases in both runs: \d+ same bits$", capsys.readouterr().out, re.M)
    document = json.loads(baseline.read_text(encoding="utf-8"))
    case = next(case for case in document["subjects"][0]["cases"].values() if case["results"])
    case["results"]["loss"]["dtype"] = "float32"
    baseline.write_text(json.dumps(document), encoding="utf-8")
    assert main([*arguments, "--baseline", str(baseline)]) == 1
    assert "changed behaviour: scalar: " in capsys.readouterr().out
    baseline.write_text("{", encoding="utf-8")
    assert main([*arguments, "--baseline", str(baseline)]) == 2
    assert capsys.readouterr().out == ""  # refused before anything ran
    assert main([*arguments, "--strict"]) == 2


def test_the_command_of_a_move_that_passes_prints_a_script_that_shows_its_number(before, after, capsys):
    change_bits(remeasure(after, PLAIN, "gradient", ulp=0.9), "gradient")
    made = diff(before, after)
    command = shlex.split(made.command(only_move(made)))
    assert command == ["crossent", "repro", "--passed", f"formula:gradient:{PLAIN}"]
    assert main(command[1:]) == 0
    script = capsys.readouterr().out
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "The number nearest to its error bound" in script


@pytest.mark.parametrize(
    ("check", "shown"), [("sign", "loss"), ("row_sums", "gradient"), ("ignored_rows", "loss"), ("call", "loss")]
)
def test_the_command_of_a_check_without_a_number_shows_a_result_that_the_check_uses(before, check, shown):
    sides = Side(Measured(), digest="0"), Side(Measured(), digest="1")
    move = Move(Kind.MOVED, "formula+compile", check, PLAIN, "float32", *sides)
    assert diff(before, before).command(move) == f"crossent repro --passed formula+compile:{shown}:{PLAIN}"


def test_a_passed_check_of_a_users_function_has_no_command(before, after, capsys):
    """`crossent repro --passed` knows only the forms and torch."""
    outcome = after.subjects[2].outcomes[BAD]
    outcome.raised = "IndexError: in other words"
    made = diff(before, after)
    assert only_move(made).subject == "mine"
    assert main(["repro", "--passed", only_move(made).id]) == 2
    assert "got subject 'mine'; with --passed, choose from formula, " in capsys.readouterr().err
    assert made.command(only_move(made)) == ""
    assert "crossent repro" not in str(made)
    assert made.to_json()["moves"][0]["repro"] == ""
    assert not re.search("crossent repro|too long", page(made))


def test_the_command_of_another_error_prints_a_script_that_shows_the_error(before, after, capsys):
    after.subjects[0].outcomes[BAD].raised = "RuntimeError: another"
    made = diff(before, after)
    command = shlex.split(made.command(only_move(made)))
    assert command == ["crossent", "repro", "--passed", f"formula:errors:{BAD}"]
    assert main(command[1:]) == 0
    assert "IndexError" in capsys.readouterr().out
    assert main(["repro", "--held", f"formula:errors:{BAD}", __file__]) == 2
