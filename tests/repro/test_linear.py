"""The scripts of findings about a linear cross-entropy."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.storages import in_one_storage

from crossent.cases.inputs import Inputs
from crossent.cases.linear.case import LinearCase
from crossent.checks.relations.chunks import REFUSALS_OF_SIZES
from crossent.machine import memory_growth
from crossent.repro.literals import assignments
from crossent.repro.rerun import script_of
from crossent.repro.scripts import functions
from crossent.repro.subject_code import DEFINED
from crossent.subjects.builtin import LINEAR_ALIAS, LINEAR_NAMED
from crossent.trials.call import evaluate

NEEDS_213 = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")
# A program that runs each script of a list, as `python SCRIPT` would, and prints the list of exit statuses.
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

def stores(hidden, weight, target):
    return F.cross_entropy(hidden @ weight.T, target)

stores.chunks = ()
"""


def statuses(scripts):
    """Run scripts one after another in a new process, and return their exit statuses."""
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


def test_a_script_keeps_the_weight_and_the_hidden_states_in_one_storage():
    inputs = LinearCase("float32", linear_layout="linear_tied").build()
    names = {"tensor": functions.tensor, "torch": torch}
    exec("\n".join(assignments(inputs, {})), names)
    given = names["given"]
    assert Inputs(*given).digest == inputs.digest
    assert in_one_storage(Inputs(*given)), "the script has two storages"
    assert in_one_storage(Inputs(*functions.fresh(*given))), "the copy in a script has two storages"


@NEEDS_213
def test_the_scripts_of_checks_that_pass_say_so():
    """The scripts call each function that they may define, and each script function that judges a number."""
    cases = {
        HALF: (
            *("loss", "gradient", "weight_gradient", "bias_gradient", "widened", "no_grad", "threads"),
            *("alone", "non_leaf", "circumstances", "func_grad", "shift", "rows_permuted", "classes_permuted", "split"),
            "options",
        ),
        STRIDED: ("loss", "weight_gradient", "layout"),
    }
    ids = [f"torch_linear:{check}:{case.id}" for case, checks in cases.items() for check in checks]
    ids += [f"{subject.name}:bias_gradient:{STRIDED.id}" for group in LINEAR_NAMED.values() for subject in group]
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


FROZEN = """
import torch
import torch.nn.functional as F

class Probe(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.T

    @staticmethod
    def backward(ctx, slope):
        hidden, weight = ctx.saved_tensors
        return (slope @ weight, slope.T @ hidden) if ctx.needs_input_grad[0] else (None, None)

def frozen(hidden, weight, target):
    return F.cross_entropy(Probe.apply(hidden, weight), target)

def hooked(hidden, weight, target):
    loss = F.cross_entropy(hidden @ weight.T, target)
    return 1.01 * loss if hidden._backward_hooks else loss

def writes(hidden, weight, target):
    loss = F.cross_entropy(hidden @ weight.T, target)
    if not weight.is_leaf:
        weight.data.zero_()
    return loss

def stale(hidden, weight, target):
    if not hasattr(weight, "kept"):
        weight.kept = weight.detach().clone()
    return F.cross_entropy(hidden @ (weight.kept + (weight - weight.detach())).T, target)

buffer = torch.empty(())

def overwrites(hidden, weight, target):
    loss = F.cross_entropy(hidden @ weight.T, target)
    return loss if loss.requires_grad else buffer.copy_(loss)
"""


def test_the_scripts_of_unusual_calls_show_the_finding(tmp_path, monkeypatch):
    (tmp_path / "frozen.py").write_text(FROZEN)
    monkeypatch.chdir(tmp_path)
    ids = {
        f"{name}:{check}:{LinearCase('float32').id}": name
        for name, check in (
            *(("frozen", "alone"), ("hooked", "circumstances"), ("writes", "non_leaf")),
            *(("stale", "repeat"), ("overwrites", "no_grad")),
        )
    }
    assert statuses([script_of(one, source=f"frozen.py:{name}") for one, name in ids.items()]) == [1] * len(ids)


def test_a_script_of_a_function_declared_not_repeatable_allows_an_overwritten_loss(tmp_path, monkeypatch):
    (tmp_path / "frozen.py").write_text(FROZEN.replace("buffer.copy_(loss)", "buffer.copy_(1.01 * loss)"))
    monkeypatch.chdir(tmp_path)
    finding = f"overwrites:no_grad:{LinearCase('float32').id}"
    script = script_of(finding, source="frozen.py:overwrites", without=["repeatable"])
    assert "a later call writes" not in script
    assert statuses([script]) == [1]  # since the loss is wrong


CHUNKED = """
import torch.nn.functional as F

def chunked(hidden, weight, target, chunk_size=7):
    if chunk_size > len(hidden):
        raise IndexError
    rows = range(0, len(hidden) - len(hidden) % chunk_size, chunk_size)
    chunks = [slice(start, start + chunk_size) for start in rows]
    return sum(F.cross_entropy(hidden[s] @ weight.T, target[s], reduction="sum") for s in chunks) / len(hidden)
"""


def test_the_script_of_a_size_of_chunks_passes_this_size(tmp_path, monkeypatch):
    (tmp_path / "chunked.py").write_text(CHUNKED)
    monkeypatch.chdir(tmp_path)
    finding = f"chunked:chunks:{LinearCase('float32').id}"
    of_file = script_of(finding, source="chunked.py:chunked")
    assert "chunk_sizes = (('with chunk_size=2', 'chunk_size', 2),)" in of_file
    assert statuses([of_file]) == [1]


@pytest.mark.parametrize("error", [error.__name__ for error in REFUSALS_OF_SIZES])
def test_a_script_leaves_out_the_sizes_of_chunks_that_the_check_lets_a_function_refuse(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    file, refuses = tmp_path / "chunked.py", f"    if chunk_size == 1:\n        raise {error}\n    if"
    file.write_text(CHUNKED.replace("    if", refuses, 1))
    script = script_of(f"chunked:chunks:{LinearCase('float32', (8, 5)).id}", source="chunked.py:chunked")
    file.write_text(CHUNKED.replace("    if", refuses, 1).replace("raise IndexError", "chunk_size = len(hidden)"))
    assert "with chunk_size=1" in script
    assert statuses([script]) == [0]


def test_a_script_says_right_of_a_function_that_refuses_the_size_of_the_finding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, refuses = tmp_path / "chunked.py", "    if chunk_size == 2:\n        raise ValueError\n    if"
    file.write_text(CHUNKED)
    script = script_of(f"chunked:chunks:{LinearCase('float32').id}", source="chunked.py:chunked")
    assert "chunk_sizes = (('with chunk_size=2', 'chunk_size', 2),)" in script
    file.write_text(CHUNKED.replace("    if", refuses, 1))
    assert statuses([script]) == [0]


@NEEDS_213
def test_the_script_of_torchs_size_of_chunks_needs_torch_alone():
    case = LinearCase("bfloat16", (1024, 64), reduction="sum", bias="bias")
    script = script_of(f"torch_linear_chunked:chunks:{case.id}")
    assert "crossent" not in script.replace("crossent repro", "")
    assert statuses([script]) == [1]


def test_the_script_of_the_memory_measures_it(tmp_path, monkeypatch):
    if memory_growth(lambda: None, "cpu") is None:
        pytest.skip("needs Linux, which resets and measures the peak of resident memory")
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    script = script_of(f"stores:memory:{LinearCase('float32').id}", source="mine.py:stores")
    assert statuses([script]) == [1]


def test_a_case_of_another_operation_is_refused():
    for finding, computed in (
        (f"torch:loss:{LinearCase('float32').id}", "torch computes cross_entropy"),
        ("torch_linear:loss:float32-7x5-normal-int64-mean", "torch_linear computes linear_cross_entropy"),
    ):
        for passed in (False, True):
            with pytest.raises(ValueError, match=computed):
                script_of(finding, passed=passed)
