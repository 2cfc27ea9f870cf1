"""Isolated processes: a subject runs in a separate process, which sees inputs and never an exact value.

The judge, which is the process that runs the checks, sends an act (a function that calls the subject) to the isolated
process and reads the reply. In the isolated process a subject may raise, exit, crash, hang, print without end, or
change any module. So the judge does not trust a reply. The judge compares numbers with exact values, which the isolated
process never sees. Some statements of a reply have no exact value, such as the error that a call with bad input raised.
The judge must rely on these statements, which SECURITY.md lists.

fresh_process  a new process for one bad call that may make a CUDA device unusable
fork_server    a process that forks isolated processes, and is started before any exact value is known
process        an isolated process: its loop, and the host that sends acts to it
wire           the messages: their contents, their checks, and their limits of size and time
"""
