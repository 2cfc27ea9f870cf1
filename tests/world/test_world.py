"""Losses of packages from PyPI as subjects: each finding must be in findings.toml, with its reason.

`nox -s world` installs the packages and runs this file. By default, pytest does not collect it (conftest.py).
"""

from pathlib import Path

import pytest

import crossent
from crossent.checks import CHECKS
from crossent.report.expected_findings import mark, read_list, require_about
from crossent.run.plan import plan

pytestmark = pytest.mark.filterwarnings("default")  # warnings of these packages are no errors
HERE = Path(__file__).parent
FINDINGS = read_list(HERE / "findings.toml")
KINDS = ("bug: ", "documented difference: ")
DTYPES = ("float32", "bfloat16")
TORCH = {"contract": "torch"}  # calls log_softmax, nll_loss or cross_entropy in the dtype of the logits
KERNEL = {"contract": "kernel"}  # computes in float32 or wider, and rounds once
# Computes in the dtype of the logits, but not with torch's log_softmax alone.
KERNEL_IN_HALVES = {"contract": "kernel", "grade": "B"}
SETTINGS = {
    "deepspeed_vocab_parallel": KERNEL,
    "keras_categorical": TORCH,
    "keras_sparse": TORCH,
    "kornia_focal": TORCH,
    "megatron_vocab_parallel": KERNEL,
    "monai_dice_ce": TORCH,
    "monai_focal": KERNEL,
    "optax_dense": KERNEL_IN_HALVES,
    "smp_focal": TORCH,
    "smp_soft": TORCH,
    "timm_label_smoothing": TORCH,
    "timm_soft_target": TORCH,
    "torchtune_chunked": KERNEL,
    "transformers_causal": KERNEL,
    "transformers_fixed": TORCH,
    "trl_selective": KERNEL_IN_HALVES,
    "unsloth_rows": KERNEL,
    "unsloth_smoothed": KERNEL,
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_finding_of_a_package_is_explained(name):
    glue = HERE / f"{name.partition('_')[0]}_losses.py"
    report = crossent.check(f"{glue}:{name}", **SETTINGS[name], dtypes=DTYPES, level="quick", seed=0, jobs=2)
    mark(report, FINDINGS)
    (subject,) = report.subjects
    assert not report.findings, str(report)
    assert report.fixed == []  # remove an entry of findings.toml that no longer happens
    assert subject.without_evidence == []


def test_every_entry_has_a_kind_of_reason_and_can_match():
    cases = [case.id for case in plan("quick", DTYPES, 0)]
    require_about(FINDINGS, SETTINGS, (*CHECKS, "errors"), lambda: cases)
    assert [entry.reason for entry in FINDINGS if not entry.reason.startswith(KINDS)] == []
