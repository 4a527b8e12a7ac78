"""The way to the actors, in the calling process or on Ray, which is loaded only where it is used."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from typing_extensions import override

from coar_dist.cluster.actors import Metrics
from coar_dist.cluster.driver import Driver
from coar_dist.cluster.execution import Execute, InThisProcess
from coar_dist.cluster.own_process import OwnActor, as_an_actor
from coar_dist.cluster.place import Predict, is_here, may_be_here
from coar_dist.cluster.work import DriverCallbacks, Work
from coar_dist.config.schema import PROCESS, ClusterConfig

if TYPE_CHECKING:  # Ray takes seconds to load
    from coar_dist.cluster.resources import Cluster

_T = TypeVar("_T")


def check_place(config: ClusterConfig) -> None:
    """Find what would keep actors from their place, in well under a second.

    Raises:
        ClusterError: as ``check_cluster``.
    """
    has_room = config.where == PROCESS or config.cpus_per_actor <= (os.cpu_count() or 1)
    if may_be_here(config) and has_room:
        return
    from coar_dist.cluster.connection import check_cluster  # Ray takes seconds to load

    check_cluster(config)


def run_ranges(config: ClusterConfig, work: Work, callbacks: DriverCallbacks) -> None:
    """Compute all ranges; returns when every shard is written.

    Args:
        config: the cluster.
        work: what to compute.
        callbacks: who is told.

    Raises:
        CoarDistError, KeyboardInterrupt: as ``Driver.run``; what is finished stays.
    """
    if is_here(config, work.predict):
        with as_an_actor(config.cpus_per_actor):
            Driver(OwnActor(work.actor), config, work, callbacks, Metrics()).run()
        return
    from coar_dist.cluster.connection import connect  # these load Ray, which takes seconds
    from coar_dist.cluster.metrics import RunMetrics
    from coar_dist.cluster.pool import ActorPool

    with connect(config) as cluster:
        if not cluster.is_fixed:
            callbacks.on_join(str(cluster))
        Driver(ActorPool(cluster, work.actor), config, work, callbacks, RunMetrics(work.run)).run()


@contextlib.contextmanager
def executing(config: ClusterConfig, predict: Predict, way_out: str) -> Iterator[Execute]:
    """How independent parts of a computation are run, for the length of a ``with`` block; they may change a model.

    Args:
        config: the cluster.
        predict: about how long all parts take in this process.
        way_out: what to do where Ray's tasks run out of memory; ends the error.

    Raises:
        ClusterError: as of ``on_cluster``.
    """
    if is_here(config, predict):
        with as_an_actor(config.cpus_per_actor):
            yield _OnACopy()
        return
    from coar_dist.cluster.ray_tasks import on_cluster  # Ray takes seconds to load

    with on_cluster(config, way_out) as execute:
        yield execute


class _OnACopy(InThisProcess):
    """What is shared is copied once for all parts, as for another process: they may change it."""

    @override
    def __call__(self, function: Callable[[Any, Any], Any], shared: Any, items: Sequence[Any]) -> Iterator[Any]:
        return super().__call__(function, copy.deepcopy(shared), items)


@contextlib.contextmanager
def connected(config: ClusterConfig) -> Iterator[Cluster]:
    """Ray, for several works that come one after the other and would start it each.

    Raises:
        ClusterError: as of ``connect``.
    """
    from coar_dist.cluster.connection import connect  # Ray takes seconds to load

    with connect(config) as cluster:
        yield cluster


def answer_of_an_actor(config: ClusterConfig, function: Callable[[], _T]) -> _T:
    """What ``function`` returns in an actor's place: here where actors are, or may be, else on the cluster.

    Raises:
        ClusterError: no process starts there in time.
    """
    if may_be_here(config):
        return function()
    from coar_dist.cluster import ray_tasks  # Ray takes seconds to load

    return ray_tasks.answer_of_an_actor(config, function)
