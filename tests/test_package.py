"""The public names and the help of the package, its changelog and its citation file."""

import inspect
import pydoc
import re
import subprocess
import sys
import tomllib
import typing
from importlib.metadata import version

import pytest
from support.readme import ROOT

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


def test_every_listed_name_is_an_attribute_after_the_import_of_the_package_alone():
    code = "import crossent; [getattr(crossent, name) for name in dir(crossent)]; crossent.adapters.from_numpy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_the_names_and_the_version_imports_no_torch():
    code = "import crossent, sys; dir(crossent); crossent.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_help_of_the_package_shows_its_functions():
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


def test_the_changelog_has_the_sections_of_keep_a_changelog():
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in releases[1:])
    of_unreleased = "\n".join(lines).split("\n## ")[1]
    sections = re.findall(r"^### (.*)", of_unreleased, re.M)
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    assert sections == [section for section in order if section in sections]


def test_the_citation_names_the_version_and_the_authors_of_the_package():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == version("crossent")
    authors = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["authors"]
    assert re.findall(r"^  - name: (.*)$", citation, re.M) == [author["name"] for author in authors]
