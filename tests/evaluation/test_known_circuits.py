"""Attributions of models whose circuit is known, because it was written by hand or by a compiler."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import coar_dist
from coar_dist.api import Run
from coar_dist.config.schema import AblationConfig
from coar_dist.result.circuit import Circuit
from coar_dist.tasks.task import Task
from tests.evaluation.compiled import reverse_task, used_by_the_compiler
from tests.evaluation.constructed import (
    DECOYS,
    INDUCTION,
    PREVIOUS_TOKEN,
    induction_model,
    induction_task,
    switches_task,
)
from tests.evaluation.logic import backup, both, either

pytestmark = pytest.mark.usefixtures("no_fsync")

SMALL = AblationConfig(mode="weights", rows_per_forward=64, compile=False)
SILENT = Console(file=io.StringIO())


def attributed(task: Task, run_dir: Path, **options: Any) -> Run:
    given: dict[str, Any] = {
        "num_gradient_masks": 0,
        "baselines": ["leave_one_out"],
        "previews": False,
        "ablation": SMALL,
    }
    given["stages"] = ("ablate", "fit")
    return coar_dist.attribute(
        task.model,
        task.examples.inputs,
        task.examples.targets,
        output_function=task.output_function.compute,
        run_dir=run_dir,
        cluster="process",
        console=SILENT,
        **{**given, **options},
    )


def test_the_hand_written_heads_do_induction() -> None:
    task = induction_task()
    inputs, cases = task.examples.inputs, task.examples
    assert isinstance(inputs, dict)
    logits = induction_model()(inputs["input_ids"])[:, -1]
    assert logits.argmax(dim=1).tolist() == cases.targets[:, 1].tolist()
    assert isinstance(cases.counterfactual, dict)
    assert induction_model()(**cases.counterfactual)[:, -1].argmax(dim=1).tolist() == cases.targets[:, 2].tolist()


@pytest.mark.parametrize("value", ["zero_weights", "zero", "mean", "resample", "counterfactual"])
def test_the_two_heads_that_work_are_told_from_their_decoys(tmp_path: Path, value: str) -> None:
    task = induction_task(24)
    pairs = {"counterfactual": task.examples.counterfactual} if value == "counterfactual" else {}
    made = attributed(task, tmp_path, components="heads", num_masks=200, ablation_value=value, **pairs)
    circuit = made.circuit([0.0, 0.0625, 0.125, 1.0], [PREVIOUS_TOKEN, INDUCTION], console=SILENT)
    scores = circuit.to_pandas()
    assert made.components.num_components == 16
    assert scores.loc["coar", ["auroc", "average_precision"]].tolist() == [1.0, 1.0]
    assert scores.loc["coar", "auroc_per_example"] > 0.999
    weights = dict(zip(made.names, made.values.mean(axis=0).tolist(), strict=True))
    # The decoys' weights are an error of the fit alone.
    assert max(abs(weights[name]) for name in DECOYS) < 0.05 * weights[INDUCTION]
    if value == "resample":  # another sequence's output is another one for each mask
        return
    assert circuit.found.faithfulness["coar", "signed"][2] == pytest.approx(1.0, abs=0.1)
    assert circuit.found.faithfulness["coar", "signed"][1] == pytest.approx(0.0, abs=0.1)


def circuit_of(combine: Any, run_dir: Path, num_masks: int = 300, num_units: int = 20) -> tuple[Run, Circuit]:
    task = switches_task(num_units, combine)
    made = attributed(task, run_dir, components="linear_rows", num_masks=num_masks, ablation_fraction=0.2)
    return made, made.circuit([0.0, 0.05, 0.1, 0.5, 1.0], "necessary", console=SILENT)


@pytest.mark.parametrize("combine", [either, backup, both])
def test_pairs_tell_which_components_are_necessary(tmp_path: Path, combine: Any) -> None:
    made, circuit = circuit_of(combine, tmp_path)
    assert circuit.known == made.names[:2]
    scores = circuit.to_pandas()
    assert scores.loc["coar", "auroc"] == 1.0
    alone = made.by_method("leave_one_out").values.mean(axis=0)
    weights = made.values.mean(axis=0)
    # A redundant component and a backup do nothing alone: leave-one-out has them among the unimportant ones.
    if combine is either:
        assert scores.loc["leave_one_out", "auroc"] < 1.0
        assert min(weights[:2]) > 2 * abs(alone[:2]).max()
    elif combine is backup:
        assert alone[1] == 0.0
        assert scores.loc["leave_one_out", "auroc"] < 0.6
        assert weights[1] > 0.1
    else:
        assert scores.loc["leave_one_out", "auroc"] == 1.0


def of_compiled(tmp_path: Path, value: str, **options: Any) -> Circuit:
    task = reverse_task(24)
    made = attributed(task, tmp_path / value, ablation_value=value, **options)
    return made.circuit([0.0, 0.5, 1.0], used_by_the_compiler(task, made.components), console=SILENT)


def test_the_compiled_model_reverses() -> None:
    task = reverse_task()
    assert isinstance(task.examples.inputs, dict)
    assert bool((task.output_function(task.model(**task.examples.inputs), task.examples.targets) > 0.9).all())


@pytest.mark.parametrize("value", ["zero_weights", "mean"])
def test_heads_and_mlps_that_a_compiler_uses_are_found(tmp_path: Path, value: str) -> None:
    circuit = of_compiled(tmp_path, value, components=["heads", "mlp_blocks"], num_masks=150, ablation_fraction=0.15)
    assert circuit.known == ["L0H0", "L3H0", "L0.mlp", "L1.mlp", "L2.mlp"]
    assert circuit.to_pandas().loc["coar", "auroc"] == 1.0


def test_neurons_that_a_compiler_uses_rank_above_the_others(tmp_path: Path) -> None:
    circuit = of_compiled(tmp_path, "zero_weights", components="neurons", num_masks=300, ablation_fraction=0.04)
    scores = circuit.to_pandas()["auroc"]
    # Some of the 68 are for lengths and places that no example has.
    assert circuit.known is not None
    assert len(circuit.known) == 68
    assert scores["coar"] > 0.7
    assert scores["leave_one_out"] > 0.7
    assert scores["random"] < 0.6
