"""The check `chunks`: a function must give the exact result for each chunk size that the function takes."""

import pytest
import torch
import torch.nn.functional as F
from support.linear_subjects import RIGHT, blocked, subject_of
from support.running import run, run_isolated

from crossent.cases.axes import DTYPES
from crossent.cases.linear.case import LinearCase
from crossent.cases.linear.edges import linear_edges
from crossent.cases.operation import CROSS_ENTROPY, LINEAR_CROSS_ENTROPY
from crossent.checks import single
from crossent.checks.relations.chunks import chunk_sizes_by_call, chunks
from crossent.subjects.builtin import BY_NAME
from crossent.subjects.callables import as_subject
from crossent.subjects.loader import load
from crossent.subjects.remote import load_remote

FIRST = (single.call, single.result)
CASE = LinearCase("float32", (7, 5))
NEEDS_213 = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="needs torch 2.13")


def chunked(input, target, *, linear_weight, chunk_size=7, rows=lambda size, n: range(0, n, size), **options):
    """Return the mean loss, computed on chunks of rows. `rows(chunk_size, N)` returns the starts of the chunks."""
    total = input.new_zeros(())
    for start in rows(chunk_size, len(input)):
        some = slice(start, start + chunk_size)
        total = total + F.cross_entropy(input[some] @ linear_weight.T, target[some], reduction="sum")
    return total / len(input)


def drops_the_last_chunk(*arguments, **options):
    return chunked(*arguments, rows=lambda size, n: range(0, n - n % size, size), **options)


def needs_two_chunks(input, target, *, chunk_size=2, **options):
    return chunked(input, target, chunk_size=chunk_size, **options) * (1.1 if chunk_size >= len(input) else 1)


def fails_with_a_larger_chunk(input, target, *, chunk_size=2, **options):
    if chunk_size > len(input):
        raise IndexError("index out of range")
    return chunked(input, target, chunk_size=chunk_size, **options)


def takes_powers_of_two(input, target, *, chunk_size=4, **options):
    if chunk_size & (chunk_size - 1):
        raise ValueError("chunk_size must be a power of two")
    return chunked(input, target, chunk_size=chunk_size, **options)


def takes_nothing(input, target, *, chunk_size=None, **options):
    if chunk_size:
        raise ValueError("no")
    return chunked(input, target, **options)


def judged(loss):
    return run(subject_of(loss, chunks=("chunk_size",)), CASE, (*FIRST, chunks)).subjects[0]


@pytest.mark.parametrize(
    ("loss", "kind", "message"),
    [
        (drops_the_last_chunk, "wrong", "loss, with chunk_size=2:\nMismatched"),
        (needs_two_chunks, "wrong", "loss, with chunk_size=7:\nMismatched"),
        (fails_with_a_larger_chunk, "refused", "with chunk_size=8: IndexError: index out of range"),
    ],
)
def test_a_function_that_is_right_for_some_sizes_is_found(loss, kind, message):
    right = subject_of(loss)
    assert run(right, CASE, (*FIRST, single.loss, single.gradient)).findings == [] or loss is drops_the_last_chunk
    (finding,) = judged(loss).findings
    assert (finding.check, finding.kind) == ("chunks", kind)
    assert finding.message.startswith(message)


def test_a_function_may_refuse_sizes():
    for loss, reason in ((takes_powers_of_two, None), (takes_nothing, "refuses every chunk size that the check tries")):
        part = judged(loss)
        assert part.findings == []
        assert part.outcomes[CASE.id].not_run.get("chunks") == reason


def test_a_function_without_such_an_argument_is_not_run():
    part = run(RIGHT[0], CASE, (*FIRST, chunks)).subjects[0]
    reason = "has no known argument for the chunk size; the attribute `chunks` can name such an argument"
    assert part.outcomes[CASE.id].not_run == {"chunks": reason}


def test_the_sizes_are_one_two_all_rows_and_one_more():
    assert [size for _, size in chunk_sizes_by_call(CASE.build(), ("chunk_size",)).values()] == [1, 2, 7, 8, 10]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_form_is_right_for_each_size(dtype):
    cases = [case for case in linear_edges([dtype]) if 0 < case.rows * case.classes <= 2**12]
    report = run(subject_of(blocked, chunks=("block_size",)), cases, (*FIRST, chunks))
    assert [str(finding) for finding in report.findings] == []
    assert all("chunks" in outcome.checks for outcome in report.subjects[0].outcomes.values())


@NEEDS_213
def test_torch_adds_up_the_loss_in_the_dtype_in_small_chunks():
    case = LinearCase("bfloat16", (1024, 64), reduction="sum", bias="bias")
    (finding,) = run(BY_NAME["torch_linear_chunked"], case, (*FIRST, chunks)).findings
    assert finding.message.startswith("loss, with batch_chunk_size=1:")


def test_an_isolated_process_gets_the_size():
    for loss, failed in ((chunked, []), (drops_the_last_chunk, ["chunks"])):
        part = run_isolated(subject_of(loss, chunks=("chunk_size",)), cases=[CASE], checks=(*FIRST, chunks)).subjects[0]
        assert [finding.check for finding in part.findings] == failed


def with_keywords(hidden, weight, target, *, block_size: int = 4, n_chunks=None, chunked=True, blocks="auto", eps=1):
    return torch.zeros(())


def test_the_keywords_are_found_by_name_and_default():
    assert as_subject(with_keywords, operation=LINEAR_CROSS_ENTROPY).chunks == ("block_size", "n_chunks")
    assert as_subject(lambda logits, target, chunk_size=1: logits.sum(), operation=CROSS_ENTROPY).chunks == ()


def test_an_attribute_names_other_keywords(tmp_path, monkeypatch):
    text = "def loss(h, w, target, tile=8, block=3):\n    return (h @ w.T).sum()\n\nloss.chunks = {}\n"
    monkeypatch.chdir(tmp_path)
    for name, (says, expected) in {
        "one": ("'tile'", ("tile",)),
        "both": ("('tile', 'block')", ("tile", "block")),
        "none": ("()", ()),
    }.items():
        (tmp_path / f"{name}.py").write_text(text.format(says))
        (subject,) = load(f"{name}.py:loss", operation=LINEAR_CROSS_ENTROPY)
        (remote,) = load_remote(f"{name}.py:loss", 60, operation=LINEAR_CROSS_ENTROPY)
        assert (subject.chunks, remote.chunks) == (expected, expected)
    (tmp_path / "wrong.py").write_text(text.format("['tiles']"))
    (tmp_path / "option.py").write_text(text.format("'ignore_index'").replace("tile=8", "ignore_index=-100"))
    for name, wrong in {"wrong": "tiles", "option": "ignore_index"}.items():
        message = f"`chunks` names '{wrong}'; choose keywords of your function, such as 'chunk_size', but no option of"
        with pytest.raises(ValueError, match=message):
            load(f"{name}.py:loss", operation=LINEAR_CROSS_ENTROPY)
