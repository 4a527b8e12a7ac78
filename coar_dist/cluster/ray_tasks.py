"""Ray tasks: the parts of a computation on all CPUs or GPUs of a cluster, and single questions to one of its nodes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from coar_dist.cluster.connection import connect
from coar_dist.cluster.execution import Execute
from coar_dist.cluster.pool import cause
from coar_dist.cluster.resources import Cluster
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, CoarDistError

_T = TypeVar("_T")
_WAIT_S = 0.5
_MAX_RETRIES = 3
_SYSTEM_FAILURES = (WorkerCrashedError, NodeDiedError, OutOfMemoryError)


@contextlib.contextmanager
def on_cluster(config: ClusterConfig, way_out: str) -> Iterator[Execute]:
    """Ray tasks as an ``Execute``: ``shared`` goes to every node once, through the object store.

    Args:
        config: the cluster; a task has the resources of one actor.
        way_out: what to do where tasks run out of memory; ends the error.

    Raises:
        ClusterError: no task starts within ``config.start_timeout_s``, or workers keep dying.
    """
    with connect(config) as cluster:
        options = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "max_retries": _MAX_RETRIES}
        task: Any = ray.remote(_run_part).options(**options)
        _get_in_time(cluster, task.remote(_nothing, None, None, cluster.num_cpus))

        def execute(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
            reference = ray.put(shared)
            waiting, running = list(reversed(items)), list[Any]()
            while waiting or running:
                num_wanted = cluster.num_wanted(cluster.capacity(), len(waiting) + len(running))
                while waiting and len(running) < num_wanted:
                    running.append(task.remote(function, reference, waiting.pop(), cluster.num_cpus))
                done, running = ray.wait(running, num_returns=1, timeout=_WAIT_S)
                cluster.raise_if_interrupted()
                try:
                    yield from ray.get(done)
                except RayTaskError as error:
                    if isinstance(error.cause, CoarDistError):
                        raise error.cause from None
                    raise
                except _SYSTEM_FAILURES as error:
                    raise ClusterError(
                        f"a worker was lost {_MAX_RETRIES + 1} times at the same part: {cause(error)} {way_out}"
                    ) from error

        yield execute


def _run_part(function: Callable[[Any, Any], Any], shared: Any, item: Any, num_threads: int) -> Any:
    torch.set_num_threads(num_threads)
    return function(shared, item)


def _nothing(_shared: Any, _item: Any) -> None:
    """The first task: it shows that tasks can start."""


def _get_in_time(cluster: Cluster, reference: Any) -> Any:
    """The answer of a first task; ClusterError if it does not start within ``cluster.start_timeout_s``."""
    deadline = time.monotonic() + cluster.config.start_timeout_s
    while not ray.wait([reference], timeout=_WAIT_S)[0]:
        cluster.raise_if_interrupted()
        if time.monotonic() > deadline:
            raise cluster.too_few_actors(0, 1)
    return ray.get(reference)


def answer_of_an_actor(config: ClusterConfig, function: Callable[[], _T]) -> _T:
    """What ``function`` returns in a process with the resources of one actor, somewhere on the cluster.

    Raises:
        ClusterError: no such process starts within ``config.start_timeout_s``.
    """
    with connect(config) as cluster:
        task: Any = ray.remote(function).options(num_cpus=cluster.num_cpus, num_gpus=cluster.num_gpus)
        answer: _T = _get_in_time(cluster, task.remote())
        return answer
