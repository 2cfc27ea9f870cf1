"""Run the checks, tests and benchmarks that need a GPU, in at most ten minutes: `python -m benchmarks.cuda`.

These modules import only the standard library, because the machine may lack torch or another package:

__main__       the command
session        runs the steps: their processes, their time limits, their results
steps          the steps, in the order of their value
results        the facts of a step, read from its output, for the JSON file
processes      the processes of a step, which end with the step
devices        the devices that torch sees
wheels         the packages that are missing, and a folder of wheels for a machine without a network

Three modules run in the process of a step, and import torch or crossent:

device         describes the devices of this machine
asserting      a loss whose kernel stops with a device-side assert
known          the findings of torch that are known failures on a CPU
"""
