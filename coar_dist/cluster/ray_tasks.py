"""Ray tasks: the parts of a computation on all CPUs or GPUs of a cluster, and single questions to one of its nodes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayTaskError, WorkerCrashedError
from typing_extensions import override

from coar_dist.cluster.actors import Loss
from coar_dist.cluster.connection import connect
from coar_dist.cluster.execution import Execute
from coar_dist.cluster.packing import packed
from coar_dist.cluster.parts import Result, Started, Tasks, run_parts
from coar_dist.cluster.pool import cause
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.shared_value import unpacked
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, CoarDistError, NotOnThisNodeError

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_DIED = (WorkerCrashedError, OutOfMemoryError)
_NODE_DIED = (NodeDiedError, ObjectLostError)  # the result of a part may lie on the node that is gone


@contextlib.contextmanager
def on_cluster(config: ClusterConfig, way_out: str) -> Iterator[Execute]:
    """Ray tasks as an ``Execute``: ``shared`` goes to every node once, through the object store.

    A part whose worker is lost is run again on another. The ``Execute`` raises as this function does.

    Args:
        config: the cluster; a task has the resources of one actor.
        way_out: what to do where tasks run out of memory; ends the error.

    Raises:
        ClusterError: no task has run for ``config.start_timeout_s``, or workers keep dying.
    """
    with connect(config) as cluster:

        def execute(function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
            return run_parts(RayTasks(cluster, function, shared), items, config.start_timeout_s, way_out)

        list(execute(_nothing, None, [None]))  # before anything is read: it shows that tasks can start
        yield execute


def answer_of_an_actor(config: ClusterConfig, function: Callable[[], _T]) -> _T:
    """What ``function`` returns in a process with the resources of one actor, somewhere on the cluster.

    Raises:
        ClusterError: no such process starts within ``config.start_timeout_s``, or it keeps dying.
    """
    with connect(config) as cluster:
        tasks = RayTasks(cluster, lambda asked, _: asked(), function)
        answer: _T
        (answer,) = run_parts(tasks, [None], config.start_timeout_s, "Give the workers more memory.")
        return answer


class RayTasks(Tasks):
    """Tasks of ``function(shared, item)``, each with the resources of one actor."""

    def __init__(self, cluster: Cluster, function: Callable[[Any, Any], Any], shared: Any) -> None:
        self._cluster, self._function = cluster, function
        self._value, self._is_whole = shared, False
        self._shared = ray.put(packed(shared))
        # Ray itself would retry a lost task without saying so, and wait for ever where no node is left for it.
        options = {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "max_retries": 0}
        self._task: Any = ray.remote(_run_part).options(**options, num_returns="streaming")

    @override
    def num_wanted(self, num_left: int) -> int:
        return self._cluster.num_wanted(self._cluster.capacity(), num_left)

    @override
    def submit(self, item: Any) -> Any:
        return self._task.remote(self._function, self._shared, item, self._cluster.num_cpus)

    @override
    def answers(self, tasks: Sequence[Any], wait_s: float) -> Iterator[tuple[Any, Started | Result | Loss]]:
        ready, _ = ray.wait(list(tasks), timeout=wait_s)
        for task in ready:
            try:
                yield task, _answer(task)
            except NotOnThisNodeError as error:
                if not self._is_whole:
                    _log.info("%s. Model and examples are sent.", error)
                    self._shared, self._is_whole = ray.put(packed(self._value, whole=True)), True
                yield task, Loss(str(error), node_died=True)

    @override
    def cancel(self, task: Any) -> None:
        ray.cancel(task, force=True)

    @override
    def check(self) -> None:
        self._cluster.raise_if_interrupted()

    @override
    def nothing_runs(self, last_loss: str) -> ClusterError:
        return self._cluster.nothing_runs(last_loss)


def _answer(task: Any) -> Started | Result | Loss:
    try:
        answer: Started | Result = ray.get(next(task))
        return answer
    except RayTaskError as error:
        if isinstance(error.cause, CoarDistError):
            raise error.cause from None
        raise
    except _DIED as error:
        return Loss(cause(error), node_died=False)
    except _NODE_DIED as error:
        return Loss(cause(error), node_died=True)


def _run_part(
    function: Callable[[Any, Any], Any], shared: Any, item: Any, num_threads: int
) -> Iterator[Started | Result]:
    yield Started()
    torch.set_num_threads(num_threads)
    yield Result(function(unpacked(shared), item))


def _nothing(_shared: Any, _item: Any) -> None:
    """The first task."""
