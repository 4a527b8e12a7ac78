"""A configuration that records which of its options are read."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any, TypeVar, get_args, get_type_hints

_T = TypeVar("_T")


class Recorder:
    """Records the dotted keys of the options that are read while it is on.

    ``recorded`` gives a copy of a configuration whose parts are of subclasses. What ``dataclasses.replace`` copies is
    not read by that, and what it replaces is the user's option no longer.
    """

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.is_on = True

    def recorded(self, part: _T, prefix: str = "") -> _T:
        assert dataclasses.is_dataclass(part)
        recorder, base = self, type(part)
        names = {field.name for field in dataclasses.fields(part)}
        optional = {name for name, hint in get_type_hints(base).items() if _is_optional_part(hint)}
        copied: dict[str, Any] = {"from": frozenset(), "names": set()}

        def get(this: Any, name: str) -> Any:
            value = object.__getattribute__(this, name)
            if name not in names:
                return value
            replaced = object.__getattribute__(this, "__dict__").get("_replaced", frozenset())
            is_part = dataclasses.is_dataclass(value) and name not in optional
            if sys._getframe(1).f_code is dataclasses.replace.__code__:
                copied["from"] = replaced
                copied["names"].add(name)
            elif recorder.is_on and not is_part and name not in replaced:
                recorder.keys.add(f"{prefix}{name}")
            return value

        def init(this: Any, **values: Any) -> None:
            base.__init__(this, **values)  # type: ignore[misc]
            if copied["names"]:
                this.__dict__["_replaced"] = copied["from"] | (names - copied["names"])
                copied["names"] = set()

        def is_equal(this: Any, other: Any) -> bool:
            values = (object.__getattribute__(each, "__dict__") for each in (this, other))
            first, second = ({name: found[name] for name in names} for found in values)
            return isinstance(other, base) and first == second

        made = type(base.__name__, (base,), {"__getattribute__": get, "__init__": init, "__eq__": is_equal})
        values = {name: getattr(part, name) for name in names}
        return made(**{name: self._nested(value, f"{prefix}{name}.") for name, value in values.items()})  # type: ignore[no-any-return]

    def _nested(self, value: Any, prefix: str) -> Any:
        return self.recorded(value, prefix) if dataclasses.is_dataclass(value) else value


def _is_optional_part(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and any(dataclasses.is_dataclass(kind) for kind in get_args(hint))
