"""The driver: hands ranges of work to actors, wherever they run, until every shard is written."""

from __future__ import annotations

import logging
import time
from typing import Any, assert_never

from coar_dist.cluster.actors import Actors, CallError, Loss, Member, Metrics
from coar_dist.cluster.calls import AddressCall, Call, FlushCall, RunCall, SetupCall, StartCall, UseCall
from coar_dist.cluster.plan_sharing import PlanSharing
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.schedule import Schedule
from coar_dist.cluster.visibility import require_shard
from coar_dist.cluster.work import Counts, DriverCallbacks, Origin, Work
from coar_dist.cluster.worker import Answer, StartReport
from coar_dist.cluster.writing import RangeReport, WriteError
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import CoarDistError, NotOnThisNodeError, RangeFailedError, StorageError, TaskError, counted

# Errors of the user's code or input: trying again elsewhere cannot help.
_USER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
_WAIT_S = 0.5
_log = logging.getLogger(__name__)


class Driver:
    """Hands out the ranges of one work. Actors are replaced when they die, and added where room for them appears.

    Args:
        actors: of the work's class.
        config: how often a range may fail, how many an actor is given at a time, and the threads of an actor.
        work: what to compute.
        callbacks: who is told.
        metrics: what counts the work.
    """

    def __init__(
        self, actors: Actors, config: ClusterConfig, work: Work, callbacks: DriverCallbacks, metrics: Metrics
    ) -> None:
        self._actors, self._config, self._job, self._callbacks = actors, config, work.job, callbacks
        self._task = work.task
        self._share(whole=False)
        self._schedule = Schedule(work.ranges, config.max_attempts, memory_key=work.memory_key)
        self._plan = None if work.plan is None else PlanSharing(work.plan)
        self._metrics = metrics
        self._unit, self._num_units, self._num_units_done = work.ranges.unit, work.ranges.num_units, 0
        self._live: set[str] = set()  # actors that ranges can go to
        self._hungry: dict[str, None] = {}  # those with room for a range, in order
        self._flushing: set[str] = set()  # those that were asked to
        self._setup_failures = 0  # in a row
        self._seen_nodes: set[str] = set()  # whose shards this process sees
        self._kept_house_at = float("-inf")

    def run(self) -> None:
        """Return when every shard is written. On any error the actors are stopped, and what they finished stays.

        Raises:
            ClusterError: too few actors are alive for ``config.start_timeout_s``, or actors keep dying.
            RangeFailedError: one range, or the set-up of actors, failed ``config.max_attempts`` times.
            StorageError: a node writes its shards where this process does not see them.
            CoarDistError: the user's model or input is at fault; raised at the first occurrence.
            KeyboardInterrupt: SIGINT or SIGTERM came.
        """
        try:
            while not self._is_done:
                self._keep_house()
                for member in self._actors.resize(self._schedule.num_left):
                    self._actors.call(member, AddressCall(self._job.storage))
                has_news = self._take_answers()
                self._share_plan()
                self._hand_out_ranges()
                if has_news:
                    self._tell()
        finally:
            self._actors.remove_all()
            self._live.clear()
            self._set_gauges()

    @property
    def _is_done(self) -> bool:
        return self._schedule.is_done and not (self._plan is not None and self._plan.needs_start)

    def _keep_house(self) -> None:
        self._actors.check()
        now = time.monotonic()
        if now - self._kept_house_at >= _WAIT_S:
            self._kept_house_at = now
            self._actors.check_alive()
            self._callbacks.on_wait()

    def _take_answers(self) -> bool:
        """Whether there were any. Nothing is kept of them: an error may hold all memory of an actor."""
        num_answers = 0
        for member, call, answer in self._actors.answers(_WAIT_S):
            self._take_answer(member, call, answer)
            num_answers += 1
        return num_answers > 0

    def _take_answer(self, member: Member, call: Call, answer: Any) -> None:
        match answer:
            case CallError():
                self._take_failure(member, call, answer)
            case Loss():
                self._take_loss(member, answer)
            case _:
                self._take_result(member, call, answer)

    def _take_result(self, member: Member, call: Call, answer: Any) -> None:
        match call:
            case AddressCall():
                member.address = answer
                self._schedule.joined(member.name, answer.host)
                _log.info("%s has started", member.name, extra=self._origin(member).fields())
                self._set_up(member)
            case SetupCall():
                if self._plan is None:
                    self._now_live(member)
                else:
                    self._plan.joined(member.name)
            case StartCall():
                self._take_start(member, answer)
            case UseCall():
                self._take_speed(member, answer)
                self._now_live(member)
            case RunCall():
                self._hungry[member.name] = None
                self._schedule.computed(call.range, member.name, time.monotonic())
                self._take_written(member, answer)
                self._callbacks.on_log(answer.log, self._origin(member, call.range))
            case FlushCall():
                self._flushing.discard(member.name)
                self._take_written(member, answer)
                self._callbacks.on_log(answer.log, self._origin(member))
            case _:
                assert_never(call)

    def _now_live(self, member: Member) -> None:
        self._live.add(member.name)
        self._hungry[member.name] = None
        self._setup_failures = 0

    def _take_start(self, member: Member, report: StartReport) -> None:
        assert self._plan is not None
        self._plan.started(report.plan)
        self._take_speed(member, report.seconds_per_unit)
        self._now_live(member)
        self._callbacks.on_start(report)
        self._callbacks.on_log(report.log, self._origin(member))

    def _take_speed(self, member: Member, seconds_per_unit: float | None) -> None:
        if seconds_per_unit is not None:
            self._schedule.pace.timed(member.name, seconds_per_unit)

    def _take_written(self, member: Member, answer: Answer) -> None:
        for work_range, report in answer.written:
            self._schedule.pace.measured(member.name, work_range, report.forward_s)
            self._count(member, work_range, report)

    def _count(self, member: Member, work_range: WorkRange, report: RangeReport) -> None:
        """A range's shard is written."""
        is_first = self._schedule.done(work_range, member.name)
        origin = self._origin(member, work_range)
        num_margins = self._job.num_margins(work_range)
        self._metrics.count_range(work_range, num_margins, report, is_first, origin.actor, origin.node)
        if is_first:
            self._num_units_done += work_range.num_units
            self._check_visible(member, work_range)

    def _count_untold(self, member: Member) -> None:
        """An actor that is gone may have written its last shard; where its time went, nobody knows."""
        for work_range in self._schedule.unwritten(member.name):
            if self._job.store(work_range.store_name).has(work_range.start, work_range.stop):
                self._count(member, work_range, RangeReport(0.0, 0.0, 0.0, None))

    def _check_visible(self, member: Member, work_range: WorkRange) -> None:
        """A node's first shard shows whether it writes to the run directory that this process sees."""
        assert member.address is not None
        node = member.address
        if node.node_id not in self._seen_nodes:
            require_shard(self._job.store(work_range.store_name), work_range, node.host, self._keep_house)
            self._seen_nodes.add(node.node_id)

    def _take_loss(self, member: Member, loss: Loss) -> None:
        name = member.name
        origin = self._origin(member, self._schedule.executing(name))
        _log.warning("%s is lost: %s", name, loss.cause, extra=origin.fields())
        self._metrics.add("coar_actors_lost_total", 1, name, origin.node)
        self._count_untold(member)
        self._schedule.lost(name, loss.cause, loss.node_died)
        self._drop(name)

    def _take_failure(self, member: Member, call: Call, error: CallError) -> None:
        if isinstance(error.cause, NotOnThisNodeError) and isinstance(call, SetupCall):
            self._send_whole(member, call, error.cause)
            return
        work_range = call.range if isinstance(call, RunCall) else None
        if isinstance(error.cause, WriteError):
            work_range, error = error.cause.work_range, CallError(str(error), error.cause.error)
        is_running = work_range is None or self._schedule.is_running(work_range)  # else another actor has done it
        if is_running and isinstance(error.cause, CoarDistError) and not isinstance(error.cause, StorageError):
            raise error.cause
        if is_running and isinstance(error.cause, _USER_ERRORS):
            raise TaskError(f"{work_range or call}: {type(error.cause).__name__}: {error.cause}") from error.cause
        origin = self._origin(member, work_range)
        _log.warning("%s raised on %s: %s", work_range or call, member.name, _last_line(error), extra=origin.fields())
        if work_range is None:
            self._setup_failures += 1
            if self._setup_failures >= self._config.max_attempts:
                raise RangeFailedError(
                    f"{counted(self._setup_failures, 'actor')} could not be set up; the last error was:\n{error}"
                ) from error
        else:
            if is_running:
                self._metrics.add("coar_shards_failed_total", 1, origin.actor, origin.node)
            self._count_failure(member, work_range, error)
        self._count_untold(member)
        self._schedule.left(member.name)
        self._drop(member.name)  # a CUDA error leaves a useless process

    def _send_whole(self, member: Member, call: SetupCall, cause: NotOnThisNodeError) -> None:
        """Set the actor up by what has everything in it; so from now on all."""
        if call.task is self._shared_task:
            _log.info("%s: %s. Model and examples are sent.", member.name, cause, extra=self._origin(member).fields())
            self._share(whole=True)
        self._set_up(member)

    def _share(self, whole: bool) -> None:
        self._shared_task, self._shared_job = (self._actors.share(each, whole) for each in (self._task, self._job))

    def _set_up(self, member: Member) -> None:
        self._actors.call(member, SetupCall(self._shared_task, self._shared_job, self._config.cpus_per_actor))

    def _count_failure(self, member: Member, work_range: WorkRange, error: CallError) -> None:
        try:
            self._schedule.failed(work_range, member.name, error)
        except RangeFailedError as final:
            if isinstance(error.cause, StorageError):  # one node's disk may be full, but not everyone's
                raise StorageError(
                    f"{work_range} could not be written by {member.name} and others: {error.cause}"
                ) from final
            raise

    def _drop(self, name: str) -> None:
        self._actors.remove(name)
        self._live.discard(name)
        self._hungry.pop(name, None)
        self._flushing.discard(name)
        if self._plan is not None:
            self._plan.left(name)

    def _share_plan(self) -> None:
        if self._plan is not None:
            for name, call in self._plan.next_calls(self._actors.num_wanted):
                self._actors.call(self._actors.members[name], call)

    def _hand_out_ranges(self) -> None:
        # A range that queues on one actor cannot move to an idle one, so at the end none queues.
        most = self._config.ranges_in_flight
        limit = most if self._schedule.num_pending > len(self._live) else 1
        now = time.monotonic()
        for name in list(self._hungry):
            member = self._actors.members[name]
            while self._schedule.num_in_flight(name) < limit and not member.is_leaving:
                num_retried = self._schedule.num_retried
                work_range = self._schedule.next_for(name, now)
                if work_range is None:
                    break
                if self._schedule.num_retried > num_retried:
                    origin = self._origin(member, work_range)
                    _log.info("%s is tried again by %s", work_range, name, extra=origin.fields())
                    self._metrics.add("coar_shards_retried_total", 1, name, origin.node)
                self._actors.call(member, RunCall(work_range))
            num_in_flight = self._schedule.num_in_flight(name)
            if num_in_flight >= most:
                del self._hungry[name]
            elif num_in_flight == 0:
                self._let_rest(member)

    def _let_rest(self, member: Member) -> None:
        """An actor has nothing to compute: its last shard is to be told of, and then it may have to go."""
        name = member.name
        if self._schedule.unwritten(name):
            if name not in self._flushing:
                self._flushing.add(name)
                self._actors.call(member, FlushCall())
        elif member.is_leaving:
            self._schedule.left(name)
            self._drop(name)

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
