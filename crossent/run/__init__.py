"""The run: from a level to a report.

This room owns the plan of a run, the judge's verdicts, and the processes in which subjects run. Its modules import
every room but `crossent.repro`.

settings        Settings: the options of a run, validated once; subjects, plan and known failures from them
plan            the cases of a level, and the checks that run on each
selection       a part of a plan: chosen cases and chosen checks
order           chooses the cases that run first, and cuts a run into parts of equal cost
runner          check() and run(): from settings to a report
verify          verify(): run the cases of a report again, and compare
parallel        runs the cases in this process, or in worker processes that share the cases
workers         the worker processes: forked, watched, replaced when they end
judge           one subject on one case: run the checks, return a verdict
isolation       isolated processes: a subject sees inputs, and never an exact value
fresh_process   a new process for one bad call that may make its device useless
pytest_checks   one check on one case as a pytest test; parametrize()
"""
