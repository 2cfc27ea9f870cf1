"""Scripts that repeat a finding, for `crossent repro`.

A script for torch needs torch alone. A script for most other subjects needs crossent too.

The subject is the loss function under test. A script has the inputs of the case, bit for bit. The script calls a step,
a function that calls the subject. For a wrong number, a function `judge_…` then compares the number with the exact
value, or with other results of the subject. The exit status is 1 if the finding happens, 0 if the finding does not
happen, and 2 if the script cannot tell.

A recipe names the functions and the values for the scripts of one check. The result of a call has parts: the loss, and
each gradient.

rerun         get a finding from a report, from the last runs, or by running its case again
script        write the script of a finding, with the inputs of its case
recipes       the recipe of each check
equations     how a result follows from others, such as the loss of a batch from the losses of two parts of the batch
subject_code  the code of a script that defines, imports or loads its subject
composer      copy functions of `scripts` into a script
literals      values and texts as Python code
scripts       the functions that are copied into scripts
"""
