"""Isolated processes: a subject runs in a separate process, which sees inputs and never an exact value.

The judge is the process that runs the checks. An act is a function that calls the subject. The judge sends acts to the
isolated process, and reads the replies. A host is the object through which the judge sends acts.

In the isolated process a subject may raise, exit, crash, hang, print without end, or change any Python module. So the
judge does not trust a reply. The judge compares the numbers of a reply with exact values. Other statements of a reply
cannot be compared with an exact value, such as the error that a call with bad input raised. The judge must rely on
these statements, which SECURITY.md lists.

fresh_process  a new process for each call with bad input that may make a CUDA or XPU device unusable
fork_server    the process that forks isolated processes
process        an isolated process: the loop in the process, and the host through which the judge sends acts
wire           the messages between the judge and an isolated process: contents, validation, limits of size and time
"""
