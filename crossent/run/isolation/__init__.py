"""Isolated processes: a subject runs in a separate process, which sees inputs and never an exact value.

The judge sends an act to the process and reads a reply. There the subject may raise, exit, crash, hang, print without
end, or change whatever it finds: the whole process counts as the subject's. What it replies are claims. Numbers are
compared with exact values that it never sees, and every other claim can only make the verdict worse.

fork_server   a process that forks isolated processes before any exact value is known
process       an isolated process: its loop, and the host that sends it acts
wire          the messages: what they hold, how they are checked, their limits of size and time
"""
