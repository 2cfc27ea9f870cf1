"""Losses of packages from PyPI as subjects: each finding must stand in findings.toml, with its reason.

`nox -s world` installs the packages and runs this file. pytest does not collect the folder by default: conftest.py.
"""

from pathlib import Path

import pytest

import crossent
from crossent.checks import CHECKS
from crossent.report.expected_findings import mark, read_list, require_about
from crossent.run.plan import plan

HERE = Path(__file__).parent
FINDINGS = read_list(HERE / "findings.toml")
KINDS = ("bug: ", "documented difference: ")
DTYPES = ("float32", "bfloat16")
# The contract of each loss. "torch": it is made of torch's operations in the dtype of the logits. "kernel": it computes
# in float32 or wider.
CONTRACTS = {
    "deepspeed_vocab_parallel": "kernel",
    "keras_categorical": "torch",
    "keras_sparse": "torch",
    "kornia_focal": "torch",
    "megatron_vocab_parallel": "kernel",
    "monai_dice_ce": "torch",
    "monai_focal": "kernel",
    "optax_dense": "kernel",
    "optax_integer": "kernel",
    "smp_focal": "torch",
    "smp_soft": "torch",
    "timm_label_smoothing": "torch",
    "timm_soft_target": "torch",
    "torchtune_chunked": "kernel",
    "transformers_causal": "kernel",
    "transformers_fixed": "torch",
    "trl_selective": "torch",
    "unsloth_rows": "kernel",
    "unsloth_smoothed": "kernel",
}


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_finding_of_a_package_is_explained(name):
    glue = HERE / f"{name.partition('_')[0]}_losses.py"
    report = crossent.check(f"{glue}:{name}", contract=CONTRACTS[name], dtypes=DTYPES, level="quick", seed=0, jobs=2)
    mark(report, FINDINGS)
    (subject,) = report.subjects
    assert not report.findings, str(report)
    assert report.mended == []  # remove an entry of findings.toml that no longer happens
    assert subject.without_evidence == []


def test_every_entry_has_a_kind_of_reason_and_can_match():
    cases = [case.id for case in plan("quick", DTYPES, 0)]
    require_about(FINDINGS, CONTRACTS, (*CHECKS, "errors"), lambda: cases)
    assert [entry.reason for entry in FINDINGS if not entry.reason.startswith(KINDS)] == []
