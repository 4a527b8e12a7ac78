"""Whole runs with gradient baselines."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import coar_dist
from coar_dist.baselines.gradient_baselines import GradientBaselines
from coar_dist.config.methods import BASELINES, GRADIENT_BASELINES
from coar_dist.config.schema import (
    AblationConfig,
    BaselineConfig,
    ClusterConfig,
    EvaluationConfig,
)
from coar_dist.console.saying import Terminal
from coar_dist.errors import ConfigError, MissingWorkError
from coar_dist.report.inspection import inspect_run
from tests.models import local_storage, small_task
from tests.small_run import files_of, without_ray

NUM_STEPS = 6
TO_THE_REPORT = ("ablate", "fit", "evaluate", "report")
SHARDS = "baselines/neuron_conductance_num_steps_6"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coar_dist.stages.baselines._FEWEST_ON_PATH", 2)


def attribute_small(root: Path, **options: Any) -> tuple[coar_dist.Run, str]:
    """The run, and what it said."""
    task, printed = small_task(), io.StringIO()
    arguments: dict[str, Any] = {
        "num_masks": 30,
        "ablation_fraction": 0.2,
        "stages": ("ablate", "fit", "evaluate"),
        "baselines": list(BASELINES),
        "baseline_settings": BaselineConfig(num_steps=NUM_STEPS),
        "evaluation": EvaluationConfig(num_masks=40, ablation_fractions=[0.2], seed=9),
        "ablation": AblationConfig(mode="weights", rows_per_forward=7, compile=False, examples_per_block=4),
        "cluster": ClusterConfig(max_actors=1),
        "console": Console(file=printed, width=200),
    }
    run = coar_dist.attribute(
        task.model, task.examples.inputs, task.examples.targets, run_dir=root, **{**arguments, **options}
    )
    return run, printed.getvalue()


def baseline_files(root: Path) -> dict[str, bytes]:
    names = tuple(f"{folder}/{method}" for folder in ("baselines", "attributions") for method in GRADIENT_BASELINES)
    return {name: content for name, content in files_of(root).items() if name.startswith(names)}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_actors_write_the_same_bytes(tmp_path: Path) -> None:
    ablated: dict[str, Any] = {"stages": ("ablate",), "baselines": ["leave_one_out", "neuron_conductance"]}
    with without_ray():
        attribute_small(tmp_path / "here", **ablated)
        attribute_small(tmp_path / "on_actors", **ablated | {"baselines": ["leave_one_out"], "baseline_settings": None})
    attribute_small(tmp_path / "on_actors", **ablated, cluster="ray")
    on_actors, here = (baseline_files(tmp_path / name) for name in ("on_actors", "here"))
    assert len(here) == 4
    assert on_actors == here


def test_all_baselines_from_the_model_to_the_report(tmp_path: Path) -> None:
    with without_ray():
        run, printed = attribute_small(tmp_path, stages=TO_THE_REPORT)
    assert len(baseline_files(tmp_path)) == 4 + 4 + 1 + 3 * 2
    for text in ("Leave-one-out ", "Gradient x parameter ", "Neuron conductance ", "Internal influence ", "6 steps"):
        assert text in printed
    task = small_task()
    slow = GradientBaselines(task, run.components, GRADIENT_BASELINES, NUM_STEPS, 7, torch.device("cpu"))
    with torch.no_grad():
        unablated = task.output_function(task.model(task.examples.inputs), task.examples.targets).numpy()
    kept = np.ones((1, run.components.num_components), dtype=bool)
    for method in GRADIENT_BASELINES:
        weights = run.weights(method=method)
        np.testing.assert_allclose(weights, slow.weights(method, task.examples), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run.predict(kept, method=method)[0], unablated, atol=1e-4)
        assert (tmp_path / "evaluation" / f"{method}.evaluation_0.2.parquet").exists()
    # Kept components raise the margin: the sign is leave-one-out's.
    alike = np.corrcoef(run.weights(method="gradient_x_parameter").ravel(), run.weights(method="leave_one_out").ravel())
    assert alike[0, 1] > 0.5


def test_a_broken_run_continues_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    with without_ray():
        attribute_small(tmp_path)
        whole = files_of(tmp_path)
        shards = sorted((tmp_path / SHARDS).iterdir())
        assert [shard.name for shard in shards] == [f"{i:010d}-{min(i + 2, 7):010d}.parquet" for i in (0, 2, 4, 6)]
        untouched = shards[0].stat().st_mtime_ns
        shards[1].unlink()
        shards[3].write_bytes(shards[3].read_bytes()[:-10])
        shutil.rmtree(tmp_path / "attributions")
        with pytest.raises(MissingWorkError, match=r"num_steps_6 lacks 2 of 7 examples: 2\.\.3\. Run the ablate stage"):
            attribute_small(tmp_path, stages=["fit"])
        printed = attribute_small(tmp_path)[1]
        assert "neuron_conductance of 7 examples in" in printed
        assert shards[0].stat().st_mtime_ns == untouched
        assert shards[3].with_name(f"{shards[3].name}.damaged").exists()
        assert files_of(tmp_path) == whole
        assert "internal_influence of 7 examples: all there already" in attribute_small(tmp_path)[1]


def test_other_settings_are_computed_beside_those_that_are_there(tmp_path: Path) -> None:
    with without_ray():
        first = attribute_small(tmp_path)[0].weights(method="internal_influence")
        gradients = next((tmp_path / "baselines" / "gradient_x_parameter").iterdir()).stat().st_mtime_ns
        other, printed = attribute_small(tmp_path, baseline_settings=BaselineConfig(num_steps=3), stages=TO_THE_REPORT)
        assert "3 steps" in printed
        assert not np.array_equal(other.weights(method="internal_influence"), first)
        assert next((tmp_path / "baselines" / "gradient_x_parameter").iterdir()).stat().st_mtime_ns == gradients
        again, printed = attribute_small(tmp_path, baselines=["internal_influence"], stages=TO_THE_REPORT)
        assert "internal_influence of 7 examples: all there already" in printed
        assert "Neuron conductance" not in printed
        np.testing.assert_array_equal(again.weights(method="internal_influence"), first)


def test_inspect_says_how_far_they_are(tmp_path: Path) -> None:
    with without_ray():
        attribute_small(tmp_path, stages=["ablate"])
    shards = sorted((tmp_path / SHARDS).iterdir())
    shards[1].unlink()
    content = bytearray(shards[2].read_bytes())
    content[9] ^= 1
    shards[2].write_bytes(content)
    printed = io.StringIO()
    assert not inspect_run(local_storage(tmp_path), False, Terminal(Console(file=printed, width=200)))
    assert "neuron_conductance: weights of 3 of 7 examples" in printed.getvalue()
    assert "internal_influence: weights of 7 of 7 examples" in printed.getvalue()
    assert shards[2].name in printed.getvalue()


def ranked(outputs: Any, _targets: Tensor) -> Tensor:
    return outputs.argsort(dim=1)[:, 0].float()


def test_what_cannot_be_had_is_refused_before_any_ablation(tmp_path: Path) -> None:
    with without_ray(), pytest.raises(ConfigError, match=r"ranked' gives margins without a gradient.*leave them out"):
        attribute_small(tmp_path, output_function=ranked, baselines=["gradient_x_parameter"], baseline_settings=None)
    assert not (tmp_path / "margins").exists()
