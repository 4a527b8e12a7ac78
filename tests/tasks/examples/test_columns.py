"""Further columns of examples: what an example set keeps of them, and how they come back from a finished run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import coar_dist
from coar_dist.config.schema import AblationConfig, ExamplesConfig, SubsetConfig
from coar_dist.errors import MissingWorkError, TaskError
from coar_dist.tasks.build import build_examples
from coar_dist.tasks.example_set import ExampleSet
from tests.models import small_task
from tests.small_run import files_of, without_ray

GROUPS = {"group": np.array([0, 1, 1, 0, 2, 2, 1]), "name": list("äbcdefg"), "share": np.linspace(0, 1, 7)}


def own_examples(num_examples: int = 7, with_columns: bool = True) -> ExampleSet:
    """A user's own loader."""
    columns = {"group": np.arange(num_examples) % 3} if with_columns else {}
    return ExampleSet(torch.arange(num_examples * 2.0).reshape(-1, 2), torch.arange(num_examples) % 2, columns)


def test_columns_go_with_their_examples() -> None:
    examples = ExampleSet.of({"x": np.arange(14.0).reshape(7, 2)}, np.arange(7), GROUPS)
    assert examples.columns["name"].dtype.kind == "U"
    doubled = examples.map(lambda tensor: tensor * 2)
    assert doubled.columns["group"].tolist() == GROUPS["group"].tolist()
    middle = doubled.rows(2, 5)
    assert middle.columns["name"].tolist() == ["c", "d", "e"]
    assert middle.targets.tolist() == [4, 6, 8]
    chosen = examples.select([6, 0, 6])
    assert chosen.targets.tolist() == [6, 0, 6]
    assert chosen.inputs["x"].tolist() == [[12.0, 13.0], [0.0, 1.0], [12.0, 13.0]]
    assert chosen.columns["name"].tolist() == ["g", "ä", "g"]
    assert chosen.columns["share"].tolist() == [1.0, 0.0, 1.0]
    assert examples.without_columns().columns == {}
    assert examples.without_columns().fingerprint() == examples.fingerprint()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("group", np.zeros(3), r"the column 'group' is float64 of shape \(3,\).*each of the 7 examples"),
        ("group", np.zeros((7, 2)), r"shape \(7, 2\)"),
        ("group", ["a", None, *"bcdef"], "is object of shape .*none missing"),
        ("group", np.zeros(7, dtype=complex), "is complex128"),
        ("margin", np.zeros(7), "'margin' cannot be stored.*none of example_id, label, prediction, margin"),
        ("a.b", np.zeros(7), "has no dot"),
        ("", np.zeros(7), "non-empty"),
    ],
)
def test_columns_that_cannot_be_stored(name: str, values: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ExampleSet(torch.zeros(7, 1), torch.zeros(7), {name: values})


def test_a_users_own_examples_get_ids_and_subsets() -> None:
    config = ExamplesConfig("tests.tasks.examples.test_columns:own_examples", {"num_examples": 8})
    assert build_examples(config, "task.examples").columns["source_id"].tolist() == list(range(8))
    config.subset = SubsetConfig(every=2, classes=[0], first=3)
    examples = build_examples(config, "task.examples")
    assert examples.columns["source_id"].tolist() == [0, 2, 4]
    assert examples.columns["group"].tolist() == [0, 2, 1]
    assert examples.inputs[:, 0].tolist() == [0, 4, 8]


def attribute(run_dir: Path, columns: dict[str, Any] | None, **changes: Any) -> tuple[coar_dist.Run, str]:
    task, output = small_task(), io.StringIO()
    with without_ray():
        run = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            columns=columns,
            run_dir=run_dir,
            num_masks=16,
            ablation_fraction=0.2,
            ablation=AblationConfig(mode="weights", rows_per_forward=7, compile=False),
            console=Console(file=output, width=200),
            **changes,
        )
    return run, output.getvalue()


def test_a_finished_run_tells_the_columns(tmp_path: Path) -> None:
    run, _ = attribute(tmp_path / "run", GROUPS)
    examples = run.examples()
    assert list(examples) == ["example_id", "label", "prediction", "margin", "group", "name", "share"]
    assert examples["label"].tolist() == small_task().examples.targets.tolist()
    for name, values in GROUPS.items():
        assert examples[name].tolist() == list(values)
    assert examples["name"].dtype.kind == "U"
    some = coar_dist.open_run(tmp_path / "run").examples([5, 0])
    assert (some["example_id"].tolist(), some["name"].tolist()) == ([5, 0], ["f", "ä"])
    with pytest.raises(IndexError, match=r"\[7\] are outside 0\.\.6"):
        run.examples([7])

    before = files_of(tmp_path / "run")
    attribute(tmp_path / "run", GROUPS)
    attribute(tmp_path / "run", None)  # columns that are not given again stay
    assert files_of(tmp_path / "run") == before
    changed = {"group": np.arange(7), "place": np.arange(7) > 3}
    run, said = attribute(tmp_path / "run", changed)
    assert "columns of examples.parquet are new or have changed" in said
    assert run.examples()["group"].tolist() == list(range(7))
    assert run.examples()["place"].tolist() == [False] * 4 + [True] * 3
    assert run.examples()["name"].tolist() == GROUPS["name"]
    after = files_of(tmp_path / "run")
    assert {name for name in after if after[name] != before.get(name)} == {"examples.parquet"}

    (tmp_path / "run" / "examples.parquet").unlink()
    with pytest.raises(MissingWorkError, match=r"examples\.parquet is missing: run the ablate stage"):
        run.examples()
