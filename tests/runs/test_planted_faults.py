"""A fault planted into a net's training, found by its attributions and edited away: a preset at a small size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

import coar_dist
from coar_dist.app import typed_config
from coar_dist.config.schema import Config
from coar_dist.stages.pipeline import run_stages
from tests.small_run import without_ray

SMALL = [
    "task.model.arguments.width=16",
    "train.epochs=8",
    "gradients.num_masks=20",
    "task.examples.arguments.stop=0.12",
    "edit.examples.arguments.start=0.8",
    "edit.target.sample=8",
    "design.num_masks=0",
    "edit.max_components=8",
    "edit.compare=[random]",
    "stages=[train,ablate,fit,edit]",
    "evaluation.ablation_fractions=[]",
    "ablation.compile=false",
]


@pytest.fixture(autouse=True)
def _hydra(repository: Path) -> Iterator[None]:
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(repository / "conf"), version_base="1.3"):
        yield


@pytest.mark.slow
def test_a_backdoor_is_weakened(tmp_path: Path) -> None:
    config = typed_config(compose("config", ["experiment=digits_backdoor", f"run.dir={tmp_path}", *SMALL]))
    with without_ray():
        run_stages(config, Console(file=io.StringIO()))
    edit = coar_dist.load_edit(tmp_path / "edits" / "backdoor")
    examples = coar_dist.open_run(tmp_path).examples()
    assert examples["triggered"][list(edit.targets)].all()
    assert not examples["triggered"][list(edit.references)].any()
    assert set(examples["pair"][list(edit.targets)]) == set(examples["pair"][list(edit.references)])
    assert (examples["label"] != examples["prediction"])[list(edit.targets)].all()
    triggered, clean = edit.measured["triggered"], edit.measured["clean"]
    assert triggered.before["accuracy"] < 0.6 < 0.9 < clean.before["accuracy"]
    assert triggered.after["output"] > triggered.before["output"] + 0.2
    assert clean.after["accuracy"] > clean.before["accuracy"] - 0.1
    assert edit.paired_correlation is not None
    assert all(-1.0 < value < 1.0 for value in edit.paired_correlation)
