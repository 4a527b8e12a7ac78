"""How independent parts of a computation are run: in this process, or as tasks on a cluster. Nothing here needs Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from typing_extensions import override

_T = TypeVar("_T")


class Kept(ABC, Generic[_T]):
    """What a part gave, kept where it was made. It may be among what is shared with later parts, which read it."""

    @abstractmethod
    def read(self) -> _T:
        """The value, whose arrays must not be written to."""


class Execute(ABC):
    """Runs ``function(shared, item)`` for every item."""

    @property
    @abstractmethod
    def width(self) -> int:
        """About how many parts run at once."""

    @abstractmethod
    def __call__(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        """What the parts give, in any order."""

    @abstractmethod
    def keep(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> list[Kept[Any]]:
        """What the parts give, in the order of the items, kept: nothing large comes here."""

    def keep_one(self, function: Callable[[Any], Any], shared: Any) -> Kept[Any]:
        """What ``function(shared)`` gives, kept."""
        (kept,) = self.keep(_of_shared, (function, shared), [None])
        return kept

    def ask(self, function: Callable[[Any], _T], shared: Any) -> _T:
        """What ``function(shared)`` gives, as a part of its own."""
        answer: _T
        (answer,) = self(_of_shared, (function, shared), [None])
        return answer


def _of_shared(shared: tuple[Callable[[Any], Any], Any], _item: None) -> Any:
    function, value = shared
    return function(value)


@dataclass(frozen=True)
class _Here(Kept[_T]):
    """A value of this process."""

    value: _T

    @override
    def read(self) -> _T:
        return self.value


class InThisProcess(Execute):
    """Runs the parts here, one after the other."""

    @property
    @override
    def width(self) -> int:
        return 1

    @override
    def __call__(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        return (function(shared, item) for item in items)

    @override
    def keep(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> list[Kept[Any]]:
        return [_Here(function(shared, item)) for item in items]


in_this_process = InThisProcess()
