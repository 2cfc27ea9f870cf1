"""The sentences of docstrings have at most 25 words, so that a reader understands each one at the first reading."""

import ast
import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "crossent").rglob("*.py"))
MOST_WORDS = 25

ENTRIES = ("Args:", "Attributes:", "Raises:", "Warns:")  # sections of entries `name: text`
TEXTS = ("Returns:", "Yields:", "Note:")
CODE = re.compile(r"(:\w+:)?(`+)[^`]+\2")  # also a role, such as :func:`check`
END = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?:(?<=[.?!:])|(?<=[.?!:][)\"']))\s+")


def passages(docstring):
    """Yield each paragraph, list item and entry of prose, but no code, no formulas and no tables."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        title, _, rest = paragraph.partition("\n")
        text = dedent(rest) if title in (*ENTRIES, *TEXTS) else re.sub(r"(?m)^ {4}.*$", "", paragraph)
        text = text.split(">>>")[0]
        if not re.search(r"\S {2,}\S", text):
            yield from re.split(r"\n(?=\S)" if title in ENTRIES else r"\n(?=[*-] )", text)


def long_sentences(docstring):
    """Return each sentence of prose with more than 25 words. Code in backquotes is one word."""
    found = []
    for passage in passages(docstring):
        joined = CODE.sub(lambda code: re.sub(r"\s+", "\0", code.group()), passage)  # code has no end of a sentence
        for sentence in END.split(joined):
            words = [word for word in sentence.split() if re.search(r"[\w`]", word)]
            if len(words) > MOST_WORDS:
                found.append(" ".join(sentence.split()).replace("\0", " "))
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.relative_to(ROOT).as_posix())
def test_a_sentence_of_a_docstring_is_short(module):
    found = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{module.relative_to(ROOT)}: {getattr(node, 'name', 'the module')}"
            found += [f"{name}: {sentence}" for sentence in long_sentences(ast.get_docstring(node) or "")]
    assert found == []


WORDS = " ".join(["word"] * MOST_WORDS)


@pytest.mark.parametrize(
    "docstring",
    [
        f"{WORDS}. {WORDS}: {WORDS}? {WORDS}",
        f"{WORDS[:-4]}`code in\nbackquotes`. {WORDS[:-4]}:func:`x`.",
        f"Args:\n    x: {WORDS}\n        .\n    y: {WORDS}",
        f"* {WORDS}\n* {WORDS}",
        f"Formula:\n\n    {WORDS} {WORDS}\n\nname  {WORDS} {WORDS}\n\n>>> {WORDS} {WORDS}",
    ],
)
def test_short_sentences_and_code_pass(docstring):
    assert long_sentences(docstring) == []


@pytest.mark.parametrize(
    "docstring",
    [
        f"A {WORDS}.",
        f"Short.\n\n{WORDS[:-4]}`code` word",
        f"{WORDS[:-4]}0.5 words, {WORDS[:-4]}",
        f"{WORDS[:-4]}e.g. words.",
        f"Raises:\n    Error: Short.\n    Other: {WORDS}\n        word",
        f"Returns:\n    {WORDS}\n    word",
        f"* Short\n* {WORDS}\n  word",
    ],
)
def test_a_long_sentence_fails(docstring):
    assert len(long_sentences(docstring)) == 1
