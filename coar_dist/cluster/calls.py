"""The calls that the driver makes on an actor, in the order in which an actor gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coar_dist.cluster.ranges import WorkRange
from coar_dist.store.storage import Storage


class _Call:
    """One call of an actor's method; as a text what it is for, as errors and the log name it.

    Attributes:
        method: of ``Worker``.
    """

    method: ClassVar[str]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the method is given."""
        return tuple(vars(self).values())


@dataclass(frozen=True)
class AddressCall(_Call):
    """Asks where the actor runs; the answer shows that its process has started."""

    method = "address"
    storage: Storage | None

    def __str__(self) -> str:
        return "the first call"


@dataclass(frozen=True)
class SetupCall(_Call):
    """Prepares the actor for its work."""

    method = "setup"
    task: Any
    job: Any
    num_threads: int

    def __str__(self) -> str:
        return "the set-up"


@dataclass(frozen=True)
class StartCall(_Call):
    """Has one actor find out what all need: the plan, if there is none yet."""

    method = "start"
    request: Any
    num_actors: int
    plan: Any

    def __str__(self) -> str:
        return "the start"


@dataclass(frozen=True)
class UseCall(_Call):
    """Gives the actor the plan."""

    method = "use"
    plan: Any

    def __str__(self) -> str:
        return "the plan"


@dataclass(frozen=True)
class RunCall(_Call):
    """Has the actor compute a range, and write its shard while it computes the next one."""

    method = "run"
    range: WorkRange

    def __str__(self) -> str:
        return str(self.range)


@dataclass(frozen=True)
class FlushCall(_Call):
    """Waits for the last shard to be written."""

    method = "flush"

    def __str__(self) -> str:
        return "the last shard"


Call = AddressCall | SetupCall | StartCall | UseCall | RunCall | FlushCall
