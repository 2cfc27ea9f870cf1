"""Edges: the widths and numbers of rows where something ends, each with values that show it."""

import pytest
import torch
from defects import DEFECTS
from tiles import padded_with_zeros, padding_counts_as_one_each

from crossent.axes import DTYPES
from crossent.cases import Case
from crossent.edges import EDGES, NORMAL, QUICK, THOROUGH, edges
from crossent.findings import SubjectReport
from crossent.judge import run_case
from crossent.report import Report
from crossent.subjects import Subject

DEFECT = {defect.name: defect for defect in DEFECTS}
WIDTHS = {2**k + by for k in range(17) for by in (-1, 0, 1)} - {0}
WIDTHS |= {513, 781, 1025, 32000, 50257, 65519, 65520, 65537, 128256, 129920, 151936}


def of(name, cases, dtype=None):
    return [case for case in cases if case.name == name and dtype in (None, case.dtype)]


def caught(loss, cases):
    subject = Subject("wrong", loss)
    report = Report({}, [SubjectReport(subject.name)])
    for case in cases:
        run_case(case, [subject], report)
    return {finding.check for finding in report.findings}


def test_a_level_has_what_the_one_below_it_has_and_nothing_twice():
    quick, normal, thorough = (list(edges(level=level)) for level in ("quick", "normal", "thorough"))
    assert set(quick) < set(normal) < set(thorough)
    assert normal == list(edges())
    for chosen in (quick, normal, thorough):
        assert len({case.id for case in chosen}) == len(chosen)
    assert {case.id for case in EDGES} == {case.id for case in normal}


def test_an_edge_is_valid_has_a_name_and_is_read_back_from_its_id():
    for case in edges(seed=3, level="thorough"):
        assert case.invalid is None
        assert case.name
        assert case.seed == 3
        assert Case.of(case.id) == case


@pytest.mark.parametrize(("level", "cases"), [("normal", (*QUICK, *NORMAL)), ("thorough", THOROUGH)])
def test_every_width_is_there(level, cases):
    widths = {dtype: {case.classes for case in of("width", edges([dtype], level=level))} for dtype in DTYPES}
    everywhere = set.intersection(*widths.values())
    small = {width for width in WIDTHS if width < 2**13 - 1}
    assert everywhere >= small
    assert set().union(*widths.values()) >= WIDTHS - ({32000, 128256} if level == "normal" else set())
    if level == "thorough":
        assert everywhere >= {32000, 50257, 65519, 65520, 65537, 128256, 129920, 151936}


def test_every_number_of_rows_is_there():
    rows = {(case.rows, case.dtype) for case in EDGES}
    assert {rows for rows, _ in rows} >= {0, 1, 65504, 65520, 70000}
    assert {(65504, "float16"), (65520, "float16"), (70000, "float16")} <= rows
    assert any(case.rows == case.classes > 1 for case in EDGES)
    assert any(case.rows > case.classes == 1 for case in EDGES)
    assert max(case.rows for case in THOROUGH) == 10_000_000


def test_the_cost_of_a_level_in_logits():
    """What a case costs goes with its logits: about a microsecond each, and 5 milliseconds for a case."""
    logits = {name: sum(c.rows * c.classes for c in cases) for name, cases in (("quick", QUICK), ("normal", EDGES))}
    assert len(QUICK) < 100
    assert logits["quick"] < 300_000
    assert len(EDGES) < 250
    assert logits["normal"] < 7_000_000


def test_four_assorted_rows_are_normal_peaked_flat_and_far_below_zero():
    normal, peaked, flat, below = Case("float32", (4, 300), "assorted").build().logits
    assert 2 < normal.std() < 4
    assert peaked.max() - peaked.sort().values[-2] > 10
    assert (flat == 0).all()
    assert (below < -9e3).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("wrong", [padded_with_zeros, padding_counts_as_one_each], ids=lambda f: f.__name__)
def test_columns_beyond_the_last_class_are_found(wrong, dtype):
    assert caught(wrong, of("width", QUICK, dtype)[-3:-1]) == {"loss", "gradient"}  # of 1024 and 1025 classes


@pytest.mark.parametrize(
    ("defect", "dtype", "width"),
    [
        ("bfloat16_accumulator", "bfloat16", 513),
        ("sum_stored", "bfloat16", 257),
        ("sum_stored", "float16", 4097),
        ("remainder_of_tiles_dropped", "float32", 129),
    ],
)
def test_a_defect_of_wide_rows_is_found(defect, dtype, width):
    (case,) = (case for case in of("width", EDGES, dtype) if case.classes == width)
    assert caught(DEFECT[defect], [case])


def test_a_float16_count_is_found_from_65520_rows_on_and_not_below():
    flat = {case.rows: case for case in EDGES if case.dtype == "float16" and case.values == "flat"}

    def count_of_float16(input, target, **options):
        losses = torch.nn.functional.cross_entropy(input.float(), target, reduction="none")
        return (losses.sum() / torch.tensor(float(target.numel())).half()).half()

    assert caught(count_of_float16, [flat[65504]]) == set()
    assert caught(count_of_float16, [flat[65520]]) == {"loss", "gradient"}
