"""What the driver needs of actors, wherever they run. Nothing here needs Ray."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coar_dist.cluster.calls import Call
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import Address
from coar_dist.cluster.writing import RangeReport


@dataclass
class Member:
    """One actor.

    Attributes:
        name: in errors and in the schedule.
        handle: what calls go to.
        address: where it runs; None until its process has answered.
        preferred_node: the node that it was asked to run on; "" is any.
        is_leaving: whether its node will soon be gone: it is to finish what it has, and to get no more.
    """

    name: str
    handle: Any
    address: Address | None = None
    preferred_node: str = ""
    is_leaving: bool = False

    @property
    def node_id(self) -> str:
        """The node where it runs, or is likely to."""
        return self.address.node_id if self.address is not None else self.preferred_node


class CallError(Exception):
    """What a call raised in the actor; as a text with the actor's traceback.

    Attributes:
        cause: the exception.
    """

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass(frozen=True)
class Loss:
    """The answer of an actor whose process is gone.

    Attributes:
        cause: why, in one line.
        node_died: whether its node is gone, too.
    """

    cause: str
    node_died: bool


class Actors(ABC):
    """Actors of one class, as many as are wanted and as there is room for.

    Attributes:
        members: those that were asked for and are not gone, by name.
        num_wanted: how many are wanted at the moment.
    """

    members: dict[str, Member]
    num_wanted: int

    @abstractmethod
    def share(self, value: Any, whole: bool = False) -> Any:
        """What stands for ``value`` among the arguments of many calls: it goes to every node once.

        Args:
            value: anything that can be pickled.
            whole: whether everything in it is sent, even what actors could find by themselves.
        """

    @abstractmethod
    def resize(self, num_left: int) -> list[Member]:
        """Ask for missing actors, where ``num_left`` ranges are not done, and see which ones are leaving.

        Returns:
            The new ones.
        """

    @abstractmethod
    def check(self) -> None:
        """Check that the work may go on.

        Raises:
            KeyboardInterrupt: the user wants to stop; after notice, when all actors have finished what they had.
        """

    @abstractmethod
    def check_alive(self) -> None:
        """Check that enough actors are alive.

        Raises:
            ClusterError: they have not been for too long.
        """

    @abstractmethod
    def call(self, member: Member, call: Call) -> None:
        """Make a call; ``answers`` has what comes of it."""

    @abstractmethod
    def answers(self, wait_s: float) -> Iterator[tuple[Member, Call, Any]]:
        """The answers that are there, in the order of the calls; at least one, or none in ``wait_s`` seconds.

        An answer may be a ``CallError`` or a ``Loss``. Actors that are gone have none.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Stop an actor, if it is still alive."""

    def remove_all(self) -> None:
        """Stop all actors, without waiting for them."""
        for name in list(self.members):
            self.remove(name)


class Metrics:
    """What a run tells of itself while it is at work: nobody, where no exporter runs."""

    def count_range(
        self, work_range: WorkRange, num_margins: int, report: RangeReport, is_first: bool, actor: str, node: str
    ) -> None:
        """Count a range that an actor has done.

        Args:
            work_range: the range.
            num_margins: margins of it.
            report: where the actor's time went.
            is_first: whether no other actor has done it before: time is spent on every copy, but a range counts once.
            actor: its name.
            node: its host.
        """

    def add(self, name: str, value: float, actor: str, node: str) -> None:
        """Add ``value`` to what an actor has done."""

    def set_of_run(self, name: str, value: float) -> None:
        """Set a gauge of the whole run."""
