"""The Python face, which is the same pipeline as the command line."""

from __future__ import annotations

import io
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

import coar_dist
from coar_dist.config.schema import (
    AblationConfig,
    ClusterConfig,
    Config,
    DesignConfig,
    EvaluationConfig,
    RegressionConfig,
    RunConfig,
    ablation_fraction,
    held_out_fractions,
)
from coar_dist.errors import ConfigError, DamagedFileError, MissingWorkError, RunMismatchError, TaskError
from coar_dist.stages.pipeline import run_stages
from coar_dist.store.locations import storage_at
from coar_dist.store.reader import RunReader
from coar_dist.tasks.outputs import output_function
from tests.cluster.driving import only_once
from tests.models import slow_margins, small_task
from tests.small_run import without_ray


def attribute_small(run_dir: Path, **changes: object) -> RunReader:
    task = small_task()
    arguments: dict[str, object] = {
        "run_dir": run_dir,
        "num_masks": 40,
        "ablation_fraction": 0.2,
        "console": Console(file=io.StringIO()),
        "ablation": AblationConfig(masks_per_shard=8, mode="weights", rows_per_forward=7, compile=False),
        "cluster": ClusterConfig(max_actors=1),
    }
    return coar_dist.attribute(
        task.model,
        task.examples.inputs,
        task.examples.targets,
        **{**arguments, **changes},  # type: ignore[arg-type]
    )


def root_of(run: RunReader) -> Path:
    return Path(run.directory.storage.location)


def attributions(run_dir: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((run_dir / "attributions").iterdir()))


def test_the_run_directory_holds_what_it_promises(small_run: RunReader) -> None:
    root = root_of(small_run)
    assert sorted(path.name for path in root.iterdir()) == [
        "attributions",
        "components.parquet",
        "driver.lock",
        "evaluation",
        "examples.parquet",
        "logs",
        "margins",
        "previews",
        "responses",
        "run.json",
        "slices.parquet",
    ]
    assert pq.read_schema(root / "components.parquet").names == [
        *("component_id", "name", "kind", "layer", "group", "index"),
        *("module", "parameter", "axis", "start", "size"),
    ]
    assert pq.read_schema(root / "slices.parquet").names == ["component_id", "parameter", "axis", "start", "size"]
    assert pq.read_schema(root / "examples.parquet").names == ["example_id", "label", "prediction", "margin"]
    assert pq.read_schema(root / "evaluation" / "coar.evaluation_0.2.parquet").names == [
        *("example_id", "method", "design", "ablation_fraction"),
        *("correlation", "spearman", "r2", "slope", "intercept"),
    ]
    assert pq.read_schema(root / "evaluation" / "budget_curve" / "coar.parquet").names == [
        *("example_id", "method", "design", "ablation_fraction", "num_masks", "correlation")
    ]
    assert {path.name for path in (root / "margins").iterdir()} == {
        "train",
        "leave_one_out",
        "evaluation_0.1",
        "evaluation_0.2",
    }
    schema = pq.read_schema(root / "attributions" / "coar.00000000-00000007.parquet")
    assert str(schema.field("weights").type) == "fixed_size_list<element: float>[12]"
    assert schema.names == [
        *("example_id", "method", "intercept", "regularisation", "r2", "r2_new", "duality_gap", "weights")
    ]


def test_margins_are_the_truth_and_predictions_correlate(small_run: RunReader) -> None:
    task = small_task()
    masks, margins = small_run.margins("train")
    assert (masks.shape, margins.shape) == ((150, 12), (150, 7))
    np.testing.assert_allclose(margins, slow_margins(task, small_run.components, masks), rtol=1e-4, atol=2e-5)
    held_out, truth = small_run.margins("evaluation_0.2")
    predicted = small_run.predict(held_out)
    assert predicted.shape == truth.shape
    correlations = [np.corrcoef(predicted[:, i], truth[:, i])[0, 1] for i in range(7)]
    assert np.mean(correlations) > 0.6
    stored = pq.read_table(root_of(small_run) / "evaluation" / "coar.evaluation_0.2.parquet")
    np.testing.assert_allclose(stored["correlation"].to_numpy(), correlations, atol=1e-5)


def test_leave_one_out_is_the_difference_to_the_unablated_margin(small_run: RunReader) -> None:
    task = small_task()
    kept = np.ones((1, 12), dtype=bool)
    unablated = slow_margins(task, small_run.components, kept)[0]
    single = slow_margins(task, small_run.components, ~np.eye(12, dtype=bool))
    weights = small_run.weights(method="leave_one_out")
    np.testing.assert_allclose(weights, (unablated - single).T, rtol=1e-3, atol=5e-5)
    np.testing.assert_allclose(small_run.predict(kept, method="leave_one_out")[0], unablated, atol=1e-4)


def test_weights_of_chosen_examples(small_run: RunReader) -> None:
    weights = small_run.weights()
    np.testing.assert_array_equal(small_run.weights([5, 0, 5]), weights[[5, 0, 5]])
    assert small_run.intercepts([2]).shape == (1,)
    with pytest.raises(IndexError, match=r"\[7, -1\] are outside 0\.\.6"):
        small_run.weights([7, 1, -1])
    with pytest.raises(IndexError, match="must be integers, not bool"):
        small_run.weights(np.ones(7, dtype=bool))
    assert "7 examples, 12 components" in repr(coar_dist.open_run(root_of(small_run)))


def test_an_interrupted_run_continues_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    with without_ray():
        whole = root_of(attribute_small(tmp_path / "whole"))
        attribute_small(broken, stages=("ablate",))
    shards = sorted((broken / "margins" / "train").iterdir())
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    shards[3].write_bytes(shards[3].read_bytes()[:-10])
    (broken / "examples.parquet").unlink()
    with without_ray():
        attribute_small(broken)
    assert shards[0].stat().st_mtime_ns == kept
    assert (broken / "margins" / "train" / f"{shards[3].name}.damaged").exists()
    for shard in shards:
        assert shard.read_bytes() == (whole / "margins" / "train" / shard.name).read_bytes()
    assert attributions(broken) == attributions(whole)


def test_more_masks_extend_a_run_and_equal_a_run_made_at_once(tmp_path: Path) -> None:
    with without_ray():
        attribute_small(tmp_path / "a", num_masks=20)
        attribute_small(tmp_path / "a", num_masks=40)
        attribute_small(tmp_path / "b", num_masks=40)
    assert attributions(tmp_path / "a") == attributions(tmp_path / "b")


@pytest.mark.slow  # every kind of damage is in test_damage.py
def test_damage_found_in_the_fit_is_named_and_mended_by_the_next_run(tmp_path: Path) -> None:
    run = attribute_small(tmp_path / "run")
    expected = attributions(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "attributions")
    shard = sorted((tmp_path / "run" / "margins" / "train").iterdir())[2]
    content = bytearray(shard.read_bytes())
    content[300] ^= 16
    shard.write_bytes(content)
    config = Config(stages=["fit"], run=RunConfig(str(root_of(run))))
    console = Console(file=io.StringIO())
    with pytest.raises(DamagedFileError, match=r"set aside as margins/train/.*Run the ablate stage"):
        run_stages(config, console)
    with pytest.raises(MissingWorkError, match=r"lacks 8 of 40 masks: 16\.\.23"):
        run_stages(config, console)
    attribute_small(tmp_path / "run")
    assert attributions(tmp_path / "run") == expected


def test_later_stages_need_neither_model_nor_config_of_the_run(small_run: RunReader, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(root_of(small_run), root)
    before = attributions(root)
    shutil.rmtree(root / "attributions")
    shutil.rmtree(root / "evaluation")
    output = io.StringIO()
    run_stages(Config(stages=["report", "evaluate", "fit"], run=RunConfig(str(root))), Console(file=output, width=120))
    assert attributions(root) == before
    for text in ("COAR", "Leave-one-out", "at 0.2", "(trained)", "at 0.1", "x 4", str(root), "7 examples, accuracy"):
        assert text in output.getvalue()
    again = io.StringIO()
    run_stages(Config(stages=["fit", "evaluate"], run=RunConfig(str(root))), Console(file=again))
    assert again.getvalue().count("there already") == 4
    sklearn = Config(stages=["fit"], run=RunConfig(str(root)), regression=RegressionConfig(backend="sklearn"))
    run_stages(sklearn, Console(file=again))
    np.testing.assert_allclose(coar_dist.open_run(root).weights(), small_run.weights(), rtol=1e-4, atol=1e-6)


def test_the_paper_s_least_squares(small_run: RunReader, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(root_of(small_run), root)
    config = Config(stages=["fit"], run=RunConfig(str(root)), regression=RegressionConfig(regularisation=0.0))
    run_stages(config, Console(file=io.StringIO()))
    masks, margins = small_run.margins("train")
    design = np.concatenate([np.ones((len(masks), 1)), masks], axis=1)
    reference = np.linalg.lstsq(design, margins.astype(np.float64), rcond=None)[0]
    run = coar_dist.open_run(root)
    np.testing.assert_allclose(run.weights(), reference[1:].T, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(run.intercepts(), reference[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (0.05, [0.1, 0.075, 0.05, 0.025]),
        (1 / 3, [0.666666666667, 0.5, 1 / 3, 0.166666666667]),
        (0.6, [0.9, 0.6, 0.3]),
        (0.7, [0.7, 0.35]),
    ],
)
def test_held_out_fractions_are_around_the_training_one(trained: float, expected: list[float]) -> None:
    config = Config(design=DesignConfig(ablation_fraction=trained))
    assert ablation_fraction(config, 7) == trained
    assert held_out_fractions(config, trained) == expected
    config.evaluation.ablation_fractions = [0.4]
    assert held_out_fractions(config, trained) == [0.4]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"ablation_fraction": 1.0},
            ConfigError,
            r"^ablation_fraction=1\.0: must be a number strictly between",
        ),
        ({"num_masks": 1}, ConfigError, r"^num_masks=1: must be 0 or at least 2"),
        ({"stages": ("fitt",)}, ConfigError, r"stages\[0\]='fitt'"),
        ({"baselines": ["loo"]}, ConfigError, r"baselines\[0\]='loo'"),
        ({"ablation": AblationConfig(precision="int8")}, ConfigError, r"ablation\.precision='int8'"),
        ({"regression": RegressionConfig(regularisation=-1.0)}, ConfigError, r"regression\.regularisation=-1\.0"),
        (
            {"regression": RegressionConfig(penalty_range=[2, 1])},
            ConfigError,
            r"regression\.penalty_range=\[2, 1\]",
        ),
        ({"cluster": ClusterConfig(max_actors=0)}, ConfigError, r"cluster\.max_actors=0"),
        (
            {"cluster": ClusterConfig(min_actors=3, max_actors=2)},
            ConfigError,
            r"cluster\.max_actors=2 is below cluster\.min_actors=3",
        ),
        (
            {"evaluation": EvaluationConfig(curve_shares=[0.5, 0.25])},
            ConfigError,
            r"evaluation\.curve_shares=\[0\.5, 0\.25\]: must be a list of numbers, ascending",
        ),
        ({"evaluation": EvaluationConfig(curve_shares=[1.0])}, ConfigError, r"strictly between 0 and 1"),
        ({"seed": 1, "evaluation": EvaluationConfig(seed=1)}, ConfigError, r"evaluation\.seed=1 is seed too"),
        ({"targets": torch.tensor([0, 1, 2, 3, 0, 0, 0])}, TaskError, "example 3 has target 3"),
        ({"output_function": "marginn"}, ConfigError, r"^output_function='marginn'.*margin"),
    ],
)
def test_bad_input_is_named_before_any_work(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    task = small_task()
    arguments = {"inputs": task.examples.inputs, "targets": task.examples.targets, "run_dir": tmp_path / "run"}
    with pytest.raises(error, match=message):
        coar_dist.attribute(task.model, **{**arguments, **changes})  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_model_whose_code_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, names and architecture are the same: only the outputs tell."""
    task = small_task()
    kind = type(task.model)
    before = kind.forward
    arguments = {"run_dir": tmp_path / "run", "num_masks": 4, "output_function": "logit"}
    arguments |= {"stages": ("ablate",), "console": Console(file=io.StringIO()), "ablation_fraction": 0.2}
    # The engine is of no interest here: the identity is checked before it is asked for anything.
    monkeypatch.setattr("coar_dist.cluster.dispatch.run_ranges", lambda *_: None)
    coar_dist.attribute(task.model, task.examples.inputs, task.examples.targets, **arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(kind, "forward", lambda self, x: 3.0 * before(self, x))
    with pytest.raises(RunMismatchError, match="unablated margins of the first examples are"):
        coar_dist.attribute(task.model, task.examples.inputs, task.examples.targets, **arguments)  # type: ignore[arg-type]


def test_another_model_in_the_same_run_directory_is_refused(small_run: RunReader) -> None:
    other = small_task(seed=1)
    with pytest.raises(RunMismatchError, match=r"model\.weights is 'sha256:.*examples is"):
        coar_dist.attribute(other.model, other.examples.inputs, other.examples.targets, run_dir=root_of(small_run))


@pytest.mark.slow  # the lines themselves are in tests/console/test_run_log.py
def test_the_log_says_which_shard_failed_on_which_actor_and_node(ray_cluster: None, tmp_path: Path) -> None:
    flag = tmp_path / "failed"

    def output(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        planned = len(targets) == 7 and "engine_plan" in (tmp_path / "run" / "run.json").read_text()
        if planned and only_once(flag):  # not in an actor's set-up, which looks at two examples
            raise OSError("a disk was away for a moment")
        return output_function("margin")(outputs, targets)

    attribute_small(tmp_path / "run", output_function=output, cluster="ray")
    (path,) = (tmp_path / "run" / "logs").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["run"] for line in lines} == {storage_at(tmp_path / "run").label}
    assert {line["stage"] for line in lines} == {"ablate", "fit", "evaluate"}
    (failed,) = (line for line in lines if line["level"] == "WARNING")
    assert failed["message"].endswith("OSError: a disk was away for a moment")
    assert (tmp_path / "run" / failed["shard"]).is_file()  # by the second attempt
    assert failed["node"] == socket.gethostname()
    retried = [line for line in lines if "is tried again by" in line["message"]]  # with it, what its actor held else
    (again,) = (line for line in retried if line["shard"] == failed["shard"])
    assert again["actor"] != failed["actor"]
