"""A driver without the model's weights: what it knows and checks is what it would be with them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from torch import nn

from coar_dist.cluster import dispatch
from coar_dist.cluster.packing import packed
from coar_dist.cluster.work import DriverCallbacks, Work
from coar_dist.config.schema import (
    AblationConfig,
    ClusterConfig,
    ComponentsConfig,
    Config,
    DesignConfig,
    EditConfig,
    EvaluationConfig,
    ExampleGroup,
    ExamplesConfig,
    ModelConfig,
    RegressionConfig,
    RunConfig,
    TaskConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.errors import TaskError
from coar_dist.stages import checks, inputs, responses
from coar_dist.stages.inputs import components_of, identity_of, task_of
from coar_dist.stages.pipeline import run_stages
from coar_dist.stages.session import Session
from coar_dist.tasks.elsewhere import is_without_weights, weights_of

RESNET = ModelConfig("digits_resnet", {"width": 4, "num_blocks": 1})
VIT = ModelConfig("small_vit", {"image_size": 8, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 4})


def config_of(folder: Path, model: ModelConfig = RESNET, **changes: Any) -> Config:
    from safetensors.torch import save_file

    from coar_dist.tasks.build import untrained_model

    save_file(untrained_model(model).state_dict(), folder / "weights.safetensors")
    settings: dict[str, Any] = {
        "stages": ["ablate", "fit"],
        "run": RunConfig(str(folder / "run")),
        "task": TaskConfig(
            replace(model, checkpoint=str(folder / "weights.safetensors")),
            ExamplesConfig("digits", {"split": "test", "num_examples": 20}),
        ),
        "design": DesignConfig(num_masks=60, ablation_fraction=0.2),
        "baselines": ["leave_one_out"],
        "ablation": AblationConfig(precision="float32"),
        "cluster": ClusterConfig(address="head"),
    }
    return Config(**{**settings, **changes})


def session_of(config: Config) -> Session:
    return Session(config, Terminal(Console(file=io.StringIO())))


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A worker is told what a real one is: packed, and without this process' objects."""
    if "ray_cluster" in request.fixturenames:
        return
    monkeypatch.setattr(inputs, "answer_of_an_actor", lambda _, function: packed(packed(function).value()()).value())
    monkeypatch.setattr(checks, "check_place", lambda _: None)


@pytest.mark.parametrize(
    ("model", "selector", "value"),
    [
        (RESNET, "auto", "zero_weights"),
        (RESNET, "conv_filters", "mean"),
        (RESNET, "conv_filters", "resample"),
        (VIT, "auto", "mean"),
        (VIT, "heads", "zero"),
        (VIT, "neurons", "zero_weights"),
    ],
)
def test_it_knows_all_that_it_would_know(tmp_path: Path, model: ModelConfig, selector: str, value: str) -> None:
    settings = {"components": ComponentsConfig(selector), "ablation": AblationConfig(value=value, precision="float32")}
    away = session_of(config_of(tmp_path, model, **settings))
    here = session_of(config_of(tmp_path, model, **settings, cluster=ClusterConfig(where="process")))
    for session in (away, here):
        checks.check_ablate_stage(session)
    tasks = [task_of(session) for session in (away, here)]
    assert [is_without_weights(task.model) for task in tasks] == [True, False]
    assert tasks[0].check() == tasks[1].check()
    found = [components_of(session, task.model) for session, task in zip((away, here), tasks, strict=True)]
    assert identity_of(away, tasks[0], found[0]) == identity_of(here, tasks[1], found[1])
    assert found[0].names() == found[1].names()
    sent = packed(tasks[0]).value()
    assert weights_of(sent.model) == weights_of(tasks[1].model)
    assert sent.check() == tasks[1].check()


def test_without_a_joined_cluster_the_weights_are_here(tmp_path: Path) -> None:
    assert not is_without_weights(task_of(session_of(config_of(tmp_path, cluster=ClusterConfig()))).model)


EDIT = EditConfig(
    target=ExampleGroup(classes=[1, 2, 3], sample=3),
    metric="output",
    max_components=4,
    compare=["magnitude"],
    keep={"others": 2.0},
)


def files_after(folder: Path, value: str, changes: dict[str, Any], cluster: ClusterConfig) -> dict[str, bytes]:
    """The files of a run with an edit and, where there can be one, a gradient baseline."""
    folder.mkdir()
    config = config_of(
        folder,
        stages=["ablate", "fit", "edit"],
        baselines=["gradient_x_parameter"] if value == "zero_weights" else [],
        evaluation=EvaluationConfig(num_masks=4),
        ablation=AblationConfig(value=value, precision="float32", mode="weights", rows_per_forward=64),
        regression=RegressionConfig(distributed=False),
        edit=replace(EDIT, **changes),
        cluster=cluster,
    )
    config.task.examples.arguments["num_examples"] = 60
    run_stages(config, Console(file=io.StringIO()))
    files = [path for path in folder.rglob("*") if path.suffix == ".parquet" or "edit" in path.stem]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        ("zero_weights", {}),
        ("zero", {"examples": ExamplesConfig("digits", {"split": "train", "num_examples": 60})}),
    ],
    ids=["weights", "values, examples of its own"],
)
def test_edits_and_gradient_baselines_are_what_they_are_with_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, changes: dict[str, Any]
) -> None:
    here = files_after(tmp_path / "here", value, changes, ClusterConfig(where="process"))
    run_ranges = dispatch.run_ranges

    def on_an_actor(_: ClusterConfig, work: Work, callbacks: DriverCallbacks) -> None:
        assert is_without_weights(work.task.model)
        there = replace(work, task=packed(work.task).value())
        run_ranges(ClusterConfig(where="process"), there, callbacks)

    @contextmanager
    def executing(_config: ClusterConfig, _predict: object, _way_out: str) -> Iterator[Callable[..., list[Any]]]:
        def execute(
            function: Callable[[Any, None], Any], shared: tuple[nn.Module, Any], items: list[None]
        ) -> list[Any]:
            assert is_without_weights(shared[0])
            return [packed(function(packed(shared).value(), item)).value() for item in items]

        yield execute

    monkeypatch.setattr(dispatch, "run_ranges", on_an_actor)
    monkeypatch.setattr(responses, "executing", executing)
    monkeypatch.setattr(inputs, "build_task", None)  # which would build the model here
    away = files_after(tmp_path / "away", value, changes, ClusterConfig(address="head"))
    assert {"run/edits/edit/edited.safetensors", "run/responses/00000000-00000036.parquet"} <= away.keys()
    assert sorted(away) == sorted(here)
    assert [name for name in away if away[name] != here[name]] == []


@pytest.mark.slow
def test_they_are_the_same_from_the_workers_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    here = files_after(tmp_path / "here", "zero_weights", {}, ClusterConfig(where="process"))
    monkeypatch.setattr(inputs, "build_task", None)
    address = ray.get_runtime_context().gcs_address
    assert files_after(tmp_path / "there", "zero_weights", {}, ClusterConfig(address, max_actors=1)) == here


def test_what_workers_cannot_build_is_built_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: object, function: object) -> None:
        raise TaskError("task.model.checkpoint='weights.safetensors': there is no such file.")

    monkeypatch.setattr(inputs, "answer_of_an_actor", answer)
    caplog.set_level("INFO")
    assert not is_without_weights(task_of(session_of(config_of(tmp_path))).model)
    assert "the model is built here, because it cannot be on a worker: task.model.checkpoint=" in caplog.text
