"""The command, or the line of Python, that repeats a finding."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from crossent.report.findings import Finding
from crossent.run.settings import Settings
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.features import FEATURES
from crossent.words import printable, shell_word

# The settings that the command or the line of Python may name, and the defaults of all settings.
_NAMED = ("level", "device", "operation", "ranks", "without", "contract", "grade")
_DEFAULTS = {option.name: option.default for option in fields(Settings)}


def options_of(settings: Settings) -> dict[str, Any]:
    """Return the settings that a command or a line of Python may name, such as "level", as a dict."""
    return {name: getattr(settings, name) for name in _NAMED}


def with_commands(findings: Iterable[Finding], source: str, options: Mapping[str, Any]) -> list[Finding]:
    """Return the findings, each with the command or the line of Python that repeats the finding.

    `source` is the text from which the subject was loaded, such as "file.py:NAME", or "" for a callable.
    `options` is the result of :func:`options_of`.
    """
    return [replace(one, repeat=_command(one, source, options)) for one in findings]


def _command(finding: Finding, source: str, options: Mapping[str, Any]) -> str:
    promises: dict[str, Any] = {"without": list(options["without"])}
    promises |= {"contract": options["contract"], "grade": options["grade"]}
    if not source:
        run = {name: options[name] for name in ("level", "device", "operation", "ranks")}
        changed = {name: value for name, value in run.items() if value != _DEFAULTS[name]}
        given = {"checks": [finding.check], "cases": [finding.case], **changed}
        given |= {name: value for name, value in promises.items() if value}
        arguments = [printable(finding.subject), *(f"{name}={value!r}" for name, value in given.items())]
        return f"crossent.check({', '.join(arguments)})"
    # Name only the features that change what a check expects. For any other missing feature, checks are just skipped.
    promises["without"] = [name for name in options["without"] if FEATURES[name].instead]
    given = {name: value for name, value in promises.items() if value}
    if options["ranks"] is not None:
        words = ["crossent", "check", relative_source(source), "--ranks", str(options["ranks"])]
        words += ["--check", finding.check, "--case", finding.case]
    else:
        words = ["crossent", "repro", finding.id]
        is_built_in = source == finding.subject and source in BY_NAME  # a form or torch, and not compiled
        words += [] if is_built_in else ["--subject", relative_source(source)]
    for name, value in given.items():
        words += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    return " ".join(map(shell_word, words))


def relative_source(source: str) -> str:
    """Return the source of a subject, such as "/path/to/file.py:NAME".

    If the file is in the current directory, the path becomes relative to this directory.
    """
    place, colon, attribute = source.rpartition(":")
    inside = os.path.isabs(place) and os.path.commonpath([place, os.getcwd()]) == os.getcwd()
    return f"{os.path.relpath(place)}{colon}{attribute}" if inside else source
