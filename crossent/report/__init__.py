"""The report: everything that a run found, as text, as an HTML page and as JSON.

This room owns the data of a report, its output formats, and the lists of known failures. Its modules import of this
package only `crossent.cases`, `crossent.numerics.formats`, `crossent.files` and `crossent.words`; no module runs a
subject.

findings           Finding, Outcome and SubjectReport: the failed checks and all results of one subject
report             Report: one run; its first and last lines as text
expected_findings  lists of known failures, with their reasons (torch_findings.toml)
causes             the findings of a subject by their probable causes
clarity            which finding of a group shows the failure best, and which published bug has the same trigger
document           a report as JSON, schema 1
reader             a report from JSON, with strict checks
last_findings      the findings of the last runs of the command, in a folder, for --last-failed and repro
text               the part of one subject as text for a terminal
html               a report as an HTML page, or for a notebook (*.html.jinja, report.css, report.js)
regimes            the error for each kind of values, and the marks of its plot
moves              the differences between two runs
"""
