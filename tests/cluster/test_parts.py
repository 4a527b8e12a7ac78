"""The cluster's small parts, each alone and without Ray: signals, addresses, what actors died of, metrics."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RayError

from coar_dist.cluster import connection, metrics, pool, resources, visibility
from coar_dist.cluster.actors import Member
from coar_dist.cluster.interruption import Interruption
from coar_dist.cluster.metrics import RunMetrics
from coar_dist.cluster.pool import ActorPool, cause, node_died
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.resources import Cluster
from coar_dist.cluster.visibility import require_shard
from coar_dist.cluster.work import Origin, SharedPlan
from coar_dist.cluster.worker import Address, Worker
from coar_dist.cluster.writing import RangeReport
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import StorageError
from tests.cluster.simulated import Ray


def test_a_signal_is_noted_the_second_raises_and_handlers_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        interruption = Interruption()
        interruption.raise_if_set()
        interruption.install()
        try:
            os.kill(os.getpid(), number)
            with pytest.raises(KeyboardInterrupt):
                interruption.raise_if_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        finally:
            interruption.remove()
        assert [signal.getsignal(number) for number in numbers] == before


def test_a_notice_is_no_interruption() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    interruption = Interruption()
    interruption.install()
    try:
        assert not interruption.is_noticed
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        interruption.raise_if_set()
        assert interruption.is_noticed
    finally:
        interruption.remove()
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "without RAY_AUTH_MODE"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, "with RAY_AUTH_MODE=disabled"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, "with the token in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/b"}, "with the token in /a/b, if any"),
        ({"RAY_AUTH_MODE": "token"}, "with the token in ~/.ray/auth_token, if any"),
    ],
)
def test_messages_say_which_token_was_tried(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert connection._token_help().endswith(f"RAY_AUTH_TOKEN_PATH. This process tried {expected}.")


@pytest.mark.parametrize(
    ("config", "environment", "expected"),
    [
        (ClusterConfig(), None, "local"),
        (ClusterConfig(), "here:1", "here:1"),
        (ClusterConfig(address="there:2"), "here:1", "there:2"),
        (ClusterConfig(address="local"), "here:1", "local"),
    ],
)
def test_the_address_is_the_option_s_then_the_environment_s(
    config: ClusterConfig, environment: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert connection._address(config) == expected


def test_what_an_actor_died_of_is_one_line() -> None:
    text = (
        "The actor died unexpectedly before finishing this task. \n\tclass_name: A\nIt was  killed. Some common causes"
    )
    assert cause(RayError(text + " are many")) == "It was killed."
    assert cause(RayError("x" * 400)) == "x" * 400
    assert cause(RayError("x" * 401)) == "x" * 400 + "..."


def test_an_actor_may_be_gone_because_its_node_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "alive_nodes", lambda: {"alive": {}})
    here, elsewhere = (Member("a", None, Address("host", node)) for node in ("alive", "gone"))
    nowhere = Member("a", None, preferred_node="gone")
    assert (here.node_id, nowhere.node_id) == ("alive", "gone")
    for member in (here, nowhere):
        assert node_died(member, ActorUnavailableError("unavailable", None))
        assert node_died(member, NodeDiedError("a node"))
        assert node_died(member, RayError("The actor is dead because its node has died."))
        assert not node_died(member, ActorDiedError())
    assert node_died(elsewhere, ActorDiedError())


class Options:
    """Notes with what each actor is asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def options(self, **options: Any) -> SimpleNamespace:
        self.asked.append(options)
        return SimpleNamespace(remote=lambda: SimpleNamespace())


def pool_of(config: ClusterConfig, nodes: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> ActorPool:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pool, "ray", Ray(lambda *_: None))
    monkeypatch.setattr(pool, "time", clock)
    monkeypatch.setattr(resources, "alive_nodes", lambda: nodes)
    actors = ActorPool(Cluster(config, 0.5, False, Interruption()), Worker)
    actors._class = Options()
    return actors


def test_there_are_as_many_actors_as_the_nodes_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"a": {"CPU": 4.0, "GPU": 1.0}, "b": {"CPU": 3.0, "GPU": 4.0}}
    actors = pool_of(ClusterConfig(cpus_per_actor=2), nodes, monkeypatch)
    assert [member.name for member in actors.resize(9)] == ["actor-0", "actor-1", "actor-2"]
    assert actors._class.asked == [{"num_cpus": 2, "num_gpus": 0.5, "max_restarts": 0}] * 3
    assert (actors.resize(9), actors.num_wanted) == ([], 3)
    nodes["c"] = {"CPU": 4.0, "GPU": 1.0}
    pool.time.now += 1.9  # type: ignore[attr-defined]  # the cluster is looked at every two seconds
    assert actors.resize(9) == []
    pool.time.now += 0.1  # type: ignore[attr-defined]
    assert [member.name for member in actors.resize(9)] == ["actor-3", "actor-4"]
    for name in ("actor-0", "actor-2", "actor-3"):
        actors.members[name].address = Address("host", "a")
    assert actors.resize(4) == []
    assert list(actors.members) == ["actor-0", "actor-1", "actor-2", "actor-3"]  # the last that waited is gone
    assert actors.resize(2) == []
    assert list(actors.members) == ["actor-0", "actor-2", "actor-3"]  # who is at work stays
    actors.remove_all()
    assert actors.members == {}
    assert [member.name for member in actors.resize(1)] == ["actor-5"]


def test_actors_wish_for_the_node_of_their_placement(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = "a" * 56, "b" * 56
    nodes = {a: {"CPU": 2.0, "GPU": 1.0}, b: {"CPU": 1.0, "GPU": 1.0}}
    for placement, expected in (("pack", [a, a, b, ""]), ("spread", [a, b, a, ""])):
        actors = pool_of(ClusterConfig(placement=placement, max_actors=4), nodes, monkeypatch)
        assert [member.preferred_node for member in actors.resize(9)] == expected
        wishes = [options.get("scheduling_strategy") for options in actors._class.asked]
        assert [wish and (wish.node_id, wish.soft) for wish in wishes] == [(n, True) if n else None for n in expected]


def test_origins_have_the_fields_that_are_known() -> None:
    assert Origin("a", "n").fields() == {"actor": "a", "node": "n"}
    assert Origin("a", "n", "file").fields() == {"actor": "a", "node": "n", "shard": "file"}
    plans = [SharedPlan(value, None, must) for value in (None, "plan") for must in (False, True)]
    assert [plan.needs_start for plan in plans] == [True, True, False, True]


def test_a_shard_that_the_driver_does_not_see_is_looked_for_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(visibility, "time", SimpleNamespace(sleep=slept.append))
    looks: list[tuple[int, int]] = []
    there_from = 14

    def has(start: int, stop: int) -> bool:
        looks.append((start, stop))
        return len(looks) >= there_from

    storage = SimpleNamespace(where=lambda name: f"/here/{name}")
    store: Any = SimpleNamespace(has=has, file=lambda start, stop: f"{start}-{stop}", storage=storage)
    work_range, waits = WorkRange("train", 4, 7, "masks"), []
    with pytest.raises(StorageError, match=r"node host computed masks 4\.\.6 of 'train', but /here/4-7 is not there"):
        require_shard(store, work_range, "host", lambda: waits.append(1))
    assert looks == [(4, 7)] * 10
    assert slept == [0.5] * 10
    assert len(waits) == 10
    require_shard(store, work_range, "host", lambda: waits.append(1))
    assert (len(looks), len(waits)) == (14, 13)


class Recorded:
    """A metric that keeps what it is told."""

    def __init__(self, name: str, description: str, tags: tuple[str, ...]) -> None:
        assert description
        self.tags, self.told = tags, []  # type: ignore[var-annotated]

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(sorted(tags)) == tuple(sorted(self.tags))
        self.told.append((value, tags))

    set = inc


class Counted(Recorded):
    pass


class Gauged(Recorded):
    pass


def test_metrics_are_of_the_run_the_node_and_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {metrics.Counter: Counted, metrics.Gauge: Gauged}
    table = {name: metrics.Metric(kinds[m.kind], m.tags, m.description) for name, m in metrics.METRICS.items()}  # type: ignore[arg-type]
    monkeypatch.setattr(metrics, "METRICS", table)
    monkeypatch.setattr(metrics, "Counter", Counted)
    monkeypatch.setattr(metrics, "Gauge", Gauged)
    found = RunMetrics("run")
    tags = {"run": "run", "node": "host", "actor": "actor-1"}
    report = RangeReport(wait_s=0.5, forward_s=2.0, write_s=0.0, gpu_memory_bytes=None)
    found.count_range(WorkRange("train", 4, 10, "masks"), 60, report, True, "actor-1", "host")
    found.count_range(WorkRange("train", 4, 10, "masks"), 60, report, False, "actor-1", "host")
    with_gpu = RangeReport(0.0, 1.0, 1.0, gpu_memory_bytes=7)
    found.count_range(WorkRange("baseline", 0, 3, "examples"), 0, with_gpu, True, "actor-1", "host")
    found.set_of_run("coar_masks_left", 5)
    told = {name: metric.told for name, metric in found._metrics.items() if metric.told}  # type: ignore[attr-defined]
    assert told == {
        "coar_shards_done_total": [(1, tags), (1, tags)],
        "coar_masks_done_total": [(6, tags)],
        "coar_margins_done_total": [(60, tags)],
        "coar_examples_done_total": [(3, tags)],
        "coar_forward_seconds_total": [(2.0, tags), (2.0, tags), (1.0, tags)],
        "coar_write_seconds_total": [(1.0, tags)],
        "coar_wait_seconds_total": [(0.5, tags), (0.5, tags)],
        "coar_gpu_memory_peak_bytes": [(7, tags)],
        "coar_masks_left": [(5, {"run": "run"})],
    }
