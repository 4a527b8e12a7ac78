"""The driver: hands ranges of work to Ray actors until every shard is written."""

from __future__ import annotations

import logging
import time
from typing import Any, assert_never

import ray
from ray.exceptions import RayError, RayTaskError

from coar_dist.cluster.calls import AddressCall, Call, RunCall, SetupCall, StartCall, UseCall
from coar_dist.cluster.connection import connect
from coar_dist.cluster.metrics import RunMetrics
from coar_dist.cluster.plan_sharing import PlanSharing
from coar_dist.cluster.pool import ActorPool, Member, cause, node_died
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.schedule import Schedule
from coar_dist.cluster.visibility import require_shard
from coar_dist.cluster.work import Counts, DriverCallbacks, Origin, Work
from coar_dist.cluster.worker import RangeReport, StartReport
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import CoarDistError, RangeFailedError, StorageError, TaskError, counted

# Errors of the user's code or input: trying again elsewhere cannot help.
_USER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
_WAIT_S = 0.5
_log = logging.getLogger(__name__)


def run_ranges(config: ClusterConfig, work: Work, callbacks: DriverCallbacks) -> None:
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
    def __init__(self, cluster: Cluster, work: Work, callbacks: DriverCallbacks) -> None:
        self._cluster, self._job, self._callbacks = cluster, work.job, callbacks
        self._task_reference, self._job_reference = ray.put(work.task), ray.put(work.job)
        self._schedule = Schedule(work.ranges, cluster.config.max_attempts, memory_key=work.memory_key)
        self._plan = None if work.plan is None else PlanSharing(work.plan)
        self._pool = ActorPool(cluster, work.actor)
        self._metrics = RunMetrics(work.run)
        self._unit, self._num_units, self._num_units_done = work.ranges.unit, work.ranges.num_units, 0
        self._in_flight: dict[Any, tuple[str, Call]] = {}  # by Ray's references
        self._live: set[str] = set()  # actors that ranges can go to
        self._hungry: dict[str, None] = {}  # those with room for a range, in order
        self._setup_failures = 0  # in a row
        self._seen_nodes: set[str] = set()  # whose shards this process sees
        self._kept_house_at = float("-inf")

    def run(self) -> None:
        try:
            while not self._is_done:
                self._keep_house()
                for member in self._pool.resize(self._schedule.num_left):
                    self._call(member, AddressCall(self._job_reference))
                finished = self._wait()
                for reference in finished:
                    self._take_answer(reference, *self._in_flight.pop(reference))
                self._share_plan()
                self._hand_out_ranges()
                if finished:
                    self._tell()
        finally:
            self._pool.kill_all()
            self._live.clear()
            self._set_gauges()

    @property
    def _is_done(self) -> bool:
        return self._schedule.is_done and not (self._plan is not None and self._plan.needs_start)

    def _keep_house(self) -> None:
        self._cluster.raise_if_interrupted()
        now = time.monotonic()
        if now - self._kept_house_at >= _WAIT_S:
            self._kept_house_at = now
            self._pool.check_alive()
            self._callbacks.on_wait()

    def _call(self, member: Member, call: Call) -> None:
        self._in_flight[call.send(member.handle)] = (member.name, call)

    def _wait(self) -> list[Any]:
        """All answers that are there, in the order of the calls; at least one, or none in half a second."""
        references = list(self._in_flight)
        finished, _ = ray.wait(references, timeout=_WAIT_S)
        if finished:
            finished, _ = ray.wait(references, num_returns=len(references), timeout=0)
        return finished

    def _take_answer(self, reference: Any, name: str, call: Call) -> None:
        member = self._pool.members.get(name)
        if member is None:
            return  # of an actor that is already known to be gone
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            self._take_failure(member, call, error)
        except RayError as error:
            self._take_loss(member, error)
        else:
            self._take_result(member, call, answer)

    def _take_result(self, member: Member, call: Call, answer: Any) -> None:
        match call:
            case AddressCall():
                member.address = answer
                self._schedule.joined(member.name, answer.host)
                _log.info("%s has started", member.name, extra=self._origin(member).fields())
                self._call(member, SetupCall(self._task_reference, self._job_reference, self._cluster.num_cpus))
            case SetupCall():
                if self._plan is None:
                    self._now_live(member)
                else:
                    self._plan.joined(member.name)
            case StartCall():
                self._take_start(member, answer)
            case UseCall():
                self._now_live(member)
            case RunCall():
                self._take_range(member, call.range, answer)
            case _:
                assert_never(call)

    def _now_live(self, member: Member) -> None:
        self._live.add(member.name)
        self._hungry[member.name] = None
        self._setup_failures = 0

    def _take_start(self, member: Member, report: StartReport) -> None:
        assert self._plan is not None
        self._plan.started(report.plan)
        self._now_live(member)
        self._callbacks.on_start(report)
        self._callbacks.on_log(report.log, self._origin(member))

    def _take_range(self, member: Member, work_range: WorkRange, report: RangeReport) -> None:
        self._hungry[member.name] = None
        is_first = self._schedule.done(work_range, member.name, time.monotonic())
        origin = self._origin(member, work_range)
        num_margins = self._job.num_margins(work_range)
        self._metrics.count_range(work_range, num_margins, report, is_first, origin.actor, origin.node)
        if is_first:
            self._num_units_done += work_range.num_units
            self._check_visible(member, work_range)
        self._callbacks.on_log(report.log, origin)

    def _check_visible(self, member: Member, work_range: WorkRange) -> None:
        """A node's first shard shows whether it writes to the run directory that this process sees."""
        assert member.address is not None
        node = member.address
        if node.node_id not in self._seen_nodes:
            require_shard(self._job.store(work_range.store_name), work_range, node.host, self._keep_house)
            self._seen_nodes.add(node.node_id)

    def _take_loss(self, member: Member, error: RayError) -> None:
        name = member.name
        origin = self._origin(member, self._schedule.executing(name))
        _log.warning("%s is lost: %s", name, cause(error), extra=origin.fields())
        self._metrics.add("coar_actors_lost_total", 1, name, origin.node)
        self._schedule.lost(name, cause(error), node_died(member, error))
        self._drop(name)

    def _take_failure(self, member: Member, call: Call, error: RayTaskError) -> None:
        work_range = call.range if isinstance(call, RunCall) else None
        is_running = work_range is None or self._schedule.is_running(work_range)  # else another actor has done it
        if is_running and isinstance(error.cause, CoarDistError) and not isinstance(error.cause, StorageError):
            raise error.cause from error
        if is_running and isinstance(error.cause, _USER_ERRORS):
            raise TaskError(f"{call}: {type(error.cause).__name__}: {error.cause}") from error
        origin = self._origin(member, work_range)
        _log.warning("%s raised on %s: %s", call, member.name, _last_line(error), extra=origin.fields())
        if work_range is None:
            self._setup_failures += 1
            if self._setup_failures >= self._cluster.config.max_attempts:
                raise RangeFailedError(
                    f"{counted(self._setup_failures, 'actor')} could not be set up; the last error was:\n{error}"
                ) from error
        else:
            if is_running:
                self._metrics.add("coar_shards_failed_total", 1, origin.actor, origin.node)
            self._count_failure(member, work_range, error)
        self._schedule.left(member.name)
        self._drop(member.name)  # a CUDA error leaves a useless process

    def _count_failure(self, member: Member, work_range: WorkRange, error: RayTaskError) -> None:
        try:
            self._schedule.failed(work_range, member.name, error)
        except RangeFailedError as final:
            if isinstance(error.cause, StorageError):  # one node's disk may be full, but not everyone's
                raise StorageError(
                    f"{work_range} could not be written by {member.name} and others: {error.cause}"
                ) from final
            raise

    def _drop(self, name: str) -> None:
        self._pool.remove(name)
        self._live.discard(name)
        self._hungry.pop(name, None)
        if self._plan is not None:
            self._plan.left(name)

    def _share_plan(self) -> None:
        if self._plan is not None:
            for name, call in self._plan.next_calls(self._pool.num_wanted):
                self._call(self._pool.members[name], call)

    def _hand_out_ranges(self) -> None:
        # A range that queues on one actor cannot move to an idle one, so at the end none queues.
        most = self._cluster.config.ranges_in_flight
        limit = most if self._schedule.num_pending > len(self._live) else 1
        now = time.monotonic()
        for name in list(self._hungry):
            member = self._pool.members[name]
            while self._schedule.num_in_flight(name) < limit:
                num_retried = self._schedule.num_retried
                work_range = self._schedule.next_for(name, now)
                if work_range is None:
                    break
                if self._schedule.num_retried > num_retried:
                    origin = self._origin(member, work_range)
                    _log.info("%s is tried again by %s", work_range, name, extra=origin.fields())
                    self._metrics.add("coar_shards_retried_total", 1, name, origin.node)
                self._call(member, RunCall(work_range))
            if self._schedule.num_in_flight(name) >= most:
                del self._hungry[name]

    def _tell(self) -> None:
        self._set_gauges()
        schedule = self._schedule
        counts = (schedule.num_done, schedule.num_failed, schedule.num_retried, schedule.num_lost)
        self._callbacks.on_progress(Counts(self._num_units_done, *counts, len(self._live)))

    def _set_gauges(self) -> None:
        self._metrics.set_of_run("coar_actors_alive", len(self._live))
        self._metrics.set_of_run(f"coar_{self._unit}_left", self._num_units - self._num_units_done)

    def _origin(self, member: Member, work_range: WorkRange | None = None) -> Origin:
        node = "" if member.address is None else member.address.host
        if work_range is None:
            return Origin(member.name, node)
        file = self._job.store(work_range.store_name).file(work_range.start, work_range.stop)
        return Origin(member.name, node, file)


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
