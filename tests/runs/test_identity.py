"""What a run directory refuses to be continued with, and what it does not care about."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor

import coar_dist
from coar_dist.config.schema import AblationConfig, ClusterConfig, EvaluationConfig
from coar_dist.errors import RunMismatchError
from tests.models import small_task
from tests.small_run import files_of, without_ray

HASH = r"'sha256:[0-9a-f]{8}\.\.\.'"


def attribute(run_dir: Path, **changes: Any) -> None:
    task = small_task(seed=changes.pop("weights", 0))
    inputs, targets = task.examples.inputs, task.examples.targets
    if changes.pop("other_data", False):
        inputs = small_task().examples.inputs + 1.0
    arguments: dict[str, Any] = {
        "num_masks": 16,
        "ablation_fraction": 0.2,
        "stages": ("ablate", "fit", "evaluate"),
        "evaluation": EvaluationConfig(num_masks=6, ablation_fractions=[0.2], seed=7),
        "ablation": AblationConfig(mode="weights", rows_per_forward=7, compile=False),
    }
    with without_ray():
        coar_dist.attribute(
            task.model,
            inputs,
            targets,
            run_dir=run_dir,
            console=Console(file=io.StringIO()),
            **{**arguments, **changes},
        )


def first_logit(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identity") / "run"
    attribute(root)
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": 1}, rf"model\.weights is {HASH}, but the run was made with {HASH}"),
        ({"other_data": True}, rf"examples is {HASH}, but the run was made with {HASH}"),
        ({"components": "linear_rows"}, rf"components is {HASH}, but the run was made with {HASH}"),
        (
            {"output_function": first_logit},
            r"output_function is '.*first_logit sha256:[0-9a-f]{8}\.\.\.', but the run was made with 'margin'",
        ),
        ({"ablation_fraction": 0.3}, r"^ablation_fraction is 0\.3, but design 'train' .* with 0\.2"),
        ({"seed": 3}, r"^seed is 3, but design 'train' .* with 0"),
        (
            {"ablation": AblationConfig(precision="bfloat16")},
            r"ablation\.precision is 'bfloat16', but the run was made with 'float32'",
        ),
        (
            {"ablation": AblationConfig(margins_dtype="float16")},
            r"ablation\.margins_dtype is 'float16', but the run was made with 'float32'",
        ),
        (
            {"evaluation": EvaluationConfig(kind="fixed_size", num_masks=6, ablation_fractions=[0.2], seed=7)},
            r"evaluation\.kind is 'fixed_size', but design 'evaluation_0\.2' .* with 'bernoulli'",
        ),
    ],
)
def test_what_margins_depend_on_is_refused_with_both_values(made: Path, changes: dict[str, Any], message: str) -> None:
    before = files_of(made)
    with pytest.raises(RunMismatchError, match=message):
        attribute(made, **changes)
    assert files_of(made) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster": ClusterConfig(max_actors=3, ranges_in_flight=5, max_attempts=7)},
        {"ablation": AblationConfig(masks_per_shard=5, mode="weights", rows_per_forward=7, compile=False)},
        {"ablation": AblationConfig(mode="rows", rows_per_forward=30)},
        {},
    ],
    ids=["cluster", "shards", "forward passes", "path"],
)
def test_what_they_do_not_depend_on_is_not(made: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(made, root)
    attribute(root, **changes)
    assert files_of(root) == files_of(made)


def test_shards_cut_by_time_give_the_same_attributions(made: Path, tmp_path: Path) -> None:
    """Each mask is a shard of its own: no time is as short as that."""
    root = tmp_path / "run"
    attribute(root, ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False, shard_seconds=1e-9))
    cut, whole = files_of(root), files_of(made)
    assert len([name for name in cut if name.startswith("margins/train/")]) == 16
    assert len([name for name in whole if name.startswith("margins/train/")]) == 1

    def rest(files: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in files.items() if not name.startswith("margins/")}

    assert rest(cut) == rest(whole) != {}
    attribute(root)
    assert files_of(root) == cut
