"""Whole runs in which ablated activations are means, zeros or constants."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

import coar_dist
from coar_dist.ablation.site_means import site_means
from coar_dist.api import Run
from coar_dist.components.groups import ComponentGroup
from coar_dist.components.index import ComponentIndex
from coar_dist.config.schema import AblationConfig, EvaluationConfig
from coar_dist.errors import ConfigError, RunMismatchError
from coar_dist.interchange.exporting import export_margins
from coar_dist.store.local_storage import LocalStorage
from coar_dist.store.values import values_of_run
from coar_dist.tasks.example_set import ExampleSet
from tests.models import small_task
from tests.small_run import without_ray

NO_PLAN = AblationConfig(mode="weights", rows_per_forward=7, compile=False)


@pytest.fixture(autouse=True)
def _in_this_process() -> Iterator[None]:
    with without_ray():
        yield


def run(run_dir: Path, num_masks: int = 40, **options: Any) -> Run:
    task = small_task(9)
    given: dict[str, Any] = {"ablation": NO_PLAN, "num_gradient_masks": 5, "ablation_fraction": 0.2, "previews": False}
    return coar_dist.attribute(
        task.model,
        task.examples.inputs,
        task.examples.targets,
        run_dir=run_dir,
        num_masks=num_masks,
        console=Console(file=io.StringIO()),
        **{**given, **options},
    )


def outputs(made: Run, masks: Any, value: Any) -> Any:
    task = small_task(9)
    inputs, targets = task.examples.inputs, task.examples.targets
    return coar_dist.ablated_outputs(
        task.model, inputs, targets, masks=masks, components=made.components, ablation_value=value
    )


def test_a_run_of_means_is_resumed_extended_and_edited(tmp_path: Path) -> None:
    made = run(tmp_path, ablation_value="mean", evaluation=EvaluationConfig(num_masks=5, ablation_fractions=[0.2]))
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    assert {"ablation.value": "mean", "ablation.mean_over": "all"}.items() <= identity.items()
    masks, margins = made.margins("train")
    task = small_task(9)
    means = site_means(task.model, made.components, task.examples, torch.device("cpu"), False)
    stored = values_of_run(LocalStorage(tmp_path), identity)
    assert stored is not None
    assert {name: value.tolist() for name, value in stored.items()} == {n: v.tolist() for n, v in means.items()}
    np.testing.assert_allclose(margins, outputs(made, masks, means), rtol=0, atol=1e-5)
    np.testing.assert_allclose(margins, outputs(made, masks, "mean"), rtol=0, atol=1e-5)
    assert np.abs(margins - outputs(made, masks, "zero_weights")).max() > 0.05
    again = run(tmp_path, 60, ablation_value="mean").margins("train")
    np.testing.assert_array_equal(again[1][:40], margins)
    with pytest.raises(RunMismatchError, match="ablation_value is 'zero_weights', but the run was made with 'mean'"):
        run(tmp_path)
    with pytest.raises(RunMismatchError, match=r"ablation.mean_over is 'position', but the run was made with 'all'"):
        run(tmp_path, ablation=AblationConfig(value="mean", mean_over="position"))
    with pytest.raises(ConfigError, match=r"ablation_value=mean: the research code's files are of zeroed weights"):
        _exported(tmp_path)
    assert len(list((tmp_path / "values").iterdir())) == 1


def _exported(run_dir: Path) -> None:
    try:
        export_margins(coar_dist.open_run(run_dir).directory, run_dir / "exported")
    except ConfigError as error:
        raise ConfigError(str(error).replace("ablation.value", "ablation_value")) from error


def test_damaged_values_are_made_again(tmp_path: Path) -> None:
    before = run(tmp_path, ablation_value="mean").margins("train")[1]
    (file,) = (tmp_path / "values").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    after = run(tmp_path, 45, ablation_value="mean").margins("train")[1]
    np.testing.assert_array_equal(after[:40], before)
    assert sorted(path.suffix for path in (tmp_path / "values").iterdir()) == [".damaged", ".parquet"]


def test_the_mean_of_a_reference(tmp_path: Path) -> None:
    reference = small_task(20, seed=3).examples.inputs
    made = run(tmp_path, ablation_value="mean", reference=reference)
    task = small_task(9)
    own = ExampleSet(reference, torch.zeros(20))
    means = site_means(task.model, made.components, own, torch.device("cpu"), False)
    masks, margins = made.margins("train")
    np.testing.assert_allclose(margins, outputs(made, masks, means), rtol=0, atol=1e-5)


def test_zeros_and_constants(tmp_path: Path) -> None:
    zeros = run(tmp_path / "zeros", ablation_value="zero")
    assert not (tmp_path / "zeros" / "values").exists() or not list((tmp_path / "zeros" / "values").iterdir())
    masks, margins = zeros.margins("train")
    lengths = {"conv1.output": 4, "conv2.output": 4, "grouped.output": 4}
    of_zeros = {name: torch.zeros(length) for name, length in lengths.items()}
    np.testing.assert_allclose(margins, outputs(zeros, masks, of_zeros), rtol=0, atol=1e-5)
    constants = {name: torch.arange(length) + 0.5 for name, length in lengths.items()}
    own = run(tmp_path / "own", ablation_value=constants)
    np.testing.assert_allclose(own.margins("train")[1], outputs(own, masks, constants), rtol=0, atol=1e-5)
    safetensors.torch.save_file(constants, tmp_path / "constants.safetensors")
    config = AblationConfig("constants", constants=str(tmp_path / "constants.safetensors"), mode="weights")
    from_file = run(tmp_path / "own", 50, ablation=config)
    np.testing.assert_array_equal(from_file.margins("train")[1][:40], own.margins("train")[1])


def test_runs_whose_values_differ_by_example(tmp_path: Path) -> None:
    task = small_task(9)
    inputs, targets = task.examples.inputs, task.examples.targets
    assert isinstance(inputs, torch.Tensor)

    def direct(made: Run, masks: Any, **options: Any) -> Any:
        return coar_dist.ablated_outputs(
            task.model, inputs, targets, masks=masks, components=made.components, **options
        )

    resampled = run(tmp_path / "resampled", ablation_value="resample")
    masks, margins = resampled.margins("train")
    np.testing.assert_allclose(margins, direct(resampled, masks, ablation_value="resample"), rtol=0, atol=1e-5)
    again = run(tmp_path / "resampled", 60, ablation_value="resample").margins("train")
    np.testing.assert_array_equal(again[1][:40], margins)
    other_seed = run(tmp_path / "other seed", ablation_value="resample", seed=1)
    assert json.loads((tmp_path / "other seed" / "run.json").read_text())["identity"]["ablation.seed"] == 1
    assert not np.allclose(
        other_seed.margins("train")[1], direct(other_seed, other_seed.margins("train")[0]), atol=1e-3
    )

    pairs = {"ablation_value": "counterfactual", "counterfactual": inputs.roll(2, 0)}
    paired = run(tmp_path / "paired", **pairs)
    masks, margins = paired.margins("train")
    np.testing.assert_allclose(margins, direct(paired, masks, **pairs), rtol=0, atol=1e-5)
    with pytest.raises(RunMismatchError, match=r"ablation.counterfactual is 'sha256:.*', but the run was made with"):
        run(tmp_path / "paired", **{**pairs, "counterfactual": inputs.roll(1, 0)})

    with without_ray():
        of_set = coar_dist.attribute(
            task.model,
            ExampleSet(inputs, targets, {}, inputs.roll(2, 0)),
            run_dir=tmp_path / "paired",
            num_masks=40,
            num_gradient_masks=5,
            ablation_fraction=0.2,
            ablation_value="counterfactual",
            ablation=NO_PLAN,
            previews=False,
            stages=("ablate",),
            console=Console(file=io.StringIO()),
        )
    np.testing.assert_array_equal(of_set.margins("train")[1], margins)

    groups = np.array(["b", "a", "a", "b", "c", "a", "b", "c", "c"])
    of_groups = AblationConfig("mean", mean_over="group", mode="weights", rows_per_forward=7, compile=False)
    by_class = run(tmp_path / "classes", ablation=of_groups, columns={"group": groups})
    masks, margins = by_class.margins("train")
    for group in "abc":
        rows = np.flatnonzero(groups == group)
        means = site_means(task.model, by_class.components, task.examples.select(rows), torch.device("cpu"), False)
        expected = direct(by_class, masks, ablation_value=means)[:, rows]
        np.testing.assert_allclose(margins[:, rows], expected, rtol=0, atol=1e-5)
    again = run(tmp_path / "classes", 60, ablation=of_groups, columns={"group": groups}).margins("train")
    np.testing.assert_array_equal(again[1][:40], margins)
    with pytest.raises(ConfigError, match="the run ablates by mean activations by group, which differ from example"):
        by_class.edit([0, 1], console=Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ablation_value": "median"}, "ablation_value='median': must be one of zero_weights, zero, mean, resample, "),
        ({"ablation_value": "constants"}, "ablation_value=constants: needs"),
        ({"ablation_value": {"conv1.output": torch.zeros(4)}}, "no value is given for conv2.output, grouped.output"),
        (
            {"ablation_value": {"conv9.output": torch.zeros(4)}},
            r"there is no site conv9.output\. The components' sites",
        ),
        ({"reference": torch.zeros(3, 1, 6, 6)}, "reference has no effect with ablation_value='zero_weights'"),
        (
            {"ablation_value": "mean", "reference": torch.zeros(3, 6)},
            r"reference: its inputs are inputs .*2 axes.*4 axes",
        ),
        (
            {"ablation": AblationConfig("mean", mean_over="place")},
            r"mean_over=place: must be all, position, or a column",
        ),
        ({"ablation_value": "counterfactual"}, r"ablation_value='counterfactual': needs counterfactual"),
        (
            {"ablation_value": "counterfactual", "counterfactual": torch.zeros(3, 1, 6, 6)},
            r"a counterfactual must be an input like its example's, of the same shapes",
        ),
        (
            {"ablation_value": "resample", "reference": torch.zeros(1, 1, 6, 6)},
            r"ablation_value=resample needs at least two donors, and there is 1",
        ),
        (
            {"ablation_value": "resample", "reference": torch.zeros(4, 1, 7, 7)},
            r"reference: its inputs is of shape \(1, 7, 7\) and the examples' of \(1, 6, 6\)",
        ),
        (
            {"ablation": AblationConfig(mean_over="position")},
            r"mean_over has no effect with ablation_value=zero_weights",
        ),
        (
            {"ablation_value": "mean", "baselines": ["gradient_x_parameter"]},
            "are of zeroed weights, not of ablation_value",
        ),
        ({"ablation_value": "zero", "components": "embedding_rows"}, "matches nothing"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"conv1.output is torch.float32 of shape \(3,\), but must be one float for each of its 4"),
        (torch.zeros(4, 1), r"of shape \(4, 1\)"),
        (torch.tensor([0.0, 1.0, float("nan"), 2.0]), "conv1.output has values that are not finite"),
        (torch.zeros(4, dtype=torch.int64), "conv1.output is torch.int64"),
    ],
)
def test_constants_that_do_not_fit_are_named(value: torch.Tensor, message: str) -> None:
    task = small_task(3)
    components = ComponentIndex((ComponentGroup.of("conv1.weight", 0, 4),))
    masks, given = np.ones((1, 4), np.bool_), {"conv1.output": value}
    with pytest.raises(ConfigError, match=message):
        coar_dist.ablated_outputs(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            masks=masks,
            components=components,
            ablation_value=given,
        )
