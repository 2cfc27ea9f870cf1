"""The messages of isolated processes: a message arrives as it was sent, and a reply in any other form is refused.

`nox -s hostile` reads 10,000 generated replies of each kind.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.storages import in_one_storage
from torch import Tensor

from crossent.cases.case import Case
from crossent.cases.inputs import Inputs
from crossent.cases.linear.case import LinearCase
from crossent.run.isolation import wire
from crossent.trials.act import NotRun, Performed, Raised
from crossent.trials.call import Call, Result, make_call
from crossent.words import LONGEST_TEXT

INPUTS = Case.of("float32-7x5-normal-int64-none-weighted-rows").build()
MOST = wire.most_of_reply((INPUTS,))
EXAMPLES = int(os.environ.get("CROSSENT_HOSTILE", "100"))


def return_argument(loss, inputs: Inputs) -> Inputs:
    """Return the argument, as an act that only this test performs."""
    return inputs


def several(loss, inputs: Inputs) -> tuple[Tensor | None, list[Result | Raised], str]:
    """Return values of several types, as an act that only this test performs."""
    return inputs.input, [], ""


def call() -> Performed[Call]:
    return Performed(make_call(torch.nn.functional.cross_entropy, INPUTS.copy(), ("gradient",)))


def read(reply, act=make_call):
    return wire.read_reply(reply, act, (INPUTS,), MOST)


def header_of(reply):
    length = int.from_bytes(reply[:8], "big")
    return json.loads(reply[8 : 8 + length]), reply[8 + length :]


def reply_of(header, raw):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "big") + text + raw


def test_an_outcome_comes_back_as_it_was_sent():
    sent = call()
    got = read(wire.write_reply(dataclasses.replace(sent, changed_state=("a mode",)), MOST))
    assert got.changed_state == ("a mode",)
    assert got.value.result.digest == sent.value.result.digest
    assert got.value.given.digest == sent.value.given.digest
    raised = Performed(raised=Raised("ValueError: no", classes=("builtins.ValueError",)))
    assert read(wire.write_reply(raised, MOST)) == raised
    assert read(wire.write_reply(Performed(NotRun("needs another torch")), MOST)).value == NotRun("needs another torch")
    value = (INPUTS.input, [Raised("x"), Result(INPUTS.upstream)], "text")
    assert str(read(wire.write_reply(Performed(value), MOST), several).value) == str(value)


def test_views_come_back_with_all_of_the_memory_that_they_are_views_of():
    inputs = Case.of("float32-17x3-normal-int64-none-weighted-stride0-window").build()
    most = wire.most_of_reply((inputs,))
    sent = wire.read_reply(wire.write_reply(Performed(inputs), most), return_argument, (inputs,), most).value
    assert sent.digest == inputs.digest
    assert sent.input.stride() == inputs.input.stride()
    assert sent.input.untyped_storage().nbytes() == inputs.input.untyped_storage().nbytes()
    assert sent.upstream.untyped_storage().nbytes() == inputs.upstream.untyped_storage().nbytes()


def test_a_lazily_negated_view_arrives_with_the_right_signs():
    sent = torch._neg_view(torch.tensor([1.0, -2.0]))
    reply = wire.write_reply(Performed((sent, [], "")), MOST)
    assert read(reply, several).value[0].tolist() == [-1.0, 2.0]


def test_tensors_in_one_storage_arrive_in_one_storage():
    sent = LinearCase("float32", linear_layout="linear_tied").build()
    known = {(wire.__name__, name): value for name, value in vars(wire).items()}
    known[Inputs.__module__, "Inputs"] = Inputs
    got = wire.read(wire.write(sent), known)
    assert got.digest == sent.digest
    assert in_one_storage(got), "the message has two storages"


def changed(place, value):
    """Return a reply whose header has another value at the keys `place`."""
    header, raw = header_of(wire.write_reply(call(), MOST))
    *before, last = place
    part = header
    for key in before:
        part = part[key]
    part[last] = value
    return reply_of(header, raw)


LOSS = ("value", "fields", "result", "fields", "loss", "tensor")  # length, dtype, shape, strides, offset, device
WRONG = {
    "more memory than there is": ((*LOSS, 2), [2**20]),
    "beyond the memory": ((*LOSS, 4), 5),
    "strides beyond the memory": ((*LOSS, 3), [2]),
    "a negative stride": ((*LOSS, 3), [-1]),
    "many numbers in one": ((*LOSS, 2), [2**40]),
    "one number in memory, many times": (LOSS, [28, "float32", [2**40], [0], 0, "cpu"]),
    "a shape with a fraction": ((*LOSS, 2), [7.0]),
    "a boolean for an offset": ((*LOSS, 4), False),
    "sixteen gigabytes": ((*LOSS, 0), 2**34),
    "no data": ((*LOSS, 0), None),
    "on the meta device": ((*LOSS, 5), "meta"),
    "a name that is no dtype": ((*LOSS, 1), "nn"),
    "a number for a word": (("value", "fields", "attribute_change"), 3),
    "a text for a tensor": (("value", "fields", "result", "fields", "loss"), "loss"),
    "a class of another act": (("value", "class"), "Inputs"),
    "a class that no act returns": (("value", "class"), "Popen"),
    "a missing field": (("value", "fields"), {}),
    "nothing": (("value",), None),
    "an exception of numbers": (("raised",), {"class": "Raised", "fields": {"message": 3}}),
    "state of numbers": (("state",), [3]),
    "no state": (("state",), None),
}


@pytest.mark.parametrize(("place", "value"), WRONG.values(), ids=WRONG)
def test_a_reply_that_no_act_returns_is_damaged(place, value):
    with pytest.raises(wire.DamagedError):
        read(changed(place, value))


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (2, [-1], "^a reply with a tensor of impossible sizes$"),
        (2, [2**40], f"^a reply with a tensor of {2**42} bytes; allowed are {MOST}$"),
        (0, None, "^a reply with a tensor on the meta device, which has no data$"),
        (5, "cuda:7", "^a reply with a tensor on cuda:7; expected the device of an input, cpu$"),
        (4, 10**6, "^a reply with a tensor that is larger than its memory$"),
        (0, 2**20, "^a reply with incomplete data of a tensor$"),
    ],
    ids=["sizes", "bytes", "meta", "device", "offset", "data"],
)
def test_the_error_of_a_tensor_names_its_fault(at, value, said):
    header, raw = header_of(wire.write_reply(Performed(torch.zeros(3)), MOST))
    header["value"]["tensor"][at] = value
    with pytest.raises(wire.DamagedError, match=said):
        wire.read_reply(reply_of(header, raw), make_call, (INPUTS,), MOST)


def test_at_most_a_hundred_names_of_changed_state_are_read():
    header, raw = header_of(wire.write_reply(call(), MOST))
    header["state"] = [str(number) for number in range(10**5)]
    assert read(reply_of(header, raw)).changed_state == tuple(map(str, range(100)))


def test_a_long_message_is_cut():
    raised = Performed(raised=Raised("x" * 10**5, text="y" * 10**5))
    assert {len(read(wire.write_reply(raised, MOST)).raised.message)} == {LONGEST_TEXT}


def test_a_deep_header_is_damaged():
    for text in ("[" * 10**5, '{"value":' * 10**5):
        with pytest.raises(wire.DamagedError):
            read(len(text).to_bytes(8, "big") + text.encode())


def test_a_result_too_large_to_be_right_is_not_sent():
    expanded = torch.zeros(1).expand(2**33)
    said = rf"^a result has shape \({2**33},\) and {2**35} bytes; expected at most {MOST} bytes$"
    with pytest.raises(wire.DamagedError, match=said):
        wire.write_reply(Performed(expanded), MOST)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.sampled_from(["tensor", "class", "fields", "mapping", "tuple", "list"])
JSON = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner), max_leaves=8)


def assert_damaged_or_typed(reply):
    """Assert that reading a reply raises DamagedError, or returns a value of the declared type."""
    try:
        value = read(reply).value
    except wire.DamagedError:
        return
    assert value is None or type(value) in (Call, NotRun)


@settings(max_examples=EXAMPLES, deadline=None)
@given(JSON, JSON, st.lists(st.text(max_size=3), max_size=2), st.binary(max_size=64))
def test_a_generated_reply_is_damaged_or_of_the_declared_type(value, raised, state, raw):
    assert_damaged_or_typed(reply_of({"value": value, "raised": raised, "state": state}, raw))


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_a_damaged_reply_is_damaged_or_of_the_declared_type(data):
    reply = bytearray(wire.write_reply(call(), MOST))
    for at in data.draw(st.lists(st.integers(0, len(reply) - 1), min_size=1, max_size=8)):
        reply[at] = data.draw(st.integers(0, 255))
    assert_damaged_or_typed(
        bytes(reply[: data.draw(st.integers(0, len(reply)))] if data.draw(st.booleans()) else reply)
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data())
def test_a_header_with_another_value_somewhere_is_damaged_or_of_the_declared_type(data):
    header, raw = header_of(wire.write_reply(call(), MOST))
    part = header
    while True:
        keys = sorted(part) if isinstance(part, dict) else range(len(part))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(part[key], (dict, list)) or not part[key] or data.draw(st.booleans()):
            part[key] = data.draw(JSON)
            break
        part = part[key]
    assert_damaged_or_typed(reply_of(header, raw))


@pytest.fixture
def pair():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(one) for one in socket.socketpair()]


def test_a_message_that_announces_more_than_a_reply_can_have_is_not_read(pair):
    ours, theirs = pair
    theirs.sendall((2**40).to_bytes(8, "big"))
    with pytest.raises(wire.DamagedError, match="1099511627776 bytes"):
        wire.receive(ours, 100, time.monotonic() + 5)


@pytest.mark.parametrize("sent", [b"", b"\0", (10).to_bytes(8, "big") + b"half"])
def test_an_incomplete_message_ends_at_the_time_limit(sent, pair):
    ours, theirs = pair
    theirs.sendall(sent)
    with pytest.raises(TimeoutError):
        wire.receive(ours, 100, time.monotonic() + 0.05)
    theirs.close()
    with pytest.raises(EOFError):
        wire.receive(ours, 100, time.monotonic() + 5)


def test_a_slow_message_ends_at_the_time_limit(pair):
    """Each byte arrives in time, but the whole message does not."""
    ours, theirs = pair
    stop = threading.Event()

    def drip():
        theirs.sendall((100).to_bytes(8, "big"))
        while not stop.wait(0.02):
            theirs.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(TimeoutError):
            wire.receive(ours, 1000, time.monotonic() + 0.2)
    finally:
        stop.set()
        thread.join()


def test_a_request_that_is_not_read_ends_at_the_time_limit(pair):
    ours, _ = pair
    with pytest.raises(TimeoutError):
        wire.send(ours, bytes(2**24), time.monotonic() + 0.1)
