"""Arguments of the Python face that no part of the configuration checks: one is refused by its name and value."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any, ParamSpec, TypeVar

import numpy as np

from coar_dist.config.schema.values import Part, Rule
from coar_dist.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")
_LONGEST = 60


def is_whole(value: Any) -> bool:
    """Whether a value counts something: an integer of Python or NumPy, and no truth value."""
    try:
        index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_)


def _are(value: Any, of_one: Callable[[Any], bool]) -> bool:
    """Whether it is a list, tuple or 1-d array, each of whose values is ``of_one``."""
    entries = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(entries, list | tuple) and all(of_one(entry) for entry in entries)


def _are_whole(value: Any) -> bool:
    """Whether it is a range, list, tuple or 1-d array of integers; of half a million in no time."""
    if isinstance(value, range):
        return True
    if not isinstance(value, list | tuple | np.ndarray):
        return False
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # rows of several lengths
        return False
    return array.ndim == 1 and (array.dtype.kind in "iu" or not array.size)


def _least(value: Any) -> int:
    return int(min(value[0], value[-1]) if isinstance(value, range) else np.min(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


WHOLE = Rule(is_whole, "a whole number")
COUNT = Rule(lambda value: is_whole(value) and value >= 1, "a whole number, at least 1")
AXIS = Rule(lambda value: is_whole(value) and value >= 0, "a whole number, at least 0")
EXAMPLE = Rule(is_whole, "the id of one example, a whole number")
NAME = Rule(lambda value: isinstance(value, str) and value != "", "a name, a string")
NAMES = Rule(lambda value: _are(value, lambda name: isinstance(name, str)), "a list of strings")
NUMBERS = Rule(lambda value: _are(value, _is_number), "a list of numbers")
WHOLES = Rule(_are_whole, "a list of whole numbers")
STARTS = Rule(
    lambda value: _are_whole(value) and len(value) > 0 and _least(value) >= 0,
    "a list of whole numbers, at least one and none below 0",
)
MAPPING = Rule(lambda value: isinstance(value, Mapping), "a dict")
PATH = Rule(lambda value: isinstance(value, str | os.PathLike) and value != "", "a path")


def part_of(kind: type[Part]) -> Rule:
    """A part of the configuration of this class."""
    return Rule(lambda value: isinstance(value, kind), f"{'an' if kind.__name__[0] in 'AE' else 'a'} {kind.__name__}")


def check(key: str, value: Any, rule: Rule) -> None:
    """Check one argument.

    Args:
        key: its name.
        value: as it was given.
        rule: what holds of it.

    Raises:
        ConfigError: it does not; the message says what it must be.

    Example:
        >>> check("num", 0, COUNT)
        Traceback (most recent call last):
        coar_dist.errors.ConfigError: num=0: must be a whole number, at least 1.
        >>> check("sizes", 0.5, NUMBERS)
        Traceback (most recent call last):
        coar_dist.errors.ConfigError: sizes=0.5: must be a list of numbers, e.g. [0.5].
    """
    if not rule.holds(value):
        wants_list = rule in (NAMES, NUMBERS, WHOLES, STARTS) and rule.holds([value])
        example = f", e.g. [{shown(value)}]" if wants_list else ""
        raise ConfigError(f"{key}={shown(value)}: must be {rule.words}{example}.")


def shown(value: Any) -> str:
    """A value in a line of a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def takes(**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that checks arguments before the function runs; None passes where it is the default.

    Args:
        rules: by argument.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        optional = {name for name, parameter in signature.parameters.items() if parameter.default is None}
        assert rules.keys() <= signature.parameters.keys()

        @functools.wraps(function)
        def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
            given = signature.bind(*arguments, **keywords).arguments
            for name, rule in rules.items():
                if name in given and not (given[name] is None and name in optional):
                    check(name, given[name], rule)
            return function(*arguments, **keywords)

        return checked

    return decorate


def listed_of(value: Iterable[Any]) -> list[Any]:
    """The entries of a list, tuple or array as Python's own."""
    entries: Any = value.tolist() if isinstance(value, np.ndarray) else value
    return list(entries)
