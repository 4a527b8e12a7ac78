"""What ``attribute`` does where nothing is said, and the forms in which its arguments may come."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset, TensorDataset

import coar_dist
from coar_dist.errors import ConfigError, MissingWorkError, TaskError
from coar_dist.tasks.given import gathered
from tests.models import small_task
from tests.small_run import without_ray

TASK = small_task()
IMAGES, LABELS = TASK.examples.inputs, TASK.examples.targets


def attribute(*inputs: Any, **arguments: Any) -> tuple[coar_dist.Run, str]:
    """The run, and what was printed."""
    said = io.StringIO()
    with without_ray():
        run = coar_dist.attribute(*inputs, console=Console(file=said, width=200), **arguments)
    return run, said.getvalue()


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[coar_dist.Run, str, Path]:
    """A run of which nothing is said, in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COAR_DIST_CACHE", str(cache))
        return *attribute(TASK.model, IMAGES, LABELS), cache


def masks_of(run: coar_dist.Run) -> dict[str, int]:
    return {name: entry.design.num_masks for name, entry in run.directory.designs.items()}


def test_by_default_it_does_what_the_command_does(default: tuple[coar_dist.Run, str, Path]) -> None:
    run, said, cache = default
    assert masks_of(run) == {"train": 500, "gradients": 100, "evaluation_0.08333": 100}
    assert run.methods == ["gradient_ridge", "coar"]
    assert run.evaluate().method.tolist() == ["gradient_ridge", "coar", "ceiling"]
    assert run.plot.correlation().axes
    assert Path(run.path).parent == cache / "runs"
    assert said.count(run.path) == 1


def test_the_cache_is_named_by_what_is_explained(
    default: tuple[coar_dist.Run, str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, cache = default
    monkeypatch.setenv("COAR_DIST_CACHE", str(cache))
    again, said = attribute(TASK.model, IMAGES.numpy(), LABELS.tolist(), stages=["ablate"])
    assert again.path == run.path
    assert "all there already" in said
    other, _ = attribute(TASK.model, IMAGES, LABELS, num_masks=4, stages=["ablate"], output_function="logit")
    assert other.path != run.path
    seeded, _ = attribute(TASK.model, IMAGES, LABELS, num_masks=4, stages=["ablate"], seed=1)
    assert seeded.path not in (run.path, other.path)


def test_without_gradients_it_takes_more_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def label(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.detach().gather(1, targets[:, None])[:, 0]

    arguments = {"run_dir": tmp_path / "run", "stages": ["ablate"], "output_function": label}
    run, said = attribute(TASK.model, IMAGES, LABELS, **arguments)
    assert capsys.readouterr().err == ""  # it is said once, by the console
    assert masks_of(run) == {"train": 4000}
    assert "not differentiable" in said
    assert "4,000 masks without gradients are run: output_function=" in said
    with pytest.raises(ConfigError, match="margins without a gradient"):
        attribute(TASK.model, IMAGES, LABELS, **{**arguments, "num_gradient_masks": 4, "run_dir": tmp_path / "asked"})


def test_settings_may_be_words_and_dicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with without_ray():
        run = coar_dist.attribute(
            TASK.model,
            IMAGES,
            LABELS,
            run_dir=tmp_path / "run",
            num_masks=60,
            regression={"method": "lasso", "regularisation": 0.01},
            evaluation={"num_masks": 40, "ablation_fractions": [0.1]},
            ablation={"masks_per_shard": 10},
            cluster={"max_actors": 1},
            progress=False,
        )
    assert capsys.readouterr().out == ""
    assert run.method == "coar_lasso"
    assert masks_of(run) == {"train": 60, "evaluation_0.1": 40}
    assert len(list((Path(run.path) / "margins" / "train").glob("*.parquet"))) == 6
    for key in ("regression", "evaluation", "ablation", "baseline_settings"):
        with pytest.raises(ConfigError, match=f"{key}.colour"):
            attribute(TASK.model, IMAGES, LABELS, run_dir=tmp_path / "run", **{key: {"colour": 1}})
    with pytest.raises(MissingWorkError, match="no held-out masks to evaluate on"):
        attribute(TASK.model, IMAGES, LABELS, run_dir=_ablated(tmp_path / "other"), stages=["evaluate"])


def test_a_run_keeps_its_held_out_masks(tmp_path: Path) -> None:
    of_run = {"num_masks": 40, "ablation_fractions": [0.3, 0.1], "seed": 5}
    arguments = {"run_dir": tmp_path / "run", "num_masks": 60, "ablation_fraction": 0.2}
    for evaluation in (of_run, None):
        run, said = attribute(TASK.model, IMAGES, LABELS, **arguments, evaluation=evaluation)
    assert masks_of(run) == {"train": 60, "evaluation_0.3": 40, "evaluation_0.1": 40}
    assert "140 masks: all there already" in said


def _ablated(root: Path) -> Path:
    attribute(TASK.model, IMAGES, LABELS, run_dir=root, num_masks=4, stages=["ablate"])
    return root


def test_outputs_that_read_no_targets_need_none(tmp_path: Path) -> None:
    runs = [
        attribute(TASK.model, IMAGES, *given, run_dir=tmp_path / name, num_masks=60, output_function="logit:1")[0]
        for name, given in (("with", [LABELS]), ("without", []))
    ]
    np.testing.assert_array_equal(runs[0].values, runs[1].values)
    assert "target" not in runs[1].examples()
    with pytest.raises(TaskError, match="every example needs a target"):
        attribute(TASK.model, IMAGES, run_dir=tmp_path / "other", num_masks=60)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> Any:
        return self._items[place]


@pytest.mark.parametrize(
    "given",
    [
        TensorDataset(IMAGES, LABELS),  # type: ignore[arg-type]
        DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),  # type: ignore[arg-type]
        Items([(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]),
    ],
)
def test_data_sets_and_loaders_are_read_in_their_order(given: Any) -> None:
    images, labels = gathered(given, None)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    _, others = gathered(given, LABELS + 1)
    assert torch.equal(others, LABELS + 1)


def test_items_that_are_dicts_or_inputs_alone() -> None:
    rows = [{"images": image, "labels": label} for image, label in zip(IMAGES, LABELS, strict=True)]
    inputs, labels = gathered(DataLoader(Items(rows), batch_size=2), None)
    assert list(inputs) == ["images"]
    assert torch.equal(inputs["images"], IMAGES)
    assert torch.equal(labels, LABELS)
    images, nothing = gathered(Items(list(IMAGES)), None)
    assert torch.equal(images, IMAGES)
    assert nothing is None
    assert gathered(IMAGES, LABELS) == (IMAGES, LABELS)


def test_what_cannot_be_read_is_named() -> None:
    pairs = TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    uneven = Items([torch.zeros(size) for size in (2, 2, 3)])
    for given, words in (
        (DataLoader(pairs, shuffle=True), "in random order"),
        (Items([]), "without items"),
        (uneven, "DataLoader whose collate_fn"),
        (DataLoader(uneven, batch_size=1, collate_fn=lambda items: items[0][None]), "Pad them to one length"),
        (TensorDataset(*[torch.zeros(4)] * 3), "has 3 parts"),
    ):
        with pytest.raises(TaskError, match=words):
            gathered(given, None)
