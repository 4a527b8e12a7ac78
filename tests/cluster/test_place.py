"""Where work runs: in the calling process, or on Ray."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from coar_dist.cluster import connection, dispatch
from coar_dist.cluster.place import is_here, may_be_here
from coar_dist.config.schema import ClusterConfig
from coar_dist.config.settings import cluster_of
from coar_dist.errors import ClusterError, ConfigError


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    set_ray(monkeypatch, is_up=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def set_ray(monkeypatch: pytest.MonkeyPatch, is_up: bool) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: is_up))


def refuse() -> float:
    raise AssertionError("nothing depends on how long it takes")


def test_small_work_is_here_and_large_work_is_not() -> None:
    for options in ({}, {"max_actors": 1}, {"cpus_per_actor": 4, "max_attempts": 1}):
        assert is_here(ClusterConfig(**options), lambda: 59.0)
        assert not is_here(ClusterConfig(**options), lambda: 61.0)
        assert not is_here(ClusterConfig(**options), lambda: math.inf)


@pytest.mark.parametrize(
    "options",
    [
        {"address": "auto"},
        {"address": "local"},
        {"max_actors": 2},
        {"min_actors": 2},
        {"gpus_per_actor": 0.0},
        {"placement": "pack"},
        {"start_timeout_s": 9.0},
        {"ranges_in_flight": 1},
        {"where": "ray"},
    ],
)
def test_an_option_that_ray_alone_reads_asks_for_ray(options: Mapping[str, Any]) -> None:
    assert not may_be_here(ClusterConfig(**options))
    assert not is_here(ClusterConfig(**options), refuse)


def test_a_cluster_that_there_is_already_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (
        lambda patch: patch.setenv("RAY_ADDRESS", "head:1"),
        lambda patch: set_ray(patch, is_up=True),
        lambda patch: patch.setattr(torch.cuda, "device_count", lambda: 2),  # which would share the work
    ):
        with monkeypatch.context() as patch:
            change(patch)
            assert not is_here(ClusterConfig(), refuse)
            assert is_here(ClusterConfig(where="process"), refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert may_be_here(ClusterConfig())


def test_what_ray_would_be_asked_before_it_starts_is_not_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ClusterConfig] = []
    monkeypatch.setattr(connection, "check_cluster", asked.append)
    for config in (ClusterConfig(), ClusterConfig(where="process", cpus_per_actor=999)):
        dispatch.check_place(config)
    assert asked == []
    for config in (ClusterConfig(max_actors=2), ClusterConfig(cpus_per_actor=999)):
        dispatch.check_place(config)
        assert asked.pop() is config


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ClusterConfig()),
        ("ray", ClusterConfig(where="ray")),
        ({"max_actors": 2, "where": "ray"}, ClusterConfig(where="ray", max_actors=2)),
        (ClusterConfig("head:1"), ClusterConfig("head:1")),
    ],
)
def test_a_cluster_is_given_whole_or_by_options_or_by_its_place(given: Any, expected: ClusterConfig) -> None:
    assert cluster_of(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_actor": 2}, r"cluster\.max_actor: unknown key\. Did you mean cluster\.max_actors"),
        (3, r"cluster=3: must be a ClusterConfig, a dict of its options, or a value of 'where'"),
    ],
)
def test_what_is_no_cluster_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster_of(given)


def test_errors_of_ray_are_those_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_config: ClusterConfig) -> None:
        raise ClusterError("no room")

    monkeypatch.setattr(connection, "connect", fail)
    with pytest.raises(ClusterError, match="no room"), dispatch.connected(ClusterConfig()):
        pass
