"""The scripts of findings about a linear cross-entropy."""

import json
import subprocess
import sys

import pytest
import torch.nn.functional as F

from crossent.cases.linear.case import LinearCase
from crossent.repro.rerun import script_of
from crossent.repro.script import DEFINED
from crossent.subjects.builtin import LINEAR_ALIAS, LINEAR_NAMED
from crossent.trials.call import evaluate

NEEDS_213 = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
# Runs each script of a list, as `python SCRIPT` would, and prints the exit statuses.
DRIVER = """
import json, sys
statuses = []
for text in json.load(sys.stdin):
    try:
        exec(compile(text, "script", "exec"), {"__name__": "__main__"})
        statuses.append(None)
    except SystemExit as end:
        statuses.append(int(end.code))
    except BaseException as error:
        statuses.append(repr(error))
print("\\n" + json.dumps(statuses))
"""
HALF = LinearCase("bfloat16", (17, 5), reduction="none", ignored="ignored", upstream="rows", bias="bias")
STRIDED = LinearCase("float32", layout="strided", linear_layout="linear_strided", bias="bias")
MINE = """
import torch
import torch.nn.functional as F

def mean_of_means(hidden, weight, target):
    chunks = zip(hidden.split(3), target.split(3))
    return torch.stack([F.cross_entropy(h @ weight.T, t) for h, t in chunks]).mean()
"""


def statuses(scripts):
    """Run scripts in a new process, and return their exit statuses."""
    done = subprocess.run([sys.executable, "-c", DRIVER], input=json.dumps(scripts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@NEEDS_213
def test_the_script_of_torchs_lost_loss_needs_torch_alone_and_shows_it():
    finding = "torch_linear_chunk1:loss:linear-bfloat16-4096x16-normal-int64-mean-hidden16"
    script = script_of(finding)
    imports = {line.split()[1] for line in script.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"base64", "zlib", "torch"}
    assert "logits" not in script
    assert statuses([script]) == [1]


@NEEDS_213
def test_the_scripts_of_findings_about_torch_show_them():
    ignored = "linear-float32-7x5-normal-int64-mean-ignored_all-bias-hidden16"
    ids = [f"torch_linear_chunk1:{check}:{ignored}" for check in ("gradient", "weight_gradient", "bias_gradient")]
    ids += [f"torch_linear_chunk1:ignored_rows:{ignored}"]
    ids += [f"torch_linear_chunked:errors:linear_{bad}" for bad in ("weight_too_short", "class_huge")]
    assert statuses([script_of(one) for one in ids]) == [1] * len(ids)


@NEEDS_213
def test_the_scripts_of_checks_that_pass_say_so():
    """Each of the three functions that a script may define is called, in each check that measures numbers."""
    cases = {
        HALF: ("loss", "gradient", "weight_gradient", "bias_gradient", "widened", "no_grad", "threads"),
        STRIDED: ("loss", "weight_gradient", "layout"),
    }
    ids = [f"torch_linear:{check}:{case.id}" for case, checks in cases.items() for check in checks]
    ids += [f"{subject.name}:bias_gradient:{STRIDED.id}" for subject in LINEAR_NAMED[LINEAR_ALIAS]]
    found = dict(zip(ids, statuses([script_of(one, passed=True) for one in ids]), strict=True))
    assert set(found.values()) == {0}, found


@NEEDS_213
@pytest.mark.parametrize("subject", LINEAR_NAMED[LINEAR_ALIAS], ids=lambda subject: subject.name)
def test_the_function_in_a_script_has_the_bits_of_the_subject(subject):
    for inputs in (LinearCase(dtype, (64, 257), "confident").build() for dtype in ("float16", "bfloat16", "float32")):
        if subject.not_applicable(inputs) is None:
            in_script = evaluate(DEFINED[subject.name], inputs)
            assert in_script.digest == evaluate(subject.loss, inputs).digest


def test_the_script_of_ones_own_function_loads_it_as_a_linear_cross_entropy(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    finding = f"mean_of_means:loss:{LinearCase('float32').id}"
    script = script_of(finding, source="mine.py:mean_of_means")
    assert "operation=LINEAR_CROSS_ENTROPY" in script
    assert statuses([script]) == [1]


def test_a_case_of_another_operation_is_refused():
    for finding, computed in (
        (f"torch:loss:{LinearCase('float32').id}", "torch computes cross_entropy"),
        ("torch_linear:loss:float32-7x5-normal-int64-mean", "torch_linear computes linear_cross_entropy"),
    ):
        for passed in (False, True):
            with pytest.raises(ValueError, match=computed):
                script_of(finding, passed=passed)
