"""A FINDING AS A SCRIPT that needs torch and nothing else.

script     the finding, the bits of its case, and the script
recipes    which script repeats which check
equations  from which numbers of other results a number follows
composer   copies functions of `scripts` into a script
literals   values and texts as Python code
scripts    the functions that a script is made of
"""
