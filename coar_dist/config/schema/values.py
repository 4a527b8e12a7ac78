"""What the value of an option may be: its type, what holds of it, and the words for that in messages.

    learning_rate: Positive = 0.01
    placement: Annotated[str, one_of("pack", "spread")] | None = None

Whoever composes YAML sees the type alone; ``coar_dist.config.fields`` checks everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar


class Part:
    """A part of the configuration: a dataclass whose values are checked as they are, not converted."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "strict": True,
        "allow_inf_nan": False,
        "revalidate_instances": "always",
    }


@dataclass(frozen=True)
class Rule:
    """What holds of a value besides its type.

    Attributes:
        holds: whether a value of the right type is allowed.
        words: what is allowed; they follow "must be" in the message.
    """

    holds: Callable[[Any], bool]
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """The schema of the annotated type with this rule after it."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: Any) -> Any:
        from pydantic_core import PydanticCustomError

        if not self.holds(value):
            raise PydanticCustomError("rule", "{words}", {"words": self.words})
        return value


def one_of(*names: str) -> Rule:
    """One of these names. A set that a registry holds is not repeated here: the stage that reads the option looks the
    name up."""
    return Rule(lambda name: name in names, f"one of {', '.join(names)}")


def at_least(least: int) -> Rule:
    """A whole number from ``least`` on."""
    return Rule(lambda number: number >= least, f"a whole number, at least {least}")


Count = Annotated[int, at_least(1)]
Seed = Annotated[int, Rule(lambda seed: 0 <= seed < 2**64, "a whole number in 0..2**64-1")]
Positive = Annotated[float, Rule(lambda number: number > 0.0, "a finite number above 0")]
NonNegative = Annotated[float, Rule(lambda number: number >= 0.0, "a finite number, at least 0")]
Share = Annotated[float, Rule(lambda share: 0.0 < share < 1.0, "a number strictly between 0 and 1")]
FolderName = Annotated[
    str,
    Rule(
        lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) is not None,
        "a name of a folder: letters, digits, _ . -",
    ),
]
NameOrFunction = Annotated[
    Any,
    Rule(
        lambda value: callable(value) or (isinstance(value, str) and value != ""),
        "a name, module:function of your own, or in Python a function",
    ),
]
Distinct = Rule(lambda values: len(set(values)) == len(values), "a list without repetitions")
Labels = Annotated[list[int], Rule(lambda labels: 0 < len(labels) == len(set(labels)), "null or a list, none twice")]
"""Ids or class labels."""
