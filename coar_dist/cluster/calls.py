"""The calls that the driver makes on an actor, in the order in which an actor gets them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from coar_dist.cluster.ranges import WorkRange


class _Call(ABC):
    """One call of an actor's method; as a text what it is for, as errors and the log name it."""

    @abstractmethod
    def send(self, handle: Any) -> Any:
        """Make the call on Ray's ``handle`` of an actor, and return Ray's reference of the answer."""


@dataclass(frozen=True)
class AddressCall(_Call):
    """Asks where the actor runs; the answer shows that its process has started."""

    job: Any

    @override
    def send(self, handle: Any) -> Any:
        return handle.address.remote(self.job)

    def __str__(self) -> str:
        return "the first call"


@dataclass(frozen=True)
class SetupCall(_Call):
    """Prepares the actor for its work."""

    task: Any
    job: Any
    num_threads: int

    @override
    def send(self, handle: Any) -> Any:
        return handle.setup.remote(self.task, self.job, self.num_threads)

    def __str__(self) -> str:
        return "the set-up"


@dataclass(frozen=True)
class StartCall(_Call):
    """Has one actor find out what all need: the plan, if there is none yet."""

    request: Any
    num_actors: int
    plan: Any

    @override
    def send(self, handle: Any) -> Any:
        return handle.start.remote(self.request, self.num_actors, self.plan)

    def __str__(self) -> str:
        return "the start"


@dataclass(frozen=True)
class UseCall(_Call):
    """Gives the actor the plan."""

    plan: Any

    @override
    def send(self, handle: Any) -> Any:
        return handle.use.remote(self.plan)

    def __str__(self) -> str:
        return "the plan"


@dataclass(frozen=True)
class RunCall(_Call):
    """Has the actor compute a range and write its shard."""

    range: WorkRange

    @override
    def send(self, handle: Any) -> Any:
        return handle.run.remote(self.range)

    def __str__(self) -> str:
        return str(self.range)


Call = AddressCall | SetupCall | StartCall | UseCall | RunCall
