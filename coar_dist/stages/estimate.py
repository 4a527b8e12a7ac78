"""What a run would take: its passes, the time of each, and how many actors share them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Load:
    """Work of one kind.

    Attributes:
        name: for people.
        unit: what is counted, ``masks`` or ``examples``.
        num_total: units that the run asks for.
        num_missing: units that it lacks.
        range_passes: forward passes of one example in each missing range.
        cost: what one of these passes costs, in passes without gradients.
        num_bytes: size of the missing shards.
    """

    name: str
    unit: str
    num_total: float
    num_missing: float
    range_passes: Sequence[float]
    cost: float
    num_bytes: int

    @property
    def passes(self) -> float:
        """Forward passes of one example each that are missing."""
        return sum(self.range_passes)

    def with_more(self, other: Load) -> Load:
        """This and another load of the same name, unit and cost."""
        return replace(
            self,
            num_total=self.num_total + other.num_total,
            num_missing=self.num_missing + other.num_missing,
            range_passes=[*self.range_passes, *other.range_passes],
            num_bytes=self.num_bytes + other.num_bytes,
        )


@dataclass(frozen=True)
class Estimate:
    """What is missing of a run, and what it takes on a cluster.

    Attributes:
        loads: what is missing, in the order in which it is done.
        num_examples: examples of the task.
        seconds_per_pass: what one actor takes for one example under one mask.
        gradient_cost: what a pass with gradients costs, in passes without; None where there are none.
        num_actors: actors that share the work.
        gpus_per_actor: GPUs of one actor, possibly a fraction.
        start_s: seconds from the start to the first mask: actors, model, choice of the engine plan.
        price_per_hour: what an actor costs, in USD; None where it is not known.
        budget_passes: passes of one example that a budget will add, whose kind only its pilot will tell.
    """

    loads: tuple[Load, ...]
    num_examples: int
    seconds_per_pass: float
    gradient_cost: float | None
    num_actors: int
    gpus_per_actor: float
    start_s: float
    price_per_hour: float | None
    budget_passes: float = 0.0

    def with_budget(self, budget: float, names: Sequence[str]) -> Estimate:
        """With what a budget adds to its pilot.

        Args:
            budget: in passes of all examples without gradients.
            names: the names of the pilot's loads.
        """
        pilot = sum(load.num_total * load.cost for load in self.loads if load.name in names)
        return replace(self, budget_passes=max(budget - pilot, 0.0) * self.num_examples)

    @property
    def masks_per_second(self) -> float:
        """Masks, of all examples and without gradients, that one actor does in a second."""
        return 1.0 / (self.seconds_per_pass * self.num_examples)

    def seconds_of(self, load: Load) -> float:
        """Seconds that one actor needs for a load."""
        return load.passes * load.cost * self.seconds_per_pass

    @property
    def work_s(self) -> float:
        """Seconds from the first mask to the last shard; baselines of examples begin when all masks are done."""
        seconds = self.budget_passes * self.seconds_per_pass / self.num_actors
        for unit in ("masks", "examples"):
            loads = [load for load in self.loads if load.unit == unit]
            times = (size * load.cost * self.seconds_per_pass for load in loads for size in load.range_passes)
            seconds += makespan(times, self.num_actors)
        return seconds

    @property
    def wall_hours(self) -> float:
        """From the start to the last shard."""
        return (self.start_s + self.work_s) / _HOUR_S

    @property
    def actor_hours(self) -> float:
        """All actors, for as long as the run lasts."""
        return self.num_actors * self.wall_hours

    @property
    def gpu_hours(self) -> float:
        """GPUs of all actors, for as long as the run lasts."""
        return self.actor_hours * self.gpus_per_actor

    @property
    def price(self) -> float | None:
        """In USD; None where an actor's price is not known."""
        return None if self.price_per_hour is None else self.actor_hours * self.price_per_hour

    @property
    def num_bytes(self) -> int:
        """Bytes of the missing shards; those that a budget adds are not known."""
        return sum(load.num_bytes for load in self.loads)


def makespan(seconds: Iterable[float], num_actors: int) -> float:
    """Seconds until all ranges are done, when each, in order, goes to the actor that is free first.

    Args:
        seconds: how long one actor takes for each range.
        num_actors: how many there are, at least 1.
    """
    free_at = [0.0] * num_actors
    for duration in seconds:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)
