"""Run a check on a wrong subject, put the subject into a repro script, and run the script."""

import ast
import contextlib
import io
import re

import pytest
from support.checks import CALL, RESULT
from support.error_lines import error_line
from support.repro.wrong_subjects import function_of
from support.running import run_case

from crossent.cases.bad_inputs import BAD_INPUTS
from crossent.cases.case import Case
from crossent.checks import CHECKS
from crossent.checks.transforms import _why_no_export
from crossent.cli import WRONG_USE
from crossent.machine import ambient
from crossent.report.findings import SubjectReport
from crossent.report.report import Report
from crossent.state import restore, snapshot
from crossent.subjects.compiler import TRACER, why_cannot_compile
from crossent.subjects.subject import Subject

RIGHT = "from crossent import formula as subject"
# What a script prints if it does not have the code of its subject, `mine`.
LACKS_MINE = (
    "this script lacks the code of mine; replace this print and the next line with an import of mine as subject"
)
TORCH_HALF = "torch:loss:half_sure/bfloat16-4x2-sure-int64-mean-gradeA"


def found(text, case, check):
    """Return the finding of a check on a case. `text` is Python code that defines the function `subject`."""
    subject = Subject("mine", function_of(text))
    made = Report({}, [SubjectReport("mine")])
    case = next((bad for bad in BAD_INPUTS if bad.id == case), None) or Case.of(case)
    before = () if getattr(case, "tiled", 1) > 1 else (CALL, RESULT)
    with ambient():
        run_case(case, [subject], made, "cpu", (*before, *([CHECKS[check]] if check in CHECKS else ())))
    (finding,) = made.findings
    assert finding.check == check
    return finding


def with_subject(text, subject):
    """Return a script in which the code of a subject replaces the lines that ask for the subject."""
    request = re.compile(rf"^print\('{LACKS_MINE}.*\nraise SystemExit\(2\)$", re.M)
    assert len(request.findall(text)) == 1
    return request.sub(lambda match: subject, text)


def skip_unless_graphs_work(check):
    """Skip a test if torch cannot trace or export graphs for a check on this machine."""
    reason = why_cannot_compile(TRACER, "cpu") if check.startswith("trace") else ""
    if reason or (check == "export" and (reason := _why_no_export())):
        pytest.skip(reason)


def play(text, path=None):
    """Run a script in this process, and return its names, its exit status and its output.

    A new process for each script would take longer.
    """
    names = {"__name__": "__main__"} | ({"__file__": path} if path else {})
    out, before = io.StringIO(), snapshot()
    with contextlib.redirect_stdout(out), contextlib.ExitStack() as stack:
        stack.callback(restore, before)
        try:
            exec(compile(text, "repro.py", "exec"), names)
        except SystemExit as end:
            status = int(end.code)
        except Exception as error:
            status = 1  # Python's exit status for an uncaught exception
            print(f"{type(error).__name__}: {error}")
        else:
            status = 0
    return names, status, out.getvalue()


def assert_refused(status, out, err):
    """Assert that the command printed only an error line of less than 2,000 characters, and had status 2."""
    assert (status, out) == (WRONG_USE, "")
    assert len(error_line(err)) < 2000


class _Skeleton(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant(None)

    def visit_UnaryOp(self, node):
        return ast.Constant(None)  # -0.5

    def visit_Call(self, node):
        if isinstance(node.func, ast.Name) and node.func.id == "float":
            return ast.Constant(None)  # float('nan')
        return self.generic_visit(node)


def skeleton(text):
    """Return the syntax tree of a script as text, without its docstring and its constants."""
    tree = ast.parse(text)
    assert isinstance(tree.body[0].value.value, str)
    return ast.dump(_Skeleton().visit(ast.Module(tree.body[1:], [])))
