"""Whole runs with gradients."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

import coar_dist
from coar_dist.config.schema import (
    PILOT_GRADIENT_MASKS,
    PILOT_MASKS,
    AblationConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    GradientsConfig,
    RunConfig,
)
from coar_dist.errors import ConfigError
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.run_directory import RunDirectory
from coar_dist.tasks.outputs import OutputFunction
from coar_dist.tasks.task import Task
from tests.models import local_storage, small_task
from tests.small_run import without_ray

PINNED = {"mode": "weights", "rows_per_forward": 7, "compile": False}


def attribute_small(root: Path, **options: Any) -> coar_dist.Run:
    task = small_task()
    arguments: dict[str, Any] = {
        "num_masks": 30,
        "num_gradient_masks": 15,
        "ablation_fraction": 0.2,
        "ablation": AblationConfig(**PINNED, examples_per_block=4),
        "console": Console(file=io.StringIO(), width=200),
    }
    with without_ray():
        return coar_dist.attribute(
            task.model, task.examples.inputs, task.examples.targets, run_dir=root, **{**arguments, **options}
        )


def test_more_passes_extend_a_run(tmp_path: Path) -> None:
    attribute_small(tmp_path / "a")
    printed = io.StringIO()
    shutil.rmtree(tmp_path / "a" / "gradients" / "gradients" / "00000004-00000007")
    longer = attribute_small(tmp_path / "a", num_gradient_masks=25, console=Console(file=printed, width=200))
    rows = [line.split() for line in printed.getvalue().splitlines()]
    assert ["design", "for", "masks", "ablated", "there", "new"] in rows
    assert ["train", "without", "gradients", "30", "0.2", "30", "0"] in rows
    assert ["gradients", "with", "gradients", "25", "0.2", "9", "16"] in rows  # 15 of 4 examples, none of the other 3
    printed = io.StringIO()
    again = attribute_small(tmp_path / "a", num_gradient_masks=25, console=Console(file=printed, width=200))
    assert "80 masks: all there already" in printed.getvalue()
    at_once = attribute_small(tmp_path / "b", num_gradient_masks=25)
    np.testing.assert_allclose(
        longer.weights(method="gradient_ridge"), at_once.weights(method="gradient_ridge"), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(longer.weights(method="gradient_ridge"), again.weights(method="gradient_ridge"))


def test_gradients_alone_are_enough(tmp_path: Path) -> None:
    printed = io.StringIO()
    run = attribute_small(
        tmp_path,
        num_masks=0,
        num_gradient_masks=40,
        stages=["ablate", "fit", "evaluate", "report"],
        evaluation=EvaluationConfig(num_masks=60, ablation_fractions=[0.2], seed=9),
        console=Console(file=printed, width=200),
    )
    assert "COAR + gradients" in printed.getvalue()
    masks, truth = run.margins("evaluation_0.2")
    predicted = run.predict(masks, method="gradient_ridge")
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, truth.T, strict=True)]
    assert np.mean(correlations) > 0.8


def config_of(root: Path, **options: Any) -> Config:
    return Config(
        run=RunConfig(str(root)),
        stages=["ablate", "fit"],
        design=DesignConfig(num_masks=20, ablation_fraction=0.2),
        gradients=GradientsConfig(num_masks=10),
        baselines=[],
        evaluation=EvaluationConfig(ablation_fractions=[]),
        ablation=AblationConfig(**PINNED),
        **options,
    )


def test_a_budget_is_spent_and_resumed(tmp_path: Path) -> None:
    from coar_dist.components.discovery import discover

    for expected in ("masks, ", "there already"):
        task, printed = small_task(), io.StringIO()
        with without_ray():
            run_stages(
                config_of(tmp_path, budget=120.0),
                Console(file=printed, width=200),
                task,
                discover(task.model, "conv_filters"),
            )
        assert "ablate  120 passes: " in printed.getvalue()
        assert expected in printed.getvalue()
        run = RunDirectory.open(local_storage(tmp_path))
        cost = run.gradient_cost
        assert cost is not None
        with_gradients, without = run.design("gradients").num_masks, run.design("train").num_masks
        assert with_gradients >= 10
        assert without >= 20
        assert with_gradients * cost + without <= max(120, 10 * cost + 20) + 1


def test_attribute_spends_a_budget(tmp_path: Path, quiet: Console, repository: Path) -> None:
    pilot = OmegaConf.load(repository / "conf" / "estimator" / "budget.yaml")
    assert (pilot.design.num_masks, pilot.gradients.num_masks) == (PILOT_MASKS, PILOT_GRADIENT_MASKS)
    task = small_task()
    with without_ray():
        run = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=tmp_path,
            budget=90.0,
            num_masks=20,
            num_gradient_masks=10,
            ablation_fraction=0.2,
            console=quiet,
        )
    assert run.directory.design("gradients").num_masks >= 10
    assert run.directory.design("train").num_masks >= 20
    assert run.weights().shape == (len(task.examples), run.components.num_components)


def test_margins_without_a_gradient_are_refused_before_any_work(tmp_path: Path) -> None:
    task = small_task()
    rank = OutputFunction("rank", lambda outputs, _: outputs.argsort(dim=1)[:, 0].float(), lambda *_: None)
    counting = Task(task.model, task.examples, rank)
    from coar_dist.components.discovery import discover

    with without_ray(), pytest.raises(ConfigError, match=r"rank.* gradient.*estimator=coar"):
        run_stages(config_of(tmp_path), Console(file=io.StringIO()), counting, discover(counting.model, "conv_filters"))
    assert not any((tmp_path / "margins").rglob("*.parquet"))


def test_shards_of_passes_with_gradients_are_of_the_engine(tmp_path: Path) -> None:
    """The stored sums are those of the engine's own passes, example by example."""
    run = attribute_small(tmp_path).directory
    torch.manual_seed(0)
    from coar_dist.ablation.engine import AblationEngine
    from coar_dist.ablation.plan import EnginePlan
    from coar_dist.components.discovery import discover

    task = small_task()
    components = discover(task.model, "conv_filters")
    engine = AblationEngine(task, components, "cpu", "float32", EnginePlan("weights", 8, compiled=False))
    for store in run.gradients("gradients"):
        for masks, stored in store.read():
            direct = engine.gate_gradients(masks, store.block)
            for name in ("margins", "kept", "ablated", "kept_squares", "ablated_squares"):
                np.testing.assert_allclose(getattr(stored, name), getattr(direct, name), rtol=1e-3, atol=1e-4)
