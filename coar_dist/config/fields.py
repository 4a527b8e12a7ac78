"""Each option alone: its type, its rules and its name, checked in one way for every part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from coar_dist.config.keys import unknown_key
from coar_dist.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
_MOST_ERRORS = 5
_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_exact_type": "a {class_name}",
    "rule": "{words}",
}
"""What must be, by pydantic's name of what is wrong."""


def checked(part: T, prefix: str = "") -> T:
    """A copy of a part of the configuration, in which every value is of its field's type and keeps its field's rules.

    NumPy's numbers become Python's and tuples lists; nothing else is converted.

    Args:
        part: the configuration or a part of it; a dataclass of ``coar_dist.config.schema``.
        prefix: of its keys in messages, with a dot at its end.

    Raises:
        ConfigError: naming the keys, their values and what they must be.
    """
    from pydantic import ValidationError

    try:
        kind: Any = type(part)
        checked_part: T = _adapter(kind).validate_python(_plain(part, prefix))
    except ValidationError as error:
        lines = [_message(problem, prefix) for problem in error.errors(include_url=False)]
        more = [f"and {len(lines) - _MOST_ERRORS} more."] if len(lines) > _MOST_ERRORS else []
        raise ConfigError("\n".join(lines[:_MOST_ERRORS] + more)) from None
    return checked_part


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _plain(value: Any, key: str) -> Any:
    """``value`` with NumPy's numbers as Python's and tuples as lists; its keys in messages begin with ``key``."""
    if is_dataclass(value) and not isinstance(value, type):
        unknown = sorted(set(vars(value)) - {entry.name for entry in fields(value)})
        if unknown:
            raise unknown_key(f"{key}{unknown[0]}")
        plain = copy(value)
        vars(plain).update({name: _plain(entry, f"{key}{name}.") for name, entry in vars(value).items()})
        return plain
    if isinstance(value, Mapping):
        return {str(name): _plain(entry, f"{key}{name}.") for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry, key) for entry in value]
    return value.item() if getattr(value, "shape", None) == () else value


def rule_of(problem: ErrorDetails) -> str:
    """What a value must be that pydantic found wrong: the end of a message, without a full stop."""
    words = _WORDS.get(problem["type"])
    return f"must be {words.format(**problem.get('ctx', {}))}" if words else problem["msg"]


def _message(problem: ErrorDetails, prefix: str) -> str:
    return f"{prefix}{_key(problem['loc'])}={problem['input']!r}: {rule_of(problem)}."


def _key(location: Sequence[int | str]) -> str:
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return key.removeprefix(".")
