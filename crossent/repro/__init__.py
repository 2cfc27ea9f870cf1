"""The repro scripts: a finding as a script that needs torch alone, or also the user's function.

This room owns the script of each check. Its modules import `crossent.run` and the rooms below it.

rerun      the finding: from a report, from the last runs, or from the case run again
script     the finding, the bits of its case, and the script
recipes    which script repeats which check
equations  from which numbers of other results a number follows
composer   copies functions of `scripts` into a script
literals   values and texts as Python code
scripts    the functions that a script is made of
"""
