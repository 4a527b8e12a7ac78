"""The Ray cluster: started here or joined, and what its actors may use."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.exceptions import GetTimeoutError, NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from coar_dist.ablation.placement import native_precision
from coar_dist.config import ClusterConfig
from coar_dist.errors import ClusterError, CoarDistError

if TYPE_CHECKING:  # actors start without the regression
    from coar_dist.regression.fit import Execute

_MAX_RETRIES = 3
_SYSTEM_FAILURES = (WorkerCrashedError, NodeDiedError, OutOfMemoryError)


class Interruption:
    """SIGINT and SIGTERM as a flag: an exception raised by a handler can be swallowed in Ray's callbacks.

    The second signal raises at once.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._is_main = threading.current_thread() is threading.main_thread()
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install(self) -> None:
        """Take the signals over; again after ray.init, which installs handlers of its own."""
        if self._is_main:
            for number in self._previous:
                signal.signal(number, self._handle)

    def remove(self) -> None:
        """Give the signals back."""
        if self._is_main:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_set:
            raise KeyboardInterrupt
        self._is_set = True

    def raise_if_set(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._is_set:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class ActorResources:
    """What is asked of the cluster.

    Attributes:
        num_actors: actors wanted at a time.
        num_cpus: CPUs of one actor.
        num_gpus: GPUs of one actor, possibly a fraction.
        interruption: whether the user wants to stop.
    """

    num_actors: int
    num_cpus: int
    num_gpus: float
    interruption: Interruption

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt if SIGINT or SIGTERM has come, at a place where that is safe."""
        self.interruption.raise_if_set()

    def __str__(self) -> str:
        gpus = f" and {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.num_actors} actors with {self.num_cpus} CPU{gpus} each"


@contextlib.contextmanager
def connect(config: ClusterConfig) -> Iterator[ActorResources]:
    """Join the cluster that the config or RAY_ADDRESS names, or start one on this machine for the ``with`` block.

    A connection that the calling process already has is used, and left open.

    Yields:
        what every actor may use.

    Raises:
        ClusterError: the cluster cannot be reached, or one started here lacks the resources.
    """
    was_connected = ray.is_initialized()
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    interruption = Interruption()
    interruption.install()
    if not was_connected:
        _check_reachable(address)
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ClusterError(
                f"cluster.address={address!r} cannot be reached: {error}. Start it with 'ray start --head', or use "
                f"cluster=local."
            ) from error
        interruption.install()
    try:
        interruption.raise_if_set()
        resources = _actor_resources(config, interruption)
        if address == "local" and not was_connected:
            _check_fixed_cluster(resources)
        yield resources
    finally:
        interruption.remove()
        if not was_connected:
            ray.shutdown()


@contextlib.contextmanager
def on_cluster(config: ClusterConfig) -> Iterator[Execute]:
    """Ray tasks as an ``Execute`` of the fit stage: ``shared`` goes to every node once, through the object store.

    Raises:
        ClusterError: no task starts within ``config.start_timeout_s``, or workers keep dying.
    """
    with connect(config) as resources:
        options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, "max_retries": _MAX_RETRIES}
        task: Any = ray.remote(_run_part).options(**options)
        _get_in_time(config, resources, task.remote(_nothing, None, None, resources.num_cpus))

        def execute(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
            reference = ray.put(shared)
            waiting, running = list(reversed(items)), list[Any]()
            while waiting or running:
                while waiting and len(running) < resources.num_actors:
                    running.append(task.remote(function, reference, waiting.pop(), resources.num_cpus))
                done, running = ray.wait(running, num_returns=1, timeout=0.5)
                resources.raise_if_interrupted()
                try:
                    yield from ray.get(done)
                except RayTaskError as error:
                    if isinstance(error.cause, CoarDistError):
                        raise error.cause from None
                    raise
                except _SYSTEM_FAILURES as error:
                    raise ClusterError(
                        f"a worker of the fit stage was lost {_MAX_RETRIES + 1} times: {error}. Lower "
                        f"regression.memory_gb or ablation.examples_per_block, or give the workers more memory."
                    ) from error

        yield execute


def _run_part(function: Callable[[Any, Any], Any], shared: Any, item: Any, num_threads: int) -> Any:
    torch.set_num_threads(num_threads)
    return function(shared, item)


def _nothing(_shared: Any, _item: Any) -> None:
    """What a first task does: it starts."""


def native_precision_of_actors(config: ClusterConfig) -> str:
    """``native_precision`` of a process with an actor's resources, somewhere on the cluster.

    Raises:
        ClusterError: no such process starts within ``config.start_timeout_s``.
    """
    with connect(config) as resources:
        probe: Any = ray.remote(native_precision).options(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus)
        return str(_get_in_time(config, resources, probe.remote()))


def _get_in_time(config: ClusterConfig, resources: ActorResources, reference: Any) -> Any:
    """What the first task of a stage answers, which shows that such tasks can start at all."""
    try:
        return ray.get(reference, timeout=config.start_timeout_s)
    except GetTimeoutError as error:
        raise no_actor_started(config, resources) from error


def no_actor_started(config: ClusterConfig, resources: ActorResources) -> ClusterError:
    """The error that names what was asked for and what there is."""
    return ClusterError(
        f"no actor started within cluster.start_timeout_s={config.start_timeout_s:g} s: {resources} were asked for, "
        f"and the cluster has {describe_resources()}. Lower cluster.cpus_per_actor or cluster.gpus_per_actor, free "
        f"resources, or add nodes."
    )


def describe_resources() -> str:
    """CPUs and GPUs of the connected cluster, in words."""
    total = _total_resources()
    return f"{total.get('CPU', 0):g} CPU and {total.get('GPU', 0):g} GPU"


def _total_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _check_reachable(address: str) -> None:
    """Ray tries for minutes to reach a host that is not there."""
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ClusterError(
            f"cluster.address={address!r} cannot be reached: {error}. Start it with 'ray start --head', or use "
            f"cluster=local."
        ) from error


def _actor_resources(config: ClusterConfig, interruption: Interruption) -> ActorResources:
    total = _total_resources()
    gpus_per_actor = config.gpus_per_actor
    if gpus_per_actor is None:
        gpus_per_actor = 1.0 if total.get("GPU", 0.0) > 0 else 0.0
    num_actors = config.num_actors
    if num_actors is None:
        by_cpu = int(total.get("CPU", 0.0) // config.cpus_per_actor)
        by_gpu = int(total.get("GPU", 0.0) / gpus_per_actor) if gpus_per_actor else by_cpu
        num_actors = max(1, min(by_cpu, by_gpu))
    return ActorResources(num_actors, config.cpus_per_actor, gpus_per_actor, interruption)


def _check_fixed_cluster(wanted: ActorResources) -> None:
    total = _total_resources()
    cpus, gpus = wanted.num_actors * wanted.num_cpus, wanted.num_actors * wanted.num_gpus
    if cpus > total.get("CPU", 0.0) or gpus > total.get("GPU", 0.0):
        raise ClusterError(
            f"this machine has {describe_resources()}, but {wanted} need {cpus} CPU and {gpus:g} GPU. Lower "
            f"cluster.num_actors, cluster.cpus_per_actor or cluster.gpus_per_actor, or join a larger cluster with "
            f"cluster.address=..."
        )
