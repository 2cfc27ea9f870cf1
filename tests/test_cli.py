"""The command: its output, its exit status, and one line for wrong use."""

import json
import os
import pathlib
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from support.error_lines import error_line
from support.running import check_on

from crossent.__main__ import main as command
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.edges import edges
from crossent.cases.grid import grid
from crossent.cli import INTERRUPTED, NOT_WRITTEN, NOTHING_RAN, PASSED, WRONG_USE, crossent, main
from crossent.console import Output
from crossent.forms import FORMS


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(autouse=True)
def one_job(monkeypatch, tmp_path):
    """Run in one process, which is faster than starting another, and keep the reports in another folder."""
    monkeypatch.setattr("crossent.machine.cores", lambda: None)
    monkeypatch.setattr("crossent.report.last_findings.FOLDER", str(tmp_path / "cache"))


@pytest.fixture
def small_grid(monkeypatch):
    """Let `crossent check` run a few cases in place of the cases of a level. These tests are about the command."""
    dtypes = tuple(DTYPES)
    more = [*edges(dtypes, 0, "quick"), *list(grid(dtypes, 0, "triples"))[::20]]  # as evidence for every check
    monkeypatch.setattr("crossent.run.runner.check", check_on(list(grid(dtypes, 0, "pairs"))[::40], more=more))


def test_check_prints_a_row_for_each_form_and_dtype(capsys, small_grid):
    status, out, err = run(capsys, "check", "-vv")
    assert status == PASSED
    assert err == ""
    for subject in (*FORMS, "torch", "torch_nll"):
        assert re.search(rf"^{subject} +PASSED +(\d+ +)?\d+ +\d+ .*[AB] +\d+%", out, re.M), out
    for check in ("loss", "gradient"):
        for dtype in DTYPES:
            assert re.search(rf"^ +{check} {dtype} +\d+% +\S+ ulp +\d+  \S*{dtype}-", out, re.M), out
    assert "every judged number within its error bound" in out


def test_check_says_what_did_not_apply_and_why(capsys, small_grid):
    _, out, _ = run(capsys, "check", "scalar", "-vv")
    assert re.search(r"not applicable, \d+ cases: scalar takes one row only", out)


def test_check_exits_1_and_shows_the_numbers_when_a_form_is_wrong(capsys, small_grid, monkeypatch):
    from crossent.cli import FAILED
    from crossent.forms.textbook import formula
    from crossent.subjects.builtin import EVERY_NAMED
    from crossent.subjects.subject import Subject

    wrong = Subject("formula", lambda *args, **options: formula(*args, **options) * 1.01, source="formula")
    monkeypatch.setitem(EVERY_NAMED, "formula", (wrong,))
    status, out, _ = run(capsys, "check", "formula", "--dtype", "float64")
    assert status == FAILED
    assert re.search(r"^formula +[1-9]\d* FAILED", out, re.M)
    for said in (
        "Mismatched elements",
        "got  ",
        "exact  ",
        "torch  ",
        "call  ",
        "repeat  crossent repro formula:loss:",
    ):
        assert said in out


def test_check_exits_3_when_nothing_ran(capsys, monkeypatch):
    many_rows = [case for case in grid(["float16"]) if case.sizes == (7, 5)][:3]
    monkeypatch.setattr("crossent.run.runner.check", check_on(many_rows))
    status, out, _ = run(capsys, "check", "scalar", "--dtype", "float16")  # bad inputs have float32 logits
    assert status == NOTHING_RAN
    assert "nothing ran" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("check", "formulae"), "formulae"),
        (("check", "--dtype", "float8"), "float8"),
        (("check", "--device", "cuda:99"), "cuda:99"),
        (("check", "--device", "toaster"), "toaster"),
        (
            ("check", "--contract", "tensorflow"),
            "--contract: got 'tensorflow'; allowed are kernel, fast, ",
        ),
        (
            ("check", "--level", "quik"),
            "--level: got 'quik' (did you mean quick?); allowed are quick, normal, thorough\n",
        ),
        (("check", "--without", "wings"), "--without: got 'wings'; allowed are float16, "),
        (("check", "--case", "3x7"), "--case: got '3x7', which is not the id of a case"),
        (
            ("check", "--expected-findings", "nowhere"),
            "--expected-findings: got 'nowhere'; this file cannot be read: No such file",
        ),
        (("check", "--jobs", "0"), "--jobs: got '0'; allowed are whole numbers from 1 to 1024\n"),
        (("check", "--jobs", "1.5"), "--jobs: got '1.5'; allowed are whole numbers from 1 to 1024\n"),
        (("check", "--max-findings", "x"), "--max-findings: got 'x'; allowed are whole numbers of 1 or more\n"),
        (("check", "--timeout", "0"), "--timeout: got '0'; allowed are numbers above 0\n"),
        (
            ("check", "--json", "/nowhere/x"),
            "--json: got '/nowhere/x'; the folder '/nowhere' does not exist; choose another file\n",
        ),
        (("check", "--contract", "torch", "--grade", "A"), "got 'A', but the contract 'torch' has grade B"),
        (
            ("check", "--seed", "x"),
            "--seed: got 'x'; allowed are whole numbers from 0 to 4294967295, or the word random\n",
        ),
        (("check", "--seed", "-1"), "--seed"),
        (("check", "--nonsense"), "--nonsense"),
        (("nonsense",), "nonsense"),
        (("repro",), "FINDING"),
        (("repro", "a", "b", "c"), "c"),
        (("explain", "--logits", "1,foo", "--target", "0"), "--logits"),
        (("explain", "--logits", "", "--target", "0"), "--logits"),
        (("explain", "--logits", "1,nan", "--target", "0"), "--logits: got nan for class 1; allowed is one finite"),
        (("explain", "--logits", "1,inf", "--target", "0"), "logits"),
        (("explain", "--logits", "1,1e999", "--target", "0"), "logits"),
        (("explain", "--logits", "1e308,-1e308", "--target", "0"), "logits"),
        (("explain", "--logits", "1,2", "--target", "2"), "--target: got 2; allowed are the classes 0 to 1\n"),
        (("explain", "--logits", "1,2", "--target", "-1"), "target"),
        (("explain", "--logits", "1,2", "--target", "1.5"), "--target"),
        (("explain", "--logits", "1,2"), "--target"),
        (("explain", "--target", "2"), "--logits"),
        (("explain", "--random", "--logits", "1,2"), "--random"),
        (
            ("explain", "--linear", "--logits", "1,2", "--target", "0"),
            "--linear computes the logits of its own",
        ),
        (("explain", "--classes", "3"), "--random"),
        (("explain", "--random", "--classes", "0"), "--classes"),
        (("explain", "--random", "--seed", "-1"), "--seed"),
        (("explain", "--random", "--seed", str(2**64)), "--seed"),
    ],
)
def test_wrong_use_is_one_line_on_stderr_and_status_2(capsys, arguments, named):
    status, out, err = run(capsys, *arguments)
    assert status == WRONG_USE
    assert out == ""
    assert named in error_line(err)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("nonsense",), "crossent"),
        (("--nonsense",), "crossent"),
        (("check", "--levl", "quick"), "crossent check"),
        (("check", "--level", "quik"), "crossent check"),
        (("check", "--strict"), "crossent check"),
        (("check", "--device", "toaster"), "crossent check"),
        (("repro",), "crossent repro"),
        (("list", "check"), "crossent list"),
    ],
)
def test_wrong_use_names_the_command_for_help(capsys, arguments, command):
    status, _, err = run(capsys, *arguments)
    assert (status, err.splitlines()[1:]) == (WRONG_USE, [f"Try '{command} --help'."])


def test_a_file_that_is_wrong_needs_no_help_about_the_command(capsys, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    status, _, err = run(capsys, "diff", *[str(tmp_path / "report.json")] * 2)
    assert (status, err.count("\n")) == (WRONG_USE, 1)


COMMANDS = [(), *((name,) for name in crossent.commands)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_help_text_has_no_escapes(capsys, command):
    status, out, _ = run(capsys, *command, "--help")
    assert status == PASSED
    assert "\\" not in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_help_text_is_whole_at_80_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, *command, "--help")
    several = re.sub(r" \.\.\.\]|(FEATURE|REPORT|SUBJECT) \.\.\.|\[ARGS\]\.\.\.", "", out)
    assert "..." not in several
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_h_is_short_for_help(capsys, command):
    assert run(capsys, *command, "-h") == run(capsys, *command, "--help")


def test_v_is_short_for_version(capsys):
    assert run(capsys, "-V") == run(capsys, "--version")
    assert run(capsys, "-V")[1] == f"crossent {version('crossent')}\n"


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr("crossent.run.runner.check", check_on([Case("float64")]))


def test_json_is_written_beside_the_table(capsys, one_case, tmp_path):
    path = tmp_path / "report.json"
    status, out, err = run(capsys, "check", "formula", "--dtype", "float64", "--json", str(path))
    assert (status, err) == (PASSED, "")
    assert out.startswith("crossent ")
    assert json.loads(path.read_text())["subjects"][0]["counts"]["ran"] == 1


@pytest.mark.parametrize("path", ["missing/report.json", ".", "", "dangling.json"])
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(capsys, monkeypatch, tmp_path, path, option):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling.json").symlink_to("missing/report.json")
    monkeypatch.setattr("crossent.run.runner.check", None)  # nothing is run
    status, out, err = run(capsys, "check", option, path)
    assert (status, out) == (WRONG_USE, "")
    assert option in error_line(err)


@pytest.mark.parametrize(("forbidden", "what"), [("report.json", "this file"), ("", "the folder {!r}")])
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_file_or_a_folder_without_permission_is_refused_before_the_run(
    capsys, monkeypatch, tmp_path, forbidden, what, option
):
    """The message names the file or folder. Root may write everywhere, so the test replaces `os.access`."""
    path = tmp_path / "report.json"
    path.write_text("before")
    monkeypatch.setattr("crossent.run.runner.check", None)
    monkeypatch.setattr(
        os, "access", lambda at, mode: mode != os.W_OK or not os.path.samefile(at, tmp_path / forbidden)
    )
    status, out, err = run(capsys, "check", option, str(path))
    assert (status, out) == (WRONG_USE, "")
    reason = f"{what.format(str(tmp_path))} is not writable; choose another file"
    assert f"{option}: got {str(path)!r}; {reason}\n" in err
    assert path.read_text() == "before"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a system with /dev/full")
@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_full_disk_is_one_line_after_the_table(capsys, one_case, option):
    status, out, err = run(capsys, "check", "formula", "--dtype", "float64", option, "/dev/full")
    assert status == NOT_WRITTEN
    assert "1 call checked" in out
    assert err == f"crossent: {option}: /dev/full cannot be written: No space left on device\n"


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a system with /dev/full")
def test_the_html_page_is_written_even_if_the_json_report_cannot_be_written(capsys, one_case, tmp_path):
    path = tmp_path / "report.html"
    arguments = ("--dtype", "float64", "--json", "/dev/full", "--html", str(path))
    status, _, err = run(capsys, "check", "formula", *arguments)
    assert status == NOT_WRITTEN
    assert err.count("\n") == 1
    assert path.read_text().startswith("<!doctype html>")


def test_one_file_cannot_hold_both_the_report_and_the_page(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("crossent.run.runner.check", None)  # nothing is run
    (tmp_path / "link").symlink_to("report")
    status, out, err = run(capsys, "check", "--json", str(tmp_path / "report"), "--html", str(tmp_path / "link"))
    assert (status, out) == (WRONG_USE, "")
    assert "also the file of --json" in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40"}, {"FORCE_COLOR": "1", "COLUMNS": "1"}]
)
def test_a_plain_or_narrow_terminal_gets_every_digit(capsys, one_case, monkeypatch, setting):
    for name in ("NO_COLOR", "TERM", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    status, out, _ = run(capsys, "check", "formula", "--dtype", "float64", "-vv")
    plain = re.sub(r"\x1b\[[\d;]*m", "", out)
    assert status == PASSED
    assert ("FORCE_COLOR" in setting) == (plain != out)
    assert re.search(r"^  check +float64: A", plain, re.M), plain
    assert re.search(r"^  loss +1 +\d+%", plain, re.M), plain
    assert re.search(r"^  loss float64 +\d+% +\d\.\d ulp +\d+  float64-7x5-normal-int64-", plain, re.M), plain


@pytest.mark.parametrize("options", [[], ["--linear"]], ids=["logits", "linear"])
def test_explain_cuts_no_number_in_a_narrow_terminal(capsys, monkeypatch, options):
    outputs = []
    for columns in (40, Output.NARROWEST):
        monkeypatch.setenv("COLUMNS", str(columns))
        outputs.append(run(capsys, "explain", *options))
    assert outputs[0] == outputs[1]
    assert re.search(r"^ +0 .* 0\.8789 +← the true class", outputs[0][1], re.M)


def test_a_progress_bar_needs_a_terminal(capsys, one_case):
    assert run(capsys, "check", "formula", "--dtype", "float64")[2] == ""


def test_no_command_prints_the_help(capsys):
    status, out, _ = run(capsys)
    assert status == WRONG_USE
    assert "explain" in out


def test_ctrl_c_is_one_line_and_status_130(capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("crossent.run.runner.check", interrupted)
    status, out, err = run(capsys, "check")
    assert (status, out, err.strip()) == (INTERRUPTED, "", "crossent: interrupted")


def test_ctrl_c_while_a_module_makes_a_class_is_one_line(monkeypatch, capsys):
    """Before 3.12, Python turns an exception in `__set_name__` into a RuntimeError, whose cause is this exception."""

    def interrupted():
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr("crossent.cli.main", interrupted)
    assert command() == INTERRUPTED
    assert capsys.readouterr().err == "crossent: interrupted\n"


def test_ctrl_c_after_the_end_changes_nothing():
    """Python runs the functions of atexit while it ends, and restores the handlers of signals only later."""
    interrupt = "import atexit, os, signal, sys; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    program = f"{interrupt}; sys.argv = ['crossent', '-V']; from crossent.__main__ import script; sys.exit(script())"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (PASSED, "")
    assert ended.stdout.startswith("crossent ")


def test_explain_walks_through_the_example_of_the_article(capsys):
    status, out, _ = run(capsys, "explain")
    assert status == PASSED
    words = " ".join(out.split())
    for shown in ("0.8789", "0.1189", "0.002179", "= 0.1291", "0.1278", "0.6333"):
        assert shown in words
    for form in ("nn.CrossEntropyLoss", *FORMS):
        assert re.search(rf"{re.escape(form)} .*0\.1291089088", out), out


def test_explain_takes_negative_logits_after_a_space(capsys):
    status, out, _ = run(capsys, "explain", "--logits", "-1,2", "--target", "1")
    assert status == PASSED
    assert "(-1, 2)" in out


def test_explain_says_when_the_prediction_is_wrong(capsys):
    _, out, _ = run(capsys, "explain", "--logits", "3,1,-3", "--target", "2")
    assert "but the true class is 2" in " ".join(out.split())


@pytest.mark.parametrize("logits", ["3,1,-3", "8e307,-8e307", "1e-320,0", "1000,-1000", "-1e8,-1e8,-1e8"])
def test_explain_cuts_no_table_at_80_columns(capsys, monkeypatch, logits):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "explain", "--logits", logits, "--target", "1" if "," in logits else "0")
    assert {"form", "formula", "loss", "minus torch"} <= set(re.split(r" {2,}", out.replace("\n", "  ")))
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("logits", ["0", "5,5", "1000,-1000", "8e307,-8e307", "1e-320,0", "-1e8,-1e8,-1e8"])
def test_explain_prints_no_nan_for_extreme_logits(capsys, logits):
    status, out, err = run(capsys, "explain", "--logits", logits, "--target", "0")
    assert (status, err) == (PASSED, "")
    assert "nan" not in out


def test_explain_random_repeats_with_its_seed(capsys):
    first, second, other = (run(capsys, "explain", "--random", "--seed", s)[1] for s in ("1", "1", "2"))
    assert first == second
    assert first != other


def test_explain_shortens_a_long_row_and_keeps_its_true_class(capsys):
    status, out, _ = run(capsys, "explain", "--random", "--classes", "100000")
    assert status == PASSED
    assert "← the true class" in out
    assert len(out.splitlines()) < 80


def test_an_ascii_terminal_gets_question_marks_and_no_traceback():
    process = subprocess.run(
        [sys.executable, "-m", "crossent", "explain"],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == PASSED, process.stderr
    assert b"Traceback" not in process.stderr


@pytest.mark.parametrize("arguments", [("explain",), ("--help",), ()])
def test_a_closed_pipe_is_silent(arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "crossent", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == NOT_WRITTEN
    assert error == b""


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a system with /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "crossent", "explain"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert process.returncode == NOT_WRITTEN
    assert process.stderr.count(b"\n") == 1


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a system with /dev/full")
@pytest.mark.parametrize(
    ("arguments", "status"), [(("explain", "--target", "3"), WRONG_USE), (("explain",), NOT_WRITTEN)]
)
def test_a_full_disk_for_errors_does_not_change_the_status(arguments, status):
    with open("/dev/full", "w") as full:  # status 1 would say that a check failed
        process = subprocess.run([sys.executable, "-m", "crossent", *arguments], stdout=full, stderr=full, check=False)
    assert process.returncode == status


@pytest.mark.parametrize(
    ("logits", "target", "said"),
    [
        ("0,0,0,0", "2", "Here the loss is 1.386 either way, as for equal logits."),
        ("3,1,-3", "0", "applied twice, and the loss is 0.6333 instead of 0.1291: a wrong loss"),
        ("0,0,0,0", "2", "so no single class is predicted"),
        ("5", "0", "as for equal logits"),
        ("1000,0", "1", "too small for a float = 1000"),
        ("1e-9,0", "0", "Here the loss is 0.6931 either way"),
        ("10,0", "0", "-log p_0 = -log 0.999955 = 4.540e-05"),
        ("10,0", "0", "is a difference: -10 + 10.000045 = 4.540e-05."),
        ("1234.5,1235.5", "0", "is a difference: -1234.5 + 1235.81 = 1.313."),
        ("1e8,100000001", "0", "is a difference: -100000000 + 100000001.31 = 1.313."),
        ("36,0", "0", "-log p_0 = -log 0.9999999999999998 = 2.220e-16"),
        ("36,0", "0", "The logarithm of a fraction is a difference. Software"),
    ],
)
def test_explain_has_words_for_ties_and_digits_for_small_differences(capsys, logits, target, said):
    _, out, _ = run(capsys, "explain", "--logits", logits, "--target", target)
    assert said in " ".join(out.split())
    assert "-0 +" not in out


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("subjects", r"^torch +cross_entropy$"),
        ("checks", r"^target_gradient +The gradient of the target probabilities equals the exact value"),
        ("cases", r"^pytorch-73205/float32-7x5-normal-int64-mean-ignored_default-smooth0.2$"),
        ("contracts", r"^torch +Like nn.CrossEntropyLoss: "),
        ("bugs", r"^G15 +\S.* pytorch/pytorch#11551$"),
    ],
)
def test_list_prints_subjects_checks_cases_contracts_and_bugs(capsys, what, line):
    status, out, _ = run(capsys, "list", what)
    assert status == PASSED
    assert re.search(line, out, re.M)


def test_a_check_of_a_linear_cross_entropy_says_input_for_an_argument_and_logits_for_the_logits(capsys):
    _, out, _ = run(capsys, "list", "checks", "--operation", "linear_cross_entropy")
    sentences = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" "))
    assert "of the input" in sentences["gradient"]
    assert sentences["memory"].startswith("A call with 2^25 logits")
    assert sentences["shift"].startswith("Adding one constant to every logit")


def test_q_is_the_verdict_alone_with_the_time(capsys, one_case):
    status, out, _ = run(capsys, "check", "formula", "--dtype", "float64", "-q")
    assert status == PASSED
    assert re.fullmatch(r"PASSED: \d+ calls? checked, every judged .*, in [\d.]+ s\n", out)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (BlockingIOError(11, "no more processes"), "BlockingIOError: [Errno 11] no more processes"),
    ],
)
def test_an_error_of_the_machine_during_a_run_is_not_an_error_of_the_output(capsys, monkeypatch, error, said):
    def check(*subjects, **options):
        raise error

    monkeypatch.setattr("crossent.run.runner.check", check)
    assert run(capsys, "check", "formula") == (WRONG_USE, "", f"crossent: {said}\n")
