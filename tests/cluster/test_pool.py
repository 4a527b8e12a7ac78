from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from coar_dist.cluster import pool, resources
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.pool import ActorPool, preferred_node
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.worker import Address, Worker
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError
from tests.cluster.simulated import Ray


@pytest.mark.parametrize(
    ("placement", "taken", "expected"),
    [
        ("pack", [], "b"),  # the most room
        ("pack", ["a"], "a"),
        ("pack", ["a", "a"], "b"),
        ("pack", ["a", "a", "b", "b", "b", "c"], ""),
        ("spread", [], "b"),
        ("spread", ["b", "a"], "c"),
        ("spread", ["a", "b", "c"], "b"),
        ("spread", ["a", "a", "b", "c", "gone"], "b"),
    ],
)
def test_nodes_preferred_for_one_more_actor(placement: str, taken: list[str], expected: str) -> None:
    assert preferred_node(placement, {"a": 2, "b": 3, "c": 1}, taken) == expected


def test_fewer_than_min_actors_are_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pool, "ray", Ray(lambda *_: None))
    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(resources, "alive_nodes", lambda: {"node": {"CPU": 4.0}})
    monkeypatch.setattr(resources, "total_resources", lambda: {"CPU": 4.0})
    config = ClusterConfig(min_actors=2, cpus_per_actor=3, start_timeout_s=12.0)
    actors = ActorPool(Cluster(config, 0.0, False, Interruption()), Worker)
    first, second = actors.resize(num_left=8)
    wanted = re.escape("cluster.min_actors=2 (asked for: 2 actors with 3 CPU each). The cluster has 4 CPU")

    now += 12
    actors.check_alive()
    now += 0.1
    with pytest.raises(ClusterError, match=rf"no actor started within cluster\.start_timeout_s=12 s, with {wanted}"):
        actors.check_alive()
    first.address = Address("host", "node")
    with pytest.raises(ClusterError, match=rf"only 1 actor started within .*{wanted}"):
        actors.check_alive()
    second.address = Address("host", "node")
    actors.check_alive()
    actors.remove(second.name)
    now += 12
    actors.check_alive()
    now += 0.1
    with pytest.raises(ClusterError, match="only 1 actor started"):
        actors.check_alive()
