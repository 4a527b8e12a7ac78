from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import AuthenticationError

from coar_dist.cluster.connection import check_cluster, connect
from coar_dist.cluster.execution import in_this_process
from coar_dist.cluster.resources import own_resources
from coar_dist.config.schema import ClusterConfig
from coar_dist.errors import ClusterError


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
    """4 CPU and a GPU, folders that can be written, and no cluster named by the environment."""
    monkeypatch.setattr("coar_dist.cluster.connection.check_folders", lambda: None)
    monkeypatch.setattr("coar_dist.cluster.connection.own_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
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


def test_a_cluster_that_does_not_start_leaves_nothing_behind(
    small_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def time_out(**options: object) -> None:
        tries.append(options)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", time_out)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with (
        pytest.raises(ClusterError, match=r"^no Ray cluster could be started on this machine \(.*timed out during"),
        connect(ClusterConfig()),
    ):
        pass
    assert len(tries) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_folders_are_checked_before_any_work_and_before_ray_tries(
    small_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ClusterError("cannot write to RAY_TMPDIR")

    monkeypatch.setattr("coar_dist.cluster.connection.check_folders", refuse)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("it was started"))
    with pytest.raises(ClusterError, match="RAY_TMPDIR"):
        check_cluster(ClusterConfig())
    with pytest.raises(ClusterError, match="RAY_TMPDIR"), connect(ClusterConfig()):
        pass


@pytest.mark.parametrize("is_connected", [False, True])
def test_a_connection_is_closed_by_who_opened_it(
    small_machine: None, is_connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: is_connected)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("closed"))
    monkeypatch.setattr("coar_dist.cluster.connection.total_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    config = ClusterConfig(cpus_per_actor=2)
    with connect(config) as cluster:
        assert (cluster.config, cluster.num_gpus, cluster.is_fixed) == (config, 1.0, not is_connected)
        assert [signal.getsignal(number) for number in numbers] == [cluster.interruption._handle] * 2
        cluster.raise_if_interrupted()
        cluster.interruption._handle(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            cluster.raise_if_interrupted()
    assert [signal.getsignal(number) for number in numbers] == before
    options = {"address": "local", "include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    assert calls == ([] if is_connected else [options, "closed"])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (SystemExit(), KeyboardInterrupt, None),
        (
            AuthenticationError("no"),
            ClusterError,
            r"cluster\.address='head' cannot be joined without its token\. If the",
        ),
        (ValueError("nobody"), ClusterError, r"cluster\.address='head' cannot be reached: nobody\. Start it with 'ray"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_tried_once(
    small_machine: None,
    error: BaseException,
    kind: type[BaseException],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[dict[str, object]] = []

    def fail(**options: object) -> None:
        tries.append(options)
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(kind, match=message), connect(ClusterConfig(address="head")):
        pass
    assert [(options["address"], options["include_dashboard"]) for options in tries] == [("head", None)]


def test_items_are_run_here_in_order() -> None:
    assert list(in_this_process(lambda shared, item: (shared, item), "shared", [3, 1])) == [
        ("shared", 3),
        ("shared", 1),
    ]


@pytest.mark.cluster
@pytest.mark.slow
def test_ray_has_the_resources_that_were_counted() -> None:
    with connect(ClusterConfig(address="local")):
        found = ray.cluster_resources()
    assert {name: found.get(name, 0.0) for name in ("CPU", "GPU")} == own_resources()
