"""Prometheus reads the run's own numbers off a Ray node."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray
import torch
from rich.console import Console

import coar_dist
from coar_dist.ablation.actor import AblationActor, AblationJob
from coar_dist.ablation.plan import PlanPins
from coar_dist.ablation.value import ZeroWeights
from coar_dist.baselines.actor import BaselineActor
from coar_dist.cluster.metrics import METRICS, RunMetrics
from coar_dist.cluster.ranges import WorkRange
from coar_dist.cluster.worker import Answer
from coar_dist.components.discovery import discover
from coar_dist.config.schema import ClusterConfig
from coar_dist.designs.independent import Bernoulli
from coar_dist.store.margins import MarginStore
from tests.cluster.driving import PLAN
from tests.models import local_storage, small_task


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """30 masks of 7 examples in 8 shards, of which one raises once, and one kills its actor once."""
    command = [sys.executable, "-m", "tests.cluster.metrics_run", str(tmp_path_factory.mktemp("metrics"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def total(scraped: dict[str, Any], name: str) -> float:
    return sum(value for metric, _, _, _, value in scraped["series"] if metric == f"ray_{name}")


@pytest.mark.slow
@pytest.mark.cluster
def test_counters_have_exactly_the_run_s_numbers(scraped: dict[str, Any]) -> None:
    counts = scraped["counts"]
    assert (counts["num_units"], counts["num_shards"], counts["num_failed"], counts["num_lost"]) == (30, 8, 1, 1)
    assert counts["num_retried"] >= 2
    for name, value in {
        "coar_shards_done_total": 8,
        "coar_masks_done_total": 30,
        "coar_margins_done_total": 30 * 7,
        "coar_shards_failed_total": 1,
        "coar_actors_lost_total": 1,
        "coar_shards_retried_total": counts["num_retried"],
        "coar_masks_left": 0,
        "coar_actors_alive": 0,
    }.items():
        assert total(scraped, name) == value, name


@pytest.mark.slow
@pytest.mark.cluster
def test_actors_say_where_their_time_goes(scraped: dict[str, Any]) -> None:
    for name in ("coar_forward_seconds_total", "coar_write_seconds_total", "coar_wait_seconds_total"):
        assert 0 < total(scraped, name) < 60, name
    by_actor = {
        actor: value for metric, _, _, actor, value in scraped["series"] if metric == "ray_coar_shards_done_total"
    }
    assert len(by_actor) >= 2
    assert set(by_actor) <= {f"actor-{i}" for i in range(6)}
    assert {node for _, _, node, actor, _ in scraped["series"] if actor} == {socket.gethostname()}


@pytest.mark.slow
@pytest.mark.cluster
def test_every_metric_but_those_of_gpus_and_baselines_is_exported(scraped: dict[str, Any]) -> None:
    kinds = {f"ray_{name}": metric.kind.__name__.lower() for name, metric in METRICS.items()}
    others = {"ray_coar_examples_done_total", "ray_coar_examples_left"}
    if not torch.cuda.is_available():
        others.add("ray_coar_gpu_memory_peak_bytes")
    assert scraped["types"] == {name: kind for name, kind in kinds.items() if name not in others}


def test_names_follow_prometheus() -> None:
    for name, metric in METRICS.items():
        assert name.endswith("_total") == (metric.kind is ray.util.metrics.Counter), name
        assert metric.description.endswith("."), name


def test_time_adds_up_to_the_time_of_the_actor(tmp_path: Path) -> None:
    task = small_task()
    components = discover(task.model, "conv_filters")
    design = Bernoulli(components.num_components, 20, 0.2, seed=2)
    store = MarginStore(local_storage(tmp_path), "margins/train", "x", components.num_components, 20, 7, 7, "float32")
    actor = AblationActor()
    actor.setup(
        task,
        AblationJob(ZeroWeights(components), {"train": (design, store)}, "float32", None, PlanPins()),
        num_threads=1,
    )
    actor.use(PLAN)
    answers = [actor.run(WorkRange("train", start, start + 10, "masks")) for start in (0, 10)]
    reports = [report for answer in (*answers, actor.flush()) for _, report in answer.written]
    assert [sum(getattr(report, name) > 0 for name in ("wait_s", "forward_s", "write_s")) for report in reports] == [
        3,
        3,
    ]
    assert reports[1].wait_s < reports[1].forward_s
    assert (reports[0].gpu_memory_bytes is None) == (not torch.cuda.is_available())


class WithGpu(BaselineActor):
    """An actor that says that it has a GPU."""

    def run(self, examples: WorkRange) -> Answer:
        return _with_gpu(super().run(examples))

    def flush(self) -> Answer:
        return _with_gpu(super().flush())


def _with_gpu(answer: Answer) -> Answer:
    return replace(answer, written=tuple((each, replace(told, gpu_memory_bytes=5000)) for each, told in answer.written))


class Recorder(RunMetrics):
    """Keeps what is recorded."""

    found: ClassVar[dict[str, float]] = {}

    def add(self, name: str, value: float, actor: str, node: str) -> None:
        super().add(name, value, actor, node)
        self.found[name] = self.found.get(name, 0.0) + value

    def set_of_actor(self, name: str, value: float, actor: str, node: str) -> None:
        super().set_of_actor(name, value, actor, node)
        self.found[f"{name} of {actor}"] = value

    def set_of_run(self, name: str, value: float) -> None:
        super().set_of_run(name, value)
        self.found[name] = value


@pytest.mark.slow  # the counters of masks are in the tests above
def test_baselines_count_examples_and_gpus_their_memory(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coar_dist.stages.baselines.BaselineActor", WithGpu)
    monkeypatch.setattr("coar_dist.cluster.metrics.RunMetrics", Recorder)
    task = small_task()
    coar_dist.attribute(
        task.model,
        task.examples.inputs,
        task.examples.targets,
        run_dir=tmp_path / "run",
        num_masks=20,
        stages=["ablate"],
        baselines=["gradient_x_parameter"],
        cluster=ClusterConfig(where="ray", max_actors=1),
        console=Console(file=io.StringIO()),
    )
    found = Recorder.found
    assert (found["coar_examples_done_total"], found["coar_examples_left"]) == (7, 0)
    assert (found["coar_masks_done_total"], found["coar_masks_left"]) == (20, 0)
    assert found["coar_margins_done_total"] == 20 * 7
    assert found["coar_shards_done_total"] == 2
    assert found["coar_gpu_memory_peak_bytes of actor-0"] == 5000
