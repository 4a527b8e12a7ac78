"""The ablation driver: hands ranges of masks to Ray actors until every shard is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from coar_dist.ablation.actor import AblationActor, AblationJob, LogLines, Start
from coar_dist.ablation.cluster import ActorResources, connect, no_actor_started
from coar_dist.ablation.plan import EnginePlan
from coar_dist.ablation.schedule import MaskRange, Schedule
from coar_dist.config import ClusterConfig
from coar_dist.errors import CoarDistError, RangeFailedError, TaskError
from coar_dist.tasks.task import Task

# Errors of the user's code or input: trying again elsewhere cannot help.
_USER_ERRORS = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
_WAIT_S = 0.5
_ADDRESS, _SETUP, _START, _USE = "address", "setup", "start", "use"


@dataclass(frozen=True)
class DriverCallbacks:
    """What the driver tells its caller.

    Attributes:
        on_progress: called with (masks done in this call, live actors).
        on_start: called once with what the first actor found out, unless a plan was given.
        on_log: called with what an engine logged.
    """

    on_progress: Callable[[int, int], None]
    on_start: Callable[[Start], None]
    on_log: Callable[[LogLines], None]


def run_ranges(
    config: ClusterConfig,
    task: Task,
    job: AblationJob,
    ranges: Sequence[MaskRange],
    plan: EnginePlan | None,
    callbacks: DriverCallbacks,
) -> None:
    """Compute all ranges on actors of the cluster; returns when every shard is written.

    Actors are replaced when they die. On any error, Ctrl-C included, the actors are stopped and what they finished
    stays.

    Args:
        config: the cluster.
        task: what is explained; sent once to every node.
        job: the same for every actor.
        ranges: what to compute, in order.
        plan: the engine plan of the run; None lets the first actor choose one and run the unablated model.
        callbacks: who is told.

    Raises:
        ClusterError: no actor starts within ``config.start_timeout_s``, or actors keep dying.
        RangeFailedError: one range, or the set-up of actors, failed ``config.max_attempts`` times.
        CoarDistError: the user's model or input is at fault; raised at the first occurrence.
        KeyboardInterrupt: SIGINT or SIGTERM came.
    """
    with connect(config) as resources:
        _Driver(config, resources, task, job, ranges, plan, callbacks).run()


class _Driver:
    def __init__(
        self,
        config: ClusterConfig,
        resources: ActorResources,
        task: Task,
        job: AblationJob,
        ranges: Sequence[MaskRange],
        plan: EnginePlan | None,
        callbacks: DriverCallbacks,
    ) -> None:
        self._config = config
        self._resources = resources
        self._task = ray.put(task)
        self._job = ray.put(job)
        self._masks_per_actor = -(-sum(masks.num_masks for masks in ranges) // resources.num_actors)
        self._schedule = Schedule(ranges, config.max_attempts)
        self._plan = plan
        self._callbacks = callbacks
        self._actor_class: Any = ray.remote(AblationActor).options(
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0
        )
        self._actors: dict[str, Any] = {}
        self._starting: str | None = None  # the actor that chooses the plan
        self._waiting_for_plan: list[str] = []
        self._live: set[str] = set()
        self._in_flight: dict[Any, tuple[str, MaskRange | str]] = {}
        self._num_started = 0
        self._setup_failures = 0  # in a row
        self._num_masks_done = 0
        self._last_sign_of_life = time.monotonic()

    def run(self) -> None:
        try:
            for _ in range(self._resources.num_actors):
                self._start_actor()
            while self._plan is None or not self._schedule.is_done:
                finished, _ = ray.wait(list(self._in_flight), num_returns=1, timeout=_WAIT_S)
                for reference in finished:
                    self._handle(reference, *self._in_flight.pop(reference))
                self._check_alive()
                self._resources.raise_if_interrupted()
        finally:
            for actor in self._actors.values():
                ray.kill(actor)

    def _start_actor(self) -> None:
        name = f"actor-{self._num_started}"
        self._num_started += 1
        actor = self._actor_class.remote()
        self._actors[name] = actor
        self._in_flight[actor.address.remote()] = (name, _ADDRESS)

    def _handle(self, reference: Any, name: str, work: MaskRange | str) -> None:
        if name not in self._actors:
            return  # of an actor that is already known to be gone
        actor = self._actors[name]
        try:
            result = ray.get(reference)
        except RayActorError as error:
            self._replace(name, f"{name}: {str(error).splitlines()[0]}")
            return
        except RayTaskError as error:
            if isinstance(error.cause, CoarDistError):
                raise error.cause from error
            if isinstance(error.cause, _USER_ERRORS):
                raise TaskError(f"{work}: {type(error.cause).__name__}: {error.cause}") from error
            if isinstance(work, MaskRange):
                self._schedule.failed(work, name, error)
            else:
                self._setup_failures += 1
                if self._setup_failures >= self._config.max_attempts:
                    raise RangeFailedError(
                        f"{self._setup_failures} actors could not be set up; the last error was:\n{error}"
                    ) from error
            self._replace(name, f"{name} failed in {work}: {error}")  # a CUDA error leaves a useless process
            return
        if work == _ADDRESS:
            self._in_flight[actor.setup.remote(self._task, self._job)] = (name, _SETUP)
        elif work == _SETUP:
            self._waiting_for_plan.append(name)
        elif work == _START:
            self._plan = result.plan
            self._live.add(name)
            self._setup_failures = 0
            self._callbacks.on_start(result)
            self._callbacks.on_log(result.log)
        elif work == _USE:
            self._live.add(name)
            self._setup_failures = 0
        else:
            assert isinstance(work, MaskRange)
            self._schedule.done(work, name)
            self._num_masks_done += work.num_masks
            self._callbacks.on_log(result)
        self._hand_out_work()
        self._callbacks.on_progress(self._num_masks_done, len(self._live))

    def _hand_out_work(self) -> None:
        if self._plan is not None:
            for name in self._waiting_for_plan:
                self._in_flight[self._actors[name].use.remote(self._plan)] = (name, _USE)
            self._waiting_for_plan = []
        elif self._starting is None and self._waiting_for_plan:
            self._starting = self._waiting_for_plan.pop(0)
            self._in_flight[self._actors[self._starting].start.remote(self._masks_per_actor)] = (
                self._starting,
                _START,
            )
        for name in sorted(self._live):
            while self._schedule.num_running(name) < self._config.ranges_in_flight:
                masks = self._schedule.next_for(name, other_actors=len(self._actors) > 1)
                if masks is None:
                    break
                self._in_flight[self._actors[name].run.remote(masks)] = (name, masks)

    def _replace(self, name: str, reason: str) -> None:
        ray.kill(self._actors.pop(name))
        self._live.discard(name)
        if name in self._waiting_for_plan:
            self._waiting_for_plan.remove(name)
        if self._starting == name:
            self._starting = None
        self._schedule.lost(name, reason)
        self._start_actor()
        self._hand_out_work()

    def _check_alive(self) -> None:
        now = time.monotonic()
        if self._live or any(work in (_SETUP, _START, _USE) for _, work in self._in_flight.values()):
            self._last_sign_of_life = now
        elif now - self._last_sign_of_life > self._config.start_timeout_s:
            raise no_actor_started(self._config, self._resources)
