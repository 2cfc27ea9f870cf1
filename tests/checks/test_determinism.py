"""Determinism: the checks catch a subject whose bits depend on when or where on a device the call runs.

Tests that need a CUDA device run on a simulated device, whose streams do nothing. The simulation shows the order of the
calls and the verdict. The tests also run on a real device if the machine has one.
"""

import contextlib
import itertools

import pytest
import torch
from support import running
from support.checks import DETERMINISM
from support.running import trial_of
from support.subjects import TENSOR_FORMS
from support.waits import computes

import crossent
from crossent.cases.axes import DTYPES
from crossent.cases.case import Case
from crossent.cases.grid import grid
from crossent.cases.inputs import Inputs
from crossent.checks import determinism
from crossent.machine import ambient
from crossent.state import STATES, restore, snapshot
from crossent.subjects.builtin import FORM_SUBJECTS, TORCH
from crossent.subjects.subject import Subject
from crossent.trials.difference import Difference
from crossent.trials.trial import NotRunError, Problem, Question, RefusedError

DETERMINISTIC, STREAM = DETERMINISM
PLAIN = Case("float32", (7, 5), reduction="none", weight="weighted", ignored="ignored", upstream="rows")
FORMS_AND_TORCH = [*TENSOR_FORMS, TORCH]


def run(check, loss, case=PLAIN, device="cpu"):
    subject = loss if isinstance(loss, Subject) else Subject("mine", loss, promise="eager")
    return list(check.run(trial_of(Question(case, device), subject)))


def every_nth_is_off(n):
    """Return a cross-entropy whose every n-th result is off by one unit in the last place, as by unordered sums."""
    calls = itertools.count(1)
    return lambda *arguments, **options: (
        crossent.formula(*arguments, **options) * (1 + 2.0**-23 * (next(calls) % n == 0))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forms_and_torch_give_the_same_bits_ten_times(dtype, device):
    cases = [case for case in grid([dtype], array="pairs") if case.target != "uint8"][::8]
    for case in cases:
        for subject in FORMS_AND_TORCH:
            if subject is TORCH and not computes(dtype, device):
                continue
            try:
                assert run(DETERMINISTIC, subject, case, device) == [], (case.id, subject.name)
            except NotRunError:
                assert device != "cpu", subject.name


@pytest.mark.parametrize("n", [2, 3, 10])
def test_other_bits_in_any_of_ten_calls_are_found(n):
    (problem,) = run(DETERMINISTIC, every_nth_is_off(n))
    said = f"call {n} of 10 with the same arguments gives other bits than the first call"
    assert problem == Problem("not_repeated", said)


def test_other_bits_of_the_gradient_alone_are_found():
    calls = itertools.count()

    class Drifts(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.clone()

        @staticmethod
        def backward(ctx, upstream):
            return upstream * (1 + 2.0**-20 * next(calls))

    (problem,) = run(DETERMINISTIC, lambda x, *rest, **options: crossent.formula(Drifts.apply(x), *rest, **options))
    assert problem.kind == "not_repeated"


def test_an_operation_without_a_deterministic_kernel_is_counted_and_no_finding():
    """If torch raises an error, the check is skipped: torch raises for `put_` on a CPU, and for nll_loss2d on CUDA."""

    def puts(input, target, **options):
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
        return crossent.formula(input, target, **options)

    with pytest.raises(NotRunError, match=r"^uses put_, which has no deterministic kernel in torch$"):
        run(DETERMINISTIC, puts)
    report = running.run(puts, PLAIN, [DETERMINISTIC])
    assert report.subjects[0].not_run == {"deterministic": {"uses put_, which has no deterministic kernel in torch": 1}}
    assert not report.findings


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "nll_loss2d_forward_out_cuda_template does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation",
            "uses nll_loss2d_forward_out_cuda_template, which has no deterministic kernel in torch",
        ),
        (
            "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
            "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses "
            "CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an "
            "environment variable before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or "
            "CUBLAS_WORKSPACE_CONFIG=:16:8.",
            "needs the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8, without which cuBLAS is not deterministic",
        ),
        (
            "This operation is not deterministic, but you called torch.use_deterministic_algorithms(True)",
            "uses an operation that has no deterministic kernel in torch",
        ),
    ],
    ids=["nll_loss2d", "CuBLAS", "unnamed"],
)
def test_the_error_of_torch_on_cuda_is_recognised(message, reason):
    def raises(*arguments, **options):
        raise RuntimeError(message)

    with pytest.raises(NotRunError) as said:
        run(DETERMINISTIC, raises)
    assert str(said.value) == reason


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("deterministic")])
def test_any_other_error_in_deterministic_mode_is_a_refusal(error):
    def raises(input, target, **options):
        if torch.are_deterministic_algorithms_enabled():
            raise error
        return crossent.formula(input, target, **options)

    with pytest.raises(RefusedError):
        run(DETERMINISTIC, raises)
    report = running.run(raises, PLAIN, [DETERMINISTIC])
    assert [(finding.check, finding.kind) for finding in report.findings] == [("deterministic", "refused")]


@pytest.mark.parametrize(("mode", "warn_only"), [(False, False), (True, True), (True, False)])
def test_the_deterministic_mode_is_restored(mode, warn_only):
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    try:
        run(DETERMINISTIC, FORM_SUBJECTS["formula"])
        run(DETERMINISTIC, every_nth_is_off(2))
        assert torch.are_deterministic_algorithms_enabled() == mode
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


# --- Streams ---------------------------------------------------------------------------------------------------------


def test_on_a_device_without_streams_the_check_is_skipped_and_counted():
    with pytest.raises(NotRunError, match="needs a CUDA device"):
        run(STREAM, FORM_SUBJECTS["formula"])
    report = running.run(FORM_SUBJECTS["formula"], PLAIN, [STREAM])
    reason = "needs a CUDA device, since the check uses CUDA streams"
    assert report.subjects[0].not_run == {"stream": {reason: 1}}


def on_cuda(device):
    if not device.startswith("cuda"):
        pytest.skip("needs a CUDA device")


def test_the_forms_and_torch_are_right_on_another_stream(device):
    on_cuda(device)
    for case in [case for case in grid(["float32"], array="pairs") if case.target != "uint8"][::4]:
        for subject in FORMS_AND_TORCH:
            assert all(difference.ratio <= 1 for difference in run(STREAM, subject, case, device)), case.id


def test_work_on_another_stream_than_the_current_one_is_found(device):
    on_cuda(device)

    def on_a_new_stream(input, target, **options):
        with torch.cuda.stream(torch.cuda.default_stream(input.device)):
            return crossent.formula(input, target, **options)

    assert any(difference.ratio > 1 for difference in run(STREAM, on_a_new_stream, PLAIN, device))


@pytest.fixture
def stream_calls(monkeypatch):
    """Simulate a device cuda:0 on the CPU, and return a list, to which each call on a stream is added."""
    calls_on_streams = []

    class Stream:
        def __init__(self, device, name="side"):
            self.name = name

        def wait_stream(self, other):
            calls_on_streams.append(f"{self.name} waits for {other.name}")

        def synchronize(self):
            calls_on_streams.append(f"the host waits for {self.name}")

    @contextlib.contextmanager
    def entered(stream):
        calls_on_streams.append(f"enter {stream.name}")
        yield
        calls_on_streams.append(f"leave {stream.name}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "default"))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: calls_on_streams.append("sleep"), raising=False)
    monkeypatch.setattr(determinism, "poison", lambda inputs: calls_on_streams.append("poison"))
    monkeypatch.setattr(Question, "inputs", property(lambda question: question.case.build("cpu")))
    return calls_on_streams


def test_the_arguments_get_their_values_late_on_the_side_stream(stream_calls):
    seen = []

    def loss(input, target, **options):
        seen.append(Inputs(input.detach(), target, options, PLAIN.build().upstream).digest)
        stream_calls.append("call")
        return crossent.formula(input, target, **options)

    found = run(STREAM, loss, device="cuda:0")
    assert [(one.of, one.ratio <= 1) for one in found] == [("loss", True), ("gradient", True)]
    assert seen == [PLAIN.build().digest] * 2
    assert stream_calls == [
        # The first call may compile, which takes longer than the sleep.
        "side waits for default",
        "enter side",
        "call",
        "leave side",
        "the host waits for side",
        "side waits for default",
        "enter side",
        "sleep",
        "call",
        "leave side",
        "poison",
        "the host waits for side",
    ]


def test_every_layout_gets_its_values_back(stream_calls):
    """The check zeroes and restores the whole memory of each argument, whatever its strides are."""
    cases = [case for case in grid(["float32"], array="pairs") if case.target != "uint8"]
    for case in cases[::2]:
        for difference in run(STREAM, FORM_SUBJECTS["formula"], case, "cuda:0"):
            assert difference.ratio <= 1, case.id


def test_a_subject_that_reads_the_arguments_too_early_is_found(stream_calls):
    """A kernel on the default stream reads zeros in place of the arguments, and its loss exceeds the error bound."""

    def too_early(input, target, **options):
        zeros = {name: torch.zeros_like(of) if torch.is_tensor(of) else of for name, of in options.items()}
        return crossent.formula(input * 0, torch.zeros_like(target), **zeros)

    found = run(STREAM, too_early, device="cuda:0")
    assert all(isinstance(one, Difference) for one in found)
    assert max(one.ratio for one in found) > 1


def test_without_a_function_to_delay_a_stream_the_check_is_skipped(stream_calls, monkeypatch):
    monkeypatch.delattr(torch.cuda, "_sleep")
    with pytest.raises(NotRunError, match="needs a torch with"):
        run(STREAM, FORM_SUBJECTS["formula"], device="cuda:0")
    assert stream_calls == []


# --- Other global state on CUDA -------------------------------------------------------------------------------------


def test_a_run_on_cuda_does_not_depend_on_its_autocast(monkeypatch):
    entered, autocast = [], torch.autocast

    def recorded(kind, enabled):
        entered.append((kind, enabled))
        return autocast("cpu", enabled=enabled)

    monkeypatch.setattr(torch, "autocast", recorded)
    for available, kinds in ((False, ["cpu"]), (True, ["cpu", "cuda"])):
        entered.clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        with ambient():
            assert entered == [(kind, False) for kind in kinds]


def test_a_draw_from_a_generator_of_cuda_is_seen_and_set_back(monkeypatch):
    """A changed state is named and restored. A list simulates CUDA: it has the generator's state of each device."""
    states = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [one.clone() for one in states])
    read, _ = STATES["the random generators of CUDA"]

    def set_back(to):
        states[:] = to

    monkeypatch.setitem(STATES, "the random generators of CUDA", (read, set_back))
    before = snapshot()
    assert restore(before) == []
    states[1].add_(1)
    assert restore(before) == ["the random generators of CUDA"]
    assert states[1].tolist() == [3, 4]


def test_a_cuda_that_is_initialised_in_a_call_is_no_change(monkeypatch):
    before = snapshot()
    assert before["the random generators of CUDA"] == [] or torch.cuda.is_initialized()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([1])] * 99)
    assert restore(before) == []
