"""The pages in docs/ agree with the code: public names, options of pytest, paths, pictures."""

import importlib.util
import re

import pytest
from support.readme import ROOT

import crossent
from crossent import adapters, plugin

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def test_the_api_reference_has_every_public_name():
    documented = re.findall(
        r"^\.\. (?:autofunction|autoclass|py:data):: crossent\.([\w.]+)(?:\(\))?$", text_of("api.md"), re.M
    )
    public = {*crossent.__all__, *(f"adapters.{name}" for name in vars(adapters) if name.startswith("from_"))}
    assert public <= set(documented)


def test_the_page_of_the_plugin_has_every_option():
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    options = [name for option in parser.getgroup("crossent").options for name in option.names()]
    assert options == re.findall(r"^\| `(--crossent-[\w-]+)", text_of("pytest.md"), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_path_that_a_page_names_exists(page):
    named = re.findall(r"`((?:crossent|tests|benchmarks|docs|\.github)/[\w./]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_is_in_the_table_of_contents(page):
    tables = re.findall(r"^```{toctree}\n(.*?)^```$", text_of("index.md"), re.S | re.M)
    lines = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    entries = [re.sub(r".* <(.*)>", r"\1", line) for line in lines]
    assert page.stem == "index" or entries.count(page.stem) == 1


def test_the_pictures_are_what_the_script_draws():
    matplotlib = pytest.importorskip("matplotlib", reason="the extra docs is not installed")
    if not matplotlib.__version__.startswith("3.11."):
        pytest.skip(f"matplotlib {matplotlib.__version__} may draw other bytes than 3.11, which drew the files")
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    assert pictures.stale() == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_that_includes_a_file_links_a_file_that_a_clone_can_show(page):
    """GitHub shows an include as plain text, so the page needs a link to the included file."""
    text = page.read_text(encoding="utf-8")
    before = ""
    for part in text.split("```{include} ")[:-1]:
        before += part
        links = [path for path in re.findall(r"\]\(([^)#]+)\)", before) if path.startswith("../")]
        assert [path for path in links if (DOCS / path).is_file()] != []
    included = set(re.findall(r"^```{include} (\.\./.+)$", text, re.M))
    assert included <= set(re.findall(r"\]\(([^)#]+)", text))
