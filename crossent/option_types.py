"""The types of options: words, numbers, seeds and rows of numbers. Errors name the given and the allowed values."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click

from crossent.words import quoted


class _Allowed:
    """A mixin for the parameter types of click. An error names the given value and the allowed values."""

    @property
    def allowed(self) -> str:
        """The allowed values after their verb, for example "are quick, normal, thorough" or "is 1 or more"."""
        if isinstance(self, click.Choice):
            return f"are {', '.join(self.choices)}"
        assert isinstance(self, (click.IntRange, click.FloatRange))
        if self.max is not None:
            return f"are {self.min} to {self.max}"
        return f"is more than {self.min}" if self.min_open else f"is {self.min} or more"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Convert the value as click does. The error for a wrong value names the allowed values."""
        try:
            return super().convert(value, parameter, context)  # type: ignore[misc]
        except click.BadParameter:
            near = get_close_matches(str(value), getattr(self, "choices", ()), n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            message = f"got {quoted(value)}{meant}; allowed {self.allowed}"
            raise click.BadParameter(message, context, parameter) from None


class Word(_Allowed, click.Choice):  # type: ignore[type-arg]  # in click 8.1, the class is not generic
    """The type of an option whose value is one of several words."""


class Words(Word):
    """The type of an option whose value is several words, separated by commas."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """Return the words as a tuple. If a word is wrong, the error names the word."""
        return tuple(super(Words, self).convert(word.strip(), parameter, context) for word in value.split(","))


class Whole(_Allowed, click.IntRange):
    """The type of an option whose value is a whole number in a range."""


class Positive(_Allowed, click.FloatRange):
    """The type of an option whose value is a number above 0."""

    def __init__(self) -> None:
        super().__init__(0, min_open=True)


# The type of a seed, which has 32 bits, because numpy and torch both accept such seeds.
SEED_OPTION = Whole(0, 2**32 - 1)


class Seed(click.ParamType):  # type: ignore[type-arg]
    """The type of an option whose value is a seed: a whole number, or the word "random"."""

    name = "integer or random"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | str:
        """Return the number, or "random"."""
        if value == "random":
            return "random"
        try:
            return int(SEED_OPTION.convert(value, parameter, context))
        except click.BadParameter as error:
            message = error.message.replace("allowed are", "allowed are whole numbers from")
            self.fail(f"{message}, or the word random", parameter, context)


class ShardOption(click.ParamType):  # type: ignore[type-arg]
    """The type of an option whose value is a shard: the number of the shard and the number of shards, as in "2/8"."""

    name = "shard"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        """Return the number of the shard and the number of shards."""
        number, slash, count = str(value).partition("/")
        if not (slash and all(part.isascii() and part.isdigit() and len(part) <= 6 for part in (number, count))):
            self.fail(f"got {quoted(value)}; allowed are 1/N to N/N, as in 2/8", parameter, context)
        if not 1 <= int(number) <= int(count):
            self.fail(f"got {quoted(value)}; allowed are 1/N to N/N, as in 2/8", parameter, context)
        return int(number), int(count)


class Row(click.ParamType):  # type: ignore[type-arg]
    """The type of an option whose value is a row of numbers, separated by commas."""

    name = "row"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        """Return the numbers as a tuple."""
        try:
            return tuple(float(number) for number in value.split(","))
        except ValueError:
            self.fail(f"got {quoted(value)}; allowed are numbers separated by commas, as in 3,1,-3", parameter, context)
