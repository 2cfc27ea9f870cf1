"""Run the checks of a level on subjects, the loss functions under test, and make the report.

This folder makes the plan of a run, runs the checks, and starts the processes in which subjects run. Its modules may
import every other folder of crossent except `crossent.repro`.

The main process makes the report. The main process runs the checks itself, or shares the cases among worker processes.
The process that runs the checks is called the judge; the judge knows the exact values. Without worker processes, the
judge calls the subjects itself. With worker processes, the judge calls the subjects itself only if every subject is a
form or torch, and not compiled. Otherwise all subjects of the run are called in isolated processes, which know no exact
value. Two kinds of calls never run in the judge. A case that made a worker crash or hang runs again in an isolated
process. A bad call that may make a CUDA device unusable runs in a fresh process.

settings        Settings: the options of a run, validated once; subjects, plan and known failures from them
plan            the cases of a level, and the checks that run on each
selection       a part of a plan: chosen cases and chosen checks
order           the cases that run first; the division of a run into parts of about equal cost
runner          check() and run(): from settings to a report
verify          verify(): run the cases of a report again, and compare the results
parallel        run the cases in this process, or in worker processes that share the cases
workers         the worker processes: start and watch them, and kill a worker that stops responding
judge           one subject on one case: run the checks, return a verdict
isolation       isolated processes: a subject sees inputs, and never an exact value; a new process for one bad call
commands        the command, or the line of Python, that repeats a finding
shards          the parts of a run that run as separate commands, and the merge of their reports
soak            any number of random cases, of which the report keeps sums
pytest_checks   one check on one case as a pytest test; parametrize()
"""
