"""The ablation driver: hands ranges of masks to Ray actors until every shard is written."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from coar_dist.ablation.actor import AblationActor
from coar_dist.ablation.plan import EnginePlan
from coar_dist.cluster.connection import Cluster, connect
from coar_dist.cluster.metrics import RunMetrics
from coar_dist.cluster.pool import ActorPool, Member, cause, node_died
from coar_dist.cluster.schedule import MaskRange, RangesToDo, Schedule
from coar_dist.cluster.worker import LogLines, RangeReport
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import CoarDistError, RangeFailedError, StorageError, TaskError
from coar_dist.store.shards import ShardFolder
from coar_dist.tasks.task import Task

# Errors of the user's code or input: trying again elsewhere cannot help.
_USER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
_WAIT_S = 0.5
_NUM_LOOKS = 6  # for a node's first shard, half a second apart: network file systems may show it late
_ADDRESS, _SETUP, _START, _USE = "address", "setup", "start", "use"
_log = logging.getLogger(__name__)


class Job(Protocol):
    """What the driver itself asks a job."""

    def store(self, name: str) -> ShardFolder:
        """Where the shards of a ``MaskRange`` of this name go."""

    def num_margins(self, masks: MaskRange) -> int:
        """Margins of a range."""


@dataclass(frozen=True)
class AblationWork:
    """What is to be computed.

    Attributes:
        run: the run's label, in metrics.
        task: what is explained; sent once to every node.
        job: the same for every actor; ``store(name)`` of it says where the shards of a range go.
        ranges: what to compute, in order.
        plan: the engine plan of the run; None lets the first actor choose one.
        expected_masks: how many masks, of all examples, are to be run without and with gradients, those of later calls
            among them: how the passes are run depends on it.
        needs_unablated: whether the first actor runs the unablated model although there is a plan; without a plan it
            does so anyhow.
    """

    run: str
    task: Task
    job: Job
    ranges: RangesToDo
    plan: EnginePlan | None
    expected_masks: tuple[float, float]
    needs_unablated: bool
    actor: type = AblationActor
    """Whose methods the driver calls, with a job to match."""


@dataclass(frozen=True)
class Counts:
    """How far the driver's call is.

    Attributes:
        num_masks: masks done, or examples of baselines.
        num_shards: shards written.
        num_failed: attempts at a shard that raised.
        num_retried: shards handed out again after a failure or a loss.
        num_lost: actors that died.
        num_actors: actors at work.
    """

    num_masks: int
    num_shards: int
    num_failed: int
    num_retried: int
    num_lost: int
    num_actors: int


@dataclass(frozen=True)
class Origin:
    """Whence a line of the log.

    Attributes:
        actor: its name.
        node: its host.
        shard: the file, in the run directory, that it was at work on; None at none.
    """

    actor: str
    node: str
    shard: str | None = None

    def fields(self) -> dict[str, str]:
        """As ``extra`` of a logging call."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class DriverCallbacks:
    """What the driver tells its caller.

    Attributes:
        on_progress: called when something is done.
        on_start: called once with what the first actor's ``start`` gave, where there was anything to find out.
        on_log: called with what an actor logged, and whence it is.
        on_wait: called at least once a second; what it raises ends the run.
        on_join: called once with the name of the cluster, unless this command started it.
    """

    on_progress: Callable[[Counts], None]
    on_start: Callable[[Any], None]
    on_log: Callable[[LogLines, Origin], None]
    on_wait: Callable[[], None]
    on_join: Callable[[str], None]


def run_ranges(config: ClusterConfig, work: AblationWork, callbacks: DriverCallbacks) -> None:
    """Compute all ranges on actors of the cluster; returns when every shard is written.

    Actors are replaced when they die, and added when nodes join. On any error, Ctrl-C included, the actors are stopped
    and what they finished stays.

    Args:
        config: the cluster.
        work: what to compute.
        callbacks: who is told.

    Raises:
        ClusterError: too few actors are alive for ``config.start_timeout_s``, or actors keep dying.
        RangeFailedError: one range, or the set-up of actors, failed ``config.max_attempts`` times.
        StorageError: a node writes its shards where this process does not see them.
        CoarDistError: the user's model or input is at fault; raised at the first occurrence.
        KeyboardInterrupt: SIGINT or SIGTERM came.
    """
    with connect(config) as cluster:
        if not cluster.is_fixed:
            callbacks.on_join(str(cluster))
        _Driver(cluster, work, callbacks).run()


class _Driver:
    def __init__(self, cluster: Cluster, work: AblationWork, callbacks: DriverCallbacks) -> None:
        self._cluster = cluster
        self._job = work.job
        self._callbacks = callbacks
        self._task_reference, self._job_reference = ray.put(work.task), ray.put(work.job)
        self._schedule = Schedule(work.ranges, cluster.config.max_attempts)
        self._num_masks, self._num_masks_done = work.ranges.num_masks, 0
        self._unit = work.ranges.unit
        self._metrics = RunMetrics(work.run)
        self._expected_masks = work.expected_masks
        self._pool = ActorPool(cluster, work.actor)
        self._in_flight: dict[Any, tuple[str, MaskRange | str]] = {}
        self._plan = work.plan
        self._needs_start = work.plan is None or work.needs_unablated
        self._starting: str | None = None  # the actor that runs the unablated model
        self._without_role: list[str] = []  # set up, and neither starting nor using the plan
        self._live: set[str] = set()
        self._hungry: dict[str, None] = {}  # live actors with room for a range, in order
        self._setup_failures = 0  # in a row
        self._seen_nodes: set[str] = set()  # whose shards this process sees
        self._kept_house_at = float("-inf")

    def run(self) -> None:
        try:
            while self._needs_start or not self._schedule.is_done:
                self._keep_house()
                for member in self._pool.resize(self._schedule.num_left):
                    self._call(member, _ADDRESS, self._job_reference)
                finished = self._wait()
                for reference in finished:
                    self._handle(reference, *self._in_flight.pop(reference))
                self._hand_out_work()
                if finished:
                    self._tell()
        finally:
            self._pool.kill_all()
            self._live.clear()
            self._set_gauges()

    def _tell(self) -> None:
        self._set_gauges()
        schedule, num_done = self._schedule, self._num_masks_done
        self._callbacks.on_progress(
            Counts(
                num_done,
                schedule.num_done,
                schedule.num_failed,
                schedule.num_retried,
                schedule.num_lost,
                len(self._live),
            )
        )

    def _set_gauges(self) -> None:
        self._metrics.set_of_run("coar_actors_alive", len(self._live))
        self._metrics.set_of_run(f"coar_{self._unit}_left", self._num_masks - self._num_masks_done)

    def _keep_house(self) -> None:
        self._cluster.raise_if_interrupted()
        now = time.monotonic()
        if now - self._kept_house_at >= _WAIT_S:
            self._kept_house_at = now
            self._pool.check_alive()
            self._callbacks.on_wait()

    def _wait(self) -> list[Any]:
        """All answers that are there, in the order of the calls; at least one, or none in half a second."""
        references = list(self._in_flight)
        finished, _ = ray.wait(references, timeout=_WAIT_S)
        if finished:
            finished, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return finished

    def _call(self, member: Member, work: MaskRange | str, *arguments: Any) -> None:
        method = getattr(member.handle, work if isinstance(work, str) else "run")
        self._in_flight[method.remote(*arguments)] = (member.name, work)

    def _handle(self, reference: Any, name: str, work: MaskRange | str) -> None:
        member = self._pool.members.get(name)
        if member is None:
            return  # of an actor that is already known to be gone
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            self._handle_failure(member, work, error)
        except RayError as error:
            origin = self._origin(member, self._schedule.executing(name))
            _log.warning("%s is lost: %s", name, cause(error), extra=origin.fields())
            self._metrics.add("coar_actors_lost_total", 1, name, origin.node)
            self._schedule.lost(name, cause(error), node_died(member, error))
            self._drop(name)
        else:
            self._handle_result(member, work, result)

    def _handle_result(self, member: Member, work: MaskRange | str, result: Any) -> None:
        name = member.name
        if work == _ADDRESS:
            member.address = result
            self._schedule.joined(name, result.host)
            _log.info("%s has started", name, extra=self._origin(member, work).fields())
            self._call(member, _SETUP, self._task_reference, self._job_reference)
        elif work == _SETUP:
            self._without_role.append(name)
        elif isinstance(work, MaskRange):
            self._hungry[name] = None
            is_first = self._schedule.done(work, name, time.monotonic())
            self._count(work, self._origin(member, work), result, is_first)
            if is_first:
                self._num_masks_done += work.num_masks
                self._check_visible(member, work)
            self._callbacks.on_log(result.log, self._origin(member, work))
        else:
            self._live.add(name)
            self._hungry[name] = None
            self._setup_failures = 0
            if work == _START:
                self._plan = result.plan
                self._needs_start = False
                self._callbacks.on_start(result)
                self._callbacks.on_log(result.log, self._origin(member, work))

    def _count(self, masks: MaskRange, origin: Origin, report: RangeReport, is_first: bool) -> None:
        """Time is spent on every copy of a range; masks count once."""
        figures = {
            "coar_forward_seconds_total": report.forward_s,
            "coar_write_seconds_total": report.write_s,
            "coar_wait_seconds_total": report.wait_s,
        }
        if is_first:
            figures |= {
                "coar_shards_done_total": 1,
                f"coar_{self._unit}_done_total": masks.num_masks,
                "coar_margins_done_total": self._job.num_margins(masks),
            }
        for name, value in figures.items():
            self._metrics.add(name, value, origin.actor, origin.node)
        if report.gpu_memory_bytes is not None:
            peak = report.gpu_memory_bytes
            self._metrics.set_of_actor("coar_gpu_memory_peak_bytes", peak, origin.actor, origin.node)

    def _origin(self, member: Member, work: MaskRange | str | None) -> Origin:
        node = "" if member.address is None else member.address.host
        if not isinstance(work, MaskRange):
            return Origin(member.name, node)
        return Origin(member.name, node, self._job.store(work.design_name).file(work.start, work.stop))

    def _handle_failure(self, member: Member, work: MaskRange | str, error: RayTaskError) -> None:
        if isinstance(work, str) or self._schedule.is_running(work):  # else another actor has done it meanwhile
            if isinstance(error.cause, CoarDistError) and not isinstance(error.cause, StorageError):
                raise error.cause from error
            if isinstance(error.cause, _USER_ERRORS):
                raise TaskError(f"{work}: {type(error.cause).__name__}: {error.cause}") from error
        origin = self._origin(member, work)
        _log.warning("%s raised on %s: %s", work, member.name, _last_line(error), extra=origin.fields())
        if isinstance(work, MaskRange):
            if self._schedule.is_running(work):
                self._metrics.add("coar_shards_failed_total", 1, origin.actor, origin.node)
            try:
                self._schedule.failed(work, member.name, error)
            except RangeFailedError as final:
                if isinstance(error.cause, StorageError):  # the disk of one node may be full, but not of all
                    raise StorageError(
                        f"{work} could not be written by {member.name} and others: {error.cause}"
                    ) from final
                raise
        else:
            self._setup_failures += 1
            if self._setup_failures >= self._cluster.config.max_attempts:
                raise RangeFailedError(
                    f"{self._setup_failures} actors could not be set up; the last error was:\n{error}"
                ) from error
        self._schedule.left(member.name)
        self._drop(member.name)  # a CUDA error leaves a useless process

    def _drop(self, name: str) -> None:
        self._pool.remove(name)
        self._live.discard(name)
        self._hungry.pop(name, None)
        if name in self._without_role:
            self._without_role.remove(name)
        if self._starting == name:
            self._starting = None

    def _hand_out_work(self) -> None:
        if self._needs_start and self._starting is None and self._without_role:
            self._starting = self._without_role.pop(0)
            num_actors = self._pool.num_wanted
            plain, with_gradients = (math.ceil(count / num_actors) for count in self._expected_masks)
            self._call(self._pool.members[self._starting], _START, max(plain, 1), with_gradients, self._plan)
        if self._plan is not None:
            for name in self._without_role:
                self._call(self._pool.members[name], _USE, self._plan)
            self._without_role = []
        # A range that queues on one actor cannot move to an idle one, so at the end none queues.
        most = self._cluster.config.ranges_in_flight
        limit = most if self._schedule.num_pending > len(self._live) else 1
        now = time.monotonic()
        for name in list(self._hungry):
            while self._schedule.num_in_flight(name) < limit:
                num_retried = self._schedule.num_retried
                masks = self._schedule.next_for(name, now)
                if masks is None:
                    break
                if self._schedule.num_retried > num_retried:
                    origin = self._origin(self._pool.members[name], masks)
                    _log.info("%s is tried again by %s", masks, name, extra=origin.fields())
                    self._metrics.add("coar_shards_retried_total", 1, name, origin.node)
                self._call(self._pool.members[name], masks, masks)
            if self._schedule.num_in_flight(name) >= most:
                del self._hungry[name]

    def _check_visible(self, member: Member, masks: MaskRange) -> None:
        """A node's first shard shows whether it writes to the run directory that this process sees."""
        assert member.address is not None
        if member.address.node_id in self._seen_nodes:
            return
        store = self._job.store(masks.design_name)
        for _ in range(_NUM_LOOKS):
            if store.has(masks.start, masks.stop):
                self._seen_nodes.add(member.address.node_id)
                return
            self._keep_house()
            time.sleep(_WAIT_S)
        where = store.storage.where(store.file(masks.start, masks.stop))
        raise StorageError(
            f"node {member.address.host} computed {masks}, but {where} is not there for the driver: it wrote to a "
            f"directory of its own. Set run.dir to a file system that all nodes share, or to an s3:// or gs:// address."
        )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
