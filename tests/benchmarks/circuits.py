"""Models whose circuit is known: AUROC of it, CPR and CMD, for every method and ablation value.

    python -m tests.benchmarks.circuits                                        all cases, minutes on 2 cores
    python -m tests.benchmarks.circuits --cases either backup both --seeds 3

Whole runs of the product in this process. Cases: ``induction`` (two heads that work, two decoys, twelve of noise),
``compiled`` and ``compiled_neurons`` (the program ``reverse``), ``either`` (two redundant units of 20), ``backup`` (one
that stands in), ``both`` and ``six`` (conjunctions of two and of six), and ``trained`` (the preset ``induction``, whose
truth is what it breaks without, alone or in pairs). The seed is that of masks, and of training.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import coar_dist
from coar_dist.config.schema import (
    COUNTERFACTUAL,
    MEAN,
    NECESSARY,
    RESAMPLE,
    ZERO,
    ZERO_WEIGHTS,
    AblationConfig,
    CircuitConfig,
    EvaluationConfig,
    TrainConfig,
)
from coar_dist.console.tables import new_table, print_whole
from coar_dist.report.numbers import number
from coar_dist.tasks.examples.repeated import repeated_tokens
from coar_dist.tasks.models_attention import attention_only
from coar_dist.tasks.outputs import output_function
from coar_dist.tasks.task import Task
from coar_dist.tasks.training import train_model
from tests.benchmarks.estimators import CONSOLE
from tests.evaluation.compiled import reverse_task, used_by_the_compiler
from tests.evaluation.constructed import INDUCTION, PREVIOUS_TOKEN, induction_task, switches_task
from tests.evaluation.logic import backup, both, either, six
from tests.small_run import without_ray

_GRADIENT_COST = 3
"""Forward passes that one with gradients is counted as."""
_VOCABULARY, _LENGTH = 16, 24


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        task: of a seed.
        components: the selector.
        known: names of the components, by the task and the run's index; or ``necessary``.
        values: ablation values.
        fraction: of components that a mask ablates.
        num_masks: of all masks.
        sizes: of circuits.
        threshold: of ``necessary``.
    """

    task: Callable[[int], Task]
    components: Any
    known: Callable[[Task, Any], Any]
    values: tuple[str, ...]
    fraction: float
    num_masks: int
    sizes: tuple[float, ...] = (0.0, 0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.75, 1.0)
    threshold: float = 0.25


@cache
def trained(seed: int) -> Task:
    """The preset ``induction``, trained with this seed."""
    periods = (4, 11)
    train = repeated_tokens(4096, _VOCABULARY, _LENGTH, periods, seed=0)
    examples = repeated_tokens(100, _VOCABULARY, _LENGTH - 1, periods, answers=True, seed=1)
    settings = TrainConfig(
        optimizer="adamw",
        epochs=8,
        learning_rate=0.005,
        weight_decay=1.0,
        device="cpu",
        seed=seed,
        minimum_accuracy=0.95,
    )
    model, _ = train_model(
        lambda: attention_only(_VOCABULARY, _LENGTH, 64, 2, 8, 16),
        *(train, examples, settings, lambda *_: None, "next_token", "answer_token"),
    )
    return Task(model, examples, output_function("answer_token_margin"))


def switches(combine: Callable[[Tensor], Tensor]) -> Case:
    sizes = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0)
    return Case(
        lambda _: switches_task(20, combine), "linear_rows", lambda *_: NECESSARY, (ZERO_WEIGHTS,), 0.1, 200, sizes
    )


_OF_COMPILED = (lambda _: reverse_task(40), used_by_the_compiler)
CASES = {
    "induction": Case(
        lambda _: induction_task(40),
        "heads",
        lambda *_: [PREVIOUS_TOKEN, INDUCTION],
        (ZERO_WEIGHTS, ZERO, MEAN, RESAMPLE, COUNTERFACTUAL),
        *(0.125, 200),
    ),
    "compiled": Case(_OF_COMPILED[0], ["heads", "mlp_blocks"], _OF_COMPILED[1], (ZERO_WEIGHTS, MEAN), 0.125, 200),
    "compiled_neurons": Case(_OF_COMPILED[0], "neurons", _OF_COMPILED[1], (ZERO_WEIGHTS, MEAN), 0.04, 500),
    **{combine.__name__: switches(combine) for combine in (either, backup, both, six)},
    "trained": Case(trained, "heads", lambda *_: NECESSARY, (COUNTERFACTUAL, MEAN), 0.125, 200, threshold=0.1),
}


def measured(name: str, case: Case, value: str, seed: int, scale: float) -> dict[str, list[float]]:
    """AUROC, CPR, CMD, correlation and passes by method."""
    task = case.task(seed)
    pairs = {"counterfactual": task.examples.counterfactual} if value == COUNTERFACTUAL else {}
    num_masks = max(round(case.num_masks * scale), 8)
    num_gradient_masks = max(num_masks // 10, 3)
    by_position = value == MEAN and name == "trained"
    with tempfile.TemporaryDirectory() as folder, without_ray():
        run = coar_dist.attribute(
            task.model,
            task.examples.inputs,
            task.examples.targets,
            run_dir=Path(folder) / "run",
            components=case.components,
            num_masks=num_masks,
            num_gradient_masks=num_gradient_masks,
            ablation_fraction=case.fraction,
            seed=seed,
            output_function=task.output_function.compute,
            baselines=["leave_one_out", *(["gradient_x_parameter"] if value == ZERO_WEIGHTS else [])],
            evaluation=EvaluationConfig(
                num_masks=max(round(100 * scale), 5),
                ablation_fractions=[case.fraction],
                curve_shares=[],
                seed=10**6 + seed,
            ),
            ablation=AblationConfig(
                value=value,
                mean_over="position" if by_position else "all",
                mode="weights",
                rows_per_forward=128,
                compile=False,
            ),
            previews=False,
            console=nowhere(),
            **pairs,
        )
        known = case.known(task, run.components)
        threshold = {"threshold": case.threshold} if known == NECESSARY else {}
        settings = CircuitConfig(list(case.sizes), seed=seed, **threshold)
        circuit = run.circuit(known=known, settings=settings, console=nowhere())
        correlations = run.evaluate(nowhere()).set_index("method").correlation
        passes = {
            "coar": num_masks,
            "gradient_ridge": num_masks + _GRADIENT_COST * num_gradient_masks,
            "leave_one_out": run.components.num_components,
            "gradient_x_parameter": _GRADIENT_COST,
            "random": 0,
        }
        return {
            label: [
                *(float(row[score]) for score in ("auroc", "cpr", "cmd")),
                float(correlations.get(method, np.nan)),
                passes[method],
            ]
            for method, label, row in ((row.name, row["label"], row) for _, row in circuit.to_pandas().iterrows())
        }


def nowhere() -> Console:
    return Console(file=io.StringIO())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--values", nargs="+", help="only these ablation values")
    parser.add_argument("--seeds", type=int, default=1, help="of masks and of training; scores are means over them")
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of masks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = new_table("model", "ablation", "method", "AUROC", "CPR", "CMD", "correlation", "passes", num_text=3)
    for name in arguments.cases:
        case = CASES[name]
        for value in case.values:
            if arguments.values and value not in arguments.values:
                continue
            found = [measured(name, case, value, seed, arguments.scale) for seed in range(arguments.seeds)]
            for label in found[0]:
                *scores, correlation, passes = np.mean([of_seed[label] for of_seed in found], axis=0)
                cells = [number(score) for score in (*scores, correlation)]
                table.add_row(name, value, label, *cells, f"{passes:,.0f}")
            CONSOLE.print(f"{name}, {value}: done")
    print_whole(CONSOLE, table)


if __name__ == "__main__":
    main()
