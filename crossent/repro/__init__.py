"""Repro scripts: each repeats a finding, and needs torch alone, or torch and the user's function.

This room owns the script of each check. Its modules import `crossent.run` and the rooms below it.

rerun      find a finding: in a report, in the last runs, or by running its case again
script     the script of a finding, with the bits of its case
recipes    for each check, the functions of its script
equations  how a result follows from other results of the subject
composer   copy functions of `scripts` into a script
literals   values and texts as Python code
scripts    the functions that a script is made of
"""
