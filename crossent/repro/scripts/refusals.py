"""Script functions for calls with bad input, and for calls that may end their process."""

# mypy: allow-untyped-defs, allow-untyped-calls

import subprocess
import sys

import torch

from crossent.repro.scripts.case import logits, options, raises, seconds, subject, target
from crossent.repro.scripts.functions import verdict
from crossent.repro.scripts.single import arguments, require_state, require_unchanged, state


def isolate():
    """Run the script again in a separate process, and end with the same status. A crash or a hang is a finding.

    In the separate process, this function returns at once.
    """
    if sys.argv[1:] == ["here"]:  # this is the separate process
        return
    if "__file__" not in globals():
        print("save this script as a file, and run the file: the script starts a second process")
        raise SystemExit(2)
    child = subprocess.Popen([sys.executable, __file__, "here"], stdout=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None
    child.stdout.readline()  # wait until the process has started
    try:
        told = child.communicate(timeout=seconds)[0].decode()
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        verdict(True, f"the call did not return within {seconds:g} s")
    print(told, end="")
    last = told.splitlines()[-1:]
    if child.returncode == 2 and "the script cannot run here: " in "".join(last):
        raise SystemExit(2)
    if last not in (["right"], ["wrong"]):
        verdict(True, f"the call ended its process, with exit code {child.returncode}")
    raise SystemExit(last == ["wrong"])


def check_refused():
    """Check that a call with bad input raises one of the errors in `raises`."""
    names = " or ".join(error.__name__ for error in raises)
    try:
        loss = subject(logits, target, **options)
        if logits.is_cuda:
            torch.cuda.synchronize()  # a failed device-side assert raises an error here
    except raises as error:
        verdict(False, f"the call raised {error!r}, which is right")
    except (Exception, SystemExit) as error:
        verdict(True, f"the call raised {error!r}; expected {names}")
    verdict(True, f"the call returned {loss}; expected {names}")


def try_bad_call():
    """Call the subject with bad input, and print the error, if the call raises one."""
    try:
        subject(logits, target, **options)
    except (Exception, SystemExit) as error:
        print(f"the call raised {error!r}")


def check_arguments_of_bad_call():
    """Check that a call with bad input leaves its arguments unchanged."""
    before = arguments()
    try_bad_call()
    require_unchanged(before, arguments())


def check_state_after_bad_call():
    """Check that a call with bad input leaves the global state unchanged."""
    import sys

    before, modules = state(), len(sys.modules)
    try_bad_call()
    require_state(before, modules)
