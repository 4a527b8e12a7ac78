"""What a Ray cluster has, how many actors that is room for, and how many are wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import floor

import ray
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.utils import get_num_cpus

from coar_dist.cluster.interruption import Interruption
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError, counted


@dataclass(frozen=True)
class Cluster:
    """The connected cluster.

    Attributes:
        config: how many actors are wanted, and the CPUs of each.
        num_gpus: GPUs of one actor, possibly a fraction.
        is_fixed: whether this command started the cluster, so that no node can join.
        interruption: whether the user wants to stop.
    """

    config: ClusterConfig
    num_gpus: float
    is_fixed: bool
    interruption: Interruption

    @property
    def num_cpus(self) -> int:
        """CPUs of one actor."""
        return self.config.cpus_per_actor

    def __str__(self) -> str:
        """Where it is, and how large at the moment."""
        num_nodes, address = len(alive_nodes()), ray.get_runtime_context().gcs_address
        return f"the Ray cluster at {address}, {counted(num_nodes, 'node')} with {_describe(total_resources())}"

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt if SIGINT or SIGTERM has come, at a place where that is safe."""
        self.interruption.raise_if_set()

    def capacity(self) -> int:
        """Actors that all nodes together have room for, if nothing else runs there; none spans two nodes."""
        return sum(self.room_by_node().values())

    def room_by_node(self) -> dict[str, int]:
        """Actors that each node has room for, if nothing else runs there, by node id."""
        return {node: _room(found, self.num_cpus, self.num_gpus) for node, found in alive_nodes().items()}

    def num_wanted(self, capacity: int, num_left: int) -> int:
        """Actors wanted for ``num_left`` ranges on nodes with room for ``capacity`` actors: at least 1."""
        wanted = self.config.max_actors
        if wanted is None:
            wanted = max(self.config.min_actors, capacity)
        elif self.is_fixed:
            wanted = min(wanted, capacity)
        return max(1, min(wanted, num_left))

    def too_few_actors(self, num_alive: int, num_wanted: int) -> ClusterError:
        """The error that names what was asked for and what there is."""
        who = "no actor" if num_alive == 0 else f"only {counted(num_alive, 'actor')}"
        wanted = f"asked for: {counted(num_wanted, 'actor')} with {_needs(self.num_cpus, self.num_gpus)} each"
        return ClusterError(
            f"{who} started within cluster.start_timeout_s={self.config.start_timeout_s:g} s, with "
            f"cluster.min_actors={self.config.min_actors} ({wanted}). The cluster has {_describe(total_resources())}. "
            f"Lower cluster.cpus_per_actor, cluster.gpus_per_actor or cluster.min_actors, free resources, or add nodes."
        )

    def nothing_runs(self, last_loss: str) -> ClusterError:
        """The error where tasks wait for a worker in vain; ``last_loss`` is why one was lost, or empty."""
        lost = f" The last worker was lost: {last_loss}" if last_loss else ""
        return ClusterError(
            f"no worker has run for cluster.start_timeout_s={self.config.start_timeout_s:g} s. Asked for: "
            f"{_needs(self.num_cpus, self.num_gpus)} each. The cluster has {_describe(total_resources())}.{lost}\n"
            f"Add nodes, free resources, or lower cluster.cpus_per_actor or cluster.gpus_per_actor. Then run the stage "
            f"again: what is finished is kept."
        )


def check_room(config: ClusterConfig, resources: Mapping[str, float]) -> None:
    """Check that ``config.min_actors`` fit on this machine, which has ``resources``: a cluster of its own cannot grow.

    Raises:
        ClusterError: they do not.
    """
    num_actors, num_cpus, num_gpus = config.min_actors, config.cpus_per_actor, gpus_per_actor(config, resources)
    if _room(resources, num_cpus, num_gpus) < num_actors:
        raise ClusterError(
            f"this machine has {_describe(resources)}, which is no room for cluster.min_actors={num_actors} with "
            f"{_needs(num_cpus, num_gpus)} each. Lower cluster.min_actors, cluster.cpus_per_actor or "
            f"cluster.gpus_per_actor, or join a larger cluster with cluster.address=..."
        )


def gpus_per_actor(config: ClusterConfig, resources: Mapping[str, float]) -> float:
    """GPUs of one actor on nodes with these resources."""
    if config.gpus_per_actor is not None:
        return config.gpus_per_actor
    return 1.0 if resources.get("GPU", 0.0) > 0 else 0.0


def own_resources() -> dict[str, float]:
    """What a Ray cluster would have if it were started here, as Ray itself counts."""
    gpus = get_accelerator_manager_for_resource("GPU")
    assert gpus is not None
    num_gpus = gpus.get_current_node_num_accelerators()
    visible = gpus.get_current_process_visible_accelerator_ids()
    return {"CPU": get_num_cpus(), "GPU": num_gpus if visible is None else min(num_gpus, len(visible))}


def alive_nodes() -> dict[str, Mapping[str, float]]:
    """The total resources of every node that is alive and may stay so, by node id.

    One that is being drained, because it is idle or its instance will be taken away, gets nothing new from Ray either.
    """
    nodes, draining = ray.nodes(), _draining_nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in draining}


def _draining_nodes() -> Collection[str]:
    """Ids of nodes that are being drained; of a cluster at ``ray://`` that is not told."""
    if ray.util.client.ray.is_connected():  # type: ignore[no-untyped-call]
        return ()
    return ray._private.state.state.get_draining_nodes()


def _room(resources: Mapping[str, float], num_cpus: int, num_gpus: float) -> int:
    by_cpu = int(resources.get("CPU", 0.0) // num_cpus)
    gpus = resources.get("GPU", 0.0)
    if num_gpus == 0.0:
        return by_cpu
    if num_gpus < 1.0:  # a fraction lies on one GPU
        return min(by_cpu, int(gpus) * floor(1.0 / num_gpus + 1e-9))
    return min(by_cpu, int(gpus // num_gpus))


def _needs(num_cpus: int, num_gpus: float) -> str:
    return f"{num_cpus} CPU and {num_gpus:g} GPU" if num_gpus else f"{num_cpus} CPU"


def _describe(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPU and {resources.get('GPU', 0):g} GPU"


def total_resources() -> dict[str, float]:
    """The resources of all nodes together."""
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
