"""Runs on a Ray cluster of several nodes, in a process of their own: a node joins and is killed; actors are placed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from coar_dist.cluster import driver
from coar_dist.cluster.schedule import Schedule
from tests.cluster.driving import drive


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
