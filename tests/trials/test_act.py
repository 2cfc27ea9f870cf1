"""Test the description of an exception."""

from crossent.trials.act import Raised


def test_the_first_exception_of_a_chain_is_described():
    first, last = ValueError("first"), RuntimeError("last")
    last.__cause__ = first
    assert Raised.of(last).first == "ValueError: first"
    assert Raised.of(first).first == "ValueError: first"


def test_a_chain_that_is_a_circle_has_an_end():
    one, other, last = ValueError("one"), ValueError("other"), RuntimeError("last")
    one.__cause__, other.__cause__, last.__cause__ = other, one, one
    assert Raised.of(last).first == "ValueError: other"
    assert Raised.of(one).first == "ValueError: other"
