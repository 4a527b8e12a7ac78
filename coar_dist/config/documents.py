"""JSON that somebody else may have written: parsed, and held to a type before anything is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from coar_dist.config.fields import rule_of
from coar_dist.config.schema.values import Rule

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Fingerprint = Annotated[
    str, Rule(lambda text: text.startswith("sha256:") and text[7:].isalnum(), "sha256: and hexadecimal digits")
]
Finite = Annotated[float, Rule(math.isfinite, "a finite number")]
_MOST_SHOWN = 60
"""Characters of a wrong value."""


def up_to(least: int, most: int) -> Rule:
    """A whole number from ``least`` to ``most``."""
    return Rule(lambda number: least <= number <= most, f"a whole number in {least}..{most}")


def parsed(content: bytes) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        ValueError: it is something else, a sentence without a full stop.
    """
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it holds {_shown(found)}, not an object with keys")
    return found


def check_type(kind: Any, value: Any) -> None:
    """Check that a JSON value is of a type, strictly: whole numbers may stand for numbers, and nothing else is taken
    for something else.

    Args:
        kind: a TypedDict, whose further keys are free, or a dataclass; ``Rule`` may annotate every part.
        value: what ``json.loads`` gave, or a part of it.

    Raises:
        ValueError: it is not; naming the key, its value and what it must be, a sentence without a full stop.

    Example:
        >>> check_type(dict[str, FolderName], {"train": "../x"})
        Traceback (most recent call last):
        ValueError: it has the key '../x': must be a name of a folder: letters, digits, _ . -
    """
    from pydantic import ValidationError

    try:
        _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ValueError(_message(error.errors(include_url=False)[0])) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _message(problem: ErrorDetails) -> str:
    *steps, last = problem["loc"] or ("",)
    if last == "[key]":  # pydantic's word for a key that is wrong itself
        return f"{_key(steps[:-1]) or 'it'} has the key {_shown(steps[-1])}: {rule_of(problem)}"
    key = _key([*steps, last]) or "it"
    return (
        f"{key} is missing"
        if problem["type"] == "missing"
        else f"{key} is {_shown(problem['input'])}: {rule_of(problem)}"
    )


def _key(steps: Sequence[int | str]) -> str:
    return ".".join(ascii(step)[1:-1][:_MOST_SHOWN] if isinstance(step, str) else f"{step}" for step in steps)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
