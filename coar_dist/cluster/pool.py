"""Ray's actors: asked for, alive and gone; as many as the cluster has room for."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import override

from coar_dist.cluster.actors import Actors, CallError, Loss, Member
from coar_dist.cluster.calls import Call
from coar_dist.cluster.packing import packed
from coar_dist.cluster.resources import Cluster, alive_nodes
from coar_dist.cluster.worker import Worker

_POLL_S = 2.0
_log = logging.getLogger(__name__)
_CAUSE_LENGTH = 400
_NO_CAUSE = "The actor died unexpectedly before finishing this task. "


class ActorPool(Actors):
    """Keeps as many actors as are wanted.

    Args:
        cluster: the cluster that they run on.
        actor: their class.
    """

    def __init__(self, cluster: Cluster, actor: type[Worker]) -> None:
        self.members: dict[str, Member] = {}
        self.num_wanted = 0
        self._cluster = cluster
        self._class: Any = ray.remote(actor)
        self._options: dict[str, Any] = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "max_restarts": 0}
        self._num_started = 0
        self._capacity = 0
        self._polled_at = float("-inf")
        self._enough_at = time.monotonic()
        self._in_flight: dict[Any, tuple[str, Call]] = {}  # by Ray's references

    @override
    def share(self, value: Any, whole: bool = False) -> Any:
        return ray.put(packed(value, whole))

    @override
    def resize(self, num_left: int) -> list[Member]:
        """Ask for missing actors; cancel surplus ones that no node has had room for yet."""
        now = time.monotonic()
        if now - self._polled_at >= _POLL_S:
            self._capacity = self._cluster.capacity()
            self._polled_at = now
            self._see_who_leaves()
        if self._cluster.interruption.is_noticed:
            self._let_all_leave()
            return []
        self.num_wanted = self._cluster.num_wanted(self._capacity, num_left)
        num_surplus = self._num_staying - self.num_wanted
        if num_surplus > 0:
            waiting = [name for name, member in self.members.items() if member.address is None]
            for name in waiting[-num_surplus:]:
                self.remove(name)
        new = []
        while self._num_staying < self.num_wanted:
            member = self._ask_for_one()
            self.members[member.name] = member
            new.append(member)
        return new

    @property
    def _num_staying(self) -> int:
        return sum(not member.is_leaving for member in self.members.values())

    def _see_who_leaves(self) -> None:
        staying = [member for member in self.members.values() if member.address is not None and not member.is_leaving]
        nodes = alive_nodes() if staying else {}
        for member in staying:
            if member.node_id not in nodes:
                member.is_leaving = True
                _log.info("%s gets no more ranges: its node is being drained, or is gone", member.name)

    def _let_all_leave(self) -> None:
        """Nobody gets more ranges, and who has not started goes at once."""
        for name, member in list(self.members.items()):
            member.is_leaving = True
            if member.address is None:
                self.remove(name)

    def _ask_for_one(self) -> Member:
        name = f"actor-{self._num_started}"
        self._num_started += 1
        placement, options, node = self._cluster.config.placement, dict(self._options), ""
        if placement is not None:
            node = preferred_node(placement, self._cluster.room_by_node(), [m.node_id for m in self.members.values()])
        if node:  # a wish: other work may have filled it
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        return Member(name, self._class.options(**options).remote(), preferred_node=node)

    @override
    def check(self) -> None:
        self._cluster.raise_if_interrupted()
        if self._cluster.interruption.is_noticed and not self.members:
            raise KeyboardInterrupt

    @override
    def check_alive(self) -> None:
        """``cluster.min_actors`` are enough, and ``cluster.start_timeout_s`` is too long."""
        now = time.monotonic()
        num_alive = sum(member.address is not None for member in self.members.values())
        if num_alive >= min(self._cluster.config.min_actors, self.num_wanted):
            self._enough_at = now
        elif now - self._enough_at > self._cluster.config.start_timeout_s:
            raise self._cluster.too_few_actors(num_alive, self.num_wanted)

    @override
    def call(self, member: Member, call: Call) -> None:
        self._in_flight[getattr(member.handle, call.method).remote(*call.arguments)] = (member.name, call)

    @override
    def answers(self, wait_s: float) -> Iterator[tuple[Member, Call, Any]]:
        references = list(self._in_flight)
        finished, _ = ray.wait(references, timeout=wait_s)
        if finished:
            finished, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in finished:
            name, call = self._in_flight.pop(reference)
            member = self.members.get(name)
            if member is not None:  # else it is already known to be gone
                yield member, call, _answer(member, reference)

    @override
    def remove(self, name: str) -> None:
        ray.kill(self.members.pop(name).handle)


def _answer(member: Member, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        error.cause.__cause__ = error  # which has the actor's traceback
        return CallError(str(error), error.cause)
    except RayError as error:
        return Loss(cause(error), node_died(member, error))


def preferred_node(placement: str, room: Mapping[str, int], taken: Sequence[str]) -> str:
    """The node for one more actor; "" if none has room.

    Args:
        placement: ``pack`` or ``spread``.
        room: actors that each node has room for, by node id.
        taken: the node of each actor that is there already.
    """
    used = Counter(taken)
    free = {node: count - used[node] for node, count in room.items() if count > used[node]}
    first = -1 if placement == "pack" else 1  # fullest or emptiest node; among equals the one with most room
    return min(free, key=lambda node: (first * used[node], -free[node], node), default="")


def node_died(member: Member, error: RayError) -> bool:
    """Whether the actor is gone because its node is.

    Ray takes seconds to declare a node dead; until then its actors, which are never restarted, are "unavailable".
    """
    if isinstance(error, ActorUnavailableError | NodeDiedError) or "its node has died" in str(error):
        return True
    return member.address is not None and member.address.node_id not in alive_nodes()


def cause(error: RayError) -> str:
    """Ray's explanation in one line."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    text = " ".join(" ".join(lines).split()).removeprefix(_NO_CAUSE)
    text = text.split(" Some common causes")[0]  # a paragraph on the kernel's log
    return text if len(text) <= _CAUSE_LENGTH else text[:_CAUSE_LENGTH] + "..."
