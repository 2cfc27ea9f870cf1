"""Isolated processes: a subject runs in a separate process, which receives inputs, but no exact value.

The judge is the process that runs the checks. An act is a function that calls the subject. A host is an object that
runs acts for the judge. The judge does not trust the reply of a process, since the subject may change any Python
module. SECURITY.md lists the statements of a reply that the judge cannot verify.

fresh_process  a new process for each call with bad input that may make a CUDA or XPU device unusable
fork_server    the process that forks isolated processes
process        an isolated process: the loop in the process, and the host of the judge
wire           the messages between the judge and an isolated process
"""
