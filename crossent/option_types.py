"""The types of command-line options. The error for a wrong value names the allowed values."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

import click

from crossent.words import quoted


class _Allowed:
    """A mixin for the types of click. The error for a wrong value names the allowed values."""

    @property
    def allowed(self) -> str:
        """The text after "allowed" in an error message, such as "are numbers above 0"."""
        if isinstance(self, click.Choice):
            return f"are {', '.join(self.choices)}"
        if isinstance(self, click.FloatRange):
            return f"are numbers above {self.min}"
        assert isinstance(self, click.IntRange)
        bounds = f"of {self.min} or more" if self.max is None else f"from {self.min} to {self.max}"
        return f"are whole numbers {bounds}"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return super().convert(value, parameter, context)  # type: ignore[misc]
        except click.BadParameter:
            near = get_close_matches(str(value), getattr(self, "choices", ()), n=1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            message = f"got {quoted(value)}{meant}; allowed {self.allowed}"
            raise click.BadParameter(message, context, parameter) from None


class Word(_Allowed, click.Choice):  # type: ignore[type-arg]  # in click 8.1, the class is not generic
    """The type of an option for one of several words."""


class Words(Word):
    """The type of an option for one or more words, separated by commas."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return the words as a tuple."""
        return tuple(super(Words, self).convert(word.strip(), parameter, context) for word in value.split(","))


class Whole(_Allowed, click.IntRange):
    """The type of an option for a whole number in a range."""


class Positive(_Allowed, click.FloatRange):
    """The type of an option for a number above 0."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)


# The type for a seed, without the word "random". A seed has 32 bits, because numpy and torch accept such seeds.
SEED_NUMBER = Whole(0, 2**32 - 1)


class Seed(click.ParamType):  # type: ignore[type-arg]
    """The type of an option for a seed: a whole number, or the word "random"."""

    name = "integer or random"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        """Return the number, or "random"."""
        if value == "random":
            return "random"
        try:
            return int(SEED_NUMBER.convert(value, parameter, context))
        except click.BadParameter as error:
            self.fail(f"{error.message}, or the word random", parameter, context)


class ShardOption(click.ParamType):  # type: ignore[type-arg]
    """The type of an option for a shard, such as "2/8": the second of eight shards.

    `most` limits the number of shards.
    """

    name = "shard"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Return the number of the shard, from 1, and the number of shards: (2, 8) for "2/8"."""
        shard = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", str(value))
        number, count = map(int, shard.groups()) if shard else (0, 0)
        if not 1 <= number <= count <= self.most:
            allowed = f"1/N to N/N, as in 2/8, with N from 1 to {self.most:,}"
            self.fail(f"got {quoted(value)}; allowed are {allowed}", parameter, context)
        return number, count


class Row(click.ParamType):  # type: ignore[type-arg]
    """The type of an option for a row of numbers, separated by commas."""

    name = "row"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers as a tuple."""
        try:
            return tuple(float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"got {quoted(value)}; allowed are numbers separated by commas, as in 3,1,-3", parameter, context)
