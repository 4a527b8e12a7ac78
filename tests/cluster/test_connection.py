from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import ray

from coar_dist.cluster.connection import Cluster, _own_resources, _room, check_cluster, connect
from coar_dist.cluster.interruption import Interruption
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError


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


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 CPU and a GPU, and no cluster named by the environment."""
    monkeypatch.setattr("coar_dist.cluster.connection._own_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_is_tried_before_any_work(
    small_machine: None, unused_port: int, open_port: int, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cluster(ClusterConfig(address=f"{scheme}127.0.0.1:{open_port}", cpus_per_actor=64))  # others may join there
    nobody = f"{scheme}127.0.0.1:{unused_port}"
    with pytest.raises(ClusterError, match=rf"cluster\.address='{nobody}' cannot be reached: .*refused.*ray start"):
        check_cluster(ClusterConfig(address=nobody))
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(ClusterError, match=nobody):
        check_cluster(ClusterConfig())


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        (ClusterConfig(cpus_per_actor=5), "min_actors=1 with 5 CPU and 1 GPU each"),
        (ClusterConfig(min_actors=2), "min_actors=2 with 1 CPU and 1 GPU each"),
        (ClusterConfig(gpus_per_actor=0.0, min_actors=5), "min_actors=5 with 1 CPU each"),
        (ClusterConfig(gpus_per_actor=0.5, min_actors=3), "min_actors=3 with 1 CPU and 0.5 GPU each"),
    ],
)
def test_actors_that_this_machine_has_no_room_for_are_refused(
    small_machine: None, config: ClusterConfig, needs: str
) -> None:
    with pytest.raises(
        ClusterError, match=rf"^this machine has 4 CPU and 1 GPU, which is no room for cluster\.{needs}"
    ):
        check_cluster(config)


def test_actors_that_this_machine_has_room_for_are_not(small_machine: None) -> None:
    for config in (ClusterConfig(max_actors=9), ClusterConfig(gpus_per_actor=0.5, min_actors=2, cpus_per_actor=2)):
        check_cluster(config)


@pytest.mark.slow
def test_ray_has_the_resources_that_were_counted() -> None:
    with connect(ClusterConfig(address="local")):
        found = ray.cluster_resources()
    assert {name: found.get(name, 0.0) for name in ("CPU", "GPU")} == _own_resources()
