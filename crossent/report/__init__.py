"""Reports: everything that a run found, as text, as an HTML page and as JSON.

No module of this room runs a subject, the loss function under test.

findings           Finding, Outcome and SubjectReport: the failed checks and all results of one subject
report             Report: one run, its verdict, and what the verdict does not cover
expected_findings  lists of known failures, with their reasons (torch_findings.toml and others)
causes             the findings of a subject, grouped by probable cause
clarity            how clear a finding is; words for a case; published bugs with the same input
document           a report as JSON, schema 1
reader             a report from JSON, with strict checks
last_findings      the findings of the last runs, in a folder, for --last-failed and repro
text               a report for a terminal
html               a report as an HTML page, or for a notebook (*.html.jinja, report.css, report.js)
plots              the errors as a heat map, and as plots with a row for each kind of logits
moves              the changes between two runs
"""
