"""The report: everything that a run found, as text, as an HTML page and as JSON.

This room owns the data of a report, its output formats, and the lists of known failures. Of the rest of crossent, its
modules import only `crossent.cases`, `crossent.choices`, `crossent.files` and `crossent.words`. No module runs a
subject.

findings           Finding, Outcome and SubjectReport: the failed checks and all results of one subject
report             Report: one run; its first and last lines as text
expected_findings  lists of known failures, with their reasons (torch_findings.toml, torch_linear_findings.toml)
causes             the findings of a subject by their probable causes
clarity            the clearest finding of a group, and the published bug that fails on the same inputs
document           a report as JSON, schema 1
reader             a report from JSON, with strict checks
last_findings      the findings of the last runs of the command, in a folder, for --last-failed and repro
text               tables, causes and gaps of subjects as text for a terminal
html               a report as an HTML page, or for a notebook (*.html.jinja, report.css, report.js)
regimes            the error for each kind of logits, as the marks of a plot
moves              the changes between two runs
"""
