"""The changes between two runs, for each check on each case: `crossent diff`.

diff         diff() and Diff: two runs and the changes between them
comparisons  the comparison of each check on each case of a subject
rules        the rules that name a change: regression, fixed, same bits, …
conditions   differences in machine, versions and options, and results that only one run has
text         the changes as text for a terminal
html         the changes as an HTML page (diff.html.jinja)
"""
