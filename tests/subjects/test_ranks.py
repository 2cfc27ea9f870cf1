"""Losses on several ranks: a fault of a rank is a finding, the next call has new ranks, and no process stays behind."""

import os
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from support import faulty_ranks
from support.checks import SINGLE
from support.running import check_on, run_isolated

import crossent
from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.subjects.loader import load
from crossent.subjects.ranks import group, loss_parallel, protocol
from crossent.subjects.ranks import rank as rank_process
from crossent.subjects.ranks.group import Ranks, _ending, _Rank, _Watch
from crossent.subjects.ranks.loss import RankLoss, _difference
from crossent.subjects.ranks.messages import DamagedMessageError, pack, unpack
from crossent.subjects.ranks.protocol import (
    SPLITS,
    OnRank,
    RankEndedError,
    RanksDifferError,
    can_start_ranks,
    join,
    require_protocol,
    require_ranks,
    shard,
    why_no_classes,
    write_shard,
)
from crossent.subjects.ranks.rank import Place

pytestmark = pytest.mark.skipif(not can_start_ranks(), reason="needs a system that forks, and torch 2.3 or newer")
CASES = [Case.of(f"float32-7x5-normal-int64-{reduction}") for reduction in ("mean", "sum")]
SUPPORT = Path(faulty_ranks.__file__)


def running(mark):
    """Return the processes that have the bytes `mark` in their environment variables."""
    return [process for process in Path("/proc").glob("[0-9]*") if _has(process, mark)]


def left_behind(mark):
    """Wait until the processes with the bytes `mark` have ended. After 10 seconds, return those that still run."""
    until = time.monotonic() + 10
    while (found := running(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _has(process, mark):
    try:
        return mark in (process / "environ").read_bytes() and "Z" not in (process / "stat").read_text().split()[2]
    except OSError:
        return False


@pytest.mark.parametrize(
    ("loss", "expected"), faulty_ranks.FAULTS.items(), ids=lambda one: getattr(one, "__name__", None) or ""
)
def test_a_fault_of_a_rank_is_a_finding_and_the_next_case_has_new_ranks(loss, expected, monkeypatch):
    monkeypatch.setenv("CROSSENT_TEST", mark := f"{loss.__name__}{os.getpid()}")
    check, kind, message = expected
    (subject,) = load(loss, ranks=2, timeout=30 if "hung" in kind else 300)
    report = run_isolated(subject, seconds=120, cases=CASES, checks=SINGLE)
    assert {one.case for one in report.findings} == {case.id for case in CASES}  # the second case too
    for finding in report.findings:
        assert finding.check == check
        assert finding.kind in kind.split("|")
        assert message in finding.message
    assert left_behind(mark.encode()) == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_a_right_loss_passes_on_any_number_of_ranks(ranks):
    (subject,) = load(faulty_ranks.right, ranks=ranks)
    names = ["float32-7x5-normal-int64-none-rows", "float64-7x5-normal-probabilities-sum-smooth0.1"]
    names += ["float32-1x1-normal-int64-mean", "float32-4x3x2-normal-int64-none-rows-transposed"]
    report = run_isolated(subject, cases=[Case.of(name) for name in names])
    assert report.findings == []
    assert len(report.subjects[0].outcomes) == len(names)


def test_a_file_is_loaded_by_the_ranks_and_never_by_the_judge(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SUPPORT.read_text(encoding="utf-8") + "\nimport builtins\nbuiltins.crossent_was_here = True\n")
    check = check_on(CASES, bad_inputs=False)
    report = check(f"{file}:right", level="quick", dtypes=["float32"], ranks=2)
    assert report.findings == []
    assert set(report.subjects[0].outcomes) == {case.id for case in CASES}
    assert report.environment["ranks"] == "2"
    import builtins

    assert not hasattr(builtins, "crossent_was_here")


def test_a_finding_names_the_command_that_repeats_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SUPPORT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    report = check_on(CASES[:1], bad_inputs=False)("mine.py:refuses", level="quick", dtypes=["float32"], ranks=2)
    assert report.findings[0].repeat == f"crossent check mine.py:refuses --ranks 2 --check call --case {CASES[0].id}"


def test_the_ranks_of_an_adapter_run_in_new_pythons_and_end_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CROSSENT_TEST", mark := f"adapter{os.getpid()}")
    loss = crossent.adapters.from_ranks(f"{SUPPORT}:right", ranks=2)
    logits = torch.tensor([[3.0, 1.0, -3.0], [0.0, 2.0, 1.0]], requires_grad=True)
    got = loss(logits, torch.tensor([0, 1]), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(got, logits)
    reference = crossent.formula(logits, torch.tensor([0, 1]), label_smoothing=0.1)
    (expected,) = torch.autograd.grad(reference, logits)
    torch.testing.assert_close((got, gradient), (reference, expected))
    assert len(running(mark.encode())) == 3  # the launcher and two ranks
    assert len(list(tmp_path.glob("crossent-ranks-*"))) == 1
    loss.close()
    assert left_behind(mark.encode()) == []
    assert list(tmp_path.glob("crossent-ranks-*")) == []


def test_a_backward_pass_after_a_fault_says_that_the_ranks_are_new():
    loss = RankLoss(faulty_ranks.right, 2)
    logits = torch.randn(3, 4, requires_grad=True)
    got = loss(logits, torch.tensor([0, 1, 2]))
    loss.close()
    with pytest.raises(RuntimeError, match="the ranks were started again after the forward pass"):
        got.backward()
    loss.close()


@pytest.mark.parametrize("rule", SPLITS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (4, 3, 2), (5,)])
def test_shards_join_to_the_logits(rule, ranks, shape):
    logits = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    shards = [shard(logits, rule, rank, ranks) for rank in range(ranks)]
    if rule == "padded":
        assert len({tuple(one.shape) for one in shards}) == 1
        shards = [torch.where(one == 10_000, 0, one) for one in shards]
    assert torch.equal(join(shards, rule, shape), logits)
    for rank in range(ranks):
        copy = logits.clone()
        write_shard(copy, -shard(logits, rule, rank, ranks), rule, rank, ranks)
        assert torch.equal(copy.abs(), logits)
        padding = (shard(logits, rule, rank, ranks) == 10_000).sum() if rule == "padded" else 0
        assert (copy < 0).sum() == shards[rank].numel() - padding


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 9, 10])
def test_a_loss_without_one_class_needs_classes_on_every_rank(classes, ranks):
    inputs = Inputs(torch.zeros(2, classes), torch.zeros(2).long(), {}, torch.tensor(1.0))
    empty = any(shard(inputs.input, "classes", rank, ranks).shape[1] == 0 for rank in range(ranks))
    lacks = {"one_class": "needs some"}
    assert why_no_classes("classes", ranks, lacks, inputs) == ("needs some" if empty else None)
    assert why_no_classes("classes", ranks, {}, inputs) is None
    assert why_no_classes("padded", ranks, lacks, inputs) is None


def test_a_gradient_of_the_padding_is_an_error():
    shards = [torch.ones(2, 2), torch.ones(2, 2)]
    with pytest.raises(RuntimeError, match="the gradient of the padding is not 0, but 1; leave the padding out"):
        join(shards, "padded", (2, 3))


class NoForward:
    pass


class StaticForward:
    @staticmethod
    def forward(local_logits, target, shape, axis, options):
        return local_logits.sum()


class ForwardOfTheClass:
    @classmethod
    def forward(cls, local_logits, target, shape, axis, options):
        return local_logits.sum()


class WrongRule:
    split = "columns"

    def forward(self, local_logits, target, shape, axis, options):
        return local_logits.sum()


class ListOfRules(WrongRule):
    split: ClassVar = ["classes", "batch"]


class WrongNormalization(WrongRule):
    split, normalization = "batch", "rows"


class TokensOfClasses:
    normalization = "tokens"

    def forward(self, local_logits, target, shape, axis, options, tokens):
        return local_logits.sum() / tokens


class TokensAreNoArgument(WrongRule):
    split, normalization = "batch", "tokens"


class TokensWithoutForward:
    split, normalization = "batch", "tokens"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NoForward, "the class NoForward, which has no method forward; .* axis, options[)], and a function with these"),
        (
            TokensWithoutForward,
            "a class with forward[(]self, local_logits, target, shape, axis, options, tokens[)], and",
        ),
        (WrongRule, "attribute split is 'columns'; allowed are classes, padded, batch"),
        (ListOfRules, r"attribute split is \['classes', 'batch'\]; allowed are classes, padded, batch"),
        (
            WrongNormalization,
            "attribute normalization is 'rows'; allowed is 'tokens'; leave out normalization to divide",
        ),
        (TokensOfClasses, "attribute split is 'classes'; normalization = 'tokens' needs split = 'batch'"),
        (
            TokensAreNoArgument,
            "the class TokensAreNoArgument, whose method forward does not take these positional arguments: "
            "local_logits, target, shape, axis, options, tokens$",
        ),
        (
            lambda logits, target: logits,
            "the function <lambda>, which does not take these positional arguments: "
            "local_logits, target, shape, axis, options$",
        ),
        (WrongRule(), "an instance of the class WrongRule; give the class itself"),
        (torch.nn.CrossEntropyLoss(), "an instance of the class CrossEntropyLoss; give the class itself"),
        (3, "an object of type int; allowed are a class with forward"),
    ],
)
def test_an_object_that_breaks_the_protocol_is_refused_in_one_line(given, message):
    with pytest.raises(TypeError, match=message):
        require_protocol(given)


@pytest.mark.parametrize("given", [StaticForward, ForwardOfTheClass])
def test_the_method_forward_may_be_static_or_of_the_class(given):
    require_protocol(given)
    assert OnRank(given()).forward(torch.ones(2), torch.tensor(0), (2,), 0, {}) == 2


def test_the_reason_for_a_missing_feature_is_true_on_one_rank():
    assert load(faulty_ranks.right, ranks=1)[0].lacks["vmap"].startswith("runs on ranks, whose operations")


@pytest.mark.parametrize(
    ("subjects", "options", "message"),
    [
        (
            ["torch"],
            {"ranks": 2},
            "subject: got 'torch', which names no loss on several ranks; allowed are ",
        ),
        (
            ["mine.py"],
            {"ranks": 2},
            "subject: got 'mine.py'; the name of the function or class is missing; write ",
        ),
        (["loss_parallel"], {}, "several ranks; give the number of ranks: --ranks N, or ranks=N in Python"),
        (["loss_parallel+compile"], {}, "loss_parallel runs on several ranks; leave out [+]compile, and give the nu"),
        ([], {"ranks": 2}, "ranks: got 2, but no subject; name a subject that runs on ranks"),
        (["loss_parallel"], {"ranks": 0}, "ranks: got 0; allowed are whole numbers from 1 to 64"),
        (["loss_parallel"], {"ranks": 2.0}, "ranks: got 2.0; allowed are whole numbers from 1 to 64"),
        (
            ["loss_parallel"],
            {"ranks": 2, "operation": "linear_cross_entropy"},
            "ranks: got 2 with the operation linear_cross_entropy; only cross_entropy runs on ranks; leave out ranks",
        ),
        (["loss_parallel+compile"], {"ranks": 2}, "which names no loss on several ranks"),
    ],
)
def test_wrong_use_of_ranks_is_an_error_of_one_line(subjects, options, message):
    with pytest.raises(ValueError, match=message) as raised:
        crossent.check(*subjects, level="quick", **options)
    assert "\n" not in str(raised.value)


def test_loss_parallel_is_refused_by_an_old_torch(monkeypatch):
    monkeypatch.setattr(loss_parallel, "_HAS_TENSORS", False)
    monkeypatch.setattr(torch, "__version__", "2.4.0")
    wrong = "^subject: got 'loss_parallel'; loss_parallel needs torch 2.5 or newer; this is torch 2.4.0$"
    with pytest.raises(ValueError, match=wrong):
        load("loss_parallel", ranks=2)


def test_ranks_are_refused_by_an_old_torch_and_by_a_system_that_cannot_fork(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(protocol, "_has_launcher", lambda: False)
        with pytest.raises(ValueError, match=r"^ranks: got 2, but torch .* cannot start ranks; use torch 2.3 or newer"):
            require_ranks(2)
    monkeypatch.setattr(protocol, "can_fork", lambda: False)
    with pytest.raises(ValueError, match=r"^ranks: got 2, but this system cannot fork processes; use Linux or macOS$"):
        require_ranks(2)


def test_an_adapted_loss_has_one_number_of_ranks():
    loss = crossent.adapters.from_ranks(f"{SUPPORT}:right", ranks=3)
    with pytest.raises(ValueError, match="ranks: got 2, but 'right' runs on 3 ranks"):
        crossent.check(loss, ranks=2)

    with pytest.raises(ValueError, match="ranks: got 2, but 'right' runs on 1 rank; use ranks=1"):
        crossent.check(crossent.adapters.from_ranks(f"{SUPPORT}:right", ranks=1), ranks=2)


def test_a_rank_is_told_its_place_and_no_exact_value():
    assert set(Place.__dataclass_fields__) == {"rank", "ranks", "backend", "device", "store", "seconds"}


def names_the_devices(local_logits, target, shape, axis, options):
    raise RuntimeError(f"{local_logits.device}, {target.device}, {options['weight'].device}")


def test_a_call_outside_of_the_context_has_its_tensors_on_the_device_of_the_rank(monkeypatch):
    meta = torch.device("meta")  # in place of a GPU
    monkeypatch.setattr(Place, "own_device", property(lambda place: meta))
    place = Place(rank=0, ranks=2, backend="gloo", device="cuda", store="", seconds=1.0)
    state = rank_process._RankState(place, "classes", OnRank(names_the_devices))
    request = {"input": torch.zeros(3, 4), "target": torch.zeros(3).long(), "options": {"weight": torch.ones(4)}}
    assert rank_process._outside(state, request) == "raises RuntimeError: meta, meta, meta"


def detached(local_logits, target, shape, axis, options):
    return torch.zeros((), requires_grad=True) + 1


def test_a_call_outside_of_the_context_that_computes_no_gradient_is_described_without_one():
    place = Place(rank=0, ranks=1, backend="gloo", device="cpu", store="", seconds=1.0)
    state = rank_process._RankState(place, "classes", OnRank(detached))
    request = {"input": torch.zeros(3, 4), "target": torch.zeros(3).long(), "options": {}}
    assert re.fullmatch("returns a loss with the checksum [0-9a-f]{8}", rank_process._outside(state, request))


def test_a_sparse_loss_of_a_rank_is_reported_by_its_layout():
    expected = "expected a DTensor or a dense tensor of class torch.Tensor"
    with pytest.raises(TypeError, match=f"^loss: got Tensor with layout torch.sparse_coo; {expected}$"):
        rank_process._full(torch.ones(1).to_sparse())


@pytest.mark.parametrize("content", [b"", b"x", b".", b"\x80\x02h\x00."])
def test_damaged_bytes_are_a_damaged_message(content):
    with pytest.raises(DamagedMessageError, match=r"^a damaged message: "):
        unpack(content)


def losses_with_nan(bits, number):
    """Return two losses in float32: a NaN with these bits, and a number."""
    return torch.stack([torch.tensor(bits, dtype=torch.int32).view(torch.float32), torch.tensor(number)])


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (
            losses_with_nan(0x7FC00000, 1.0),
            losses_with_nan(0x7FC00001, 2.0),
            "rank 0 returns 1.0, and rank 3 returns 2.0; ",
        ),
        (
            torch.zeros(()),
            torch.zeros(2, dtype=torch.float64),
            r"rank 0 returns the shape \(\) in torch.float32, and rank 3 returns the shape \(2,\) in torch.float64; ",
        ),
    ],
)
def test_the_difference_between_two_ranks_is_a_number_or_a_shape(one, other, difference):
    assert re.match(f"{difference}every rank must return the same bits", _difference(one, other, 3))


def changes_state_and_may_raise(local_logits, target, shape, axis, options):
    """Change the default dtype. Raise the same error on all ranks if ignore_index is 7."""
    torch.set_default_dtype(torch.float64)
    if options["ignore_index"] == 7:
        raise ValueError("takes no 7")
    return local_logits.sum() * 0


def test_changed_state_is_known_after_an_exception_and_on_another_number_of_ranks():
    loss = RankLoss(changes_state_and_may_raise, 2)
    arguments = torch.zeros(3, 4), torch.zeros(3).long()
    with pytest.raises(ValueError, match="takes no 7"):
        loss(*arguments, ignore_index=7)
    assert loss.take_changed_state() == ["the default dtype"]
    assert loss.take_changed_state() == []
    loss.on(1)(*arguments)
    assert loss.take_changed_state() == ["the default dtype"]
    assert loss.take_changed_state() == []
    loss.close()


class GivesThePart:
    """A loss whose part on each rank is `tokens`. If ignore_index is 7, the part wrongly has dimensions."""

    split, normalization = "batch", "tokens"

    def forward(self, local_logits, target, shape, axis, options, tokens):
        part = local_logits.float() * 0
        return part if options["ignore_index"] == 7 else part.sum() + tokens


def test_crossent_counts_the_kept_rows_of_all_ranks_and_micro_batches():
    loss = RankLoss(GivesThePart, 2)
    inputs = Inputs(torch.ones(5, 3), torch.tensor([0, -100, 1, -100, 2]), {}, torch.tensor(1.0))
    assert loss(inputs.input, inputs.target) == 3 + 3  # each rank has the part 3
    got, gradient = loss.accumulate(inputs, [2, 3], True)
    assert got == 2 * 2 * 3  # for each micro-batch
    assert torch.equal(gradient, torch.zeros(5, 3))
    with pytest.raises(RuntimeError, match=r"forward: got a loss of shape \(3, 3\); with normalization = 'tokens'"):
        loss(inputs.input, inputs.target, ignore_index=7)
    loss.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_rank_that_gets_no_processor_is_starved_and_one_that_computes_is_not():
    here = _Rank(None, os.getpid())
    watch, until = _Watch([here]), time.process_time() + 0.3
    while time.process_time() < until:
        pass
    assert watch.seconds_asleep([here]) == 0
    assert watch.starved([here], 1000)
    assert not watch.starved([here], 0.2)
    assert not watch.starved([here, _Rank(None)], 1000)  # /proc does not have the second rank


CLOSED = {"raised": {"classes": ["builtins.RuntimeError"], "message": "Connection closed by peer"}}
REFUSED = {"raised": {"classes": ["builtins.ValueError"], "message": "no such shard"}}
RETURNED = {"loss": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("replies", "strict", "message"),
    [
        (
            [RETURNED, CLOSED],
            True,
            "rank 1 raised RuntimeError: Connection closed by peer; rank 0 returned",
        ),
        ([CLOSED, REFUSED, RETURNED], True, "rank 1 raised ValueError: no such shard; rank 2 returned"),
        ([CLOSED, None], True, "rank 1 did not return (no result in 180 s, or asleep for 10 s)"),
        ([RETURNED, None], False, "rank 1 did not return (no result in 180 s); rank 0 returned"),
    ],
)
def test_the_error_of_a_fault_says_what_the_ranks_did(replies, strict, message, monkeypatch):
    ranks = Ranks(lambda: faulty_ranks.right, len(replies), description="", seconds=5)
    monkeypatch.setattr(ranks, "_launcher", SimpleNamespace(end=lambda ended: []))
    monkeypatch.setattr(ranks, "_ranks", [_Rank(socket.socket(), reply=reply) for reply in replies])
    with pytest.raises((RanksDifferError, RankEndedError)) as raised:
        ranks._checked(180, strict)
    assert str(raised.value) == message


def test_a_rank_that_does_not_read_its_request_in_time_has_not_ended(monkeypatch):
    ours, theirs = socket.socketpair()
    ranks = Ranks(lambda: faulty_ranks.right, 1, description="", seconds=0.1)
    launcher = SimpleNamespace(end=lambda ended: [], close=lambda: None, owner=os.getpid())
    monkeypatch.setattr(ranks, "_launcher", launcher)
    monkeypatch.setattr(ranks, "_ranks", [_Rank(ours)])
    monkeypatch.setattr(ranks, "_device", "cpu")
    with theirs, pytest.raises(RankEndedError, match=r"^rank 0 did not return [(]no result in 0.1 s") as raised:
        ranks.ask({"input": torch.zeros(2**22)})  # more than a socket takes before its reader reads
    assert raised.value.kind == "hung"


def test_a_call_with_tensors_on_another_device_starts_other_ranks(monkeypatch):
    """Otherwise a call on a GPU after a call on the CPU runs on the CPU."""
    devices, streams = [], []

    def start(places, theirs):
        devices.extend(place.device for place in places)
        streams.extend(one.dup() for one in theirs)
        for stream in streams[-len(theirs) :]:
            stream.sendall(3 * pack({"process": 0}))  # the reply of the start, and the replies of two requests

    starts = SimpleNamespace(start=start, close=lambda: None, owner=os.getpid())
    monkeypatch.setattr(group, "Launcher", lambda load, description: starts)
    ranks = Ranks(lambda: faulty_ranks.right, 2, description="", seconds=5)
    for device in ("cpu", "cpu", "cuda:0", "cpu"):
        ranks.ask({}, device)
    ranks.close()
    assert devices == [*2 * ["cpu"], *2 * ["cuda:0"], *2 * ["cpu"]]
    for stream in streams:
        stream.close()


def test_the_exit_status_of_a_rank_is_named_even_if_its_signal_has_no_name():
    assert _ending("ended", 3) == "ended with exit status 3"
    assert _ending("ended", -11) == "ended with SIGSEGV"
    assert _ending("ended", -35) == "ended with signal 35"
    assert _ending("sent a damaged message: EOFError", None) == "sent a damaged message: EOFError"


def test_a_process_of_a_torchrun_job_that_cannot_be_reached_is_named(monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = {"host": "127.0.0.1", "port": listener.getsockname()[1], "token": "", "machine": ""}  # does not listen
        starts = SimpleNamespace(start=lambda places, streams: None, close=lambda: None, owner=os.getpid())
        monkeypatch.setattr(group, "Launcher", lambda load, description: starts)
        monkeypatch.setattr(group, "servers", lambda: [server])
        ranks = Ranks(lambda: faulty_ranks.right, 2, description="", seconds=5)
        with pytest.raises(RankEndedError, match="process 1 of the torchrun job cannot be reached, so its rank does"):
            ranks.ask({})


def test_a_loss_that_a_new_python_process_cannot_import_is_refused():
    loss = crossent.adapters.from_ranks(lambda local_logits, target, shape, axis, options: local_logits.sum(), ranks=2)
    with pytest.raises(TypeError, match=r"^subject: got a class or function that a new Python process, which"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_ranks_that_never_started_need_no_end():
    ranks = Ranks(lambda: faulty_ranks.right, 2, description="", seconds=5)
    ranks.close()
    assert ranks._launcher is None
