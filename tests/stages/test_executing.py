"""Where fits run: a cluster is joined when there is something to run, and not before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import add

import pytest

from coar_dist.cluster.execution import Execute, in_this_process
from coar_dist.config.schema import ClusterConfig, Config, RegressionConfig, RunConfig
from coar_dist.stages.executing import executing_fits


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to connections."""
    events: list[str] = []

    @contextlib.contextmanager
    def on_cluster(config: ClusterConfig, way_out: str) -> Iterator[Execute]:
        events.append(f"joined {config.address}")
        yield in_this_process
        events.append("left")

    monkeypatch.setattr("coar_dist.cluster.ray_tasks.on_cluster", on_cluster)
    return events


def config_of(distributed: bool) -> Config:
    regression = RegressionConfig(distributed=distributed)
    return Config(run=RunConfig("runs/none"), cluster=ClusterConfig(address="10.0.0.1:6379"), regression=regression)


def test_a_cluster_is_joined_once_by_the_first_part(connections: list[str]) -> None:
    with executing_fits(config_of(distributed=True)) as execute:
        assert list(execute(add, 1, [])) == []
        assert connections == []
        assert list(execute(add, 1, [2, 3])) == [3, 4]
        assert [kept.read() for kept in execute.keep(add, 1, [2])] == [3]
        assert (execute.width, execute.ask(str, 5)) == (1, "5")
        assert connections == ["joined 10.0.0.1:6379"]
    assert connections == ["joined 10.0.0.1:6379", "left"]


@pytest.mark.parametrize("distributed", [True, False])
def test_none_is_joined_where_nothing_runs_or_all_runs_here(connections: list[str], distributed: bool) -> None:
    with executing_fits(config_of(distributed)) as execute:
        if not distributed:
            assert list(execute(add, 1, [2])) == [3]
    assert connections == []
