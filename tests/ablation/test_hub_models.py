"""Models of Hugging Face through the engine, held to the slow truth, and whole runs of them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle
from rich.console import Console

import coar_dist
from coar_dist.ablation.engine import AblationEngine
from coar_dist.ablation.plan import EnginePlan
from coar_dist.components.discovery import discover
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import AblationConfig, ComponentRule, EvaluationConfig, ModelConfig
from coar_dist.tasks.build import build_model
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from tests.hub_models import MODELS, pixels, save_tiny_clip, tiny_task
from tests.models import random_masks, slow_margins
from tests.small_run import without_ray


def assert_exact(task: Task, components: ComponentIndex) -> None:
    """Both modes and gradient passes give the margins of zeroed weights."""
    masks = random_masks(4, components.num_components, 0.2)
    truth = slow_margins(task, components, masks)
    assert truth.std(axis=0).min() > 0
    tolerance = {"rtol": 1e-3, "atol": 5e-5 * (1 + np.abs(truth).max())}
    for mode in ("weights", "rows"):
        engine = AblationEngine(
            copy.deepcopy(task), components, "cpu", "float32", EnginePlan(mode, 3, compiled=False, gradient_rows=8)
        )
        np.testing.assert_allclose(engine.margins(masks), truth, err_msg=mode, **tolerance)
    gradients = engine.gate_gradients(masks, (0, len(task.examples)))
    np.testing.assert_allclose(gradients.margins, truth, **tolerance)
    assert np.isfinite(gradients.kept).all()
    assert gradients.kept.std() > 0


@pytest.mark.parametrize("name", list(MODELS))
def test_the_engine_is_exact(name: str) -> None:
    task, selector = tiny_task(name)
    task.check()
    assert_exact(task, discover(task.model, selector))


def test_heads_and_blocks_of_neurons_by_rules() -> None:
    """As the preset boolq_phi2 has them."""
    task, _ = tiny_task("phi")
    rules = [ComponentRule("*.self_attn.dense.weight", 1, 4), ComponentRule("*.mlp.fc2.weight", 1, 4)]
    components = discover(task.model, "rules", rules=rules)
    assert components.num_components == 2 * (2 + 3)
    assert_exact(task, components)


def test_the_image_tower_of_clip(tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "clip")
    arguments = {"name": str(tmp_path / "clip"), "class_names": ["cat", "dog", "bird"]}
    model = build_model(ModelConfig("clip_zero_shot", arguments, input_mean=[0.5] * 3, input_std=[0.3] * 3)).eval()
    task = Task(model, pixels(torch.Generator().manual_seed(1)), output_function("margin"))
    task.check()
    components = discover(model, "linear_rows", ["vision_model.*"])
    assert components.num_components == 2 * (4 * 8 + 12 + 8)
    assert_exact(task, components)


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_a_whole_run(name: str, tmp_path: Path, quiet: Console) -> None:
    """Model and examples as they arrive at actors; attributions come back."""
    task, selector = tiny_task(name)
    model, inputs = cloudpickle.loads(cloudpickle.dumps((task.model, task.examples.inputs)))
    with without_ray():
        run = coar_dist.attribute(
            model,
            inputs,
            task.examples.targets,
            components=selector,
            output_function=task.output_function.name,
            run_dir=tmp_path / "run",
            num_masks=24,
            num_gradient_masks=12,
            ablation_fraction=0.2,
            stages=("ablate", "fit", "evaluate"),
            baselines=[],
            evaluation=EvaluationConfig(num_masks=8, ablation_fractions=[0.2], seed=7),
            ablation=AblationConfig(mode="weights", rows_per_forward=8, compile=False),
            console=quiet,
        )
    masks, margins = run.margins("train")
    truth = slow_margins(tiny_task(name)[0], run.components, masks)
    np.testing.assert_allclose(margins, truth, rtol=1e-3, atol=5e-5 * (1 + np.abs(truth).max()))
    assert run.weights().shape == (len(task.examples), run.components.num_components)
    assert np.isfinite(run.weights()).all()
