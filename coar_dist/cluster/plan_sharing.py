"""Which actor chooses the engine plan, and which ones wait for it: without Ray, so that it can be tested alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coar_dist.cluster.calls import StartCall, UseCall
from coar_dist.cluster.work import SharedPlan


class PlanSharing:
    """Makes sure that one actor runs ``start``, if that is needed, and that every other one gets the plan.

    Args:
        shared: the plan, or the wish for one.
    """

    def __init__(self, shared: SharedPlan) -> None:
        self._request, self._plan = shared.request, shared.value
        self._needs_start = shared.needs_start
        self._starting: str | None = None
        self._waiting: list[str] = []

    @property
    def needs_start(self) -> bool:
        """Whether no actor has answered ``start`` yet, although one is to."""
        return self._needs_start

    def joined(self, actor: str) -> None:
        """The actor is set up."""
        self._waiting.append(actor)

    def started(self, plan: Any) -> None:
        """An actor has answered ``start``, and uses ``plan``."""
        self._plan, self._needs_start = plan, False

    def left(self, actor: str) -> None:
        """The actor is gone; if it ran ``start``, another one will."""
        if actor in self._waiting:
            self._waiting.remove(actor)
        if self._starting == actor:
            self._starting = None

    def next_calls(self, num_actors: int) -> Iterator[tuple[str, StartCall | UseCall]]:
        """What to call on which actor now, once for each; ``num_actors`` will share the work."""
        if self._needs_start and self._starting is None and self._waiting:
            self._starting = self._waiting.pop(0)
            yield self._starting, StartCall(self._request, num_actors, self._plan)
        if self._plan is not None:
            while self._waiting:
                yield self._waiting.pop(0), UseCall(self._plan)
