"""What the ablation value changes: the ceiling and the correlation that attributions reach, on several models.

    python -m tests.benchmarks.values                                             the digits preset
    python -m tests.benchmarks.values --models digits vit --folder estimators
    python -m tests.benchmarks.values --models resnet20 --checkpoint W.safetensors --images CIFAR.npz
    python -m tests.benchmarks.values --models gpt2 --text TEXT.txt

Whole runs of the product in this process, with the same masks for every value. The mean is over examples that are not
explained. Models are those of ``tests.benchmarks.estimators``.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import coar_dist
from coar_dist.config.schema import MEAN, RESAMPLE, ZERO, ZERO_WEIGHTS, AblationConfig, EvaluationConfig
from coar_dist.tasks.task import Task
from tests.benchmarks.estimators import CONSOLE, MODELS
from tests.small_run import without_ray

COMPONENTS = {"digits": "conv_filters", "resnet20": "conv_filters", "vit": "linear_rows", "gpt2": ["heads", "neurons"]}
VALUES = (ZERO_WEIGHTS, ZERO, MEAN, RESAMPLE)
FRACTIONS = (0.05, 0.1)


def measured(task: Task, name: str, value: str, fraction: float, arguments: argparse.Namespace) -> list[str]:
    """One row of the table: how large effects are, the ceiling, and what COAR reaches without and with gradients."""
    explained = task.examples.rows(0, arguments.examples)
    others = task.examples.rows(arguments.examples, arguments.examples + arguments.reference).inputs
    with tempfile.TemporaryDirectory() as folder, without_ray():
        run = coar_dist.attribute(
            task.model,
            explained.inputs,
            explained.targets,
            run_dir=folder,
            components=COMPONENTS[name],
            exclude=["head.*", "lm_head.*"],
            num_masks=arguments.masks,
            num_gradient_masks=arguments.gradient_masks,
            ablation_fraction=fraction,
            output_function=lambda outputs, targets: task.output_function(outputs, targets),
            ablation_value=value,
            reference=others if value in (MEAN, RESAMPLE) else None,
            stages=("ablate", "fit", "evaluate"),
            evaluation=EvaluationConfig(num_masks=arguments.held_out, ablation_fractions=[fraction], curve_shares=[]),
            ablation=AblationConfig(compile=False),
            previews=False,
            console=Console(file=io.StringIO()),
        )
        found = run.evaluate().set_index("method").correlation
        spread = float(np.std(run.margins("train")[1], axis=0).mean())
        num = run.components.num_components
    cells = [f"{found[method]:.3f}" for method in ("ceiling", "coar", "gradient_ridge")]
    return [name, f"{num:,}", f"{fraction:g}", value, f"{spread:.3g}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(COMPONENTS), default=["digits"])
    parser.add_argument("--values", nargs="+", choices=VALUES, default=VALUES)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--reference", type=int, default=256, help="examples, beside the explained ones")
    parser.add_argument("--masks", type=int, default=500)
    parser.add_argument("--gradient-masks", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=200, help="masks")
    parser.add_argument("--folder", type=Path, help="trained weights are kept here")
    parser.add_argument("--checkpoint", type=Path, help="ResNet-20 weights, .safetensors")
    parser.add_argument("--images", help="CIFAR-10 images, .npz")
    parser.add_argument("--text", type=Path, help="what gpt2 is trained on")
    arguments = parser.parse_args()
    arguments.epochs, arguments.device, arguments.precision = None, "cpu", "float32"
    warnings.simplefilter("ignore")
    table = Table("model", "components", "ablated", "value", "spread of margins", "ceiling", "COAR", "COAR + gradients")
    for name in arguments.models:
        task = MODELS[name][0](arguments)
        task = replace(task, model=task.model.eval())
        for fraction in FRACTIONS:
            for value in arguments.values:
                row = measured(task, name, value, fraction, arguments)
                CONSOLE.print(*row)
                table.add_row(*row)
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
