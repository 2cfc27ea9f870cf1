"""Repro scripts: each repeats a finding. A script for torch needs torch alone; most other scripts need crossent too.

A script has the inputs of the case, bit for bit. The script calls a step, which is a function that calls the subject.
For a wrong number, the script then calls a function `judge_…`, which compares this number with the exact value, or with
other results. The exit status is 1 if the finding happens, 0 if the finding does not happen, and 2 if the script cannot
tell, for example because the call cannot run. A recipe names the functions and values for the scripts of a check.

The modules of this room import `crossent.run` and the rooms below it.

rerun      find a finding: in a report, in the last runs, or by running its case again
script     write the script of a finding, with the inputs of its case
recipes    the recipe of each check
equations  how a result follows from other results of the subject
composer   copy functions of `scripts` into a script
literals   values and texts as Python code
scripts    the functions that are copied into scripts
"""
