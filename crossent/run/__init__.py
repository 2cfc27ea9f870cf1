"""Run the checks of a level on subjects (the loss functions under test), and make the report.

A judge is a process that runs checks: the main process, or a worker process. The judge knows the exact values. In a run
with worker processes, a user's function runs in an isolated process, which receives no exact value. Without worker
processes, the judge itself calls the function.

settings        Settings: the validated options of a run
plan            the cases of a level, and the checks that run on each case
selection       a part of a plan: the chosen cases and checks
order           the cases that run first; the division of the cases among worker processes
runner          check() and run(): from settings to a report
verify          verify(): run the cases of a report again, and compare the results
parallel        run the cases in this process, or divide them among worker processes
workers         the worker processes: start, watch and kill them
judge           run the checks of one subject on one case, and return a verdict
isolation       isolated processes; fresh processes, which make a single call
commands        the command, or the line of Python, that repeats a finding
shards          the division of a run among separate commands, and the merge of their reports
soak            any number of random cases; the report keeps the sums of the results
pytest_checks   each check on each case as a pytest test; parametrize()
"""
