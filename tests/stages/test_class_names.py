"""Names of classes are kept by the run, shown where classes are, and change nothing else."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import coar_dist
from coar_dist.config.schema import Config, EvaluationConfig, RunConfig, TaskConfig
from coar_dist.errors import ConfigError
from coar_dist.stages.pipeline import run_stages
from tests.models import small_task
from tests.small_run import files_of, without_ray

TASK = small_task()
IMAGES, LABELS = TASK.examples.inputs, TASK.examples.targets


def attribute(root: Path, targets: Any = LABELS, **arguments: Any) -> coar_dist.Run:
    settings: dict[str, Any] = {
        "num_masks": 20,
        "ablation_fraction": 0.2,
        "evaluation": EvaluationConfig(num_masks=20, ablation_fractions=[0.2], seed=7, curve_shares=[]),
        "stages": ["ablate", "fit", "evaluate"],
        "progress": False,
    }
    with without_ray():
        return coar_dist.attribute(TASK.model, IMAGES, targets, run_dir=root, **{**settings, **arguments})


def content_of(root: Path) -> dict[str, Any]:
    page = (root / "report" / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def report(root: Path, **arguments: Any) -> None:
    config = Config(["report"], run=RunConfig(str(root)), task=TaskConfig(**arguments))
    run_stages(config, Console(file=io.StringIO()))


def test_the_newest_names_are_shown_and_no_mask_is_run_twice(tmp_path: Path) -> None:
    root = tmp_path / "run"
    run = attribute(root, class_names=["cat", "dog", "<b>cow"])
    assert run.class_names == {0: "cat", 1: "dog", 2: "<b>cow"}
    titles = [axes.get_title() for axes in run.plot.predictions([0, 1, 2]).axes]
    wanted = [run.class_names[int(label)] for label in LABELS[:3]]
    assert [title.partition(", ")[2].partition(":")[0] for title in titles if title] == wanted
    before = {name: data for name, data in files_of(root).items() if name.startswith(("margins", "run.json"))}
    assert attribute(root, num_masks=20).class_names == run.class_names  # nothing said: as before
    assert attribute(root, class_names={2: "sheep", 0: "hen", 1: "duck"}).class_names[2] == "sheep"
    report(root, class_names=["a", "b", "<i>c"])
    assert content_of(root)["classes"] == {"0": "a", "1": "b", "2": "<i>c"}
    assert {name: data for name, data in files_of(root).items() if name in before} == before


def test_wrong_names_are_refused_before_any_pass(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^class_names names 0, 1, but the labels have 2 too"):
        attribute(tmp_path / "run", class_names=["cat", "dog"])
    with pytest.raises(ConfigError, match=r"^class_names: classes 0 and 1 are both called 'cat'"):
        attribute(tmp_path / "run", class_names=["cat", "cat", "dog"])
    with pytest.raises(ConfigError, match=r"^class_names has no effect with stages=\['fit'\]"):
        attribute(tmp_path / "run", class_names=["cat", "dog", "cow"], stages=["fit"])
    with pytest.raises(ConfigError, match=r"^class_names has no effect: the targets are not class labels"):
        attribute(tmp_path / "run", torch.randn(7), class_names=["cat"], output_function="value:0")
    assert not (tmp_path / "run").exists()
    root = tmp_path / "there"
    attribute(root, num_masks=4, stages=["ablate"])
    with pytest.raises(ConfigError, match=r"^task.class_names names 0, but the labels have 1, 2 too"):
        report(root, class_names=["cat"])
    assert not (root / "class_names.parquet").exists()


def test_the_class_of_an_output_is_called_by_its_name(tmp_path: Path) -> None:
    run = attribute(tmp_path / "run", torch.randn(7), output_function="logit:2", class_names={2: "cow"})
    assert run.plot.predictions(0).get_supylabel() == "true logit of cow"


def test_damaged_names_are_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "run"
    attribute(root, num_masks=4, stages=["ablate"], class_names=["cat", "dog", "cow"])
    file = root / "class_names.parquet"
    file.write_bytes(file.read_bytes()[:-9] + b"x" * 9)
    assert attribute(root, num_masks=4, stages=["ablate"]).class_names == {}
