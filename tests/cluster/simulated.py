"""A cluster without Ray, in which actors answer as a script says: the driver and its pool as they are, at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from ray.exceptions import RayTaskError

from coar_dist.cluster.actors import Metrics
from coar_dist.cluster.driver import Driver
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.pool import ActorPool
from coar_dist.cluster.ranges import RangesToDo, WorkRange
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.work import Counts, DriverCallbacks, Origin, SharedPlan, Work
from coar_dist.cluster.worker import Address, Answer, LogLines, StartReport, Worker
from coar_dist.cluster.writing import RangeReport, Written
from coar_dist.config.schema import ClusterConfig

Call = tuple[str, str, tuple[Any, ...]]
"""Actor, method and arguments of a call; what stands for Ray's reference of the answer."""
Script = Callable[[str, str, tuple[Any, ...]], None]
"""Told of a call when its answer is fetched, in order; what it raises is the answer."""
Next = Callable[[Sequence[Call]], int | None]
"""Which of the calls under way is answered next; None: none, for now."""


def task_error(cause: Exception) -> RayTaskError:
    """What Ray raises where an actor's method raised ``cause``."""
    return RayTaskError("method", f"Traceback\n{type(cause).__name__}: {cause}", cause)


@dataclass(frozen=True)
class _Store:
    is_shared: bool
    is_there: Callable[[int], bool]
    storage = SimpleNamespace(where=lambda name: f"/here/{name}")

    def has(self, start: int, stop: int) -> bool:
        return self.is_shared and self.is_there(start)

    def file(self, start: int, stop: int) -> str:
        return f"margins/train/{start}-{stop}"


@dataclass(frozen=True)
class _Job:
    is_shared: bool
    is_there: Callable[[int], bool] = field(default=lambda start: True, compare=False)
    storage = None

    def store(self, name: str) -> Any:
        return _Store(self.is_shared, self.is_there)

    def num_margins(self, work_range: WorkRange) -> int:
        return 7 * work_range.num_units


@dataclass
class Ray:
    """What the pool uses of the package ``ray``."""

    script: Script
    next_of: Next = lambda calls: 0
    seconds_of: Callable[[str], float | None] = lambda name: None
    calls: list[Call] = field(default_factory=list)
    num_nodes: int = 1
    being_written: dict[str, Written] = field(default_factory=dict)
    num_actors: int = 0
    num_waits: int = 0

    def put(self, value: object) -> object:
        return value

    def remote(self, actor: type[Worker]) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._new_actor))

    def _new_actor(self) -> Any:
        name = f"actor-{self.num_actors}"
        self.num_actors += 1

        class Handle:
            def __getattr__(_, method: str) -> Any:
                return SimpleNamespace(remote=lambda *arguments: self._call(name, method, arguments))

        return Handle()

    def _call(self, name: str, method: str, arguments: tuple[Any, ...]) -> Call:
        self.calls.append((name, method, arguments))
        return self.calls[-1]

    def kill(self, handle: object) -> None: ...

    def wait(self, references: Sequence[Call], timeout: float, num_returns: int = 1) -> tuple[list[Call], list[Call]]:
        assert references, "the driver waits for nothing"
        self.num_waits += 1
        assert self.num_waits < 10_000, "the driver does not end"
        chosen = self.next_of(references)
        done = [] if chosen is None else [references[chosen]]  # one answer at a time, whatever is asked
        return done, [call for call in references if call not in done]

    def get(self, call: Call) -> Any:
        self.script(*call)
        match call[1]:
            case "address":
                return Address("host", f"node-{int(call[0].removeprefix('actor-')) % self.num_nodes}")
            case "start":
                return StartReport("plan", ((20, "chosen"),), self.seconds_of(call[0]))
            case "use":
                return self.seconds_of(call[0])
            case "run":
                (work_range,) = call[2]
                written = self.being_written.pop(call[0], ())
                seconds = work_range.num_units * (self.seconds_of(call[0]) or 0.1)
                self.being_written[call[0]] = ((work_range, RangeReport(0.0, seconds, 0.0, None)),)
                return Answer(((20, f"log of {work_range}"),), written)
            case "flush":
                return Answer((), self.being_written.pop(call[0], ()))
        return None


class _Metrics(Metrics):
    """Adds up what is recorded."""

    def __init__(self, found: dict[str, float]) -> None:
        self._found = found

    def count_range(
        self, work_range: WorkRange, num_margins: int, report: RangeReport, is_first: bool, actor: str, node: str
    ) -> None:
        self.add("margins", num_margins * is_first, actor, node)

    def add(self, name: str, value: float, actor: str, node: str) -> None:
        self._found[name] = self._found.get(name, 0.0) + value

    def set_of_run(self, name: str, value: float) -> None:
        self._found[name] = value


@dataclass
class Simulated:
    """What a driver did.

    Attributes:
        calls: in order.
        log: lines that actors logged, with where they come from.
        counts: of the last progress.
        metrics: sums of what was recorded, by name.
        starts: what ``start`` answered.
    """

    calls: list[Call]
    log: list[tuple[str, Origin]] = field(default_factory=list)
    counts: Counts | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    starts: list[Any] = field(default_factory=list)

    def of(self, method: str) -> list[tuple[str, tuple[Any, ...]]]:
        """Actors and arguments of the calls of a method."""
        return [(name, arguments) for name, called, arguments in self.calls if called == method]


def simulate(
    script: Script,
    num_ranges: int = 4,
    plan: SharedPlan | None = None,
    nodes: int = 2,
    is_drained: Callable[[], bool] = lambda: False,
    interruption: Interruption | None = None,
    on_wait: Callable[[], None] = lambda: None,
    is_shared: bool = True,
    is_there: Callable[[int], bool] = lambda start: True,
    next_of: Next = lambda calls: 0,
    seconds_of: Callable[[str], float | None] = lambda name: None,
    **config: Any,
) -> Simulated:
    """Run the driver on ``num_ranges`` ranges of ten masks, with room for ``nodes`` actors of three CPUs.

    Args:
        script: how actors answer.
        num_ranges: how many there are.
        plan: of the work.
        nodes: how many there are.
        is_drained: whether the last one is being drained.
        interruption: how the driver is interrupted, or given notice.
        on_wait: what the driver calls while it waits.
        is_shared: whether the driver sees what actors write.
        is_there: whether the shard of masks from here on is written when the driver looks.
        next_of: the order of the answers, the oldest first; a second goes by with each.
        seconds_of: what an actor takes for a mask; ranges are cut to 5 s.
        config: of the cluster.
    """
    ray = Ray(script, next_of, seconds_of, num_nodes=nodes)
    told = Simulated(ray.calls)
    room: Mapping[str, Mapping[str, float]] = {f"node-{i}": {"CPU": 3.0} for i in range(nodes)}

    def on_log(lines: LogLines, origin: Origin) -> None:
        told.log.extend((text, origin) for _, text in lines)

    def on_progress(counts: Counts) -> None:
        told.counts = counts

    callbacks = DriverCallbacks(on_progress, told.starts.append, on_log, on_wait, lambda cluster: None)
    ranges = RangesToDo({"train": [(0, 10 * num_ranges)]}, {"train": 10}, "masks", {"train": 5.0})
    work = Work("run", Worker, "task", _Job(is_shared, is_there), ranges, plan, "model.rows", predict=lambda: 0.0)
    cluster = Cluster(ClusterConfig(**{"cpus_per_actor": 3, **config}), 0.0, True, interruption or Interruption())

    def staying() -> Mapping[str, Mapping[str, float]]:
        return dict(list(room.items())[: nodes - is_drained()])

    with (
        mock.patch("coar_dist.cluster.pool._POLL_S", 0.0),
        mock.patch("coar_dist.cluster.driver.time", SimpleNamespace(monotonic=lambda: float(ray.num_waits))),
        mock.patch("coar_dist.cluster.pool.ray", ray),
        mock.patch("coar_dist.cluster.pool.alive_nodes", staying),
        mock.patch("coar_dist.cluster.resources.alive_nodes", staying),
    ):
        Driver(ActorPool(cluster, work.actor), cluster.config, work, callbacks, _Metrics(told.metrics)).run()
    return told
