"""What `import crossent` gives: the public names, their help, and short representations."""

import inspect
import pydoc
import subprocess
import sys
import typing
from importlib.metadata import version

import pytest

import crossent
from crossent.choices import CONTRACT_NAMES, GRADE_NAMES
from crossent.report.findings import SubjectReport


def test_the_package_lists_its_public_names_and_no_others():
    assert dir(crossent) == sorted([*crossent.__all__, "adapters"])
    for name in crossent.__all__:
        assert getattr(crossent, name) is not None
    assert crossent.__version__ == version("crossent")
    with pytest.raises(AttributeError, match="module 'crossent' has no attribute 'chekc'"):
        crossent.chekc  # noqa: B018


def test_listing_the_names_and_the_version_imports_no_torch():
    code = "import crossent, sys; dir(crossent); crossent.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_help_of_the_package_shows_what_one_calls():
    text = pydoc.plain(pydoc.render_doc(crossent))
    for name in ("check", "diff", "parametrize", "formula"):
        assert f"{name}(" in text
    assert "Example:" in inspect.getdoc(crossent.check)


def test_a_report_is_one_line_in_a_shell_and_its_text_when_printed():
    report = crossent.check(lambda x, y: (x * 0).sum(), dtypes="float64", level="quick", max_findings=1)
    assert isinstance(report, crossent.Report)
    assert all(isinstance(finding, crossent.Finding) for finding in report.findings)
    assert repr(report) == f"<Report: <lambda>; {report.summary}>"
    assert "\n" not in repr(report)
    assert len(str(report).splitlines()) > 10
    assert isinstance(crossent.diff(report, report, force=True), crossent.Diff)


def test_the_representation_of_a_report_with_many_subjects_is_short():
    report = crossent.Report({}, [SubjectReport(f"kernel_{at}") for at in range(99)])
    assert len(repr(report)) < 300


def test_type_checkers_know_the_words_that_check_accepts():
    """`level="quik"` is an error of mypy and pyright."""
    hints = typing.get_type_hints(crossent.check)
    assert typing.get_args(hints["level"]) == ("quick", "normal", "thorough")
    for name, words in (("contract", CONTRACT_NAMES), ("grade", GRADE_NAMES)):
        (literal,) = (one for one in typing.get_args(hints[name]) if one is not type(None))
        assert typing.get_args(literal) == words
