"""Run the checks of a level on subjects (the loss functions under test), and make the report.

The modules of this folder plan a run, run the checks, and start the processes in which subjects run. The modules may
import every other folder of crossent except `crossent.commands` and `crossent.repro`.

The main process makes the report. The main process also runs the checks, or divides the cases among worker processes.
A process that runs checks is called a judge, and knows the exact values. Where the judge calls a subject depends on the
run:

- With worker processes, and a user's function or a compiled subject in the run: the judge calls all subjects in
  isolated processes, which know no exact value.
- With worker processes, and only forms and torch in the run, none of them compiled: the judge calls the
  subjects itself.
- Without worker processes: the judge calls the subjects itself.

Two more rules: If a worker process crashes or hangs, each case that this worker had to run runs again in an isolated
process. A call with bad input that may make the device (CUDA or XPU) unusable runs in a fresh process, which makes this
call alone.

settings        Settings: the validated options of a run, and methods for its plan, subjects and known failures
plan            the cases of a level, and the checks that run on each case
selection       a part of a plan: the chosen cases and the chosen checks
order           the cases that run first; the division of the cases among worker processes, at about equal cost
runner          check() and run(): from settings to a report
verify          verify(): run the cases of a report again, and compare the results
parallel        run the cases in this process, or divide them among worker processes
workers         the worker processes: start and watch them, and kill a worker that stops responding
judge           judge one subject on one case: run the checks, and return a verdict
isolation       isolated processes, in which a subject sees inputs but no exact value; fresh processes
commands        the command, or the line of Python, that repeats a finding
shards          the division of a run among separate commands, and the merge of their reports
soak            any number of random cases; the report keeps the sums of the results
pytest_checks   each check on each case as a pytest test; parametrize()
"""
