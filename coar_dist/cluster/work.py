"""What the driver is asked to do, and what it tells while it does it. Nothing here needs Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from coar_dist.cluster.job import Job
from coar_dist.cluster.place import Predict
from coar_dist.cluster.ranges import RangesToDo

if TYPE_CHECKING:  # torch takes seconds to load
    from coar_dist.cluster.worker import LogLines, Worker


@dataclass(frozen=True)
class SharedPlan:
    """A plan that all actors take over before their first range.

    Attributes:
        value: the plan, any value that can be pickled; None: the actor that runs ``start`` chooses it.
        request: what ``start`` is told of the work, any value that can be pickled.
        must_start: one actor runs ``start`` even though there is a plan, for what else it finds out.
    """

    value: Any
    request: Any
    must_start: bool = False

    @property
    def needs_start(self) -> bool:
        """Whether one actor is to run ``start``."""
        return self.value is None or self.must_start


@dataclass(frozen=True)
class Work:
    """What is to be computed, and by what kind of actor.

    Attributes:
        run: the run's label, in metrics.
        actor: the class of the actors.
        task: what they compute on; it goes to every node once.
        job: what else they are told, the same for all.
        ranges: what to compute, in order.
        plan: the plan that they share; None where they need none.
        memory_key: the configuration key to lower where actors run out of memory; errors name it.
        predict: about how long it takes in the calling process.
    """

    run: str
    actor: type[Worker]
    task: Any
    job: Job
    ranges: RangesToDo
    plan: SharedPlan | None
    memory_key: str
    predict: Predict


@dataclass(frozen=True)
class Counts:
    """How far the work is.

    Attributes:
        num_units: units done, of those that the ranges count.
        num_shards: shards written.
        num_failed: attempts at a shard that raised.
        num_retried: shards handed out again after a failure or a loss.
        num_lost: actors that died.
        num_actors: actors at work.
    """

    num_units: int
    num_shards: int
    num_failed: int
    num_retried: int
    num_lost: int
    num_actors: int


@dataclass(frozen=True)
class Origin:
    """Where a line of the log comes from.

    Attributes:
        actor: its name.
        node: its host.
        shard: the file in the run directory that it was working on; None where there was none.
    """

    actor: str
    node: str
    shard: str | None = None

    def fields(self) -> dict[str, str]:
        """The values that there are, as ``extra`` of a logging call."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class DriverCallbacks:
    """What the driver tells its caller.

    Attributes:
        on_progress: called when something is done.
        on_start: called once with what the actor's class returns from ``start``, if the work needs it.
        on_log: called with what an actor logged.
        on_wait: called at least once a second; what it raises ends the work.
        on_join: called once with the name of the cluster, unless this command started it.
    """

    on_progress: Callable[[Counts], None]
    on_start: Callable[[Any], None]
    on_log: Callable[[LogLines, Origin], None]
    on_wait: Callable[[], None]
    on_join: Callable[[str], None]
