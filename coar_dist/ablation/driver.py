"""The ablation driver: hands units of work to Ray actors until every shard is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from coar_dist.ablation.actor import AblationActor, AblationJob
from coar_dist.ablation.cluster import ActorResources, connect, describe_resources
from coar_dist.ablation.engine import Unablated
from coar_dist.ablation.schedule import MaskRange, Schedule
from coar_dist.config import ClusterConfig
from coar_dist.errors import ClusterError, CoarDistError
from coar_dist.tasks.task import Task

# Errors of the user's code or input: trying again elsewhere cannot help.
_USER_ERRORS = (CoarDistError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
_WAIT_S = 0.5


@dataclass(frozen=True)
class UnablatedUnit:
    """The forward pass of the unablated model over all examples."""

    num_masks = 0

    def __str__(self) -> str:
        return "the unablated model's forward pass"


WorkUnit = MaskRange | UnablatedUnit


@dataclass(frozen=True)
class DriverCallbacks:
    """What the driver tells its caller.

    Attributes:
        on_progress: called with (masks done in this call, live actors).
        on_unablated: called with the unablated model's outputs, if they were asked for.
    """

    on_progress: Callable[[int, int], None]
    on_unablated: Callable[[Unablated], None]


def run_units(
    config: ClusterConfig, task: Task, job: AblationJob, units: Sequence[WorkUnit], callbacks: DriverCallbacks
) -> None:
    """Run all units on actors of the cluster; returns when every one is done.

    Actors are replaced when they die. On any error, Ctrl-C included, the actors are stopped and what they finished
    stays.

    Raises:
        ClusterError: no actor starts within ``config.start_timeout_s``, or actors keep dying.
        RangeFailedError: one unit failed ``config.max_attempts`` times.
        CoarDistError, ValueError, ...: the user's model or input is at fault; raised at the first occurrence.
    """
    with connect(config) as resources:
        _Driver(config, resources, task, job, units, callbacks).run()


class _Driver:
    def __init__(
        self,
        config: ClusterConfig,
        resources: ActorResources,
        task: Task,
        job: AblationJob,
        units: Sequence[WorkUnit],
        callbacks: DriverCallbacks,
    ) -> None:
        self._config = config
        self._resources = resources
        self._task = ray.put(task)
        self._job = ray.put(job)
        self._schedule = Schedule(units, config.max_attempts)
        self._callbacks = callbacks
        self._actor_class = ray.remote(AblationActor).options(  # type: ignore[attr-defined]
            num_cpus=resources.num_cpus, num_gpus=resources.num_gpus, max_restarts=0
        )
        self._actors: dict[str, ActorHandle[Any]] = {}
        self._live: set[str] = set()
        self._waiting: dict[Any, tuple[str, WorkUnit | str]] = {}
        self._num_started = 0
        self._num_masks_done = 0
        self._last_live = time.monotonic()

    def run(self) -> None:
        try:
            for _ in range(self._resources.num_actors):
                self._start_actor()
            while not self._schedule.is_done:
                finished, _ = ray.wait(list(self._waiting), num_returns=1, timeout=_WAIT_S)
                for reference in finished:
                    self._handle(reference, *self._waiting.pop(reference))
                self._check_alive()
        finally:
            for actor in self._actors.values():
                ray.kill(actor)

    def _start_actor(self) -> None:
        name = f"actor-{self._num_started}"
        self._num_started += 1
        actor = self._actor_class.remote()
        self._actors[name] = actor
        self._waiting[actor.address.remote()] = (name, "address")

    def _handle(self, reference: Any, name: str, work: WorkUnit | str) -> None:
        if name not in self._actors:
            return  # of an actor that is already known to be gone
        try:
            result = ray.get(reference)
        except RayActorError as error:
            self._replace(name, f"{name}: {str(error).splitlines()[0]}")
            return
        except RayTaskError as error:
            if isinstance(error.cause, _USER_ERRORS):
                raise error.cause from error
            if isinstance(work, str):
                self._replace(name, f"{name} failed in {work}: {error}")
            else:
                self._schedule.failed(work, error)
                self._replace(name, f"{name} failed in {work}: {error}")  # a CUDA error leaves a useless process
            return
        if work == "address":
            self._waiting[self._actors[name].setup.remote(self._task, self._job)] = (name, "setup")
        elif work == "setup":
            self._live.add(name)
        else:
            assert not isinstance(work, str)
            self._schedule.done(work)
            self._num_masks_done += work.num_masks
            if isinstance(work, UnablatedUnit):
                self._callbacks.on_unablated(result)
        self._fill()
        self._callbacks.on_progress(self._num_masks_done, len(self._live))

    def _fill(self) -> None:
        for name in sorted(self._live):
            while self._schedule.num_running(name) < self._config.ranges_in_flight:
                unit = self._schedule.next_for(name, other_actors=len(self._actors) > 1)
                if unit is None:
                    break
                actor = self._actors[name]
                reference = actor.unablated.remote() if isinstance(unit, UnablatedUnit) else actor.run.remote(unit)
                self._waiting[reference] = (name, unit)

    def _replace(self, name: str, reason: str) -> None:
        ray.kill(self._actors.pop(name))
        self._live.discard(name)
        self._schedule.lost(name, reason)
        self._start_actor()
        self._fill()

    def _check_alive(self) -> None:
        now = time.monotonic()
        if self._live or any(work == "setup" for _, work in self._waiting.values()):
            self._last_live = now
        elif now - self._last_live > self._config.start_timeout_s:
            raise ClusterError(
                f"no actor started within cluster.start_timeout_s={self._config.start_timeout_s:g} s: "
                f"{self._resources} were asked for, and the cluster has {describe_resources()}. Lower "
                f"cluster.cpus_per_actor or cluster.gpus_per_actor, free resources, or add nodes."
            )
