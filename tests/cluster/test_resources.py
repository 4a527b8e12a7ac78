from __future__ import annotations

import pytest

from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.resources import Cluster, _room
from coar_dist.config.schema import ClusterConfig


@pytest.mark.parametrize(
    ("resources", "num_gpus", "room"),
    [
        ({"CPU": 7.0}, 0.0, 3),
        ({}, 0.0, 0),
        ({"CPU": 64.0}, 1.0, 0),
        ({"CPU": 64.0, "GPU": 8.0}, 1.0, 8),
        ({"CPU": 6.0, "GPU": 8.0}, 1.0, 3),
        ({"CPU": 64.0, "GPU": 8.0}, 3.0, 2),
        ({"CPU": 64.0, "GPU": 2.0}, 0.1, 20),
        ({"CPU": 64.0, "GPU": 2.0}, 0.6, 2),
    ],
)
def test_room_of_a_node_for_actors_of_two_cpus(resources: dict[str, float], num_gpus: float, room: int) -> None:
    assert _room(resources, 2, num_gpus) == room


@pytest.mark.parametrize(
    ("config", "is_fixed", "num_left", "wanted"),
    [
        (ClusterConfig(), False, 100, 8),
        (ClusterConfig(), False, 3, 3),
        (ClusterConfig(), False, 0, 1),
        (ClusterConfig(min_actors=10), False, 100, 10),
        (ClusterConfig(max_actors=20), False, 100, 20),
        (ClusterConfig(max_actors=20), True, 100, 8),
        (ClusterConfig(max_actors=2), True, 100, 2),
    ],
)
def test_actors_wanted_where_there_is_room_for_eight(
    config: ClusterConfig, is_fixed: bool, num_left: int, wanted: int
) -> None:
    assert Cluster(config, 0.0, is_fixed, Interruption()).num_wanted(8, num_left) == wanted
