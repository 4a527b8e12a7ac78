"""Runs on a Ray cluster of several nodes, in a process of their own: a node joins and is killed, one is drained, and
actors are placed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from coar_dist.cluster import driver
from coar_dist.cluster.schedule import Schedule
from tests.cluster.driving import drive


def drain_a_node(cluster: Cluster, folder: Path) -> None:
    """As where its instance is to be taken away: two actors end what they have, and the work goes on without them."""
    node, was_drained = cluster.add_node(num_cpus=2), False
    cluster.wait_for_nodes()
    folder /= "drained"
    folder.mkdir()

    def on_progress(_done: int, actors: int) -> None:
        nonlocal was_drained
        if actors == 3 and not was_drained:
            was_drained = True
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            client = ray._raylet.GcsClient(address=cluster.address)
            is_accepted, why_not = client.drain_node(node.node_id, reason, "", int(1000 * (time.time() + 120)))
            assert is_accepted, why_not

    driven = drive(folder, lambda start: time.sleep(0.2), num_masks=600, on_progress=on_progress, max_actors=None)
    counts = [actors for _, actors in driven.progress]
    assert max(counts) == 3, counts
    assert counts[-1] == 1, counts
    assert (driven.counts[-1].num_retried, driven.counts[-1].num_lost) == (0, 0)
    assert driven.store.missing() == []


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes = []
    losses: list[bool] = []

    class WatchedSchedule(Schedule):
        def lost(self, actor: str, cause: str, node_died: bool) -> None:
            losses.append(node_died)
            (folder / "lost").touch()
            super().lost(actor, cause, node_died)

    driver.Schedule = WatchedSchedule  # type: ignore[misc]
    killed = False

    def work(_start: int) -> None:
        time.sleep(0.02 if (folder / "lost").exists() else 0.2)

    def on_progress(done: int, actors: int) -> None:
        nonlocal killed
        if done >= 8 and not nodes:
            nodes.append(cluster.add_node(num_cpus=2))
        if actors == 3 and not killed:
            killed = True
            cluster.remove_node(nodes[0], allow_graceful=False)

    driven = drive(folder, work, num_masks=400, on_progress=on_progress, max_actors=None, max_attempts=1)
    counts = [actors for _, actors in driven.progress]
    assert counts[0] <= 1
    assert max(counts) == 3, counts
    assert counts[-1] == 1, counts
    assert losses == [True, True]
    assert driven.store.missing() == []
    drain_a_node(cluster, folder)
    assert losses == [True, True]  # and none more
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    for placement, num_nodes in (("pack", 1), ("spread", 2)):
        seen = folder / placement
        seen.mkdir()

        def note_node(_start: int, seen: Path = seen) -> None:
            (seen / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.2)

        drive(seen, note_node, num_masks=60, max_actors=2, min_actors=2, placement=placement)
        nodes_used = [path.name for path in seen.iterdir() if path.name != "run"]
        assert len(nodes_used) == num_nodes, (placement, nodes_used)
    ray.shutdown()
    cluster.shutdown()
    print("complete")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
